"""What a write does to the rows it meets: pure functions, decided under the log lock.

``decide`` turns (action, rows as they are) into an Effect: the rows as they will be, the audit event, the answer. Nothing here
does I/O, so a batch may be decided again after a retry.
"""

from __future__ import annotations

import datetime as dt
import uuid
from dataclasses import replace
from typing import Any, Literal

from memory_layer import canonical
from memory_layer.audit.states import merge_patch
from memory_layer.audit.trust_root import activation_payload, retirement_payload, trusted_key
from memory_layer.errors import (
    Conflict,
    Forbidden,
    LegalHold,
    NotFound,
    PreconditionFailed,
    Problem,
    ValidationError,
)
from memory_layer.model import (
    Caller,
    Embedding,
    Freeze,
    Node,
    format_time,
    format_time_or_none,
)
from memory_layer.service import alias, decide_artifacts, outbox, principals
from memory_layer.service.changes import (
    ActivateKey,
    AddArtifact,
    AdoptPrincipals,
    Change,
    CreateNode,
    CreateNodes,
    DeleteNode,
    Effect,
    EndGeneration,
    ExpireNode,
    ExtendRetention,
    Introduce,
    JudgeArtifact,
    OpenGeneration,
    PatchNode,
    Record,
    ResolveRow,
    RetireKey,
    SetFreeze,
    SetHold,
    SettleJob,
    SwitchGeneration,
    Unset,
)
from memory_layer.service.decide_jobs import decide_job
from memory_layer.service.evidence import evidence, node_state
from memory_layer.stores.log_writer import Known, Rows

MAX_METADATA = 2 * 1024 * 1024  # bytes, as one request may bring


def decide(change: Change, known: Known, now: dt.datetime, seq: int, frozen: Freeze | None = None) -> Effect:
    """The effect of a change on the rows as they are; ``seq`` is its entry's, ``frozen`` what refused others before it. Raises the
    caller's error; then nothing of it is written. A bulk request is decided node by node, by ``decide_create``, and what puts a row
    right by ``decide_tampered``."""
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
            at = action.artifact.memory_node_id
            node = None if at is None else _live(change.caller, at, known, None, now)
            return decide_artifacts.attach(action.artifact, node, known, now, put_held=action.put_held)
        case ExtendRetention() | JudgeArtifact() as action:
            return decide_artifacts.decide(action, change.caller.tenant, known, now)
        case Record() | AdoptPrincipals() as action:
            return _recorded(action, known)
        case ActivateKey() as action:
            key = trusted_key(action.algorithm, action.public_key, "seal", seq + 1)
            return Effect("audit.key.activated", {}, activation_payload(key), new_key=action)
        case RetireKey() as action:
            return Effect("audit.key.retired", {}, retirement_payload(action.key_id, action.to_seq))
        case OpenGeneration() | SwitchGeneration() | EndGeneration() as action:
            return alias.decide(action, change.caller.tenant, known)
        case SetFreeze() as action:
            return _freeze(action, frozen, now)
        case CreateNodes() | Introduce() | ResolveRow():
            raise TypeError(
                "a bulk request is decided node by node, a row is resolved by decide_tampered, and callers are introduced before"
            )


def _recorded(action: Record | AdoptPrincipals, known: Known) -> Effect:
    """An entry that changes no row of a tenant."""
    if isinstance(action, AdoptPrincipals):
        return principals.adopt(known)
    return Effect(action.event_type, {}, action.payload, denied=action.denied)


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
    if effect.new_principal is not None:
        who = effect.new_principal
        known.principals[(who.tenant, who.service)] = who
        known.tenants.add(who.tenant)
    if effect.new_tenant is not None:
        rows.tenants.append(effect.new_tenant)
    if effect.changed_namespace is not None:
        rows.changed_namespaces.append(effect.changed_namespace)
        known.namespaces[(effect.changed_namespace.tenant, effect.changed_namespace.name)] = effect.changed_namespace
    if effect.freeze is not None:
        rows.freeze = effect.freeze
    if effect.changed_node is not None:
        rows.changed_nodes.append(effect.changed_node)
    rows.vectors.extend(effect.vectors)
    if effect.job is not None:
        rows.jobs.append(effect.job)
    _apply_files(effect, rows)
    if effect.removed is not None:
        rows.removed.append(effect.removed)
    for more in effect.also:
        apply(more, rows, known)


