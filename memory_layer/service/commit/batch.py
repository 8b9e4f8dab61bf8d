"""What a batch does, worked out without I/O: decisions, entries, the seal's text. ``transaction.py`` makes it durable."""

from __future__ import annotations

import asyncio
import datetime as dt
import math
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

from memory_layer import canonical
from memory_layer.audit import entry as audit_entry
from memory_layer.audit import seal as audit_seal
from memory_layer.errors import DatabaseUnavailable, Frozen, IdempotencyMismatch, MemoryLayerError, Tampered, error_body
from memory_layer.model import SYSTEM_TENANT, AuditReceipt, Caller, Freeze, format_time, uuid7
from memory_layer.service.commit.action import Action, Change, Effect, Situation, Touched
from memory_layer.service.commit.introduction import introduction
from memory_layer.service.evidence import evidence
from memory_layer.service.verification import Problem
from memory_layer.service.verification import refusal as tampered_error
from memory_layer.stores.batch_reads import Head, Known
from memory_layer.stores.batch_rows import KeptAnswer, Payload, RowOp, Verb, remember
from memory_layer.stores.log_writer import Event, SealKey

NONE: Final[Mapping[Touched, Problem]] = {}
MAX_CLOCK_SKEW = dt.timedelta(minutes=5)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a committed (or replayed) change answers. Of a bulk request the receipt is that of its last entry."""

    answer: dict[str, Any]
    receipt: AuditReceipt | None
    replayed: bool = False


@dataclass(slots=True, eq=False)
class Item:
    """A change on its way: who waits for it, and what became of it in the last attempt."""

    change: Change
    done: asyncio.Future[Outcome]
    touches: list[tuple[str, str, object]]
    outcome: Outcome | None = None
    refusal: MemoryLayerError | None = None
    barred: dict[int, MemoryLayerError] = field(default_factory=dict)  # nodes of a bulk that Postgres could not store
    final: bool = (
        False  # nothing changes the outcome or the refusal any more, though the answer may still be on its way
    )

    def deliver(self) -> None:
        """Answer with what the last attempt came to."""
        if self.done.done():
            return
        if self.refusal is not None:
            self.done.set_exception(self.refusal)
        elif self.outcome is not None:
            self.done.set_result(self.outcome)


@dataclass(slots=True)
class Batch:
    """A batch as decided: rows, entries and their chain."""

    head: Head
    known: Known
    now: dt.datetime
    stamp: str  # ``now`` as entries spell it
    last_hash: str
    rows: list[RowOp] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)
    new_key: SealKey | None = None  # seals from the next batch on
    heavy: bool = False  # its rows are encoded in a thread

    @property
    def next_seq(self) -> int:
        return self.head.last_seq + 1 + len(self.events)

    def mark(self) -> tuple[int, int, str]:
        return len(self.rows), len(self.events), self.last_hash

    def take_back(self, mark: tuple[int, int, str]) -> None:
        """Forget what was added since: nothing is written of a change that is refused."""
        rows, events, self.last_hash = mark
        del self.rows[rows:], self.events[events:]


def time_of(head: Head) -> dt.datetime:
    """The batch's time: the database's clock, never before the previous seal."""
    now: dt.datetime = head.now
    if abs(now - dt.datetime.now(dt.UTC)) > MAX_CLOCK_SKEW:
        raise DatabaseUnavailable(
            "The clocks of the database and of this server differ by more than five minutes (TIME_SKEW): nothing is "
            "written until they agree. Check NTP on both."
        )
    return max(now, head.sealed_at) if head.sealed_at is not None else now


def build(
    items: Sequence[Item], head: Head, known: Known, now: dt.datetime, tampered: Mapping[Touched, Problem] = NONE
) -> Batch:
    """Decide each change on the rows that the ones before it left, and chain the entries of those that go in.

    ``tampered``: rows that are not what the log says of them. What touches one is refused, and that is an entry of its own: to seal
    such a row as it stands would make the log confirm what somebody did behind its back.

    Each item has its outcome or its refusal afterwards; neither is anybody's answer before the batch is committed, for a
    refusal may rest on what another change of the batch does.
    """
    batch = Batch(head, known, now, format_time(now), head.hash or audit_entry.genesis_prev(head.origin))
    known.frozen = head.frozen
    for item in items:
        item.outcome, item.refusal = None, None
        change, introduced, start = item.change, None, batch.mark()
        before = (dict(known.principals), set(known.tenants)) if change.caller.draft else None
        try:
            item.outcome = replay(change, known)
            if item.outcome is not None:
                continue
            if change.caller.draft:
                introduced = _introduce(batch, change.caller)
            if known.frozen is not None and change.action.freezes:
                raise refusal(known.frozen, now)
            if (problem := _forbidding(item, tampered)) is not None:
                item.refusal = _deny(batch, change, problem)
                continue
            item.outcome = _decided(batch, item, tampered, introduced)
        except MemoryLayerError as error:
            item.refusal = error
            batch.take_back(start)
            if before is not None:  # nor was its caller there
                known.principals, known.tenants = before
            continue
        if change.idempotency is not None and item.outcome.receipt is not None:
            answer = canonical.dumps(item.outcome.answer).decode("utf-8")
            kept = KeptAnswer(
                change.caller.tenant,
                change.caller.actor,
                change.idempotency.key,
                change.idempotency.request_hash,
                200,
                answer,
            )
            batch.rows.append(RowOp(Verb.PUT, kept))
    return batch


def _decided(batch: Batch, item: Item, tampered: Mapping[Touched, Problem], introduced: AuditReceipt | None) -> Outcome:
    """Decide one change and add what it does; of a bulk request each part, where one that cannot be done fails alone."""
    change = item.change
    parts = change.action.parts()
    if parts is None:
        answer, receipt = _add(batch, change.caller, change.action, tampered)
        return Outcome(answer, receipt or introduced)
    answers: list[dict[str, Any]] = []
    last = None
    for place, part in enumerate(parts):
        try:
            if isinstance(part, MemoryLayerError):
                raise part
            if place in item.barred:
                raise item.barred[place]
            answer, last = _add(batch, change.caller, part, tampered)
        except MemoryLayerError as error:
            answer = {"error": error_body(error)}
        answers.append(answer)
    return Outcome({"items": answers}, last)


def _add(
    batch: Batch, caller: Caller, action: Action, tampered: Mapping[Touched, Problem]
) -> tuple[dict[str, Any], AuditReceipt | None]:
    """Decide one action and add its entries and rows, or none of them; what it answers, and the first entry's receipt."""
    effect = action.decide(Situation(caller, batch.known, batch.now, batch.next_seq, tampered))
    if effect.event_type is None:
        return effect.answer, None
    start = batch.mark()
    try:
        receipt = _append(batch, caller, effect)
        artifacts = [more.answer | _receipt_facts(_append(batch, caller, more)) for more in effect.also]
    except MemoryLayerError:
        batch.take_back(start)
        raise
    if artifacts:
        effect.answer["artifacts"] = artifacts
    for one in (effect, *effect.also):
        _apply(batch, one)
    return effect.answer | _receipt_facts(receipt), receipt


