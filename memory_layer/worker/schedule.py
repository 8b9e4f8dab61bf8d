"""The worker's periodic jobs. However many workers run, each job is run by one of them: its leader.

Every process tries to lead every job, and holds what it leads on a connection of its own. When a leader ends, the others
take over within about a second; when its connection breaks, it stops what it is doing at once.

``ops_schedule`` says when a job is due, so that a restart neither repeats nor forgets one; a job that came due while no worker ran
runs once, not as often as it was missed. An attempt counts as failed until it has succeeded, so a job whose worker was killed is tried
again like one that failed: soon, then ever later. The state of a job that runs more often than once a minute is saved when it changes,
and otherwise once a minute.
"""

from __future__ import annotations

import asyncio
import calendar
import contextlib
import datetime as dt
import os
import random
import socket
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

from memory_layer.errors import MemoryLayerError
from memory_layer.ops import anchors, runs
from memory_layer.ops.archive import job as archiving
from memory_layer.ops.artifacts import jobs as artifacts
from memory_layer.ops.provision import bucket_weekly
from memory_layer.ops.schedule import State, load, save
from memory_layer.ops.vectors import nightly
from memory_layer.service import checkpoints, generations, indexing, retention
from memory_layer.service.installation import Installation
from memory_layer.service.renewed_vectors import renew as renew_vectors
from memory_layer.service.renewed_words import renew as renew_words
from memory_layer.stores.leadership import Leadership, open_leadership
from memory_layer.telemetry import metrics
from memory_layer.telemetry.logs import bound, get_logger

SELDOM = 60.0  # seconds; jobs with a shorter period are written down no more often than that
TAKE_OVER = 1.0  # seconds between two attempts to lead a job that another process leads
STOP_SECONDS = 5.0  # for the jobs under way at the stop
MAX_BACKOFF = 300.0  # seconds
MAX_JITTER = 30.0  # seconds

log = get_logger("memory_layer.schedule")


class Every(NamedTuple):
    """So many seconds after the last start."""

    seconds: float

    def __str__(self) -> str:
        return f"every {self.seconds:g} s"


class Daily(NamedTuple):
    """Once a day at this time, UTC."""

    at: dt.time

    def __str__(self) -> str:
        return f"daily at {self.at:%H:%M} UTC"


class Weekly(NamedTuple):
    """Once a week on this day (Monday is 0) at this time, UTC."""

    day: int
    at: dt.time

    def __str__(self) -> str:
        return f"{calendar.day_name[self.day]}s at {self.at:%H:%M} UTC"


When: TypeAlias = Every | Daily | Weekly


@dataclass(frozen=True, slots=True)
class Job:
    """``work`` may run again after it was cut off anywhere, and must not take longer than ``limit`` seconds."""

    name: str
    when: When
    work: Callable[[Installation], Awaitable[object]]
    limit: float = 600.0

    @property
    def period(self) -> float:
        if isinstance(self.when, Every):
            return self.when.seconds
        return 86_400.0 if isinstance(self.when, Daily) else 7 * 86_400.0


async def _sweep_index(installation: Installation) -> None:
    await indexing.sweep(installation)


async def _maintain_index(installation: Installation) -> None:
    await indexing.maintain(installation)


async def _write_owed_runs(installation: Installation) -> int:
    return await runs.write_owed(installation.postgres, installation.committer)


JOBS: tuple[Job, ...] = (
    Job("checkpoint", Every(1), checkpoints.publish_once),
    Job("heartbeat", Every(10), checkpoints.heartbeat_once),
    Job("buckets", Weekly(calendar.SATURDAY, dt.time(3, 30)), bucket_weekly.weekly, limit=3 * 3600),
    Job("expiry", Every(60), retention.expire, limit=3600),
    Job("idempotency-keys", Every(600), retention.forget_requests),
    Job("index-sweep", Every(600), _sweep_index),
    Job("index-tend", Every(60), _maintain_index, limit=3600),
    Job("run-entries", Every(60), _write_owed_runs),
    Job("text-index", Every(60), renew_words, limit=3600),
    Job("earlier-vectors", Every(60), renew_vectors, limit=24 * 3600),
    Job("reembed", Every(60), generations.fill_all, limit=3600),
    Job("artifact-holds", Every(5), artifacts.send_holds),
    Job("artifact-sweep", Daily(dt.time(3, 30)), artifacts.nightly_sweep, limit=6 * 3600),
    Job("artifact-manifest", Daily(dt.time(1, 30)), artifacts.nightly_manifest, limit=6 * 3600),
    Job("artifact-scan", Weekly(calendar.SUNDAY, dt.time(4, 30)), artifacts.weekly_scan, limit=24 * 3600),
    Job("archive", Every(600), archiving.archive_full, limit=3600),
    Job("archive-rest", Daily(dt.time(3, 10)), archiving.archive_rest, limit=3600),
    Job("anchors", Every(300), anchors.push_scheduled),
    Job("vectors", Daily(dt.time(2, 30)), nightly.nightly, limit=6 * 3600),
)


def next_due(when: When, now: dt.datetime) -> dt.datetime:
    """When it is due after a start at ``now``."""
    if isinstance(when, Every):
        return now + dt.timedelta(seconds=when.seconds)
    today = dt.datetime.combine(now.astimezone(dt.UTC).date(), when.at, dt.UTC)
    if isinstance(when, Weekly):
        today += dt.timedelta(days=(when.day - today.weekday()) % 7)
        return today if today > now else today + dt.timedelta(days=7)
    return today if today > now else today + dt.timedelta(days=1)


