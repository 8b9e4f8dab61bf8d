"""The log writer's connection: the only door through which tenants' rows change, always together with the audit log.

``BatchTx`` is one transaction under the log lock: read all that a batch decides on, write its rows, store its entries and seal.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import datetime as dt
import hashlib
import json
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import psycopg
from psycopg import AsyncConnection
from psycopg.pq import TransactionStatus
from psycopg.rows import DictRow

from memory_layer import aside
from memory_layer.model import Artifact, Freeze, Namespace, Node, Principal, VectorRow, VectorStatus
from memory_layer.sql import queries
from memory_layer.stores.log_guard import MOST_KEYS, LogGuard
from memory_layer.stores.logs import no_such_log
from memory_layer.stores.pipeline import PATIENCE, Call, Pipeline, pipeline_of, statements
from memory_layer.stores.postgres import array_literal, connect, translate_errors

_COMMIT = queries("commit")
_KEYS = queries("keys")
_STATEMENTS = statements("commit") | statements("evidence")


@dataclass(slots=True)
class Wants:
    """What a batch must see before it decides."""

    tenants: set[str] = field(default_factory=set)
    idempotency: list[tuple[str, uuid.UUID, str]] = field(default_factory=list)
    embedding_ids: list[tuple[str, str]] = field(default_factory=list)
    nodes: list[tuple[str, uuid.UUID]] = field(default_factory=list)
    namespaces: set[tuple[str, str]] = field(default_factory=set)
    artifacts: list[tuple[str, uuid.UUID]] = field(default_factory=list)
    objects: list[tuple[str, str, str]] = field(default_factory=list)  # tenant, key, version that a new artifact names
    principals: set[tuple[str, str]] = field(default_factory=set)  # tenant, service of callers whose id is a draft
    unbound: bool = False  # principals without an entry
    switch: tuple[str, str, Seen] | None = None  # tenant, namespace whose other generation is to answer


class Seen(NamedTuple):
    """What a generation lacked (``Lacks``) when all nodes were counted, which entry was the last then, the nodes that it may yet index
    or give up on, and since when rows may have become due that were not seen."""

    log: int
    seq: int
    behind: int
    given: int
    unsettled: tuple[uuid.UUID, ...]
    since: dt.datetime


class Lacks(NamedTuple):
    """How many nodes are found in the active generation and not in the one beside it; ``given``: those that only their caller can
    give a vector."""

    behind: int = 0
    given: int = 0


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
    key_id: str  # of the key that seals now
    row: Mapping[str, Any]  # all that was read, for LogGuard
    frozen: Freeze | None = None  # what keeps tenants' rows as they are
    sealed_on: tuple[str, int] | None = None  # system identifier and timeline of the newest seal


@dataclass(slots=True)
class Known:
    """Answers to Wants; the batch's own effects are added as it decides, so that later changes see earlier ones."""

    idempotency: dict[tuple[str, uuid.UUID, str], DictRow]
    embedding_ids: dict[tuple[str, str], uuid.UUID]
    nodes: dict[tuple[str, uuid.UUID], Node]
    vectors: dict[tuple[str, uuid.UUID], list[VectorRow]]
    namespaces: dict[tuple[str, str], Namespace]
    lacks: Lacks | None = None
    artifacts: dict[tuple[str, uuid.UUID], Artifact] = field(default_factory=dict)
    swept: set[tuple[str, str, str]] = field(default_factory=set)  # objects that are being deleted, or were
    principals: dict[tuple[str, str], Principal] = field(default_factory=dict)
    tenants: set[str] = field(default_factory=set)  # of those asked for with their principals, the ones that there are
    unbound: list[Principal] = field(default_factory=list)
    unbound_tenants: list[tuple[str, dt.datetime, dt.datetime | None]] = field(
        default_factory=list
    )  # created, disabled
    # Rows of the query ``last_node_entries``, or of its twin for artifacts: what the log says of each row above.
    node_entries: dict[tuple[str, uuid.UUID], DictRow] = field(default_factory=dict)
    artifact_entries: dict[tuple[str, uuid.UUID], DictRow] = field(default_factory=dict)


class SealKey(Protocol):
    """A key that is to seal."""

    @property
    def key_id(self) -> str: ...
    @property
    def algorithm(self) -> str: ...
    @property
    def public_key(self) -> bytes: ...


class Event(NamedTuple):
    """An entry with the columns that stand beside it."""

    seq: int
    id: uuid.UUID
    tenant: str | None
    node: uuid.UUID | None
    artifact: uuid.UUID | None
    type: str
    manifest_signature_id: str | None
    entry: bytes
    hash: str
    prev_hash: str