def _apply(batch: Batch, effect: Effect) -> None:
    """Put an effect's rows among the batch's, and where the changes after it in the batch will see them."""
    batch.rows += effect.rows
    for op in effect.rows:
        remember(op, batch.known)
    batch.new_key = effect.new_key or batch.new_key


def _forbidding(item: Item, tampered: Mapping[Touched, Problem]) -> Problem | None:
    """Why a change is refused for a row that it touches: any but the one that it puts right or accepts."""
    own = item.change.action.resolves(item.change.caller.tenant)
    return next((tampered[key] for key in item.touches if key in tampered and key != own), None)


def _introduce(batch: Batch, caller: Caller) -> AuditReceipt:
    """The entry that says who a caller is, before the first that names it; the installation's own, and by the caller itself."""
    effect = introduction(caller, batch.known, batch.now)
    own = replace(caller, tenant=SYSTEM_TENANT, manifest_signature_id=None, prev_audit_hash=None)
    receipt = _append(batch, own, effect)
    _apply(batch, effect)
    return receipt


def _deny(batch: Batch, change: Change, problem: Problem) -> Tampered:
    """The entry of a write that is refused because of its row, and the error that its caller gets."""
    facts = {
        "code": Tampered.code,
        "kind": problem.kind,
        "reason": problem.reason,
        "lastSeq": problem.seq,
        "change": type(change.action).__name__,
    }
    effect = Effect("ops.tampered-write.failed", {}, facts, denied=True)
    if problem.kind == "node":
        effect.node = problem.id
    else:
        effect.artifact = problem.id
    _append(batch, change.caller, effect)
    return tampered_error(problem)


