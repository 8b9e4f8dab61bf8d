"""No broker: workers look into Postgres by themselves, twice a second when there is nothing to do.

LISTEN and NOTIFY would ring sooner, but a NOTIFY makes the transactions that carry one commit one after another, server-wide:
the write path would pay for what an idle worker's poll gives for next to nothing.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Sequence


class PollingNotifier:
    """Nobody rings; to wait is to sleep."""

    poll_interval = None

    def notify(self, rows: Sequence[uuid.UUID], /) -> None:
        """Nothing to do: workers look soon enough."""

    async def wait(self, seconds: float) -> list[uuid.UUID]:
        await asyncio.sleep(seconds)
        return []

    async def close(self) -> None: ...
