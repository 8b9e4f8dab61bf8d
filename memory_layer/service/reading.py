"""An artifact's bytes on their way out: no range gives a byte of a block before the block is known to be what was stored.

The log binds the SHA-256 of the whole alone, so a part alone proves nothing. The first range of an object has it read whole, once
in this process; from what was right then the SHA-256 of each block of 1 MiB is kept in memory, and every block that leaves is held
against it. Nothing of that is stored, so nothing stored can be forged (``docs/decisions/0030-bytes-as-stored.md``).
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any, Final

from memory_layer.errors import NotFound, ObjectStoreUnavailable
from memory_layer.model import Artifact
from memory_layer.service.actions.artifacts import JudgeArtifact
from memory_layer.service.block_hashes import Blocks, Place
from memory_layer.service.commit import Change
from memory_layer.service.installation import Installation
from memory_layer.service.system import record, system_caller
from memory_layer.sql import queries
from memory_layer.stores.postgres import artifact_row
from memory_layer.stores.protocols import StoredObject
from memory_layer.telemetry import metrics
from memory_layer.telemetry.logs import get_logger

BLOCK: Final = 2**20  # bytes whose hash is kept
RECORD_WITHIN: Final = 5.0  # seconds that a reader waits for a fault's entry

_SQL = queries("artifacts")

log = get_logger("memory_layer.artifacts")


async def content(
    installation: Installation, artifact: Artifact, start: int, stop: int, *, ranged: bool = False
) -> AsyncIterator[bytes]:
    """Bytes ``start`` to ``stop``; ``ranged``: asked for as a range, be it one of all. Raises ObjectStoreUnavailable where they are
    lost or not those that were stored.

    Of a whole read whose blocks are not known yet the last block is held back until the hash is right: who gets every byte that
    Content-Length promised has the bytes that were stored. What is found wrong is recorded before it is raised.
    """
    whole = start == 0 and stop == artifact.size_bytes
    hashes = installation.blocks.find(_place(artifact))
    if hashes is None and whole and not ranged:
        blocks = _whole(installation, artifact)
    else:
        blocks = _blocks(installation, artifact, start, stop, hashes or await _hashes(installation, artifact))
    async for block in blocks:
        metrics.artifact_bytes.labels("out").inc(len(block))
        yield block


async def _whole(installation: Installation, artifact: Artifact) -> AsyncIterator[bytes]:
    digest, held, sent = hashlib.sha256(), b"", 0
    try:
        async for block in installation.objects.read(artifact.object_key, artifact.version_id, 0, artifact.size_bytes):
            if held:
                yield held
            digest.update(block)
            sent += len(block)
            held = block
    except NotFound:  # the artifact exists, so this is the store's loss and not the caller's mistake
        raise await _lost(installation, artifact) from None
    if sent != artifact.size_bytes:
        raise await _damaged(installation, artifact, {"foundBytes": sent})
    if digest.hexdigest() != artifact.sha256:
        raise await _damaged(installation, artifact, {"foundSha256": digest.hexdigest()})
    if held:
        yield held


async def _blocks(
    installation: Installation, artifact: Artifact, start: int, stop: int, hashes: bytes
) -> AsyncIterator[bytes]:
    """The range out of whole blocks, each compared before any of it is given."""
    number = start // BLOCK
    at, end = number * BLOCK, min(-(-stop // BLOCK) * BLOCK, artifact.size_bytes)
    held = bytearray()
    try:
        async for piece in installation.objects.read(artifact.object_key, artifact.version_id, at, end):
            held += piece
            while len(held) >= BLOCK or (held and at + len(held) >= end):
                block = bytes(held[:BLOCK])
                del held[:BLOCK]
                if hashlib.sha256(block).digest() != hashes[32 * number : 32 * number + 32]:
                    raise await _damaged(installation, artifact, {"foundAt": at, "foundBlockBytes": len(block)})
                if part := block[max(start - at, 0) : stop - at]:
                    yield part
                at, number = at + len(block), number + 1
    except NotFound:
        raise await _lost(installation, artifact) from None
    if at < end:
        raise await _damaged(installation, artifact, {"foundBytes": at + len(held)})


async def _hashes(installation: Installation, artifact: Artifact) -> bytes:
    """The hashes of an object's blocks, from one read of all of it for all who wait; it ends when no reader waits any more."""
    blocks, place = installation.blocks, _place(artifact)
    task = blocks.running.get(place)
    if task is None:
        task = blocks.running[place] = asyncio.create_task(
            _read_whole(installation, artifact), name="blocks of an artifact"
        )
        task.add_done_callback(lambda done: _ended(blocks, place, done))
    blocks.waiting[place] = blocks.waiting.get(place, 0) + 1
    try:
        return await asyncio.shield(task)
    finally:
        blocks.waiting[place] -= 1
        if not blocks.waiting[place]:
            del blocks.waiting[place]
            if blocks.running.get(place) is task:
                del blocks.running[place]  # who comes now begins anew
            task.cancel()


def _ended(blocks: Blocks, place: Place, task: asyncio.Task[bytes]) -> None:
    if blocks.running.get(place) is task:
        del blocks.running[place]
    if not task.cancelled():
        task.exception()  # retrieved, for nobody may wait any more


