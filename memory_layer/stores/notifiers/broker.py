"""What the notifiers with a broker share: batching, bounds, the form of a message, and that none of it ever fails a write.

A message is ``{"v":1,"rows":[...]}``: ids of rows and nothing else, below 1 KB. It is acknowledged when a waiter has it, before the
work: Postgres has the leases, attempts and errors of that work, so a message that outlives its receipt would add nothing but
heartbeats and a second count of attempts.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import time
import uuid
from collections import deque
from collections.abc import Sequence
from typing import Final, NamedTuple, Protocol

from memory_layer.errors import MemoryLayerError
from memory_layer.telemetry import metrics
from memory_layer.telemetry.logs import get_logger

ROWS: Final = 24  # ids in one message, which is 952 bytes then
MESSAGES: Final = 10  # in one call: what SQS takes, and enough to wake as many workers
MAX_BYTES: Final = 1024
# Seconds between two calls that send. A call takes milliseconds of this process, which the committer wants; and a worker that has just
# been woken polls so often that the next notification hardly matters.
GAP: Final = 0.5
SEND_SECONDS: Final = 3.0
ACK_SECONDS: Final = 5.0
LONG_POLL: Final = 5  # seconds
SHORT_POLL: Final = 0.25  # seconds: a broker that answers sooner with nothing is not asked again sooner
TIMEOUT: Final = 5.0  # seconds
LONGEST_PAUSE: Final = 15.0  # seconds between two tries of a broker that fails
CLOSE_SECONDS: Final = 1.0
COMPLAIN_EVERY: Final = 60.0  # seconds

log = get_logger("memory_layer.notifier")


class Received(NamedTuple):
    """A message and what it is acknowledged with."""

    receipt: str
    body: bytes


class Broker(Protocol):
    """The calls of one broker. Each raises DependencyUnavailable or UsageError, in words that repeat nothing of what was sent."""

    async def send(self, bodies: Sequence[bytes]) -> int:
        """Hand over at most MESSAGES messages; how many were taken."""
        ...

    async def receive(self, seconds: int) -> list[Received]:
        """At most MESSAGES messages, as soon as there are any; empty after so many seconds."""
        ...

    async def acknowledge(self, receipts: Sequence[str]) -> None:
        """These messages need not be delivered again."""
        ...

    async def close(self) -> None: ...


def encode(rows: Sequence[uuid.UUID]) -> list[bytes]:
    """Messages that name the rows, ROWS each."""
    pieces = (rows[start : start + ROWS] for start in range(0, len(rows), ROWS))
    return [
        json.dumps({"v": 1, "rows": [str(row) for row in piece]}, separators=(",", ":")).encode() for piece in pieces
    ]


def decode(body: bytes) -> list[uuid.UUID] | None:
    """The rows that a message names; None when it is none of ours."""
    if len(body) > MAX_BYTES:
        return None
    try:
        message = json.loads(body)
        if not isinstance(message, dict) or message.get("v") != 1 or not isinstance(message.get("rows"), list):
            return None
        return [uuid.UUID(row) for row in message["rows"]] or None
    except (ValueError, TypeError, AttributeError, RecursionError):
        return None


class BrokerNotifier:
    """Rings through a broker. One task sends, and one receives while somebody waits; both outlive whatever the broker does."""

    poll_interval = TIMEOUT

    def __init__(self, name: str, broker: Broker) -> None:
        self._name = name
        self._broker = broker
        self._rows: deque[uuid.UUID] = deque(maxlen=ROWS * MESSAGES)
        self._rung = asyncio.Event()
        self._closing = asyncio.Event()
        self._sender: asyncio.Task[None] | None = None
        self._receiving: asyncio.Task[list[Received]] | None = None
        self._acknowledging: set[asyncio.Task[None]] = set()
        self._failures = {"send": 0, "receive": 0, "acknowledge": 0}  # in a row
        self._quiet_until = dict.fromkeys(self._failures, 0.0)
        self._reported: set[str] = set()  # kinds of call whose failure was logged

    def notify(self, rows: Sequence[uuid.UUID]) -> None:
        if not rows or self._closing.is_set():
            return
        # The oldest go: workers have looked after those by themselves by then.
        metrics.queue_rows_unnamed.inc(max(0, len(self._rows) + len(rows) - ROWS * MESSAGES))
        self._rows.extend(rows)
        self._rung.set()
        if self._sender is None:
            self._sender = asyncio.create_task(self._send(), name="notifier")

    async def wait(self, seconds: float) -> list[uuid.UUID]:
        until = asyncio.get_running_loop().time() + seconds
        while not self._closing.is_set():
            # A long poll goes on when a wait is over: what it brings is the next waiter's.
            receiving = self._receiving
            if receiving is None:
                receiving = self._receiving = asyncio.create_task(self._receive())
            await asyncio.wait([receiving], timeout=max(0.0, until - asyncio.get_running_loop().time()))
            if receiving.done() and receiving is self._receiving:
                self._receiving = None
                if not receiving.cancelled() and (rows := self._open(receiving.result())):
                    return rows
            if asyncio.get_running_loop().time() >= until:
                return []
        await asyncio.sleep(max(0.0, until - asyncio.get_running_loop().time()))
        return []

    async def close(self) -> None:
        self._closing.set()
        self._rung.set()
        last = [task for task in (self._sender, *self._acknowledging) if task is not None]
        if last:
            await asyncio.wait(last, timeout=CLOSE_SECONDS)
        tasks = [*last, *([] if self._receiving is None else [self._receiving])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._broker.close()

    async def _send(self) -> None:
        while not (self._closing.is_set() and not self._rows):
            await self._rung.wait()
            self._rung.clear()
            bodies = encode(list(self._rows))
            self._rows.clear()
            if not bodies:
                continue
            taken = 0
            try:
                async with asyncio.timeout(SEND_SECONDS):
                    taken = await self._broker.send(bodies)
                self._well("send")
            except Exception as error:  # noqa: BLE001 - whatever it is, rows are written and workers look by themselves
                self._complain("send", error)
            metrics.queue_messages.labels("sent").inc(taken)
            metrics.queue_messages.labels("lost").inc(len(bodies) - taken)
            if self._closing.is_set():
                return
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(max(GAP, self._pause("send"))):
                    await self._closing.wait()

    async def _receive(self) -> list[Received]:
        started = time.monotonic()
        received: list[Received] = []
        try:
            async with asyncio.timeout(LONG_POLL + SEND_SECONDS):
                received = await self._broker.receive(LONG_POLL)
            self._well("receive")
        except Exception as error:  # noqa: BLE001 - as above
            self._complain("receive", error)
        if not received:
            least = max(SHORT_POLL, self._pause("receive"))
            await asyncio.sleep(max(0.0, least - (time.monotonic() - started)))
        return received

    def _open(self, received: Sequence[Received]) -> list[uuid.UUID]:
        """What the messages say. All are acknowledged, those that say nothing too: nobody else could read them either."""
        if not received:
            return []
        task = asyncio.create_task(self._acknowledge([message.receipt for message in received]))
        self._acknowledging.add(task)
        task.add_done_callback(self._acknowledging.discard)
        rows: list[uuid.UUID] = []
        for message in received:
            named = decode(message.body)
            metrics.queue_messages.labels("ignored" if named is None else "received").inc()
            rows += named or []
        return rows

    async def _acknowledge(self, receipts: Sequence[str]) -> None:
        try:
            async with asyncio.timeout(ACK_SECONDS):
                await self._broker.acknowledge(receipts)
            self._well("acknowledge")
        except Exception as error:  # noqa: BLE001 - as above; it will come again, and be harmless again
            self._complain("acknowledge", error)

    def _well(self, job: str) -> None:
        self._failures[job] = 0
        if job in self._reported:
            self._reported.discard(job)
            log.info("the queue works again", queue=self._name, call=job)

    def _pause(self, job: str) -> float:
        """Seconds before the next try after failures in a row."""
        failures = self._failures[job]
        return random.uniform(0.5, 1.0) * min(LONGEST_PAUSE, 2.0 ** min(failures, 6)) if failures else 0.0  # noqa: S311 - jitter

    def _complain(self, job: str, error: Exception) -> None:
        """Once a minute for each kind of call, however often it fails or comes back: the metrics count the rest."""
        self._failures[job] += 1
        if time.monotonic() < self._quiet_until[job]:
            return
        self._quiet_until[job] = time.monotonic() + COMPLAIN_EVERY
        self._reported.add(job)
        if isinstance(error, MemoryLayerError):
            reason = error.message
        elif isinstance(error, TimeoutError):
            reason = f"{self._name} did not {job} in time."
        else:
            log.error("a call of the queue failed in an unforeseen way", queue=self._name, call=job, exc_info=error)
            return
        log.warning(
            "the queue cannot be used. Nothing is lost: meanwhile workers look into Postgres",
            queue=self._name,
            call=job,
            seconds=TIMEOUT,
            error=reason,
        )
