"""Postgres: the pool for reads, the log writer's connection for everything that is written.

``fetch`` and ``run`` are the only doors for rows that belong to tenants; both name whose rows they may see. ``BatchTx`` is the
only door through which those rows change together with the audit log.
"""

from __future__ import annotations

import base64
import contextlib
import json
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, LiteralString, TypeAlias

import psycopg
from psycopg import AsyncConnection
from psycopg.pq import TransactionStatus
from psycopg.rows import DictRow, dict_row
from psycopg_pool import AsyncConnectionPool, PoolTimeout

from memory_layer.errors import Conflict, DatabaseUnavailable, MemoryLayerError, Overloaded, Unwritable
from memory_layer.model import Artifact, Namespace, Node, VectorRow, VectorStatus
from memory_layer.sql import queries

Query: TypeAlias = tuple[LiteralString, Mapping[str, Any]]
ALL_TENANTS: Final = object()
_COMMIT = queries("commit")
# One caller's question must not keep a connection from the others; the worker's statements do more at a time.
_CALLER_PATIENCE, _WORKER_PATIENCE = "5s", "60s"
# Classes 22, 54 and XX: the data or its size is the reason, so that the same statement fails again on a healthy server.
_UNWRITABLE = (psycopg.errors.ProgramLimitExceeded, psycopg.DataError, psycopg.InternalError)


@contextlib.contextmanager
def translate_errors() -> Iterator[None]:
    """Driver errors never leave this module: a lost server is DATABASE_UNAVAILABLE, everything else keeps its class."""
    try:
        yield
    except psycopg.errors.QueryCanceled as error:
        raise Overloaded(
            "The database took too long over this. Ask for less, or try again shortly.", retry_after=1
        ) from error
    except _UNWRITABLE as error:
        raise Unwritable("The database cannot store or compute this.") from error
    except (psycopg.OperationalError, psycopg.InterfaceError, PoolTimeout, OSError) as error:
        raise DatabaseUnavailable("Postgres does not answer; nothing was changed. Try again shortly.") from error


async def connect(dsn: str) -> AsyncConnection[DictRow]:
    """One connection in autocommit, rows as dicts, statements prepared at second use."""
    connection = await AsyncConnection.connect(dsn, autocommit=True, row_factory=dict_row, connect_timeout=5)
    await _prepare(connection)
    return connection


async def _prepare(connection: AsyncConnection[DictRow]) -> None:
    connection.prepare_threshold = 2
    # Python's datetime ends with the year 9999; a server in Tokyo would show its last hours as 10000.
    await connection.execute("SET TIME ZONE 'UTC'")


class Postgres:
    """The pool. Use ``open_postgres``."""

    def __init__(self, dsn: str, pool: AsyncConnectionPool[AsyncConnection[DictRow]]) -> None:
        self.dsn = dsn
        self._pool = pool

    async def close(self) -> None:
        await self._pool.close(timeout=5)

    async def fetch(self, tenant: str | object, *batch: Query) -> list[list[DictRow]]:
        """Run read-only queries in one snapshot and one round trip; rows of ``tenant`` only (ALL_TENANTS: of everyone)."""
        return await self._transaction("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY", tenant, batch)

    async def run(self, tenant: str | object, *batch: Query) -> list[list[DictRow]]:
        """The same, writing. For projections and bookkeeping: what is audited goes through BatchTx.

        With ALL_TENANTS (the worker) a crash may take back the last moments: the rows are due again, nothing else, and writers
        do not wait for the worker's syncs.
        """
        return await self._transaction("BEGIN", tenant, batch)

    async def _transaction(
        self, begin: LiteralString, tenant: str | object, batch: Sequence[Query]
    ) -> list[list[DictRow]]:
        scope = (
            {"tenants": "{}", "all": "on", "patience": _WORKER_PATIENCE, "durable": "off"}
            if tenant is ALL_TENANTS
            else {"tenants": _array([str(tenant)]), "all": "off", "patience": _CALLER_PATIENCE, "durable": "on"}
        )
        with translate_errors():
            async with self._pool.connection(timeout=5) as connection:
                try:
                    async with connection.pipeline():
                        await connection.execute(begin)
                        await connection.execute(
                            "SELECT set_config('memory.tenants', %(tenants)s, true),"
                            " set_config('memory.all_tenants', %(all)s, true),"
                            " set_config('statement_timeout', %(patience)s, true),"
                            " set_config('synchronous_commit', %(durable)s, true)",
                            scope,
                        )
                        cursors = [await connection.execute(text, params) for text, params in batch]
                        await connection.execute("COMMIT")
                    return [await c.fetchall() if c.description else [] for c in cursors]
                except psycopg.Error:
                    # psycopg takes the statements behind the failed one of a pipeline for prepared, and they are not: every
                    # later use of them would fail. The pool replaces a closed connection.
                    await connection.close()
                    raise

    async def ping(self) -> None:
        with translate_errors():
            async with self._pool.connection(timeout=2) as connection:
                await connection.execute("SELECT 1")


