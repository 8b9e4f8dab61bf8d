"""What the installation's own entries say of its tables: keys, archive, runs, the freeze, generations, principals. Read once, in order."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from memory_layer.audit.trust_root import parse_activation
from memory_layer.errors import MemoryLayerError
from memory_layer.model import SYSTEM_TENANT
from memory_layer.ops.tables.found import Look, moment, payload_of
from memory_layer.service.actions.api_keys import KEY_CREATED, KEY_REVOKED, KEY_ROTATED
from memory_layer.service.actions.incarnation import NAMESPACES, OPENED
from memory_layer.service.actions.languages import LANGUAGE_SET
from memory_layer.service.actions.principals import ADOPTED, REINSTATED, REVOKED
from memory_layer.service.actions.tenants import TENANT_CREATED, TENANT_REINSTATED, TENANT_REVOKED
from memory_layer.service.actions.tokens import TOKEN_REVOKED
from memory_layer.service.commit.introduction import CREATED
from memory_layer.service.principals import MARK

_FROZEN, _RESUMED = "ops.writes-frozen.succeeded", "ops.writes-resumed.succeeded"
# The entry that opens an incarnation is the first, or the second where the first says who writes it.
OPENING_BY: Final = 1
_GENERATION: Final = re.compile(r"ops\.generation-(opened|switched|retired|dropped)\.succeeded")


class Activated(NamedTuple):
    """What an ``audit.key.activated`` says."""

    seq: int
    ts: str | None
    key_id: str
    algorithm: str
    public_key: bytes


class Statement(NamedTuple):
    """An entry with its payload; None: it is gone or another, which is a finding elsewhere."""

    seq: int
    id: str
    type: str
    ts: str | None
    payload: dict[str, Any] | None


class Principal(NamedTuple):
    """Who an id stands for, as the entry that created or adopted it says."""

    seq: int
    entry: str
    tenant: str
    service: str
    created: str | None


@dataclass(slots=True)
class Statements:
    """``unreadable``: entries whose payload is gone, so that no row can be compared with them."""

    activated: dict[int, Activated] = field(default_factory=dict)  # by the first entry that the key seals
    opening: Statement | None = None  # of a log that goes on from another one
    archived: dict[int, Statement] = field(default_factory=dict)  # by the number of the segment
    runs: dict[str, list[Statement]] = field(default_factory=dict)
    freeze: Statement | None = None
    generations: dict[tuple[str, str], Statement] = field(default_factory=dict)  # the last of each namespace
    carried: dict[tuple[str, str], dict[str, Any]] = field(default_factory=dict)  # namespaces as this log found them
    opened: dict[tuple[str, str], int] = field(default_factory=dict)
    languages: dict[tuple[str, str], Statement] = field(default_factory=dict)  # the last of each namespace
    principals: dict[str, Principal] = field(default_factory=dict)
    repeated: list[tuple[int, str]] = field(default_factory=list)  # entries that name a principal or service again
    revoked: dict[str, str | None] = field(default_factory=dict)  # since when, of principals that ever were
    tenants: dict[str, tuple[int, str | None, str | None]] = field(default_factory=dict)  # seq, created, disabled
    api_keys: dict[str, tuple[int, dict[str, Any]]] = field(
        default_factory=dict
    )  # seq and members of the last word about each
    revoked_tokens: dict[tuple[str, str], Statement] = field(default_factory=dict)  # by tenant and jti
    adopted: list[int] = field(default_factory=list)
    bound: bool = False  # from some entry on every principal has one
    erased: set[str] = field(default_factory=set)
    unreadable: set[int] = field(default_factory=set)


def read_statements(look: Look) -> Statements:
    """All of it, from the entries of the log that is judged."""
    stated, services = Statements(), set[tuple[str, str]]()
    for seq, id_, type_, tenant, created, entry, salt, payload in look.stream("statements"):
        statement = Statement(seq, id_, type_, moment(created), payload_of(entry, salt, payload))
        if statement.payload is None:
            stated.unreadable.add(seq)
        if type_ == "audit.key.activated":
            _activated(stated, statement, payload)
        elif type_ in (_FROZEN, _RESUMED):
            stated.freeze = statement
        elif statement.payload is None:
            continue
        elif type_ == "audit.archived":
            stated.archived[statement.payload.get("number", -1)] = statement
        elif type_ in (OPENED, NAMESPACES):
            _opened(stated, statement, statement.payload)
        elif type_ in (CREATED, ADOPTED, REVOKED, REINSTATED):
            _principals(stated, statement, statement.payload, services)
        elif type_ == "memory.subject.erased":
            stated.erased.update(str(one) for one in statement.payload.get("handles", ()))
        elif (match := _GENERATION.fullmatch(type_)) is not None:
            name = (str(tenant), str(statement.payload.get("namespace")))
            stated.generations[name] = statement
            stated.opened[name] = stated.opened.get(name, 0) + (match[1] == "opened")
        elif type_ in _ADMINISTERED:
            _ADMINISTERED[type_](stated, statement, statement.payload)
        elif type_ == LANGUAGE_SET:
            stated.languages[str(tenant), str(statement.payload.get("namespace"))] = statement
        elif "runId" in statement.payload:
            stated.runs.setdefault(statement.payload["runId"], []).append(statement)
    return stated


def _tenant(stated: Statements, statement: Statement, payload: dict[str, Any]) -> None:
    """A tenant that was made by name, or whose credentials are refused or taken again."""
    name = str(payload.get("tenant"))
    known = stated.tenants.get(name)
    created = payload.get("createdAt") if known is None else known[1]
    stated.tenants[name] = statement.seq, created, payload.get("revokedAt")


def _api_key(stated: Statements, statement: Statement, payload: dict[str, Any]) -> None:
    """A key as its entry leaves it, and the one that it replaces. Its hash stands in the entry that made it."""
    said = [payload] if not isinstance(payload.get("replaces"), dict) else [payload, payload["replaces"]]
    for one in said:
        id_ = str(one.get("apiKeyId"))
        _, before = stated.api_keys.get(id_, (0, {}))
        stated.api_keys[id_] = statement.seq, before | one


def _revoked_token(stated: Statements, statement: Statement, payload: dict[str, Any]) -> None:
    stated.revoked_tokens[str(payload.get("tenant")), str(payload.get("jti"))] = statement


_ADMINISTERED: Final = {
    TENANT_CREATED: _tenant, TENANT_REVOKED: _tenant, TENANT_REINSTATED: _tenant, TOKEN_REVOKED: _revoked_token,
    KEY_CREATED: _api_key, KEY_ROTATED: _api_key, KEY_REVOKED: _api_key,
}  # fmt: skip


def _opened(stated: Statements, statement: Statement, payload: dict[str, Any]) -> None:
    """What a log says first that goes on from another one."""
    if statement.type == OPENED and statement.seq <= OPENING_BY:
        stated.opening = statement
    for one in payload.get("namespaces", ()):
        stated.carried[str(one.get("tenant")), str(one.get("name"))] = one


def _activated(stated: Statements, statement: Statement, payload: bytes | None) -> None:
    if statement.payload is None or payload is None:
        return
    try:
        activation = parse_activation(payload)
    except MemoryLayerError:
        return  # a finding of the log itself
    key = activation.key
    # A key that is delegated to is no change of the log's own.
    if activation.delegation is None and key.purpose == "seal" and key.from_seq == statement.seq + 1:
        stated.activated[key.from_seq] = Activated(
            statement.seq, statement.ts, key.key_id, key.algorithm, key.public_key
        )


def _principals(
    stated: Statements, statement: Statement, payload: dict[str, Any], services: set[tuple[str, str]]
) -> None:
    if statement.type == ADOPTED:
        stated.adopted.append(statement.seq)
        for one in payload.get("tenants", ()):
            stated.tenants.setdefault(one.get("tenant"), (statement.seq, one.get("createdAt"), one.get("disabledAt")))
    for one in payload.get("principals", ()) if statement.type == ADOPTED else [payload]:
        if statement.type in (CREATED, ADOPTED):
            _principal(stated, statement, one, services)
        if "revokedAt" in one:
            stated.revoked[str(one.get("id"))] = one["revokedAt"]


def _principal(stated: Statements, statement: Statement, one: dict[str, Any], services: set[tuple[str, str]]) -> None:
    """The first word about an id or a service counts; a second one comes of rows that were changed in between."""
    id_, service = one.get("id"), (one.get("tenant"), one.get("service"))
    if not (isinstance(id_, str) and isinstance(service[0], str) and isinstance(service[1], str)):
        return
    named = (service[0], service[1])
    if id_ in stated.principals or named in services:
        stated.repeated.append((statement.seq, id_))
        return
    services.add(named)
    stated.principals[id_] = Principal(statement.seq, statement.id, *named, one.get("createdAt"))
    if one.get("tenantCreatedAt") is not None:
        stated.tenants.setdefault(named[0], (statement.seq, one["tenantCreatedAt"], None))
    if named == (SYSTEM_TENANT, MARK):
        stated.bound = True
