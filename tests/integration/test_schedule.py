"""The worker's periodic jobs: each is run by one worker, once when it is due, whoever dies meanwhile."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import datetime as dt
import itertools
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memory_layer.errors import DependencyUnavailable
from memory_layer.ops import runs
from memory_layer.service.installation import Installation
from memory_layer.telemetry import metrics
from memory_layer.worker import schedule
from memory_layer.worker.schedule import JOBS, Daily, Every, Job, Weekly, next_due, run_schedule
from tests.support.service import rows, running_memory, verify

Database = Callable[[str], str]
Root = Callable[..., list[tuple[Any, ...]]]

ROOT = Path(__file__).resolve().parents[2]
HOUR = Every(3600)


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A second is long for a test."""
    monkeypatch.setattr(schedule, "TAKE_OVER", 0.1)


@pytest.fixture
async def memory(database: Database, tmp_path: Path) -> AsyncIterator[Installation]:
    async with running_memory(database("memory_app"), tmp_path) as opened:
        yield opened


@pytest.fixture
async def second(database: Database, memory: Installation, tmp_path: Path) -> AsyncIterator[Installation]:
    """The same installation in another worker."""
    async with running_memory(database("memory_app"), tmp_path) as opened:
        yield opened


@pytest.fixture
def root(database: Database) -> Root:
    return lambda query, *params: rows(database("postgres"), query, params)


@contextlib.asynccontextmanager
async def scheduled(*workers: tuple[Installation, Job]) -> AsyncIterator[None]:
    """Each worker with its own idea of what the job does, until the end of the block."""
    stop = asyncio.Event()
    running = [asyncio.create_task(run_schedule(memory, stop, [job])) for memory, job in workers]
    try:
        yield
        assert not any(task.done() for task in running)
    finally:
        stop.set()
        await asyncio.wait_for(asyncio.gather(*running), 60)


def counted(name: str, when: schedule.When, *outcomes: Exception, limit: float = 600.0) -> tuple[Job, list[float]]:
    """A job that notes when it ran, and fails with these first."""
    ran: list[float] = []
    to_come = list(outcomes)

    async def work(memory: Installation) -> None:
        ran.append(time.monotonic())
        if to_come:
            raise to_come.pop(0)

    return Job(name, when, work, limit), ran


async def until(true: Callable[[], bool], seconds: float = 60) -> None:
    async with asyncio.timeout(seconds):
        while not true():  # noqa: ASYNC110 - what it waits for is a row or another process
            await asyncio.sleep(0.02)


# --- when


MOMENTS = st.floats(0, 4e9).map(lambda seconds: dt.datetime.fromtimestamp(seconds, dt.UTC))


@given(st.times(), MOMENTS)
def test_daily_is_the_next_such_time_and_never_now(at: dt.time, now: dt.datetime) -> None:
    due = next_due(Daily(at), now)
    assert dt.timedelta(0) < due - now <= dt.timedelta(days=1)
    assert due.timetz().replace(tzinfo=None) == at


@given(st.integers(0, 6), st.times(), MOMENTS)
def test_weekly_is_the_next_such_day_and_never_now(day: int, at: dt.time, now: dt.datetime) -> None:
    due = next_due(Weekly(day, at), now)
    assert dt.timedelta(0) < due - now <= dt.timedelta(days=7)
    assert (due.weekday(), due.timetz().replace(tzinfo=None)) == (day, at)


def test_every_counts_from_the_start() -> None:
    now = dt.datetime(2026, 11, 23, 12, tzinfo=dt.UTC)
    assert next_due(Every(90), now) == dt.datetime(2026, 11, 23, 12, 1, 30, tzinfo=dt.UTC)


def test_the_jobs_have_names_of_their_own() -> None:
    assert len({job.name for job in JOBS}) == len(JOBS)
    assert {"expiry", "idempotency-keys", "index-sweep", "run-entries", "checkpoint", "heartbeat"} <= {
        j.name for j in JOBS
    }


# --- one of several


async def test_of_two_workers_one_runs_each_job(memory: Installation, second: Installation) -> None:
    one, ran = counted("tick", Every(0.2))
    other, ran_too = counted("tick", Every(0.2))
    async with scheduled((memory, one), (second, other)):
        await until(lambda: len(ran) + len(ran_too) >= 10)
    assert not (ran and ran_too)
    turns = ran or ran_too
    assert min(b - a for a, b in itertools.pairwise(turns)) > 0.15


