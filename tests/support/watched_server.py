"""``memoryctl serve`` with a watch over its event loop: ``python -m tests.support.watched_server`` and the words of ``serve``.

``GET /stall`` answers the longest time, in seconds, since it was last asked, that a request which needs a few turns of the loop would
have waited, and in which this process was at work. Time in which the machine ran others counts for nothing: what a turn waited is compared
with the processor time that all threads of this process took meanwhile, and the lesser of the two is its stall.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from typing import Final

from starlette.types import ASGIApp, Receive, Scope, Send

from memory_layer.api import serve
from memory_layer.cli.app import run

EVERY: Final = 0.005  # seconds
TURNS: Final = 3  # of the loop, that /livez takes: a read, the task that answers, and one to spare


class LoopWatch:
    """Started in the loop that it watches."""

    def __init__(self) -> None:
        self.worst = 0.0
        self._loop = asyncio.get_running_loop()
        self._wait()

    def take(self) -> float:
        """The longest stall since the last call."""
        worst, self.worst = self.worst, 0.0
        return worst

    def _wait(self) -> None:
        self._due, self._worked = time.perf_counter() + EVERY, time.process_time()
        self._loop.call_later(EVERY, self._turn, TURNS)

    def _turn(self, left: int) -> None:
        if left > 1:
            self._loop.call_later(0, self._turn, left - 1)
            return
        late, worked = time.perf_counter() - self._due, time.process_time() - self._worked
        self.worst = max(self.worst, min(late, worked))
        self._wait()


def watched(app: ASGIApp) -> ASGIApp:
    watch: list[LoopWatch] = []

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            watch.append(LoopWatch())
        elif scope["path"] == "/stall":
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": json.dumps(watch[0].take()).encode()})
            return
        await app(scope, receive, send)

    return answer


if __name__ == "__main__":
    made = serve.create_app
    serve.create_app = lambda *words: watched(made(*words))
    sys.exit(run(sys.argv[1:]))
