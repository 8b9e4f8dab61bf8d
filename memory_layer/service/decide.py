"""What a write does to the rows it meets: pure functions, decided under the log lock.

``decide`` turns (action, rows as they are) into an Effect: the rows as they will be, the audit event, the answer. Nothing here
does I/O, so a batch may be decided again after a retry.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import os
import uuid
from dataclasses import replace
from typing import Any, Literal

from memory_layer import canonical
from memory_layer.audit.entry import SALT_BYTES, payload_commitment, state_hash
from memory_layer.audit.trust_root import activation_payload, retirement_payload, trusted_key
from memory_layer.errors import (
    Conflict,
    DimensionMismatch,
    Forbidden,
    LegalHold,
    NotFound,
    PreconditionFailed,
    Problem,
    ValidationError,
)
from memory_layer.model import (
    Artifact,
    Caller,
    Embedding,
    Namespace,
    Node,
    VectorRow,
    VectorStatus,
    format_time,
    format_time_or_none,
    uuid7,
)
from memory_layer.service.changes import (
    ActivateKey,
    AddArtifact,
    Change,
    CreateNode,
    CreateNodes,
    DeleteNode,
    Effect,
    Evidence,
    ExpireNode,
    PatchNode,
    Record,
    RetireKey,
    SetHold,
    SettleJob,
    Space,
    Unset,
)
from memory_layer.service.decide_jobs import decide_job
from memory_layer.stores.log_writer import Known, Rows

MAX_METADATA = 2 * 1024 * 1024  # bytes, as one request may bring

# A vector on its way out of the index, or out of it: nothing but a new one brings the node back in.
_LEAVING = (VectorStatus.DELETING, VectorStatus.DELETED)


def decide(change: Change, known: Known, now: dt.datetime, seq: int) -> Effect:
    """The effect of a change on the rows as they are; ``seq`` is its entry's. Raises the caller's error; then nothing of it is
    written. A bulk request is decided node by node, by ``decide_create``."""
    match change.action:
        case CreateNode() as action:
            return decide_create(action, change.caller, known, now)
        case PatchNode() as action:
            return _patch(change.caller, action, known, now)
        case DeleteNode() as action:
            return _delete(change.caller, action, known, now)
        case ExpireNode() as action:
            return _expire(change.caller, action, known, now)
        case SetHold() as action:
            return _hold(change.caller, action, known, now)
        case SettleJob() as action:
            return decide_job(action, change.caller, known)
        case AddArtifact() as action:
            return _artifact(change.caller, action, known, now)
        case Record() as action:
            return Effect(action.event_type, {}, action.payload, denied=action.denied)
        case ActivateKey() as action:
            key = trusted_key(action.algorithm, action.public_key, "seal", seq + 1)
            return Effect("audit.key.activated", {}, activation_payload(key), new_key=action)
        case RetireKey() as action:
            return Effect("audit.key.retired", {}, retirement_payload(action.key_id, action.to_seq))
        case CreateNodes():
            raise TypeError("a bulk request is decided node by node")


def apply(effect: Effect, rows: Rows, known: Known) -> None:
    """Put an effect among the batch's rows, and where the changes after it in the batch will see it."""
    if effect.namespace is not None:
        rows.namespaces.append(effect.namespace)
        known.namespaces[(effect.namespace.tenant, effect.namespace.name)] = effect.namespace
    if effect.new_node is not None:
        rows.new_nodes.append(effect.new_node)
        if effect.new_node.embedding_id is not None:
            known.embedding_ids[(effect.new_node.tenant, effect.new_node.embedding_id)] = effect.new_node.id
    if effect.new_key is not None:
        rows.key = effect.new_key
    if effect.changed_node is not None:
        rows.changed_nodes.append(effect.changed_node)
    rows.vectors.extend(effect.vectors)
    if effect.job is not None:
        rows.jobs.append(effect.job)
    if effect.new_artifact is not None:
        rows.artifacts.append(effect.new_artifact)


def state_of(node: Node, vector: VectorRow | None) -> dict[str, Any]:
    """The row as the audit log commits to it (audit-format.md, ``state``)."""
    return {
        "id": str(node.id),
        "tenant": node.tenant,
        "owner": node.owner,
        "namespace": node.namespace,
        "version": node.version,
        "contentSha256": None if node.content is None else hashlib.sha256(node.content.encode()).hexdigest(),
        "metadata": node.metadata,
        "piiFlags": node.pii_flags,
        "legalHold": node.legal_hold,
        "ttlSeconds": node.ttl_seconds,
        "expiresAt": format_time_or_none(node.expires_at),
        "deletedAt": format_time_or_none(node.deleted_at),
        "vector": _given_vector(vector),
    }


