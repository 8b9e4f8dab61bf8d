"""Postgres: the pool, and what its errors mean.

``fetch`` and ``run`` are the only doors for rows that belong to tenants; both name whose rows they may see. What is audited is
written through ``stores/log_writer.py`` alone.
"""

from __future__ import annotations

import contextlib
import select
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from typing import Any, Final, LiteralString, TypeAlias

import psycopg
from psycopg import AsyncConnection
from psycopg.conninfo import conninfo_to_dict
from psycopg.rows import DictRow, dict_row
from psycopg.types.json import set_json_loads
from psycopg_pool import AsyncConnectionPool, PoolTimeout

from memory_layer.errors import Conflict, DatabaseUnavailable, MemoryLayerError, Unwritable, UsageError
from memory_layer.model import Artifact
from memory_layer.stores import large_json
from memory_layer.stores.pipeline import Call, pipeline_of, statements
from memory_layer.stores.postgres_faults import explain, is_stale_plan

Query: TypeAlias = tuple[LiteralString, Mapping[str, Any]]
Fetch: TypeAlias = Callable[[Query], Awaitable[list[DictRow]]]
ALL_TENANTS: Final = object()
_LOOK: Final = statements("candidates")
# One caller's question must not keep a connection from the others; the worker's statements do more at a time.
_CALLER_TIMEOUT, _WORKER_TIMEOUT = "5s", "60s"
_SCOPE: Final[LiteralString] = (
    "SELECT set_config('memory.tenants', %(tenants)s, true), set_config('memory.all_tenants', %(all)s, true),"
    " set_config('statement_timeout', %(timeout)s, true), set_config('synchronous_commit', %(durable)s, true)"
)
# As for the committer (``session_limits``): Postgres would plan most look-ups anew each time, which takes longer than they do.
_KEYED: Final[LiteralString] = (
    _SCOPE + ", set_config('enable_seqscan', 'off', true), set_config('plan_cache_mode', 'force_generic_plan', true)"
)
# Classes 22, 54 and XX: the data or its size is the reason, so that the same statement fails again on a healthy server.
_UNWRITABLE = (psycopg.errors.ProgramLimitExceeded, psycopg.DataError, psycopg.InternalError)
_FAULTY = (psycopg.Error, PoolTimeout, OSError)


# A network that swallows everything is noticed within half a minute, not after the operating system's two hours.
CONNECT: Final[dict[str, Any]] = {
    "connect_timeout": 5,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 20_000,
}


@contextlib.contextmanager
def translate_errors() -> Iterator[None]:
    """What the server or the connection is to blame for becomes an error of ours, with its reason; what the statement is to blame
    for keeps its class."""
    try:
        yield
    except _FAULTY as error:
        if (meaning := explain(error)) is not None:
            raise meaning from error
        if isinstance(error, _UNWRITABLE):
            raise Unwritable("The database cannot store or compute this.") from error
        if isinstance(error, (psycopg.OperationalError, psycopg.InterfaceError)):
            raise DatabaseUnavailable(
                "The database refused this; nothing was changed. Its own log says why."
            ) from error
        raise


async def connect(dsn: str) -> AsyncConnection[DictRow]:
    """One connection in autocommit, rows as dicts, statements prepared at second use."""
    connection = await AsyncConnection.connect(dsn, autocommit=True, row_factory=dict_row, **CONNECT)
    await _prepare(connection)
    return connection


async def _prepare(connection: AsyncConnection[DictRow]) -> None:
    connection.prepare_threshold = 2
    set_json_loads(large_json.load, connection)
    # Python's datetime ends with the year 9999; a server in Tokyo would show its last hours as 10000.
    await connection.execute("SET TIME ZONE 'UTC'")


async def check_connection(connection: AsyncConnection[Any]) -> None:
    """For a pool: raise where the server has ended this idle connection. A look at the socket, on which its last words or its end
    have come in; a question to the server would cost each use a round trip."""
    poll = select.poll()
    poll.register(connection.fileno(), select.POLLIN)
    if poll.poll(0):
        await AsyncConnectionPool.check_connection(connection)


class _Pool(AsyncConnectionPool[AsyncConnection[DictRow]]):
    """A pool that says why it has no connection: psycopg's own says after how many seconds, and logs the reason elsewhere."""

    failed: Exception | None = None  # what the newest attempt to connect met

    async def getconn(self, timeout: float | None = None) -> AsyncConnection[DictRow]:  # noqa: ASYNC109 - as inherited
        try:
            return await super().getconn(timeout)
        except PoolTimeout as error:
            raise error from self.failed


