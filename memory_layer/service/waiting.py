"""Waiting until writes are searchable: one task of the process polls for all requests that wait.

A wait per request would poll the database as often as there are requests, and exactly when it is busiest.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Sequence
from dataclasses import dataclass

from memory_layer.errors import MemoryLayerError
from memory_layer.sql import queries
from memory_layer.stores.postgres import ALL_TENANTS, Postgres
from memory_layer.telemetry.logs import get_logger

DEADLINE = 10.0  # seconds
SHORTEST, LONGEST = 0.01, 0.2  # seconds between two looks; longer while nobody's wait ends
MAX_WAITS = 1000  # waits of one look

_SQL = queries("indexing")
log = get_logger("memory_layer.waiting")


@dataclass(frozen=True, slots=True)
class Write:
    """A write whose job is waited for."""

    tenant: str
    job: uuid.UUID
    version: int


class Waits:
    """One per process (``Installation.waits``)."""

    def __init__(self) -> None:
        self._waiting: dict[asyncio.Future[bool], Write] = {}
        self._task: asyncio.Task[None] | None = None

    async def until_indexed(self, postgres: Postgres, writes: Sequence[Write], seconds: float = DEADLINE) -> bool:
        """Whether the index has followed all these writes within so many seconds. False at once for one that will not come:
        failed, dead, cancelled, or its node deleted meanwhile."""
        if not writes:
            return True
        loop = asyncio.get_running_loop()
        mine = {loop.create_future(): write for write in writes}
        self._waiting.update(mine)
        if self._task is None or self._task.done():
            self._task = loop.create_task(self._look(postgres), name="waits for the index")
        try:
            async with asyncio.timeout(seconds):
                for done in mine:
                    if not await done:
                        return False
                return True
        except TimeoutError:
            return False
        finally:
            for future in mine:
                self._waiting.pop(future, None)

    async def _look(self, postgres: Postgres) -> None:
        """Until nobody waits."""
        pause = SHORTEST
        while self._waiting:
            ended = 0
            try:
                ended = await self._look_once(postgres)
            except MemoryLayerError as error:
                log.warning("whether writes are indexed could not be looked up", error=error.message)
            except Exception:
                log.exception("whether writes are indexed could not be looked up")
            pause = SHORTEST if ended else min(1.5 * pause, LONGEST)
            await asyncio.sleep(pause)

    async def _look_once(self, postgres: Postgres) -> int:
        """Look once; how many waits ended. Who has waited longest is looked at first."""
        asked = list(self._waiting.items())[:MAX_WAITS]
        given = {"tenants": [write.tenant for _, write in asked], "ids": [write.job for _, write in asked]}
        (rows,) = await postgres.fetch(ALL_TENANTS, (_SQL["job_statuses"], given))
        found = {(row["tenant"], row["id"]): (row["version"], row["status"]) for row in rows}
        ended = 0
        for future, write in asked:
            answer = _answer(write, *found.get((write.tenant, write.job), (0, "gone")))
            if answer is not None and not future.done():
                future.set_result(answer)
                self._waiting.pop(future, None)
                ended += 1
        return ended


def _answer(write: Write, version: int, status: str) -> bool | None:
    """None: go on waiting. A newer version that is searchable stands for the older one, and a removal is done when it is."""
    if status == "succeeded":
        return version >= write.version
    if status in ("deleting", "deleted") and version > write.version:
        return False  # the node was deleted since
    if status == "deleted":
        return True
    return False if status in ("failed", "dead", "gone") else None
