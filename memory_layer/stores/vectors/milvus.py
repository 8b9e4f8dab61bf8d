"""Milvus: one collection of metric cosine for each dimension, and one for the marks that removals leave (milvus_records.py).

Milvus writes without conditions, so versions are kept by the adapter, as for Pinecone: writers of one process hold a lock for the
space, each reads what is there before it writes and again when its write has become visible, and one that then finds an older
version than its own writes once more. A process remembers what it wrote, which other replicas show later; but no write is
skipped before a strongly consistent read has found a newer one. A removal is a mark with its version in
a collection of its own, and then the row is deleted; ``sweep`` deletes marks after a day. One gap remains: two
processes that write one node at the same moment, the older version last. Search drops hits that Postgres does not confirm, and the
worker indexes again what may have been overwritten (``service/index_leases.py``).

upsert and delete return when a reader sees them: they read at the time of their own write (Session), for which Milvus waits until
its next time tick, a few tenths of a second. So searches need wait for nothing and ask with Bounded.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
import uuid
import weakref
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from memory_layer.errors import DimensionMismatch, VectorStoreUnavailable
from memory_layer.filters import Filter
from memory_layer.stores.protocols import Capabilities, IndexHit, VectorEntry, VectorHits, VectorPage, VectorRecord
from memory_layer.stores.vectors.entries import newest, refuse_invalid
from memory_layer.stores.vectors.milvus_collections import Collections, rows_of
from memory_layer.stores.vectors.milvus_records import (
    DEEPEST,
    MAX_DIMENSIONS,
    VECTOR,
    beyond,
    expression,
    key_of,
    keys_expression,
    live_row,
    node_of,
    other_spaces,
    past_space,
    portions,
    prefix_of,
    removed_row,
    space_name,
)
from memory_layer.stores.vectors.milvus_wire import TRIES, CollectionMissing, Wire, check_installed
from memory_layer.telemetry.logs import get_logger

_EXACT_SECONDS: Final = 30.0
_TIES: Final = 10  # hits asked for beyond the page, to see whether its last score goes on
_BREADTH: Final = 256  # the least `ef`: candidates that HNSW keeps
_MAX_BREADTH: Final = 32_768
_FEW: Final = 1_000  # rows that are compared here where the index was seen to miss rows
_WARY_SECONDS: Final = 600.0
_REMEMBERED: Final = 100_000  # nodes whose last write this process knows
_AT_ONCE: Final = 16  # spaces of one call
_ROUNDS: Final = 3  # of writing and reading back
_MARK_SECONDS: Final = 86_400

log = get_logger("memory_layer.milvus")


class _Write(NamedTuple):
    """``rank`` orders everything that can happen to a node: 2 * version, and one more for a removal."""

    rank: int
    row: dict[str, Any]
    size: int  # bytes


@dataclass(slots=True)
class _Standing:
    """What stands of a node: the highest rank of all, that of the mark, and that of its row in each collection of vectors."""

    rank: int
    mark: int
    rows: dict[str, int]

    @property
    def superseded(self) -> bool:
        """A row stands beside a newer mark."""
        return any(rank < self.mark for rank in self.rows.values())


class _Match(NamedTuple):
    node: str  # its hex
    rank: int
    score: float


class Milvus:
    """Use ``open_milvus``."""

    provider = "milvus"
    capabilities = Capabilities(
        mixed_dimensions=True,
        most_dimensions=MAX_DIMENSIONS,
        deepest=DEEPEST,
        batch=500,
        replicas=True,
        orders_writes=False,
    )

    def __init__(self, wire: Wire) -> None:
        self._wire = wire
        self._held = Collections(wire)
        self._locks: weakref.WeakValueDictionary[str, asyncio.Lock] = weakref.WeakValueDictionary()
        self._known: OrderedDict[str, int] = OrderedDict()  # the rank of what this process wrote, by key
        self._homes: dict[str, int] = {}  # by space: the dimension that this process saw in it
        self._wary: dict[str, float] = {}  # by collection: until when its index is not trusted with few rows

    async def upsert(self, entries: Sequence[VectorEntry]) -> None:
        refuse_invalid(entries)
        spaces = newest(entries)
        for (tenant, namespace), nodes in spaces.items():
            await self._check_dimension(tenant, namespace, {entry.vector.shape[0] for entry in nodes.values()})
        # Each waits for a time tick of the server: together, it is one.
        some = asyncio.Semaphore(_AT_ONCE)

        async def write(space: str, nodes: Mapping[uuid.UUID, VectorEntry]) -> None:
            async with some:
                await self._upsert(space, nodes)

        done = await asyncio.gather(
            *(write(space_name(*names), nodes) for names, nodes in spaces.items()), return_exceptions=True
        )
        for error in done:
            if error is not None:
                raise error

    async def _upsert(self, space: str, nodes: Mapping[uuid.UUID, VectorEntry]) -> None:
        dimension = next(iter(nodes.values())).vector.shape[0]
        await self._held.ensure(dimension)
        await self._held.ensure(None)
        writes = {}
        for node, entry in nodes.items():
            row, size = live_row(space, entry)
            writes[key_of(space, node)] = _Write(2 * entry.version, row, size)
        self._homes[space] = dimension
        await self._write(space, self._held.name(dimension), writes)

    async def delete(self, tenant: str, namespace: str, nodes: Sequence[tuple[uuid.UUID, int]]) -> None:
        if not nodes:
            return
        await self._held.ensure(None)
        space, now = space_name(tenant, namespace), int(time.time())
        versions: dict[uuid.UUID, int] = {}
        for node, version in nodes:
            versions[node] = max(version, versions.get(node, version))
        writes = {
            key_of(space, node): _Write(2 * version + 1, removed_row(space, node, version, now), len(space) + 250)
            for node, version in versions.items()
        }
        await self._write(space, self._held.marks, writes)

    async def search(
        self, tenant: str, namespace: str, vector: NDArray[np.float32], limit: int, where: Filter | None, skip: int = 0
    ) -> VectorHits:
        """At most the nearest 16,384 can be reached: beyond them a page is empty."""
        if limit <= 0 or skip >= DEEPEST:
            return VectorHits([], exact=False)
        space, dimension = space_name(tenant, namespace), vector.shape[0]
        depth = min(limit + skip, DEEPEST)
        collection = self._held.name(dimension)
        try:
            matches, exact = await self._nearest(collection, expression(space, where), vector, depth)
        except CollectionMissing:
            matches, exact = [], True
        if not matches:
            await self._check_dimension(tenant, namespace, {dimension})
        matches.sort(key=lambda match: (-match.score, match.node))
        page = [
            IndexHit(uuid.UUID(match.node), match.rank // 2, max(-1.0, min(1.0, match.score)))
            for match in matches[skip : min(skip + limit, depth)]
        ]
        return VectorHits(page, exact)

    async def fetch(self, tenant: str, namespace: str, nodes: Sequence[uuid.UUID]) -> list[VectorRecord]:
        space = space_name(tenant, namespace)
        keys = [key_of(space, node) for node in dict.fromkeys(nodes)]
        records: list[VectorRecord] = []
        for collection, dimension in (await self._held.dimensions()).items():
            rows = await self._held.by_key(collection, keys, ["node", "rank", VECTOR], dimension=dimension)
            records += [_record(row, vectors=True) for row in rows]
        return records

    async def count(self, tenant: str, namespace: str) -> int:
        where = expression(space_name(tenant, namespace))
        return sum([await self._held.count(name, where, "Strong") for name in await self._held.dimensions()])

    async def scan(
        self, tenant: str, namespace: str, cursor: str | None = None, limit: int = 1000, *, vectors: bool = False
    ) -> VectorPage:
        space = space_name(tenant, namespace)
        after = None if cursor is None else key_of(space, uuid.UUID(cursor))
        for collection, dimension in (await self._held.dimensions()).items():
            # The first page sees all that was written anywhere before it; the later ones are younger.
            rows = await self._held.page(
                collection, beyond(expression(space), after), ["node", "rank", *([VECTOR] if vectors else [])],
                limit if not vectors else min(limit, rows_of(dimension)), "Strong" if cursor is None else "Bounded",
            )  # fmt: skip
            if rows:
                records = [_record(row, vectors=vectors) for row in rows]
                return VectorPage(records, str(records[-1].node_id))
        return VectorPage([], None)

    async def stale_fields(self, tenant: str, namespace: str, entries: Sequence[VectorEntry]) -> list[uuid.UUID]:
        space = space_name(tenant, namespace)
        rows = {key_of(space, entry.node_id): (entry.node_id, live_row(space, entry)[0]) for entry in entries}
        other: list[uuid.UUID] = []
        for collection in await self._held.dimensions():
            for held in await self._held.by_key(collection, list(rows), ["pk", "rank", "facts"]):
                node, wanted = rows[held["pk"]]
                if int(held["rank"]) == wanted["rank"] and held["facts"] != wanted["facts"]:
                    other.append(node)
        return other

    async def unknown_namespaces(self, known: Collection[tuple[str, str]]) -> list[str]:
        """One query for each space: from space to space along the keys, which Milvus Lite does not bring in order."""
        names = {space_name(*names) for names in known}
        found: set[str] = set()
        for collection in await self._held.dimensions():
            where, consistency = past_space(None), "Strong"
            while rows := await self._held.page(collection, where, ["pk", "node", "space"], 1, consistency):
                found.add(rows[0]["space"])
                where = other_spaces(found) if self._wire.version is None else past_space(rows[0]["space"])
                consistency = "Bounded"
        return sorted(found - names)

    async def drop_unknown(self, name: str) -> None:
        await self._drop(name)

    async def drop(self, tenant: str, namespace: str) -> None:
        await self._drop(space_name(tenant, namespace))

    async def _drop(self, space: str) -> None:
        async with self._locks.setdefault(space, asyncio.Lock()):
            for collection in [*await self._held.dimensions(), self._held.marks]:
                with contextlib.suppress(CollectionMissing):
                    await self._held.delete(collection, expression(space))
                    await self._held.count(collection, expression(space), "Session")  # returns when it shows
            prefix = prefix_of(space)
            for key in [key for key in self._known if key.startswith(prefix)]:
                del self._known[key]
            self._homes.pop(space, None)

    async def optimise(self, _tenant: str, _namespace: str, /) -> None:
        """Seal what was written since the last time, so that Milvus builds its index; of whole collections, as Milvus does."""
        for collection in await self._held.dimensions():
            await self._held.seal(collection)

    async def warm(self, tenant: str, namespace: str, /) -> None:
        """Load the collections, which is nothing to do where they are, and touch the namespace's part."""
        for collection, dimension in (await self._held.dimensions()).items():
            await self._held.reload(collection)
            axis = np.zeros(dimension, np.float32)
            axis[0] = 1
            await self._ask(collection, expression(space_name(tenant, namespace)), axis, 1)

    async def sweep(self) -> None:
        """Delete the marks of removals that no late writer can undo any more."""
        with contextlib.suppress(CollectionMissing):
            await self._held.delete(self._held.marks, f"removed_at < {int(time.time()) - _MARK_SECONDS}")

    async def ping(self) -> None:
        await self._wire.connect()

    async def server_version(self) -> str:
        """What the server says of itself, such as v2.3.5-lite."""
        return str(await self._wire.call(lambda client: client.get_server_version(retry_times=TRIES)))

    async def close(self) -> None:
        await self._wire.close()

    # --- writing

    async def _write(self, space: str, collection: str, writes: Mapping[str, _Write]) -> None:
        """Write what is not older than what stands there, and return when it shows."""
        left = dict(writes)
        for _ in range(_ROUNDS):
            async with self._locks.setdefault(space, asyncio.Lock()):
                standing = await self._standing(left)
                # The memory, or a replica that lags, may know what another process has dropped since: neither leaves out a write.
                if doubted := [key for key, write in left.items() if write.rank < standing[key].rank]:
                    standing |= await self._standing(doubted, remembered=False, consistency="Strong")
                    for key in doubted:
                        if self._known.get(key, -1) > standing[key].rank:
                            del self._known[key]
                newer = {key: write for key, write in left.items() if write.rank >= standing[key].rank}
                for batch in portions([(write.row, write.size) for write in newer.values()]):
                    await self._held.send(collection, batch)
                marks = {key: write.rank for key, write in newer.items()} if collection == self._held.marks else {}
                gone = await self._delete_superseded(
                    {key: marks.get(key, standing[key].mark) for key in left}, standing
                )
                for key, write in newer.items():
                    self._remember(key, write.rank)
            if not newer and not gone:
                return
            shown = await self._standing(left, remembered=False, consistency="Session")
            # Older than what was written, or a row with a newer mark: another process wrote an older version last.
            left = {k: w for k, w in left.items() if shown[k].rank < w.rank or shown[k].superseded}
            if not left:
                return
        raise VectorStoreUnavailable("Another writer keeps putting older vectors over newer ones in Milvus.")

    async def _standing(
        self, keys: Iterable[str], *, remembered: bool = True, consistency: str = "Bounded"
    ) -> dict[str, _Standing]:
        """What is known to stand there, by the index and, ``remembered``, by what this process wrote itself, shown or not."""
        names = list(keys)
        standing = {key: _Standing(self._known.get(key, -1) if remembered else -1, -1, {}) for key in names}
        collections = [self._held.marks, *await self._held.dimensions()]
        found = await asyncio.gather(
            *(self._held.by_key(name, names, ["pk", "rank"], consistency=consistency) for name in collections)
        )
        for collection, records in zip(collections, found, strict=True):
            for row in records:
                one, rank = standing[row["pk"]], int(row["rank"])
                one.rank = max(one.rank, rank)
                if collection == self._held.marks:
                    one.mark = rank
                else:
                    one.rows[collection] = rank
        return standing

    async def _delete_superseded(self, marks: Mapping[str, int], standing: Mapping[str, _Standing]) -> bool:
        """Delete the rows that are older than their marks; whether there were any."""
        groups: dict[tuple[str, int], list[str]] = {}
        for key, mark in marks.items():
            for collection, rank in standing[key].rows.items():
                if rank < mark:
                    groups.setdefault((collection, mark), []).append(key)
        for (collection, mark), keys in groups.items():
            for start in range(0, len(keys), DEEPEST):
                # Another process may have put a newer row there since.
                await self._held.delete(collection, keys_expression(keys[start : start + DEEPEST], below=mark))
        return bool(groups)

    def _remember(self, key: str, rank: int) -> None:
        self._known[key] = rank
        self._known.move_to_end(key)
        if len(self._known) > _REMEMBERED:
            self._known.popitem(last=False)

    # --- reading

    async def _nearest(
        self, collection: str, where: str, vector: NDArray[np.float32], depth: int
    ) -> tuple[list[_Match], bool]:
        """The nearest ``depth``, and all that tie with the last of them, so that ties can be put in order; whether exactly so."""
        wary = self._wary.get(collection, 0) > time.monotonic()
        if wary and await self._held.count(collection, where, "Bounded") <= _FEW:
            return await self._compare(collection, where, vector), True
        count = min(depth + _TIES, DEEPEST)
        while True:
            matches = await self._ask(collection, where, vector, count)
            if len(matches) < count:
                return await self._complete(collection, where, vector, matches)
            matches.sort(key=lambda match: -match.score)
            if count == DEEPEST or matches[-1].score < matches[depth - 1].score:
                return matches, False
            count = min(2 * count, DEEPEST)

    async def _complete(
        self, collection: str, where: str, vector: NDArray[np.float32], matches: list[_Match]
    ) -> tuple[list[_Match], bool]:
        """Fewer came than were asked for: either there are no more, or the index missed some, and they are compared here."""
        if len(matches) >= await self._held.count(collection, where, "Bounded"):
            return matches, True
        if self._wary.get(collection, 0) < time.monotonic():
            log.warning(
                "Milvus's index passed over vectors that it holds. Its interim index does that under filters: set "
                "queryNode.segcore.interimIndex.enableIndex to false on the server. Such searches are made exactly meanwhile."
            )
        self._wary[collection] = time.monotonic() + _WARY_SECONDS
        return await self._compare(collection, where, vector), True

    async def _ask(self, collection: str, where: str, vector: NDArray[np.float32], count: int) -> list[_Match]:
        breadth = min(max(_BREADTH, 2 * count), _MAX_BREADTH)
        numbers = vector.tolist()  # which pymilvus packs faster than an array
        found = await self._held.loaded(
            collection,
            lambda client: client.search(
                collection,
                data=[numbers],
                anns_field=VECTOR,
                filter=where,
                limit=count,
                output_fields=["rank"],  # the key, which comes unasked, names the node
                search_params={"metric_type": "COSINE", "params": {"ef": breadth}},
                consistency_level="Bounded",
                retry_times=TRIES,
            ),
        )
        (hits,) = found
        return [
            _Match(node_of(key), int(hit["entity"]["rank"]), float(hit["distance"]))
            for key, hit in zip(hits.ids, hits, strict=True)
        ]

    async def _compare(self, collection: str, where: str, vector: NDArray[np.float32]) -> list[_Match]:
        """All rows by brute force."""
        matches: list[_Match] = []
        unit = vector / np.linalg.norm(vector)
        after: str | None = None
        give_up = time.monotonic() + _EXACT_SECONDS
        while True:
            rows = await self._held.page(
                collection, beyond(where, after), ["pk", "node", "rank", VECTOR], rows_of(vector.shape[0]), "Bounded"
            )
            if not rows:
                return matches
            matrix = np.array([row[VECTOR] for row in rows], np.float32)
            scores = matrix @ unit / np.linalg.norm(matrix, axis=1)
            matches += [
                _Match(node_of(row["pk"]), int(row["rank"]), float(score))
                for row, score in zip(rows, scores, strict=True)
            ]
            after = rows[-1]["pk"]
            if time.monotonic() > give_up:
                raise VectorStoreUnavailable(f"Milvus did not bring all vectors within {_EXACT_SECONDS:g} s.")

    async def _check_dimension(self, tenant: str, namespace: str, given: set[int]) -> None:
        """Raise DimensionMismatch unless the namespace is empty or holds vectors of the one dimension given."""
        if max(given) > MAX_DIMENSIONS:
            raise DimensionMismatch(f"Milvus holds vectors of at most {MAX_DIMENSIONS:,} dimensions.")
        space = space_name(tenant, namespace)
        if {self._homes.get(space)} != given:  # not known, or another process began it anew
            self._homes.pop(space, None)
            for collection, dimension in (await self._held.dimensions()).items():
                if await self._held.query(collection, expression(space), ["pk"], "Bounded", limit=1):
                    self._homes[space] = dimension
                    break
        for dimension in given:
            home = self._homes.get(space, min(given))
            if dimension != home:
                raise DimensionMismatch(f"Namespace {namespace} holds {home} dimensions, the vector has {dimension}.")


async def open_milvus(
    endpoint: str, read_token: Callable[[], str | None], environment: str = "dev", *, call_timeout: float = 10.0
) -> Milvus:
    """``read_token`` is asked at each connection. A server that is down, or refuses the token, is no reason not to start; one that
    is too old is. Raises UsageError, DependencyUnavailable."""
    check_installed()
    opened = Milvus(Wire(endpoint, read_token, environment, call_timeout=call_timeout))
    try:
        await opened.ping()
    except VectorStoreUnavailable:
        pass
    except BaseException:
        await opened.close()
        raise
    return opened


def _record(row: Mapping[str, Any], *, vectors: bool) -> VectorRecord:
    vector = np.array(row[VECTOR], np.float32) if vectors else None
    return VectorRecord(uuid.UUID(row["node"]), int(row["rank"]) // 2, vector)