def _apply_files(effect: Effect, rows: Rows) -> None:
    if effect.new_artifact is not None:
        rows.artifacts.append(effect.new_artifact)
    if effect.changed_artifact is not None:
        rows.changed_artifacts.append(effect.changed_artifact)
    if effect.put_artifact is not None:
        rows.put_artifacts.append(effect.put_artifact)
    node = effect.changed_node or effect.new_node
    if effect.held is not None and node is not None:
        rows.holds.append((node.tenant, *effect.held))


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
    vector = outbox.created(node, action.embedding, action.space, known, effect)
    effect.evidence = action.evidence or evidence(*_told_of(node, action.embedding))
    effect.answer = {
        "memoryNodeId": str(node.id),
        "version": 1,
        "embeddingJobId": None if vector is None else str(vector.id),
    }
    effect.also = [decide_artifacts.attach(artifact, node, known, now) for artifact in action.artifacts]
    return effect


def foresee(action: CreateNode, tenant: str) -> None:
    """Work out the evidence of a creation before it waits for the log lock, where the batch's time is no part of it."""
    if action.ttl_seconds is None:
        action.evidence = evidence(*_told_of(_created(action, tenant, _ANY_TIME), action.embedding))


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
    return payload, node_state(node, None if embedding is None else embedding.sha256)


def _patch(caller: Caller, action: PatchNode, known: Known, now: dt.datetime) -> Effect:
    old = _live(caller, action.id, known, action.expected_version, now)
    _demand_unheld(old, action, now)
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

    vector = outbox.changed(node, old, embedding, action.space, known, effect)
    effect.state = node_state(node, outbox.given(node, known, effect))
    effect.answer = {
        "memoryNodeId": str(node.id),
        "version": node.version,
        "embeddingJobId": None if vector is None else str(vector.id),
    }
    return effect


def _demand_unheld(old: Node, action: PatchNode, now: dt.datetime) -> None:
    """A hold keeps what a node says as it is; raises LegalHold. It may still be kept longer than it was to be."""
    if not old.legal_hold:
        return
    members = {
        "content": action.content,
        "metadata": action.metadata,
        "piiFlags": action.pii_flags,
        "embedding": action.embedding,
    }
    named = [name for name, value in members.items() if not isinstance(value, Unset)]
    if not isinstance(action.ttl_seconds, Unset):
        expires = _expiry(action.ttl_seconds, now)
        if expires is not None and (old.expires_at is None or expires < old.expires_at):
            named.append("ttlSeconds (an earlier end)")
    if named:
        raise LegalHold(
            f"Node {old.id} is under legal hold{_why(old)}: its {', '.join(named)} cannot be changed until the hold is released. "
            "A later end, or none (ttlSeconds null), can be set."
        )


def _why(held: Node) -> str:
    return f" ({held.legal_hold_reason})" if held.legal_hold_reason else ""


def _delete(caller: Caller, action: DeleteNode, known: Known, now: dt.datetime) -> Effect:
    # Without a clock: what has expired but is not purged can be deleted, which frees its embeddingId.
    old = _live(caller, action.id, known, action.expected_version, None)
    if old.legal_hold:
        raise LegalHold(
            f"Node {old.id} is under legal hold{_why(old)}: it cannot be deleted until the hold is released."
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
    outbox.gone(node, known, effect)
    effect.state = node_state(node, outbox.given(node, known, effect))
    effect.answer = {"memoryNodeId": str(node.id), "version": node.version}
    return effect


def _hold(caller: Caller, action: SetHold, known: Known, now: dt.datetime) -> Effect:
    # What has expired, or was deleted, can still be put under hold until it is purged: deletion is what a hold is often set over.
    old = known.nodes.get((caller.tenant, action.id))
    if old is None:
        raise NotFound(f"There is no node {action.id}.")
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
        held=(node.id, node.legal_hold),
    )
    outbox.followed(node, known, effect)
    effect.state = node_state(node, outbox.given(node, known, effect))
    return effect


def _freeze(action: SetFreeze, frozen: Freeze | None, now: dt.datetime) -> Effect:
    """Saying it again changes reason and end, not since when; lifting what is not there is NotFound."""
    if action.reason is None:
        if frozen is None:
            raise NotFound("Writes are not frozen.")
        facts = freeze_facts(frozen)
        return Effect("ops.writes-resumed.succeeded", facts, facts, freeze=(None,))
    until = None if action.seconds is None else now + dt.timedelta(seconds=action.seconds)
    freeze = Freeze(action.reason, now if frozen is None else frozen.since, until)
    facts = freeze_facts(freeze)
    return Effect("ops.writes-frozen.succeeded", facts, facts, freeze=(freeze,))


def freeze_facts(freeze: Freeze) -> dict[str, Any]:
    """A freeze as the log and every door tell of it."""
    return {
        "reason": freeze.reason,
        "since": format_time(freeze.since),
        "until": format_time_or_none(freeze.until),
    }


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