def _noting(pool_of: Callable[[], _Pool]) -> type[AsyncConnection[DictRow]]:
    """The class of a pool's connections, which leaves there what connecting met."""

    class Noting(AsyncConnection[DictRow]):
        @classmethod
        async def connect(cls, *words: Any, **options: Any) -> Any:
            try:
                connection = await super().connect(*words, **options)
            except Exception as error:
                pool_of().failed = error
                raise
            pool_of().failed = None
            return connection

    return Noting


class Postgres:
    """The pool. Use ``open_postgres``. ``origin``: the log that the trust root names, where there is one."""

    def __init__(
        self, dsn: str, pool: AsyncConnectionPool[AsyncConnection[DictRow]], origin: str | None = None
    ) -> None:
        self.dsn = dsn
        self.origin = origin
        self._pool = pool

    async def close(self) -> None:
        await self._pool.close(timeout=5)

    async def fetch(self, tenant: str | object, *batch: Query, keyed: bool = False) -> list[list[DictRow]]:
        """Run read-only queries in one snapshot and one round trip; rows of ``tenant`` only (ALL_TENANTS: of everyone). ``keyed``: each
        looks up rows by their keys, so that one plan of an index is right for ever."""
        return await self._transaction(
            "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY", tenant, batch, scope=_KEYED if keyed else _SCOPE
        )

    async def look(self, tenant: str, *calls: Call) -> list[list[DictRow]]:
        """``fetch`` for what every search reads: statements that say the types of their parameters, over a pipeline that costs
        a third of psycopg's own."""
        batch = [(_LOOK["scope"], scope_of(tenant)), *calls]  # what is sent before one sync is one transaction
        with translate_errors():
            async with self._pool.connection(timeout=5) as connection:
                try:
                    return (await pipeline_of(connection).run(batch))[1:]
                except BaseException:
                    # Behind a statement that failed, or an answer that nobody waited for, the connection is out of step.
                    await connection.close()
                    raise

    async def run(self, tenant: str | object, *batch: Query) -> list[list[DictRow]]:
        """The same, writing. For projections and bookkeeping: what is audited goes through BatchTx.

        With ALL_TENANTS (the worker) a crash may take back the last moments: the rows are due again, nothing else, and writers
        do not wait for the worker's syncs.
        """
        return await self._transaction("BEGIN ISOLATION LEVEL READ COMMITTED", tenant, batch)

    async def try_write(self, tenant: str, *batch: Query) -> None:
        """``run``, taken back in the end: raises what the writes would, and leaves nothing."""
        await self._transaction("BEGIN ISOLATION LEVEL READ COMMITTED", tenant, batch, "ROLLBACK")

    async def _transaction(
        self,
        begin: LiteralString,
        tenant: str | object,
        batch: Sequence[Query],
        end: LiteralString = "COMMIT",
        scope: LiteralString = _SCOPE,
    ) -> list[list[DictRow]]:
        facts = (
            {"tenants": "{}", "all": "on", "timeout": _WORKER_TIMEOUT, "durable": "off"}
            if tenant is ALL_TENANTS
            else {"tenants": array_literal([str(tenant)]), "all": "off", "timeout": _CALLER_TIMEOUT, "durable": "on"}
        )
        with translate_errors():
            async with self._pool.connection(timeout=5) as connection:
                try:
                    async with connection.pipeline():
                        await connection.execute(begin)
                        await connection.execute(scope, facts)
                        cursors = [await connection.execute(text, params) for text, params in batch]
                        await connection.execute(end)
                    if end == "ROLLBACK":
                        # Then psycopg has the server forget all that is prepared, what ``look`` prepared by itself among it.
                        await connection.close()
                    with large_json.unread() as large:
                        tables = [await c.fetchall() if c.description else [] for c in cursors]
                except psycopg.Error:
                    # psycopg takes the statements behind the failed one of a pipeline for prepared, and they are not: every
                    # later use of them would fail. The pool replaces a closed connection.
                    await connection.close()
                    raise
        if large:
            await large_json.read(tables, large)
        return tables

    @contextlib.asynccontextmanager
    async def leading(self, lock: int) -> AsyncIterator[Fetch | None]:
        """A durable transaction under the advisory lock (5062476, ``lock``); None at once where another process holds it.

        It gives what runs a query in it and sees no tenant's rows. The end commits, an error rolls back, and either way the lock
        is free again: no session keeps it.
        """
        with translate_errors():
            async with self._pool.connection(timeout=5) as connection, _rolled_back_once(connection):
                await connection.execute(
                    "SELECT set_config('memory.tenants', '{}', true), set_config('memory.all_tenants', 'off', true),"
                    " set_config('statement_timeout', %(timeout)s, true), set_config('synchronous_commit', 'on', true),"
                    " set_config('idle_in_transaction_session_timeout', %(timeout)s, true)",
                    {"timeout": _WORKER_TIMEOUT},
                )
                free = await connection.execute(
                    "SELECT pg_try_advisory_xact_lock(5062476, %(lock)s) AS mine", {"lock": lock}
                )
                row = await free.fetchone()

                async def fetch(query: Query) -> list[DictRow]:
                    cursor = await connection.execute(*query)
                    return await cursor.fetchall() if cursor.description else []

                yield fetch if row is not None and row["mine"] else None

    async def ping(self) -> None:
        with translate_errors():
            async with self._pool.connection(timeout=2) as connection:
                await connection.execute("SELECT 1")


