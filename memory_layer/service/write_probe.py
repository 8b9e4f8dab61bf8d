"""Whether writes can succeed: writes themselves show it, and without any a probe does, which leaves no row behind.

A server may answer every read and refuse every write: a standby, one that is set to read only, one whose disk is full. A probe is an
insert that is rolled back. Every fourth one is large enough that its table must grow, for on a full disk what fits into the
pages that are there still succeeds; as long as writes fail all of them are, so that a small one does not report the end of it.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from dataclasses import dataclass
from itertools import count

from memory_layer.errors import DatabaseUnavailable, MemoryLayerError
from memory_layer.model import SYSTEM_TENANT, uuid7
from memory_layer.sql import queries
from memory_layer.stores.postgres import Postgres
from memory_layer.telemetry.logs import get_logger

EVERY = 10.0  # seconds between two probes, unless a write has succeeded since the last one
WHILE_FAILING = 3.0  # seconds
LARGE_EACH = 4
LARGE = 6144  # random bytes: no compression brings them into one page of a table

_SQL = queries("operations")
log = get_logger("memory_layer.database")


@dataclass(slots=True)
class WriteHealth:
    """What the newest write or probe of this process met. ``fault``: None while writes succeed."""

    fault: DatabaseUnavailable | None = None
    succeeded: float = 0.0  # on the monotonic clock

    def success(self) -> None:
        if self.fault is not None:
            log.warning("the database takes writes again", before=self.fault.reason)
        self.fault, self.succeeded = None, time.monotonic()

    def failure(self, error: BaseException) -> None:
        """Only what the database is to blame for counts."""
        if isinstance(error, DatabaseUnavailable):
            self.fault = error


async def watch(postgres: Postgres, health: WriteHealth) -> None:
    """Probe until cancelled."""
    for number in count():
        await asyncio.sleep(EVERY if health.fault is None else WHILE_FAILING)
        if health.fault is None and time.monotonic() - health.succeeded < EVERY:
            continue
        try:
            await probe(postgres, large=health.fault is not None or number % LARGE_EACH == 0)
        except MemoryLayerError as error:
            health.failure(error)
        except Exception:
            log.exception("the probe of writes failed")
        else:
            health.success()


async def probe(postgres: Postgres, *, large: bool) -> None:
    """Insert a row and take it back. Raises what a write would."""
    filler = secrets.token_urlsafe(LARGE if large else 16)
    row = {"tenant": SYSTEM_TENANT, "actor": uuid7(), "key": f"probe {secrets.token_hex(8)}", "filler": filler}
    await postgres.try_write(SYSTEM_TENANT, (_SQL["probe_write"], row))
