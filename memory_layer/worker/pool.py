"""The worker's loops. Polls adaptively: at once while there is work, ever slower while there is none, until somebody rings.

Without a broker nobody does, and the longest pause is half a second; with one it is the notifier's poll interval. Several
rounds are in flight at once: while one batch is settled in Postgres, the next is embedded or written to the index.
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
from memory_layer.service.indexing import LeasedJobs, begin, finish, probe_services, report
from memory_layer.service.installation import Installation
from memory_layer.service.keyword_rows import START, write_words
from memory_layer.service.worker_breakers import forget_breakers, write_breakers
from memory_layer.stores.leadership import open_leadership
from memory_layer.stores.protocols import Notifier
from memory_layer.telemetry.logs import get_logger

ROUNDS = 3
SHORTEST, LONGEST = 0.02, 0.5  # seconds
STOP_SECONDS = 10.0  # for the rounds in hand when told to stop; then their rows go back
REPORT_EVERY = 5.0  # seconds
MEND_EVERY = 2.0  # seconds between two looks at the rounds of workers that ended
PROBE_EVERY = 0.1  # seconds between two looks at the breakers, which know themselves when they are due

log = get_logger("memory_layer.worker")


@dataclass(slots=True)
class _Life:
    """``lock``: by which the others see that this process lives; None while it holds none. ``needed``: no round begins without."""

    needed: bool
    lock: str | None = None


async def run(installation: Installation, stop: asyncio.Event) -> None:
    """Work until ``stop``; the rounds in hand are finished first, or their leases returned."""
    turn, mended, life = (
        asyncio.Lock(),
        asyncio.Event(),
        _Life(needed=not installation.vectors.capabilities.orders_writes),
    )
    loops = [asyncio.create_task(_work(installation, stop, turn, mended, life)) for _ in range(ROUNDS)]
    tasks = [_mend(installation, mended), _word(installation), _report(installation)]
    if life.needed:
        tasks += [_live(installation, life), _mend_rounds(installation)]
    beside = [asyncio.create_task(task) for task in tasks]
    try:
        await stop.wait()
        await asyncio.wait(loops, timeout=STOP_SECONDS)
    finally:
        for task in (*loops, *beside):
            task.cancel()
        await asyncio.wait([*loops, *beside])
        with contextlib.suppress(MemoryLayerError, TimeoutError):
            async with asyncio.timeout(REPORT_EVERY / 2):
                await forget_breakers(installation, _name())


async def _work(
    installation: Installation, stop: asyncio.Event, turn: asyncio.Lock, mended: asyncio.Event, life: _Life
) -> None:
    while not stop.is_set():
        async with turn:  # one loop asks for work, the others work or wait
            this = await _next(installation, stop, mended, life)
        if this is not None:
            with _outlived("a round of the worker"):
                await finish(this)


async def _next(
    installation: Installation, stop: asyncio.Event, mended: asyncio.Event, life: _Life
) -> LeasedJobs | None:
    """The next round, as soon as there is work; None when told to stop."""
    pause = SHORTEST
    while not stop.is_set():
        mended.clear()
        this, answered = None, False
        if life.needed and life.lock is None:
            await _pause(installation.notifier, SHORTEST, stop)
            continue
        with _outlived("asking for work"):
            this, answered = await begin(installation, worker=life.lock), True
        if this is not None:
            return this
        if not answered:
            pause = LONGEST
        # Nobody rings for rows that wait for a service: it is back when its breaker says so.
        interval = None if installation.breakers.not_closed() else installation.notifier.poll_interval
        await _pause(installation.notifier, pause := min(pause, interval or LONGEST), stop, mended)
        pause *= 1.5
    return None


async def _mend(installation: Installation, mended: asyncio.Event) -> None:
    """Beside the rounds: a service that hangs when it is probed holds up no row that does not need it. ``mended`` is set when a
    service was lost or came back, for whoever waits to be rung for."""
    reported: list[str] = []
    while True:
        with _outlived("probing"):
            await probe_services(installation)
            # The API is another process: it learns at once what changed, and every few seconds what has not.
            if (seen := [f"{b.service} {b.state}" for b in installation.breakers.not_closed()]) != reported:
                mended.set()
                await write_breakers(installation, _name())
                reported = seen
        await asyncio.sleep(PROBE_EVERY)


async def _live(installation: Installation, life: _Life) -> None:
    """Hold a lock as long as this process lives; of another name each time, so that a lost one stays free."""
    while True:
        with _outlived("the lock that this worker's rounds are known by"):
            async with open_leadership(installation.postgres.dsn) as leadership:
                name = f"worker {uuid.uuid4()}"
                if await leadership.take(name):
                    life.lock = name
                    await leadership.watch()
        life.lock = None
        await asyncio.sleep(LONGEST)


async def _mend_rounds(installation: Installation) -> None:
    """What a worker wrote late and was killed over is mended by the others."""
    while True:
        with _outlived("looking at the rounds of other workers"):
            if rows := await index_leases.mend(installation):
                log.warning(
                    "rows are indexed again: a worker that ended may have written older state over them", rows=rows
                )
        await asyncio.sleep(MEND_EVERY)


async def _word(installation: Installation) -> None:
    """While a service is down, the words of what waits for it are written: search goes on by them."""
    after = START
    while True:
        written = 0
        if not installation.breakers.not_closed():
            after = START
        else:
            with _outlived("writing words"):
                written, after = await write_words(installation, after)
        await asyncio.sleep(0 if written else LONGEST)


async def _pause(notifier: Notifier, seconds: float, *events: asyncio.Event) -> None:
    """Wait so long, unless somebody rings or one of the events comes about."""
    waits = [asyncio.ensure_future(notifier.wait(seconds)), *(asyncio.ensure_future(event.wait()) for event in events)]
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
        log.warning("a step of the worker failed; it is tried again", step=what, error=error.message)
    except Exception:
        log.exception("a step of the worker failed in an unforeseen way; it is tried again", step=what)


async def _report(installation: Installation) -> None:
    """In every worker, not in one that leads: these are gauges of a process."""
    while True:
        with _outlived("the worker's report"):
            await report(installation)
            await write_breakers(installation, _name())
        await asyncio.sleep(REPORT_EVERY)


def _name() -> str:
    return f"{socket.gethostname()}:{os.getpid()}"