async def _read_whole(installation: Installation, artifact: Artifact) -> bytes:
    digest, hashes, size, held = hashlib.sha256(), bytearray(), 0, bytearray()
    async with installation.blocks.slots:
        try:
            async for piece in installation.objects.read(artifact.object_key, artifact.version_id):
                size += len(piece)
                if size > artifact.size_bytes:
                    break
                held += piece
                if len(held) >= BLOCK:
                    block = bytes(held[:BLOCK])
                    del held[:BLOCK]
                    hashes += await asyncio.to_thread(_hash, digest, block)
        except NotFound:
            raise await _lost(installation, artifact) from None
        metrics.artifact_bytes.labels("checked").inc(size)
    while held:  # a store may give more than a block at a time
        hashes += await asyncio.to_thread(_hash, digest, bytes(held[:BLOCK]))
        del held[:BLOCK]
    if size != artifact.size_bytes:
        raise await _damaged(installation, artifact, {"foundBytes": size})
    if digest.hexdigest() != artifact.sha256:
        raise await _damaged(installation, artifact, {"foundSha256": digest.hexdigest()})
    installation.blocks.keep(_place(artifact), bytes(hashes))
    return bytes(hashes)


def _hash(digest: hashlib._Hash, block: bytes) -> bytes:
    digest.update(block)
    return hashlib.sha256(block).digest()


def _place(artifact: Artifact) -> Place:
    return artifact.object_key, artifact.version_id, artifact.sha256


def lost(artifact: Artifact) -> ObjectStoreUnavailable:
    return ObjectStoreUnavailable(f"Artifact {artifact.id} is lost: the object store has no bytes for it.")


def damaged(artifact: Artifact) -> ObjectStoreUnavailable:
    return ObjectStoreUnavailable(
        f"Artifact {artifact.id} is damaged: its bytes are not those that were stored. Nobody is served them; upload the same bytes "
        "again, or have the operator restore the object from a backup."
    )


# --- What was found ----------------------------------------------------------------------------------------------------


async def _lost(installation: Installation, artifact: Artifact) -> ObjectStoreUnavailable:
    await _found(installation, artifact, "missing", {"found": "no such object or version"})
    return lost(artifact)


async def _damaged(installation: Installation, artifact: Artifact, facts: dict[str, Any]) -> ObjectStoreUnavailable:
    await _found(installation, artifact, "corrupt", facts)
    return damaged(artifact)


async def _found(installation: Installation, artifact: Artifact, fault: str, facts: dict[str, Any]) -> None:
    """Record a fault that a read met: counted, logged, and an entry, once for as long as the row says so. What the reader is answered
    does not depend on it."""
    installation.blocks.forget(_place(artifact))
    metrics.artifact_checks.labels(fault).inc()
    log.error("a read found that an artifact is not as it was stored", artifact=artifact.id, fault=fault, facts=facts)
    if artifact.fault == fault or artifact.id in installation.blocks.recording:
        return
    installation.blocks.recording.add(artifact.id)
    try:
        async with asyncio.timeout(RECORD_WITHIN):
            if await _fault_of(installation, artifact) != fault:
                await _judge(installation, artifact, fault, {**facts, "foundBy": "read"})
    except Exception:
        log.exception(
            "the fault of an artifact is not in the audit log; the next read or scan writes it", artifact=artifact.id
        )
    finally:
        installation.blocks.recording.discard(artifact.id)


async def _fault_of(installation: Installation, artifact: Artifact) -> str | None:
    """As the row says by now: a fault is recorded once however many read at a time."""
    (rows,) = await installation.postgres.fetch(artifact.tenant, (_SQL["one"], {"id": artifact.id}))
    return None if not rows else rows[0]["fault"]


async def _judge(installation: Installation, artifact: Artifact, fault: str | None, facts: dict[str, Any]) -> None:
    # Not the reader: the installation found it.
    actor = replace(await system_caller(installation, "api"), tenant=artifact.tenant)
    with contextlib.suppress(NotFound):  # it was deleted meanwhile
        await installation.committer.submit(Change(actor, JudgeArtifact(artifact.id, fault, facts)))


async def record_repair(installation: Installation, tenant: str, stored: StoredObject) -> None:
    """An upload met damaged bytes under its own name: the entries of the artifacts that named them. Raises what a write raises, for
    the upload is not acknowledged before the log knows of it.

    Where the bytes were replaced each artifact has an entry of the fault and one that it is right again; where the store keeps the
    damaged version (it is locked), the first alone, which names the version that is right.
    """
    damage = stored.damage
    if damage is None:
        return
    metrics.artifact_checks.labels("corrupt").inc()
    place = {"tenant": tenant, "key": stored.key, "version": damage.version_id}
    (rows,) = await installation.postgres.fetch(tenant, (_SQL["of_object"], place))
    facts: dict[str, Any] = {"foundBytes": damage.size, "foundSha256": damage.sha256, "foundBy": "upload"}
    if not damage.replaced:
        facts["rightVersion"] = stored.version_id
    for row in rows:
        artifact = artifact_row(row)
        installation.blocks.forget(_place(artifact))
        await _judge(installation, artifact, "corrupt", facts)
        if damage.replaced:
            await _judge(installation, artifact, None, {"repairedBy": "upload", "versionId": damage.version_id})
    if not rows:  # nothing names the object yet, but its damage is recorded
        payload = {"objectKey": stored.key, "versionId": damage.version_id, "replaced": damage.replaced, **facts}
        await record(installation, await system_caller(installation, "api"), "ops.object-repair.succeeded", payload)
