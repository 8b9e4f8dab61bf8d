"""What an operator does about a row that differs from the log: put it back, accept it as it is, or remove it. Pure, under the log lock.

The other actions build upon the row; this one does not trust it: what the log records of the row comes with the action.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Final, Literal

from memory_layer.audit.states import Row
from memory_layer.errors import Conflict, NotFound, PolicyRefused
from memory_layer.model import Artifact, Embedding, Node, format_time_or_none
from memory_layer.service.actions import outbox
from memory_layer.service.actions.nodes import chosen_members
from memory_layer.service.commit.action import Action, Effect, Situation, Touched
from memory_layer.service.evidence import artifact_row, artifact_state, node_columns, node_of, node_row, node_state
from memory_layer.stores.batch_reads import Known, Wants
from memory_layer.stores.batch_rows import ArtifactKey, FileHold, NodeKey

MAX_VERSION: Final = 2**31 - 1


@dataclass(frozen=True, slots=True)
class Recorded:
    """What the sealed entries record of a row (``service/story.py``).

    ``seq``, ``version``: of the last entry, None where there is none. ``row``: as their payloads say, None where they say it no more
    or there is to be no row. ``gone``: the last entry removed it. ``held``: whether the node is under legal hold; None: not known.
    ``embedding``: model, dimension and sha256 of the vector that the caller gave last. ``node``: that an artifact belongs to.
    ``unexplained``: an entry whose state does not follow from the payloads.
    """

    seq: int | None = None
    version: int | None = None
    row: dict[str, Any] | None = None
    gone: bool = False
    held: bool | None = False
    embedding: dict[str, Any] | None = None
    node: uuid.UUID | None = None
    unexplained: int | None = None


@dataclass(frozen=True, slots=True)
class ResolveRow(Action):
    """An operator's act upon a row that is not what the log says: put it back as ``recorded``, or take it as it is found.

    ``recorded`` was read before the log lock, and counts only if no entry came since. Conflict where the row is what the log says, or an
    entry came meanwhile; PolicyRefused where acceptance would lift a hold, shorten a retention or undo a purge.
    """

    freezes: ClassVar[bool] = False

    verb: Literal["restore", "accept"]
    kind: Literal["node", "artifact"]
    id: uuid.UUID
    reason: str
    recorded: Recorded
    nodes: tuple[uuid.UUID, ...] = ()  # that an artifact belongs to, by the log and by the row
    namespaces: tuple[str, ...] = ()  # of a node: the log's and the row's

    def touches(self, tenant: str) -> list[Touched]:
        return [(tenant, self.kind, self.id), *((tenant, "node", node) for node in self.nodes)]

    def resolves(self, tenant: str) -> Touched:
        return tenant, self.kind, self.id

    def reads(self, tenant: str, wants: Wants) -> None:
        (wants.nodes if self.kind == "node" else wants.artifacts).append((tenant, self.id))
        wants.nodes += [(tenant, node) for node in self.nodes]
        wants.namespaces.update((tenant, name) for name in self.namespaces)
        if self.recorded.row is not None and self.recorded.row.get("embeddingId") is not None:
            wants.embedding_ids.append((tenant, self.recorded.row["embeddingId"]))

    def decide(self, at: Situation) -> Effect:
        key, known = (at.tenant, self.id), at.known
        entries = known.node_entries if self.kind == "node" else known.artifact_entries
        last = entries[key]["seq"] if key in entries else None
        if last != self.recorded.seq:
            raise Conflict(
                f"{self.kind.capitalize()} {self.id} was written meanwhile (entry {last}). Look at it again."
            )
        tampered = self.resolves(at.tenant) in at.tampered
        unexplained = self.verb == "accept" and self.recorded.unexplained is not None
        if not (tampered or unexplained or (self.kind == "artifact" and _link_differs(self, at.tenant, known))):
            raise Conflict(
                f"{self.kind.capitalize()} {self.id} is what its last entry says; there is nothing to {self.verb}."
            )
        return (_node if self.kind == "node" else _artifact)(self, at.tenant, known, at.now)


# --- nodes


def _node(action: ResolveRow, tenant: str, known: Known, now: dt.datetime) -> Effect:
    found, recorded = known.nodes.get((tenant, action.id)), action.recorded
    if found is None and (recorded.seq is None or recorded.gone):
        raise NotFound(f"There is no node {action.id}.")
    if action.verb == "accept":
        return _accept_node(action, tenant, found, known, now)
    if recorded.seq is None or recorded.gone:
        assert found is not None  # noqa: S101 - narrows the type
        version = _next(found.version if recorded.version is None else recorded.version)
        return _purged(action, tenant, version, {"removed": {"seq": recorded.seq}})
    if recorded.row is None:
        raise _unknown(action)
    return _restore_node(action, recorded.row, tenant, found, known, now)


def _restore_node(
    action: ResolveRow, row: Row, tenant: str, found: Node | None, known: Known, now: dt.datetime
) -> Effect:
    assert action.recorded.version is not None  # noqa: S101 - narrows the type
    node = replace(node_of(row | {"tenant": tenant}), version=_next(action.recorded.version), updated_at=now)
    _require_free(node, known)
    payload: dict[str, Any] = {"restored": {"seq": action.recorded.seq}, "reason": action.reason}
    effect = _changed(node, found, payload)
    rows = outbox.resolved(node, _given(action.recorded.embedding, tenant, action.id, known), known)
    effect.rows += rows.operations()
    given = outbox.given(node, known, rows)
    if given != row["vector"]:
        payload["restored"]["lost"] = ["vector"]
    effect.state = node_state(node, given)
    effect.answer = _answer(effect, node, lost=["vector"] if given != row["vector"] else [])
    return effect


def _accept_node(action: ResolveRow, tenant: str, found: Node | None, known: Known, now: dt.datetime) -> Effect:
    recorded = action.recorded
    if recorded.gone:
        raise PolicyRefused(
            f"Node {action.id} was purged by entry {recorded.seq}. A purge is final: `memoryctl tamper restore` removes the row."
        )
    deleted = recorded.row is not None and recorded.row["deletedAt"] is not None  # by the log, before it was held
    if recorded.held is not False and (found is None or not found.legal_hold or (found.deleted_at and not deleted)):
        why = (
            "is under legal hold"
            if recorded.held
            else "may be under legal hold: the payload that would say so is missing"
        )
        raise PolicyRefused(
            f"The log says that node {action.id} {why}, and the row as it is found lifts it. Restore it; a hold is released by those "
            "who may, never by acceptance."
        )
    if found is None:
        assert recorded.version is not None  # noqa: S101 - narrows the type
        return _purged(action, tenant, _next(recorded.version), {"gone": True})
    version = _next(max(found.version, recorded.version or 0), recorded.version or 0)
    node = replace(found, version=version, updated_at=now)
    vector = _row_vector(tenant, action.id, known)
    payload: dict[str, Any] = {"reason": action.reason}
    effect = _changed(node, found, payload)
    rows = outbox.resolved(node, vector, known)
    effect.rows += rows.operations()
    given = outbox.given(node, known, rows)
    facts = None
    if vector is not None and given is not None:
        facts = {"model": vector.model, "dimension": vector.dimension, "sha256": vector.sha256}
    row = node_row(node, given) | {"content": node.content}
    members = {name: value for name, value in row.items() if name not in BY_ENTRY}
    payload |= {"accepted": members, "embedding": facts}
    if recorded.seq is None:
        effect.event_type = "memory.node.created"
        payload |= chosen_members(node_columns(node))
    effect.state = node_state(node, given)
    effect.answer = _answer(effect, node, lost=[])
    return effect


# What the entry itself says, and what is worked out from the text.
BY_ENTRY: Final = frozenset({"id", "tenant", "version", "updatedAt", "contentSha256"})


def _changed(node: Node, found: Node | None, payload: dict[str, Any]) -> Effect:
    effect = Effect("memory.node.updated", {}, payload, node=node.id, version=node.version)
    (effect.insert if found is None else effect.update)(node)
    effect.update(FileHold(node.tenant, node.id, node.legal_hold))
    return effect


def _purged(action: ResolveRow, tenant: str, version: int, payload: dict[str, Any]) -> Effect:
    effect = Effect("memory.node.purged", {}, payload | {"reason": action.reason}, node=action.id, version=version)
    effect.remove(NodeKey(tenant, action.id))
    effect.answer = {"memoryNodeId": str(action.id), "version": version, "event": effect.event_type, "lost": []}
    return effect


def _require_free(node: Node, known: Known) -> None:
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


# --- artifacts


def _artifact(action: ResolveRow, tenant: str, known: Known, now: dt.datetime) -> Effect:
    found, recorded = known.artifacts.get((tenant, action.id)), action.recorded
    if found is None and (recorded.seq is None or recorded.gone):
        raise NotFound(f"There is no artifact {action.id}.")
    node = None if recorded.node is None else known.nodes.get((tenant, recorded.node))
    if action.verb == "accept":
        at = None if found is None or found.memory_node_id is None else known.nodes.get((tenant, found.memory_node_id))
        return _accept_artifact(action, tenant, found, node, at, now)
    if recorded.seq is None or recorded.gone:
        return _deleted(action, tenant, {"removed": {"seq": recorded.seq}})
    if recorded.row is None:
        raise _unknown(action)
    artifact = artifact_of(recorded.row, tenant, node)
    return _whole(action, artifact, {"restored": {"seq": recorded.seq}})


def _accept_artifact(
    action: ResolveRow, tenant: str, found: Artifact | None, node: Node | None, at: Node | None, now: dt.datetime
) -> Effect:
    """``node``: that the log names, ``at``: that the row belongs to."""
    recorded = action.recorded
    if recorded.gone:
        raise PolicyRefused(
            f"Artifact {action.id} was deleted by entry {recorded.seq}. That is final: `memoryctl tamper restore` removes the row."
        )
    until = None if recorded.row is None else _time(recorded.row["retainUntil"])
    kept = until is not None and until > now
    moved = found is None or found.memory_node_id != recorded.node
    if moved and node is not None and node.legal_hold:
        raise PolicyRefused(
            f"Artifact {action.id} is under the legal hold of node {recorded.node}, and the row as it is found lifts it. Restore it."
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
    kind = "memory.artifact.created" if action.recorded.seq is None else "memory.artifact.verified"
    return whole_artifact(
        kind, artifact, action.reason, act, {"artifactId": str(artifact.id), "event": kind, "lost": []}
    )


def whole_artifact(kind: str, artifact: Artifact, reason: str, act: dict[str, Any], answer: dict[str, Any]) -> Effect:
    """An entry that holds all of an artifact, and its row. ``act``: what the entry says besides."""
    payload = {name: value for name, value in artifact_row(artifact).items() if name not in ("id", "tenant")}
    payload |= {"artifactId": str(artifact.id), "reason": reason, **act}
    node, state = artifact.memory_node_id, artifact_state(artifact)
    effect = Effect(kind, answer, payload, node=node, artifact=artifact.id, state=state)
    effect.put(artifact)
    return effect


def _deleted(action: ResolveRow, tenant: str, act: dict[str, Any]) -> Effect:
    kind = "memory.artifact.deleted"
    answer = {"artifactId": str(action.id), "event": kind, "lost": []}
    effect = Effect(kind, answer, act | {"reason": action.reason}, artifact=action.id)
    effect.remove(ArtifactKey(tenant, action.id))
    return effect


def _link_differs(action: ResolveRow, tenant: str, known: Known) -> bool:
    """Whether an artifact's node or hold is not what it has to be: no state of it holds them."""
    found = known.artifacts.get((tenant, action.id))
    if found is None:
        return False
    node = None if action.recorded.node is None else known.nodes.get((tenant, action.recorded.node))
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
