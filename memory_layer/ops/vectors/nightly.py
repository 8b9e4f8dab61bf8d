"""What the worker does with the index each night: compare and repair it, and keep a snapshot. A run on record, as an operator's."""

from __future__ import annotations

import asyncio
import datetime as dt
from pathlib import Path
from typing import Final

from memory_layer.errors import UsageError
from memory_layer.ops.manifests import manifest_key
from memory_layer.ops.operate import Run, operate
from memory_layer.ops.vectors import archived, findings, replay, snapshot, words
from memory_layer.ops.vectors.reconcile import KINDS, reconcile
from memory_layer.ops.vectors.spaces import LOCK, Scope, list_spaces, unknown_spaces
from memory_layer.service.installation import Installation
from memory_layer.telemetry import metrics
from memory_layer.telemetry.logs import get_logger

VERB: Final = "vectors-nightly"
TIMEOUT: Final = 1800.0  # seconds for the rows that were sent again

log = get_logger("memory_layer.vectors")


async def nightly(installation: Installation) -> None:
    """Repair what can be repaired row by row, and write a snapshot where VECTOR_SNAPSHOT_DIR says where to, and with
    VECTOR_SNAPSHOT_LOCK_DAYS into the archive too.

    What remains is in the run's report, in the log as ``ops.vectors-nightly.failed``, and in the metrics: it needs a hand, so the job
    itself has done its part. Raises what keeps it from looking: then the schedule tries again.
    """
    settings = installation.settings
    folder = installation.folder

    async def work(run: Run) -> None:
        await _compare(installation, run)
        if settings.vector_snapshot_dir is not None:
            out = await _keep(
                installation, Path(settings.vector_snapshot_dir), settings.vector_snapshot_keep, folder, run
            )
            if settings.vector_snapshot_lock_days is not None:
                kept = await archived.keep(installation.archive, out, settings.vector_snapshot_lock_days)
                run.fact("archived", kept)

    report = await operate(installation, VERB, {"snapshotDir": settings.vector_snapshot_dir}, work, lock=LOCK)
    if not report.succeeded:
        log.warning(
            "the index differs from Postgres, or its snapshot does; see `memoryctl runs show`", run=report.run_id
        )


async def _compare(installation: Installation, run: Run) -> None:
    spaces = await list_spaces(installation, Scope())
    before, after, sent = await reconcile(installation, spaces, repair=True, within=TIMEOUT)
    for finding in (
        *findings.findings_of(after, repaired=True),
        *(replay.findings_of(sent, here=False) if sent.left else ()),
        *findings.waiting_findings(after),
        findings.unknown_finding(
            await unknown_spaces(installation)
        ),  # a hand forgets them: perhaps they are somebody else's
    ):
        run.find(finding)
    texts = await words.compare(installation, Scope(), repair=True)
    run.find(words.finding_of(texts, repaired=True))
    run.fact("textsCompared", texts.compared)
    left = findings.facts_of(after)
    for kind in KINDS:
        metrics.vector_differences.labels(kind).set(left["differences"].get(kind, 0))
    run.fact("found", findings.facts_of(before)["differences"])
    run.fact("sentAgain", sent.rows)
    run.fact("removed", sum(done.removed for done in before))
    run.facts.update(left)


async def _keep(installation: Installation, parent: Path, keep: int, folder: Path, run: Run) -> Path:
    if not parent.is_absolute():
        raise UsageError(f"VECTOR_SNAPSHOT_DIR is {parent}: give an absolute path, a worker has no folder of its own.")
    out = parent / snapshot.nightly_name(dt.datetime.now(dt.UTC))
    done = await snapshot.snapshot(installation, Scope(), out, manifest_key(folder))
    metrics.vector_snapshot.set(dt.datetime.now(dt.UTC).timestamp())
    run.find(*snapshot.findings_of(done))
    run.fact("snapshot", snapshot.facts_of(done, out))
    run.fact("pruned", await asyncio.to_thread(snapshot.prune, parent, keep))
    return out
