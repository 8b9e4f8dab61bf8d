"""No broker: workers poll Postgres, twice a second when there is nothing to do.

LISTEN and NOTIFY would wake them sooner, but transactions with a NOTIFY commit one after another, server-wide: the write path would
pay for what an idle worker's poll gives for next to nothing.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Sequence


class PollingNotifier:
    """Sends nothing; to wait is to sleep."""

    poll_interval = None

    def notify(self, rows: Sequence[uuid.UUID], /) -> None:
        """Nothing to do: workers look soon enough."""

    async def wait(self, seconds: float) -> list[uuid.UUID]:
        await asyncio.sleep(seconds)
        return []

    async def close(self) -> None: ...
