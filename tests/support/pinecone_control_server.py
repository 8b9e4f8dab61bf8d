"""An emulator of Pinecone's control plane, written from ``tests/support/pinecone/db_control_2025-10.oas.yaml`` (Apache-2.0, by
Pinecone): serverless indexes alone. Requests and its own answers are checked against that document, as in ``pinecone_server.py``.

An index is ready after ``looks_until_ready`` looks at it; then a data plane of its own runs at its host.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from tests.support import stand_in
from tests.support.openapi_document import Document, Refused
from tests.support.pinecone_server import KEY, PineconeServer

REGIONS = {("aws", "us-east-1"), ("aws", "eu-west-1"), ("gcp", "us-central1"), ("azure", "eastus2")}
CODES = {400: "INVALID_ARGUMENT", 401: "UNAUTHENTICATED", 402: "PAYMENT_REQUIRED", 403: "FORBIDDEN", 404: "NOT_FOUND",
         409: "ALREADY_EXISTS", 422: "UNPROCESSABLE_ENTITY", 429: "RESOURCE_EXHAUSTED", 500: "UNKNOWN", 503: "UNAVAILABLE"}  # fmt: skip
METRICS = ("cosine", "euclidean", "dotproduct")


class ControlServer(stand_in.StandIn):
    """One project. ``set_fault`` strikes the calls that ``fault_on`` matches, as ``POST /indexes``."""

    def __init__(self, port: int = 0) -> None:
        super().__init__(Handler, port)
        self.indexes: dict[str, dict[str, Any]] = {}
        self.planes: dict[str, PineconeServer] = {}
        self.keys = {KEY}
        self.fault_on = r".*"
        self.looks_until_ready = 2
        self.fails_to_start = False
        self.faulty_answers: list[str] = []
        self.losing: set[str] = set()  # calls that are done and whose answer is lost, once each
        self._looks: dict[str, int] = {}

    def add(self, name: str, **more: Any) -> dict[str, Any]:
        """An index that is there already."""
        plane = self.planes[name] = PineconeServer(more.get("dimension", 2), metric=more.get("metric", "cosine"))
        plane.start()
        on_demand = {"mode": "OnDemand", "status": {"state": "Ready"}}
        self.indexes[name] = {
            "name": name,
            "dimension": 2,
            "metric": "cosine",
            "vector_type": "dense",
            "host": plane.url,
            "deletion_protection": "disabled",
            "tags": {},
            "spec": {"serverless": {"cloud": "aws", "region": "us-east-1", "read_capacity": on_demand}},
            "status": {"ready": True, "state": "Ready"},
        } | more
        return self.indexes[name]

    def look(self, name: str) -> dict[str, Any]:
        """The index as it is now; each look brings it nearer to being ready."""
        if name not in self.indexes:
            raise Refused(404, f"Index {name} not found.")
        index = self.indexes[name]
        if index["status"]["state"] == "Initializing":
            self._looks[name] = self._looks.get(name, 0) + 1
            if self._looks[name] >= self.looks_until_ready:
                state = "InitializationFailed" if self.fails_to_start else "Ready"
                index["status"] = {"ready": not self.fails_to_start, "state": state}
        return index

    def stop(self) -> None:
        super().stop()
        for plane in self.planes.values():
            plane.stop()


class Handler(stand_in.Handler):
    server: ControlServer

    def do_PATCH(self) -> None:  # noqa: N802 (http.server's name)
        self.handle_call("PATCH")

    def do_DELETE(self) -> None:  # noqa: N802
        self.handle_call("DELETE")

    def handle_call(self, method: str) -> None:
        raw = self.body()
        url = urlsplit(self.path)
        call = f"{method} {url.path}"
        self.server.calls.append(call)
        fault = self.server.take_fault() if re.fullmatch(self.server.fault_on, call) else None
        if self.fail_on_the_wire(fault):
            return
        operation: dict[str, Any] = {}
        try:
            if fault is not None:
                status = 429 if fault == "throttle" else int(fault)
                raise Refused(status, f"fault asked for, key {self.headers.get('Api-Key')}")
            operation, params = CONTRACT.operation(method, url.path)
            if self.headers.get("Api-Key") not in self.server.keys:
                raise Refused(401, f"Invalid API key {self.headers.get('Api-Key')}.")
            if not re.fullmatch(r"\d{4}-\d\d", self.headers.get("X-Pinecone-Api-Version") or ""):
                raise Refused(400, "X-Pinecone-Api-Version is required")
            request = CONTRACT.request(operation, raw, parse_qs(url.query, keep_blank_values=True))
            with self.server.lock:
                status, found = ANSWERS[operation["operationId"]](self, request | params)
        except Refused as error:
            status = error.status
            found = {"status": status, "error": {"code": CODES[status], "message": error.message}}
        problem = CONTRACT.problem(operation, status, found)
        if problem is not None:
            self.server.faulty_answers.append(f"{call}: {problem}")
            status, found = 500, {"status": 500, "error": {"code": "UNKNOWN", "message": problem}}
        if call in self.server.losing:
            self.server.losing.discard(call)
            self.fail_on_the_wire("torn")
            return
        self.answer(status, b"" if found is None else found)

    def create(self, request: dict[str, Any]) -> tuple[int, Any]:
        name, spec = request["name"], request["spec"].get("serverless")
        if not re.fullmatch(r"[a-z0-9]([a-z0-9-]{0,43}[a-z0-9])?", name):
            raise Refused(400, "Name must consist of lower case alphanumeric characters or '-'")
        if spec is None or request.get("vector_type", "dense") != "dense":
            raise Refused(400, "this emulator makes dense serverless indexes")
        if request.get("metric", "cosine") not in METRICS or "dimension" not in request:
            raise Refused(400, "metric or dimension")
        if (spec["cloud"], spec["region"]) not in REGIONS:
            raise Refused(404, f"Resource cloud: {spec['cloud']} region: {spec['region']} not found.")
        if name in self.server.indexes:
            raise Refused(409, "Resource already exists.")
        _check_protection(request)
        made = self.server.add(
            name,
            dimension=request["dimension"],
            metric=request.get("metric", "cosine"),
            deletion_protection=request.get("deletion_protection", "disabled"),
            tags=request.get("tags") or {},
            status={"ready": False, "state": "Initializing"},
        )
        made["spec"]["serverless"] |= {"cloud": spec["cloud"], "region": spec["region"]}
        return 201, made

    def describe(self, request: dict[str, Any]) -> tuple[int, Any]:
        return 200, self.server.look(request["index_name"])

    def list_all(self, request: dict[str, Any]) -> tuple[int, Any]:
        return 200, {"indexes": list(self.server.indexes.values())}

    def configure(self, request: dict[str, Any]) -> tuple[int, Any]:
        index = self.server.look(request["index_name"])
        _check_protection(request)
        index["deletion_protection"] = request.get("deletion_protection", index["deletion_protection"])
        tags = index["tags"] | (request.get("tags") or {})
        index["tags"] = {name: value for name, value in tags.items() if value != ""}
        return 202, index

    def delete(self, request: dict[str, Any]) -> tuple[int, Any]:
        index = self.server.look(request["index_name"])
        if index["deletion_protection"] == "enabled":
            raise Refused(
                403, "Deletion protection is enabled for this index. Disable deletion protection before retrying."
            )
        del self.server.indexes[request["index_name"]]
        return 202, None


def _check_protection(request: dict[str, Any]) -> None:
    if request.get("deletion_protection", "enabled") not in ("enabled", "disabled"):
        raise Refused(400, "deletion_protection is enabled or disabled")


ANSWERS: dict[str, Callable[[Handler, dict[str, Any]], tuple[int, Any]]] = {
    "create_index": Handler.create,
    "describe_index": Handler.describe,
    "list_indexes": Handler.list_all,
    "configure_index": Handler.configure,
    "delete_index": Handler.delete,
}
CONTRACT = Document(Path(__file__).parent / "pinecone" / "db_control_2025-10.oas.yaml", ANSWERS, "ErrorResponse")


@contextlib.contextmanager
def running_control() -> Iterator[ControlServer]:
    """A project without indexes, on a free port of loopback."""
    with stand_in.running(ControlServer()) as server:
        yield server
