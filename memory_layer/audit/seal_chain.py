"""The verifier's half that reads seals: each by itself, each to the one before, and each to the entries that it covers."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Final, NamedTuple

from memory_layer.audit.seal import (
    ALGORITHMS,
    NO_PREVIOUS,
    Seal,
    decode_signature,
    parse_seal,
    seal_hash,
    verify_signature,
)
from memory_layer.audit.trust_root import (
    Activation,
    KeyEntry,
    Retirement,
    TrustedKey,
    TrustRoot,
    delegation_text,
    parse_activation,
    parse_retirement,
)
from memory_layer.audit.verdict import Case, Cases, Draft
from memory_layer.errors import MemoryLayerError, ValidationError

ENDLESS: Final = 2**63


class Base(NamedTuple):
    """Where a part of a log begins: what came before it, as the keeper of the rest says. The default is a log's beginning.

    ``seq`` and ``batch`` are those of the first entry; ``prev`` and ``ts`` are the hash and the time of the entry before, ``prev_seal``
    is ``seal_hash`` of the seal before; ``tree`` is ``Frontier.dumps`` over all entries before.
    """

    seq: int = 0
    batch: int = 0
    prev: str | None = None  # None: the log's genesis
    prev_seal: str = NO_PREVIOUS
    ts: str = ""
    tree: bytes = bytes(8)


class SealRow(NamedTuple):
    """A seal as stored; ``signature`` is base64 text."""

    batch: int
    text: bytes
    signature: str | None


@dataclass(slots=True)
class _Span:
    """A batch: its seal, and the entries that it is taken to cover."""

    batch: int
    first: int
    last: int
    seal: Seal | None
    signature: str | None
    case: Case | None


@dataclass(frozen=True, slots=True)
class _Delegated:
    """A key that a pinned one lets seal, until ``expiry``."""

    key: TrustedKey
    expiry: str


class SealChain:
    """Walks the seals alongside the entries. ``batch``, ``last``, ``signature`` are what the current entry is held to."""

    def __init__(
        self,
        cases: Cases,
        trust_root: TrustRoot,
        origin: str,
        seals: Iterable[SealRow],
        impugn: Callable[[Case, int], None],
        base: Base = Base(),  # noqa: B008 - immutable
    ) -> None:
        """``impugn`` is called for each case that puts entries in question, and how many entries end with the one meant."""
        self.cases = cases
        self.impugn = impugn
        self.delegated = 0
        self.origin = origin
        self.batches = 0
        self.valid = 0
        self.batch: int | None = None
        self.last = base.seq - 1
        self.signature: str | None = None
        self.case: Case | None = None  # of the current seal, or of the hole where one should be
        self._keys: dict[str, list[TrustedKey]] = {}
        for key in trust_root.keys:
            self._keys.setdefault(key.key_id, []).append(key)
        self._delegations: dict[str, list[_Delegated]] = {}
        self._refused: Case | None = None  # of the last activation that did not hold
        self._refused_keys: dict[str, Case] = {}
        self.retired: dict[str, int] = {}
        self.sealed: dict[str, int] = {}  # the last entry that each key sealed
        self._seals = iter(seals)
        self._ahead = next(self._seals, None)
        self._next_batch = base.batch
        self._next_first = base.seq
        self._prev_hash = base.prev_seal
        self._link_case: Case | None = None  # of the newest seal read, for what its successor shows
        self._current: _Span | None = None
        self._upcoming: _Span | None = None
        self._pending: Draft | None = None
        self._foreign: dict[str, Case] = {}

    def foreign(self, draft: Draft, case: Case | None = None) -> Case:
        """Another log's name was found; all that carries that name is one case."""
        case = self.cases.add(self._foreign.get(draft.found, case), draft)
        if len(self._foreign) < Cases.LIMIT:
            self._foreign.setdefault(draft.found, case)
        return case

    def activate(self, activation: Activation, seq: int, ts: str) -> Draft | None:
        """Entry ``seq`` activates a key. A delegated one may seal from here on, or else a draft says why not."""
        key, delegation = activation.key, activation.delegation
        if delegation is None:
            return None  # whether it counts is for the trust root to say
        by = f"key {delegation.delegate}"
        pinned = self._keys.get(delegation.delegate, [])
        delegate = next((other for other in pinned if other.purpose == "delegate"), None)
        if delegate is None:
            purposes = ", ".join(other.purpose for other in pinned) or "nothing"
            return _refusal("a delegate that the trust root has", f"{by}, which it has for {purposes}", seq)
        if key.key_id in self._keys:
            return _refusal("a key that the trust root does not have", f"key {key.key_id}", seq)
        text = delegation_text(self.origin, key, expiry=delegation.expiry, delegate=delegate)
        if not verify_signature(delegate.algorithm, delegate.public_key, text, delegation.signature):
            return _refusal(f"a delegation signed by {by}", delegation.signature.hex()[:160], seq)
        first = max(delegate.from_seq, seq + 1)
        if key.from_seq < first or (delegate.to_seq is not None and key.from_seq > delegate.to_seq):
            end = "" if delegate.to_seq is None else f" to {delegate.to_seq}"
            return _refusal(f"a delegation from an entry after {first - 1}{end}", f"from {key.from_seq}", seq)
        if delegation.expiry <= ts:
            return _refusal(f"a delegation beyond {ts}", f"until {delegation.expiry}", seq)
        granted = replace(key, to_seq=delegate.to_seq)
        self._delegations.setdefault(key.key_id, []).append(_Delegated(granted, delegation.expiry))
        self.delegated += 1
        return None

    def recall(self, entries: Iterable[KeyEntry]) -> None:
        """What entries before the first one that is read say of keys. What does not hold counts for nothing: its key stays unknown."""
        for entry in entries:
            with contextlib.suppress(MemoryLayerError):
                if entry.type == "audit.key.activated":
                    self.activate(parse_activation(entry.payload), entry.seq, entry.ts)
                else:
                    self.retire(parse_retirement(entry.payload), entry.seq)

    def retire(self, retirement: Retirement, seq: int) -> Draft | None:
        """Entry ``seq`` retires a key. A draft says when the key has sealed more than that allows."""
        if retirement.purpose != "seal":
            return None
        if retirement.to_seq > seq:
            return _refusal(f"a last entry up to {seq}", f"{retirement.to_seq}", seq)
        last = min(retirement.to_seq, self.retired.get(retirement.key_id, ENDLESS))
        self.retired[retirement.key_id] = last
        if self.sealed.get(retirement.key_id, -1) > last:
            sealed = f"key {retirement.key_id} up to {self.sealed[retirement.key_id]}"
            return Draft("KEY_EPOCH_CLOSED", f"seals up to {last}, as the retirement says", sealed, seq=seq)
        return None

    def refuse(self, case: Case, key: str | None) -> None:
        """An activation did not hold: seals by ``key``, or when it is None by any unknown key, are due to that."""
        if key is None:
            self._refused = case
        else:
            self._refused_keys[key] = case

    def advance(
        self, seq: int, seen: int, head: str | None, ts: str, row_case: Case | None, gap: Case | None, genesis: bool
    ) -> Case | None:
        """Move on to the batch of entry ``seq``; ``seen``, ``head`` and ``ts`` are of the entry before. Returns that one's case."""
        row_case = self._close(seen, head, ts, row_case, gap)
        while True:
            span = self._upcoming or self._examine(gap, genesis)
            self._upcoming = None
            if span is None or seq < span.first:
                self._upcoming = span
                self.batch, self.signature = None, None
                self.last = ENDLESS if span is None else span.first - 1
                self.case = self._link_case
                return row_case
            if seq <= span.last:
                self._current = span
                self.batch, self.last, self.signature, self.case = span.batch, span.last, span.signature, span.case
                return row_case
            case = gap if gap is not None else span.case
            self.cases.add(case, _incomplete(span, seen))

    def linked(self) -> None:
        """The next entry names the last one's hash, so a head that differs is the seal's fault."""
        if self._pending is not None:
            self._pending.code = "SEAL_HEAD_MISMATCH"
            self._pending = None

    def unlinked(self) -> None:
        """No next entry confirms the last one."""
        self._pending = None

    def finish(self, seen: int, head: str | None, ts: str, row_case: Case | None) -> Case | None:
        """The log ends after entry ``seen``. Returns the case of entries that are sealed and not there."""
        span = self._current
        case = None
        if span is not None and seen < span.last < ENDLESS:
            case = self.cases.add(span.case, _incomplete(span, seen))
        else:
            self._close(seen, head, ts, row_case, None)
        while (span := self._upcoming or self._examine(case, False)) is not None:
            self._upcoming = None
            case = self.cases.add(case or span.case, _incomplete(span, seen))
        return case

    def _close(self, seen: int, head: str | None, ts: str, row_case: Case | None, gap: Case | None) -> Case | None:
        span, self._current = self._current, None
        if span is None:
            return row_case
        if seen < span.last < ENDLESS:
            self.cases.add(gap if gap is not None else span.case, _incomplete(span, seen))
        elif span.seal is not None and span.seal.head != head:
            draft = Draft("SEAL_INVALID", f"head {span.seal.head} as sealed", f"{head}", batch=span.batch)
            if span.case is not None:
                draft.code = "SEAL_HEAD_MISMATCH"
                self.impugn(self.cases.add(span.case, draft), seen + 1)
            else:
                # Either the entry or the seal was changed: the next entry's link tells, and until then the entry was.
                self._pending = draft
                row_case = self._link_case = self.cases.add(row_case, draft)
                self.impugn(row_case, seen + 1)
        elif span.seal is not None and span.seal.time != ts:
            draft = Draft("SEAL_HEAD_MISMATCH", f"time {ts} of the last entry", span.seal.time, batch=span.batch)
            self._link_case = self.cases.add(span.case or row_case, draft)
        return row_case

    def _examine(self, gap: Case | None, genesis: bool) -> _Span | None:
        """Judge the next seal by itself and against the one before it."""
        row = self._take()
        while row is not None and row.batch < self._next_batch:
            self.cases.add(
                None, Draft("FORK_DETECTED", f"batch {self._next_batch}", "another seal of this batch", batch=row.batch)
            )
            row = self._take()
        if row is None:
            return None
        seal, own = self._own(row)
        chain = self._chain(row, seal)
        if genesis:
            chain = None  # the missing beginning is reported already
        if own and own[0].code == "ORIGIN_MISMATCH":
            case: Case | None = self.foreign(own.pop(0))
        elif chain is not None:
            case = gap if gap is not None and row.batch > self._next_batch else self._link_case
        else:
            case = None
        if seal is not None and own and own[0].code == "KEY_UNKNOWN":
            refused = self._refused_keys.get(seal.key, self._refused)
            if refused is not None:
                case = refused
                own[0].consequence = True
        for draft in [*own, chain] if chain is not None else own:
            case = self.cases.add(case, draft)
        if case is not None:
            self.impugn(case, -1)
        self.valid += not own and case is None
        span = self._span(row, seal, not own, case)
        self._next_batch, self._next_first = row.batch + 1, min(span.last + 1, ENDLESS)
        self._prev_hash = seal_hash(row.text)
        self._link_case = case
        return span

    def _take(self) -> SealRow | None:
        row, self._ahead = self._ahead, next(self._seals, None) if self._ahead is not None else None
        self.batches += row is not None
        return row

    def _span(self, row: SealRow, seal: Seal | None, authentic: bool, case: Case | None) -> _Span:
        if seal is not None and authentic:
            return _Span(row.batch, seal.first, seal.last, seal, row.signature, case)
        # A range that nobody signed is not believed: the batch lies between its neighbours.
        first = self._next_first if row.batch == self._next_batch or seal is None else seal.first
        last = ENDLESS
        if self._ahead is not None:
            last = first if seal is None else max(first, seal.last)
            try:
                following = parse_seal(self._ahead.text).first
            except ValidationError:
                following = last + 1
            last = following - 1 if following > first else last
        return _Span(row.batch, first, last, seal, row.signature, case)

    def _own(self, row: SealRow) -> tuple[Seal | None, list[Draft]]:
        """What is wrong with a seal taken alone; another log's name comes first."""
        batch = row.batch
        try:
            seal = parse_seal(row.text)
        except ValidationError:
            return None, [Draft("NONCANONICAL_ENCODING", "a seal text of version 1", repr(row.text[:160]), batch=batch)]
        drafts = []
        if seal.log != self.origin:
            drafts.append(Draft("ORIGIN_MISMATCH", self.origin, seal.log, batch=batch))
        delegations = self._delegations.get(seal.key, [])
        keys = self._keys.get(seal.key, []) + [delegated.key for delegated in delegations]
        if seal.alg not in ALGORITHMS or (keys and keys[0].algorithm != seal.alg):
            allowed = keys[0].algorithm if keys else ", ".join(sorted(ALGORITHMS))
            drafts.append(Draft("ALG_NOT_ALLOWED", allowed, seal.alg, batch=batch))
        elif not keys:
            drafts.append(Draft("KEY_UNKNOWN", "a key of the trust root", f"key {seal.key}", batch=batch))
        else:
            epoch = self._epoch(keys, delegations, seal, batch)
            if epoch is not None:
                drafts.append(epoch)
        signature = _signature(row.signature, seal, keys[0] if keys else None, row.text, batch)
        if signature is not None:
            drafts.append(signature)
        elif keys:
            self.sealed[seal.key] = max(seal.last, self.sealed.get(seal.key, -1))
        if signature is None and seal.batch != batch:
            drafts.append(Draft("PROJECTION_MISMATCH", f"batch_no {seal.batch} as sealed", f"{batch}", batch=batch))
        return seal, drafts

    def _epoch(self, keys: list[TrustedKey], delegations: list[_Delegated], seal: Seal, batch: int) -> Draft | None:
        """Why the key may not seal this batch; of several delegations of one key any may allow it."""
        problems = [_range(key, seal, batch) for key in keys if key.purpose == "seal" and not delegations]
        for delegated in delegations:
            problem = _range(delegated.key, seal, batch)
            if problem is None and seal.time > delegated.expiry:
                expected = f"seals until {delegated.expiry}, as delegated"
                problem = Draft("KEY_EPOCH_CLOSED", expected, f"key {seal.key} later", batch=batch)
            problems.append(problem)
        if not problems:
            found = f"key {seal.key} for {', '.join(key.purpose for key in keys)}"
            return Draft("KEY_NOT_AUTHORISED_FOR_EPOCH", "a key for seals", found, batch=batch)
        if None not in problems:
            return problems[-1]
        last = self.retired.get(seal.key)
        if last is not None and seal.last > last:
            expected = f"entries up to {last}, as the key was retired"
            return Draft("KEY_EPOCH_CLOSED", expected, f"key {seal.key} later", batch=batch)
        return None

    def _chain(self, row: SealRow, seal: Seal | None) -> Draft | None:
        if row.batch > self._next_batch:
            return Draft("SEAL_CHAIN_BROKEN", f"batch {self._next_batch}", f"batch {row.batch}", batch=row.batch)
        if seal is None:
            return None
        if seal.prev_seal != self._prev_hash:
            return Draft("SEAL_CHAIN_BROKEN", f"prev-seal {self._prev_hash}", seal.prev_seal, batch=row.batch)
        if seal.first != self._next_first:
            return Draft("SEAL_CHAIN_BROKEN", f"range from {self._next_first}", f"{seal.first}", batch=row.batch)
        return None


