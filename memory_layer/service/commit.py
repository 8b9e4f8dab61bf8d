"""The one way in: every write becomes a Change, waits here a moment, and commits in a batch with its own audit entry.

One committer task per process takes what is waiting (at most BATCH; it never waits for more) and runs one transaction: log lock
first, then every read that a decision needs, then rows, entries, one seal, COMMIT. A batch that cannot be signed is rolled back
whole: no signature, no write. The reasons and the measurements stand in ``docs/decisions/0003-write-path.md``.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import datetime as dt
import hashlib
import logging
import os
import time
import uuid
from collections import deque
from dataclasses import dataclass, field
from typing import Any

from memory_layer import canonical
from memory_layer.audit import entry as audit_entry
from memory_layer.audit import seal as audit_seal
from memory_layer.errors import (
    DatabaseUnavailable,
    IdempotencyMismatch,
    MemoryLayerError,
    Overloaded,
    SignerUnavailable,
)
from memory_layer.model import AuditReceipt, format_time, uuid7
from memory_layer.service.changes import Change, Effect, touches, want
from memory_layer.service.decide import apply, decide
from memory_layer.stores.log_writer import (
    BatchTx,
    Head,
    Known,
    LogWriter,
    Rows,
    SealedBatch,
    Wants,
)
from memory_layer.stores.postgres import classify, is_retryable
from memory_layer.stores.protocols import Signer
from memory_layer.telemetry import metrics

BATCH, BATCH_BYTES = 256, 8 * 1024 * 1024
WAITING, WAITING_BYTES = 4096, 256 * 1024 * 1024
SIGNER_TIMEOUT = 2.0  # seconds
BREAKER_FAILURES = 3
BREAKER_PAUSE = 5.0  # seconds
SETTLE_WITHIN = 30.0  # seconds
MAX_CLOCK_SKEW = dt.timedelta(minutes=5)

log = logging.getLogger("memory_layer.commit")


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a committed (or replayed) change answers."""

    answer: dict[str, Any]
    receipt: AuditReceipt
    replayed: bool = False


@dataclass(slots=True, eq=False)
class _Item:
    change: Change
    done: asyncio.Future[Outcome]
    touches: list[tuple[str, str, object]]
    outcome: Outcome | None = None


@dataclass(slots=True)
class _Decided:
    items: list[_Item] = field(default_factory=list)
    effects: list[Effect] = field(default_factory=list)