async def run_schedule(installation: Installation, stop: asyncio.Event, jobs: Sequence[Job] = JOBS) -> None:
    """Run the jobs that this process leads until ``stop``; outlives the database."""
    if not jobs:
        return
    while not stop.is_set():
        try:
            async with open_leadership(installation.postgres.dsn) as leadership:
                await _serve(installation, leadership, stop, jobs)
        except MemoryLayerError as error:
            log.warning("the schedule stands still; it is tried again", error=error.message)
        await _pause(stop, random.uniform(0.5, 1.5) * TAKE_OVER)  # noqa: S311 - jitter


async def _serve(installation: Installation, leadership: Leadership, stop: asyncio.Event, jobs: Sequence[Job]) -> None:
    """Until ``stop`` is set, or until the locks are lost."""
    loops = [asyncio.create_task(_lead(job, installation, leadership, stop), name=f"job {job.name}") for job in jobs]
    watch = asyncio.create_task(leadership.watch())
    stopped = asyncio.create_task(stop.wait())
    try:
        await asyncio.wait([watch, stopped], return_when=asyncio.FIRST_COMPLETED)
        if stop.is_set():
            await asyncio.wait(loops, timeout=STOP_SECONDS)
        else:
            log.warning("the connection that this worker's jobs hang on is lost; they are stopped")
    finally:
        for task in (*loops, watch, stopped):
            task.cancel()
        await asyncio.wait([*loops, watch, stopped])


async def _lead(job: Job, installation: Installation, leadership: Leadership, stop: asyncio.Event) -> None:
    while not stop.is_set():
        try:
            if await leadership.take(job.name):
                with bound(job=job.name):  # in every line that its runs cause
                    await _repeat(job, installation, stop)
        except MemoryLayerError as error:
            log.warning("the state of a job cannot be read or written", job=job.name, error=error.message)
        except Exception:
            log.exception("the state of a job cannot be read or written", job=job.name)
        await _pause(stop, random.uniform(0.5, 1.5) * TAKE_OVER)  # noqa: S311 - jitter


async def _repeat(job: Job, installation: Installation, stop: asyncio.Event) -> None:
    """Run the job whenever it is due. Raises when its state cannot be read or written down."""
    state = await _load(job, installation)
    written = dt.datetime.min.replace(tzinfo=dt.UTC)
    while not await _pause(stop, (state.next_due - _now()).total_seconds()):
        started = _now()
        regular = next_due(job.when, started) + _jitter(job)
        before = (state.failures > 0, state.last_error)
        state.last_started = started
        state.failures += 1
        state.next_due = started + _backoff(job, state.failures)
        if job.period >= SELDOM:
            await _save(job, installation, state)
        error = await _attempt(job, installation)
        state.last_finished, state.last_error = _now(), error
        if error is None:
            state.failures, state.last_success, state.next_due = 0, state.last_finished, regular
            metrics.job_success.labels(job.name).set(state.last_success.timestamp())
        else:
            state.next_due = state.last_finished + _backoff(job, state.failures)
            metrics.job_failures.labels(job.name).inc()
        changed = before != (state.failures > 0, state.last_error)
        if job.period >= SELDOM or changed or (started - written).total_seconds() >= SELDOM:
            await _save(job, installation, state)
            written = started


async def _attempt(job: Job, installation: Installation) -> str | None:
    """Run it once; what went wrong, which is logged."""
    try:
        async with asyncio.timeout(job.limit):
            await job.work(installation)
    except MemoryLayerError as error:
        log.warning("a job failed", error=error.message)
        return error.message
    except TimeoutError:
        log.warning("a job did not end in time", seconds=job.limit)
        return f"It did not end within {job.limit:g} s."
    except Exception as error:
        log.exception("a job failed in an unforeseen way")
        return f"{type(error).__name__}: {error}"
    return None


def _backoff(job: Job, failures: int) -> dt.timedelta:
    """Longer with each failure, and never so long that a frequent job sleeps through the end of an outage."""
    most = min(MAX_BACKOFF, 10 * job.period)
    return dt.timedelta(seconds=random.uniform(0.5, 1.0) * min(most, 2.0 ** min(failures, 10)))  # noqa: S311 - jitter


def _jitter(job: Job) -> dt.timedelta:
    """Installations that were started together must not all work at the same moment."""
    if job.period < SELDOM:
        return dt.timedelta()
    return dt.timedelta(seconds=random.uniform(0, min(MAX_JITTER, 0.1 * job.period)))  # noqa: S311 - jitter


async def _pause(stop: asyncio.Event, seconds: float) -> bool:
    """Wait; True once ``stop`` is set."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(max(seconds, 0.0)):
            await stop.wait()
    return stop.is_set()


async def _load(job: Job, installation: Installation) -> State:
    state = await load(installation.postgres, job.name)
    if state is not None:
        return state
    now = _now()
    return State(next_due=now if isinstance(job.when, Every) else next_due(job.when, now))


async def _save(job: Job, installation: Installation, state: State) -> None:
    await save(installation.postgres, job.name, f"{socket.gethostname()}:{os.getpid()}", state)


def _now() -> dt.datetime:
    return dt.datetime.now(dt.UTC)
