"""An emulator of Pinecone's data plane, written from ``tests/support/pinecone/db_data_2025-10.oas.yaml`` (Apache-2.0, by Pinecone).

Requests are checked against that document and against the published limits, and so are the emulator's own answers: one that does
not fit it is a 500 and kept in ``faulty_answers``. Writes show after ``delay`` seconds (never while ``frozen``), positions go
out as ``x-pinecone-request-lsn`` and ``x-pinecone-max-indexed-lsn``. Equal scores come in no particular order.

In a process of its own: ``python -m tests.support.pinecone_server --dimension 384`` prints its URL; the key is KEY below.
"""

from __future__ import annotations

import argparse
import base64
import binascii
import contextlib
import json
import math
import re
import time
import zlib
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import numpy as np

from tests.support import stand_in
from tests.support.openapi_document import Document, Refused

KEY = "pcsk_emulator_key_never_to_be_shown"
MAX_METADATA, MAX_REQUEST, MAX_ANSWER = 40_960, 2 * 2**20, 4 * 2**20
MAX_RECORDS = MAX_IDS = 1000
MAX_LISTED = 100
COMPARISONS = ("$eq", "$ne", "$gt", "$gte", "$lt", "$lte", "$in", "$nin", "$exists")
GONE = "gone"  # what a change says that deletes all of a namespace
CODES = {400: 3, 401: 16, 403: 7, 404: 5, 413: 3, 429: 8, 500: 13, 503: 14}


@dataclass
class Record:
    values: np.ndarray[Any, Any]
    metadata: dict[str, Any]


@dataclass
class Space:
    """A namespace: what shows, and what was taken and does not show yet as (due, position, change)."""

    records: dict[str, Record] = field(default_factory=dict)
    queue: deque[tuple[float, int, Callable[[dict[str, Record]], object]]] = field(default_factory=deque)
    lsn: int = 0
    indexed: int = 0
    matrix: tuple[list[str], Any] | None = None


class PineconeServer(stand_in.StandIn):
    """One dense index. ``set_fault`` strikes the calls whose path ``fault_on`` matches."""

    def __init__(self, dimension: int, port: int = 0, delay: float = 0.0, metric: str = "cosine") -> None:
        super().__init__(Handler, port)
        self.dimension, self.metric = dimension, metric
        self.visibility_delay = delay
        self.frozen = False
        self.tells_lsn = True
        self.unknown_is_404 = False  # also while nothing that was written to it has shown
        self.emptied_is_gone = False  # whether a namespace goes, positions included, when all of it was deleted
        self.keys = {KEY}
        self.retry_after: str | None = "1"
        self.slow = 0.0  # seconds before every answer
        self.paging: str | None = (
            None  # "empty": the last page names no next one in so many words; "stuck": each names itself
        )
        self.fault_on = r".*"
        self.spaces: dict[str, Space] = {}
        self.sizes: list[tuple[str, int, int]] = []  # of writes: path, records, bytes
        self.faulty_answers: list[str] = []
        self.after_upsert: Callable[[str, list[str]], None] | None = None  # what another client does right then

    def settle(self, name: str) -> Space:
        space = self.spaces.get(name)
        if space is None:
            if self.unknown_is_404:
                raise Refused(404, "Namespace not found")
            return Space()
        while space.queue and not self.frozen and space.queue[0][0] <= time.monotonic():
            _, lsn, change = space.queue.popleft()
            if change(space.records) is GONE and self.emptied_is_gone:
                del self.spaces[name]
                return self.settle(name)
            space.indexed, space.matrix = lsn, None
        if self.unknown_is_404 and not space.indexed:
            raise Refused(404, "Namespace not found")
        return space

    def take(self, name: str, change: Callable[[dict[str, Record]], object]) -> int:
        """Accept a change; its position."""
        space = self.spaces.setdefault(name, Space())
        space.lsn += 1
        space.queue.append((time.monotonic() + self.visibility_delay, space.lsn, change))
        return space.lsn


