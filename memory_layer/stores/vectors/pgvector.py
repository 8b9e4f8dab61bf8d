"""pgvector, in the canonical database or in another one.

Small namespaces share a narrow table and are searched exactly. One that grows past ``LARGE`` entries gets a table of its own with an
approximate index, by ``optimise``, which the writer calls as soon as it notices, and the schedule by ``maintain``.
Needs the extension at 0.8.4 or newer (older ones can lose rows in HNSW vacuum) and ``sql/pgvector`` applied by its owner.
"""

from __future__ import annotations

import asyncio
import json
import re
import uuid
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Final

import numpy as np
import psycopg
from numpy.typing import NDArray
from psycopg import AsyncConnection
from psycopg.rows import DictRow

from memory_layer.errors import DependencyUnavailable, DimensionMismatch, MemoryLayerError, VectorStoreUnavailable
from memory_layer.filters import Filter
from memory_layer.stores.postgres import refuse_malformed
from memory_layer.stores.protocols import Capabilities, JoinedQuery, VectorEntry, VectorHits, VectorPage, VectorRecord
from memory_layer.stores.vectors import pgvector_search, pgvector_upkeep
from memory_layer.stores.vectors.entries import joint_name, refuse_invalid, split_name
from memory_layer.stores.vectors.pgvector_filters import EVERYTHING, compile_filter
from memory_layer.stores.vectors.pgvector_wire import (
    MAX_DIMENSIONS,
    SQL,
    TRIES,
    Moved,
    Space,
    Wire,
    decode_vector,
    open_wire,
    translated,
)

OLDEST = (0, 8, 4)
LARGE: Final = 1000  # entries from which a namespace gets a table and an index of its own
TIMEOUT: Final = 10.0  # seconds that a writer waits for a namespace to be moved, once in its life
_SWEEP_ROWS = 10_000  # deleted in one transaction and table

_PATIENT: Final[tuple[str, Mapping[str, Any]]] = (SQL["patient"], {})

log = pgvector_upkeep.log


