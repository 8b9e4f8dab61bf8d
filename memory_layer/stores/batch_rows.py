"""What a batch writes besides its entries: row operations, and the one table that says by which statement each is written.

An operation is a verb and a record. Columns come from the record's fields; a column more is a field more, and a record or a verb more
is a line of ``WRITES``.
"""

from __future__ import annotations

import base64
import datetime as dt
import hashlib
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from operator import attrgetter
from typing import Any, Final, NamedTuple, TypeAlias

import msgspec

from memory_layer.model import ApiKey, Artifact, Freeze, Namespace, Node, Principal, VectorRow
from memory_layer.sql.columns import columns
from memory_layer.stores.batch_reads import Known
from memory_layer.stores.pipeline import Call, statements
from memory_layer.stores.postgres import array_literal

_STATEMENTS = statements("commit")

Parameters: TypeAlias = Mapping[str, Any]


class Verb(StrEnum):
    """What is done with a record's row."""

    INSERT = "insert"  # it is new
    UPDATE = "update"  # it is there
    PUT = "put"  # whether it is there or not
    REMOVE = "remove"


class RowOp(NamedTuple):
    """One operation on one row."""

    verb: Verb
    record: Any


@dataclass(frozen=True, slots=True)
class Tenant:
    """A tenant that is seen for the first time."""

    tenant: str


@dataclass(frozen=True, slots=True)
class TenantEnd:
    """Since when a tenant's credentials are refused; None: they are taken."""

    tenant: str
    disabled_at: dt.datetime | None


@dataclass(frozen=True, slots=True)
class AdoptedPrincipal:
    """A principal from before there were entries about them, and the entry that it has now."""

    id: uuid.UUID
    audit_id: uuid.UUID


@dataclass(frozen=True, slots=True)
class RevokedToken:
    """A token that is refused, by its ``jti``."""

    tenant: str
    jti: str
    revoked_at: dt.datetime


@dataclass(frozen=True, slots=True)
class JobDecision:
    """A vector row that is given up (``error`` says by whom), or due again (None). Only at this version: a newer one is another job."""

    tenant: str
    id: uuid.UUID
    version: int
    error: str | None


@dataclass(frozen=True, slots=True)
class NamespaceLanguage:
    """What a namespace's texts are written in; None: each tells."""

    tenant: str
    name: str
    language: str | None


@dataclass(frozen=True, slots=True)
class FileHold:
    """Whether the artifacts of a node are held."""

    tenant: str
    node: uuid.UUID
    held: bool


@dataclass(frozen=True, slots=True)
class NodeKey:
    """A node whose row goes, with its vectors' and whatever holds it."""

    tenant: str
    id: uuid.UUID


@dataclass(frozen=True, slots=True)
class ArtifactKey:
    """An artifact whose row goes."""

    tenant: str
    id: uuid.UUID


@dataclass(frozen=True, slots=True)
class DeletedArtifact:
    """Which bytes a deleted artifact named, and the node that it belonged to: what that hides of them stays hidden."""

    tenant: str
    id: uuid.UUID
    node: uuid.UUID
    sha256: str
    object_key: str
    version_id: str


@dataclass(frozen=True, slots=True)
class KeptAnswer:
    """What a request was answered, under its idempotency key; ``answer`` as JSON."""

    tenant: str
    actor: uuid.UUID
    key: str
    request_hash: bytes
    status: int
    answer: str


@dataclass(frozen=True, slots=True)
class Payload:
    """What an entry commits to."""

    seq: int
    tenant: str | None
    salt: bytes
    payload: bytes


@dataclass(frozen=True, slots=True)
class Write:
    """By which statements of ``commit.sql`` the rows of a record and verb are written, all of a batch at once.

    ``parameters`` makes theirs of the records; every statement also has ``now`` and ``log``. ``order``: rows that are there are
    locked in the order in which the worker locks them, so that they cannot deadlock. ``remember``: what the
    changes after it in the batch are to see.
    """

    record: type
    verb: Verb
    statements: tuple[str, ...]
    parameters: Callable[[Sequence[Any]], Parameters]
    order: Callable[[Any], Any] | None = None
    remember: Callable[[Any, Known], None] | None = None


def _fields(*names: str) -> Callable[[Sequence[Any]], Parameters]:
    return lambda records: {name: [getattr(record, name) for record in records] for name in names}


