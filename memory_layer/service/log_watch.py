"""Checks the end of the log from time to time, so that health turns red also without writes. Each batch checks it anyway."""

from __future__ import annotations

import asyncio
import contextlib

from memory_layer.errors import MemoryLayerError
from memory_layer.sql import queries
from memory_layer.stores.log_guard import MAX_KEYS, LogGuard, UnprovenKeys
from memory_layer.stores.logs import no_such_log
from memory_layer.stores.postgres import ALL_TENANTS, Postgres
from memory_layer.telemetry.logs import get_logger

EVERY = 15.0  # seconds
TRIES = 3  # while keys are being changed

_HEAD = queries("commit")["head"]
_KEYS = queries("keys")

log = get_logger("memory_layer.log")


async def look_once(postgres: Postgres, guard: LogGuard) -> None:
    """Judge the end of the log; ``guard.fault`` says what was found. Raises what the database raises, LogTampered and LogNotOpen."""
    for attempt in range(TRIES):
        last = guard.last
        (rows,) = await postgres.fetch(ALL_TENANTS, (_HEAD, {"origin": guard.origin}))
        if not rows:
            guard.fault = no_such_log(guard.origin)
            raise guard.fault
        try:
            guard.check(rows[0], last)
            return
        except UnprovenKeys as error:
            if attempt + 1 == TRIES:
                guard.fault = error
                raise
        facts = {"origin": guard.origin, "limit": MAX_KEYS + 1}
        first, history = await postgres.fetch(ALL_TENANTS, (_KEYS["first_key"], facts), (_KEYS["key_history"], facts))
        guard.learn(first[0]["key_id"] if first else None, history)


async def watch(postgres: Postgres, guard: LogGuard) -> None:
    """Look every EVERY seconds until cancelled; what is found is logged once."""
    known: str | None = None
    while True:
        with contextlib.suppress(MemoryLayerError):
            await look_once(postgres, guard)
        found = None if guard.fault is None else guard.fault.message
        if found is not None and found != known:
            log.critical("the log does not end as its keys sealed it; no write is taken", error=found)
        known = found
        await asyncio.sleep(EVERY)
