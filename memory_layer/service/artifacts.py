"""Artifacts: bytes into the object store first, then their audited row; out again with their hash checked."""

from __future__ import annotations

import contextlib
import datetime as dt
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from typing import Any

from memory_layer.errors import (
    Conflict,
    Forbidden,
    NotFound,
    ObjectStoreUnavailable,
    Problem,
    ValidationError,
)
from memory_layer.model import Artifact, Caller, Node, format_time, uuid7
from memory_layer.service import freeze
from memory_layer.service.actions.artifacts import (
    AddArtifact,
    DeleteArtifact,
    ExtendRetention,
    ObjectSwept,
    artifact_shape,
    shortened,
)
from memory_layer.service.artifact_ending import has_ended
from memory_layer.service.commit import Change, Idempotency, Outcome, request_hash
from memory_layer.service.hiding import (
    Flags,
    flags_of_artifacts,
    hides_bytes,
    read_flags,
    redact_artifact,
    sees_all,
)
from memory_layer.service.installation import Installation
from memory_layer.service.nodes import load
from memory_layer.service.reading import damaged, lost, record_repair
from memory_layer.service.verification import refusal
from memory_layer.service.verified_reads import artifact_entries, judge_artifacts, read_nodes
from memory_layer.sql import queries
from memory_layer.stores.postgres import Query
from memory_layer.stores.protocols import Lock, ObjectState
from memory_layer.telemetry import metrics

LINK_SECONDS = 300  # that a link to the bytes is good for
LONGEST = dt.timedelta(days=36_525)  # that an artifact can be kept

_SQL = queries("nodes")
_SWEEPS = queries("artifacts")


@dataclass(frozen=True, slots=True)
class Upload:
    """What comes with the bytes."""

    node: uuid.UUID | None
    name: str | None
    content_type: str
    sha256: str | None
    metadata: dict[str, Any]
    retain_until: dt.datetime | None = None


async def upload(
    installation: Installation,
    caller: Caller,
    new: Upload,
    chunks: AsyncIterator[bytes],
    idempotency: Idempotency | None = None,
) -> Outcome:
    """Store the bytes, then commit their row. Raises ChecksumMismatch, NotFound (the node), ObjectStoreUnavailable.

    Lock and hold go along with the bytes. A crash in between leaves bytes that nothing names; they are found by their hash when the
    same upload comes again, and swept when it does not. While writes are frozen none are taken in (Frozen); whether they still
    are is decided again with the row.
    """
    await freeze.require_not_frozen(installation.postgres)
    node = await node_of(installation, caller, new.node)
    held = node is not None and node.legal_hold
    stored = await installation.objects.put(
        caller.tenant,
        chunks,
        expected_sha256=new.sha256,
        max_bytes=installation.settings.artifact_max_bytes,
        lock=lock_until(installation, caller, new.retain_until),
        hold=held,
    )
    metrics.artifact_bytes.labels("in").inc(stored.size)
    await record_repair(installation, caller.tenant, stored)
    if idempotency is not None:
        idempotency = replace(idempotency, request_hash=request_hash(idempotency.request_hash, stored.sha256))
    artifact = Artifact(
        tenant=caller.tenant,
        id=uuid7(),
        memory_node_id=new.node,
        name=new.name,
        url=f"{installation.objects.url_prefix}{stored.key}",
        object_key=stored.key,
        version_id=stored.version_id,
        sha256=stored.sha256,
        size_bytes=stored.size,
        content_type=new.content_type,
        manifest_signature_id=caller.manifest_signature_id,
        created_by=caller.actor,
        metadata=new.metadata,
        created_at=dt.datetime.now(dt.UTC),
        retain_until=new.retain_until,
    )
    outcome = await commit(installation, Change(caller, AddArtifact(artifact, held), idempotency), [artifact])
    return await redact_answer(installation, caller, outcome)


async def commit(installation: Installation, change: Change, artifacts: list[Artifact]) -> Outcome:
    """Commit a change that names objects. Where one was swept away before this upload stored it anew, it may be named again."""
    try:
        return await installation.committer.submit(change)
    except ObjectSwept:
        for artifact in artifacts:
            await _unmark(installation, artifact)
    return await installation.committer.submit(change)


async def _unmark(installation: Installation, artifact: Artifact) -> None:
    """Forget that an object was swept, if that is over and it is there: then it was stored after that. Raises ObjectSwept."""
    place = {"tenant": artifact.tenant, "key": artifact.object_key, "version": artifact.version_id}
    (rows,) = await installation.postgres.fetch(artifact.tenant, (_SWEEPS["sweep_of"], place))
    if not rows:
        return
    if rows[0]["deleted_at"] is None:
        raise ObjectSwept
    try:
        await installation.objects.stat(artifact.object_key, artifact.version_id)
    except NotFound:
        raise ObjectSwept from None
    await installation.postgres.run(artifact.tenant, (_SWEEPS["unmark"], place))