def _refusal(expected: str, found: str, seq: int) -> Draft:
    return Draft("KEY_ENTRY_INVALID", expected, found, seq=seq)


def _range(key: TrustedKey, seal: Seal, batch: int) -> Draft | None:
    if seal.first < key.from_seq:
        return Draft(
            "KEY_NOT_AUTHORISED_FOR_EPOCH", f"entries from {key.from_seq}", f"key {seal.key} earlier", batch=batch
        )
    if key.to_seq is not None and seal.last > key.to_seq:
        return Draft("KEY_EPOCH_CLOSED", f"entries up to {key.to_seq}", f"key {seal.key} later", batch=batch)
    return None


def _signature(text: str | None, seal: Seal, key: TrustedKey | None, signed: bytes, batch: int) -> Draft | None:
    if not text:
        return Draft("SEAL_MISSING", "a signature", "none", batch=batch)
    signature = decode_signature(text)
    if signature is None:
        return Draft("NONCANONICAL_ENCODING", "standard base64 with padding", repr(text[:160]), batch=batch)
    if key is None or seal.alg != key.algorithm:
        return None  # nothing to verify with, which was reported already
    if verify_signature(key.algorithm, key.public_key, signed, signature):
        return None
    return Draft("SEAL_INVALID", f"a signature of key {seal.key} over the seal", text[:160], batch=batch)


def _incomplete(span: _Span, seen: int) -> Draft:
    last = "?" if span.last >= ENDLESS else str(span.last)
    found = f"up to {seen}" if seen >= span.first else "none"
    return Draft("SEAL_RANGE_INCOMPLETE", f"entries {span.first}..{last}", found, batch=span.batch)
