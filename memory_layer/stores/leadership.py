"""Which of several processes does a job: session-level advisory locks, all on one connection of their own.

The process that holds a lock leads until it releases it, ends, or loses the connection. The server frees the locks of a killed process at
once; those of a host that vanished after about 25 seconds of silence. Until then the old leader has noticed too (``watch``).
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

from psycopg import AsyncConnection
from psycopg.rows import DictRow

from memory_layer.sql import queries
from memory_layer.stores.postgres import connect, translate_errors

PING_EVERY = 1.0  # seconds
ANSWER_WITHIN = 5.0  # seconds

_SQL = queries("operations")


class Leadership:
    """The locks of this process. Use ``open_leadership``."""

    def __init__(self, connection: AsyncConnection[DictRow]) -> None:
        self._connection = connection

    async def take(self, name: str) -> bool:
        """Whether this process leads ``name`` from now on; asked again while it leads, it still does."""
        with translate_errors():
            cursor = await self._connection.execute(_SQL["try_lock"], {"name": f"memory-layer leader {name}"})
            row = await cursor.fetchone()
        return row is not None and bool(row["held"])

    async def watch(self) -> None:
        """Return when the connection is lost, and with it every lock."""
        with contextlib.suppress(Exception):
            while True:
                await asyncio.sleep(PING_EVERY)
                async with asyncio.timeout(ANSWER_WITHIN):
                    await self._connection.execute("SELECT 1")


@contextlib.asynccontextmanager
async def open_leadership(dsn: str) -> AsyncIterator[Leadership]:
    """Leads nothing yet; on the way out every lock is free. Raises DATABASE_UNAVAILABLE."""
    with translate_errors():
        connection = await connect(dsn)
    try:
        with translate_errors():
            await connection.execute(_SQL["session"])
        yield Leadership(connection)
    finally:
        with contextlib.suppress(Exception):
            await connection.close()
