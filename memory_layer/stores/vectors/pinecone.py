"""Pinecone: one dense index of metric cosine over its REST interface, one Pinecone namespace for each (tenant, namespace).

A vector's id is the node's id. Pinecone writes without conditions, so versions are kept by the adapter: writers of one process
take turns in a namespace, each reads what stands there before it writes and again when its write has become visible, and whoever
then finds an older version than its own writes once more. A removal leaves a mark with its version, which ``sweep`` deletes after
a day, and of the node nothing. What no reading can close is two processes that write one node within the same moment, the
older one last: the lease of a row keeps that away, search drops what Postgres does not vouch for.

Pinecone shows a write some time after it has taken it; upsert and delete return when it is visible (LSN headers,
https://docs.pinecone.io/guides/index-data/check-data-freshness), and are unavailable when that takes too long.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import re
import time
import uuid
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final, TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray

from memory_layer.errors import DependencyUnavailable, DimensionMismatch, VectorStoreUnavailable
from memory_layer.filters import Filter
from memory_layer.stores.protocols import Capabilities, VectorEntry, VectorHit, VectorHits, VectorPage, VectorRecord
from memory_layer.stores.vectors.entries import newest, refuse_invalid
from memory_layer.stores.vectors.pinecone_http import NamespaceUnknown, Wire
from memory_layer.stores.vectors.pinecone_records import MOST_BYTES as MOST_METADATA
from memory_layer.stores.vectors.pinecone_records import compile_filter, live_metadata, removed_metadata

# https://docs.pinecone.io/reference/api/database-limits
MOST_RECORDS: Final = 1000  # in one upsert
MOST_BYTES: Final = 2 * 10**6  # of one upsert
MOST_ANSWER: Final = 4 * 10**6  # bytes
DEEPEST: Final = 10_000  # hits of one query; there is no offset
_WITH_METADATA: Final = 450  # hits that fit into one answer together with their metadata
_MOST_IDS: Final = 100  # in one fetch, whose ids stand in the URL
_MOST_LISTED: Final = 100  # ids in one page of a list
_TIES: Final = 10  # hits asked for beyond the page, to see whether its last score goes on
_WRITE_SECONDS: Final = 30.0  # for one request with its tries
_READ_SECONDS: Final = 10.0
_REMEMBERED: Final = 100_000  # nodes whose last write this process knows
_ROUNDS: Final = 3  # of writing and reading back
_MARK_SECONDS: Final = 86_400
_LAG_SECONDS: Final = 600.0
_NOWHERE: Final = "_ping"  # no (tenant, namespace) is encoded so


class _Metadata(msgspec.Struct):
    version: float = msgspec.field(name="_version", default=-1.0)
    live: bool = msgspec.field(name="_live", default=True)


class _Match(msgspec.Struct):
    id: str
    score: float
    metadata: _Metadata | None = None


class _Matches(msgspec.Struct):
    matches: list[_Match] = []


class _Fetched(msgspec.Struct):
    metadata: _Metadata | None = None
    values: msgspec.Raw = msgspec.Raw(b"[]")  # read only by who wants them


class _Vectors(msgspec.Struct):
    vectors: dict[str, _Fetched] = {}


class _Id(msgspec.Struct):
    id: str


class _Next(msgspec.Struct):
    next: str


class _Listed(msgspec.Struct):
    vectors: list[_Id] = []
    pagination: _Next | None = None


class _Stats(msgspec.Struct):
    dimension: int | None = None
    metric: str | None = None
    namespaces: dict[str, Any] = {}


_Shape = TypeVar("_Shape")


class _Write(msgspec.Struct, frozen=True):
    """``rank`` orders everything that can happen to a node: 2 * version, and one more for a removal."""

    rank: int
    record: bytes  # one element of "vectors"


class Pinecone:
    """Use ``open_pinecone``."""

    provider = "pinecone"
    capabilities = Capabilities(
        mixed_dimensions=False, most_dimensions=20_000, deepest=DEEPEST, batch=100, replicas=False
    )

    def __init__(self, wire: Wire, *, visible_within: float = 20.0) -> None:
        """``visible_within``: seconds that a write may take to show."""
        self._wire = wire
        self._visible_within = visible_within
        self._dimension: int | None = None
        self._turns: weakref.WeakValueDictionary[str, asyncio.Lock] = weakref.WeakValueDictionary()
        self._known: OrderedDict[tuple[str, str], int] = OrderedDict()
        self._behind: dict[
            str, tuple[int, float]
        ] = {}  # by namespace: a write that did not show in time, and since when

    async def upsert(self, entries: Sequence[VectorEntry]) -> None:
        refuse_invalid(entries)
        if not entries:
            return
        dimension = await self._index_dimension()
        for entry in entries:
            _check_dimension(dimension, entry.vector.shape[0])
        for (tenant, namespace), nodes in newest(entries).items():
            writes = {str(node): _Write(2 * entry.version, _record(entry)) for node, entry in nodes.items()}
            await self._write(encode_namespace(tenant, namespace), writes)

    async def delete(self, tenant: str, namespace: str, nodes: Sequence[tuple[uuid.UUID, int]]) -> None:
        if not nodes:
            return
        # A vector cannot be all zeros, nor a record go without: the mark's points along the first axis.
        axis = b"[1" + b",0" * (await self._index_dimension() - 1) + b"]"
        now = int(time.time())
        versions: dict[uuid.UUID, int] = {}
        for node, version in nodes:
            versions[node] = max(version, versions.get(node, version))
        writes = {
            str(node): _Write(
                2 * version + 1,
                b'{"id":"%b","values":%b,"metadata":%b}' % (str(node).encode(), axis, removed_metadata(version, now)),
            )
            for node, version in versions.items()
        }
        await self._write(encode_namespace(tenant, namespace), writes)

    async def search(
        self, tenant: str, namespace: str, vector: NDArray[np.float32], limit: int, where: Filter | None, skip: int = 0
    ) -> VectorHits:
        """At most the nearest 10,000 can be reached: beyond them a page is empty."""
        if limit <= 0 or skip >= DEEPEST:
            return VectorHits([], exact=False)
        _check_dimension(await self._index_dimension(), vector.shape[0])
        space, depth = encode_namespace(tenant, namespace), min(limit + skip, DEEPEST)
        query = {"namespace": space, "vector": msgspec.Raw(_numbers(vector)), "filter": compile_filter(where)}
        matches = await self._nearest(query, depth)
        matches.sort(key=lambda match: (-match.score, match.id))
        page = [(match.id, match.score, match.metadata) for match in matches[skip : skip + limit]]
        missing = [name for name, _, metadata in page if metadata is None]
        known = await self._fetch(space, missing, _READ_SECONDS)
        hits = []
        for name, score, told in page:
            metadata = told or known.get(name)
            if metadata is not None and metadata.live:
                hits.append(VectorHit(uuid.UUID(name), int(metadata.version), max(-1.0, min(1.0, score))))
        return VectorHits(hits, exact=False)

    async def fetch(self, tenant: str, namespace: str, nodes: Sequence[uuid.UUID]) -> list[VectorRecord]:
        names = [str(node) for node in dict.fromkeys(nodes)]
        return _live(await self._read(encode_namespace(tenant, namespace), names, _READ_SECONDS), vectors=True)

    async def count(self, tenant: str, namespace: str) -> int:
        """Reads the whole namespace: the index's own count has the marks of removals in it, and lags."""
        total, cursor = 0, None
        while True:
            page = await self.scan(tenant, namespace, cursor)
            total, cursor = total + len(page.records), page.cursor
            if cursor is None:
                return total

    async def scan(
        self, tenant: str, namespace: str, cursor: str | None = None, limit: int = 1000, *, vectors: bool = False
    ) -> VectorPage:
        space = encode_namespace(tenant, namespace)
        params: dict[str, Any] = {"namespace": space, "limit": max(1, min(limit, _MOST_LISTED))}
        if cursor is not None:
            params["paginationToken"] = cursor
        try:
            listed = _decode((await self._wire.get("/vectors/list", params, deadline=_READ_SECONDS)).body, _Listed)
        except NamespaceUnknown:
            return VectorPage([], None)
        found = await self._read(space, [one.id for one in listed.vectors], _READ_SECONDS)
        more = listed.pagination
        return VectorPage(_live(found, vectors=vectors), None if more is None else more.next)

    async def drop(self, tenant: str, namespace: str) -> None:
        space = encode_namespace(tenant, namespace)
        body = msgspec.json.encode({"namespace": space, "deleteAll": True})
        async with self._turns.setdefault(space, asyncio.Lock()):
            with contextlib.suppress(NamespaceUnknown):
                answer = await self._wire.post("/vectors/delete", body, deadline=_WRITE_SECONDS)
                await self._visible(space, answer.lsn)
            for key in [key for key in self._known if key[0] == space]:
                del self._known[key]

    async def optimise(self, _tenant: str, _namespace: str, /) -> None:
        return None

    async def warm(self, tenant: str, namespace: str, /) -> None:
        """Pinecone loads what is asked for: so it is asked."""
        await self._shows(encode_namespace(tenant, namespace), 0)

    async def sweep(self) -> None:
        """Delete the marks of removals that no late writer can undo any more."""
        stats = await self._stats()
        old = {"$and": [{"_live": {"$eq": False}}, {"_removed": {"$lt": int(time.time()) - _MARK_SECONDS}}]}
        for space in stats.namespaces:
            if _OURS.fullmatch(space):
                body = msgspec.json.encode({"namespace": space, "filter": old})
                try:
                    await self._wire.post("/vectors/delete", body, deadline=_WRITE_SECONDS)
                except NamespaceUnknown:
                    continue

    async def ping(self) -> None:
        """Also raises while a write that was waited for in vain has not shown: rows need not fail over that."""
        if self._dimension is None:
            await self._stats()
        else:  # whose answer names every namespace, so it is not asked each time
            await self._shows(_NOWHERE, 0)
        for space, (lsn, since) in list(self._behind.items()):
            # A namespace that was removed, or began anew, never gets there: it is not waited for any longer.
            if time.monotonic() - since < _LAG_SECONDS and not await self._shows(space, lsn):
                raise VectorStoreUnavailable("Pinecone has taken writes that it does not show yet.")
            self._behind.pop(space, None)

    async def close(self) -> None:
        await self._wire.close()

    async def _write(self, space: str, writes: Mapping[str, _Write]) -> None:
        """Write what is not older than what stands there, and return when it shows."""
        left = dict(writes)
        for _ in range(_ROUNDS):
            lock = self._turns.setdefault(space, asyncio.Lock())
            async with lock:
                present = await self._ranks(space, left)
                left = {name: write for name, write in left.items() if write.rank >= present.get(name, -1)}
                lsn = await self._send(space, left)
                for name, write in left.items():
                    self._remember((space, name), write.rank)
            if not left:
                return
            await self._visible(space, lsn)
            shown = await self._ranks(space, left, remembered=False)
            left = {name: write for name, write in left.items() if shown.get(name, -1) < write.rank}
            if not left:
                return
            # What shows is older than what was written: a late writer of another process came last.
        raise VectorStoreUnavailable("Another writer keeps putting older vectors over newer ones in Pinecone.")

    async def _send(self, space: str, writes: Mapping[str, _Write]) -> int | None:
        """The position of the last batch."""
        lsn = None
        head = b'{"namespace":%b,"vectors":[' % msgspec.json.encode(space)
        for batch in batches([write.record for write in writes.values()], MOST_BYTES - len(head) - 2):
            answer = await self._wire.post("/vectors/upsert", head + b",".join(batch) + b"]}", deadline=_WRITE_SECONDS)
            lsn = answer.lsn
        return lsn

    async def _ranks(self, space: str, names: Mapping[str, Any], *, remembered: bool = True) -> dict[str, int]:
        """What is known to stand there, by the index and by what this process wrote itself, shown or not."""
        found = await self._fetch(space, list(names), _WRITE_SECONDS)
        ranks = {name: 2 * int(metadata.version) + (not metadata.live) for name, metadata in found.items()}
        if remembered:
            for name in names:
                ranks[name] = max(ranks.get(name, -1), self._known.get((space, name), -1))
        return ranks

    def _remember(self, key: tuple[str, str], rank: int) -> None:
        self._known[key] = rank
        self._known.move_to_end(key)
        if len(self._known) > _REMEMBERED:
            self._known.popitem(last=False)

    async def _fetch(self, space: str, names: Sequence[str], deadline: float) -> dict[str, _Metadata]:
        found = await self._read(space, names, deadline)
        return {name: record.metadata or _Metadata() for name, record in found.items()}

    async def _read(self, space: str, names: Sequence[str], deadline: float) -> dict[str, _Fetched]:
        found: dict[str, _Fetched] = {}
        # The values come along, unasked: about 20 bytes a number.
        size = max(1, min(_MOST_IDS, MOST_ANSWER // (22 * await self._index_dimension() + MOST_METADATA + 200)))
        for start in range(0, len(names), size):
            params = {"namespace": space, "ids": list(names[start : start + size])}
            try:
                answer = await self._wire.get("/vectors/fetch", params, deadline=deadline)
            except NamespaceUnknown:
                return found
            found |= _decode(answer.body, _Vectors).vectors
        return found

    async def _nearest(self, query: dict[str, Any], depth: int) -> list[_Match]:
        """The nearest ``depth``, and all that tie with the last of them, so that ties can be put in order."""
        count = min(depth + _TIES, DEEPEST)
        while True:
            body = msgspec.json.encode(query | {"topK": count, "includeMetadata": count <= _WITH_METADATA})
            try:
                answer = await self._wire.post("/query", body, deadline=_READ_SECONDS)
            except NamespaceUnknown:
                return []
            matches = _decode(answer.body, _Matches).matches
            if len(matches) < count or count == DEEPEST or matches[-1].score < matches[depth - 1].score:
                return matches
            count = min(2 * count, DEEPEST)

    async def _visible(self, space: str, lsn: int | None) -> None:
        """Return when a query sees the write. Without LSN headers nothing tells, and nothing is waited for."""
        if lsn is None:
            return
        give_up = time.monotonic() + self._visible_within
        pause = 0.01
        while not await self._shows(space, lsn):
            if time.monotonic() > give_up:
                self._behind[space] = lsn, time.monotonic()
                raise VectorStoreUnavailable(
                    f"Pinecone took a write and did not show it within {self._visible_within:g} s."
                )
            await asyncio.sleep(pause)
            pause = min(pause * 1.5, 0.5)
        self._behind.pop(space, None)  # positions grow: what was written before shows too

    async def _shows(self, space: str, lsn: int) -> bool:
        axis = b"[1" + b",0" * (await self._index_dimension() - 1) + b"]"
        try:
            answer = await self._wire.post(
                "/query",
                msgspec.json.encode({"namespace": space, "vector": msgspec.Raw(axis), "topK": 1}),
                deadline=_READ_SECONDS,
            )
        except NamespaceUnknown:
            return False
        except VectorStoreUnavailable as error:
            if not error.retryable:  # perhaps the index was made anew with another dimension
                self._dimension = None
            raise
        _decode(answer.body, _Matches)  # a proxy's page is no answer
        return answer.lsn is None or answer.lsn >= lsn

    async def _index_dimension(self) -> int:
        if self._dimension is None:
            await self._stats()
        if self._dimension is None:
            raise VectorStoreUnavailable("The Pinecone index does not tell its dimension: is it a dense one?")
        return self._dimension

    async def _stats(self) -> _Stats:
        answer = await self._wire.post("/describe_index_stats", b"{}", deadline=_READ_SECONDS)
        stats = _decode(answer.body, _Stats)
        if stats.metric not in (None, "cosine"):
            raise DependencyUnavailable(
                "VECTOR_DB_ENDPOINT names a Pinecone index of another metric than cosine. Make one with metric cosine."
            )
        self._dimension = stats.dimension or self._dimension
        return stats


async def open_pinecone(
    endpoint: str, read_key: Callable[[], str | None], *, visible_within: float = 20.0, patience: float = 10.0
) -> Pinecone:
    """``read_key`` is asked again when the key is refused. An index that is down, or a key that is refused, is no reason not to
    start; an index that compares by another metric is. Raises UsageError, DependencyUnavailable."""
    opened = Pinecone(Wire(endpoint, read_key, patience=patience), visible_within=visible_within)
    try:
        await opened.ping()
    except VectorStoreUnavailable:
        pass
    except BaseException:
        await opened.close()
        raise
    return opened


# Letters, digits, dots and hyphens stand for themselves, any other byte of UTF-8 is _ and two hex digits, and two _ part the
# two names, which no escape can bring forth: so it can be read back. Names that get too long become their digest.
_PLAIN: Final = re.compile(rb"[^A-Za-z0-9.-]")
_LONGEST: Final = 400  # Pinecone takes 512 characters
_OURS: Final = re.compile(r"([A-Za-z0-9.-]|_[0-9a-f]{2})*__([A-Za-z0-9.-]|_[0-9a-f]{2})*|_h[0-9a-f]{64}")


def encode_namespace(tenant: str, namespace: str) -> str:
    """The Pinecone namespace of a (tenant, namespace); no two have the same."""
    parts = [
        _PLAIN.sub(lambda found: b"_%02x" % found[0][0], name.encode("utf-8", "surrogatepass"))
        for name in (tenant, namespace)
    ]
    name = b"__".join(parts)
    return name.decode() if len(name) <= _LONGEST else "_h" + hashlib.sha256(name).hexdigest()


def batches(records: Sequence[bytes], most_bytes: int) -> Iterator[list[bytes]]:
    """Records in portions that one upsert takes, by count and by bytes. One that is too large goes alone, to be refused alone."""
    batch: list[bytes] = []
    size = 0
    for record in records:
        if batch and (len(batch) == MOST_RECORDS or size + len(record) + 1 > most_bytes):
            yield batch
            batch, size = [], 0
        batch.append(record)
        size += len(record) + 1
    if batch:
        yield batch


def _record(entry: VectorEntry) -> bytes:
    return b'{"id":"%b","values":%b,"metadata":%b}' % (
        str(entry.node_id).encode(),
        _numbers(entry.vector),
        live_metadata(entry.version, entry.fields),
    )


def _numbers(vector: NDArray[np.float32]) -> bytes:
    """As JSON with nine digits, which is what a float32 needs: shorter by a third than the same float64."""
    return ("[" + ",".join([f"{number:.9g}" for number in vector.tolist()]) + "]").encode()


def _live(found: Mapping[str, _Fetched], *, vectors: bool) -> list[VectorRecord]:
    records = []
    for name, one in found.items():
        metadata = one.metadata or _Metadata()
        if metadata.live:
            vector = np.array(_decode(bytes(one.values), list[float]), np.float32) if vectors else None
            records.append(VectorRecord(uuid.UUID(name), int(metadata.version), vector))
    return records


def _check_dimension(dimension: int, given: int) -> None:
    if given != dimension:
        raise DimensionMismatch(
            f"The Pinecone index holds {dimension} dimensions, the vector has {given}. An index has one dimension for all of its "
            "namespaces: make another index for another model."
        )


def _decode(body: bytes, shape: type[_Shape]) -> _Shape:
    try:
        return msgspec.json.decode(body, type=shape)
    except msgspec.MsgspecError:
        raise VectorStoreUnavailable("Pinecone's endpoint answered something that is not Pinecone's.") from None
