"""One batch in one transaction: decided under the log lock, signed, sealed, committed, and settled when its answer is lost.

A batch that cannot be signed is rolled back whole: no signature, no write. ``batch.py`` decides and chains without I/O,
``commit.py`` queues. The reasons and the measurements stand in ``docs/decisions/0003-write-path.md``.
"""

from __future__ import annotations

import asyncio
import base64
import datetime as dt
import logging
import time
import uuid
from collections.abc import Callable, Sequence

from memory_layer.audit import seal as audit_seal
from memory_layer.errors import DatabaseUnavailable, MemoryLayerError, SignerUnavailable
from memory_layer.service.batch import Batch, Item, build, seal_text, time_of
from memory_layer.service.changes import CreateNodes, want
from memory_layer.service.write_probe import WriteHealth
from memory_layer.stores.key_ring import KeyRing
from memory_layer.stores.log_writer import BatchTx, Head, LogWriter, SealedBatch, Wants
from memory_layer.stores.postgres import classify, is_retryable
from memory_layer.stores.postgres_faults import is_lost
from memory_layer.stores.protocols import Signer
from memory_layer.telemetry import metrics

SIGNER_TIMEOUT = 2.0  # seconds
BREAKER_FAILURES = 3
BREAKER_PAUSE = 5.0  # seconds
SETTLE_WITHIN = 30.0  # seconds
MOST_BARRED = 16  # nodes of one bulk request that Postgres cannot store, before all of it is refused

Fill = Callable[[list[Item]], None]
Ring = Callable[[Sequence[uuid.UUID]], None]

log = logging.getLogger("memory_layer.commit")


class _Unknown(DatabaseUnavailable):
    """Whether the batch stands could not be found out. It must not be run again: it may be there."""

    retryable = False


class _OtherKey(SignerUnavailable):
    """The log is sealed by a key that this process does not have open."""