async def test_a_worker_that_stops_hands_over_at_once(memory: Installation, second: Installation) -> None:
    one, ran = counted("tick", Every(0.1))
    other, ran_too = counted("tick", Every(0.1))
    async with scheduled((memory, one)):
        await until(lambda: len(ran) >= 2)
        async with scheduled((second, other)):
            await asyncio.sleep(0)
            assert not ran_too
    async with scheduled((second, other)):
        await until(lambda: len(ran_too) >= 2, 5)


LEADER = """
import asyncio, sys
from pathlib import Path
from memory_layer.worker.schedule import Every, Job, run_schedule
from tests.support.service import running_memory

async def work(memory):
    print("ran", flush=True)

async def main():
    async with running_memory(sys.argv[1], Path(sys.argv[2])) as memory:
        await run_schedule(memory, asyncio.Event(), [Job("tick", Every(0.2), work)])

asyncio.run(main())
"""


async def test_when_the_leader_is_killed_another_takes_over_within_seconds(
    database: Database, memory: Installation, tmp_path: Path
) -> None:
    child = subprocess.Popen(  # noqa: ASYNC220 - it returns at once
        [sys.executable, "-c", LEADER, database("memory_app"), str(tmp_path)],
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    try:
        assert child.stdout is not None
        assert await asyncio.to_thread(child.stdout.readline) == "ran\n"
        job, ran = counted("tick", Every(0.2))
        async with scheduled((memory, job)):
            assert await asyncio.to_thread(child.stdout.readline) == "ran\n"
            assert ran == []
            child.send_signal(signal.SIGKILL)
            await until(lambda: len(ran) >= 2, 5)
    finally:
        child.kill()
        child.communicate()


async def test_a_leader_that_loses_its_connection_stops_what_it_does(
    memory: Installation, second: Installation, root: Root, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("memory_layer.stores.leadership.PING_EVERY", 0.05)
    begun, cut = asyncio.Event(), asyncio.Event()

    async def endless(memory: Installation) -> None:
        begun.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cut.set()
            raise

    other, ran = counted("long", HOUR)
    async with scheduled((memory, Job("long", HOUR, endless))):
        await asyncio.wait_for(begun.wait(), 60)
        async with scheduled((second, other)):
            ((pid,),) = root(
                "SELECT DISTINCT l.pid FROM pg_locks l JOIN pg_database d ON d.oid = l.database"
                " WHERE l.locktype = 'advisory' AND d.datname = current_database()"
            )
            root("SELECT pg_terminate_backend(%s)", pid)
            await asyncio.wait_for(cut.wait(), 60)
            # Whoever leads next tries again soon: what was cut off counts as an attempt that failed.
            begun.clear()
            await until(lambda: bool(ran) or begun.is_set())
            assert root("SELECT failures > 0 OR last_success IS NOT NULL FROM ops_schedule") == [(True,)]


async def test_it_outlives_the_database(memory: Installation, root: Root, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("memory_layer.stores.leadership.PING_EVERY", 0.05)
    job, ran = counted("tick", Every(0.1))
    async with scheduled((memory, job)):
        for _ in range(2):
            before = len(ran)
            await until(lambda before=before: len(ran) > before + 1)  # type: ignore[misc]
            root(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid()"
                " AND datname = current_database() AND backend_type = 'client backend'"
            )
        before = len(ran)
        await until(lambda: len(ran) > before + 1)


# --- due


@pytest.mark.parametrize("when", [HOUR, Daily(dt.time(3))])
async def test_what_was_missed_is_caught_up_once(memory: Installation, root: Root, when: schedule.When) -> None:
    root(
        "INSERT INTO ops_schedule VALUES ('seldom', 'gone:1', now() - interval '9 days', now() - interval '9 days',"
        " now() - interval '9 days', NULL, 0, now() - interval '8 days')"
    )
    job, ran = counted("seldom", when)
    clock, ticks = counted("tick", Every(0.05))
    async with scheduled((memory, job), (memory, clock)):
        await until(lambda: len(ticks) >= 20)
        await until(lambda: root("SELECT last_success > now() - interval '1 minute' FROM ops_schedule WHERE job = 'seldom'")
                    == [(True,)])  # fmt: skip
    assert len(ran) == 1
    due = root("SELECT next_due - now() FROM ops_schedule WHERE job = 'seldom'")[0][0]
    assert dt.timedelta(0) < due <= dt.timedelta(days=1, seconds=30)


async def test_a_restart_neither_repeats_nor_forgets(memory: Installation, root: Root) -> None:
    job, ran = counted("hourly", HOUR)
    for _ in range(3):
        clock, ticks = counted("tick", Every(0.05))
        async with scheduled((memory, job), (memory, clock)):
            await until(lambda ticks=ticks: bool(ran) and len(ticks) >= 5)  # type: ignore[misc]
            await until(
                lambda: root("SELECT last_success IS NOT NULL FROM ops_schedule WHERE job = 'hourly'") == [(True,)]
            )
    assert len(ran) == 1
    root("UPDATE ops_schedule SET next_due = now() WHERE job = 'hourly'")
    async with scheduled((memory, job)):
        await until(lambda: len(ran) == 2)


async def test_a_daily_job_that_never_ran_waits_for_its_time(memory: Installation, root: Root) -> None:
    job, ran = counted("nightly", Daily((dt.datetime.now(dt.UTC) - dt.timedelta(minutes=5)).time()))
    clock, ticks = counted("tick", Every(0.05))
    async with scheduled((memory, job), (memory, clock)):
        await until(lambda: len(ticks) >= 10)
    assert ran == []


async def test_frequent_jobs_write_only_when_something_changes(
    memory: Installation, root: Root, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved: list[tuple[int, str | None]] = []
    save = schedule._save

    async def noted(job: Job, memory: Installation, state: schedule.State) -> None:
        saved.append((state.failures, state.last_error))
        await save(job, memory, state)

    monkeypatch.setattr(schedule, "_save", noted)
    job, ran = counted("tick", Every(0.05), *[DependencyUnavailable("no disk")] * 3)
    async with scheduled((memory, job)):
        await until(lambda: len(ran) >= 15)
    assert saved == [(1, "no disk"), (0, None)]


# --- failures


async def test_a_failure_is_logged_stored_counted_and_tried_again(
    memory: Installation, root: Root, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(schedule, "MAX_BACKOFF", 0.2)
    failures = metrics.job_failures.labels("shaky")._value
    before = failures.get()
    seen: list[tuple[Any, ...]] = []
    job, ran = counted(
        "shaky", HOUR, DependencyUnavailable("no disk"), ZeroDivisionError("odd \0 text"), ValueError("x")
    )

    async def work(memory: Installation) -> None:
        seen.extend(root("SELECT failures, last_error FROM ops_schedule"))
        await job.work(memory)

    async with scheduled((memory, Job("shaky", HOUR, work))):
        await until(lambda: len(ran) == 4 and root("SELECT failures FROM ops_schedule") == [(0,)])
    # What is under way counts as failed, until it has succeeded.
    assert seen == [(1, None), (2, "no disk"), (3, "ZeroDivisionError: odd \ufffd text"), (4, "ValueError: x")]
    assert root("SELECT last_error, last_success > last_started FROM ops_schedule") == [(None, True)]
    assert failures.get() - before == 3
    assert metrics.job_success.labels("shaky")._value.get() == pytest.approx(time.time(), abs=60)
    assert "no disk" in caplog.text
    assert "ZeroDivisionError" in caplog.text
    assert {record.msg["job"] for record in caplog.records if record.name == "memory_layer.schedule"} == {"shaky"}


async def test_a_job_that_hangs_is_ended_and_counts_as_failed(memory: Installation, root: Root) -> None:
    async def hang(memory: Installation) -> None:
        await asyncio.Event().wait()

    async with scheduled((memory, Job("hangs", HOUR, hang, limit=0.1))):
        await until(lambda: root("SELECT last_error FROM ops_schedule") == [("It did not end within 0.1 s.",)])


def test_the_wait_grows_and_stays_in_proportion() -> None:
    def longest(seconds: float, failures: int) -> float:
        job = Job("x", Every(seconds), lambda memory: asyncio.sleep(0))
        return max(schedule._backoff(job, failures).total_seconds() for _ in range(200))

    assert longest(3600, 1) <= 2
    assert 100 < longest(3600, 30) <= 300
    assert 5 < longest(1, 30) <= 10


# --- what it really runs


async def test_the_workers_own_jobs_all_succeed(
    database: Database, memory: Installation, root: Root, tmp_path: Path
) -> None:
    stop = asyncio.Event()
    # Those with an hour of their own come at once, as it would be that hour.
    jobs = [dataclasses.replace(job, when=Every(3600)) if not isinstance(job.when, Every) else job for job in JOBS]
    running = asyncio.create_task(run_schedule(memory, stop, jobs))
    try:
        names = {job.name for job in JOBS}
        await until(
            lambda: {n for (n,) in root("SELECT job FROM ops_schedule WHERE last_success IS NOT NULL")} == names
        )
        assert [row["failures"] for row in runs.schedule(database("memory_app"))] == [0] * len(names)
    finally:
        stop.set()
        await asyncio.wait_for(running, 60)
    assert verify(database("postgres"), tmp_path).findings == ()
