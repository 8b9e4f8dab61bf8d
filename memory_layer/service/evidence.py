"""What the log says of a row, worked out from the row: its state in the form of the audit format, and the commitments to it. No I/O."""

from __future__ import annotations

import datetime as dt
import hashlib
import os
import uuid
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from operator import attrgetter
from typing import Any, Final

import msgspec

from memory_layer import canonical
from memory_layer.audit import states
from memory_layer.audit.entry import SALT_BYTES, VERSION, payload_commitment, state_hash
from memory_layer.errors import MemoryLayerError
from memory_layer.model import Artifact, Node, VectorRow, format_time, format_time_or_none
from memory_layer.sql.columns import columns


@dataclass(frozen=True, slots=True)
class Evidence:
    """What an entry commits to, worked out: the payload's bytes with their salt, and the two commitments (64 hex digits)."""

    salt: bytes
    payload: bytes
    commitment: str
    state: str | None


_encode: Final = msgspec.json.Encoder(order="deterministic").encode


def json_name(column: str) -> str:
    """What a column is called in JSON: ``legal_hold_reason`` is ``legalHoldReason``."""
    first, *rest = column.split("_")
    return first + "".join(word.capitalize() for word in rest)


_COLUMNS: Final = tuple(column.name for column in columns(Node))
NODE_NAMES: Final = tuple(json_name(column) for column in _COLUMNS)
_values: Final = attrgetter(*_COLUMNS)
# How a column's values are spelled in JSON, where they are no JSON themselves.
_SPELLED: Final[tuple[tuple[str, Callable[[Any], str]], ...]] = tuple(
    (json_name(column.name), format_time if column.array == "timestamptz" else str)
    for column in columns(Node)
    if column.array in ("uuid", "timestamptz")
)


def node_columns(node: Node) -> dict[str, Any]:
    """All columns of a node under their names in JSON."""
    members = dict(zip(NODE_NAMES, _values(node), strict=True))
    for name, spell in _SPELLED:
        value = members[name]
        if value is not None:
            members[name] = spell(value)
    return members


def node_of(members: Mapping[str, Any]) -> Node:
    """A node of its members, as ``node_columns`` names them; a column that is not among them has its default. Raises ValueError and TypeError."""
    read: dict[str, Callable[[str], Any]] = {"uuid": uuid.UUID, "timestamptz": dt.datetime.fromisoformat}
    facts = {}
    for column in columns(Node):
        if json_name(column.name) not in members:
            continue
        value = members[json_name(column.name)]
        convert = read.get(column.array)
        facts[column.name] = value if value is None or convert is None else convert(value)
    return Node(**facts)


def node_row(node: Node, vector: str | None) -> states.Row:
    """A node as the format names it: its text by its hash; ``vector``: SHA-256 of the one that its caller gave last."""
    return _row(node_columns(node), vector)


def _row(members: dict[str, Any], vector: str | None) -> states.Row:
    """The same of its columns, which are not there afterwards."""
    members["contentSha256"] = states.content_sha256(members.pop("content"))
    members["vector"] = vector
    return members


def node_state(node: Node, vector: str | None) -> states.Row:
    """What a new entry's ``state`` commits to."""
    return state_of(node_columns(node), vector)


def state_of(members: dict[str, Any], vector: str | None) -> states.Row:
    """The same of its columns, which are not there afterwards."""
    return states.node_members(VERSION, _row(members, vector))


def artifact_row(artifact: Artifact) -> states.Row:
    """An artifact as the format names it. Its hold is its node's, and whom it belongs to says the entry itself."""
    return {
        "id": str(artifact.id),
        "tenant": artifact.tenant,
        "name": artifact.name,
        "url": artifact.url,
        "objectKey": artifact.object_key,
        "versionId": artifact.version_id,
        "sha256": artifact.sha256,
        "sizeBytes": artifact.size_bytes,
        "contentType": artifact.content_type,
        "manifestSignatureId": artifact.manifest_signature_id,
        "metadata": artifact.metadata,
        "createdBy": str(artifact.created_by),
        "createdAt": format_time(artifact.created_at),
        "retainUntil": format_time_or_none(artifact.retain_until),
        "fault": artifact.fault,
    }


def artifact_state(artifact: Artifact) -> states.Row:
    return states.artifact_members(artifact_row(artifact))


def given_by(rows: Iterable[VectorRow]) -> str | None:
    """SHA-256 of the vector that a node's caller gave last, of the node's rows in the outbox."""
    for row in rows:
        if row.source == "caller" and row.vector is not None:
            return row.sha256 or hashlib.sha256(row.vector).hexdigest()
    return None


def evidence(payload: dict[str, Any] | bytes, state: dict[str, Any] | None) -> Evidence:
    """The bytes and commitments of an event (audit-format.md, ``payload`` and ``state``), under a salt of its own."""
    salt = os.urandom(SALT_BYTES)
    data = payload if isinstance(payload, bytes) else canonical.dumps(payload, _encode)
    return Evidence(
        salt=salt,
        payload=data,
        commitment=payload_commitment(salt, data),
        state=None if state is None else state_hash(salt, canonical.dumps(state, _encode)),
    )


def is_state(members: Mapping[str, Any], v: int, salt: bytes, state: str) -> bool:
    """Whether these members are what ``state`` of an entry of version ``v`` commits to."""
    if len(salt) != SALT_BYTES:
        return False
    try:
        # Most rows hold nothing that a plain encoder spells otherwise than RFC 8785. Other bytes cannot have the same hash.
        if state_hash(salt, _encode(members), v) == state:
            return True
        return state_hash(salt, canonical.dumps(members), v) == state
    except (MemoryLayerError, ValueError, RecursionError):  # a row that no entry can commit to
        return False