class Handler(stand_in.Handler):
    server: PineconeServer

    def do_DELETE(self) -> None:  # noqa: N802 (http.server's name)
        self.handle_call("DELETE")

    def handle_call(self, method: str) -> None:
        raw = self.body()
        url = urlsplit(self.path)
        self.server.calls.append(f"{method} {url.path}")
        self.extra: dict[str, str] = {}
        fault = self.server.take_fault() if re.fullmatch(self.server.fault_on, url.path) else None
        if self.server.slow:
            self.server.let_go.wait(self.server.slow)
        if self.fail_on_the_wire(fault):
            return
        status = 200
        operation: dict[str, Any] = {}
        try:
            if fault == "throttle":
                raise Refused(429, f"Too many requests for {self.headers.get('Api-Key')}")
            if fault is not None:
                raise Refused(int(fault), f"fault asked for, key {self.headers.get('Api-Key')}")
            operation, params = CONTRACT.operation(method, url.path)
            if self.headers.get("Api-Key") not in self.server.keys:
                raise Refused(401, f"Malformed or unknown API key {self.headers.get('Api-Key')}")
            if not re.fullmatch(r"\d{4}-\d\d", self.headers.get("X-Pinecone-Api-Version") or ""):
                raise Refused(400, "X-Pinecone-Api-Version is required")
            if len(raw) > MAX_REQUEST:
                raise Refused(400, "Request size exceeds 2 MB")
            request = CONTRACT.request(operation, raw, parse_qs(url.query, keep_blank_values=True))
            with self.server.lock:
                found = ANSWERS[operation["operationId"]](self, request | params)
        except Refused as error:
            status, found = error.status, {"code": CODES.get(error.status, 2), "message": error.message, "details": []}
            if status == 429 and self.server.retry_after is not None:
                self.extra["Retry-After"] = self.server.retry_after
        problem = CONTRACT.problem(operation, status, found)
        if problem is not None:
            self.server.faulty_answers.append(f"{method} {url.path}: {problem}")
            status, found = 500, {"code": 13, "message": problem, "details": []}
        data = json.dumps(found, allow_nan=False).encode()
        if len(data) > MAX_ANSWER:
            status, data = 400, json.dumps({"code": 3, "message": "Response size exceeds 4 MB", "details": []}).encode()
        self.answer(status, data)

    def end_headers(self) -> None:
        for name, value in getattr(self, "extra", {}).items():
            self.send_header(name, value)
        super().end_headers()

    def written(self, lsn: int) -> dict[str, Any]:
        if self.server.tells_lsn:
            self.extra["x-pinecone-request-lsn"] = str(lsn)
        return {}

    def upsert(self, request: dict[str, Any]) -> dict[str, Any]:
        vectors = request["vectors"]
        if not 1 <= len(vectors) <= MAX_RECORDS:
            raise Refused(400, f"{len(vectors)} records in one upsert")
        records = {}
        for vector in vectors:
            _check_id(vector["id"])
            _check_metadata(vector.get("metadata") or {})
            records[vector["id"]] = Record(
                _values(vector.get("values"), self.server.dimension), vector.get("metadata") or {}
            )
        name = request.get("namespace", "")
        self.server.sizes.append(("/vectors/upsert", len(vectors), int(self.headers["Content-Length"])))
        self.written(self.server.take(name, lambda held: held.update(records)))
        if self.server.after_upsert is not None:
            self.server.after_upsert(name, list(records))
        return {"upsertedCount": len(vectors)}

    def query(self, request: dict[str, Any]) -> dict[str, Any]:
        if "id" in request and "vector" in request:
            raise Refused(400, "Cannot provide both id and vector")
        name = request.get("namespace", "")
        space = self.server.settle(name)
        if self.server.tells_lsn:
            self.extra["x-pinecone-max-indexed-lsn"] = str(space.indexed)
        if "id" in request:
            held = space.records.get(request["id"])
            if held is None:
                return {"matches": [], "namespace": name, "usage": {"readUnits": 1}}
            wanted = held.values
        else:
            wanted = _values(request.get("vector"), self.server.dimension)
        where = request.get("filter")
        if where is not None:
            _check_filter(where)
        ids, scores = _scores(space, wanted)
        fitting = [i for i, one in enumerate(ids) if where is None or _holds(where, space.records[one].metadata)]
        fitting.sort(key=lambda i: (-scores[i], zlib.crc32(ids[i].encode())))
        matches = []
        for i in fitting[: request["topK"]]:
            match: dict[str, Any] = {"id": ids[i], "score": float(scores[i])}
            if request.get("includeMetadata"):
                match["metadata"] = space.records[ids[i]].metadata
            if request.get("includeValues"):
                match["values"] = space.records[ids[i]].values.tolist()
            matches.append(match)
        return {"matches": matches, "namespace": name, "usage": {"readUnits": 1}}

    def fetch(self, request: dict[str, Any]) -> dict[str, Any]:
        if not 1 <= len(request["ids"]) <= MAX_IDS:
            raise Refused(400, f"{len(request['ids'])} ids in one fetch")
        name = request.get("namespace", "")
        held = self.server.settle(name).records
        vectors = {
            one: {"id": one, "values": held[one].values.tolist()}
            | ({"metadata": held[one].metadata} if held[one].metadata else {})
            for one in request["ids"]
            if one in held
        }
        return {"vectors": vectors, "namespace": name, "usage": {"readUnits": 1}}

    def delete(self, request: dict[str, Any]) -> dict[str, Any]:
        ways = [way for way in ("ids", "deleteAll", "filter") if request.get(way)]
        if len(ways) != 1:
            raise Refused(400, "exactly one of ids, deleteAll and filter is required")
        name = request.get("namespace", "")
        self.server.settle(name)  # refused where unknown namespaces are
        if name not in self.server.spaces:
            return self.written(0)
        if "filter" in ways:
            where = request["filter"]
            _check_filter(where)

            def change(held: dict[str, Record]) -> object:
                for one in [one for one, record in held.items() if _holds(where, record.metadata)]:
                    del held[one]
                return None

        elif "ids" in ways:
            if len(request["ids"]) > MAX_IDS:
                raise Refused(400, f"{len(request['ids'])} ids in one delete")

            def change(held: dict[str, Record]) -> object:
                for one in request["ids"]:
                    held.pop(one, None)
                return None

        else:

            def change(held: dict[str, Record]) -> object:
                held.clear()
                return GONE

        return self.written(self.server.take(name, change))

    def update(self, request: dict[str, Any]) -> dict[str, Any]:
        if "id" not in request:
            raise Refused(400, "this emulator updates by id")
        values = _values(request["values"], self.server.dimension) if "values" in request else None
        _check_metadata(request.get("setMetadata") or {})

        def change(held: dict[str, Record]) -> None:
            old = held.get(request["id"])
            if old is not None:
                metadata = old.metadata | (request.get("setMetadata") or {})
                held[request["id"]] = Record(old.values if values is None else values, metadata)

        return self.written(self.server.take(request.get("namespace", ""), change))

    def stats(self, request: dict[str, Any]) -> dict[str, Any]:
        if request.get("filter"):
            raise Refused(400, "Serverless indexes do not support describing index stats with metadata filtering")
        counts = {name: len(self.server.settle(name).records) for name in list(self.server.spaces)}
        return {
            "namespaces": {name or "__default__": {"vectorCount": count} for name, count in counts.items() if count},
            "dimension": self.server.dimension,
            "indexFullness": 0.0,
            "totalVectorCount": sum(counts.values()),
            "metric": self.server.metric,
            "vectorType": "dense",
        }

    def list_ids(self, request: dict[str, Any]) -> dict[str, Any]:
        """Ids in bitwise order; the token is opaque, and says after which id to go on."""
        name, limit = request.get("namespace", ""), request.get("limit", MAX_LISTED)
        if not 1 <= limit <= MAX_LISTED:
            raise Refused(400, f"limit must be between 1 and {MAX_LISTED}")
        after = _opened(request["paginationToken"], name) if "paginationToken" in request else ""
        ids = sorted(one for one in self.server.settle(name).records if one.startswith(request.get("prefix", "")))
        rest = [one for one in ids if one > after]
        page = rest[:limit]
        answer: dict[str, Any] = {
            "vectors": [{"id": one} for one in page],
            "namespace": name,
            "usage": {"readUnits": 1},
        }
        if self.server.paging == "stuck":
            return answer | {"pagination": {"next": request.get("paginationToken", _token("", name))}}
        if len(rest) > len(page):
            return answer | {"pagination": {"next": _token(page[-1], name)}}
        return answer | ({"pagination": {}} if self.server.paging == "empty" else {})

    def drop(self, request: dict[str, Any]) -> dict[str, Any]:
        if self.server.spaces.pop(request["namespace"], None) is None:
            raise Refused(404, "Namespace not found")
        return {}

    def namespace(self, request: dict[str, Any]) -> dict[str, Any]:
        name = request["namespace"]
        if name not in self.server.spaces:
            raise Refused(404, "Namespace not found")
        return {"name": name, "record_count": len(self.server.settle(name).records)}

    def namespaces(self, request: dict[str, Any]) -> dict[str, Any]:
        names = sorted(name for name in list(self.server.spaces) if name.startswith(request.get("prefix", "")))
        limit = request.get("limit", MAX_LISTED)
        if not 1 <= limit <= MAX_LISTED:
            raise Refused(400, f"limit must be between 1 and {MAX_LISTED}")
        after = _opened(request["paginationToken"], "") if "paginationToken" in request else ""
        rest = [name for name in names if name > after]
        page = rest[:limit]
        described = [{"name": name, "record_count": len(self.server.settle(name).records)} for name in page]
        answer: dict[str, Any] = {"namespaces": described, "total_count": len(names)}
        return answer | ({"pagination": {"next": _token(page[-1], "")}} if len(rest) > len(page) else {})


