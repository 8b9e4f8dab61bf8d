"""Check one artifact against its object: the bytes that were stored, not covered by a newer version, locked and held as they must be."""

from __future__ import annotations

import asyncio
import datetime as dt
import hashlib
from dataclasses import dataclass, field, replace
from typing import Any, Final

from memory_layer.errors import NotFound
from memory_layer.model import Artifact, Caller, format_time
from memory_layer.ops.artifacts.places import SQL
from memory_layer.service.actions.artifacts import JudgeArtifact
from memory_layer.service.commit import Change
from memory_layer.service.installation import Installation
from memory_layer.stores.postgres import ALL_TENANTS
from memory_layer.stores.protocols import LockMode, ObjectState, ObjectStore
from memory_layer.telemetry import metrics

FAULTS: Final = ("corrupt", "missing", "shadowed", "unlocked")
"""Gravest first, but for missing, which comes alone. ``shadowed``: covered by a newer version or a delete marker. ``unlocked``: to be
kept until a date, and not locked so long, or in a weaker mode than ARTIFACT_LOCK_MODE."""


class Pace:
    """Holds a reader to so many bytes a second; None: it may go as fast as it can."""

    def __init__(self, rate: int | None) -> None:
        self._rate = rate
        self._free = 0.0

    async def take(self, count: int) -> None:
        if self._rate is None:
            return
        now = asyncio.get_running_loop().time()
        self._free = max(self._free, now) + count / self._rate
        if self._free > now:
            await asyncio.sleep(self._free - now)


@dataclass(slots=True)
class Checked:
    """What was found. ``fault`` None: nothing wrong. ``hashed``: bytes that were read. ``cold``: they were not, for they are in a class
    that they must be restored from. ``hold``: what the store says of one."""

    fault: str | None
    facts: dict[str, Any] = field(default_factory=dict)
    hashed: int = 0
    cold: bool = False
    storage_class: str = "STANDARD"
    hold: bool | None = None


async def check(objects: ObjectStore, artifact: Artifact, pace: Pace, mode: LockMode) -> Checked:
    """Look at an object and read it; ``mode``: the weakest that a lock may have. Raises ObjectStoreUnavailable."""
    try:
        state = await objects.stat(artifact.object_key, artifact.version_id)
        found = await _read(objects, artifact, state, pace)
    except NotFound:
        return Checked("missing", {"found": "no such object or version"})
    faults = [found.fault] if found.fault is not None else []
    if state.shadowed:
        faults.append("shadowed")
        found.facts["coveredBy"] = await _cover(objects, artifact)
    kept = artifact.retain_until
    if kept is not None and kept > dt.datetime.now(dt.UTC):
        until = None if state.lock is None else state.lock.until
        weak = state.lock is not None and state.lock.mode not in (mode, "COMPLIANCE")
        if until is None or until < kept - dt.timedelta(seconds=1) or weak:
            faults.append("unlocked")
            found.facts |= {
                "lockedUntil": None if until is None else format_time(until),
                "lockedIn": None if state.lock is None else state.lock.mode,
                "keptUntil": format_time(kept),
            }
    found.fault = faults[0] if faults else None
    if len(faults) > 1:
        found.facts["besides"] = faults[1:]
    found.storage_class, found.hold = state.storage_class, state.hold
    return found


async def _read(objects: ObjectStore, artifact: Artifact, state: ObjectState, pace: Pace) -> Checked:
    if state.size != artifact.size_bytes:
        return Checked("corrupt", {"foundBytes": state.size})
    if not state.readable:
        return Checked(None, cold=True)
    digest, size = hashlib.sha256(), 0
    async for block in objects.read(artifact.object_key, artifact.version_id):
        await asyncio.to_thread(digest.update, block)
        size += len(block)
        metrics.artifact_bytes.labels("checked").inc(len(block))
        await pace.take(len(block))
    if size != artifact.size_bytes:
        return Checked("corrupt", {"foundBytes": size}, size)
    if digest.hexdigest() != artifact.sha256:
        return Checked("corrupt", {"foundSha256": digest.hexdigest()}, size)
    return Checked(None, hashed=size)


async def _cover(objects: ObjectStore, artifact: Artifact) -> str:
    page = await objects.versions(artifact.object_key, limit=10)
    newest = next((v for v in page.versions if v.key == artifact.object_key), None)
    if newest is None:
        return "unknown"
    return "a delete marker" if newest.marker else f"version {newest.version_id}"


async def judge(installation: Installation, actor: Caller, artifact: Artifact, checked: Checked) -> None:
    """Put what was found into the log and the row. ``actor``: under whose name, in the artifact's tenant."""
    caller = replace(actor, tenant=artifact.tenant)
    await installation.committer.submit(Change(caller, JudgeArtifact(artifact.id, checked.fault, checked.facts)))


async def request_hold(installation: Installation, artifact: Artifact, checked: Checked, held: bool) -> bool:
    """Where the store's hold of an object is not the one that was set, have the worker send it again; whether that was so."""
    if checked.hold is None or checked.hold == held or artifact.hold_due:
        return False
    about = {"tenant": artifact.tenant, "id": artifact.id}
    await installation.postgres.run(ALL_TENANTS, (SQL["send_hold_again"], about))
    return True
