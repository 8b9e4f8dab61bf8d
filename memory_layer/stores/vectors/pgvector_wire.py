"""The pgvector adapter's connections, and where a namespace's rows are.

A namespace is in ``vector_entries`` or in a table of its own (``sql/pgvector/002``), and may move at any moment. Who reads presumes a
place, reads there, and asks the registry behind that in the same round trip: the registry's snapshot is the younger one, so if it
still names the place, the rows were there when they were read. Else ``Moved`` is raised, and the reader looks again.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import struct
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import psycopg
from numpy.typing import NDArray
from psycopg import AsyncConnection
from psycopg.rows import DictRow, dict_row
from psycopg.types import TypeInfo
from psycopg_pool import AsyncConnectionPool, PoolTimeout

from memory_layer.errors import DimensionMismatch, VectorStoreUnavailable
from memory_layer.sql import queries
from memory_layer.stores.pipeline import Call, Statement, pipeline_of, statement

MAX_DIMENSIONS: Final = 16_000
TRIES: Final = 20  # a namespace moves once; so often it only does in a loop of drop and promotion
_PREPARED: Final = 200  # statements that a connection keeps
_PLACES: Final = 10_000  # namespaces with tables of their own that a process remembers

SQL = queries("pgvector")


@dataclass(frozen=True, slots=True)
class Space:
    """The table of a large namespace, as the registry has it. ``rows`` is an estimate; ``method``: bit, halfvec or none."""

    number: int
    dimension: int
    method: str
    rerank: int
    rows: int

    @property
    def relation(self) -> str:
        return f"vector_spaces.space_{self.number:d}"


class Moved(Exception):
    """The namespace is elsewhere by now, and the wire knows where."""


class Wire:
    """Use ``open_wire``."""

    def __init__(self, pool: AsyncConnectionPool[AsyncConnection[DictRow]]) -> None:
        self._pool = pool
        self._statements: dict[str, Statement] = {}
        self._places: dict[tuple[str, str], Space] = {}
        self._oid = 0  # of the type vector

    async def close(self) -> None:
        await self._pool.close(timeout=5)

    def place(self, tenant: str, namespace: str) -> Space | None:
        """Where the namespace was when it was last looked at; None: vector_entries."""
        return self._places.get((tenant, namespace))

    def statement(self, text: str) -> Statement:
        """A statement for the pipeline; parameters say their type."""
        found = self._statements.get(text)
        if found is None:
            if len(self._statements) > 1000:
                self._statements.clear()
            name = f"memory_layer_{hashlib.blake2b(text.encode(), digest_size=10).hexdigest()}"
            # The type's number differs from database to database, and is known once there was a connection.
            found = self._statements[text] = statement(name, text, {"vector": (self._oid, encode_vector)})
        return found

    async def ask(
        self, tenant: str, namespace: str, presumed: Space | None, *calls: tuple[str, Mapping[str, Any]]
    ) -> list[list[DictRow]]:
        """Read where the namespace is presumed to be, in one round trip. Raises Moved when it is not there."""
        where = (SQL["space"], {"tenant": tenant, "namespace": namespace})
        answers: list[list[DictRow]] | None = None
        try:
            *answers, places = await self.run(*calls, where)
        except (psycopg.errors.UndefinedTable, psycopg.InternalError):
            # A table that was dropped a moment ago; planning across that moment may fail in an odder way.
            if presumed is None:
                raise
            (places,) = await self.run(where)
        now = Space(**places[0]) if places else None
        if now is None:
            self._places.pop((tenant, namespace), None)
        elif now != presumed:
            if len(self._places) > _PLACES:
                self._places.clear()
            self._places[tenant, namespace] = now
        if answers is None or _where(now) != _where(presumed):
            raise Moved
        return answers

    async def run(self, *calls: tuple[str, Mapping[str, Any]]) -> list[list[DictRow]]:
        """Run statements in one transaction and one round trip, once more when the connection turns out to be lost or two writers
        got in each other's way: whatever this adapter does may be done twice."""
        started = asyncio.get_running_loop().time()
        try:
            return await self._run(calls)
        except (psycopg.OperationalError, psycopg.InterfaceError) as error:
            late = asyncio.get_running_loop().time() - started > 5
            if late or isinstance(error, PoolTimeout) or not _passing(error):
                raise
        await self._pool.check()
        return await self._run(calls)

    async def _run(self, calls: tuple[tuple[str, Mapping[str, Any]], ...]) -> list[list[DictRow]]:
        async with self._pool.connection(timeout=5) as connection:
            pipeline = pipeline_of(connection)
            if len(pipeline.prepared) > _PREPARED:
                await pipeline.forget()
            batch: list[Call] = [(self.statement(text), values) for text, values in calls]
            try:
                return await pipeline.run(batch)
            except BaseException:
                # Whatever stands behind the failed statement never ran, and a call that was cancelled is still being answered.
                await connection.close()
                raise

    @contextlib.asynccontextmanager
    async def alone(self) -> AsyncIterator[AsyncConnection[DictRow]]:
        """A transaction of as many steps as it takes, as long as it takes."""
        async with self._pool.connection(timeout=5) as connection, connection.transaction():
            await connection.execute("SELECT set_config('statement_timeout', '0', true)")
            yield connection

    async def configure(self, connection: AsyncConnection[DictRow]) -> None:
        """For the pool: what each connection needs."""
        connection.prepare_threshold = None  # statements are prepared by the pipeline, which may forget all of them
        info = await TypeInfo.fetch(connection, "vector")
        if info is None:
            raise psycopg.OperationalError("the vector extension is not installed")
        if info.oid != self._oid:
            self._oid = info.oid
            self._statements.clear()
        # Each statement of a round trip needs a snapshot of its own, whatever the server's default is.
        await connection.execute("SET SESSION CHARACTERISTICS AS TRANSACTION ISOLATION LEVEL READ COMMITTED")


async def open_wire(dsn: str, size: int) -> Wire:
    wire: Wire | None = None

    async def configure(connection: AsyncConnection[DictRow]) -> None:
        if wire is not None:
            await wire.configure(connection)

    pool: AsyncConnectionPool[AsyncConnection[DictRow]] = AsyncConnectionPool(
        dsn,
        min_size=1,
        max_size=size,
        open=False,
        kwargs={"autocommit": True, "row_factory": dict_row, "connect_timeout": 5},
        configure=configure,
    )
    wire = Wire(pool)
    await pool.open()
    return wire


@contextlib.contextmanager
def translated() -> Iterator[None]:
    """Driver errors never leave the adapter."""
    try:
        yield
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


def encode_vector(values: NDArray[np.float32]) -> bytes:
    """pgvector's binary form (vector_send): dimension and a zero as int16, then big-endian float32."""
    return struct.pack(">HH", values.shape[0], 0) + values.astype(">f4").tobytes()


def decode_vector(data: bytes) -> NDArray[np.float32]:
    return np.frombuffer(data, ">f4", offset=4).astype(np.float32)


def _where(space: Space | None) -> tuple[int, str] | None:
    return None if space is None else (space.number, space.method)


def _passing(error: psycopg.Error) -> bool:
    """Whether another connection, or another moment, will do better: a lost connection, a deadlock, a failed serialisation."""
    return error.sqlstate is None or (error.sqlstate[:2] in ("08", "40", "57") and error.sqlstate != "57014")