class Transactor:
    """Commits batches, one at a time. ``deliver`` is handed items whose outcome or refusal is final, ``ring`` the vector rows that
    wait for a worker now."""

    def __init__(
        self, writer: LogWriter, keys: KeyRing, deliver: Callable[[list[Item]], None], ring: Ring | None = None
    ) -> None:
        self._writer = writer
        self._keys = keys
        self._deliver = deliver
        self._ring = ring
        self.health = WriteHealth()
        self._failures = 0
        self._closed_until = 0.0

    @property
    def signer_usable(self) -> bool:
        """False while the breaker is open."""
        return time.monotonic() >= self._closed_until

    def demand_signer(self) -> None:
        """Raise SignerUnavailable while the breaker is open."""
        if not self.signer_usable:
            raise SignerUnavailable("The audit signer has failed repeatedly; nothing was written.", retry_after=5)

    async def close(self) -> None:
        await self._writer.drop()

    async def commit(
        self, batch: list[Item], fill: Fill | None = None, *, retried: bool = False, reloaded: bool = False
    ) -> None:
        """Commit a batch and answer everyone in it; never raises. ``fill`` adds to it what came while it waited for the lock."""
        started = time.perf_counter()
        try:
            written = await self._transact(batch, fill)
        except _OtherKey as error:
            if reloaded:
                self._closed_until = time.monotonic() + BREAKER_PAUSE
                self._fail(batch, error)
            else:
                await self._keys.reload()
                await self.commit(batch, retried=retried, reloaded=True)
        except _Unknown as error:
            self._fail(batch, error)
        except Exception as error:
            meaning = error if isinstance(error, MemoryLayerError) else classify(error)
            if is_retryable(error) and not retried:
                await self.commit(batch, retried=True, reloaded=reloaded)
            elif meaning is not None and (len(batch) == 1 or meaning.retryable):
                self._fail(batch, meaning)
            elif len(batch) > 1:
                # One change in here is one that cannot be written: halve until it stands alone.
                middle = len(batch) // 2
                await self.commit(batch[:middle])
                await self.commit(batch[middle:])
            elif isinstance(batch[0].change.action, CreateNodes) and not batch[0].barred:
                await self._commit_the_rest(batch[0])
            else:
                log.exception("a change failed")
                self._fail(batch, _unforeseen())
        else:
            if written:
                self.health.success()
                metrics.commit_batch_size.observe(written)
                metrics.commit_seconds.observe(time.perf_counter() - started)
            self._deliver(batch)

    async def _commit_the_rest(self, item: Item) -> None:
        """Postgres cannot store some node of a bulk request: find out which, and commit the request without it."""
        action = item.change.action
        assert isinstance(action, CreateNodes)  # noqa: S101 - narrows the type
        places = [place for place, new in enumerate(action.nodes) if not isinstance(new, MemoryLayerError)]
        try:
            found = await self._offenders(item, places)
        except Exception as error:  # noqa: BLE001 - the same outermost door as ``commit``
            self._fail([item], (error if isinstance(error, MemoryLayerError) else classify(error)) or _unforeseen())
            return
        if not found:  # it was not for what a node holds
            self._fail([item], _unforeseen())
            return
        item.barred = {
            place: MemoryLayerError("This node cannot be stored; nothing of it was written.") for place in found
        }
        await self.commit([item], retried=True)

    async def _offenders(self, item: Item, places: list[int]) -> list[int]:
        """Which of these nodes Postgres refuses; tried in transactions that are rolled back."""
        others = set(range(item.change.weight)) - set(places)
        trial = Item(item.change, item.done, [], barred=dict.fromkeys(others, _unforeseen()))
        try:
            await self._transact([trial], keep=False)
        except Exception as error:
            meaning = error if isinstance(error, MemoryLayerError) else classify(error)
            if meaning is not None:
                raise
            if len(places) == 1:
                return places
            middle = len(places) // 2
            found = await self._offenders(item, places[:middle])
            if len(found) < MOST_BARRED:
                found += await self._offenders(item, places[middle:])
            if len(found) >= MOST_BARRED:
                raise _unforeseen() from error
            return found
        return []

    async def _transact(self, batch: list[Item], fill: Fill | None = None, *, keep: bool = True) -> int:
        """Run a batch in one transaction; how many entries it made. Without ``keep`` it is tried and rolled back."""
        # Asked again here: those that were waiting when the signer failed must not take the log lock one batch after another.
        self.demand_signer()
        tx = await self._writer.batch()
        committed = False
        try:
            found = await tx.open(_wants(batch))
            if found is None:
                await tx.wait_for_lock()
                if fill is not None:
                    fill(batch)
                found = await tx.read(_wants(batch))
            head, known = found
            now = time_of(head)
            metrics.writes_frozen.set(head.frozen is not None)
            built = build(batch, head, known, now)
            if built.events and keep:
                signer = self._keys.find(head.key_id)
                if signer is None:
                    raise _OtherKey(
                        f"The log is sealed by the key {head.key_id[:16]}... by now, and this server has not got it; nothing was "
                        "written. Give it that key (AUDIT_KMS_KEY_ID, or the data folder's keys), or finish the rotation with "
                        "`memoryctl rotate signing-key`."
                    )
                committed = await self._seal(tx, head, built, now, signer)
                due = [row.id for row in built.rows.vectors]
                due += [job.id for job in built.rows.jobs if job.error is None]  # those that are tried again
                if committed and self._ring is not None and due:
                    self._ring(due)
            elif built.events:
                await tx.write(built.rows, head, now)
        finally:
            if not committed:
                await self._roll_back(tx)
        return len(built.events)

    async def _roll_back(self, tx: BatchTx) -> None:
        try:
            await tx.rollback()
        except Exception:  # noqa: BLE001 - a connection whose transaction may still be open serves no other batch
            await self._writer.drop()

    def _fail(self, batch: list[Item], error: MemoryLayerError) -> None:
        self.health.failure(error)
        for item in batch:
            item.outcome, item.refusal = None, error
        self._deliver(batch)

    async def abandon(self, batch: list[Item]) -> None:
        """After what nobody foresaw: its connection is given up, and whoever has no answer yet is told that none is known."""
        await self._writer.drop()
        self._fail(
            [item for item in batch if not item.done.done()],
            _Unknown(
                "The write failed in an unforeseen way; whether it stands is not known. Read before writing again."
            ),
        )

    async def _seal(self, tx: BatchTx, head: Head, built: Batch, now: dt.datetime, signer: Signer) -> bool:
        text = seal_text(built, head, now, signer.key_id, signer.algorithm)
        if signer.local:
            # Then rows, seal and COMMIT are one round trip, and the event loop does nothing else while the log lock waits.
            signature = await self._sign(signer, text)
        else:
            signing = asyncio.create_task(self._sign(signer, text))
            try:
                await tx.write(built.rows, head, now)
            except BaseException:
                signing.cancel()
                await asyncio.gather(signing, return_exceptions=True)  # its own failure interests nobody any more
                raise
            signature = await signing
        sealed = SealedBatch(
            batch_no=head.batch_no + 1,
            first_seq=head.last_seq + 1,
            last_seq=head.last_seq + len(built.events),
            head=built.last_hash,
            seal_text=text.decode("ascii"),
            signature=base64.b64encode(signature).decode("ascii"),
            key_id=signer.key_id,
            algorithm=signer.algorithm,
            events=built.events,
            new_key=built.rows.key,
        )
        try:
            await tx.commit(head, sealed, now, built.rows if signer.local else None)
        except Exception as error:
            if not (is_lost(error) and tx.committing and await self._settle(head, sealed)):
                raise
        return True

    async def _settle(self, head: Head, sealed: SealedBatch) -> bool:
        """COMMIT was sent and its answer lost: nobody is answered before the log says what happened."""
        deadline = time.monotonic() + SETTLE_WITHIN
        while True:
            try:
                return await self._writer.settle(head.log, sealed.batch_no, sealed.seal_text)
            except Exception as error:
                if time.monotonic() > deadline:
                    raise _Unknown(
                        "Postgres went away while it was committing and has not come back: whether this write stands is not "
                        "known. Read before writing again, or repeat it under the same Idempotency-Key."
                    ) from error
                await asyncio.sleep(0.2)

    async def _sign(self, signer: Signer, text: bytes) -> bytes:
        try:
            async with asyncio.timeout(SIGNER_TIMEOUT):
                signature = await signer.sign(text)
            # A signer that answers with a signature over something else must not seal anything.
            if not audit_seal.verify_signature(signer.algorithm, signer.public_key_der, text, signature):
                raise SignerUnavailable("The audit signer gave a signature that does not verify; nothing was written.")
        except Exception as error:
            self._failures += 1
            if self._failures >= BREAKER_FAILURES:
                self._closed_until = time.monotonic() + BREAKER_PAUSE
            metrics.signer_failures.inc()
            if isinstance(error, SignerUnavailable):
                raise
            # Whatever a signer raises, an OSError of its own among them, must not pass for a fault of the database.
            late = isinstance(error, TimeoutError)
            reason = f"did not answer within {SIGNER_TIMEOUT} s" if late else f"failed ({type(error).__name__})"
            raise SignerUnavailable(f"The audit signer {reason}; nothing was written.") from error
        self._failures = 0
        return signature


def _wants(batch: list[Item]) -> Wants:
    wants = Wants()
    for item in batch:
        want(item.change, wants)
    return wants


def _unforeseen() -> MemoryLayerError:
    return MemoryLayerError("The write failed and nothing was changed.")
