"""What a write does to artifacts: attached, kept longer, judged. Pure functions, decided under the log lock like all of ``decide.py``."""

from __future__ import annotations

import datetime as dt
from dataclasses import replace
from typing import Any

from memory_layer.errors import Conflict, NotFound, ObjectStoreUnavailable
from memory_layer.model import Artifact, Node, format_time, format_time_or_none
from memory_layer.service.changes import Effect, ExtendRetention, JudgeArtifact
from memory_layer.service.evidence import artifact_state
from memory_layer.stores.log_writer import Known


class Swept(ObjectStoreUnavailable):
    """The object was swept away, or is being, as one that nothing names. Sending the bytes again stores them anew."""


def attach(artifact: Artifact, node: Node | None, known: Known, now: dt.datetime, *, put_held: bool = False) -> Effect:
    """The effect of a new artifact. It is held as its node is. ``put_held``: the store was told with the bytes, which the worker
    makes sure of all the same: the node may have been released since, or another artifact of the same bytes. Raises Swept."""
    if (artifact.tenant, artifact.object_key, artifact.version_id) in known.swept:
        raise Swept
    held = node is not None and node.legal_hold
    artifact = replace(
        artifact,
        memory_node_id=None if node is None else node.id,
        created_at=now,
        legal_hold=held,
        hold_due=held or put_held or artifact.hold_due,
    )
    shape = artifact_shape(artifact)
    # Not what the row says only for now. The key is no part of what callers are shown, and the row must have the one that is told here.
    told = {name: value for name, value in shape.items() if name not in ("legalHold", "verifiedAt", "fault")}
    told["objectKey"] = artifact.object_key
    return Effect(
        "memory.artifact.created",
        shape,
        told,
        node=artifact.memory_node_id,
        artifact=artifact.id,
        state=artifact_state(artifact),
        new_artifact=artifact,
        manifest_signature_id=artifact.manifest_signature_id,
    )


def decide(action: ExtendRetention | JudgeArtifact, tenant: str, known: Known, now: dt.datetime) -> Effect:
    """The effect of a change of an artifact that is there. Raises NotFound, and Conflict where it is to be kept longer already."""
    old = known.artifacts.get((tenant, action.id))
    if old is None:
        raise NotFound(f"There is no artifact {action.id}.")
    return _extend(action, old) if isinstance(action, ExtendRetention) else _judge(action, old, now)


def _extend(action: ExtendRetention, old: Artifact) -> Effect:
    if old.retain_until is not None and old.retain_until > action.until:
        raise shortened(old, action.until)
    artifact = replace(old, retain_until=action.until)
    payload = {
        "retainUntil": format_time(action.until),
        "previous": format_time_or_none(old.retain_until),
        "lock": action.lock,
    }
    return Effect(
        "memory.artifact.verified",
        artifact_shape(artifact),
        payload,
        node=artifact.memory_node_id,
        artifact=artifact.id,
        state=artifact_state(artifact),
        changed_artifact=artifact,
    )


def shortened(artifact: Artifact, until: dt.datetime) -> Conflict:
    """What somebody is told who wants an artifact kept for a shorter time."""
    kept = format_time_or_none(artifact.retain_until)
    return Conflict(
        f"Artifact {artifact.id} is kept until {kept}. That can be extended, never shortened to {format_time(until)}."
    )


def _judge(action: JudgeArtifact, old: Artifact, now: dt.datetime) -> Effect:
    """An entry, and what the row says of it."""
    good = action.fault is None
    artifact = replace(old, fault=action.fault, verified_at=now if good else old.verified_at)
    return Effect(
        "memory.artifact.verified" if good else "memory.artifact.corrupt",
        artifact_shape(artifact),
        {"fault": action.fault, "sha256": old.sha256, "sizeBytes": old.size_bytes, **action.facts},
        node=old.memory_node_id,
        artifact=old.id,
        state=artifact_state(artifact),
        changed_artifact=artifact,
    )


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