async def open_postgres(dsn: str, *, size: int = 8) -> Postgres:
    """Open the pool and prove that the server answers."""

    with translate_errors():
        probe = await connect(dsn)
        await probe.close()
        pool: AsyncConnectionPool[AsyncConnection[DictRow]] = AsyncConnectionPool(
            dsn,
            min_size=1,
            max_size=size,
            open=False,
            kwargs={"autocommit": True, "row_factory": dict_row, "connect_timeout": 5},
            configure=_prepare,
            check=AsyncConnectionPool.check_connection,
        )
        await pool.open()
    return Postgres(dsn, pool)


@dataclass(slots=True)
class Wants:
    """What a batch must see before it decides."""

    tenants: set[str] = field(default_factory=set)
    idempotency: list[tuple[str, uuid.UUID, str]] = field(default_factory=list)
    embedding_ids: list[tuple[str, str]] = field(default_factory=list)
    nodes: list[tuple[str, uuid.UUID]] = field(default_factory=list)
    namespaces: set[tuple[str, str]] = field(default_factory=set)


@dataclass(frozen=True, slots=True)
class Head:
    """The log's tail and the database's clock, read under the log lock."""

    log: int
    origin: str
    batch_no: int  # -1 before the first batch
    last_seq: int  # -1 before the first entry
    hash: str | None
    seal_text: str | None
    sealed_at: Any
    now: Any
    system_identifier: str
    timeline: int


@dataclass(slots=True)
class Known:
    """Answers to Wants; the batch's own effects are added as it decides, so that later changes see earlier ones."""

    idempotency: dict[tuple[str, uuid.UUID, str], DictRow]
    embedding_ids: dict[tuple[str, str], uuid.UUID]
    nodes: dict[tuple[str, uuid.UUID], Node]
    vectors: dict[tuple[str, uuid.UUID], list[VectorRow]]
    namespaces: dict[tuple[str, str], Namespace]


@dataclass(slots=True)
class Rows:
    """Everything one batch writes besides its entries."""

    new_nodes: list[Node] = field(default_factory=list)
    changed_nodes: list[Node] = field(default_factory=list)
    vectors: list[VectorRow] = field(default_factory=list)
    namespaces: list[Namespace] = field(default_factory=list)
    artifacts: list[Artifact] = field(default_factory=list)
    idempotency: list[dict[str, Any]] = field(default_factory=list)
    payloads: list[tuple[int, str | None, bytes, bytes]] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class SealedBatch:
    """The log's part of a batch, ready to be stored."""

    batch_no: int
    first_seq: int
    last_seq: int
    head: str
    seal_text: str
    signature: str
    key_id: str
    algorithm: str
    events: list[dict[str, Any]]


