"""The worker's jobs for artifacts: send holds to the store, sweep, write manifests, scan. Recorded as runs, like an operator's."""

from __future__ import annotations

from memory_layer.errors import DependencyUnavailable
from memory_layer.ops.artifacts import manifest, scan
from memory_layer.ops.artifacts.places import LOCK, MANIFEST_LOCK, SWEEP_LOCK, find_eraser
from memory_layer.ops.manifests import manifest_key
from memory_layer.ops.operate import Run, operate
from memory_layer.ops.report import Finding, Report
from memory_layer.service import artifact_ending, holds, orphans
from memory_layer.service.installation import Installation
from memory_layer.service.orphans import SweepResult
from memory_layer.service.system import system_caller
from memory_layer.telemetry import metrics
from memory_layer.telemetry.logs import get_logger

log = get_logger("memory_layer.artifacts")


async def send_holds(installation: Installation) -> None:
    """Every few seconds: nothing on record but what fails."""
    await holds.converge(installation)


async def nightly_sweep(installation: Installation) -> None:
    """Sweep what no artifact names; hold what its node's hold covers."""

    async def work(run: Run) -> None:
        changed = await holds.follow_nodes(installation)
        if changed:
            text = f"{changed} artifacts were not held as their node was, and are now."
            run.find(Finding("artifacts.follow", "warning", "fail", text, "Something but this service wrote the rows."))
        ended = await artifact_ending.end_with_nodes(installation)
        done = await orphans.sweep(installation.postgres, installation.objects, await find_eraser(installation))
        report_sweep(run, done, ended)

    _warn(await operate(installation, "artifacts-sweep", {}, work, lock=SWEEP_LOCK))


def report_sweep(run: Run, done: SweepResult, ended: int) -> None:
    """What a sweep came to, as findings, facts and metrics; ``ended``: artifacts that were deleted because their node was."""
    run.fact("ended", ended)
    metrics.artifact_orphans.set(done.orphans - done.deleted)
    for name in ("versions", "orphans", "orphan_bytes", "deleted", "kept", "refused", "beside", "examples"):
        run.fact("orphanBytes" if name == "orphan_bytes" else name, getattr(done, name))
    run.fact("complete", done.cursor is None)
    if done.beside:
        text = f"{done.beside} versions that no artifact names lie over or under ones that are named."
        hint = "Somebody but this service wrote them: `memoryctl artifacts scan` names what they cover."
        run.find(Finding("sweep.beside", "error", "fail", text, hint, {"objects": done.examples}))
    if done.refused:
        text = f"{done.refused} objects that no artifact names stay: nobody here may delete, or writes are frozen."
        hint = "Give the worker S3_ERASER_ACCESS_KEY and S3_ERASER_SECRET, or delete them by hand."
        run.find(Finding("sweep.refused", "warning", "fail", text, hint, {"objects": done.examples}))
    if done.kept:
        text = f"{done.kept} objects that no artifact names are locked or held, and stay as long as they are."
        run.find(Finding("sweep.kept", "warning", "fail", text, evidence={"objects": done.examples}))
    if done.deleted:
        text = f"{done.deleted} objects that no artifact named were deleted."
        run.find(Finding("sweep.deleted", "info", "pass", text, evidence={"objects": done.examples}))


async def nightly_manifest(installation: Installation) -> None:
    """Write a manifest. What keeps this process from it for good (it has no key) is a finding once a night, not a job that is tried
    again every few minutes."""

    async def work(run: Run) -> None:
        try:
            report_export(run, await manifest.export(installation, manifest_key(installation.folder)))
        except manifest.NothingYet as nothing:
            run.find(Finding("manifest.nothing", "info", "skip", nothing.message))
        except DependencyUnavailable as error:
            run.find(Finding("manifest.key", "error", "unavailable", error.message))

    _warn(await operate(installation, "artifacts-manifest-export", {}, work, lock=MANIFEST_LOCK))


def report_export(run: Run, done: manifest.Exported) -> None:
    metrics.artifact_manifest.set(run.started_at.timestamp())
    run.fact("manifest", str(done.id))
    run.fact("key", done.key)
    run.fact("versionId", done.version_id)
    run.fact("sha256", done.digest)
    run.fact("artifacts", done.manifest.artifacts)
    run.fact("bytes", done.manifest.bytes)
    run.fact("previous", done.manifest.previous)


async def weekly_scan(installation: Installation) -> None:
    """Check all artifacts; where it is cut off, the next attempt goes on."""
    rate = installation.settings.artifact_scan_rate

    async def work(run: Run) -> None:
        actor = await system_caller(installation, "worker", str(run.id))
        report_scan(run, await scan.scan(installation, actor, sample=None, rate=rate, resume=True))

    _warn(await operate(installation, "artifacts-scan", {"rate": rate, "resume": True}, work, lock=LOCK))


def report_scan(run: Run, done: scan.Scanned) -> None:
    run.facts.update(scan.facts_of(done))
    run.find(*scan.findings_of(done))


def _warn(report: Report) -> None:
    if not report.succeeded:
        log.warning("artifacts need an operator; see `memoryctl runs show`", run=report.run_id)
