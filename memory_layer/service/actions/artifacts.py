"""What a write does to artifacts: attached, kept longer, judged. Pure, decided under the log lock."""

from __future__ import annotations

import datetime as dt
import uuid
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

from memory_layer.errors import Conflict, LegalHold, NotFound, ObjectStoreUnavailable
from memory_layer.model import Artifact, Node, format_time, format_time_or_none
from memory_layer.service.commit.action import Action, Effect, Situation, Touched
from memory_layer.service.evidence import artifact_state
from memory_layer.stores.batch_reads import Known, Wants
from memory_layer.stores.batch_rows import ArtifactKey, DeletedArtifact


class ObjectSwept(ObjectStoreUnavailable):
    """The object was swept away, or is being, as one that nothing names. Sending the bytes again stores them anew."""


@dataclass(frozen=True, slots=True)
class AddArtifact(Action):
    """A new artifact, its bytes stored and verified. ``put_held``: the bytes were stored under a hold."""

    artifact: Artifact
    put_held: bool = False

    def touches(self, tenant: str) -> list[Touched]:
        node = self.artifact.memory_node_id
        return [] if node is None else [(tenant, "node", node)]

    def reads(self, tenant: str, wants: Wants) -> None:
        if self.artifact.memory_node_id is not None:
            wants.nodes.append((tenant, self.artifact.memory_node_id))
        wants.objects.append((tenant, self.artifact.object_key, self.artifact.version_id))

    def by(self, actor: uuid.UUID) -> Self:
        return replace(self, artifact=replace(self.artifact, created_by=actor))

    def decide(self, at: Situation) -> Effect:
        node_id = self.artifact.memory_node_id
        node = None if node_id is None else at.live_node(node_id)
        return attach(self.artifact, node, at.known, at.now, put_held=self.put_held)


def attach(artifact: Artifact, node: Node | None, known: Known, now: dt.datetime, *, put_held: bool = False) -> Effect:
    """The effect of a new artifact. It is held as its node is. ``put_held``: the bytes were stored under a hold, which the worker
    checks anyway: the node may have been released since, or another artifact of the same bytes. Raises ObjectSwept."""
    if (artifact.tenant, artifact.object_key, artifact.version_id) in known.swept:
        raise ObjectSwept
    held = node is not None and node.legal_hold
    artifact = replace(
        artifact,
        memory_node_id=None if node is None else node.id,
        created_at=now,
        legal_hold=held,
        hold_due=held or put_held or artifact.hold_due,
    )
    shape = artifact_shape(artifact)
    # Not what the row says only for now. The key is no part of what callers are shown, and the row must have the one that stands here.
    payload = {name: value for name, value in shape.items() if name not in ("legalHold", "verifiedAt", "fault")}
    payload["objectKey"] = artifact.object_key
    effect = Effect(
        "memory.artifact.created",
        shape,
        payload,
        node=artifact.memory_node_id,
        artifact=artifact.id,
        state=artifact_state(artifact),
        manifest_signature_id=artifact.manifest_signature_id,
    )
    effect.insert(artifact)
    return effect


@dataclass(frozen=True, slots=True)
class _OfArtifact(Action):
    """A write upon one artifact that is there."""

    id: uuid.UUID

    def touches(self, tenant: str) -> list[Touched]:
        return [(tenant, "artifact", self.id)]

    def reads(self, tenant: str, wants: Wants) -> None:
        wants.artifacts.append((tenant, self.id))

    def _found(self, at: Situation) -> Artifact:
        old = at.known.artifacts.get((at.tenant, self.id))
        if old is None:
            raise NotFound(f"There is no artifact {self.id}.")
        return old