class PgVector:
    """Use ``open_pgvector``."""

    provider = "pgvector"
    capabilities = Capabilities(
        mixed_dimensions=True,
        most_dimensions=MAX_DIMENSIONS,
        deepest=None,
        batch=256,
        replicas=False,
        orders_writes=True,
    )

    def __init__(self, wire: Wire, large: int) -> None:
        self._wire = wire
        self._large = large
        self._ways = pgvector_search.Ways()
        self._growing: dict[tuple[str, str], asyncio.Task[None]] = {}
        self._one_at_a_time = asyncio.Lock()

    async def upsert(self, entries: Sequence[VectorEntry]) -> None:
        refuse_invalid(entries)
        if any(entry.vector.shape[0] > MAX_DIMENSIONS for entry in entries):
            raise DimensionMismatch("pgvector holds vectors of at most 16,000 dimensions.")
        values = {
            "tenants": [e.tenant for e in entries],
            "namespaces": [e.namespace for e in entries],
            "nodes": [e.node_id for e in entries],
            "versions": [e.version for e in entries],
            "vectors": [e.vector for e in entries],
            "fields": [json.dumps(e.fields) for e in entries],
            "threshold": self._large,
        }
        with translated():
            (due,) = await self._wire.run((SQL["upsert"], values))
        moving = [task for row in due for task in [self._grow(row["tenant"], row["namespace"])] if not row["large"]]
        if moving:
            # Writers are faster than an index is built, and who moves the namespace must bring after what they wrote: so they wait
            # for it, unless it takes long because the namespace was large already.
            await asyncio.wait(moving, timeout=TIMEOUT)

    async def delete(self, tenant: str, namespace: str, nodes: Sequence[tuple[uuid.UUID, int]]) -> None:
        values = {
            "tenant": tenant,
            "namespace": namespace,
            "nodes": [node for node, _ in nodes],
            "versions": [version for _, version in nodes],
        }
        with translated():
            await self._wire.run((SQL["remove"], values))

    async def search(
        self, tenant: str, namespace: str, vector: NDArray[np.float32], limit: int, where: Filter | None, skip: int = 0
    ) -> VectorHits:
        return (await self._search(tenant, namespace, vector, limit, where, skip, None)).hits

    async def search_joined(
        self,
        tenant: str,
        namespace: str,
        vector: NDArray[np.float32],
        limit: int,
        where: Filter | None,
        skip: int,
        query: JoinedQuery,
    ) -> tuple[VectorHits, tuple[list[DictRow], list[DictRow]] | None]:
        found = await self._search(tenant, namespace, vector, limit, where, skip, query)
        return found.hits, found.rows

    async def _search(
        self,
        tenant: str,
        namespace: str,
        vector: NDArray[np.float32],
        limit: int,
        where: Filter | None,
        skip: int,
        query: JoinedQuery | None,
    ) -> pgvector_search.Found:
        condition = EVERYTHING if where is None else compile_filter(where)
        look = pgvector_search.Look(tenant, namespace, vector, limit, skip, condition, query)
        with translated():
            for _ in range(TRIES):
                try:
                    return await pgvector_search.search(self._wire, self._ways, look)
                except Moved:
                    continue
        raise _restless(namespace)

    async def fetch(self, tenant: str, namespace: str, nodes: Sequence[uuid.UUID]) -> list[VectorRecord]:
        rows = await self._read("fetch", tenant, namespace, {"nodes": list(nodes)})
        return [_record(row) for row in rows]

    async def count(self, tenant: str, namespace: str) -> int:
        (row,) = await self._read("count", tenant, namespace, {})
        return int(row["count"])

    async def scan(
        self, tenant: str, namespace: str, cursor: str | None = None, limit: int = 1000, *, vectors: bool = False
    ) -> VectorPage:
        start = 0 if cursor is None else uuid.UUID(cursor).int + 1
        if start >= 2**128:
            return VectorPage([], None)
        values = {"start": uuid.UUID(int=start), "limit": limit, "vectors": vectors}
        rows = await self._read("scan", tenant, namespace, values)
        return VectorPage([_record(row) for row in rows], str(rows[-1]["node_id"]) if len(rows) == limit else None)

    async def stale_fields(self, tenant: str, namespace: str, entries: Sequence[VectorEntry]) -> list[uuid.UUID]:
        values = {
            "nodes": [entry.node_id for entry in entries],
            "versions": [entry.version for entry in entries],
            "fields": [json.dumps(entry.fields) for entry in entries],
        }
        return [row["node_id"] for row in await self._read("stale_fields", tenant, namespace, values)]

    async def unknown_namespaces(self, known: Collection[tuple[str, str]]) -> list[str]:
        values = {"tenants": [tenant for tenant, _ in known], "namespaces": [namespace for _, namespace in known]}
        with translated():
            _, rows = await self._wire.run(_PATIENT, (SQL["unknown_namespaces"], values))
        return [joint_name(row["tenant"], row["namespace"]) for row in rows]

    async def drop_unknown(self, name: str) -> None:
        if (names := split_name(name)) is not None:
            await self.drop(*names)

    async def drop(self, tenant: str, namespace: str) -> None:
        with translated():
            await self._wire.run(_PATIENT, (SQL["forget"], {"tenant": tenant, "namespace": namespace}))

    async def optimise(self, tenant: str, namespace: str, /) -> None:
        with translated():
            async with self._one_at_a_time:
                await pgvector_upkeep.promote(self._wire, tenant, namespace, self._large)
                await pgvector_upkeep.check_recall(self._wire, tenant, namespace, self._large)

    async def maintain(self) -> None:
        """Optimise every namespace for which that is due; one that fails does not keep the others waiting."""
        with translated():
            due = await pgvector_upkeep.due(self._wire, self._large)
        failed: MemoryLayerError | None = None
        for tenant, namespace in due:
            try:
                await self.optimise(tenant, namespace)
            except MemoryLayerError as error:
                log.warning("a namespace was not optimised", tenant=tenant, namespace=namespace, error=error.message)
                failed = error
        with translated():
            await pgvector_upkeep.report_recall(self._wire)
        if failed is not None:
            raise failed

    async def warm(self, tenant: str, namespace: str, /) -> None:
        with translated():
            space = await pgvector_upkeep.find(self._wire, tenant, namespace)
            if space is None:
                text, values = _placed(SQL["count"], None, tenant, namespace)
                await self._wire.run(_PATIENT, (text, values))
                return
            _, (row,) = await self._wire.run(_PATIENT, (SQL["prewarm"], {"number": space.number}))
        if row["done"]:
            return
        page = await self.scan(tenant, namespace, None, 8, vectors=True)
        for record in page.records:
            if record.vector is not None:
                await self.search(tenant, namespace, record.vector, 10, None)

    async def sweep(self) -> None:
        """Forget removals that no late writer can undo any more."""
        with translated():
            while (await self._wire.run(_PATIENT, (SQL["sweep"], {"most": _SWEEP_ROWS})))[1][0]["more"]:
                pass

    async def ping(self) -> None:
        with translated():
            await self._wire.run((SQL["ping"], {}))

    async def close(self) -> None:
        tasks = list(self._growing.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._wire.close()

    async def _read(self, name: str, tenant: str, namespace: str, values: Mapping[str, Any]) -> list[DictRow]:
        """The rows of a named query on wherever the namespace is."""
        with translated():
            for _ in range(TRIES):
                space = self._wire.place(tenant, namespace)
                text, more = _placed(SQL[name], space, tenant, namespace)
                try:
                    (rows,) = await self._wire.ask(tenant, namespace, space, (text, {**values, **more}))
                except Moved:
                    continue
                return rows
        raise _restless(namespace)

    def _grow(self, tenant: str, namespace: str) -> asyncio.Task[None]:
        """Optimise without waiting for the schedule, in a task that outlives the call which noticed that it is due."""
        task = self._growing.get((tenant, namespace))
        if task is None:
            task = asyncio.create_task(self._grown(tenant, namespace), name=f"optimise {namespace}")
            self._growing[tenant, namespace] = task
            task.add_done_callback(lambda _: self._growing.pop((tenant, namespace), None))
        return task

    async def _grown(self, tenant: str, namespace: str) -> None:
        try:
            await self.optimise(tenant, namespace)
        except MemoryLayerError as error:
            log.warning("a namespace was not optimised yet", tenant=tenant, namespace=namespace, error=error.message)
        except Exception:
            log.exception("a namespace was not optimised yet", tenant=tenant, namespace=namespace)


def _placed(text: str, space: Space | None, tenant: str, namespace: str) -> tuple[str, Mapping[str, Any]]:
    if space is None:
        text = text.replace("{relation}", "vector_entries").replace("{where}", SQL["in_entries"])
        return text, {"tenant": tenant, "namespace": namespace}
    text = SQL["count_own"] if text is SQL["count"] else text
    return text.replace("{relation}", space.relation).replace("{where}", SQL["in_own"]), {}


def _record(row: DictRow) -> VectorRecord:
    data = row["vector"]
    return VectorRecord(row["node_id"], row["version"], None if data is None else decode_vector(data))


def _restless(namespace: str) -> VectorStoreUnavailable:
    return VectorStoreUnavailable(f"Namespace {namespace} was moved again and again while it was read. Try again.")


async def open_pgvector(dsn: str, *, size: int = 8, large: int = LARGE) -> PgVector:
    """Open the pool. A server that is down is no reason not to start; a server without the extension is."""
    refuse_malformed(dsn, "VECTOR_DB_ENDPOINT")
    await check_version(dsn)
    return PgVector(await open_wire(dsn, size), large)


async def check_version(dsn: str) -> None:
    """Raise DependencyUnavailable when the server answers but has no extension that this adapter trusts."""
    try:
        async with await AsyncConnection.connect(dsn, autocommit=True, connect_timeout=5) as connection:
            row = await (
                await connection.execute("SELECT extversion FROM pg_extension WHERE extname = 'vector'")
            ).fetchone()
    except psycopg.Error:
        return
    version = None if row is None else tuple(int(part) for part in re.findall(r"\d+", row[0]))
    if version is None or version < OLDEST:
        found = "is not installed there" if row is None else f"is {row[0]} there"
        raise DependencyUnavailable(
            f"The vector store needs the pgvector extension at 0.8.4 or newer; it {found}. Install it and run `memoryctl "
            "migrate apply`, or set VECTOR_DB_ENDPOINT to a server that has it."
        )
