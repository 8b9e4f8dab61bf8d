"""Objects that lie in the object store already: found by their URL, read and hashed before any row names them.

A tenant may register what lies below its own prefix, ``<tenant>/``, and nothing else: the right to write there makes it theirs, and a
tenant's name holds no slash. The version is pinned, so what is written over it later changes nothing.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import hashlib
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from memory_layer import aside
from memory_layer.errors import (
    ChecksumMismatch,
    Conflict,
    MemoryLayerError,
    NotFound,
    ObjectStoreUnavailable,
    PayloadTooLarge,
    Problem,
    ValidationError,
)
from memory_layer.model import Artifact, Caller, uuid7
from memory_layer.service import freeze
from memory_layer.service.actions.artifacts import AddArtifact
from memory_layer.service.actions.nodes import CreateNode, CreateNodes, precompute_evidence
from memory_layer.service.artifacts import commit, keep, lock_until, node_of, redact_answer
from memory_layer.service.commit import Change, Idempotency, Outcome
from memory_layer.service.commit.batch import replay
from memory_layer.service.installation import Installation
from memory_layer.service.nodes import precompute_evidence_many
from memory_layer.sql import queries
from memory_layer.stores.batch_reads import Known
from memory_layer.stores.protocols import ObjectState
from memory_layer.telemetry import metrics

MAX_OBJECTS = 100  # objects of one request
AT_A_TIME = 4  # of them read side by side
TIMEOUT = 60.0  # seconds for one object, and besides
SLOWEST = 4 * 2**20  # bytes a second that its store must bring at the least

_SQL = queries("artifacts")


@dataclass(frozen=True, slots=True)
class Registration:
    """What somebody says of an object. ``path``: where in the request that stands, for what is wrong with it."""

    url: str
    sha256: str
    size_bytes: int
    node: uuid.UUID | None = None
    name: str | None = None
    content_type: str = "application/octet-stream"
    manifest_signature_id: str | None = None
    retain_until: dt.datetime | None = None
    metadata: dict[str, Any] = field(default_factory=dict)
    path: str = ""


async def register(
    installation: Installation, caller: Caller, new: Registration, idempotency: Idempotency | None = None
) -> Outcome:
    """Verify an object and commit its row. Raises ChecksumMismatch with both hashes, NotFound (object or node), ValidationError (a
    URL of another store or tenant), Conflict (it is covered by a newer version, or in a cold class)."""
    if (before := await _answered(installation, caller, idempotency)) is not None:
        return before
    await freeze.require_not_frozen(installation.postgres)
    node = await node_of(installation, caller, new.node)
    artifact = await verified(installation, caller, new)
    if node is not None:
        artifact = replace(artifact, memory_node_id=node.id)
    outcome = await commit(installation, Change(caller, AddArtifact(artifact), idempotency), [artifact])
    return await redact_answer(installation, caller, outcome)


async def with_artifacts(
    installation: Installation,
    caller: Caller,
    new: CreateNode,
    given: Sequence[Registration],
    idempotency: Idempotency | None,
    size: int,
) -> Outcome:
    """Create a node with objects that are verified first; node and artifacts are in one transaction, each with its entry."""
    if (before := await _answered(installation, caller, idempotency)) is not None:
        return before
    new.artifacts = await verify_all(installation, caller, given)
    await aside.run(size, precompute_evidence, new, caller.tenant)
    outcome = await commit(installation, Change(caller, new, idempotency, size), new.artifacts)
    return await redact_answer(installation, caller, outcome)


async def many_with_artifacts(
    installation: Installation,
    caller: Caller,
    action: CreateNodes,
    given: Sequence[Sequence[Registration]],
    idempotency: Idempotency | None,
    size: int,
) -> Outcome:
    """The same for a bulk request; a node with an object that is not as announced fails alone."""
    if sum(map(len, given)) > MAX_OBJECTS:
        problem = f"more than {MAX_OBJECTS} artifacts in one request"
        raise ValidationError(f"The body names {problem}.", details=[Problem("body", problem)])
    if (before := await _answered(installation, caller, idempotency)) is not None:
        return before
    found: list[Artifact] = []
    for place, (node, registrations) in enumerate(zip(list(action.nodes), given, strict=True)):
        if not registrations or not isinstance(node, CreateNode):
            continue
        try:
            node.artifacts = await verify_all(installation, caller, registrations)
            found += node.artifacts
        except MemoryLayerError as error:
            action.nodes[place] = error
    await precompute_evidence_many(action, caller.tenant, size)
    outcome = await commit(installation, Change(caller, action, idempotency, size), found)
    return await redact_answer(installation, caller, outcome)


async def _answered(installation: Installation, caller: Caller, idempotency: Idempotency | None) -> Outcome | None:
    """The first answer to a request that is repeated: its object need not be read again, and may be another by now. Two at once are
    still told apart under the log lock."""
    if idempotency is None:
        return None
    asked = {"tenant": caller.tenant, "actor": caller.actor, "key": idempotency.key}
    (rows,) = await installation.postgres.fetch(caller.tenant, (_SQL["request"], asked))
    known = Known({(row["tenant"], row["actor"], row["key"]): row for row in rows}, {}, {}, {}, {})
    before = replay(Change(caller, CreateNodes([]), idempotency), known)
    return None if before is None else await redact_answer(installation, caller, before)


async def verify_all(installation: Installation, caller: Caller, given: Sequence[Registration]) -> list[Artifact]:
    """Verify several objects, a few at a time. Raises the first one's error."""
    await freeze.require_not_frozen(installation.postgres)
    few = asyncio.Semaphore(AT_A_TIME)

    async def one(new: Registration) -> Artifact:
        async with few:
            return await verified(installation, caller, new)

    tasks = [asyncio.ensure_future(one(new)) for new in given]
    try:
        found = await asyncio.gather(*tasks)
        return [
            replace(artifact, id=uuid7()) for artifact in found
        ]  # in the order of the request, whichever was quicker
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def verified(installation: Installation, caller: Caller, new: Registration) -> Artifact:
    """The artifact that an object becomes, once its bytes were read and are as announced; locked already where it is to be kept."""
    limit = installation.settings.artifact_max_bytes
    lock = lock_until(installation, caller, new.retain_until)
    key, version = _locate(installation, caller, new)
    state = await _stat(installation, new, key, version)
    if state.size != new.size_bytes:
        raise _mismatch(new, "sizeBytes", f"{state.size} bytes", f"{new.size_bytes}")
    if state.size > limit:
        raise PayloadTooLarge(f"The object has {state.size} bytes, and the limit is {limit} bytes.")
    try:
        async with asyncio.timeout(TIMEOUT + state.size / SLOWEST):
            found, size = await _hash(installation, key, state.version_id)
    except TimeoutError:
        raise ObjectStoreUnavailable(
            f"The object store was too slow to read {state.size} bytes for their SHA-256. Nothing was recorded; try again."
        ) from None
    except NotFound:
        raise _missing(new) from None
    if size != new.size_bytes:
        raise _mismatch(new, "sizeBytes", f"{size} bytes", f"{new.size_bytes}")
    if found != new.sha256:
        raise _mismatch(new, "sha256", f"SHA-256 {found}", new.sha256)
    if lock is not None:
        await keep(installation, state, lock)
    now = dt.datetime.now(dt.UTC)
    return Artifact(
        tenant=caller.tenant,
        id=uuid7(),
        memory_node_id=None,
        name=new.name,
        url=f"{installation.objects.url_prefix}{key}",
        object_key=key,
        version_id=state.version_id,
        sha256=found,
        size_bytes=size,
        content_type=new.content_type,
        manifest_signature_id=new.manifest_signature_id or caller.manifest_signature_id,
        created_by=caller.actor,
        metadata=new.metadata,
        created_at=now,
        retain_until=new.retain_until,
        verified_at=now,
        storage_class=state.storage_class,
        hold_due=True,  # its uploader need not have set the tag that the lifecycle rules use
    )