def _token(last: str, name: str) -> str:
    return base64.b64encode(json.dumps([name, last]).encode()).decode()


def _opened(token: str, name: str) -> str:
    try:
        of, last = json.loads(base64.b64decode(token, validate=True))
    except (ValueError, TypeError, binascii.Error):
        raise Refused(400, "Invalid pagination token") from None
    if of != name or not isinstance(last, str):
        raise Refused(400, "Pagination token of another request")
    return last


ANSWERS: dict[str, Callable[[Handler, dict[str, Any]], dict[str, Any]]] = {
    "upsertVectors": Handler.upsert,
    "queryVectors": Handler.query,
    "fetchVectors": Handler.fetch,
    "deleteVectors": Handler.delete,
    "updateVector": Handler.update,
    "describeIndexStats": Handler.stats,
    "listVectors": Handler.list_ids,
    "deleteNamespace": Handler.drop,
    "describeNamespace": Handler.namespace,
    "listNamespacesOperation": Handler.namespaces,
}


CONTRACT = Document(Path(__file__).parent / "pinecone" / "db_data_2025-10.oas.yaml", ANSWERS, "rpcStatus")


# --- the published limits


def _check_id(one: str) -> None:
    if not 1 <= len(one) <= 512 or not one.isascii() or "\0" in one:
        raise Refused(400, "ids are 1 to 512 ASCII characters")


