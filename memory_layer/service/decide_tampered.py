"""What an operator's act does to a row that is not what the log says: put back, taken as it is, or removed. Pure, under the log lock.

Where ``decide.py`` builds upon a row, this does not believe it: what was wrong with the row is an argument, and what the log says of it
comes with the action.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import uuid
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

from memory_layer.audit.states import Row
from memory_layer.errors import Conflict, NotFound, PolicyRefused
from memory_layer.model import Artifact, Caller, Embedding, Node, format_time_or_none
from memory_layer.service import outbox
from memory_layer.service.changes import Effect, ResolveRow
from memory_layer.service.evidence import artifact_row, artifact_state, node_row, node_state
from memory_layer.stores.log_writer import Known

MAX_VERSION: Final = 2**31 - 1


def decide(action: ResolveRow, caller: Caller, known: Known, now: dt.datetime, *, tampered: bool) -> Effect:
    """The effect of putting a row right, or of accepting it. Raises Conflict where there is nothing to put right or an entry came
    meanwhile, and PolicyRefused where acceptance would lift a hold, shorten a retention or undo a purge."""
    key = (caller.tenant, action.id)
    entries = known.node_entries if action.kind == "node" else known.artifact_entries
    last = entries[key]["seq"] if key in entries else None
    if last != action.said.seq:
        raise Conflict(
            f"{action.kind.capitalize()} {action.id} was written meanwhile (entry {last}). Look at it again."
        )
    unexplained = action.verb == "accept" and action.said.unexplained is not None
    if not (tampered or unexplained or (action.kind == "artifact" and _link_differs(action, caller.tenant, known))):
        raise Conflict(
            f"{action.kind.capitalize()} {action.id} is what its last entry says; there is nothing to {action.verb}."
        )
    if action.kind == "node":
        return _node(action, caller.tenant, known, now)
    return _artifact(action, caller.tenant, known, now)


# --- nodes


def _node(action: ResolveRow, tenant: str, known: Known, now: dt.datetime) -> Effect:
    found, said = known.nodes.get((tenant, action.id)), action.said
    if found is None and (said.seq is None or said.gone):
        raise NotFound(f"There is no node {action.id}.")
    if action.verb == "accept":
        return _accept_node(action, tenant, found, known, now)
    if said.seq is None or said.gone:
        assert found is not None  # noqa: S101 - narrows the type
        version = _next(found.version if said.version is None else said.version)
        return _purged(action, tenant, version, {"removed": {"seq": said.seq}})
    if said.row is None:
        raise _unknown(action)
    return _restore_node(action, said.row, tenant, found, known, now)


def _restore_node(
    action: ResolveRow, row: Row, tenant: str, found: Node | None, known: Known, now: dt.datetime
) -> Effect:
    assert action.said.version is not None  # noqa: S101 - narrows the type
    node = replace(node_of(row, tenant), version=_next(action.said.version), updated_at=now)
    _demand_free(node, known)
    payload: dict[str, Any] = {"restored": {"seq": action.said.seq}, "reason": action.reason}
    effect = _changed(node, found, payload)
    vector = _given(action.said.embedding, tenant, action.id, known)
    outbox.resolved(node, vector, known, effect)
    given = outbox.given(node, known, effect)
    if given != row["vector"]:
        payload["restored"]["lost"] = ["vector"]
    effect.state = node_state(node, given)
    effect.answer = _answer(effect, node, lost=["vector"] if given != row["vector"] else [])
    return effect


def _accept_node(action: ResolveRow, tenant: str, found: Node | None, known: Known, now: dt.datetime) -> Effect:
    said = action.said
    if said.gone:
        raise PolicyRefused(
            f"Node {action.id} was purged by entry {said.seq}. A purge is final: `memoryctl tamper restore` removes the row."
        )
    deleted = said.row is not None and said.row["deletedAt"] is not None  # by the log, before it was held
    if said.held is not False and (found is None or not found.legal_hold or (found.deleted_at and not deleted)):
        why = (
            "is under legal hold" if said.held else "may be under legal hold: the payload that would say so is missing"
        )
        raise PolicyRefused(
            f"The log says that node {action.id} {why}, and the row as it is found lifts it. Restore it; a hold is released by those "
            "who may, never by acceptance."
        )
    if found is None:
        assert said.version is not None  # noqa: S101 - narrows the type
        return _purged(action, tenant, _next(said.version), {"gone": True})
    version = _next(max(found.version, said.version or 0), said.version or 0)
    node = replace(found, version=version, updated_at=now)
    vector = _row_vector(tenant, action.id, known)
    payload: dict[str, Any] = {"reason": action.reason}
    effect = _changed(node, found, payload)
    outbox.resolved(node, vector, known, effect)
    given = outbox.given(node, known, effect)
    facts = None
    if vector is not None and given is not None:
        facts = {"model": vector.model, "dimension": vector.dimension, "sha256": vector.sha256}
    row = node_row(node, given) | {"content": node.content}
    members = {name: value for name, value in row.items() if name not in _BY_ENTRY}
    payload |= {"accepted": members, "embedding": facts}
    if said.seq is None:
        effect.event_type = "memory.node.created"
        names = ("owner", "namespace", "embeddingId", "content", "metadata", "piiFlags", "subjects", "legalHold", "ttlSeconds",
                 "expiresAt", "occurredAt")  # fmt: skip
        payload |= {name: row[name] for name in names}
    effect.state = node_state(node, given)
    effect.answer = _answer(effect, node, lost=[])
    return effect


# What the entry itself says, and what is worked out from the text.
_BY_ENTRY: Final = frozenset({"id", "tenant", "version", "updatedAt", "contentSha256"})


def _changed(node: Node, found: Node | None, payload: dict[str, Any]) -> Effect:
    effect = Effect(
        "memory.node.updated", {}, payload, node=node.id, version=node.version, held=(node.id, node.legal_hold)
    )
    if found is None:
        effect.new_node = node
    else:
        effect.changed_node = node
    return effect


def _purged(action: ResolveRow, tenant: str, version: int, payload: dict[str, Any]) -> Effect:
    effect = Effect("memory.node.purged", {}, payload | {"reason": action.reason}, node=action.id, version=version)
    effect.removed = ("node", tenant, action.id)
    effect.answer = {"memoryNodeId": str(action.id), "version": version, "event": effect.event_type, "lost": []}
    return effect


def _demand_free(node: Node, known: Known) -> None:
    if node.embedding_id is None or node.deleted_at is not None:
        return
    holder = known.embedding_ids.get((node.tenant, node.embedding_id))
    if holder is not None and holder != node.id:
        raise Conflict(
            f"embeddingId of node {node.id} is taken by node {holder} by now. Change or delete that one first."
        )


def _answer(effect: Effect, node: Node, lost: list[str]) -> dict[str, Any]:
    return {"memoryNodeId": str(node.id), "version": node.version, "event": effect.event_type, "lost": lost}


def _next(version: int, otherwise: int = 0) -> int:
    """The version after one; after ``otherwise`` where there is none, for anybody may have written into the column."""
    return version + 1 if version < MAX_VERSION else otherwise + 1


def _given(facts: Mapping[str, Any] | None, tenant: str, id_: uuid.UUID, known: Known) -> Embedding | None:
    """The vector that the log names, where one of the rows still holds it."""
    if facts is None:
        return None
    for row in known.vectors.get((tenant, id_), ()):
        if row.vector is not None and hashlib.sha256(row.vector).hexdigest() == facts["sha256"]:
            return Embedding(facts["model"], facts["dimension"], row.vector)
    return None


def _row_vector(tenant: str, id_: uuid.UUID, known: Known) -> Embedding | None:
    """The vector that the rows say its caller gave."""
    for row in known.vectors.get((tenant, id_), ()):
        whole = row.vector is not None and row.model is not None and row.dimension is not None
        if whole and row.source == "caller" and len(row.vector or b"") == 4 * (row.dimension or 0):
            assert row.vector is not None  # noqa: S101 - narrows the type
            assert row.model is not None  # noqa: S101
            assert row.dimension is not None  # noqa: S101
            return Embedding(row.model, row.dimension, row.vector)
    return None


def node_of(row: Row, tenant: str) -> Node:
    """A node of its members under the names of the format, with its text."""
    return Node(
        tenant=tenant,
        id=uuid.UUID(row["id"]),
        owner=row["owner"],
        namespace=row["namespace"],
        embedding_id=row["embeddingId"],
        content=row["content"],
        metadata=row["metadata"],
        pii_flags=row["piiFlags"],
        subjects=row["subjects"],
        legal_hold=row["legalHold"],
        legal_hold_reason=row["legalHoldReason"],
        ttl_seconds=row["ttlSeconds"],
        expires_at=_time(row["expiresAt"]),
        occurred_at=_time(row["occurredAt"]),
        version=row["version"],
        created_at=dt.datetime.fromisoformat(row["createdAt"]),
        updated_at=dt.datetime.fromisoformat(row["updatedAt"]),
        deleted_at=_time(row["deletedAt"]),
    )


# --- artifacts


def _artifact(action: ResolveRow, tenant: str, known: Known, now: dt.datetime) -> Effect:
    found, said = known.artifacts.get((tenant, action.id)), action.said
    if found is None and (said.seq is None or said.gone):
        raise NotFound(f"There is no artifact {action.id}.")
    node = None if said.node is None else known.nodes.get((tenant, said.node))
    if action.verb == "accept":
        at = None if found is None or found.memory_node_id is None else known.nodes.get((tenant, found.memory_node_id))
        return _accept_artifact(action, tenant, found, node, at, now)
    if said.seq is None or said.gone:
        return _deleted(action, tenant, {"removed": {"seq": said.seq}})
    if said.row is None:
        raise _unknown(action)
    artifact = artifact_of(said.row, tenant, node)
    return _whole(action, artifact, {"restored": {"seq": said.seq}})


def _accept_artifact(
    action: ResolveRow, tenant: str, found: Artifact | None, node: Node | None, at: Node | None, now: dt.datetime
) -> Effect:
    """``node``: that the log names, ``at``: that the row belongs to."""
    said = action.said
    if said.gone:
        raise PolicyRefused(
            f"Artifact {action.id} was deleted by entry {said.seq}. That is final: `memoryctl tamper restore` removes the row."
        )
    until = None if said.row is None else _time(said.row["retainUntil"])
    kept = until is not None and until > now
    moved = found is None or found.memory_node_id != said.node
    if moved and node is not None and node.legal_hold:
        raise PolicyRefused(
            f"Artifact {action.id} is under the legal hold of node {said.node}, and the row as it is found lifts it. Restore it."
        )
    if kept and (found is None or found.retain_until is None or (until is not None and found.retain_until < until)):
        raise PolicyRefused(
            f"Artifact {action.id} is kept until {format_time_or_none(until)}, and the row as it is found ends that. Restore it."
        )
    if found is None:
        return _deleted(action, tenant, {"gone": True})
    held = at is not None and at.legal_hold
    artifact = replace(found, legal_hold=held, hold_due=True, verified_at=None)
    return _whole(action, artifact, {"accepted": True})


def _whole(action: ResolveRow, artifact: Artifact, act: dict[str, Any]) -> Effect:
    kind = "memory.artifact.created" if action.said.seq is None else "memory.artifact.verified"
    payload = {name: value for name, value in artifact_row(artifact).items() if name not in ("id", "tenant")}
    payload |= {"artifactId": str(artifact.id), "reason": action.reason, **act}
    answer = {"artifactId": str(artifact.id), "event": kind, "lost": []}
    return Effect(
        kind,
        answer,
        payload,
        node=artifact.memory_node_id,
        artifact=artifact.id,
        state=artifact_state(artifact),
        put_artifact=artifact,
    )


def _deleted(action: ResolveRow, tenant: str, act: dict[str, Any]) -> Effect:
    kind = "memory.artifact.deleted"
    effect = Effect(
        kind, {}, act | {"reason": action.reason}, artifact=action.id, removed=("artifact", tenant, action.id)
    )
    effect.answer = {"artifactId": str(action.id), "event": kind, "lost": []}
    return effect


def _link_differs(action: ResolveRow, tenant: str, known: Known) -> bool:
    """Whether an artifact's node or hold is not what it has to be: no state of it holds them."""
    found = known.artifacts.get((tenant, action.id))
    if found is None:
        return False
    node = None if action.said.node is None else known.nodes.get((tenant, action.said.node))
    at = None if node is None else node.id
    return found.memory_node_id != at or found.legal_hold != (node is not None and node.legal_hold)


