"""What the log says of a row, worked out from the row: its state in the form of the audit format, and the commitments to it. No I/O."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, Final

import msgspec

from memory_layer import canonical
from memory_layer.audit import states
from memory_layer.audit.entry import SALT_BYTES, VERSION, payload_commitment, state_hash
from memory_layer.errors import MemoryLayerError
from memory_layer.model import Artifact, Node, format_time, format_time_or_none
from memory_layer.service.changes import Evidence

_ENCODER: Final = msgspec.json.Encoder(order="deterministic")


def node_row(node: Node, vector: str | None) -> states.Row:
    """A node as the format names it; ``vector``: SHA-256 of the one that its caller gave last."""
    return {
        "id": str(node.id),
        "tenant": node.tenant,
        "owner": node.owner,
        "namespace": node.namespace,
        "embeddingId": node.embedding_id,
        "version": node.version,
        "contentSha256": states.content_sha256(node.content),
        "metadata": node.metadata,
        "piiFlags": node.pii_flags,
        "subjects": node.subjects,
        "legalHold": node.legal_hold,
        "legalHoldReason": node.legal_hold_reason,
        "ttlSeconds": node.ttl_seconds,
        "expiresAt": format_time_or_none(node.expires_at),
        "occurredAt": format_time_or_none(node.occurred_at),
        "createdAt": format_time(node.created_at),
        "updatedAt": format_time(node.updated_at),
        "deletedAt": format_time_or_none(node.deleted_at),
        "vector": vector,
    }


def node_state(node: Node, vector: str | None) -> states.Row:
    """What a new entry's ``state`` commits to."""
    return states.node_members(VERSION, node_row(node, vector))


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


def evidence(payload: dict[str, Any] | bytes, state: dict[str, Any] | None) -> Evidence:
    """The bytes and commitments of an event (audit-format.md, ``payload`` and ``state``), under a salt of its own."""
    salt = os.urandom(SALT_BYTES)
    data = payload if isinstance(payload, bytes) else canonical.dumps(payload)
    return Evidence(
        salt=salt,
        payload=data,
        commitment=payload_commitment(salt, data),
        state=None if state is None else state_hash(salt, canonical.dumps(state)),
    )


def is_state(members: Mapping[str, Any], v: int, salt: bytes, state: str) -> bool:
    """Whether these members are what ``state`` of an entry of version ``v`` commits to."""
    if len(salt) != SALT_BYTES:
        return False
    try:
        # Most rows hold nothing that a plain encoder spells otherwise than RFC 8785. Other bytes cannot have the same hash.
        if state_hash(salt, _ENCODER.encode(members), v) == state:
            return True
        return state_hash(salt, canonical.dumps(members), v) == state
    except (MemoryLayerError, ValueError, RecursionError):  # a row that no entry can commit to
        return False
