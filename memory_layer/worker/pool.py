"""The worker's loops. Polls adaptively: at once while there is work, ever slower while there is none, until somebody rings.

Without a broker nobody does, and the longest pause is half a second; with one it is the doorbell's patience. Two
rounds are in flight at once: while one batch is settled in Postgres, the next is embedded.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Iterator

from memory_layer.errors import MemoryLayerError
from memory_layer.service.indexing import Round, backlog, begin, finish
from memory_layer.stores import Stores, warm_up
from memory_layer.stores.protocols import Doorbell
from memory_layer.telemetry import metrics

ROUNDS = 2
SHORTEST, LONGEST = 0.02, 0.5  # seconds
STOP_SECONDS = 10.0  # for the rounds in hand when told to stop; then their rows go back
REPORT_EVERY = 5.0  # seconds

log = logging.getLogger("memory_layer.worker")


async def run(stores: Stores, stop: asyncio.Event) -> None:
    """Work until ``stop``; the rounds in hand are finished first, or their leases returned."""
    await warm_up(stores)
    turn = asyncio.Lock()
    loops = [asyncio.create_task(_work(stores, stop, turn)) for _ in range(ROUNDS)]
    report = asyncio.create_task(_report(stores))
    try:
        await stop.wait()
        await asyncio.wait(loops, timeout=STOP_SECONDS)
    finally:
        for task in (*loops, report):
            task.cancel()
        await asyncio.wait([*loops, report])


async def _work(stores: Stores, stop: asyncio.Event, turn: asyncio.Lock) -> None:
    while not stop.is_set():
        async with turn:  # one loop asks for work, the other works or waits
            this = await _next(stores, stop)
        if this is not None:
            with _outlived("a round of the worker"):
                await finish(this)


async def _next(stores: Stores, stop: asyncio.Event) -> Round | None:
    """The next round, as soon as there is work; None when told to stop."""
    pause = SHORTEST
    while not stop.is_set():
        this, answered = None, False
        with _outlived("asking for work"):
            this, answered = await begin(stores), True
        if this is not None:
            return this
        if not answered:
            pause = LONGEST
        await _pause(stores.doorbell, pause, stop)
        pause = min(pause * 1.5, stores.doorbell.patience or LONGEST)
    return None


async def _pause(doorbell: Doorbell, seconds: float, stop: asyncio.Event) -> None:
    """Wait so long, unless somebody rings or it is time to stop."""
    waits = [asyncio.ensure_future(doorbell.wait(seconds)), asyncio.ensure_future(stop.wait())]
    try:
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for wait in waits:
            wait.cancel()


@contextlib.contextmanager
def _outlived(what: str) -> Iterator[None]:
    """A loop outlives what nobody foresaw: leases run out by themselves, and the log has the trace."""
    try:
        yield
    except MemoryLayerError as error:
        log.warning("%s: %s", what, error.message)
    except Exception:
        log.exception("%s failed", what)


async def _report(stores: Stores) -> None:
    """In every worker, not in one that leads: these are gauges of a process."""
    while True:
        with _outlived("the worker's report"):
            pending, oldest = await backlog(stores)
            metrics.index_pending.set(pending)
            metrics.index_lag.set(oldest)
        await asyncio.sleep(REPORT_EVERY)
