"""Pinecone: one dense index of metric cosine over its REST interface, one Pinecone namespace for each (tenant, namespace).

A vector's id is the node's id. Pinecone writes without conditions, so versions are kept by the adapter: writers of one process
hold a lock for the namespace, each reads what is there before it writes and again when its write has become visible, and one that
then finds an older version than its own writes once more. A removal leaves a mark with its version, which ``sweep`` deletes after
a day, and of the node nothing. One gap remains: two processes that write one node at the same moment, the older
version last. Search drops hits that Postgres does not confirm, and the worker indexes again what may have been overwritten
(``service/index_leases.py``).

Pinecone shows a write some time after it has taken it; upsert and delete return when it is visible (LSN headers,
https://docs.pinecone.io/guides/index-data/check-data-freshness), and are unavailable when that takes too long.
"""

from __future__ import annotations

import asyncio
import time
import uuid
import weakref
from collections import Counter, OrderedDict
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Final, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from memory_layer.errors import DependencyUnavailable, DimensionMismatch, VectorStoreUnavailable
from memory_layer.filters import Filter
from memory_layer.stores.protocols import Capabilities, IndexHit, VectorEntry, VectorHits, VectorPage, VectorRecord
from memory_layer.stores.vectors.entries import newest, refuse_invalid
from memory_layer.stores.vectors.pinecone_http import NamespaceUnknown, Wire
from memory_layer.stores.vectors.pinecone_records import MAX_BYTES as MAX_METADATA
from memory_layer.stores.vectors.pinecone_records import compile_filter, live_metadata, removed_metadata
from memory_layer.stores.vectors.pinecone_shapes import (
    OURS,
    Fetched,
    Listed,
    Match,
    Matches,
    Metadata,
    Stats,
    Vectors,
    alike,
    batches,
    decode,
    encode_namespace,
    live_records,
    node_of,
    numbers,
    record,
)

# https://docs.pinecone.io/reference/api/database-limits
MAX_BYTES: Final = 2 * 10**6  # of one upsert
MAX_ANSWER: Final = 4 * 10**6  # bytes
DEEPEST: Final = 10_000  # hits of one query; there is no offset
_WITH_METADATA: Final = 450  # hits that fit into one answer together with their metadata
_MAX_IDS: Final = 100  # in one fetch, whose ids stand in the URL
_MAX_LISTED: Final = 100  # ids in one page of a list
_TIES: Final = 10  # hits asked for beyond the page, to see whether its last score goes on
_WRITE_SECONDS: Final = 30.0  # for one request with its tries
_READ_SECONDS: Final = 10.0
_UNSHOWN: Final = 100_000  # writes under way that this process keeps in mind
_ROUNDS: Final = 3  # of writing and reading back
_MARK_SECONDS: Final = 86_400
_LAG_SECONDS: Final = 600.0  # that a write which does not show is waited for
_NOWHERE: Final = "_ping"  # no (tenant, namespace) is encoded so
_ALL: Final = 2**63 - 1  # beyond any position


class _Write(msgspec.Struct, frozen=True):
    """``rank`` orders everything that can happen to a node: 2 * version, and one more for a removal."""

    rank: int
    record: bytes  # one element of "vectors"