def merge_patch(target: Any, patch: Any) -> Any:
    """RFC 7396: objects merge key by key, null removes, everything else replaces."""
    if not isinstance(patch, dict):
        return patch
    merged = dict(target) if isinstance(target, dict) else {}
    for key, value in patch.items():
        if value is None:
            merged.pop(key, None)
        else:
            merged[key] = merge_patch(merged.get(key), value)
    return merged


def decide_create(action: CreateNode, caller: Caller, known: Known, now: dt.datetime) -> Effect:
    """The effect of creating a node."""
    tenant = caller.tenant
    if action.embedding_id is not None and (tenant, action.embedding_id) in known.embedding_ids:
        holder = known.embedding_ids[(tenant, action.embedding_id)]
        raise Conflict(
            f"embeddingId is taken by node {holder} (which may have expired). PATCH or DELETE it, or choose another embeddingId."
        )
    node = _created(action, tenant, now)
    effect = Effect("memory.node.created", {}, b"", node=node.id, version=1, new_node=node)
    vector = _index(node, action.embedding, action.space, known, effect, uuid7())
    if vector is not None:
        effect.vectors.append(vector)
    effect.evidence = action.evidence or evidence(*_told_of(node, action.embedding))
    effect.answer = {
        "memoryNodeId": str(node.id),
        "version": 1,
        "embeddingJobId": None if vector is None else str(vector.id),
    }
    return effect


def foresee(action: CreateNode, tenant: str) -> None:
    """Work out the evidence of a creation before it waits for the log lock, where the batch's time is no part of it."""
    if action.ttl_seconds is None:
        action.evidence = evidence(*_told_of(_created(action, tenant, _ANY_TIME), action.embedding))


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


_ANY_TIME = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)


def _created(action: CreateNode, tenant: str, now: dt.datetime) -> Node:
    return Node(
        tenant=tenant,
        id=action.id,
        owner=action.owner,
        namespace=action.namespace,
        embedding_id=action.embedding_id,
        content=action.content,
        metadata=action.metadata,
        pii_flags=action.pii_flags,
        subjects=action.subjects or [action.owner],
        legal_hold=action.legal_hold,
        legal_hold_reason=None,
        ttl_seconds=action.ttl_seconds,
        expires_at=_expiry(action.ttl_seconds, now),
        occurred_at=action.occurred_at,
        version=1,
        created_at=now,
        updated_at=now,
    )


def _told_of(node: Node, embedding: Embedding | None) -> tuple[dict[str, Any], dict[str, Any]]:
    """(payload, state) of a creation."""
    payload = {
        "owner": node.owner,
        "namespace": node.namespace,
        "embeddingId": node.embedding_id,
        "content": node.content,
        "metadata": node.metadata,
        "piiFlags": node.pii_flags,
        "subjects": node.subjects,
        "legalHold": node.legal_hold,
        "ttlSeconds": node.ttl_seconds,
        "expiresAt": format_time_or_none(node.expires_at),
        "occurredAt": format_time_or_none(node.occurred_at),
        "embedding": _embedding_facts(embedding),
    }
    state = state_of(node, None)
    state["vector"] = None if embedding is None else embedding.sha256
    return payload, state


