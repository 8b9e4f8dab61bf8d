"""What a batch does, worked out without I/O: decisions, entries, the seal's text. ``transact.py`` makes it durable."""

from __future__ import annotations

import asyncio
import datetime as dt
import math
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, TypeAlias

from memory_layer import canonical
from memory_layer.audit import entry as audit_entry
from memory_layer.audit import seal as audit_seal
from memory_layer.errors import DatabaseUnavailable, Frozen, IdempotencyMismatch, MemoryLayerError, Tampered, error_body
from memory_layer.model import SYSTEM_TENANT, AuditReceipt, Caller, Freeze, format_time, uuid7
from memory_layer.service import decide_tampered, principals
from memory_layer.service.changes import Change, CreateNodes, Effect, Introduce, ResolveRow
from memory_layer.service.decide import apply, decide, decide_create
from memory_layer.service.evidence import evidence
from memory_layer.service.verification import Problem
from memory_layer.service.verification import refusal as tampered_error
from memory_layer.stores.log_writer import Event, Head, Known, Rows

Touched: TypeAlias = tuple[str, str, object]  # tenant, kind, id: as ``changes.touches`` gives them
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

    def settle(self) -> None:
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

    rows: Rows = field(default_factory=Rows)
    events: list[Event] = field(default_factory=list)
    last_hash: str = ""


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
    batch = Batch(last_hash=head.hash or audit_entry.genesis_prev(head.origin))
    stamp, frozen = format_time(now), head.frozen
    for item in items:
        item.outcome, item.refusal = None, None
        change, introduced = item.change, None
        try:
            item.outcome = replay(change, known)
            if item.outcome is not None:
                continue
            if change.caller.draft:
                introduced = _introduce(batch, head, change.caller, known, now, stamp)
            if isinstance(change.action, Introduce):
                item.outcome = Outcome({"id": str(change.caller.actor)}, introduced)
                continue
            if frozen is not None and change.freezes:
                raise refusal(frozen, now)
            if (problem := _forbidding(item, tampered)) is not None:
                item.refusal = _deny(batch, head, change, problem, stamp)
                continue
            if isinstance(change.action, CreateNodes):
                item.outcome = _bulk(item, change.action, batch, head, known, now, stamp)
            else:
                if isinstance(change.action, ResolveRow):
                    wrong = change.resolves in tampered
                    effect = decide_tampered.decide(change.action, change.caller, known, now, tampered=wrong)
                else:
                    effect = decide(change, known, now, _next(batch, head), frozen)
                receipt = _append_all(batch, head, change, effect, stamp)
                apply(effect, batch.rows, known)
                batch.rows.adopted.extend((principal, receipt.id) for principal in effect.adopted)
                if effect.freeze is not None:
                    (frozen,) = effect.freeze
                item.outcome = Outcome(effect.answer | _told(receipt), receipt)
        except MemoryLayerError as error:
            item.refusal = error
            if introduced is not None:
                _take_back(batch, known)
            continue
        if change.idempotency is not None and item.outcome.receipt is not None:
            batch.rows.idempotency.append(
                {
                    "tenant": change.caller.tenant,
                    "actor": change.caller.actor,
                    "key": change.idempotency.key,
                    "request_hash": change.idempotency.request_hash,
                    "status": 200,
                    "answer": canonical.dumps(item.outcome.answer).decode("utf-8"),
                }
            )
    return batch


def _forbidding(item: Item, tampered: Mapping[Touched, Problem]) -> Problem | None:
    """Why a change is refused for a row that it touches: any but the one that it puts right or accepts."""
    own = item.change.resolves
    return next((tampered[key] for key in item.touches if key in tampered and key != own), None)


def _introduce(batch: Batch, head: Head, caller: Caller, known: Known, now: dt.datetime, stamp: str) -> AuditReceipt:
    """The entry that says who a caller is, before the first that names it; the installation's own, and by the caller itself."""
    effect = principals.create(caller, known, now)
    own = replace(caller, tenant=SYSTEM_TENANT, manifest_signature_id=None, prev_audit_hash=None)
    receipt = _append(batch, head, Change(own, Introduce()), effect, stamp)
    apply(effect, batch.rows, known)
    assert effect.new_principal is not None  # noqa: S101 - narrows the type
    batch.rows.principals.append((effect.new_principal, receipt.id))
    return receipt


