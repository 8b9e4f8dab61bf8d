"""What a batch reads before it decides: each change says what it must see (``Wants``), one round trip under the log lock answers.

A look-up more is a field of ``Wants``, a line of ``_reads``, and a field of ``Known``.
"""

from __future__ import annotations

import base64
import datetime as dt
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeAlias

from memory_layer.model import ApiKey, Artifact, Freeze, Namespace, Node, Principal, VectorRow, VectorStatus
from memory_layer.stores.logs import log_ended, no_such_log
from memory_layer.stores.pipeline import Call, statements
from memory_layer.stores.postgres import array_literal

_STATEMENTS = statements("commit") | statements("evidence")

DictRow: TypeAlias = dict[str, Any]


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
    unbound: bool = False  # principals without an entry, and their tenants
    lone_tenants: bool = False  # tenants without a principal, besides
    revoked_tokens: set[tuple[str, str]] = field(default_factory=set)  # tenant, jti
    tenant_rows: set[str] = field(
        default_factory=set
    )  # tenants of which it counts whether they are there, and disabled
    api_keys: set[tuple[str, uuid.UUID]] = field(default_factory=set)
    admin_keys: str | None = None  # tenant of which it counts whether it ever had a key with the scope admin
    switch: tuple[str, str, Seen] | None = None  # tenant, namespace whose other generation is to answer


class Seen(NamedTuple):
    """What a generation lacked (``Lacks``) when all nodes were counted, which entry was the last then, the nodes that it may yet index
    or give up on, and since when rows may have become due that were not seen."""

    log: int
    seq: int
    behind: int
    given: int
    outstanding: tuple[uuid.UUID, ...]
    since: dt.datetime


class Lacks(NamedTuple):
    """How many nodes are found in the active generation and not in the standby; ``given``: those that only their caller can
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
    tenants: set[str] = field(
        default_factory=set
    )  # of those asked for, with their principals too, the ones that there are
    disabled: dict[str, dt.datetime] = field(default_factory=dict)  # of ``tenant_rows``, since when
    unbound: list[Principal] = field(default_factory=list)
    unbound_tenants: list[tuple[str, dt.datetime, dt.datetime | None]] = field(
        default_factory=list
    )  # created, disabled
    revoked_tokens: set[tuple[str, str]] = field(default_factory=set)  # of those asked for
    api_keys: dict[tuple[str, uuid.UUID], ApiKey] = field(default_factory=dict)
    admin_keys: bool = False
    frozen: Freeze | None = None  # what refuses tenants' writes, as the changes before left it
    # Rows of the query ``last_node_entries``, or of its twin for artifacts: what the log says of each row above.
    node_entries: dict[tuple[str, uuid.UUID], DictRow] = field(default_factory=dict)
    artifact_entries: dict[tuple[str, uuid.UUID], DictRow] = field(default_factory=dict)


def questions(wants: Wants, origin: str) -> list[Call]:
    """Whose rows may be seen, the log's head, and each look-up that the batch needs."""
    tenants = {"tenants": array_literal(sorted(wants.tenants))}
    calls: list[Call] = [(_STATEMENTS["set_tenants"], tenants), (_STATEMENTS["head"], {"origin": origin})]
    return calls + [(_STATEMENTS[name], parameters) for _, name, parameters in _reads(wants, origin)]


def answered(wants: Wants, answers: list[list[DictRow]], origin: str) -> tuple[Head, Known]:
    _, head, *found = answers
    if not head:
        raise no_such_log(origin)
    if head[0]["followed_by"] is not None:
        raise log_ended(origin, head[0]["followed_by"])
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
        yield "tenants", "find_tenants", {"tenants": tenants}
    if wants.unbound:
        yield "unbound", "find_unbound_principals", {}
        yield "unbound_tenants", "find_unbound_tenants", {}
        yield "lone_tenants", "find_lone_tenants", {"wanted": wants.lone_tenants}
    if wants.revoked_tokens:
        tenants, ids = zip(*sorted(wants.revoked_tokens), strict=True)
        yield "revoked_tokens", "find_revoked_tokens", {"tenants": tenants, "ids": ids}
    if wants.tenant_rows:
        yield "tenant_rows", "find_tenant_rows", {"tenants": sorted(wants.tenant_rows)}
    if wants.api_keys:
        tenants, ids = zip(*sorted(wants.api_keys), strict=True)
        yield "api_keys", "find_api_keys", {"tenants": tenants, "ids": ids}
    if wants.admin_keys is not None:
        yield "admin_keys", "find_admin_keys", {"tenant": wants.admin_keys}
    if wants.switch is not None:
        tenant, name, seen = wants.switch
        yield "lacks", "find_lacks", {"tenant": tenant, "name": name, **seen._asdict()}


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
        principals={(r["tenant"], r["service"]): Principal(**r) for r in answers.get("principals", ())},
        tenants={r["tenant"] for name in ("tenants", "tenant_rows") for r in answers.get(name, ())},
        disabled={
            r["tenant"]: r["disabled_at"] for r in answers.get("tenant_rows", ()) if r["disabled_at"] is not None
        },
        unbound=[Principal(**r) for r in answers.get("unbound", ())],
        unbound_tenants=[
            (r["tenant"], r["created_at"], r["disabled_at"])
            for r in (*answers.get("unbound_tenants", ()), *answers.get("lone_tenants", ()))
        ],
        revoked_tokens={(r["tenant"], r["jti"]) for r in answers.get("revoked_tokens", ())},
        api_keys={(r["tenant"], r["id"]): ApiKey(**r) for r in answers.get("api_keys", ())},
        admin_keys=any(r["any"] for r in answers.get("admin_keys", ())),
        node_entries={(r["tenant"], r["id"]): r for r in answers.get("node_entries", ())},
        artifact_entries={(r["tenant"], r["id"]): r for r in answers.get("artifact_entries", ())},
    )


def vector_row(row: DictRow) -> VectorRow:
    data = row["vector"]
    return VectorRow(
        **{**row, "status": VectorStatus(row["status"]), "vector": None if data is None else base64.b64decode(data)}
    )
