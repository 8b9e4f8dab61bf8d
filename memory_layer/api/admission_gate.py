"""Lets requests through a few at a time, so that the holder of the log lock never waits for many of them."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Final

TURN: Final = 16 * 1024  # bytes of bodies that are decoded in one turn of the event loop, one body at least
LEAST: Final = (
    4 * 1024
)  # what a body counts at the least: four small ones, as many as are answered in a turn (service/commit/queue.py)


class AdmissionGate:
    """A few requests start their work in each turn of the event loop.

    Clients whose writes were committed together send their next ones together. Decoded in one turn of the loop, 64 of them take
    ten milliseconds, in which the committer, whose answer from Postgres has come meanwhile, would hold the log lock for nothing.
    """

    def __init__(self) -> None:
        self._waiting: deque[tuple[asyncio.Future[None], int]] = deque()
        self._left = TURN
        self._turning = False

    async def enter(self, size: int) -> None:
        """Wait for the turn of a request whose body has so many bytes."""
        if not self._turning:
            self._turning = True
            asyncio.get_running_loop().call_soon(self._next)
        if self._left > 0 and not self._waiting:
            self._left -= max(size, LEAST)
        else:
            admitted = asyncio.get_running_loop().create_future()
            self._waiting.append((admitted, size))
            await admitted

    def _next(self) -> None:
        # Goes on by itself, not when the one let through says so: that one may be cancelled before it comes to speak.
        self._left = TURN
        while self._waiting and self._left > 0:
            admitted, size = self._waiting.popleft()
            if not admitted.done():  # else its client has gone
                admitted.set_result(None)
                self._left -= max(size, LEAST)
        self._turning = self._left < TURN
        if self._turning:
            asyncio.get_running_loop().call_soon(self._next)