def _check_metadata(metadata: dict[str, Any]) -> None:
    if len(json.dumps(metadata, ensure_ascii=False).encode()) > MAX_METADATA:
        raise Refused(400, "Metadata size exceeds the limit of 40960 bytes per vector")
    for key, value in metadata.items():
        strings = isinstance(value, list) and all(isinstance(one, str) for one in value)
        if not key or key.startswith("$"):
            raise Refused(400, f"metadata key {key!r}")
        if not strings and not isinstance(value, str | bool | int | float):
            raise Refused(400, f"Metadata value must be a string, number, boolean or list of strings, got {value!r}")


def _values(values: Any, dimension: int) -> np.ndarray[Any, Any]:
    if not isinstance(values, list) or len(values) != dimension:
        given = len(values) if isinstance(values, list) else 0
        raise Refused(400, f"Vector dimension {given} does not match the dimension of the index {dimension}")
    vector = np.array(values, np.float32)
    if not np.isfinite(vector).all() or not vector.any():
        raise Refused(400, "Dense vectors must contain at least one non-zero value")
    return vector


def _check_filter(where: Any) -> None:
    if not isinstance(where, dict) or not where:
        raise Refused(400, "a filter is an object of conditions")
    for key, condition in where.items():
        if key in ("$and", "$or"):
            if not isinstance(condition, list) or not condition:
                raise Refused(400, f"{key} takes a list of filters")
            for part in condition:
                _check_filter(part)
        elif key.startswith("$"):
            raise Refused(400, f"{key} is not an operator here")
        elif isinstance(condition, dict):
            for op, operand in condition.items():
                _check_operand(op, operand)
        else:
            _check_operand("$eq", condition)