def _patch(caller: Caller, action: PatchNode, known: Known, now: dt.datetime) -> Effect:
    old = _live(caller, action.id, known, action.expected_version, now)
    node = replace(old, version=old.version + 1, updated_at=now)
    payload: dict[str, Any] = {}
    if not isinstance(action.metadata, Unset):
        node.metadata = merge_patch(old.metadata, action.metadata)
        if len(canonical.dumps(node.metadata)) > MAX_METADATA:
            raise ValidationError(
                f"The metadata of node {old.id} would be larger than {MAX_METADATA} bytes. Remove keys, or use an artifact.",
                details=[Problem("metadata", "too large after the merge")],
            )
        # The patch, not its result: many small patches of large metadata stay small evidence.
        payload["metadataPatch"] = action.metadata
    if not isinstance(action.content, Unset):
        node.content = action.content
        payload["content"] = node.content
    if not isinstance(action.pii_flags, Unset):
        if old.pii_flags.get("containsPii") and "read:pii" not in caller.scopes:
            raise Forbidden(
                "The node's piiFlags hide something from this token (scope read:pii), so it may not change them."
            )
        node.pii_flags = action.pii_flags
        payload["piiFlags"] = node.pii_flags
    if not isinstance(action.ttl_seconds, Unset):
        node.ttl_seconds = action.ttl_seconds
        node.expires_at = _expiry(action.ttl_seconds, now)
        payload |= {"ttlSeconds": node.ttl_seconds, "expiresAt": format_time_or_none(node.expires_at)}
    embedding = None if isinstance(action.embedding, Unset) else action.embedding
    if embedding is not None:
        payload["embedding"] = _embedding_facts(embedding)
    effect = Effect("memory.node.updated", {}, payload, node=node.id, version=node.version, changed_node=node)

    before = _active_vector(node, known)
    if (
        before is None
        or before.status in _LEAVING
        or embedding is not None
        or (node.content != old.content and before.source != "caller")
    ):
        vector = _index(node, embedding, action.space, known, effect, before.id if before else uuid7())
        if vector is None and before is not None and before.status not in _LEAVING:
            vector = replace(before, version=node.version, status=VectorStatus.DELETING)
    else:
        # The vector stays, but filters may be evaluated beside it: its fields must follow the row.
        # New words beside a vector of the caller's own: what the index says of the old ones no longer holds.
        since = before.since if node.content == old.content else node.version
        vector = replace(before, version=node.version, status=VectorStatus.PENDING, since=since)
    if vector is not None:
        effect.vectors.append(vector)
    effect.state = state_of(node, vector)
    effect.answer = {
        "memoryNodeId": str(node.id),
        "version": node.version,
        "embeddingJobId": None if vector is None else str(vector.id),
    }
    return effect


def _delete(caller: Caller, action: DeleteNode, known: Known, now: dt.datetime) -> Effect:
    # Without a clock: what has expired but is not purged can be deleted, which frees its embeddingId.
    old = _live(caller, action.id, known, action.expected_version, None)
    if old.legal_hold:
        raise LegalHold(
            f"Node {old.id} is under legal hold{f' ({old.legal_hold_reason})' if old.legal_hold_reason else ''}: "
            "it cannot be deleted until the hold is released."
        )
    return _gone(old, known, now, {})


def _expire(caller: Caller, action: ExpireNode, known: Known, now: dt.datetime) -> Effect:
    old = _live(caller, action.id, known, None, None)
    if old.legal_hold or old.expires_at is None or old.expires_at > now:
        raise NotFound(f"Node {old.id} is held or has not expired.")
    return _gone(old, known, now, {"reason": "expired", "expiresAt": format_time(old.expires_at)})


def _gone(old: Node, known: Known, now: dt.datetime, why: dict[str, Any]) -> Effect:
    """A node that is deleted, and its vectors on their way out of the index."""
    node = replace(old, version=old.version + 1, updated_at=now, deleted_at=now)
    payload = {**why, "deletedAt": format_time(now)}
    effect = Effect("memory.node.deleted", {}, payload, node=node.id, version=node.version)
    effect.changed_node = node
    rows = known.vectors.get((node.tenant, node.id), [])
    effect.vectors = [replace(v, version=node.version, status=VectorStatus.DELETING) for v in rows]
    effect.state = state_of(node, _active_vector(node, known))
    effect.answer = {"memoryNodeId": str(node.id), "version": node.version}
    return effect


def _hold(caller: Caller, action: SetHold, known: Known, now: dt.datetime) -> Effect:
    # Without a clock: what has expired but is not purged can still be put under hold.
    old = _live(caller, action.id, known, None, None)
    reason = action.reason if action.legal_hold else None
    node = replace(old, version=old.version + 1, updated_at=now, legal_hold=action.legal_hold, legal_hold_reason=reason)
    kind: Literal["set", "released"] = "set" if action.legal_hold else "released"
    effect = Effect(
        f"memory.legal_hold.{kind}",
        {"memoryNodeId": str(node.id), "version": node.version},
        {"legalHold": action.legal_hold, "reason": action.reason, "caseId": action.case_id},
        node=node.id,
        version=node.version,
        changed_node=node,
    )
    before = _active_vector(node, known)
    if before is not None and before.status not in _LEAVING:
        before = replace(before, version=node.version, status=VectorStatus.PENDING)
        effect.vectors.append(before)
    effect.state = state_of(node, before)
    return effect