@contextlib.asynccontextmanager
async def _rolled_back_once(connection: AsyncConnection[DictRow]) -> AsyncIterator[None]:
    """A transaction on a pooled connection, which is closed when it was rolled back, for the reason that ``_transaction`` gives."""
    try:
        async with connection.transaction():
            yield
    except BaseException:
        await connection.close()
        raise


def sslmode_over_network(dsn: str) -> str | None:
    """libpq's ``sslmode`` as this connection string and the environment set it; None where only local sockets are meant."""
    given = conninfo_to_dict(dsn)
    defaults = {option.keyword.decode(): (option.val or b"").decode() for option in psycopg.pq.Conninfo.get_defaults()}
    said = {name: str(given.get(name) or defaults.get(name) or "") for name in ("host", "hostaddr", "sslmode")}
    # Where a service file names the host is not known here.
    elsewhere = said["hostaddr"] or given.get("service")
    if not elsewhere and all(not host or host[0] in "/@" for host in said["host"].split(",")):
        return None
    return said["sslmode"] or "prefer"


def login_of(dsn: str) -> tuple[str | None, str | None]:
    """User and password that a connection string names."""
    given = conninfo_to_dict(dsn)
    user, password = given.get("user"), given.get("password")
    return None if user is None else str(user), None if password is None else str(password)


def refuse_malformed(dsn: str, setting: str = "DATABASE_URL") -> None:
    """Raise UsageError for what is no connection string. libpq's own message quotes all of it, password included, and a pool logs that."""
    try:
        port = str(conninfo_to_dict(dsn).get("port", ""))
        well = all(part.isdecimal() for part in port.split(",") if part)
    except psycopg.Error:
        well = False
    if not well:
        raise UsageError(
            f"{setting} is no connection string of Postgres, such as postgresql://user:password@host:5432/database; in a password write "
            "/ as %2F, : as %3A and @ as %40. What it is is not shown, for it may hold one."
        )


async def open_postgres(dsn: str, *, size: int = 8, origin: str | None = None) -> Postgres:
    """Open the pool and prove that the server answers. ``origin``: the log whose entries count (``Postgres.origin``)."""
    refuse_malformed(dsn)
    with translate_errors():
        probe = await connect(dsn)
        await probe.close()
        pool: _Pool = _Pool(
            dsn,
            connection_class=_noting(lambda: pool),
            min_size=1,
            max_size=size,
            open=False,
            kwargs={"autocommit": True, "row_factory": dict_row, **CONNECT},
            configure=_prepare,
            check=check_connection,
        )
        await pool.open()
    return Postgres(dsn, pool, origin)


def classify(error: Exception) -> MemoryLayerError | None:
    """What a failed batch means: None when one change in it is to blame and the batch should be tried in halves."""
    if isinstance(error, psycopg.errors.UniqueViolation):
        return Conflict("Another write took the same id at the same moment. Read it and try again.")
    if (meaning := explain(error)) is not None:
        return meaning
    if isinstance(error, _UNWRITABLE):
        return None
    if isinstance(error, (psycopg.OperationalError, psycopg.InterfaceError)):
        return DatabaseUnavailable("The database refused this; nothing was changed. Its own log says why.")
    return None


def is_retryable(error: Exception) -> bool:
    """Whether a batch that is known not to be in the log may run again: a clash, or a connection that Postgres closed (a
    restart, an idle one cut by a firewall), which is no news to the callers."""
    if isinstance(error, (psycopg.errors.SerializationFailure, psycopg.errors.DeadlockDetected)) or is_stale_plan(
        error
    ):
        return True
    if not isinstance(error, (psycopg.OperationalError, psycopg.InterfaceError)):
        return False
    return (error.sqlstate or "08")[:2] in ("08", "57")


def scope_of(tenant: str) -> dict[str, str]:
    """The values of the statement ``scope`` for a read of one tenant's rows."""
    return {"tenants": array_literal([tenant]), "timeout": _CALLER_TIMEOUT}


def array_literal(values: Sequence[str]) -> str:
    """A Postgres array literal."""
    return "{" + ",".join('"' + v.replace("\\", "\\\\").replace('"', '\\"') + '"' for v in values) + "}"


def artifact_row(row: DictRow) -> Artifact:
    return Artifact(**row)
