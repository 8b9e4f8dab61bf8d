"""The worker's loops. They poll adaptively: at once while there is work, ever slower while there is none, until a notification.

Without a broker there are no notifications, and the longest pause is half a second; with one it is the notifier's poll interval.
Several rounds are in flight at once: while one batch is recorded in Postgres, the next is embedded or written to the index. One of them is
never of bulk requests, so that a single write waits for none of those.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import uuid
from collections.abc import Iterator
from dataclasses import dataclass

from memory_layer.errors import MemoryLayerError
from memory_layer.service import index_leases
from memory_layer.service.indexing import LANES, LeasedJobs, begin, finish, probe_services, report
from memory_layer.service.installation import Installation
from memory_layer.service.keyword_rows import START, write_keyword_rows
from memory_layer.service.worker_breakers import forget_breakers, write_breakers
from memory_layer.stores.leadership import open_leadership
from memory_layer.stores.protocols import Notifier
from memory_layer.telemetry.logs import get_logger

ROUNDS = 4
BULK_ROUNDS = ROUNDS - 1
SHORTEST, LONGEST = 0.02, 0.5  # seconds
STOP_SECONDS = 10.0  # for the rounds under way at the stop; then their rows go back
REPORT_EVERY = 5.0  # seconds
REPAIR_EVERY = 2.0  # seconds between two looks at the rounds of workers that ended
PROBE_EVERY = 0.1  # seconds between two looks at the breakers, which know themselves when they are due

log = get_logger("memory_layer.worker")


@dataclass(slots=True)
class _WorkerLock:
    """``name``: the lock that shows other workers that this process lives; None while it holds none. ``required``: no round begins
    without it."""

    required: bool
    name: str | None = None


@dataclass(slots=True)
class _BulkRounds:
    """How many rounds in flight are of bulk requests."""

    count: int = 0

    def lanes(self) -> tuple[bool, ...]:
        """For the next round. One of bulk requests is always in flight where any wait: they starve behind nobody."""
        if self.count == 0:
            return LANES[::-1]
        return LANES if self.count < BULK_ROUNDS else LANES[:1]


async def run(installation: Installation, stop: asyncio.Event) -> None:
    """Work until ``stop``; the rounds under way are finished first, or their leases returned."""
    claim_lock, look_again, bulk, worker_lock = (
        asyncio.Lock(),
        asyncio.Event(),
        _BulkRounds(),
        _WorkerLock(required=not installation.vectors.capabilities.orders_writes),
    )
    loops = [
        asyncio.create_task(_work(installation, stop, claim_lock, look_again, bulk, worker_lock)) for _ in range(ROUNDS)
    ]
    tasks = [_probe_breakers(installation, look_again), _index_keywords(installation), _report(installation)]
    if worker_lock.required:
        tasks += [_hold_worker_lock(installation, worker_lock), _repair_leases(installation)]
    background = [asyncio.create_task(task) for task in tasks]
    try:
        await stop.wait()
        await asyncio.wait(loops, timeout=STOP_SECONDS)
    finally:
        for task in (*loops, *background):
            task.cancel()
        await asyncio.wait([*loops, *background])
        with contextlib.suppress(MemoryLayerError, TimeoutError):
            async with asyncio.timeout(REPORT_EVERY / 2):
                await forget_breakers(installation, _name())


async def _work(
    installation: Installation,
    stop: asyncio.Event,
    claim_lock: asyncio.Lock,
    look_again: asyncio.Event,
    bulk: _BulkRounds,
    worker_lock: _WorkerLock,
) -> None:
    while not stop.is_set():
        async with claim_lock:  # one loop asks for work, the others work or wait
            this = await _next(installation, stop, look_again, bulk, worker_lock)
            mine = this is not None and all(job.bulk for job in this.jobs)
            bulk.count += mine
        if this is not None:
            try:
                with _log_and_continue("a round of the worker"):
                    await finish(this)
            finally:
                bulk.count -= mine
                look_again.set()


async def _next(
    installation: Installation,
    stop: asyncio.Event,
    look_again: asyncio.Event,
    bulk: _BulkRounds,
    worker_lock: _WorkerLock,
) -> LeasedJobs | None:
    """The next round, as soon as there is work; None once ``stop`` is set."""
    pause = SHORTEST
    while not stop.is_set():
        look_again.clear()
        this, answered = None, False
        if worker_lock.required and worker_lock.name is None:
            await _pause(installation.notifier, SHORTEST, stop)
            continue
        with _log_and_continue("asking for work"):
            this, answered = await begin(installation, worker=worker_lock.name, lanes=bulk.lanes()), True
        if this is not None:
            return this
        if not answered:
            pause = LONGEST
        # No notification comes for rows that wait for a service: it is back when its breaker says so.
        interval = None if installation.breakers.not_closed() else installation.notifier.poll_interval
        await _pause(installation.notifier, pause := min(pause, interval or LONGEST), stop, look_again)
        pause *= 1.5
    return None


async def _probe_breakers(installation: Installation, look_again: asyncio.Event) -> None:
    """Runs beside the rounds: a service that hangs when it is probed delays no row that does not need it. ``look_again`` is set
    when a service was lost or came back, as at a round's end, and ends the pause between two polls."""
    reported: list[str] = []
    while True:
        with _log_and_continue("probing"):
            await probe_services(installation)
            # The API is another process: it learns at once what changed, and every few seconds what has not.
            if (seen := [f"{b.service} {b.state}" for b in installation.breakers.not_closed()]) != reported:
                look_again.set()
                await write_breakers(installation, _name())
                reported = seen
        await asyncio.sleep(PROBE_EVERY)