class BatchTx:
    """One batch in one transaction, under the log lock. Made by ``LogWriter.batch``."""

    def __init__(self, connection: AsyncConnection[DictRow]) -> None:
        self._c = connection
        self.committing = False

    async def open(self, wants: Wants) -> tuple[Head, Known]:
        """Take the log lock, then read in the same round trip all that the batch decides on."""
        c = self._c
        async with c.pipeline():
            await c.execute(_COMMIT["begin"])
            await c.execute(_COMMIT["set_tenants"], {"tenants": _array(sorted(wants.tenants))})
            await c.execute(_COMMIT["lock_log"])
            head = await c.execute(_COMMIT["head"])
            found: dict[str, psycopg.AsyncCursor[DictRow]] = {}
            if wants.idempotency:
                tenants, actors, keys = (list(x) for x in zip(*wants.idempotency, strict=True))
                found["idempotency"] = await c.execute(
                    _COMMIT["find_idempotency"], {"tenants": tenants, "actors": actors, "keys": keys}
                )
            if wants.embedding_ids:
                tenants, keys = (list(x) for x in zip(*wants.embedding_ids, strict=True))
                found["embedding_ids"] = await c.execute(
                    _COMMIT["find_embedding_ids"], {"tenants": tenants, "keys": keys}
                )
            if wants.nodes:
                tenants, ids = (list(x) for x in zip(*wants.nodes, strict=True))
                found["nodes"] = await c.execute(_COMMIT["find_nodes"], {"tenants": tenants, "ids": ids})
                found["vectors"] = await c.execute(_COMMIT["find_vectors"], {"tenants": tenants, "ids": ids})
                found["node_namespaces"] = await c.execute(
                    _COMMIT["find_namespaces_of_nodes"], {"tenants": tenants, "ids": ids}
                )
            if wants.namespaces:
                tenants, names = (list(x) for x in zip(*sorted(wants.namespaces), strict=True))
                found["namespaces"] = await c.execute(_COMMIT["find_namespaces"], {"tenants": tenants, "names": names})
        row = await head.fetchone()
        if row is None:
            raise DatabaseUnavailable("The audit log was never opened: run `memoryctl migrate apply` and start again.")
        answers = {name: await cursor.fetchall() for name, cursor in found.items()}
        return _head(row), _known(answers)

    async def write(self, rows: Rows, head: Head, now: Any) -> None:
        """Send every row of the batch in one round trip."""
        c = self._c
        async with c.pipeline():
            if rows.namespaces:
                await c.execute(_COMMIT["insert_namespaces"], {"now": now, **_namespace_columns(rows.namespaces)})
            if rows.new_nodes:
                await c.execute(_COMMIT["insert_nodes"], _node_columns(rows.new_nodes))
            if rows.changed_nodes:
                await c.execute(_COMMIT["update_nodes"], _node_columns(rows.changed_nodes))
            if rows.vectors:
                await c.execute(_COMMIT["put_vectors"], {"now": now, **_vector_columns(rows.vectors)})
            if rows.artifacts:
                await c.execute(_COMMIT["insert_artifacts"], _artifact_columns(rows.artifacts))
            if rows.idempotency:
                names = ("tenant", "actor", "key", "request_hash", "status", "answer")
                columns = {n: [r[n] for r in rows.idempotency] for n in names}
                await c.execute(_COMMIT["put_idempotency"], {"now": now, **columns})
            if rows.payloads:
                seqs, tenants, salts, payloads = (list(x) for x in zip(*rows.payloads, strict=True))
                await c.execute(
                    _COMMIT["insert_payloads"],
                    {"log": head.log, "seq": seqs, "tenant": tenants, "salt": salts, "payload": payloads},
                )

    async def commit(self, head: Head, batch: SealedBatch, now: Any) -> None:
        """Store entries and seal, then COMMIT. ``committing`` tells a lost connection here from one before."""
        c = self._c
        columns = (
            "seq",
            "id",
            "tenant",
            "node",
            "artifact",
            "type",
            "manifest_signature_id",
            "entry",
            "hash",
            "prev_hash",
        )
        async with c.pipeline():
            await c.execute(
                _COMMIT["insert_events"],
                {"log": head.log, "batch_no": batch.batch_no, "now": now, "signature": batch.signature}
                | {name: [e[name] for e in batch.events] for name in columns},
            )
            await c.execute(
                _COMMIT["insert_seal"],
                {
                    "log": head.log,
                    "batch_no": batch.batch_no,
                    "first_seq": batch.first_seq,
                    "last_seq": batch.last_seq,
                    "head": batch.head,
                    "seal_text": batch.seal_text,
                    "signature": batch.signature,
                    "key_id": batch.key_id,
                    "algorithm": batch.algorithm,
                    "system_identifier": head.system_identifier,
                    "timeline": head.timeline,
                    "now": now,
                },
            )
            self.committing = True
            await c.execute(_COMMIT["commit"])

    async def rollback(self) -> None:
        """Undo the batch. A connection on which a statement failed is given up, as in ``Postgres``."""
        if self._c.closed:
            return
        if self._c.info.transaction_status == TransactionStatus.INTRANS:
            await self._c.execute(_COMMIT["rollback"])
        else:
            await self._c.close()