@dataclass(frozen=True, slots=True)
class SettledJob:
    """A vector row that is given up (``error`` says by whom), or due again. Only at this version: a newer one is another job."""

    tenant: str
    id: uuid.UUID
    version: int
    error: str | None


@dataclass(slots=True)
class Rows:
    """Everything one batch writes besides its entries."""

    new_nodes: list[Node] = field(default_factory=list)
    changed_nodes: list[Node] = field(default_factory=list)
    vectors: list[VectorRow] = field(default_factory=list)
    jobs: list[SettledJob] = field(default_factory=list)
    namespaces: list[Namespace] = field(default_factory=list)  # new ones
    changed_namespaces: list[Namespace] = field(default_factory=list)
    artifacts: list[Artifact] = field(default_factory=list)
    changed_artifacts: list[Artifact] = field(default_factory=list)
    put_artifacts: list[Artifact] = field(default_factory=list)  # all columns of rows that may be there or not
    removed: list[tuple[str, str, uuid.UUID]] = field(default_factory=list)  # kind of row, tenant, id
    holds: list[tuple[str, uuid.UUID, bool]] = field(
        default_factory=list
    )  # tenant, node, whether its artifacts are held
    idempotency: list[dict[str, Any]] = field(default_factory=list)
    payloads: list[tuple[int, str | None, bytes, bytes]] = field(default_factory=list)
    key: SealKey | None = None  # takes over with the next batch
    tenants: list[str] = field(default_factory=list)
    principals: list[tuple[Principal, uuid.UUID]] = field(default_factory=list)  # each with the entry that makes it
    adopted: list[tuple[uuid.UUID, uuid.UUID]] = field(default_factory=list)  # principal, entry
    freeze: tuple[Freeze | None] | None = None  # put in force, or lifted (None inside)
    heavy: bool = False  # to be encoded in a thread


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
    events: list[Event]
    new_key: SealKey | None = None


class BatchTx:
    """One batch in one transaction, under the log lock. Made by ``LogWriter.batch``."""

    def __init__(self, connection: AsyncConnection[DictRow], pipeline: Pipeline, origin: str) -> None:
        self._c = connection
        self._pipeline = pipeline
        self._origin = origin
        self.committing = False

    async def open(self, wants: Wants) -> tuple[Head, Known] | None:
        """Begin, take the log lock, and read in the same round trip all that the batch decides on. None: another process has the
        lock; what was read is worth nothing then."""
        calls: list[Call] = [(_STATEMENTS["begin"], {}), (_STATEMENTS["try_lock_log"], {})]
        first, *answers = (await self._pipeline.run([*calls, *_questions(wants, self._origin)]))[1:]
        return _answered(wants, answers, self._origin) if first[0]["locked"] else None

    async def wait_for_lock(self) -> None:
        """Wait in the queue for the log lock, which is first come, first served."""
        await self._pipeline.run([(_STATEMENTS["lock_log"], {})])

    async def read(self, wants: Wants) -> tuple[Head, Known]:
        """All that the batch decides on, under the lock."""
        return _answered(wants, await self._pipeline.run(_questions(wants, self._origin)), self._origin)

    async def look(self, call: Call) -> list[DictRow]:
        """Run one more read under the lock."""
        (rows,) = await self._pipeline.run([call])
        return rows

    async def write(self, rows: Rows, head: Head, now: Any) -> None:
        """Send every row of the batch in one round trip."""
        await self._pipeline.run(await _written(rows, head, now))

    async def commit(self, head: Head, batch: SealedBatch, now: Any, rows: Rows | None = None) -> None:
        """Store entries and seal, then COMMIT; with ``rows``, what ``write`` does goes along in the same round trip.

        ``committing`` tells a lost connection here from one before.
        """
        calls = await _written(rows, head, now) if rows is not None else []
        events = dict(zip(Event._fields, zip(*batch.events, strict=True), strict=True))
        about = {"log": head.log, "batch_no": batch.batch_no, "now": now, "signature": batch.signature}
        calls.append((_STATEMENTS["insert_events"], events | about))
        seal = {
            "first_seq": batch.first_seq,
            "last_seq": batch.last_seq,
            "head": batch.head,
            "seal_text": batch.seal_text,
            "key_id": batch.key_id,
            "algorithm": batch.algorithm,
            "system_identifier": head.system_identifier,
            "timeline": head.timeline,
        }
        calls.append((_STATEMENTS["insert_seal"], seal | about))
        if (key := batch.new_key) is not None:
            activated = {"from_seq": batch.last_seq + 1, "key_id": key.key_id, "algorithm": key.algorithm}
            calls.append((_STATEMENTS["insert_key"], activated | about | {"public_key": key.public_key}))
        calls.append((_STATEMENTS["commit"], {}))
        self.committing = True
        await self._pipeline.run(calls)

    async def rollback(self) -> None:
        """Undo the batch. A connection on which a statement failed is given up, as in ``Postgres``."""
        if self._c.closed:
            return
        if self._c.info.transaction_status == TransactionStatus.INTRANS:
            await self._c.execute(_COMMIT["rollback"])
        else:
            await self._c.close()