@dataclass(frozen=True, slots=True)
class DeleteArtifact(_OfArtifact):
    """Delete an artifact. ``node``: that it belongs to, which is held against the log too, for its hold is the artifact's. ``with_node``:
    because that node is deleted; NotFound where it is not.

    What its node hid of its bytes stays hidden wherever else they are known: a row of ``deleted_artifacts`` remembers whose they were.
    """

    node: uuid.UUID | None
    with_node: bool = False

    def touches(self, tenant: str) -> list[Touched]:
        there: list[Touched] = [] if self.node is None else [(tenant, "node", self.node)]
        return [(tenant, "artifact", self.id), *there]

    def reads(self, tenant: str, wants: Wants) -> None:
        wants.artifacts.append((tenant, self.id))
        if self.node is not None:
            wants.nodes.append((tenant, self.node))

    def decide(self, at: Situation) -> Effect:
        old = self._found(at)
        node = None if self.node is None else at.known.nodes.get((at.tenant, self.node))
        if old.memory_node_id != self.node:
            raise Conflict(f"Artifact {old.id} was changed at the same moment. Try again.")
        if self.with_node and (node is None or node.deleted_at is None):
            raise NotFound(f"Artifact {old.id} did not end with its node.")
        if old.legal_hold or (node is not None and node.legal_hold):
            raise LegalHold(
                f"Artifact {old.id} is under the legal hold of its node: it cannot be deleted until that is released."
            )
        if old.retain_until is not None and old.retain_until > at.now:
            raise Conflict(
                f"Artifact {old.id} is locked until {format_time(old.retain_until)}: it cannot be deleted before."
            )
        if old.hold_due:
            raise Conflict(
                f"The object store was not told yet whether artifact {old.id} is held, and nobody would tell it afterwards. Try again in some "
                "seconds."
            )
        facts = {"sha256": old.sha256, "objectKey": old.object_key, "versionId": old.version_id}
        payload = facts | ({"reason": "its node was deleted"} if self.with_node else {})
        answer = {"artifactId": str(old.id)}
        effect = Effect("memory.artifact.deleted", answer, payload, node=self.node, artifact=old.id)
        effect.remove(ArtifactKey(at.tenant, old.id))
        if self.node is not None:
            effect.put(DeletedArtifact(at.tenant, old.id, self.node, old.sha256, old.object_key, old.version_id))
        return effect


@dataclass(frozen=True, slots=True)
class ExtendRetention(_OfArtifact):
    """Keep an artifact longer. The object store has locked it so long by now: ``lock`` is what it reported. Conflict where the row has
    a later date."""

    until: dt.datetime
    lock: dict[str, Any]

    def decide(self, at: Situation) -> Effect:
        old = self._found(at)
        if old.retain_until is not None and old.retain_until > self.until:
            raise shortened(old, self.until)
        payload = {
            "retainUntil": format_time(self.until),
            "previous": format_time_or_none(old.retain_until),
            "lock": self.lock,
        }
        return _changed(replace(old, retain_until=self.until), "memory.artifact.verified", payload)


def shortened(artifact: Artifact, until: dt.datetime) -> Conflict:
    """The error for a request to keep an artifact for a shorter time."""
    kept = format_time_or_none(artifact.retain_until)
    return Conflict(
        f"Artifact {artifact.id} is kept until {kept}. That can be extended, never shortened to {format_time(until)}."
    )


@dataclass(frozen=True, slots=True)
class JudgeArtifact(_OfArtifact):
    """What a check of an artifact's bytes found. ``fault`` None: they are right."""

    freezes: ClassVar[bool] = False

    fault: str | None
    facts: dict[str, Any]

    def decide(self, at: Situation) -> Effect:
        old, good = self._found(at), self.fault is None
        artifact = replace(old, fault=self.fault, verified_at=at.now if good else old.verified_at)
        payload = {"fault": self.fault, "sha256": old.sha256, "sizeBytes": old.size_bytes, **self.facts}
        return _changed(artifact, "memory.artifact.verified" if good else "memory.artifact.corrupt", payload)


def _changed(artifact: Artifact, event_type: str, payload: dict[str, Any]) -> Effect:
    effect = Effect(
        event_type,
        artifact_shape(artifact),
        payload,
        node=artifact.memory_node_id,
        artifact=artifact.id,
        state=artifact_state(artifact),
    )
    effect.update(artifact)
    return effect


def artifact_shape(artifact: Artifact) -> dict[str, Any]:
    """The artifact as the API shows it. An entry's payload that holds ``artifactId`` is what the row must be (audit-format.md, Rows):
    only that of its creation does."""
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
        "legalHold": artifact.legal_hold,
        "retainUntil": format_time_or_none(artifact.retain_until),
        "verifiedAt": format_time_or_none(artifact.verified_at),
        "fault": artifact.fault,
        "createdBy": str(artifact.created_by),
        "createdAt": format_time(artifact.created_at),
    }