class Committer:
    """Made once per process by ``open_memory``."""

    def __init__(self, writer: LogWriter, signer: Signer) -> None:
        self._writer = writer
        self._signer = signer
        self._waiting: deque[_Item] = deque()
        self._waiting_bytes = 0
        self._wake = asyncio.Event()
        self._stopping = False
        self._failures = 0
        self._closed_until = 0.0
        self._task = asyncio.create_task(self._run(), name="committer")

    @property
    def signer_usable(self) -> bool:
        """False while the breaker is open."""
        return time.monotonic() >= self._closed_until

    async def submit(self, change: Change) -> Outcome:
        """Commit one change. Raises the caller's error, SIGNER_UNAVAILABLE, DATABASE_UNAVAILABLE or OVERLOADED."""
        full = len(self._waiting) >= WAITING or self._waiting_bytes + change.size > WAITING_BYTES
        if self._stopping or full:
            raise Overloaded("Too many writes are waiting. Try again in a second.", retry_after=1)
        self._demand_signer()
        item = _Item(change, asyncio.get_running_loop().create_future(), touches(change))
        self._waiting.append(item)
        self._waiting_bytes += change.size
        self._wake.set()
        return await item.done

    def _demand_signer(self) -> None:
        if not self.signer_usable:
            raise SignerUnavailable("The audit signer has failed repeatedly; nothing was written.", retry_after=5)

    async def close(self) -> None:
        """Finish what is waiting, then stop."""
        self._stopping = True
        self._wake.set()
        await self._task
        await self._writer.drop()

    async def _run(self) -> None:
        while True:
            while not self._waiting:
                if self._stopping:
                    return
                self._wake.clear()
                await self._wake.wait()
            batch = self._pick()
            if batch:
                await self._commit(batch)

    def _pick(self) -> list[_Item]:
        """At most one change per node, embeddingId and idempotency key; the rest keep their order for the next batch."""
        batch: list[_Item] = []
        taken: set[tuple[str, str, object]] = set()
        left: deque[_Item] = deque()
        size = 0
        while (
            self._waiting and len(batch) < BATCH and (not batch or size + self._waiting[0].change.size <= BATCH_BYTES)
        ):
            item = self._waiting.popleft()
            if item.done.cancelled():
                continue
            if taken.isdisjoint(item.touches):
                batch.append(item)
                size += item.change.size
            else:
                left.append(item)
            taken.update(item.touches)
        left.extend(self._waiting)
        self._waiting = left
        self._waiting_bytes = sum(item.change.size for item in left)
        return batch

    async def _commit(self, batch: list[_Item], retried: bool = False) -> None:
        """Commit a batch and answer everyone in it; never raises."""
        started = time.perf_counter()
        try:
            await self._transact(batch)
        except Exception as error:
            meaning = error if isinstance(error, MemoryLayerError) else classify(error)
            if is_retryable(error) and not retried:
                await self._commit(batch, retried=True)
            elif meaning is not None and (len(batch) == 1 or meaning.retryable):
                _fail(batch, meaning)
            elif len(batch) > 1:
                # One change in here is one that cannot be written: halve until it stands alone.
                middle = len(batch) // 2
                await self._commit(batch[:middle])
                await self._commit(batch[middle:])
            else:
                log.exception("a change failed")
                _fail(batch, MemoryLayerError("The write failed and nothing was changed."))
        else:
            metrics.commit_batch_size.observe(len(batch))
            metrics.commit_seconds.observe(time.perf_counter() - started)
            for item in batch:
                if item.outcome is not None and not item.done.done():
                    item.done.set_result(item.outcome)

    async def _transact(self, batch: list[_Item]) -> None:
        # In a rerun the refused have their answer already, and must not be written after all.
        batch = [item for item in batch if not item.done.done()]
        if not batch:
            return
        # Asked again here: those that were waiting when the signer failed must not take the log lock one batch after another.
        self._demand_signer()
        wants = Wants()
        for item in batch:
            want(item.change, wants)
        tx = await self._writer.batch()
        committed = False
        try:
            head, known = await tx.open(wants)
            now = _now(head)
            decided, rows = _decide(batch, known, now)
            if decided.items:
                committed = await self._seal(tx, head, decided, rows, now)
        finally:
            if not committed:
                with contextlib.suppress(Exception):
                    await tx.rollback()

    async def _seal(self, tx: BatchTx, head: Head, decided: _Decided, rows: Rows, now: dt.datetime) -> bool:
        events, last = _chain(head, decided, rows, now)
        text = audit_seal.seal_text(
            log=head.origin,
            batch=head.batch_no + 1,
            first=head.last_seq + 1,
            last=head.last_seq + len(events),
            head=last,
            prev_seal=audit_seal.NO_PREVIOUS
            if head.seal_text is None
            else audit_seal.seal_hash(head.seal_text.encode()),
            time=format_time(now),
            key=self._signer.key_id,
            alg=self._signer.algorithm,
        )
        signing = asyncio.create_task(self._sign(text))
        try:
            await tx.write(rows, head, now)
        except BaseException:
            signing.cancel()
            await asyncio.gather(signing, return_exceptions=True)  # its own failure interests nobody any more
            raise
        signature = await signing
        sealed = SealedBatch(
            batch_no=head.batch_no + 1,
            first_seq=head.last_seq + 1,
            last_seq=head.last_seq + len(events),
            head=last,
            seal_text=text.decode("ascii"),
            signature=base64.b64encode(signature).decode("ascii"),
            key_id=self._signer.key_id,
            algorithm=self._signer.algorithm,
            events=events,
        )
        try:
            await tx.commit(head, sealed, now)
        except Exception as error:
            lost = isinstance(classify(error), DatabaseUnavailable)
            if not (lost and tx.committing and await self._settle(head, sealed)):
                raise
        return True

    async def _settle(self, head: Head, sealed: SealedBatch) -> bool:
        """COMMIT was sent and its answer lost: nobody is answered before the log says what happened."""
        deadline = time.monotonic() + SETTLE_WITHIN
        while True:
            try:
                return await self._writer.settle(head.log, sealed.batch_no, sealed.seal_text)
            except DatabaseUnavailable:
                if time.monotonic() > deadline:
                    unknown = DatabaseUnavailable(
                        "Postgres went away while it was committing and has not come back: whether this write stands is not "
                        "known. Read before writing again, or repeat it under the same Idempotency-Key."
                    )
                    unknown.retryable = False
                    raise unknown from None
                await asyncio.sleep(0.2)

    async def _sign(self, text: bytes) -> bytes:
        try:
            async with asyncio.timeout(SIGNER_TIMEOUT):
                signature = await self._signer.sign(text)
            # A signer that answers with a signature over something else must not seal anything.
            if not audit_seal.verify_signature(self._signer.algorithm, self._signer.public_key_der, text, signature):
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