class LogWriter:
    """The committer's own connection: made when first needed, made again after it was lost.

    ``guard``: of the log that it writes, by name. What else the database holds is none of its business.
    """

    def __init__(self, dsn: str, signer_timeout: float, guard: LogGuard) -> None:
        self.guard = guard
        self._dsn = dsn
        # A host that dies with the log lock held must not hold it longer than the signer may take.
        self._idle = f"{int(signer_timeout * 1000) + 1000}ms"
        self._connection: AsyncConnection[DictRow] | None = None

    async def batch(self) -> BatchTx:
        with translate_errors():
            if self._connection is None or self._connection.closed:
                self._connection = await connect(self._dsn)
                # Statements are prepared by the pipeline. Where psycopg prepares any, it has all forgotten after a ROLLBACK.
                self._connection.prepare_threshold = None
                await self._connection.execute(_COMMIT["session_limits"], {"idle": self._idle})
        return BatchTx(self._connection, pipeline_of(self._connection), self.guard.origin)

    async def settle(self, log: int, batch_no: int, seal_text: str) -> bool:
        """Whether a batch whose COMMIT went unanswered is in the log. The lock proves that its transaction is over."""
        await self.drop()
        tx = await self.batch()
        with translate_errors():
            try:
                async with asyncio.timeout(PATIENCE):
                    await tx._c.execute(_COMMIT["begin"])
                    await tx._c.execute(_COMMIT["lock_log"])
                    cursor = await tx._c.execute(_COMMIT["find_seal"], {"log": log, "batch_no": batch_no})
                    row = await cursor.fetchone()
                return row is not None and row["seal_text"] == seal_text
            finally:
                await tx.rollback()

    async def learn_keys(self) -> None:
        """Have the guard prove which keys have sealed the log. Raises LogTampered."""
        await self.batch()
        assert self._connection is not None  # noqa: S101 - batch made it
        facts = {"origin": self.guard.origin, "limit": MOST_KEYS + 1}
        async with asyncio.timeout(PATIENCE), self._connection.transaction(force_rollback=True):
            await self._connection.execute("SELECT set_config('memory.all_tenants', 'on', true)")
            first = await (await self._connection.execute(_KEYS["first_key"], facts)).fetchone()
            rows = await (await self._connection.execute(_KEYS["key_history"], facts)).fetchall()
        self.guard.learn(None if first is None else first["key_id"], rows)

    async def drop(self) -> None:
        if self._connection is not None:
            with contextlib.suppress(psycopg.Error, OSError):
                await self._connection.close()
            self._connection = None


def _questions(wants: Wants, origin: str) -> list[Call]:
    """Whose rows may be seen, the log's head, and each look-up that the batch needs."""
    tenants = {"tenants": array_literal(sorted(wants.tenants))}
    calls: list[Call] = [(_STATEMENTS["set_tenants"], tenants), (_STATEMENTS["head"], {"origin": origin})]
    return calls + [(_STATEMENTS[name], parameters) for _, name, parameters in _reads(wants, origin)]


def _answered(wants: Wants, answers: list[list[DictRow]], origin: str) -> tuple[Head, Known]:
    _, head, *found = answers
    if not head:
        raise no_such_log(origin)
    kinds = [kind for kind, _, _ in _reads(wants, origin)]
    return _head(head[0]), _known(dict(zip(kinds, found, strict=True)))


