"""Several prepared statements in one round trip: what the committer runs under the log lock, and what every search reads.

psycopg's own pipeline waits for the socket after each statement, and adapts each value by itself: together more than half of the
time that the log lock was held. Here all statements of a step are sent at once over libpq's pipeline mode (psycopg.pq, its
documented low-level door), with arrays packed by column.

A statement says the type of each of its parameters: ``%(name)s::type``.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import re
import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from itertools import chain
from typing import Any, Final, NamedTuple, TypeAlias

from psycopg import AsyncConnection, OperationalError
from psycopg.adapt import Transformer
from psycopg.errors import error_from_result
from psycopg.pq import ExecStatus, Format
from psycopg.pq.abc import PGresult
from psycopg.rows import DictRow

from memory_layer.sql import queries
from memory_layer.stores import large_json

# Longer than the wait for the log lock (5 s) and any statement under it: a backend that is stopped, or a network that swallows
# everything, must not keep all writers waiting.
TIMEOUT: Final = 15.0  # seconds

Encoder: TypeAlias = Callable[[Any], bytes]
Call: TypeAlias = tuple["Statement", Mapping[str, Any]]

_PLACEHOLDER: Final = re.compile(r"%\((\w+)\)[sb]::([a-z0-9]+)(\[\])?|%%|%\((\w+)\)")
_EPOCH: Final = dt.datetime(2000, 1, 1, tzinfo=dt.UTC)
_MICROSECOND: Final = dt.timedelta(microseconds=1)
_NULL: Final = b"\xff\xff\xff\xff"
_NONE: Final = frozenset({type(None)})
_length: Final = struct.Struct("!i").pack
_int8: Final = struct.Struct("!q").pack

# Name -> (OID of pg_type, the value's binary form as the type's receive function reads it).
_TYPES: Final[dict[str, tuple[int, Encoder]]] = {
    "bool": (16, lambda value: b"\1" if value else b"\0"),
    "bytea": (17, bytes),
    "bigint": (20, _int8),
    "int": (23, _length),
    "text": (25, str.encode),
    "uuid": (2950, lambda value: value.bytes),
    "timestamptz": (1184, lambda value: _int8((value - _EPOCH) // _MICROSECOND)),
    "float8": (701, struct.Struct("!d").pack),
    "jsonb": (3802, lambda value: b"\1" + value.encode()),  # of JSON text
    "jsonpath": (4072, lambda value: b"\1" + value.encode()),
}


class Statement(NamedTuple):
    """A named query, ready to be prepared; ``parameters`` in the order of $1, $2, ..."""

    name: bytes
    text: bytes
    parameters: tuple[tuple[str, Encoder], ...]


@cache
def statements(file: str) -> dict[str, Statement]:
    """The queries of ``sql/queries/<file>.sql`` as statements. Raises ValueError for a parameter without a type."""
    return {name: statement(f"memory_layer_{file}_{name}", text) for name, text in queries(file).items()}


def statement(name: str, text: str, more: Mapping[str, tuple[int, Encoder]] | None = None) -> Statement:
    """A text as a statement; ``more``: types (OID, encoder) beside those that every Postgres has."""
    types = {**_TYPES, **(more or {})}
    places: dict[str, int] = {}
    encoders: list[tuple[str, Encoder]] = []

    def numbered(match: re.Match[str]) -> str:
        if match[0] == "%%":
            return "%"
        parameter, type_, array = match[1], match[2], match[3] or ""
        if parameter is None:
            raise ValueError(f"{name}: parameter {match[4]} says no type")
        if parameter not in places:
            places[parameter] = len(places) + 1
            oid, encode = types[type_]
            encoders.append((parameter, _array(oid, encode) if array else encode))
        return f"${places[parameter]}::{type_}{array}"

    return Statement(name.encode(), _PLACEHOLDER.sub(numbered, text).encode(), tuple(encoders))


def over(text: str, candidates: str, columns: Iterable[str] = ()) -> str:
    """A query about candidates as a statement: ``{candidates}`` in its text is a relation ``c`` with a column ``node_id``; ``columns``
    of it come along, each as ``hit_<name>``."""
    more = "".join(f", c.{name} AS hit_{name}" for name in columns)
    return text.replace("{candidates}", candidates).replace("{more}", more)


def _array(oid: int, encode: Encoder) -> Encoder:
    """A one-dimensional array in array_recv's form: dimensions, null flag, OID, length, lower bound, then each element."""

    def pack(values: Sequence[Any]) -> bytes:
        if not values:
            return struct.pack("!iiI", 0, 0, oid)
        head = struct.pack("!iiIii", 1, 1, oid, len(values), 1)
        kinds = set(map(type, values))
        if kinds == _NONE:  # most columns of most nodes
            return head + _NULL * len(values)
        if kinds.isdisjoint(_NONE):
            elements = list(map(encode, values))
            return head + b"".join(chain.from_iterable(zip(map(_length, map(len, elements)), elements, strict=True)))
        parts = [head]
        append = parts.append
        for value in values:
            if value is None:
                append(_NULL)
            else:
                data = encode(value)
                append(_length(len(data)))
                append(data)
        return b"".join(parts)

    return pack


