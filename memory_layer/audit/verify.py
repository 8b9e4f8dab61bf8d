"""The verifier: a stream of rows and seals against a trust root. Rules: ``docs/audit-format.md``, "Verification".

Memory is bounded but for one set with 16 bytes of content per entry, which finds an id that is used twice.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import re
from collections.abc import Container, Iterable
from typing import Final

from memory_layer import canonical
from memory_layer.audit.anchors import ANCHOR_NOT_CHECKED, CHECKPOINTS_NOT_CHECKED, Anchors, CheckpointRow, Pieces
from memory_layer.audit.checkpoint import Checkpoint
from memory_layer.audit.entry import ENTRY, GROUP, MAX_ENTRY, SALT_BYTES, genesis_prev, is_time
from memory_layer.audit.rows import COLUMNS, Row, differing_columns, differing_seal, encoding
from memory_layer.audit.seal_chain import Base, SealChain, SealRow
from memory_layer.audit.trust_root import KeyEntry, TrustRoot, parse_activation, parse_retirement
from memory_layer.audit.verdict import Case, Cases, Counts, Draft, Finding, Verdict
from memory_layer.errors import MemoryLayerError

__all__ = [
    "ANCHOR_NOT_CHECKED",
    "CHECKPOINTS_NOT_CHECKED",
    "Base",
    "CheckpointRow",
    "Row",
    "SealRow",
    "verify",
]

MAX_SKEW_MS: Final = 300_000

MAX_ANCHOR_AGE: Final = dt.timedelta(minutes=5)

PAYLOADS_NOT_CHECKED: Final = "payloads: their bytes were not compared with the entries"
STATE_NOT_CHECKED: Final = "state: the rows of the database were not compared with the entries"
COLUMNS_NOT_CHECKED: Final = (
    "columns: an export holds none, so those beside the entries in the database were not compared"
)
KEYS_NOT_CHECKED: Final = "keys: payloads of entries about keys were not given, so no delegation in them counts"
EMPTY: Final = "entries: the log holds none"


_READ: Final = tuple(GROUP[name] for name in (*COLUMNS, "seq", "prev", "log", "payload"))
_ACTIVATED: Final = "audit.key.activated"
_KEY_TYPES: Final = frozenset({_ACTIVATED, "audit.key.retired"})
_PAYLOAD_PREFIX: Final = b"memory-layer/audit/payload/v1\0"


def verify(
    trust_root: TrustRoot,
    rows: Iterable[Row],
    seals: Iterable[SealRow],
    *,
    expected_origin: str,
    pinned: bool,
    payloads: bool = True,
    erased: Container[int] = (),
    anchors: Iterable[Checkpoint] = (),
    checkpoints: Iterable[CheckpointRow] | None = None,
    now: dt.datetime | None = None,
    max_anchor_age: dt.timedelta = MAX_ANCHOR_AGE,
    columns: bool = True,
    tenant: str | None = None,
    base: Base | None = None,
    earlier: Iterable[KeyEntry] = (),
) -> Verdict:
    """Judge a whole log: every entry, link, column, seal and (unless ``payloads`` is False) payload.

    ``rows`` come in the order of seq, ``seals`` in that of batch; each is read once, a row at a time. ``expected_origin`` is the log
    that the caller means. ``pinned`` says that the trust root was not taken from the database that is judged. ``erased`` holds the
    seqs whose payloads an erasure authorised to go.

    ``anchors`` are checkpoints obtained elsewhere than from who keeps the log; their signatures are checked here. The log is
    anchored when the newest agrees with it and covers an entry at most ``max_anchor_age`` before ``now`` (None: before the log's
    last entry). ``checkpoints`` are those that the log's own database holds, by size: checked alike, and no anchor. Also with
    ``payloads`` False the rows of ``audit.key.activated`` and ``audit.key.retired`` need theirs. Never raises for what the rows hold.

    ``columns`` False: the rows are ``bare``. ``tenant``: only payloads of its entries, and of those about keys, need be there. ``base``: the rows are a part of
    the log that is known to begin there and may end before a checkpoint does; it is believed, but for what a checkpoint refutes.
    ``earlier``: what entries before that part say of keys.
    """
    run = Verification(trust_root, expected_origin, pinned, payloads, erased, columns, tenant, base or Base())
    held = Anchors(run.cases, trust_root, anchors, checkpoints, base=run.base, part=base is not None)
    return run.run(rows, seals, held, now, max_anchor_age, earlier)


def unpinned(root: TrustRoot) -> Finding:
    """What is wrong with a trust root that came with what it judges."""
    expected = "a trust root kept outside the database that is judged"
    return Finding(
        "TRUST_ROOT_UNPINNED", expected, f"one that came with it, sha256:{root.digest}", file="trust-root.json"
    )


class Verification:
    """The state of one run."""

    def __init__(
        self,
        trust_root: TrustRoot,
        origin: str,
        pinned: bool,
        payloads: bool,
        erased: Container[int],
        columns: bool,
        tenant: str | None,
        base: Base,
    ) -> None:
        self.trust_root = trust_root
        self.origin = origin
        self.pinned = pinned
        self.payloads = payloads
        self.erased = erased
        self.cases = Cases()
        self.counts = Counts()
        self.ids: set[bytes] = set()
        self.columns = columns
        self.tenant = tenant
        self.base = base
        self.chain: SealChain | None = None
        self.left_out = 0
        self.expected = base.seq
        self.head: str | None = base.prev or genesis_prev(origin)  # hash of the last entry; None after a gap
        self.computed: str | None = None  # the same, and never None once an entry was read
        self.parent: str | None = None  # ``prev`` of the last entry
        self.last_entry = b""
        self.last_ts = ""
        self.earliest = ""  # where the ids of this moment begin
        self.latest = ""
        self.row_case: Case | None = None  # of the last entry
        self.keys_missing = False
        if base.ts:
            self._clock(base.ts)

    def run(
        self,
        rows: Iterable[Row],
        seals: Iterable[SealRow],
        anchors: Anchors | Pieces,
        now: dt.datetime | None,
        max_age: dt.timedelta,
        earlier: Iterable[KeyEntry] = (),
    ) -> Verdict:
        """Read and judge all; to be called once."""
        self.chain = chain = SealChain(self.cases, self.trust_root, self.origin, seals, anchors.impugn, self.base)
        chain.recall(earlier)
        if not self.pinned:
            found = unpinned(self.trust_root)
            self.cases.add(None, Draft(found.code, found.expected, found.found, file=found.file))
        if self.trust_root.origin != self.origin:
            chain.foreign(Draft("ORIGIN_MISMATCH", self.origin, self.trust_root.origin, file="trust-root.json"))
        self._read(rows, chain, anchors)
        end = chain.finish(self.expected - 1, self.computed, self.last_ts, self.row_case)
        anchors.finish(self.expected, self.last_ts, end)
        for draft in anchors.foreign:
            chain.foreign(draft)
        counts = self.counts
        counts.batches, counts.seals_valid = chain.batches, chain.valid
        counts.last = self.expected - 1 if counts.entries else None
        counts.head = self.computed
        counts.delegated_keys = chain.delegated
        return self.conclude(anchors, now, max_age)

    def conclude(self, anchors: Anchors | Pieces, now: dt.datetime | None, max_age: dt.timedelta) -> Verdict:
        """The verdict on all that was read and counted."""
        counts = self.counts
        anchor, anchored = anchors.judge(counts, self.expected, self.last_ts, now, max_age)
        not_checked = [*anchors.not_checked, STATE_NOT_CHECKED]
        if not self.columns:
            not_checked.append(COLUMNS_NOT_CHECKED)
        if not self.payloads:
            not_checked.append(PAYLOADS_NOT_CHECKED)
        if self.left_out:
            not_checked.append(left_out(self.left_out, self.tenant))
        if self.keys_missing:
            not_checked.append(KEYS_NOT_CHECKED)
        if not counts.entries:
            not_checked.append(EMPTY)
        return Verdict(
            origin=self.origin,
            trust_root_digest=self.trust_root.digest,
            trust_root_version=self.trust_root.version,
            pinned=self.pinned,
            anchored=anchored,
            findings=self.cases.findings(),
            counts=counts,
            not_checked=tuple(not_checked),
            unlisted=self.cases.unlisted,
            anchor=anchor,
        )

    def _read(self, rows: Iterable[Row], chain: SealChain, anchors: Anchors | Pieces) -> None:
        # One conjunction says that an entry is in order; only where it fails is the reason looked for.
        sha256, fullmatch, fromhex = hashlib.sha256, ENTRY.fullmatch, bytes.fromhex
        origin, ids, payloads, columns = self.origin, self.ids, self.payloads, self.columns
        entries = 0
        leaves, enough = anchors.leaves, anchors.distance()
        for row in rows:
            seq, entry = row[0], row[2]
            entries += 1
            if len(leaves) >= enough:
                enough = anchors.grow(self.last_ts)
            if seq != self.expected or seq > chain.last:
                if seq < self.expected:
                    self._repeated(row)
                    continue
                self._advance(seq, chain, anchors, entries == 1)
            leaf = sha256(b"\0" + entry).digest()
            leaves.append(leaf)
            digest = leaf.hex()
            try:
                match = fullmatch(entry.decode("ascii"))
            except UnicodeDecodeError:
                match = None
            if match is not None:
                found = match.group(*_READ)
                if found[1] > self.last_ts and is_time(found[1]):
                    self._clock(found[1])
                if (
                    int(found[7]) == seq
                    and found[8] == self.head
                    and found[9] == origin
                    and (
                        (
                            found[:7] == row[6:13]
                            and found[8] == row[4]
                            and digest == row[3]
                            and row[1] == chain.batch
                            and row[5] == chain.signature
                        )
                        if columns
                        else chain.batch is not None
                    )
                    and found[1] == self.last_ts
                    and self.earliest <= found[0] <= self.latest
                    and len(entry) <= MAX_ENTRY
                    and (key := fromhex(found[0].replace("-", ""))) not in ids
                ):
                    ids.add(key)
                    if self.row_case is not None:
                        chain.linked()
                        self.row_case = None
                    self.expected = seq + 1
                    self.head = self.computed = digest
                    self.parent, self.last_entry = found[8], entry
                    if payloads and (problem := self._payload(row, found[10], found[3], found[2])) is not None:
                        self.row_case = self.cases.add(None, problem)
                    if found[2] in _KEY_TYPES:
                        self._key_entry(row, found[2], found[10], chain, self.row_case)
                    continue
            self._examine(row, match, digest, chain, anchors)
        self.counts.entries = entries

    def _clock(self, ts: str) -> None:
        """Take ``ts`` as the present: ids that were made within five minutes of it begin between these bounds."""
        self.last_ts = ts
        moment = round(dt.datetime.fromisoformat(ts).timestamp() * 1000)
        low, high = "%012x" % max(0, moment - MAX_SKEW_MS), "%012x" % max(0, moment + MAX_SKEW_MS)  # noqa: UP031 - fastest
        self.earliest, self.latest = low[:8] + "-" + low[8:], high[:8] + "-" + high[8:] + "~"

    def _repeated(self, row: Row) -> None:
        if row.entry == self.last_entry:
            draft = Draft("ID_DUPLICATE", "each entry once", f"the entry {row.id or row.seq} again", seq=row.seq)
        else:
            draft = Draft("FORK_DETECTED", "one entry for each seq", "a second one", seq=row.seq)
        self.row_case = self.cases.add(None, draft)

    def _advance(self, seq: int, chain: SealChain, anchors: Anchors | Pieces, first: bool) -> None:
        """Entry ``seq`` is not the one after the last, or begins another batch."""
        gap = None
        genesis = first and seq > self.expected
        if first:
            self.counts.first = seq
        if seq > self.expected:
            code = "GENESIS_MISSING" if first else "SEQ_GAP"
            missing = Draft(code, f"entry {self.expected}", f"entry {seq}", seq=self.expected)
            gap = self.cases.add(None, missing)
            missing.last = seq - 1
            anchors.broken(self.last_ts)
        if seq > chain.last:
            self.row_case = chain.advance(
                seq, self.expected - 1, self.computed, self.last_ts, self.row_case, gap, genesis
            )
        if gap is not None:
            chain.unlinked()
            self.expected, self.head, self.parent, self.row_case = seq, None, None, None

    def _examine(
        self, row: Row, match: re.Match[str] | None, digest: str, chain: SealChain, anchors: Anchors | Pieces
    ) -> None:
        """Say what is wrong with an entry, and go on from it."""
        seq = row.seq
        drafts: list[Draft] = []
        linked, parent = True, None
        if match is None or len(row.entry) > MAX_ENTRY or not is_time(match[GROUP["ts"]]):
            drafts.append(encoding(seq, "an entry of version 1 or 2 in canonical form", repr(row.entry[:160])))
            commitment = None
        else:
            parent, commitment = match[GROUP["prev"]], match[GROUP["payload"]]
            linked = self.head in (None, parent)
            drafts += self._members(row, match)
        doubtful = bool(drafts)
        if self.columns:
            drafts += differing_columns(row, match, digest)
        problem = None
        if self.payloads and match is not None:
            problem = self._payload(row, commitment, match[GROUP["tenant"]], match[GROUP["type"]])
        if problem is not None:
            drafts.append(problem)
        case = self.row_case if not linked else None
        if linked and match is not None and self.head is not None:
            chain.linked()
        chain.unlinked()
        for draft in [draft for draft in drafts if draft.code == "ORIGIN_MISMATCH"]:
            case = chain.foreign(draft, case)
            drafts.remove(draft)
        for draft in drafts:
            case = self.cases.add(case, draft)
        if doubtful and case is not None:
            anchors.impugn(case, -1 if linked else seq)
        against = differing_seal(row, chain) if self.columns or chain.batch is None else []
        for draft in against:
            # A seal that is itself in doubt explains what the entries beneath it say otherwise.
            owner = self.cases.add(chain.case if chain.case is not None else case, draft)
            if chain.batch is None:
                chain.case = owner
            elif chain.case is None:
                case = owner
        self.row_case = case
        if match is not None and match[GROUP["type"]] in _KEY_TYPES:
            self._key_entry(row, match[GROUP["type"]], commitment, chain, case if problem is not None else None)
        self.expected = seq + 1
        self.head = self.computed = digest
        self.parent, self.last_entry = parent, row.entry

    def _members(self, row: Row, match: re.Match[str]) -> list[Draft]:
        """What an entry says that it should not, given its place and the entry before it."""
        seq, drafts = row.seq, []
        log, prev, ts, id_ = match[GROUP["log"]], match[GROUP["prev"]], match[GROUP["ts"]], match[GROUP["id"]]
        if log != self.origin:
            drafts.append(Draft("ORIGIN_MISMATCH", self.origin, log, seq=seq))
        if int(match[GROUP["seq"]]) != seq:
            drafts.append(Draft("ENTRY_SEQ_MISMATCH", f"seq {seq} as stored", match[GROUP["seq"]], seq=seq))
        if self.head is not None and prev != self.head:
            code = "FORK_DETECTED" if prev == self.parent else "PREV_LINK_BROKEN"
            drafts.append(Draft(code, f"prev {self.head}", prev, seq=seq))
        if ts < self.last_ts:
            drafts.append(Draft("TIME_REGRESSION", f"not before {self.last_ts}", ts, seq=seq))
        self._clock(ts)
        if not self.earliest <= id_ <= self.latest:
            drafts.append(Draft("TIME_SKEW", f"an id made within five minutes of {ts}", id_, seq=seq))
        key = bytes.fromhex(id_.replace("-", ""))
        if key in self.ids:
            drafts.append(Draft("ID_DUPLICATE", "each id once", f"{id_} again", seq=seq))
        self.ids.add(key)
        return drafts

    def _key_entry(self, row: Row, type_: str, commitment: str | None, chain: SealChain, refuted: Case | None) -> None:
        """What the log says of its keys: a delegation lets a key seal, a retirement ends that.

        ``refuted`` is the case of a payload that is not the one committed to: then it says nothing.
        """
        if commitment is None:
            return
        if refuted is not None or row.payload is None or row.salt is None:
            self.keys_missing = self.keys_missing or not self.payloads
            if refuted is not None and type_ == _ACTIVATED:
                chain.refuse(refuted, None)
            return
        draft: Draft | None = None
        key = None
        if not self.payloads and hashlib.sha256(_PAYLOAD_PREFIX + row.salt + row.payload).hexdigest() != commitment:
            draft = Draft("PAYLOAD_COMMITMENT_MISMATCH", commitment, "another payload", seq=row.seq)
        else:
            try:
                if type_ == _ACTIVATED:
                    activation = parse_activation(row.payload)
                    key = activation.key.key_id
                    draft = chain.activate(activation, row.seq, self.last_ts)
                else:
                    draft = chain.retire(parse_retirement(row.payload), row.seq)
            except MemoryLayerError as error:
                draft = Draft("KEY_ENTRY_INVALID", f"a payload of {type_}", error.message, seq=row.seq)
        if draft is not None:
            self.row_case = self.cases.add(self.row_case, draft)
            if type_ == _ACTIVATED:
                chain.refuse(self.row_case, key)

    def _payload(self, row: Row, commitment: str | None, tenant: str | None, type_: str) -> Draft | None:
        seq, salt, payload = row.seq, row.salt, row.payload
        if payload is None or salt is None:
            if commitment is None:
                return None
            if self.tenant is not None and tenant != self.tenant and type_ not in _KEY_TYPES:
                self.left_out += 1
                return None
            if seq in self.erased:
                self.counts.payloads_redacted += 1
                return None
            self.counts.payloads_missing += 1
            return Draft("PAYLOAD_MISSING_UNAUTHORISED", "the payload, or an erasure of it", "neither", seq=seq)
        found = hashlib.sha256(_PAYLOAD_PREFIX + salt + payload).hexdigest()
        if found != commitment or len(salt) != SALT_BYTES:
            return Draft("PAYLOAD_COMMITMENT_MISMATCH", str(commitment), found, seq=seq)
        self.counts.payloads_matched += 1
        if seq in self.erased:
            return Draft("ERASURE_INCOMPLETE", "no payload after its erasure", f"{len(payload)} bytes", seq=seq)
        try:
            canonical.loads(payload)
        except MemoryLayerError as error:
            return encoding(seq, "a payload in strict JSON", error.message)
        return None


def left_out(count: int, tenant: str | None) -> str:
    """The line of a report that says which payloads a tenant's export does not hold."""
    of = f" of others than the tenant {tenant}" if tenant else ""
    return f"payloads: {count:,}{of} were left out of the export, and not compared with the entries"