def _reads(wants: Wants, origin: str) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """(what it answers, query, parameters) of each look-up that a batch needs."""
    if wants.idempotency:
        tenants, actors, keys = zip(*wants.idempotency, strict=True)
        yield "idempotency", "find_idempotency", {"tenants": tenants, "actors": actors, "keys": keys}
    if wants.embedding_ids:
        tenants, keys = zip(*wants.embedding_ids, strict=True)
        yield "embedding_ids", "find_embedding_ids", {"tenants": tenants, "keys": keys}
    if wants.nodes:
        tenants, ids = zip(*wants.nodes, strict=True)
        for kind, name in (
            ("nodes", "find_nodes"),
            ("vectors", "find_vectors"),
            ("node_namespaces", "find_namespaces_of_nodes"),
            ("node_entries", "last_node_entries"),
        ):
            yield kind, name, {"tenants": tenants, "ids": ids, "origin": origin}
    if wants.namespaces:
        tenants, names = zip(*sorted(wants.namespaces), strict=True)
        yield "namespaces", "find_namespaces", {"tenants": tenants, "names": names}
    if wants.artifacts:
        tenants, ids = zip(*wants.artifacts, strict=True)
        yield "artifacts", "find_artifacts", {"tenants": tenants, "ids": ids}
        yield "artifact_entries", "last_artifact_entries", {"tenants": tenants, "ids": ids, "origin": origin}
    if wants.objects:
        tenants, keys, versions = zip(*wants.objects, strict=True)
        yield "swept", "find_swept", {"tenants": tenants, "keys": keys, "versions": versions}
    if wants.principals:
        tenants, services = zip(*sorted(wants.principals), strict=True)
        yield "principals", "find_principals", {"tenants": tenants, "services": services}
    if wants.unbound:
        yield "unbound", "find_unbound_principals", {}
        yield "unbound_tenants", "find_unbound_tenants", {}
    if wants.switch is not None:
        tenant, name, seen = wants.switch
        yield "lacks", "find_lacks", {"tenant": tenant, "name": name, **seen._asdict()}


async def _written(rows: Rows, head: Head, now: Any) -> list[Call]:
    return await aside.run(aside.HEAVY + 1 if rows.heavy else 0, _writes, rows, head, now)


def _writes(rows: Rows, head: Head, now: Any) -> list[Call]:
    """The inserts and updates of a batch's rows, in the order of their foreign keys."""
    calls = _principal_writes(rows, now)
    if rows.namespaces:
        calls.append((_STATEMENTS["insert_namespaces"], {"now": now, **_namespace_columns(rows.namespaces)}))
    if rows.changed_namespaces:
        columns_ = _namespace_columns(rows.changed_namespaces, _GENERATIONS)
        calls.append((_STATEMENTS["update_namespaces"], {"now": now, **columns_}))
    if rows.new_nodes:
        calls.append((_STATEMENTS["insert_nodes"], _node_columns(rows.new_nodes)))
    if rows.changed_nodes:
        calls.append((_STATEMENTS["update_nodes"], _node_columns(rows.changed_nodes)))
    # Rows that are there are locked in the order in which the worker locks them, so that neither waits for the other in a ring.
    there = sorted((row for row in rows.vectors if row.version > 1), key=lambda row: (row.tenant, row.id))
    for name, vectors in (
        ("insert_vectors", [row for row in rows.vectors if row.version == 1]),  # of nodes that are new themselves
        ("put_vectors", there),
    ):
        if vectors:
            calls.append((_STATEMENTS[name], {"now": now, **_vector_columns(vectors)}))
    if rows.jobs:
        calls.append((_STATEMENTS["settle_jobs"], {"now": now, **_job_columns(rows.jobs)}))
    if rows.freeze is not None:
        (freeze,) = rows.freeze
        if freeze is None:
            calls.append((_STATEMENTS["lift_freeze"], {}))
        else:
            put = {"reason": freeze.reason, "since": freeze.since, "until": freeze.until}
            calls.append((_STATEMENTS["put_freeze"], put))
    calls += _artifact_writes(rows)
    calls += _removals(rows)
    if rows.holds:
        tenants, nodes, held = zip(*rows.holds, strict=True)
        calls.append((_STATEMENTS["hold_artifacts"], {"tenant": tenants, "node": nodes, "held": held}))
    if rows.idempotency:
        names = ("tenant", "actor", "key", "request_hash", "status", "answer")
        columns: dict[str, Sequence[Any]] = {name: [row[name] for row in rows.idempotency] for name in names}
        calls.append((_STATEMENTS["put_idempotency"], {"now": now, **columns}))
    if rows.payloads:
        seqs, owners, salts, payloads = zip(*rows.payloads, strict=True)
        columns = {"seq": seqs, "tenant": owners, "salt": salts, "payload": payloads}
        calls.append((_STATEMENTS["insert_payloads"], {"log": head.log, **columns}))
    return calls