async def _hold_worker_lock(installation: Installation, worker_lock: _WorkerLock) -> None:
    """Hold a lock as long as this process lives. Each has a new name: once it is lost, nobody takes it again."""
    while True:
        with _log_and_continue("the lock that this worker's rounds are known by"):
            async with open_leadership(installation.postgres.dsn) as leadership:
                name = f"worker {uuid.uuid4()}"
                if await leadership.take(name):
                    worker_lock.name = name
                    await leadership.watch()
        worker_lock.name = None
        await asyncio.sleep(LONGEST)


async def _repair_leases(installation: Installation) -> None:
    """Repair what workers that were killed may have written late."""
    while True:
        with _log_and_continue("looking at the rounds of other workers"):
            if rows := await index_leases.repair(installation):
                log.warning(
                    "rows are indexed again: a worker that ended may have written older state over them", rows=rows
                )
        await asyncio.sleep(REPAIR_EVERY)


async def _index_keywords(installation: Installation) -> None:
    """While a service is down, write the keywords of rows that wait for it, so that keyword search finds them."""
    after = START
    while True:
        written = 0
        if not installation.breakers.not_closed():
            after = START
        else:
            with _log_and_continue("writing words"):
                written, after = await write_keyword_rows(installation, after)
        await asyncio.sleep(0 if written else LONGEST)


async def _pause(notifier: Notifier, seconds: float, *events: asyncio.Event) -> None:
    """Wait so long, until a notification or until one of the events is set."""
    waits = [asyncio.ensure_future(notifier.wait(seconds)), *(asyncio.ensure_future(event.wait()) for event in events)]
    try:
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for wait in waits:
            wait.cancel()


@contextlib.contextmanager
def _log_and_continue(what: str) -> Iterator[None]:
    """Log an error and go on: leases run out by themselves, and the log has the trace."""
    try:
        yield
    except MemoryLayerError as error:
        log.warning("a step of the worker failed; it is tried again", step=what, error=error.message)
    except Exception:
        log.exception("a step of the worker failed in an unforeseen way; it is tried again", step=what)


async def _report(installation: Installation) -> None:
    """In every worker, not only in the leader: these are gauges of a process."""
    while True:
        with _log_and_continue("the worker's report"):
            await report(installation)
            await write_breakers(installation, _name())
        await asyncio.sleep(REPORT_EVERY)


def _name() -> str:
    return f"{socket.gethostname()}:{os.getpid()}"