def _whole(record: type) -> Callable[[Sequence[Any]], Parameters]:
    """Every column of a record whose table has its fields."""
    encoders: dict[str, Callable[[Any], str]] = {"::jsonb": _json, "::text[]": array_literal}
    plan = [(column.name, encoders.get(column.cast)) for column in columns(record)]
    values = attrgetter(*(name for name, _ in plan))

    def parameters(records: Sequence[Any]) -> Parameters:
        return {
            name: column if encode is None else [None if value is None else encode(value) for value in column]
            for (name, encode), column in zip(plan, zip(*map(values, records), strict=True), strict=True)
        }

    return parameters


def _json(value: Any) -> str:
    return msgspec.json.encode(value).decode()


def _vectors(rows: Sequence[VectorRow]) -> Parameters:
    plain = (
        "tenant",
        "id",
        "namespace",
        "provider",
        "model",
        "dimension",
        "version",
        "source",
        "since",
        "bulk",
        "read",
    )
    return {
        **_fields(*plain)(rows),
        "node": [row.memory_node_id for row in rows],
        "status": [row.status.value for row in rows],
        "sha256": [_given_sha256(row) for row in rows],
        "vector": [_base64(row) for row in rows],
    }


def _given_sha256(row: VectorRow) -> str | None:
    """SHA-256 of the vector that its caller gave last. Computed from the vector: what the row held before is not trusted."""
    if row.source != "caller" or row.vector is None:
        return None
    return row.sha256 or hashlib.sha256(row.vector).hexdigest()


def _base64(row: VectorRow) -> str | None:
    return row.encoded or (None if row.vector is None else base64.b64encode(row.vector).decode())


def _new_api_keys(keys: Sequence[ApiKey]) -> Parameters:
    plain = ("tenant", "id", "principal", "key_sha256", "hint", "name", "expires_at")
    return {**_fields(*plain)(keys), "scopes": [array_literal(key.scopes) for key in keys]}


def _freeze(freezes: Sequence[Freeze]) -> Parameters:
    """Of several in a batch the last one counts."""
    last = freezes[-1]
    return {"reason": last.reason, "since": last.since, "until": last.until}


def _keys(records: Sequence[Any]) -> Parameters:
    return {"tenants": [record.tenant for record in records], "ids": [record.id for record in records]}


def _key(row: VectorRow) -> tuple[str, uuid.UUID]:
    return row.tenant, row.id


def _see_namespace(namespace: Namespace, known: Known) -> None:
    known.namespaces[(namespace.tenant, namespace.name)] = namespace


def _see_node(node: Node, known: Known) -> None:
    if node.embedding_id is not None:
        known.embedding_ids[(node.tenant, node.embedding_id)] = node.id


def _see_tenant(tenant: Tenant, known: Known) -> None:
    known.tenants.add(tenant.tenant)


def _see_tenant_end(end: TenantEnd, known: Known) -> None:
    known.disabled.pop(end.tenant, None)
    if end.disabled_at is not None:
        known.disabled[end.tenant] = end.disabled_at


def _see_principal(who: Principal, known: Known) -> None:
    known.principals[(who.tenant, who.service)] = who
    known.tenants.add(who.tenant)


def _see_api_key(key: ApiKey, known: Known) -> None:
    known.api_keys[(key.tenant, key.id)] = key
    known.admin_keys = known.admin_keys or "admin" in key.scopes


def _see_revoked_token(token: RevokedToken, known: Known) -> None:
    known.revoked_tokens.add((token.tenant, token.jti))


def _see_freeze(freeze: Freeze, known: Known) -> None:
    known.frozen = freeze


def _see_thaw(_: Freeze, known: Known) -> None:
    known.frozen = None


_NAMESPACE: Final = ("tenant", "name", "index_namespace", "model", "dimension")
_GENERATIONS: Final = ("generations", "standby", "standby_model", "standby_dimension", "standby_state")