class Pipeline:
    """Runs statements on a connection that nothing else uses meanwhile."""

    def __init__(self, connection: AsyncConnection[DictRow]) -> None:
        self._connection = connection
        self.prepared: set[bytes] = set()
        self._readers: dict[bytes, tuple[Any, Callable[[Sequence[Any]], DictRow]]] = {}

    async def forget(self) -> None:
        """Forget what is prepared, here and on the server."""
        await self._connection.execute("DEALLOCATE ALL")
        self.prepared.clear()
        self._readers.clear()

    async def run(self, calls: Iterable[Call]) -> list[list[DictRow]]:
        """Run statements in order, in one round trip; the rows of each. Raises the first error, as psycopg would; the connection
        is to be closed then, for what came behind the failed statement never ran."""
        pgconn = self._connection.pgconn
        wanted: list[
            bytes | None
        ] = []  # of each result to come: the statement, or None where it is that of a preparation
        pgconn.enter_pipeline_mode()
        for statement, values in calls:
            if statement.name not in self.prepared:
                pgconn.send_prepare(statement.name, statement.text)
                self.prepared.add(statement.name)
                wanted.append(None)
            parameters = [
                None if (value := values[name]) is None else encode(value) for name, encode in statement.parameters
            ]
            formats = [Format.BINARY] * len(parameters)
            pgconn.send_query_prepared(statement.name, parameters, formats, result_format=Format.BINARY)
            wanted.append(statement.name)
        pgconn.pipeline_sync()
        try:
            async with asyncio.timeout(TIMEOUT):
                results = await self._communicate()
        except TimeoutError:
            raise OperationalError(f"Postgres did not answer within {TIMEOUT:.0f} s") from None
        pgconn.exit_pipeline_mode()
        for result in results:
            if result.status == ExecStatus.FATAL_ERROR:
                raise _error(result)
        with large_json.unread() as large:
            tables = [
                self._rows(result, name) for result, name in zip(results, wanted, strict=True) if name is not None
            ]
        if large:
            await large_json.read(tables, large)
        return tables

    async def _communicate(self) -> list[PGresult]:
        """Send what is queued and take results until the pipeline's end."""
        pgconn = self._connection.pgconn
        results: list[PGresult] = []
        unsent = bool(pgconn.flush())
        while True:
            while not pgconn.is_busy():
                result = pgconn.get_result()
                if result is None:
                    if not _expects(pgconn):
                        raise OperationalError("the connection was lost")
                    continue
                if result.status == ExecStatus.PIPELINE_SYNC:
                    return results
                results.append(result)
                if result.status == ExecStatus.FATAL_ERROR and not _expects(pgconn):
                    raise _error(result)
            await _ready(pgconn.socket, writing=unsent)
            pgconn.consume_input()
            if unsent:
                unsent = bool(pgconn.flush())

    def _rows(self, result: PGresult, name: bytes) -> list[DictRow]:
        if result.status != ExecStatus.TUPLES_OK or not result.ntuples:
            return []
        # A prepared statement's columns never change: Postgres refuses it once they would.
        held = self._readers.get(name)
        if held is None:
            names = [(result.fname(column) or b"").decode() for column in range(result.nfields)]
            held = self._readers[name] = (Transformer(self._connection), lambda values: dict(zip(names, values)))  # noqa: B905
            held[0].set_pgresult(result)
        transformer, make = held
        transformer.set_pgresult(result, set_loaders=False)
        rows: list[DictRow] = transformer.load_rows(0, result.ntuples, make)
        transformer.set_pgresult(None, set_loaders=False)  # or the result would stay in memory until the next
        return rows


_PLACE: Final = "_memory_layer_pipeline"


def pipeline_of(connection: AsyncConnection[DictRow]) -> Pipeline:
    """The pipeline of a connection, which knows what is prepared there, for as long as the connection lives."""
    held: Pipeline | None = getattr(connection, _PLACE, None)
    if held is None:
        held = Pipeline(connection)
        setattr(connection, _PLACE, held)
    return held


def _error(result: PGresult) -> Exception:
    error = error_from_result(result)
    # What libpq reports by itself has no SQLSTATE: the connection is out of step or gone, and the outcome unknown.
    return error if error.sqlstate is not None else OperationalError(str(error))


def _expects(pgconn: Any) -> bool:
    return bool(pgconn.status == 0)  # CONNECTION_OK


async def _ready(fd: int, *, writing: bool) -> None:
    """Wait until the socket can be read, or written where there is something to send."""
    loop = asyncio.get_running_loop()
    ready = loop.create_future()

    def wake() -> None:
        if not ready.done():
            ready.set_result(None)

    loop.add_reader(fd, wake)
    if writing:
        loop.add_writer(fd, wake)
    try:
        await ready
    finally:
        loop.remove_reader(fd)
        if writing:
            loop.remove_writer(fd)