class _Unshown(NamedTuple):
    """A write that was taken and has not been seen yet; ``since`` by the monotonic clock."""

    rank: int
    lsn: int
    since: float


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
        self._locks: weakref.WeakValueDictionary[str, asyncio.Lock] = weakref.WeakValueDictionary()
        self._unshown: OrderedDict[tuple[str, str], _Unshown] = OrderedDict()
        # By namespace: a write that did not show in time, and since when; how often it was dropped.
        self._behind: dict[str, tuple[int, float]] = {}
        self._drops: Counter[str] = Counter()

    async def upsert(self, entries: Sequence[VectorEntry]) -> None:
        refuse_invalid(entries)
        if not entries:
            return
        dimension = await self._index_dimension()
        for entry in entries:
            _check_dimension(dimension, entry.vector.shape[0])
        for (tenant, namespace), nodes in newest(entries).items():
            writes = {str(node): _Write(2 * entry.version, record(entry)) for node, entry in nodes.items()}
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
        query = {"namespace": space, "vector": msgspec.Raw(numbers(vector)), "filter": compile_filter(where)}
        matches = await self._nearest(query, depth)
        matches.sort(key=lambda match: (-match.score, match.id))
        page = [(match.id, match.score, match.metadata) for match in matches[skip : skip + limit]]
        missing = [name for name, _, metadata in page if metadata is None]
        known = await self._fetch(space, missing, _READ_SECONDS)
        hits = []
        for name, score, returned in page:
            metadata, node = returned or known.get(name), node_of(name)
            if metadata is not None and metadata.live and node is not None:
                hits.append(IndexHit(node, int(metadata.version), max(-1.0, min(1.0, score))))
        return VectorHits(hits, exact=False)

    async def fetch(self, tenant: str, namespace: str, nodes: Sequence[uuid.UUID]) -> list[VectorRecord]:
        names = [str(node) for node in dict.fromkeys(nodes)]
        return live_records(await self._read(encode_namespace(tenant, namespace), names, _READ_SECONDS), vectors=True)

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
        params: dict[str, Any] = {"namespace": space, "limit": max(1, min(limit, _MAX_LISTED))}
        if cursor is not None:
            params["paginationToken"] = cursor
        try:
            listed = decode((await self._wire.get("/vectors/list", params, deadline=_READ_SECONDS)).body, Listed)
        except NamespaceUnknown:
            return VectorPage([], None)
        following = listed.pagination.next if listed.pagination else ""
        if following and following == cursor:
            raise VectorStoreUnavailable("Pinecone lists the same page of a namespace again and again.")
        found = await self._read(space, [one.id for one in listed.vectors], _READ_SECONDS)
        return VectorPage(live_records(found, vectors=vectors), following or None)

    async def stale_fields(self, tenant: str, namespace: str, entries: Sequence[VectorEntry]) -> list[uuid.UUID]:
        names = {str(entry.node_id): entry for entry in entries}
        found = await self._read(encode_namespace(tenant, namespace), list(names), _READ_SECONDS)
        return [
            names[name].node_id
            for name, one in found.items()
            if one.all_fields.get("_live") is True
            and one.all_fields.get("_version") == names[name].version
            and alike(one.all_fields)
            != alike(msgspec.json.decode(live_metadata(names[name].version, names[name].fields)))
        ]

    async def unknown_namespaces(self, known: Collection[tuple[str, str]]) -> list[str]:
        names = {encode_namespace(*names) for names in known}
        return sorted(
            space for space in (await self._stats()).namespaces if OURS.fullmatch(space) and space not in names
        )

    async def drop_unknown(self, name: str) -> None:
        if OURS.fullmatch(name):
            await self._drop(name)

    async def drop(self, tenant: str, namespace: str) -> None:
        await self._drop(encode_namespace(tenant, namespace))

    async def _drop(self, space: str) -> None:
        async with self._locks.setdefault(space, asyncio.Lock()):
            if not await self._clear(space):
                # A namespace that this process has just written to may not be known yet; what is on its way would come after the
                # drop. Where nothing is on its way, there is nothing to drop.
                last = max((write.lsn for key, write in self._unshown.items() if key[0] == space), default=None)
                if last is not None:
                    await self._visible(space, last)
                    await self._clear(space)
            self._drops[space] += 1
            self._behind.pop(space, None)
            for key in [key for key in self._unshown if key[0] == space]:
                del self._unshown[key]

    async def _clear(self, space: str) -> bool:
        """Delete all of a namespace, and return when that shows; False when Pinecone knows none of this name."""
        body = msgspec.json.encode({"namespace": space, "deleteAll": True})
        try:
            answer = await self._wire.post("/vectors/delete", body, deadline=_WRITE_SECONDS)
        except NamespaceUnknown:
            return False
        await self._visible(space, answer.lsn, may_vanish=True)
        return True

    async def optimise(self, _tenant: str, _namespace: str, /) -> None:
        return None

    async def warm(self, tenant: str, namespace: str, /) -> None:
        """Pinecone loads what is asked for: so it is asked."""
        await self._position(encode_namespace(tenant, namespace))

    async def sweep(self) -> None:
        """Delete the marks of removals that no late writer can undo any more."""
        stats = await self._stats()
        old = {"$and": [{"_live": {"$eq": False}}, {"_removed": {"$lt": int(time.time()) - _MARK_SECONDS}}]}
        for space in stats.namespaces:
            if OURS.fullmatch(space):
                body = msgspec.json.encode({"namespace": space, "filter": old})
                try:
                    await self._wire.post("/vectors/delete", body, deadline=_WRITE_SECONDS)
                except NamespaceUnknown:
                    continue

    async def ping(self) -> None:
        """Also raises while a write that timed out is still not visible: rows need not fail because of that."""
        if self._dimension is None:
            await self._stats()
        else:  # whose answer names every namespace, so it is not asked each time
            await self._position(_NOWHERE)
        for space, (lsn, since) in list(self._behind.items()):
            # A namespace that was removed, or began anew, never gets there: it is not waited for any longer.
            if time.monotonic() - since < _LAG_SECONDS and (await self._position(space) or 0) < lsn:
                raise VectorStoreUnavailable("Pinecone has taken writes that it does not show yet.")
            self._behind.pop(space, None)

    async def close(self) -> None:
        await self._wire.close()

    async def _write(self, space: str, writes: Mapping[str, _Write]) -> None:
        """Write what is not older than what stands there, and return when it shows."""
        left = dict(writes)
        for _ in range(_ROUNDS):
            lock = self._locks.setdefault(space, asyncio.Lock())
            async with lock:
                present = await self._ranks(space, left, under_way=True)
                left = {name: write for name, write in left.items() if write.rank >= present.get(name, -1)}
                lsn = await self._send(space, left)
                if lsn is not None:
                    self._keep_in_mind(space, left, lsn)
            if not left:
                return
            await self._visible(space, lsn)
            shown = await self._ranks(space, left)
            for name, rank in shown.items():
                kept = self._unshown.get((space, name))
                if kept is not None and kept.rank <= rank:
                    del self._unshown[space, name]
            left = {name: write for name, write in left.items() if shown.get(name, -1) < write.rank}
            if not left:
                return
            # What is visible is older than what was written: another process wrote an older version last.
        raise VectorStoreUnavailable("Another writer keeps putting older vectors over newer ones in Pinecone.")

    async def _send(self, space: str, writes: Mapping[str, _Write]) -> int | None:
        """The position of the last batch."""
        lsn = None
        head = b'{"namespace":%b,"vectors":[' % msgspec.json.encode(space)
        for batch in batches([write.record for write in writes.values()], MAX_BYTES - len(head) - 2):
            answer = await self._wire.post("/vectors/upsert", head + b",".join(batch) + b"]}", deadline=_WRITE_SECONDS)
            lsn = answer.lsn
        return lsn

    async def _ranks(self, space: str, names: Mapping[str, Any], *, under_way: bool = False) -> dict[str, int]:
        """What stands there by the index, and ``under_way`` what this process wrote and the index does not show yet.

        Nothing else is remembered: another process may have dropped the namespace and begun it anew with older versions.
        """
        kept = {name: self._unshown[space, name] for name in names if (space, name) in self._unshown}
        reached = await self._position(space) if kept and under_way else None
        found = await self._fetch(space, list(names), _WRITE_SECONDS)
        ranks = {name: 2 * int(metadata.version) + (not metadata.live) for name, metadata in found.items()}
        for name, write in kept.items() if under_way else ():
            if (reached is not None and reached >= write.lsn) or time.monotonic() - write.since > _LAG_SECONDS:
                self._unshown.pop((space, name), None)
            else:
                ranks[name] = max(ranks.get(name, -1), write.rank)
        return ranks

    def _keep_in_mind(self, space: str, writes: Mapping[str, _Write], lsn: int) -> None:
        now = time.monotonic()
        for name, write in writes.items():
            self._unshown[space, name] = _Unshown(write.rank, lsn, now)
            self._unshown.move_to_end((space, name))
        while len(self._unshown) > _UNSHOWN:
            self._unshown.popitem(last=False)

    async def _fetch(self, space: str, names: Sequence[str], deadline: float) -> dict[str, Metadata]:
        found = await self._read(space, names, deadline)
        return {name: record.metadata or Metadata() for name, record in found.items()}

    async def _read(self, space: str, names: Sequence[str], deadline: float) -> dict[str, Fetched]:
        found: dict[str, Fetched] = {}
        # The values come along, unasked: about 20 bytes a number.
        size = max(1, min(_MAX_IDS, MAX_ANSWER // (22 * await self._index_dimension() + MAX_METADATA + 200)))
        for start in range(0, len(names), size):
            params = {"namespace": space, "ids": list(names[start : start + size])}
            try:
                answer = await self._wire.get("/vectors/fetch", params, deadline=deadline)
            except NamespaceUnknown:
                return found
            found |= decode(answer.body, Vectors).vectors
        return found

    async def _nearest(self, query: dict[str, Any], depth: int) -> list[Match]:
        """The nearest ``depth``, and all that tie with the last of them, so that ties can be put in order."""
        count = min(depth + _TIES, DEEPEST)
        while True:
            body = msgspec.json.encode(query | {"topK": count, "includeMetadata": count <= _WITH_METADATA})
            try:
                answer = await self._wire.post("/query", body, deadline=_READ_SECONDS)
            except NamespaceUnknown:
                return []
            matches = decode(answer.body, Matches).matches
            if len(matches) < count or count == DEEPEST or matches[-1].score < matches[depth - 1].score:
                return matches
            count = min(2 * count, DEEPEST)

    async def _visible(self, space: str, lsn: int | None, *, may_vanish: bool = False) -> None:
        """Return when a query sees the write. Without LSN headers nothing tells, and nothing is waited for.

        ``may_vanish``: the write empties the namespace, so that it may be gone with that.
        """
        if lsn is None:
            return
        give_up, drops = time.monotonic() + self._visible_within, self._drops[space]
        pause = 0.01
        while True:
            reached = await self._position(space)
            if (may_vanish and reached is None) or (reached is not None and reached >= lsn):
                break
            if self._drops[space] != drops:  # dropped meanwhile: its positions may begin anew
                return
            if time.monotonic() > give_up:
                self._behind[space] = lsn, time.monotonic()
                raise VectorStoreUnavailable(
                    f"Pinecone took a write and did not show it within {self._visible_within:g} s."
                )
            await asyncio.sleep(pause)
            pause = min(pause * 1.5, 0.5)
        self._behind.pop(space, None)  # positions grow: what was written before shows too

    async def _position(self, space: str) -> int | None:
        """Up to where queries see what was written to a namespace; None when Pinecone does not know it (yet)."""
        axis = b"[1" + b",0" * (await self._index_dimension() - 1) + b"]"
        try:
            answer = await self._wire.post(
                "/query",
                msgspec.json.encode({"namespace": space, "vector": msgspec.Raw(axis), "topK": 1}),
                deadline=_READ_SECONDS,
            )
        except NamespaceUnknown:
            return None
        except VectorStoreUnavailable as error:
            if not error.retryable:  # perhaps the index was made anew with another dimension
                self._dimension = None
            raise
        decode(answer.body, Matches)  # a proxy's page is no answer
        return _ALL if answer.lsn is None else answer.lsn

    async def _index_dimension(self) -> int:
        if self._dimension is None:
            await self._stats()
        if self._dimension is None:
            raise VectorStoreUnavailable("The Pinecone index does not tell its dimension: is it a dense one?")
        return self._dimension

    async def _stats(self) -> Stats:
        answer = await self._wire.post("/describe_index_stats", b"{}", deadline=_READ_SECONDS)
        stats = decode(answer.body, Stats)
        if stats.metric not in (None, "cosine"):
            raise DependencyUnavailable(
                "VECTOR_DB_ENDPOINT names a Pinecone index of another metric than cosine. Make one with metric cosine."
            )
        self._dimension = stats.dimension or self._dimension
        return stats


async def open_pinecone(
    endpoint: str, read_key: Callable[[], str | None], *, visible_within: float = 20.0, call_timeout: float = 10.0
) -> Pinecone:
    """``read_key`` is asked again when the key is refused. An index that is down, or a key that is refused, is no reason not to
    start; an index that compares by another metric is. Raises UsageError, DependencyUnavailable."""
    opened = Pinecone(Wire(endpoint, read_key, call_timeout=call_timeout), visible_within=visible_within)
    try:
        await opened.ping()
    except VectorStoreUnavailable:
        pass
    except BaseException:
        await opened.close()
        raise
    return opened


def _check_dimension(dimension: int, given: int) -> None:
    if given != dimension:
        raise DimensionMismatch(
            f"The Pinecone index holds {dimension} dimensions, the vector has {given}. An index has one dimension for all of its "
            "namespaces: make another index for another model."
        )
