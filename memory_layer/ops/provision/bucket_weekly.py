"""What the worker does with the buckets each week: probe their locks, and sample what lies there. A run on record, as an operator's."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from memory_layer.config import Settings
from memory_layer.errors import DependencyUnavailable, MemoryLayerError
from memory_layer.ops import runs
from memory_layer.ops.operate import Run, operate
from memory_layer.ops.provision import bucket_sample, buckets
from memory_layer.ops.provision.bucket_probe import probe
from memory_layer.ops.provision.bucket_sample import Expected
from memory_layer.ops.report import Finding
from memory_layer.service.installation import Installation
from memory_layer.sql import queries
from memory_layer.stores.objects import s3_control as s3
from memory_layer.stores.objects.s3_client import Refused
from memory_layer.stores.postgres import ALL_TENANTS
from memory_layer.telemetry import metrics
from memory_layer.telemetry.logs import get_logger

VERB: Final = "buckets-weekly"
WAIT: Final = 900.0  # seconds that a canary may take to its replica
_UNANSWERED: Final = 3
SAMPLES: Final = 200  # objects of each bucket

_SQL = queries("operations")
log = get_logger("memory_layer.buckets")


async def weekly(installation: Installation) -> None:
    """Nothing where artifacts lie in a directory, which has no locks to look at.

    A lock that does not hold is in the run's report, in the log as ``ops.buckets-weekly.failed``, and in the metrics: it needs a hand,
    so the job itself has done its part. Raises what keeps it from looking: then the schedule tries again.
    """
    settings = installation.settings
    if not buckets.in_s3(settings):
        return
    dsn = installation.postgres.dsn
    (rows,) = await installation.postgres.fetch(ALL_TENANTS, (_SQL["sample_retained_artifacts"], {"limit": SAMPLES}))
    expected = [Expected(row["object_key"], row["version_id"], row["retain_until"]) for row in rows]
    after = await asyncio.to_thread(_left_off, dsn)

    async def work(run: Run) -> None:
        await asyncio.to_thread(
            look, settings, run, wait=WAIT, samples=SAMPLES, expected=expected, after=after, say=log.info
        )

    arguments = {"buckets": buckets.target_names(settings), "samples": SAMPLES}
    report = await operate(installation, VERB, arguments, work)
    if report.exit == _UNANSWERED:
        raise DependencyUnavailable(f"S3 did not answer while locks were tried: memoryctl runs show {report.run_id}")
    if not report.succeeded:
        log.error(
            "a lock of the buckets does not hold, or could not be tried; see `memoryctl runs show`", run=report.run_id
        )


def look(
    settings: Settings,
    run: Run,
    *,
    wait: float,
    samples: int,
    expected: Sequence[Expected],
    say: Callable[[str], None],
    after: Mapping[str, str | None] | None = None,
) -> None:
    """Probe and sample; findings and facts go to ``run``, figures to the metrics. ``after``: where the last samples left off."""
    probed = probe(settings, wait, say)
    run.find(*probed.findings)
    run.fact("replicationLagSeconds", probed.lags)
    if not buckets.in_s3(settings):
        return
    reached: dict[str, str | None] = {}
    for bucket in buckets.buckets_of(settings):
        faults = len(run.findings)
        _sample(settings, bucket, run, samples, expected, (after or {}).get(bucket.label), reached, say)
        bad = any(f.status not in ("pass", "skip") and f.level == "error" for f in run.findings[faults:])
        metrics.lock_sample.labels(bucket.label).set(0 if bad else 1)
    run.fact("sampledTo", reached)
    for label, safe in probed.safe.items():
        metrics.lock_probe.labels(label).set(1 if safe else 0)
    for label, lag in probed.lags.items():
        metrics.replication_lag.labels(label).set(wait if lag is None else lag)


def _sample(
    settings: Settings,
    bucket: buckets.Bucket,
    run: Run,
    samples: int,
    expected: Sequence[Expected],
    after: str | None,
    reached: dict[str, str | None],
    say: Callable[[str], None],
) -> None:
    client = s3.connect(settings, buckets.service_login(settings, bucket))
    try:
        if not s3.exists(client, bucket.name):
            return  # which the probe reports
        say(f"sampling {bucket.name}")
        if bucket.kind == "archive":
            found, reached[bucket.label] = bucket_sample.archived(
                bucket, client, samples, settings.archive_lock_days, after
            )
        elif bucket.label == "artifacts":
            found = bucket_sample.artifacts(bucket, client, expected, settings.artifact_lock_mode)
        else:
            found = []
        run.find(*found)
    except (Refused, MemoryLayerError) as error:
        text = error.message if isinstance(error, MemoryLayerError) else f"{error}."
        run.find(
            Finding(
                f"buckets.{bucket.label}.sample", "error", "unavailable", f"{bucket.name} cannot be sampled: {text}"
            )
        )
    finally:
        client.close()


def _left_off(dsn: str) -> dict[str, str | None]:
    """Up to which key the last weekly run looked, by bucket: a bucket too large for one sample is gone through over weeks."""
    newest = [run for run in runs.recent(dsn, VERB, 1) if run["verdict"] not in (runs.RUNNING, runs.INTERRUPTED)]
    report: Any = runs.find(dsn, uuid.UUID(newest[0]["runId"]))["report"] if newest else None
    facts = (report or {}).get("facts") or {}
    return dict(facts.get("sampledTo") or {})
