"""pgvector: exact scan by cosine distance in a narrow table of its own, in the canonical database or in another one.

Needs the extension at 0.8.4 or newer (older ones can lose rows in HNSW vacuum) and ``sql/pgvector`` applied by its owner.
Filters are compiled to jsonpath over ``fields``; what the compiler leaves out only widens the answer.
"""

from __future__ import annotations

import contextlib
import json
import re
import struct
import uuid
from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Any, LiteralString

import numpy as np
import psycopg
from numpy.typing import NDArray
from psycopg import AsyncConnection, sql
from psycopg.adapt import Buffer, Dumper
from psycopg.pq import Format
from psycopg.types import TypeInfo
from psycopg_pool import AsyncConnectionPool, PoolTimeout

from memory_layer.errors import DependencyUnavailable, DimensionMismatch, VectorStoreUnavailable
from memory_layer.filters import And, Compare, Filter, Not, Or, widen
from memory_layer.model import format_time
from memory_layer.sql import queries
from memory_layer.stores.protocols import Capabilities, VectorEntry, VectorHit, VectorHits, VectorPage, VectorRecord
from memory_layer.stores.vectors.entries import refuse_invalid

OLDEST = (0, 8, 4)
_SQL = queries("pgvector")
_COMPARISON: dict[str, LiteralString] = {
    "eq": "==",
    "in": "==",
    "all": "==",
    "gt": ">",
    "gte": ">=",
    "lt": "<",
    "lte": "<=",
}
# Long text is not kept beside the vector (service/indexing.py), so a filter on it is left to the row.
_ABSENT = frozenset({"content"})
_SWEEP_ROWS = 10_000  # deleted in one transaction
_MOST_ALL = 32  # values of one $all, which cost a parameter each; a statement takes 65,535 of them


class PgVector:
    """Use ``open_pgvector``."""

    provider = "pgvector"
    capabilities = Capabilities(
        mixed_dimensions=True, most_dimensions=16_000, deepest=None, batch=256, replicas=False, orders_writes=True
    )

    def __init__(self, pool: AsyncConnectionPool[AsyncConnection[Any]]) -> None:
        self._pool = pool

    async def upsert(self, entries: Sequence[VectorEntry]) -> None:
        refuse_invalid(entries)
        async with self._connection() as connection:
            await connection.execute(
                _SQL["upsert"],
                {
                    "tenants": [e.tenant for e in entries],
                    "namespaces": [e.namespace for e in entries],
                    "nodes": [e.node_id for e in entries],
                    "versions": [e.version for e in entries],
                    "vectors": [_Vector(e.vector) for e in entries],
                    "fields": [json.dumps(e.fields) for e in entries],
                },
            )

    async def delete(self, tenant: str, namespace: str, nodes: Sequence[tuple[uuid.UUID, int]]) -> None:
        async with self._connection() as connection:
            await connection.execute(
                _SQL["remove"],
                {
                    "tenant": tenant,
                    "namespace": namespace,
                    "nodes": [node for node, _ in nodes],
                    "versions": [version for _, version in nodes],
                },
            )

    async def search(
        self, tenant: str, namespace: str, vector: NDArray[np.float32], limit: int, where: Filter | None, skip: int = 0
    ) -> VectorHits:
        condition, params = compile_filter(where)
        query = sql.SQL(
            "SELECT node_id, version, 1 - (embedding <=> %(query)b) AS score FROM vector_entries"
            " WHERE tenant = %(tenant)s AND namespace = %(namespace)s AND removed_at IS NULL AND {condition}"
            " ORDER BY embedding <=> %(query)b, node_id LIMIT %(limit)s OFFSET %(skip)s"
        ).format(condition=condition)
        async with self._connection() as connection:
            cursor = await connection.execute(
                query,
                {"query": _Vector(vector), "tenant": tenant, "namespace": namespace, "limit": limit, "skip": skip}
                | params,
            )
            found = [VectorHit(node, version, score) for node, version, score in await cursor.fetchall()]
        return VectorHits(found, exact=True)

    async def fetch(self, tenant: str, namespace: str, nodes: Sequence[uuid.UUID]) -> list[VectorRecord]:
        async with self._connection() as connection:
            cursor = await connection.execute(
                _SQL["fetch"], {"tenant": tenant, "namespace": namespace, "nodes": list(nodes)}, binary=True
            )
            return [VectorRecord(n, version, _received(data)) for n, version, data in await cursor.fetchall()]

    async def count(self, tenant: str, namespace: str) -> int:
        async with self._connection() as connection:
            cursor = await connection.execute(_SQL["count"], {"tenant": tenant, "namespace": namespace})
            ((count,),) = await cursor.fetchall()
            return int(count)

    async def scan(
        self, tenant: str, namespace: str, cursor: str | None = None, limit: int = 1000, *, vectors: bool = False
    ) -> VectorPage:
        async with self._connection() as connection:
            found = await connection.execute(
                _SQL["scan"],
                {
                    "tenant": tenant,
                    "namespace": namespace,
                    "after": None if cursor is None else uuid.UUID(cursor),
                    "limit": limit,
                    "vectors": vectors,
                },
                binary=True,
            )
            rows = await found.fetchall()
        records = [VectorRecord(n, version, None if data is None else _received(data)) for n, version, data in rows]
        return VectorPage(records, str(records[-1].node_id) if len(records) == limit else None)

    async def drop(self, tenant: str, namespace: str) -> None:
        async with self._connection() as connection:
            await connection.execute(_SQL["drop"], {"tenant": tenant, "namespace": namespace})

    async def optimise(self, _tenant: str, _namespace: str, /) -> None:
        return None

    async def warm(self, _tenant: str, _namespace: str, /) -> None:
        return None

    async def sweep(self) -> None:
        """Forget removals that no late writer can undo any more."""
        async with self._connection() as connection:
            while (await connection.execute(_SQL["sweep"], {"limit": _SWEEP_ROWS})).rowcount == _SWEEP_ROWS:
                pass

    async def ping(self) -> None:
        async with self._connection() as connection:
            await connection.execute("SELECT FROM vector_entries LIMIT 0")

    async def close(self) -> None:
        await self._pool.close(timeout=5)

    @contextlib.asynccontextmanager
    async def _connection(self) -> Any:
        try:
            async with self._pool.connection(timeout=5) as connection:
                yield connection
        except psycopg.errors.DataException as error:
            raise DimensionMismatch(
                "The vector store refused a vector: its dimension differs from its namespace's."
            ) from error
        except psycopg.errors.ProgramLimitExceeded as error:
            raise DimensionMismatch("pgvector holds vectors of at most 16,000 dimensions.") from error
        except (psycopg.OperationalError, psycopg.InterfaceError, PoolTimeout, OSError) as error:
            raise VectorStoreUnavailable("pgvector does not answer; writes and keyword search go on.") from error
        except psycopg.Error as error:
            reason = " ".join(str(error).split())
            raise VectorStoreUnavailable(
                f"pgvector refuses its statements: {reason}. Run `memoryctl migrate apply` on its database."
            ) from error