def _artifact(caller: Caller, action: AddArtifact, known: Known, now: dt.datetime) -> Effect:
    artifact = replace(action.artifact, created_at=now)
    if artifact.memory_node_id is not None:
        _live(caller, artifact.memory_node_id, known, None, now)
    effect = Effect(
        "memory.artifact.created",
        artifact_shape(artifact),
        artifact_shape(artifact),
        node=artifact.memory_node_id,
        artifact=artifact.id,
        new_artifact=artifact,
    )
    return effect


def artifact_shape(artifact: Artifact) -> dict[str, Any]:
    """The artifact as the API shows it and as the log commits to it."""
    return {
        "artifactId": str(artifact.id),
        "memoryNodeId": None if artifact.memory_node_id is None else str(artifact.memory_node_id),
        "name": artifact.name,
        "url": artifact.url,
        "versionId": artifact.version_id,
        "sha256": artifact.sha256,
        "sizeBytes": artifact.size_bytes,
        "contentType": artifact.content_type,
        "manifestSignatureId": artifact.manifest_signature_id,
        "metadata": artifact.metadata,
        "createdBy": str(artifact.created_by),
        "createdAt": format_time(artifact.created_at),
    }


def _index(
    node: Node, embedding: Embedding | None, space: Space, known: Known, effect: Effect, row_id: uuid.UUID
) -> VectorRow | None:
    """The outbox row that brings a node into the index; None when there is nothing to index."""
    if embedding is None and not node.content:
        return None
    active = known.namespaces.get((node.tenant, node.namespace))
    model = embedding.model if embedding else space.model
    dimension = embedding.dimension if embedding else space.dimension
    if model is not None and dimension is not None:
        if active is None:
            active = Namespace(node.tenant, node.namespace, node.namespace, model, dimension, space.provider)
            effect.namespace = active
        elif (active.model, active.dimension) != (model, dimension):
            whose = "the vector" if embedding else "this server's embedder"
            raise DimensionMismatch(
                f"Namespace {node.namespace} holds {active.dimension}-dimensional vectors of {active.model}; {whose} has "
                f"{dimension} of {model}. Use that model, or another namespace."
            )
    return VectorRow(
        tenant=node.tenant,
        id=row_id,
        memory_node_id=node.id,
        namespace=active.index_namespace if active else node.namespace,
        provider=space.provider,
        model=model,
        dimension=dimension,
        status=VectorStatus.PENDING,
        version=node.version,
        source="caller" if embedding else "embedder" if model else "none",
        since=node.version,
        vector=embedding.data if embedding else None,
        encoded=embedding.base64 if embedding else None,
    )


def _live(caller: Caller, node_id: uuid.UUID, known: Known, expected: int | None, now: dt.datetime | None) -> Node:
    """The node if it is there to be changed; ``now``: unless it has expired by then."""
    node = known.nodes.get((caller.tenant, node_id))
    if node is None or node.deleted_at is not None:
        raise NotFound(f"There is no node {node_id}.")
    if now is not None and node.expires_at is not None and node.expires_at <= now and not node.legal_hold:
        raise NotFound(f"There is no node {node_id}.")
    if expected is not None and node.version != expected:
        raise PreconditionFailed(
            f"Node {node_id} has version {node.version}, not {expected}. Read it again and repeat the change on that."
        )
    return node


def _active_vector(node: Node, known: Known) -> VectorRow | None:
    rows = known.vectors.get((node.tenant, node.id), [])
    return max(rows, key=lambda row: row.version, default=None)


def _given_vector(vector: VectorRow | None) -> str | None:
    if vector is None or vector.source != "caller" or vector.vector is None:
        return None
    return hashlib.sha256(vector.vector).hexdigest()


def _embedding_facts(embedding: Embedding | None) -> dict[str, Any] | None:
    if embedding is None:
        return None
    return {
        "model": embedding.model,
        "dimension": embedding.dimension,
        "sha256": embedding.sha256,
    }


def _expiry(ttl_seconds: int | None, now: dt.datetime) -> dt.datetime | None:
    return None if ttl_seconds is None else now + dt.timedelta(seconds=ttl_seconds)
