"""Artifacts: bytes into the object store first, then their audited row; out again with their hash checked."""

from __future__ import annotations

import datetime as dt
import hashlib
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from typing import Any

from memory_layer.errors import NotFound, ObjectStoreUnavailable
from memory_layer.model import Artifact, Caller, uuid7
from memory_layer.service import Memory
from memory_layer.service.changes import AddArtifact, Change, Idempotency, artifact_shape
from memory_layer.service.commit import Outcome, request_hash
from memory_layer.service.nodes import load
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

    A crash in between leaves bytes that nothing names; they are found by their hash when the same upload comes again.
    """
    if new.node is not None and not await load(memory, caller, [new.node]):
        raise NotFound(f"There is no node {new.node} to attach the artifact to.")
    stored = await memory.stores.objects.put(caller.tenant, chunks, expected_sha256=new.sha256)
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
    return artifact_shape(await find(memory, caller, artifact_id))


async def find(memory: Memory, caller: Caller, artifact_id: uuid.UUID) -> Artifact:
    """Raises NotFound, also for another tenant's."""
    (rows,) = await memory.stores.postgres.fetch(
        caller.tenant, (_SQL["get_artifact"], {"tenant": caller.tenant, "id": artifact_id})
    )
    if not rows:
        raise NotFound(f"There is no artifact {artifact_id}.")
    return artifact_row(rows[0])


async def content(memory: Memory, artifact: Artifact, start: int, stop: int) -> AsyncIterator[bytes]:
    """Bytes ``start`` to ``stop``. A whole read is re-hashed, and its last block is held back until the hash is right: who
    gets every byte that Content-Length promised has the bytes that were stored."""
    whole = start == 0 and stop == artifact.size_bytes
    digest = hashlib.sha256()
    held = b""
    sent = 0
    async for block in memory.stores.objects.read(artifact.object_key, artifact.version_id, start, stop):
        if held:
            yield held
        digest.update(block)
        sent += len(block)
        held = block
    if sent != stop - start or (whole and digest.hexdigest() != artifact.sha256):
        raise ObjectStoreUnavailable(f"Artifact {artifact.id} is damaged: its bytes are not those that were stored.")
    metrics.artifact_bytes.labels("out").inc(sent)
    if held:
        yield held
