"""Artifacts: bytes into the object store first, then their audited row; out again with their hash checked."""

from __future__ import annotations

import datetime as dt
import hashlib
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from typing import Any

from memory_layer.errors import Forbidden, NotFound, ObjectStoreUnavailable
from memory_layer.model import REDACTED, Artifact, Caller, uuid7
from memory_layer.service import Memory, freeze
from memory_layer.service.changes import AddArtifact, Change, Idempotency
from memory_layer.service.commit import Outcome, request_hash
from memory_layer.service.decide import artifact_shape
from memory_layer.service.nodes import hides_content, load
from memory_layer.sql import queries
from memory_layer.stores.postgres import artifact_row
from memory_layer.telemetry import metrics

_SQL = queries("nodes")


@dataclass(frozen=True, slots=True)
class Upload:
    """What comes with the bytes."""

    node: uuid.UUID | None
    name: str | None
    content_type: str
    sha256: str | None
    metadata: dict[str, Any]


async def upload(
    memory: Memory,
    caller: Caller,
    new: Upload,
    chunks: AsyncIterator[bytes],
    idempotency: Idempotency | None = None,
) -> Outcome:
    """Store the bytes, then commit their row. Raises ChecksumMismatch, NotFound (the node), ObjectStoreUnavailable.

    A crash in between leaves bytes that nothing names; they are found by their hash when the same upload comes again. While
    writes are frozen none are taken in (Frozen); whether they still are is decided again with the row.
    """
    await freeze.demand_thawed(memory.stores.postgres)
    if new.node is not None and not await load(memory, caller, [new.node]):
        raise NotFound(f"There is no node {new.node} to attach the artifact to.")
    stored = await memory.stores.objects.put(
        caller.tenant, chunks, expected_sha256=new.sha256, max_bytes=memory.stores.settings.artifact_max_bytes
    )
    metrics.artifact_bytes.labels("in").inc(stored.size)
    if idempotency is not None:
        idempotency = replace(idempotency, request_hash=request_hash(idempotency.request_hash, stored.sha256))
    artifact = Artifact(
        tenant=caller.tenant,
        id=uuid7(),
        memory_node_id=new.node,
        name=new.name,
        url=f"{memory.stores.objects.url_prefix}{stored.key}",
        object_key=stored.key,
        version_id=stored.version_id,
        sha256=stored.sha256,
        size_bytes=stored.size,
        content_type=new.content_type,
        manifest_signature_id=caller.manifest_signature_id,
        created_by=caller.actor,
        metadata=new.metadata,
        created_at=dt.datetime.now(dt.UTC),
    )
    return await memory.committer.submit(Change(caller, AddArtifact(artifact), idempotency))


async def get(memory: Memory, caller: Caller, artifact_id: uuid.UUID) -> dict[str, Any]:
    """An artifact's row as the API shows it. Raises NotFound."""
    artifact, hidden = await _find(memory, caller, artifact_id)
    shape = artifact_shape(artifact)
    return shape | {"name": REDACTED} if hidden else shape


async def find(memory: Memory, caller: Caller, artifact_id: uuid.UUID) -> Artifact:
    """An artifact whose bytes this caller may have. Raises NotFound, also for another tenant's, and Forbidden."""
    artifact, hidden = await _find(memory, caller, artifact_id)
    if hidden:
        raise Forbidden("The artifact belongs to a node whose content is hidden from this token (scope read:pii).")
    return artifact


async def _find(memory: Memory, caller: Caller, artifact_id: uuid.UUID) -> tuple[Artifact, bool]:
    """The artifact, and whether the flags of its node hide it from this caller."""
    (rows,) = await memory.stores.postgres.fetch(
        caller.tenant, (_SQL["get_artifact"], {"tenant": caller.tenant, "id": artifact_id})
    )
    if not rows:
        raise NotFound(f"There is no artifact {artifact_id}.")
    flags = rows[0].pop("pii_flags") or {}
    return artifact_row(rows[0]), hides_content(flags, caller)


async def content(memory: Memory, artifact: Artifact, start: int, stop: int) -> AsyncIterator[bytes]:
    """Bytes ``start`` to ``stop``. A whole read is re-hashed, and its last block is held back until the hash is right: who
    gets every byte that Content-Length promised has the bytes that were stored."""
    whole = start == 0 and stop == artifact.size_bytes
    digest = hashlib.sha256()
    held = b""
    sent = 0
    try:
        async for block in memory.stores.objects.read(artifact.object_key, artifact.version_id, start, stop):
            if held:
                yield held
            digest.update(block)
            sent += len(block)
            held = block
    except NotFound:  # the artifact exists, so this is the store's loss and not the caller's mistake
        raise ObjectStoreUnavailable(f"Artifact {artifact.id} is lost: the object store has no bytes for it.") from None
    if sent != stop - start or (whole and digest.hexdigest() != artifact.sha256):
        raise ObjectStoreUnavailable(f"Artifact {artifact.id} is damaged: its bytes are not those that were stored.")
    metrics.artifact_bytes.labels("out").inc(sent)
    if held:
        yield held
