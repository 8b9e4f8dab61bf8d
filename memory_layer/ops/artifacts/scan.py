"""Read every artifact's bytes again, or a sample's, and compare them with what Postgres knows.

A fault goes into the log, one entry an artifact (``memory.artifact.corrupt``), into the row, the metrics and the report. A sound
artifact only moves ``verified_at``: an entry a week for every sound file would hide the faults. A full scan saves its progress, so that
it can be interrupted anywhere and go on.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
import uuid
from collections import Counter
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from typing import Any, Final

from memory_layer.errors import NotFound, ObjectStoreUnavailable, Tampered
from memory_layer.model import Artifact, Caller
from memory_layer.ops.artifacts.checking import FAULTS, Checked, Pace, check, judge, request_hold
from memory_layer.ops.artifacts.places import SQL
from memory_layer.ops.report import Finding
from memory_layer.progress import Progress, no_progress
from memory_layer.service.installation import Installation
from memory_layer.stores.postgres import ALL_TENANTS, artifact_row
from memory_layer.telemetry import metrics

PAGE: Final = 50  # artifacts
SAVE_EVERY: Final = 5.0  # seconds
NAMED: Final = 100  # faults that have a finding of their own
MAX_UNREADABLE: Final = 5  # one after another, before it is the store that fails

_JOB: Final = "scan"
_START: Final[dict[str, Any]] = {"after_tenant": "", "after_id": uuid.UUID(int=0)}


@dataclass(slots=True)
class Scanned:
    """What a scan came to."""

    artifacts: int = 0
    bytes: int = 0
    right: int = 0
    cold: int = 0
    tampered: int = 0  # rows that are not what the log says
    holds_sent_again: int = 0  # holds that the store had lost or changed
    faults: Counter[str] = field(default_factory=Counter)
    findings: list[Finding] = field(default_factory=list)
    unreadable: list[str] = field(default_factory=list)
    resumed: bool = False
    sound: list[tuple[str, uuid.UUID, str]] = field(
        default_factory=list
    )  # not written down yet: tenant, id, storage class


async def scan(
    installation: Installation,
    actor: Caller,
    *,
    sample: int | None,
    rate: int | None,
    resume: bool,
    progress: Progress = no_progress,
) -> Scanned:
    """Check all artifacts, or ``sample`` of them at random. ``resume``: go on where the last whole scan was cut off.

    Raises ObjectStoreUnavailable when the store does not answer; what was found by then is written down.
    """
    done, pace = Scanned(), Pace(rate)
    after = _START
    if sample is None and resume:
        after = await _place(installation)
        done.resumed = after is not _START
    (totals,) = await installation.postgres.fetch(ALL_TENANTS, (SQL["totals"], after))
    total = totals[0]["artifacts"] if sample is None else min(sample, totals[0]["artifacts"])
    saved = time.monotonic()
    failed = 0
    async with contextlib.aclosing(_artifacts(installation, after, sample)) as artifacts:
        async for artifact, held in artifacts:
            progress("checking artifacts", done.artifacts, total)
            try:
                checked = await check(installation.objects, artifact, pace, installation.settings.artifact_lock_mode)
            except ObjectStoreUnavailable as error:
                failed += 1
                await installation.objects.ping()
                if failed == MAX_UNREADABLE:
                    raise
                done.unreadable.append(f"{artifact.id}: {error.message}")
            else:
                failed = 0
                await _note(installation, actor, done, artifact, held, checked)
            done.artifacts += 1
            if len(done.sound) == PAGE or time.monotonic() - saved > SAVE_EVERY:
                await _save(installation, done, artifact if sample is None else None)
                saved = time.monotonic()
    await _save(installation, done, None)
    progress("checking artifacts", done.artifacts, total)
    if sample is None:
        await installation.postgres.run(ALL_TENANTS, (SQL["end_progress"], {"job": _JOB}))
        metrics.artifact_scan.set(time.time())
    await show_faults(installation)
    return done


async def verify_one(installation: Installation, actor: Caller, artifact_id: uuid.UUID) -> tuple[Artifact, Checked]:
    """Check one artifact, and put into the log what was found, whatever it is. Raises NotFound."""
    (rows,) = await installation.postgres.fetch(ALL_TENANTS, (SQL["one"], {"id": artifact_id}))
    if not rows:
        raise NotFound(f"There is no artifact {artifact_id}.")
    held = bool(rows[0].pop("held"))
    artifact = artifact_row(rows[0])
    checked = await check(installation.objects, artifact, Pace(None), installation.settings.artifact_lock_mode)
    await judge(installation, actor, artifact, checked)
    await request_hold(installation, artifact, checked, held)
    await show_faults(installation)
    return artifact, checked


async def show_faults(installation: Installation) -> None:
    (rows,) = await installation.postgres.fetch(ALL_TENANTS, (SQL["faults"], {}))
    counts = {row["fault"]: row["artifacts"] for row in rows}
    for fault in FAULTS:
        metrics.artifact_faults.labels(fault).set(counts.get(fault, 0))


async def _artifacts(
    installation: Installation, after: dict[str, Any], sample: int | None
) -> AsyncGenerator[tuple[Artifact, bool], None]:
    """Each with whether its object is to be held."""
    while True:
        query = (SQL["page"], {**after, "limit": PAGE}) if sample is None else (SQL["sample"], {"limit": sample})
        (rows,) = await installation.postgres.fetch(ALL_TENANTS, query)
        for row in rows:
            held = bool(row.pop("held"))
            yield artifact_row(row), held
        if sample is not None or len(rows) < PAGE:
            return
        after = {"after_tenant": rows[-1]["tenant"], "after_id": rows[-1]["id"]}


async def _note(
    installation: Installation, actor: Caller, done: Scanned, artifact: Artifact, held: bool, checked: Checked
) -> None:
    done.bytes += checked.hashed
    metrics.artifact_checks.labels(checked.fault or ("cold" if checked.cold else "right")).inc()
    if await request_hold(installation, artifact, checked, held):
        done.holds_sent_again += 1
    if checked.fault is None:
        done.right += not checked.cold
        done.cold += checked.cold
        if artifact.fault is not None and not checked.cold:
            await _judge(installation, actor, done, artifact, checked)  # the log records that it was not right
        elif not checked.cold:
            done.sound.append((artifact.tenant, artifact.id, checked.storage_class))
        return
    if not await _judge(installation, actor, done, artifact, checked):
        return
    done.faults[checked.fault] += 1
    if sum(done.faults.values()) <= NAMED:
        done.findings.append(finding_of(artifact, checked))


async def _judge(
    installation: Installation, actor: Caller, done: Scanned, artifact: Artifact, checked: Checked
) -> bool:
    """Put what was found into the log; False where the artifact was deleted while it was looked at. A row that differs from the log is not
    judged: it is a finding, and the scan goes on."""
    try:
        await judge(installation, actor, artifact, checked)
    except NotFound:
        return False
    except Tampered as error:
        done.tampered += 1
        if done.tampered <= NAMED:
            about = {"artifactId": str(artifact.id), "tenant": artifact.tenant}
            hint = f"memoryctl tamper show {artifact.id}"
            done.findings.append(Finding("artifacts.tampered", "error", "fail", error.message, hint, about))
    return True


async def _place(installation: Installation) -> dict[str, Any]:
    (rows,) = await installation.postgres.fetch(ALL_TENANTS, (SQL["progress"], {"job": _JOB}))
    if not rows:
        return _START
    state = rows[0]["state"]
    return {"after_tenant": state["tenant"], "after_id": uuid.UUID(state["id"])}


async def _save(installation: Installation, done: Scanned, last: Artifact | None) -> None:
    """Write down what was found right and, of a whole scan, how far it is."""
    queries: list[Any] = []
    if done.sound:
        tenants, ids, classes = zip(*done.sound, strict=True)
        queries.append((SQL["verified"], {"tenants": list(tenants), "ids": list(ids), "classes": list(classes)}))
    if last is not None:
        state = json.dumps({"tenant": last.tenant, "id": str(last.id)})
        queries.append((SQL["put_progress"], {"job": _JOB, "state": state}))
    if queries:
        await asyncio.shield(installation.postgres.run(ALL_TENANTS, *queries))
    done.sound = []


_HINTS: Final = {
    "corrupt": "Its bytes are not those that were stored: restore the object from a replica or a backup. Nobody is served them.",
    "missing": "Restore the object under its key and version from a replica or a backup, or upload the same bytes again.",
    "shadowed": "Somebody wrote over it or marked it deleted: find out who, and remove what covers it. Its own version is still served.",
    "unlocked": "Lock it again: POST /v1/memory/artifacts/{id}/retention with the date that it is kept until.",
}


def finding_of(artifact: Artifact, checked: Checked) -> Finding:
    """A fault, named by ids alone: a file's name may be personal."""
    fault = str(checked.fault)
    evidence = {
        "artifactId": str(artifact.id),
        "tenant": artifact.tenant,
        "key": artifact.object_key,
        "versionId": artifact.version_id,
        "sha256": artifact.sha256,
        "sizeBytes": artifact.size_bytes,
        **checked.facts,
    }
    return Finding(
        f"artifacts.{fault}", "error", "fail", f"Artifact {artifact.id} is {fault}.", _HINTS[fault], evidence
    )