async def open_pgvector(dsn: str, *, size: int = 8) -> PgVector:
    """Open the pool. A server that is down is no reason not to start; a server without the extension is."""

    async def configure(connection: AsyncConnection[Any]) -> None:
        connection.prepare_threshold = 2
        await _register(connection)

    pool: AsyncConnectionPool[AsyncConnection[Any]] = AsyncConnectionPool(
        dsn,
        min_size=1,
        max_size=size,
        open=False,
        kwargs={"autocommit": True, "connect_timeout": 5},
        configure=configure,
        check=AsyncConnectionPool.check_connection,
    )
    await check_version(dsn)
    await pool.open()
    return PgVector(pool)


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


def compile_filter(where: Filter | None) -> tuple[sql.Composable, dict[str, Any]]:
    """A condition on ``fields`` that holds wherever the filter does, with its parameters."""
    wide = None if where is None else widen(where, _can)
    if wide is None:
        return sql.SQL("true"), {}
    params: dict[str, Any] = {}
    names = (f"f{n}" for n in range(10_000))
    return _condition(wide, params, names), params


def _can(compare: Compare) -> bool:
    return compare.path[0] not in _ABSENT and not (
        compare.op == "all" and isinstance(compare.value, tuple) and len(compare.value) > _MOST_ALL
    )


def _condition(where: Filter, params: dict[str, Any], names: Iterator[str]) -> sql.Composable:
    match where:
        case And(items):
            return sql.SQL("({})").format(sql.SQL(" AND ").join(_condition(i, params, names) for i in items))
        case Or(items):
            return sql.SQL("({})").format(sql.SQL(" OR ").join(_condition(i, params, names) for i in items))
        case Not(item):
            return sql.SQL("NOT {}").format(_condition(item, params, names))
        case Compare():
            return _comparison(where, params, names)


def _comparison(compare: Compare, params: dict[str, Any], names: Iterator[str]) -> sql.Composable:
    """jsonpath in lax mode steps into the objects of an array and unwraps one array before ``?``, as the language does."""
    path = "$" + "".join("." + json.dumps(key) for key in compare.path)
    if compare.op == "exists":
        name = next(names)
        params[name] = f'{path} ? (@.type() != "null")'
        return sql.SQL("jsonb_path_exists(fields, {}::jsonpath, silent => true)").format(sql.Placeholder(name))
    # Stored timestamps have one spelling (model.format_time), so they compare as text.
    operands = [
        format_time(operand) if isinstance(operand, datetime) else operand
        for operand in (compare.value if isinstance(compare.value, tuple) else (compare.value,))
    ]
    # One list of all values for "some value equals some operand"; one test per value where each must be met.
    tests = [[operand] for operand in operands] if compare.op == "all" else [operands]
    parts: list[sql.Composable] = []
    for values in tests:
        name_path, name_values = next(names), next(names)
        params[name_path] = f'{path} ? (@.type() != "array" && @ {_COMPARISON[compare.op]} $v[*])'
        params[name_values] = json.dumps({"v": values})
        parts.append(
            sql.SQL("jsonb_path_exists(fields, {}::jsonpath, {}::jsonb, true)").format(
                sql.Placeholder(name_path), sql.Placeholder(name_values)
            )
        )
    return sql.SQL("({})").format(sql.SQL(" AND ").join(parts))


class _Vector:
    """A vector on its way to the server."""

    __slots__ = ("values",)

    def __init__(self, values: NDArray[np.float32]) -> None:
        self.values = values


class _VectorDumper(Dumper):
    """pgvector's binary form (vector_send): dimension and a zero as int16, then big-endian float32."""

    format = Format.BINARY

    def dump(self, obj: _Vector) -> Buffer:
        return struct.pack(">HH", obj.values.shape[0], 0) + obj.values.astype(">f4").tobytes()


def _received(data: bytes) -> NDArray[np.float32]:
    """pgvector's binary form (vector_send) as numbers."""
    return np.frombuffer(data, ">f4", offset=4).astype(np.float32)


async def _register(connection: AsyncConnection[Any]) -> None:
    info = await TypeInfo.fetch(connection, "vector")
    if info is None:
        raise psycopg.OperationalError("the vector extension is not installed")
    info.register(connection)
    connection.adapters.register_dumper(_Vector, type("VectorDumper", (_VectorDumper,), {"oid": info.oid}))