def _artifact_writes(rows: Rows) -> Iterator[Call]:
    if rows.artifacts:
        yield _STATEMENTS["insert_artifacts"], _artifact_columns(rows.artifacts)
    if rows.changed_artifacts:
        changed = {name: [getattr(a, name) for a in rows.changed_artifacts] for name in _ARTIFACT_CHANGES}
        yield _STATEMENTS["update_artifacts"], changed
    if rows.put_artifacts:
        faults = [artifact.fault for artifact in rows.put_artifacts]
        yield _STATEMENTS["put_artifacts"], {**_artifact_columns(rows.put_artifacts), "fault": faults}


_REMOVALS = (
    ("artifact", ("remove_artifacts",)),
    ("node", ("end_vectors_of_rows", "release_rows", "remove_nodes")),
)


def _removals(rows: Rows) -> Iterator[Call]:
    for kind, names in _REMOVALS:
        keys = [(tenant, id_) for what, tenant, id_ in rows.removed if what == kind]
        if keys:
            tenants, ids = zip(*keys, strict=True)
            for name in names:
                yield _STATEMENTS[name], {"tenants": tenants, "ids": ids}


def _principal_writes(rows: Rows, now: Any) -> list[Call]:
    calls: list[Call] = []
    if rows.tenants:
        calls.append((_STATEMENTS["insert_tenants"], {"now": now, "tenant": rows.tenants}))
    if rows.principals:
        of = {name: [getattr(one, name) for one, _ in rows.principals] for name in ("tenant", "service", "id")}
        entries = [entry for _, entry in rows.principals]
        calls.append((_STATEMENTS["insert_principals"], {"now": now, "audit_id": entries, **of}))
    if rows.adopted:
        ids, entries = (list(column) for column in zip(*rows.adopted, strict=True))
        calls.append((_STATEMENTS["adopt_principals"], {"id": ids, "audit_id": entries}))
    return calls


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
        key_id=row["key_id"],
        row=row,
        frozen=None
        if row["frozen_reason"] is None
        else Freeze(row["frozen_reason"], row["frozen_since"], row["frozen_until"]),
        sealed_on=None if empty else (row["sealed_system"], row["sealed_timeline"]),
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
        lacks=next((Lacks(**r) for r in answers.get("lacks", ())), None),
        artifacts={(r["tenant"], r["id"]): Artifact(**r) for r in answers.get("artifacts", ())},
        swept={(r["tenant"], r["object_key"], r["version_id"]) for r in answers.get("swept", ())},
        principals={
            (r["tenant"], r["service"]): Principal(r["tenant"], r["service"], r["id"], r["created_at"])
            for r in answers.get("principals", ())
            if r["id"] is not None
        },
        tenants={r["tenant"] for r in answers.get("principals", ()) if r["known"]},
        unbound=[Principal(**r) for r in answers.get("unbound", ())],
        unbound_tenants=[(r["tenant"], r["created_at"], r["disabled_at"]) for r in answers.get("unbound_tenants", ())],
        node_entries={(r["tenant"], r["id"]): r for r in answers.get("node_entries", ())},
        artifact_entries={(r["tenant"], r["id"]): r for r in answers.get("artifact_entries", ())},
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
    columns["subjects"] = [array_literal(n.subjects) for n in nodes]
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
        "sha256": [_given_sha256(v) for v in vectors],
        "vector": [v.encoded or (None if v.vector is None else base64.b64encode(v.vector).decode()) for v in vectors],
    }


def _given_sha256(row: VectorRow) -> str | None:
    """SHA-256 of the vector that its caller gave last. Worked out from the vector: what the row said before is not believed."""
    if row.source != "caller" or row.vector is None:
        return None
    return row.sha256 or hashlib.sha256(row.vector).hexdigest()


_NAMESPACE = ("tenant", "name", "index_namespace", "model", "dimension")
_GENERATIONS = ("generations", "beside", "beside_model", "beside_dimension", "beside_state")


def _namespace_columns(namespaces: Sequence[Namespace], more: Sequence[str] = ("provider",)) -> dict[str, list[Any]]:
    return {name: [getattr(n, name) for n in namespaces] for name in (*_NAMESPACE, *more)}


def _job_columns(jobs: Sequence[SettledJob]) -> dict[str, list[Any]]:
    return {name: [getattr(job, name) for job in jobs] for name in ("tenant", "id", "version", "error")}


_ARTIFACT_CHANGES = ("tenant", "id", "retain_until", "verified_at", "fault")


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
        "legal_hold",
        "hold_due",
        "retain_until",
        "verified_at",
        "storage_class",
    )
    columns: dict[str, list[Any]] = {name: [getattr(a, name) for a in artifacts] for name in names}
    columns["node"] = [a.memory_node_id for a in artifacts]
    columns["metadata"] = [json.dumps(a.metadata) for a in artifacts]
    return columns