def refusal(freeze: Freeze, now: dt.datetime) -> Frozen:
    """The error of a write while a freeze is in force."""
    end = "until an operator lifts it" if freeze.until is None else f"until {format_time(freeze.until)}"
    return Frozen(
        f"Writes are frozen by an operator, since {format_time(freeze.since)} and {end}: {freeze.reason}. Nothing was changed; "
        "reads go on. Try again later.",
        retry_after=None if freeze.until is None else max(1, math.ceil((freeze.until - now).total_seconds())),
    )


def seal_text(batch: Batch, head: Head, now: dt.datetime, key_id: str, algorithm: str) -> bytes:
    """The text of the batch's seal (audit-format.md, "Seal")."""
    previous = audit_seal.NO_PREVIOUS if head.seal_text is None else audit_seal.seal_hash(head.seal_text.encode())
    return audit_seal.seal_text(
        log=head.origin,
        batch=head.batch_no + 1,
        first=head.last_seq + 1,
        last=head.last_seq + len(batch.events),
        head=batch.last_hash,
        prev_seal=previous,
        time=format_time(now),
        key=key_id,
        alg=algorithm,
    )


def _receipt_facts(receipt: AuditReceipt) -> dict[str, Any]:
    return {"auditId": str(receipt.id), "audit": {"seq": receipt.seq, "hash": receipt.hash}}


def replay(change: Change, known: Known) -> Outcome | None:
    """What the same request was answered before, under its idempotency key. Raises IdempotencyMismatch for another one."""
    if change.idempotency is None:
        return None
    row = known.idempotency.get((change.caller.tenant, change.caller.actor, change.idempotency.key))
    if row is None:
        return None
    if bytes(row["request_hash"]) != change.idempotency.request_hash:
        raise IdempotencyMismatch("This Idempotency-Key was used with another request. Use a new key.")
    answer = dict(row["answer"])
    audited = [part for part in (answer, *answer.get("items", ())) if "auditId" in part]
    receipt = None
    if audited:
        audit = audited[-1]["audit"]
        receipt = AuditReceipt(id=uuid.UUID(audited[-1]["auditId"]), seq=audit["seq"], hash=audit["hash"])
    return Outcome(answer, receipt, replayed=True)


def _append(batch: Batch, caller: Caller, effect: Effect) -> AuditReceipt:
    """The entry of one effect, with its hash, at the end of the chain; its payload among the rows. Before the effect's own rows,
    for what the log cannot say must not be done: it raises ValidationError, and nothing of the effect is there."""
    assert effect.event_type is not None  # noqa: S101 - narrows the type
    event_id, seq = effect.entry_id or uuid7(), batch.next_seq
    proof = effect.evidence or evidence(effect.payload, effect.state)
    tenant = None if caller.tenant == SYSTEM_TENANT else caller.tenant
    provenance = effect.manifest_signature_id or caller.manifest_signature_id
    entry = audit_entry.encode_entry(
        log=batch.head.origin,
        seq=seq,
        id=event_id,
        ts=batch.stamp,
        type=effect.event_type,
        tenant=tenant,
        actor=caller.actor,
        auth=caller.auth,
        node=effect.node,
        version=effect.version,
        artifact=effect.artifact,
        subject=None,
        outcome="denied" if effect.denied else "ok",
        state=proof.state,
        request_id=caller.request_id,
        trace_id=caller.trace_id,
        manifest_signature_id=provenance,
        caller_prev_hash=caller.prev_audit_hash,
        payload=proof.commitment,
        prev=batch.last_hash,
    )
    digest = audit_entry.leaf_hash(entry)
    batch.events.append(
        Event(
            seq=seq,
            id=event_id,
            tenant=tenant,
            node=effect.node,
            artifact=effect.artifact,
            type=effect.event_type,
            manifest_signature_id=provenance,
            entry=entry,
            hash=digest,
            prev_hash=batch.last_hash,
        )
    )
    batch.last_hash = digest
    batch.rows.append(RowOp(Verb.INSERT, Payload(seq, caller.tenant, proof.salt, proof.payload)))
    return AuditReceipt(event_id, seq, digest)