def _check_operand(op: str, operand: Any) -> None:
    number = isinstance(operand, int | float) and not isinstance(operand, bool) and math.isfinite(operand)
    fits = {
        "$eq": isinstance(operand, str | bool) or number,
        "$exists": isinstance(operand, bool),
        "$in": isinstance(operand, list) and 1 <= len(operand) <= 10_000 and all(isinstance(o, str | int | float) for o in operand),
    }  # fmt: skip
    fits |= {"$ne": fits["$eq"], "$nin": fits["$in"]}
    if op not in COMPARISONS or not fits.get(op, number):
        raise Refused(400, f"the operand of {op} does not fit")


def _holds(where: dict[str, Any], metadata: dict[str, Any]) -> bool:
    return all(_met(key, condition, metadata) for key, condition in where.items())


def _met(key: str, condition: Any, metadata: dict[str, Any]) -> bool:
    if key == "$and":
        return all(_holds(part, metadata) for part in condition)
    if key == "$or":
        return any(_holds(part, metadata) for part in condition)
    tests = condition if isinstance(condition, dict) else {"$eq": condition}
    return all(_compared(op, operand, metadata.get(key)) for op, operand in tests.items())


def _compared(op: str, operand: Any, value: Any) -> bool:
    """A record without the field meets nothing but ``$exists: false``: neither ``$ne`` nor ``$nin`` find it."""
    if op == "$exists":
        return (value is not None) == operand
    if value is None:
        return False
    values = value if isinstance(value, list) else [value]
    if op in ("$gt", "$gte", "$lt", "$lte"):
        if isinstance(value, bool | str | list):
            return False
        return bool(
            {"$gt": value > operand, "$gte": value >= operand, "$lt": value < operand, "$lte": value <= operand}[op]
        )
    operands = operand if op in ("$in", "$nin") else [operand]
    meets = not {(type(v) in (int, float), isinstance(v, bool), v) for v in values}.isdisjoint(
        {(type(o) in (int, float), isinstance(o, bool), o) for o in operands}
    )
    return meets if op in ("$eq", "$in") else not meets


def _scores(space: Space, wanted: np.ndarray[Any, Any]) -> tuple[list[str], Any]:
    if not space.records:
        return [], np.empty(0)
    if space.matrix is None:
        rows = np.stack([record.values for record in space.records.values()]).astype(np.float64)
        space.matrix = list(space.records), rows / np.linalg.norm(rows, axis=1, keepdims=True)
    ids, matrix = space.matrix
    exact = wanted.astype(np.float64)
    return ids, (matrix @ (exact / np.linalg.norm(exact))).astype(np.float32)


@contextlib.contextmanager
def running_pinecone(dimension: int, delay: float = 0.0, metric: str = "cosine") -> Iterator[PineconeServer]:
    """An empty index on a free port of loopback."""
    with stand_in.running(PineconeServer(dimension, delay=delay, metric=metric)) as server:
        yield server


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="An emulator of Pinecone's data plane.")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--dimension", type=int, required=True)
    parser.add_argument("--delay-ms", type=float, default=0.0, help="until a write shows")
    chosen = parser.parse_args(argv)
    stand_in.run_until_killed(PineconeServer(chosen.dimension, chosen.port, chosen.delay_ms / 1000))


if __name__ == "__main__":
    main()
