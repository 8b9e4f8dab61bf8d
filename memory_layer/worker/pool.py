"""The worker's loop. Polls adaptively: at once while there is work, ever slower (up to half a second) while there is none.

A NOTIFY per write would serialise commits across the server, so nobody rings; the pause is what an idle worker costs.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging

from memory_layer.errors import MemoryLayerError
from memory_layer.service.indexing import backlog, work_once
from memory_layer.stores import Stores, warm_up
from memory_layer.telemetry import metrics

SHORTEST, LONGEST = 0.02, 0.5  # seconds
REPORT_EVERY = 5.0  # seconds

log = logging.getLogger("memory_layer.worker")


async def run(stores: Stores, stop: asyncio.Event) -> None:
    """Work until ``stop``; a batch in hand is finished first."""
    reporting = asyncio.create_task(_report(stores))
    await warm_up(stores)
    pause = SHORTEST
    try:
        while not stop.is_set():
            try:
                worked = await work_once(stores)
            except MemoryLayerError as error:
                log.warning("the worker waits: %s", error.message)
                worked, pause = 0, LONGEST
            if worked:
                pause = SHORTEST
                continue
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await stop.wait()
            pause = min(pause * 1.5, LONGEST)
    finally:
        reporting.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await reporting


async def _report(stores: Stores) -> None:
    while True:
        with contextlib.suppress(MemoryLayerError):
            pending, oldest = await backlog(stores)
            metrics.index_pending.set(pending)
            metrics.index_lag.set(oldest)
        await asyncio.sleep(REPORT_EVERY)