def _take_back(batch: Batch, known: Known) -> None:
    """Nothing is written of a change that is refused, nor that its caller was there."""
    event = batch.events.pop()
    batch.rows.payloads.pop()
    batch.last_hash = event.prev_hash
    who, _ = batch.rows.principals.pop()
    del known.principals[(who.tenant, who.service)]
    if who.tenant in batch.rows.tenants:
        batch.rows.tenants.remove(who.tenant)
        known.tenants.discard(who.tenant)


def _deny(batch: Batch, head: Head, change: Change, problem: Problem, stamp: str) -> Tampered:
    """The entry of a write that is refused because of its row, and what its caller hears."""
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
    _append(batch, head, change, effect, stamp)
    return tampered_error(problem)


def refusal(freeze: Freeze, now: dt.datetime) -> Frozen:
    """What a write is told while a freeze is in force."""
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


def _next(batch: Batch, head: Head) -> int:
    return head.last_seq + 1 + len(batch.events)


def _told(receipt: AuditReceipt) -> dict[str, Any]:
    return {"auditId": str(receipt.id), "audit": {"seq": receipt.seq, "hash": receipt.hash}}


def _bulk(
    item: Item, action: CreateNodes, batch: Batch, head: Head, known: Known, now: dt.datetime, stamp: str
) -> Outcome:
    """One entry and one answer a node; a node that cannot be created fails alone."""
    answers: list[dict[str, Any]] = []
    receipt = None
    for place, new in enumerate(action.nodes):
        try:
            if isinstance(new, MemoryLayerError):
                raise new
            if place in item.barred:
                raise item.barred[place]
            effect = decide_create(new, item.change.caller, known, now)
            receipt = _append_all(batch, head, item.change, effect, stamp)
        except MemoryLayerError as error:
            answers.append({"error": error_body(error)})
            continue
        apply(effect, batch.rows, known)
        answers.append(effect.answer | _told(receipt))
    return Outcome({"items": answers}, receipt)


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
    told = [answer, *answer.get("items", ())]
    audited = [entry for entry in told if "auditId" in entry]
    receipt = None
    if audited:
        audit = audited[-1]["audit"]
        receipt = AuditReceipt(id=uuid.UUID(audited[-1]["auditId"]), seq=audit["seq"], hash=audit["hash"])
    return Outcome(answer, receipt, replayed=True)


def _append_all(batch: Batch, head: Head, change: Change, effect: Effect, stamp: str) -> AuditReceipt:
    """The entries of an effect and of what it does besides, or none of them; the first one's receipt. The answer tells of each."""
    before = (len(batch.events), len(batch.rows.payloads), batch.last_hash)
    try:
        receipt = _append(batch, head, change, effect, stamp)
        told = [more.answer | _told(_append(batch, head, change, more, stamp)) for more in effect.also]
    except MemoryLayerError:
        events, payloads, batch.last_hash = before
        del batch.events[events:], batch.rows.payloads[payloads:]
        raise
    if told:
        effect.answer["artifacts"] = told
    return receipt


def _append(batch: Batch, head: Head, change: Change, effect: Effect, stamp: str) -> AuditReceipt:
    """The entry of one effect, with its hash, at the end of the chain; its payload among the rows. Before the effect's own rows,
    for what the log cannot tell must not be done: it raises ValidationError, and nothing of the effect is there."""
    caller, event_id, seq = change.caller, uuid7(), _next(batch, head)
    told = effect.evidence or evidence(effect.payload, effect.state)
    tenant = None if caller.tenant == SYSTEM_TENANT else caller.tenant
    provenance = effect.manifest_signature_id or caller.manifest_signature_id
    entry = audit_entry.encode_entry(
        log=head.origin,
        seq=seq,
        id=event_id,
        ts=stamp,
        type=effect.event_type,
        tenant=tenant,
        actor=caller.actor,
        auth=caller.auth,
        node=effect.node,
        version=effect.version,
        artifact=effect.artifact,
        subject=None,
        outcome="denied" if effect.denied else "ok",
        state=told.state,
        request_id=caller.request_id,
        trace_id=caller.trace_id,
        manifest_signature_id=provenance,
        caller_prev_hash=caller.prev_audit_hash,
        payload=told.commitment,
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
    batch.rows.payloads.append((seq, caller.tenant, told.salt, told.payload))
    return AuditReceipt(event_id, seq, digest)