def artifact_of(row: Row, tenant: str, node: Node | None) -> Artifact:
    """An artifact of its members under the names of the format. Its bytes were not looked at: the next scan does."""
    return Artifact(
        tenant=tenant,
        id=uuid.UUID(row["id"]),
        memory_node_id=None if node is None else node.id,
        name=row["name"],
        url=row["url"],
        object_key=row["objectKey"],
        version_id=row["versionId"],
        sha256=row["sha256"],
        size_bytes=row["sizeBytes"],
        content_type=row["contentType"],
        manifest_signature_id=row["manifestSignatureId"],
        created_by=uuid.UUID(row["createdBy"]),
        metadata=row["metadata"],
        created_at=dt.datetime.fromisoformat(row["createdAt"]),
        legal_hold=node is not None and node.legal_hold,
        hold_due=True,
        retain_until=_time(row["retainUntil"]),
        fault=row["fault"],
    )


def _time(text: str | None) -> dt.datetime | None:
    return None if text is None else dt.datetime.fromisoformat(text)


def _unknown(action: ResolveRow) -> Conflict:
    return Conflict(
        f"The entries of {action.kind} {action.id} do not say any more what the row was: `memoryctl tamper show {action.id}` names what "
        "is missing. It cannot be restored; it can be accepted."
    )