def findings_of(done: Scanned) -> list[Finding]:
    """All of a scan."""
    found = list(done.findings)
    if (more := sum(done.faults.values()) - len(found)) > 0:
        found.append(
            Finding("artifacts.more", "error", "fail", f"{more} more artifacts have a fault; the log names each.")
        )
    if done.unreadable:
        text = f"{len(done.unreadable)} artifacts could not be read: {done.unreadable[0]}"
        found.append(
            Finding("artifacts.unreadable", "error", "unavailable", text, "See the object store's own log; scan again.")
        )
    if done.holds_sent_again:
        text = f"The legal hold of {done.holds_sent_again} objects was not as it must be in the store; the worker sets it again."
        found.append(Finding("artifacts.hold", "warning", "fail", text, "Find out who changed it."))
    if done.cold:
        text = (
            f"{done.cold} artifacts are in a cold class: their size, lock and version were looked at, their bytes not."
        )
        found.append(Finding("artifacts.cold", "info", "skip", text))
    if not found:
        text = f"{done.right} artifacts have the bytes that were stored."
        found.append(Finding("artifacts.right", "info", "pass", text))
    return found


def facts_of(done: Scanned) -> dict[str, Any]:
    return {
        "artifacts": done.artifacts,
        "bytes": done.bytes,
        "right": done.right,
        "cold": done.cold,
        "faults": dict(done.faults),
        "resumed": done.resumed,
    }