async def node_of(installation: Installation, caller: Caller, node_id: uuid.UUID | None) -> Node | None:
    """The node that an artifact is to be attached to. Raises NotFound."""
    if node_id is None:
        return None
    node = await load(installation, caller, node_id)
    if node is None:
        raise NotFound(f"There is no node {node_id} to attach the artifact to.")
    return node


def lock_until(installation: Installation, caller: Caller, until: dt.datetime | None) -> Lock | None:
    """The lock that keeps an object until then. Raises ValidationError unless that lies ahead, and not too far for this caller."""
    if until is None:
        return None
    now, days = dt.datetime.now(dt.UTC), installation.settings.artifact_max_retention_days
    if not now < until <= now + LONGEST:
        problem = "not a time in the next hundred years"
        raise ValidationError(f"retainUntil is {problem}.", details=[Problem("retainUntil", problem)])
    # Who keeps evidence may need it for longer than anybody should lock a file by mistake.
    keeper = caller.auth == "system" or "memory:legal_hold" in caller.scopes
    if not keeper and until > now + dt.timedelta(days=days):
        problem = f"more than {days} days ahead (ARTIFACT_MAX_RETENTION_DAYS)"
        raise ValidationError(
            f"retainUntil is {problem}. A lock cannot be shortened: ask for less, or use a token that has memory:legal_hold too.",
            details=[Problem("retainUntil", problem)],
        )
    return Lock(installation.settings.artifact_lock_mode, until)


async def extend(
    installation: Installation,
    caller: Caller,
    artifact_id: uuid.UUID,
    until: dt.datetime,
    idempotency: Idempotency | None = None,
) -> Outcome:
    """Keep an artifact longer: the object store locks it, then the row says so. Raises NotFound, Conflict where that would shorten.

    The store goes first, for a date that is acknowledged must be kept: a crash in between leaves an object that is locked longer than
    its row says, which does no harm, and the same request puts it right.
    """
    await freeze.require_not_frozen(installation.postgres)
    artifact, _ = await _find(installation, caller, artifact_id)
    lock = lock_until(installation, caller, until)
    assert lock is not None  # noqa: S101 - narrows the type
    if artifact.retain_until is not None and artifact.retain_until > until:
        raise shortened(artifact, until)
    if not installation.committer.signer_usable:
        raise ObjectStoreUnavailable("The audit signer does not answer, so nothing is locked. Try again shortly.")
    try:
        state = await keep(
            installation, await installation.objects.stat(artifact.object_key, artifact.version_id), lock
        )
    except NotFound:
        raise lost(artifact) from None
    assert state.lock is not None  # noqa: S101 - narrows the type
    stored_lock = {"mode": state.lock.mode, "until": format_time(state.lock.until)}
    outcome = await installation.committer.submit(
        Change(caller, ExtendRetention(artifact.id, until, stored_lock), idempotency)
    )
    return await redact_answer(installation, caller, outcome)


async def keep(installation: Installation, state: ObjectState, wanted: Lock) -> ObjectState:
    """Lock an object until the wanted time at the least; its state then. Other artifacts of the same bytes may have it locked longer,
    or in the stronger mode, which stays. Raises Conflict where it keeps a weaker mode than wanted, ObjectStoreUnavailable where it is
    not locked so long."""
    asked = wanted
    there, objects = state.lock, installation.objects
    if there is not None and there.mode == "COMPLIANCE":
        wanted = Lock("COMPLIANCE", wanted.until)
    if there is not None and there.until >= wanted.until and there.mode == wanted.mode:
        return state
    if there is not None and there.until > wanted.until:  # the stronger mode, for as long as the weaker one
        wanted = Lock(wanted.mode, there.until)
    with contextlib.suppress(Conflict):  # somebody else was quicker and asked for more
        await objects.extend_lock(state.key, state.version_id, wanted)
    state = await objects.stat(state.key, state.version_id)
    if state.lock is None or state.lock.until < asked.until - dt.timedelta(seconds=1):
        raise ObjectStoreUnavailable(
            f"The object store did not lock the object {state.key} until {format_time(asked.until)}: it says "
            f"{'nothing' if state.lock is None else format_time(state.lock.until)}. Nothing was recorded."
        )
    if state.lock.mode not in (asked.mode, "COMPLIANCE"):
        raise Conflict(
            f"The object {state.key} is locked in {state.lock.mode}, and the object store does not make that {asked.mode}, as "
            "ARTIFACT_LOCK_MODE wants it. Whoever may bypass it can, or set ARTIFACT_LOCK_MODE. Nothing was recorded."
        )
    return state


