"""The only way to write: every write becomes a Change, waits here a moment, and commits in a batch with its own audit entry.

One committer task per process takes what is waiting (at most BATCH; it never waits for more) and has ``transaction.py`` run one
transaction.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections import deque
from collections.abc import Iterator
from itertools import islice

from memory_layer.errors import Overloaded
from memory_layer.service.commit.action import Change
from memory_layer.service.commit.batch import Item, Outcome
from memory_layer.service.commit.transaction import Committed, Transactor
from memory_layer.service.rollback import RollbackGuard
from memory_layer.service.sealed import SealedBatches
from memory_layer.service.write_probe import WriteHealth
from memory_layer.stores.key_ring import KeyRing
from memory_layer.stores.log_guard import LogGuard
from memory_layer.stores.log_writer import LogWriter
from memory_layer.telemetry.logs import get_logger

BATCH, BATCH_BYTES = 256, 8 * 1024 * 1024
ANSWERS = 4  # in one cycle of the event loop
WAITING, WAITING_BYTES = 4096, 256 * 1024 * 1024


log = get_logger("memory_layer.commit")


class Committer:
    """One per process, the part ``committer`` of its installation. ``committed`` is given the records of each
    batch that was committed; ``rollback_guard`` refuses writes to a log that lacks what was signed of it."""

    def __init__(
        self,
        writer: LogWriter,
        keys: KeyRing,
        committed: Committed | None = None,
        rollback_guard: RollbackGuard | None = None,
    ) -> None:
        self.rollback_guard = rollback_guard
        self.sealed = SealedBatches(writer.guard)  # what this process knows to be sealed, for reads too
        self._transactor = Transactor(writer, keys, self.sealed, _deliver, committed, rollback_guard)
        self._waiting: deque[Item] = deque()
        self._waiting_bytes = 0
        self._wake = asyncio.Event()
        self._stopping = False
        self._task = asyncio.create_task(self._run(), name="committer")

    @property
    def signer_usable(self) -> bool:
        """False while the breaker is open."""
        return self._transactor.signer_usable

    @property
    def guard(self) -> LogGuard:
        """What judges the end of the log before each batch."""
        return self._transactor.guard

    @property
    def health(self) -> WriteHealth:
        """Whether writes succeed."""
        return self._transactor.health

    @property
    def waiting(self) -> int:
        """How many changes are in no batch yet."""
        return len(self._waiting)

    async def submit(self, change: Change) -> Outcome:
        """Commit one change. Raises the caller's error, SIGNER_UNAVAILABLE, DATABASE_UNAVAILABLE, ROLLBACK_DETECTED or
        OVERLOADED."""
        full = len(self._waiting) >= WAITING or self._waiting_bytes + change.size > WAITING_BYTES
        if self._stopping or full:
            raise Overloaded("Too many writes are waiting. Try again in a second.", retry_after=1)
        if self.rollback_guard is not None:
            self.rollback_guard.require_intact()
        self._transactor.require_signer()
        caller = change.caller
        if caller.draft and (actor := self._transactor.introduced.get((caller.home, caller.service))) is not None:
            change = change.by(actor)
        item = Item(change, asyncio.get_running_loop().create_future(), change.touches())
        self._waiting.append(item)
        self._waiting_bytes += change.size
        self._wake.set()
        return await item.done

    async def close(self) -> None:
        """Finish what is waiting, then stop."""
        self._stopping = True
        self._wake.set()
        await self._task
        await self._transactor.close()

    async def _run(self) -> None:
        while True:
            while not self._waiting:
                if self._stopping:
                    return
                self._wake.clear()
                await self._wake.wait()
            batch: list[Item] = []
            self._fill(batch)
            if batch:
                await self._commit(batch)

    async def _commit(self, batch: list[Item]) -> None:
        """A committer that ends would let every later write wait for ever, so it outlives whatever a batch brings."""
        try:
            await self._transactor.commit(batch, self._fill)
        except Exception:
            log.exception("a batch failed in an unforeseen way")
            await self._transactor.abandon(batch)

    def _fill(self, batch: list[Item]) -> None:
        """Take what is waiting into the batch, at most one change per node, embeddingId and idempotency key; the rest keep their
        order for the next one."""
        if batch and batch[-1].change.action.alone:
            return
        taken = {touched for item in batch for touched in item.touches}
        size, weight = sum(item.change.size for item in batch), sum(item.change.action.weight for item in batch)
        left: deque[Item] = deque()
        while self._waiting:
            item = self._waiting[0]
            change = item.change
            if batch and (
                weight + change.action.weight > BATCH or size + change.size > BATCH_BYTES or change.action.alone
            ):
                break
            self._waiting.popleft()
            if item.done.cancelled():
                continue
            if taken.isdisjoint(item.touches):
                batch.append(item)
                size += change.size
                weight += change.action.weight
            else:
                left.append(item)
            taken.update(item.touches)
            if change.action.alone:
                break
        left.extend(self._waiting)
        self._waiting = left
        self._waiting_bytes = sum(item.change.size for item in left)


def _deliver(batch: list[Item]) -> None:
    """Answer a few callers in each cycle of the event loop: all at once they would keep the next batch, which holds the log lock
    by then, waiting for as long as all their answers take."""
    _deliver_some(iter(batch))


def _deliver_some(rest: Iterator[Item]) -> None:
    some = list(islice(rest, ANSWERS))
    for item in some:
        try:
            item.deliver()
        except Exception:  # the others' answers do not depend on it
            log.exception("an answer could not be given; what was committed stands")
    if len(some) == ANSWERS:
        asyncio.get_running_loop().call_soon(_deliver_some, rest)


def request_hash(*parts: object) -> bytes:
    """What an Idempotency-Key is bound to: the method, the route with its ids, and the body."""
    digest = hashlib.sha256()
    for part in parts:
        data = part if isinstance(part, bytes) else str(part).encode()
        digest.update(len(data).to_bytes(8, "big") + data)
    return digest.digest()