def _locate(installation: Installation, caller: Caller, new: Registration) -> tuple[str, str | None]:
    """Key and version that a URL names. Another store's and another tenant's are refused alike, before anything is looked at."""
    place = installation.objects.locate(new.url)
    prefix = f"{caller.tenant}/"
    if place is None or not place[0].startswith(prefix) or place[0] == prefix:
        problem = f"not an object below {installation.objects.url_prefix}{prefix}"
        raise ValidationError(
            f"{_at(new, 'url')}: {problem}. Only what lies there can be registered by this tenant.",
            details=[Problem(_at(new, "url"), problem)],
        )
    return place


async def _stat(installation: Installation, new: Registration, key: str, version: str | None) -> ObjectState:
    try:
        state = await installation.objects.stat(key, version)
    except NotFound:
        raise _missing(new) from None
    if state.shadowed:
        raise Conflict(
            "A newer version or a delete marker covers this version of the object: whoever scans it would take it for tampering. "
            "Register the newest version, or remove what covers it."
        )
    if not state.readable:
        raise Conflict(f"The object is in the storage class {state.storage_class}: restore it, then register it.")
    return state


async def _hash(installation: Installation, key: str, version: str) -> tuple[str, int]:
    digest, size = hashlib.sha256(), 0
    async for block in installation.objects.read(key, version):
        await asyncio.to_thread(digest.update, block)  # other requests go on meanwhile
        size += len(block)
        metrics.artifact_bytes.labels("checked").inc(len(block))
    return digest.hexdigest(), size


def _missing(new: Registration) -> NotFound:
    return NotFound(
        f"There is no such object or version: {new.url[:200]}.", details=[Problem(_at(new, "url"), "no object")]
    )


def _mismatch(new: Registration, member: str, found: str, announced: str) -> ChecksumMismatch:
    return ChecksumMismatch(
        f"The object has {found}, not the announced {announced}. Nothing was recorded.",
        details=[Problem(_at(new, member), f"the object has {found}, announced was {announced}")],
    )


def _at(new: Registration, member: str) -> str:
    name = "artifactUrl" if new.path and member == "url" else member
    return f"{new.path}.{name}" if new.path else name