def _decide(batch: list[_Item], known: Known, now: dt.datetime) -> tuple[_Decided, Rows]:
    """Decide each change on the rows that the ones before it left; refused and replayed ones leave the batch here."""
    decided, rows = _Decided(), Rows()
    for item in batch:
        item.outcome = None
        try:
            item.outcome = _replay(item.change, known)
            if item.outcome is None:
                effect = decide(item.change, known, now)
                apply(effect, rows, known)
                decided.items.append(item)
                decided.effects.append(effect)
        except MemoryLayerError as error:
            _fail([item], error)
    return decided, rows


def _replay(change: Change, known: Known) -> Outcome | None:
    if change.idempotency is None:
        return None
    row = known.idempotency.get((change.caller.tenant, change.caller.actor, change.idempotency.key))
    if row is None:
        return None
    if bytes(row["request_hash"]) != change.idempotency.request_hash:
        raise IdempotencyMismatch("This Idempotency-Key was used with another request. Use a new key.")
    answer = dict(row["answer"])
    audit = answer["audit"]
    receipt = AuditReceipt(id=uuid.UUID(answer["auditId"]), seq=audit["seq"], hash=audit["hash"])
    return Outcome(answer, receipt, replayed=True)


def _chain(head: Head, decided: _Decided, rows: Rows, now: dt.datetime) -> tuple[list[dict[str, Any]], str]:
    """Entries with their hashes, in order; also completes answers, payloads and idempotency records."""
    previous = head.hash or audit_entry.genesis_prev(head.origin)
    stamp = format_time(now)
    events = []
    for seq, (item, effect) in enumerate(zip(decided.items, decided.effects, strict=True), start=head.last_seq + 1):
        caller, salt, event_id = item.change.caller, os.urandom(32), uuid7()
        payload = canonical.dumps(effect.payload)
        state = None if effect.state is None else audit_entry.state_hash(salt, canonical.dumps(effect.state))
        entry = audit_entry.encode_entry(
            log=head.origin,
            seq=seq,
            id=str(event_id),
            ts=stamp,
            type=effect.event_type,
            tenant=caller.tenant,
            actor=str(caller.actor),
            auth=caller.auth,
            node=None if effect.node is None else str(effect.node),
            version=effect.version,
            artifact=None if effect.artifact is None else str(effect.artifact),
            subject=None,
            outcome="ok",
            state=state,
            request_id=caller.request_id,
            trace_id=caller.trace_id,
            manifest_signature_id=caller.manifest_signature_id,
            caller_prev_hash=caller.prev_audit_hash,
            payload=audit_entry.payload_commitment(salt, payload),
            prev=previous,
        )
        digest = audit_entry.leaf_hash(entry)
        events.append(
            {
                "seq": seq,
                "id": event_id,
                "tenant": caller.tenant,
                "node": effect.node,
                "artifact": effect.artifact,
                "type": effect.event_type,
                "manifest_signature_id": caller.manifest_signature_id,
                "entry": entry,
                "hash": digest,
                "prev_hash": previous,
            }
        )
        rows.payloads.append((seq, caller.tenant, salt, payload))
        receipt = AuditReceipt(event_id, seq, digest)
        answer = effect.answer | {"auditId": str(event_id), "audit": {"seq": seq, "hash": digest}}
        item.outcome = Outcome(answer, receipt)
        if item.change.idempotency is not None:
            rows.idempotency.append(
                {
                    "tenant": caller.tenant,
                    "actor": caller.actor,
                    "key": item.change.idempotency.key,
                    "request_hash": item.change.idempotency.request_hash,
                    "status": 200,
                    "answer": canonical.dumps(answer).decode("utf-8"),
                }
            )
        previous = digest
    return events, previous


def _now(head: Head) -> dt.datetime:
    """The batch's time: the database's clock, never before the previous seal."""
    now: dt.datetime = head.now
    if abs(now - dt.datetime.now(dt.UTC)) > MAX_CLOCK_SKEW:
        raise DatabaseUnavailable(
            "The clocks of the database and of this server differ by more than five minutes (TIME_SKEW): nothing is "
            "written until they agree. Check NTP on both."
        )
    return max(now, head.sealed_at) if head.sealed_at is not None else now


def _fail(batch: list[_Item], error: MemoryLayerError) -> None:
    for item in batch:
        if not item.done.done():
            item.done.set_exception(error)


def request_hash(*parts: object) -> bytes:
    """What an Idempotency-Key is bound to: the method, the route with its ids, and the body."""
    digest = hashlib.sha256()
    for part in parts:
        data = part if isinstance(part, bytes) else str(part).encode()
        digest.update(len(data).to_bytes(8, "big") + data)
    return digest.digest()