async def delete(
    installation: Installation, caller: Caller, artifact_id: uuid.UUID, idempotency: Idempotency | None = None
) -> Outcome:
    """Delete an artifact; its object goes in the background, once nothing names it. Raises NotFound, Tampered, LegalHold, and Conflict while
    it is locked."""
    try:
        artifact, _ = await _find(installation, caller, artifact_id)
    except NotFound as gone:
        # The same request may have deleted it before: its key says so, where it has one.
        if idempotency is None:
            raise
        try:
            return await installation.committer.submit(Change(caller, DeleteArtifact(artifact_id, None), idempotency))
        except Conflict:
            raise gone from None
    change = DeleteArtifact(artifact.id, artifact.memory_node_id)
    return await installation.committer.submit(Change(caller, change, idempotency))


async def get(installation: Installation, caller: Caller, artifact_id: uuid.UUID) -> dict[str, Any]:
    """An artifact's row as the API shows it. Raises NotFound."""
    artifact, flags = await _find(installation, caller, artifact_id)
    return redact_artifact(artifact_shape(artifact), flags, caller)


async def find(installation: Installation, caller: Caller, artifact_id: uuid.UUID) -> Artifact:
    """An artifact whose bytes this caller may have. Raises NotFound, also for another tenant's, and Forbidden."""
    artifact, flags = await _find(installation, caller, artifact_id)
    if hides_bytes(flags, caller):
        raise Forbidden(
            "The artifact, or another one of the same bytes, belongs to a node whose content is hidden from this token (scope read:pii)."
        )
    return artifact


async def _find(installation: Installation, caller: Caller, artifact_id: uuid.UUID) -> tuple[Artifact, list[Flags]]:
    """The artifact, and the flags of all nodes that know its bytes. Raises Tampered where it, or a node that says who may have it, is
    not what the log says."""
    named: Query = (
        _SQL["nodes_of_bytes"],
        {"tenant": caller.tenant, "id": artifact_id, "own": sees_all(caller)},
    )
    (nodes,) = await installation.postgres.fetch(caller.tenant, named)
    read = await read_nodes(
        installation,
        caller,
        [row["node"] for row in nodes],
        "artifact",
        [
            (_SQL["get_artifacts"], {"tenant": caller.tenant, "ids": [artifact_id]}),
            flags_of_artifacts(caller, [artifact_id]),
            artifact_entries(installation, caller, [artifact_id]),
        ],
        whole=False,
    )
    rows, flags, entries = read.more
    found, problems = await judge_artifacts(installation, caller, rows, entries, read.rows, "artifact", [artifact_id])
    if problems or read.problems:
        raise refusal([*problems, *read.problems][0])
    if not found or has_ended(found[0], read.rows, read.nodes):
        raise NotFound(f"There is no artifact {artifact_id}.")
    return found[0], read_flags(flags).get(artifact_id, [])


async def redact_answer(installation: Installation, caller: Caller, outcome: Outcome) -> Outcome:
    """A write's answer as its caller may read it: an artifact, a node with its artifacts, or several of these. What was stored for
    a repeated request is the whole of it, and flags may have come since."""
    answers = [outcome.answer, *outcome.answer.get("items", ())]
    shapes = [shape for answer in answers for shape in (answer, *answer.get("artifacts", ())) if "artifactId" in shape]
    if shapes and not sees_all(caller):
        ids = [uuid.UUID(shape["artifactId"]) for shape in shapes]
        (rows,) = await installation.postgres.fetch(caller.tenant, flags_of_artifacts(caller, ids))
        flags = read_flags(rows)
        for shape, artifact in zip(shapes, ids, strict=True):
            shape.update(redact_artifact(shape, flags.get(artifact, ()), caller))
    return outcome


def link(installation: Installation, artifact: Artifact) -> str | None:
    """A URL of the object store that gives the bytes for five minutes; None where it has no such thing. What comes from there is not
    re-hashed on the way: the client compares it with the SHA-256 of the row. None is given to bytes that are known to be damaged."""
    objects = installation.objects
    if not objects.capabilities.links:
        return None
    if artifact.fault in ("corrupt", "missing"):
        raise damaged(artifact) if artifact.fault == "corrupt" else lost(artifact)
    name, kind = artifact.name or artifact.sha256, artifact.content_type
    return objects.link(artifact.object_key, artifact.version_id, LINK_SECONDS, name=name, content_type=kind)
