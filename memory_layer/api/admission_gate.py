"""Lets requests through one at a time, so that the holder of the log lock never waits for many of them."""

from __future__ import annotations

import asyncio
from collections import deque


class AdmissionGate:
    """One request starts its work in each turn of the event loop.

    Clients whose writes were committed together send their next ones together. Decoded in one turn of the loop, 64 of them take
    ten milliseconds, in which the committer, whose answer from Postgres has come meanwhile, would hold the log lock for nothing.
    """

    def __init__(self) -> None:
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._busy = False

    async def enter(self) -> None:
        """Wait for this request's turn."""
        loop = asyncio.get_running_loop()
        if self._busy:
            admitted = loop.create_future()
            self._waiting.append(admitted)
            await admitted
        else:
            self._busy = True
            loop.call_soon(self._next)

    def _next(self) -> None:
        # Goes on by itself, not when the one let through says so: that one may be cancelled before it comes to speak.
        while self._waiting:
            admitted = self._waiting.popleft()
            if not admitted.done():  # else its client has gone
                admitted.set_result(None)
                asyncio.get_running_loop().call_soon(self._next)
                return
        self._busy = False