class LogWriter:
    """The committer's own connection: made when first needed, made again after it was lost."""

    def __init__(self, dsn: str, signer_timeout: float) -> None:
        self._dsn = dsn
        # A host that dies with the log lock held must not hold it longer than the signer may take.
        self._idle = f"{int(signer_timeout * 1000) + 1000}ms"
        self._connection: AsyncConnection[DictRow] | None = None

    async def batch(self) -> BatchTx:
        with translate_errors():
            if self._connection is None or self._connection.closed:
                self._connection = await connect(self._dsn)
                await self._connection.execute(_COMMIT["session_limits"], {"idle": self._idle})
        return BatchTx(self._connection)

    async def settle(self, log: int, batch_no: int, seal_text: str) -> bool:
        """Whether a batch whose COMMIT went unanswered is in the log. The lock proves that its transaction is over."""
        await self.drop()
        tx = await self.batch()
        with translate_errors():
            try:
                await tx._c.execute(_COMMIT["begin"])
                await tx._c.execute(_COMMIT["lock_log"])
                cursor = await tx._c.execute(_COMMIT["find_seal"], {"log": log, "batch_no": batch_no})
                row = await cursor.fetchone()
                return row is not None and row["seal_text"] == seal_text
            finally:
                await tx.rollback()

    async def drop(self) -> None:
        if self._connection is not None:
            with contextlib.suppress(psycopg.Error, OSError):
                await self._connection.close()
            self._connection = None


async def open_log(dsn: str, origin: str, key_id: str) -> tuple[int, str, str]:
    """(log, origin, key_id of its newest seal) that is written to now; opens the first incarnation when there is none.

    Under the log lock: of two servers that meet on an empty database one opens the log, and the other sees whose it is.
    """
    with translate_errors():
        connection = await connect(dsn)
        try:
            async with connection.transaction():
                await connection.execute(_COMMIT["lock_log"])
                await connection.execute(_COMMIT["open_log"], {"origin": origin, "key_id": key_id})
                (row,) = await (await connection.execute(_COMMIT["current_log"])).fetchall()
        finally:
            await connection.close()
    return row["log"], row["origin"], row["key_id"]


def classify(error: Exception) -> MemoryLayerError | None:
    """What a failed batch means: None when one change in it is to blame and the batch should be tried in halves."""
    if isinstance(error, psycopg.errors.UniqueViolation):
        return Conflict("Another write took the same id at the same moment. Read it and try again.")
    if isinstance(error, _UNWRITABLE):
        return None
    if isinstance(error, (psycopg.OperationalError, psycopg.InterfaceError, OSError)):
        return DatabaseUnavailable("Postgres does not answer; nothing was changed. Try again shortly.")
    return None


def is_retryable(error: Exception) -> bool:
    """Whether a batch that is settled not to be in the log may run again: a clash, or a connection that Postgres closed (a
    restart, an idle one cut by a firewall), which is no news to the callers."""
    if isinstance(error, (psycopg.errors.SerializationFailure, psycopg.errors.DeadlockDetected)):
        return True
    if not isinstance(error, (psycopg.OperationalError, psycopg.InterfaceError)):
        return False
    return (error.sqlstate or "08")[:2] in ("08", "57")