# In the order of their foreign keys, which is the order in which they are sent.
WRITES: Final = (
    Write(Tenant, Verb.INSERT, ("insert_tenants",), _fields("tenant"), remember=_see_tenant),
    Write(TenantEnd, Verb.UPDATE, ("disable_tenants",), _fields("tenant", "disabled_at"), remember=_see_tenant_end),
    Write(Principal, Verb.INSERT, ("insert_principals",), _fields("tenant", "service", "id", "audit_id"), remember=_see_principal),
    Write(Principal, Verb.UPDATE, ("revoke_principals",), _fields("id", "revoked_at"), remember=_see_principal),
    Write(AdoptedPrincipal, Verb.UPDATE, ("adopt_principals",), _fields("id", "audit_id")),
    Write(RevokedToken, Verb.INSERT, ("insert_revoked_tokens",), _fields("tenant", "jti", "revoked_at"), remember=_see_revoked_token),
    Write(ApiKey, Verb.INSERT, ("insert_api_keys",), _new_api_keys, remember=_see_api_key),
    Write(ApiKey, Verb.UPDATE, ("end_api_keys",), _fields("tenant", "id", "expires_at", "revoked_at", "replaced_by"), remember=_see_api_key),
    Write(Namespace, Verb.INSERT, ("insert_namespaces",), _fields(*_NAMESPACE, "provider"), remember=_see_namespace),
    Write(Namespace, Verb.UPDATE, ("update_namespaces",), _fields(*_NAMESPACE, *_GENERATIONS), remember=_see_namespace),
    Write(NamespaceLanguage, Verb.PUT, ("put_namespace_languages",), _fields("tenant", "name", "language")),
    Write(Node, Verb.INSERT, ("insert_nodes",), _whole(Node), remember=_see_node),
    Write(Node, Verb.UPDATE, ("update_nodes",), _whole(Node)),
    Write(VectorRow, Verb.INSERT, ("insert_vectors",), _vectors),
    Write(VectorRow, Verb.PUT, ("put_vectors",), _vectors, order=_key),
    Write(JobDecision, Verb.UPDATE, ("cancel_or_retry_jobs",), _fields("tenant", "id", "version", "error")),
    Write(Freeze, Verb.PUT, ("put_freeze",), _freeze, remember=_see_freeze),
    Write(Freeze, Verb.REMOVE, ("lift_freeze",), lambda _: {}, remember=_see_thaw),
    Write(Artifact, Verb.INSERT, ("insert_artifacts",), _whole(Artifact)),
    Write(Artifact, Verb.UPDATE, ("update_artifacts",), _fields("tenant", "id", "retain_until", "verified_at", "fault")),
    Write(Artifact, Verb.PUT, ("put_artifacts",), _whole(Artifact)),
    Write(ArtifactKey, Verb.REMOVE, ("remove_artifacts",), _keys),
    Write(DeletedArtifact, Verb.PUT, ("put_deleted_artifacts",), _fields("tenant", "id", "node", "sha256", "object_key", "version_id")),
    Write(NodeKey, Verb.REMOVE, ("end_vectors_of_rows", "release_rows", "remove_nodes"), _keys),
    Write(FileHold, Verb.UPDATE, ("hold_artifacts",), _fields("tenant", "node", "held")),
    Write(KeptAnswer, Verb.PUT, ("put_idempotency",), _fields("tenant", "actor", "key", "request_hash", "status", "answer")),
    Write(Payload, Verb.INSERT, ("insert_payloads",), _fields("seq", "tenant", "salt", "payload")),
)  # fmt: skip
_BY_OPERATION: Final = {(write.record, write.verb): write for write in WRITES}


def remember(op: RowOp, known: Known) -> None:
    """Let the changes that are decided after this one see it. Raises KeyError for an operation that no table has."""
    see = _BY_OPERATION[type(op.record), op.verb].remember
    if see is not None:
        see(op.record, known)


def calls(ops: Sequence[RowOp], log: int, now: Any) -> list[Call]:
    """The statements that write these operations, in order. Raises KeyError for an operation that no table has."""
    groups: dict[tuple[type, Verb], list[Any]] = {}
    for op in ops:
        groups.setdefault((type(op.record), op.verb), []).append(op.record)
    if unknown := groups.keys() - _BY_OPERATION.keys():
        raise KeyError(f"no statement writes {unknown}")
    made: list[Call] = []
    for write in WRITES:
        records = groups.get((write.record, write.verb))
        if records is None:
            continue
        if write.order is not None:
            records.sort(key=write.order)
        parameters = {"now": now, "log": log, **write.parameters(records)}
        made += [(_STATEMENTS[name], parameters) for name in write.statements]
    return made