def _array(values: Sequence[str]) -> str:
    """A Postgres array literal."""
    return "{" + ",".join('"' + v.replace("\\", "\\\\").replace('"', '\\"') + '"' for v in values) + "}"


def _head(row: DictRow) -> Head:
    empty = row["batch_no"] is None
    return Head(
        log=row["log"],
        origin=row["origin"],
        batch_no=-1 if empty else row["batch_no"],
        last_seq=-1 if empty else row["last_seq"],
        hash=row["head"],
        seal_text=row["seal_text"],
        sealed_at=row["sealed_at"],
        now=row["now"],
        system_identifier=row["system_identifier"],
        timeline=row["timeline"],
    )


def _known(answers: Mapping[str, list[DictRow]]) -> Known:
    vectors: dict[tuple[str, uuid.UUID], list[VectorRow]] = {}
    for row in answers.get("vectors", ()):
        vectors.setdefault((row["tenant"], row["memory_node_id"]), []).append(vector_row(row))
    return Known(
        idempotency={(r["tenant"], r["actor"], r["key"]): r for r in answers.get("idempotency", ())},
        embedding_ids={(r["tenant"], r["embedding_id"]): r["id"] for r in answers.get("embedding_ids", ())},
        nodes={(r["tenant"], r["id"]): Node(**r) for r in answers.get("nodes", ())},
        vectors=vectors,
        namespaces={
            (r["tenant"], r["name"]): Namespace(**r)
            for r in (*answers.get("namespaces", ()), *answers.get("node_namespaces", ()))
        },
    )


def vector_row(row: DictRow) -> VectorRow:
    data = row["vector"]
    return VectorRow(
        **{**row, "status": VectorStatus(row["status"]), "vector": None if data is None else base64.b64decode(data)}
    )


def _node_columns(nodes: Sequence[Node]) -> dict[str, list[Any]]:
    plain = (
        "tenant",
        "id",
        "owner",
        "namespace",
        "embedding_id",
        "content",
        "legal_hold",
        "legal_hold_reason",
        "ttl_seconds",
        "expires_at",
        "occurred_at",
        "version",
        "created_at",
        "updated_at",
        "deleted_at",
    )
    columns: dict[str, list[Any]] = {name: [getattr(n, name) for n in nodes] for name in plain}
    columns["metadata"] = [json.dumps(n.metadata) for n in nodes]
    columns["pii_flags"] = [json.dumps(n.pii_flags) for n in nodes]
    columns["subjects"] = [_array(n.subjects) for n in nodes]
    return columns


def _vector_columns(vectors: Sequence[VectorRow]) -> dict[str, list[Any]]:
    return {
        "tenant": [v.tenant for v in vectors],
        "id": [v.id for v in vectors],
        "node": [v.memory_node_id for v in vectors],
        "namespace": [v.namespace for v in vectors],
        "provider": [v.provider for v in vectors],
        "model": [v.model for v in vectors],
        "dimension": [v.dimension for v in vectors],
        "status": [v.status.value for v in vectors],
        "version": [v.version for v in vectors],
        "source": [v.source for v in vectors],
        "since": [v.since for v in vectors],
        "vector": [None if v.vector is None else base64.b64encode(v.vector).decode() for v in vectors],
    }


def _namespace_columns(namespaces: Sequence[Namespace]) -> dict[str, list[Any]]:
    names = ("tenant", "name", "index_namespace", "model", "dimension", "provider")
    return {name: [getattr(n, name) for n in namespaces] for name in names}


def _artifact_columns(artifacts: Sequence[Artifact]) -> dict[str, list[Any]]:
    names = (
        "tenant",
        "id",
        "name",
        "url",
        "object_key",
        "version_id",
        "sha256",
        "size_bytes",
        "content_type",
        "manifest_signature_id",
        "created_by",
        "created_at",
    )
    columns: dict[str, list[Any]] = {name: [getattr(a, name) for a in artifacts] for name in names}
    columns["node"] = [a.memory_node_id for a in artifacts]
    columns["metadata"] = [json.dumps(a.metadata) for a in artifacts]
    return columns


def artifact_row(row: DictRow) -> Artifact:
    return Artifact(**row)
