"""The verifier's half that reads checkpoints: those given as anchors, those stored with the log, each against the entries."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from memory_layer.audit.checkpoint import Checkpoint, check_checkpoint, parse_checkpoint
from memory_layer.audit.seal_chain import Base
from memory_layer.audit.tree import EMPTY_ROOT, Frontier, subtrees
from memory_layer.audit.trust_root import TrustRoot
from memory_layer.audit.verdict import Anchor, Case, Cases, Counts, Draft, Finding
from memory_layer.errors import ValidationError

CHUNK: Final = 4096  # leaves that are hashed into the tree at a time

ANCHOR_NOT_CHECKED: Final = (
    "anchor: none was given; a shortened or wholly rewritten log cannot be told from a whole one"
)
SIGNATURES_NOT_CHECKED: Final = (
    "checkpoints: the signatures of those stored with the log; the trust root has no key for them"
)
CHECKPOINTS_NOT_CHECKED: Final = "checkpoints: those stored with the log were not compared with the entries"


class CheckpointRow(NamedTuple):
    """A checkpoint as the log's own database stores it: the root has 32 bytes, ``note`` is None until it was signed."""

    size: int
    root: bytes
    note: bytes | None


class _Head(NamedTuple):
    """A tree head that the log is held to. ``anchor``: obtained elsewhere."""

    size: int
    root: bytes
    source: str
    anchor: bool


@dataclass(slots=True)
class _Divergence:
    """Heads in a row that the log does not agree with, and the case that explains the first of them."""

    agreed: int  # the last size that did
    size: int  # of the first that does not
    case: Case | None
    heads: list[tuple[_Head, str]] = field(
        default_factory=list
    )  # each anchor, the first stored one; the log's own root
    more: int = 0  # stored ones that are only counted


class Anchors:
    """Grows the tree with the log and holds it to each checkpoint as its size is reached."""

    def __init__(
        self,
        cases: Cases,
        trust_root: TrustRoot,
        anchors: Iterable[Checkpoint],
        stored: Iterable[CheckpointRow] | None,
        *,
        base: Base = Base(),  # noqa: B008 - immutable
        part: bool = False,
    ) -> None:
        """``base``: where the entries begin. ``part``: they need not go as far as a checkpoint does."""
        self.cases = cases
        self.trust_root = trust_root
        self.tree = Frontier.loads(base.tree)
        self._part = part
        self.leaves: list[bytes] = []  # leaf hashes gathered since ``grow``
        self.foreign: list[Draft] = []  # notes of other logs, for callers that group findings by foreign name
        self.not_checked: list[str] = []
        self._counts = Counts()
        self._whole = True
        self._doubt: Case | None = None  # of the first entry or seal in question since a checkpoint agreed
        self._agreed = base.seq
        self._newest: tuple[int, str] | None = (
            None  # the newest anchor that agreed: its size, the time of its last entry
        )
        self._divergences: list[_Divergence] = []
        self._current: _Divergence | None = None
        self._beyond: _Head | None = None  # the largest head beyond the end
        self._uncompared = 0
        self._signed: dict[int, tuple[bytes, str]] = {}  # roots of the anchors, and of the last stored one, by size
        self._equivocations: dict[int, Case] = {}
        self._anchors = self._check_anchors(anchors)
        self._largest = self._anchors[0].size if self._anchors else 0
        if not self._counts.anchors:
            self.not_checked.append(ANCHOR_NOT_CHECKED)
        # A trust root from before there were checkpoints says nothing of their keys: then the roots alone are compared.
        self._vouched = any(key.purpose == "checkpoint" for key in trust_root.keys)
        if stored is None:
            self.not_checked.append(CHECKPOINTS_NOT_CHECKED)
        elif not self._vouched:
            self.not_checked.append(SIGNATURES_NOT_CHECKED)
        self._rows = iter(stored if stored is not None else ())
        self._last_stored: int | None = None
        self._row = self._next_row()
        if base.seq:
            self._compare(base.ts)

    def distance(self) -> int:
        """How many leaves may be gathered before ``grow`` must see them: 1 to CHUNK."""
        if not self._whole:
            return CHUNK
        heads = [*self._anchors[-1:], *([self._row] if self._row is not None else [])]
        return min([CHUNK, *(max(1, head.size - self.tree.size) for head in heads)])

    def grow(self, ts: str) -> int:
        """Take the leaf hashes gathered, the last one's entry being of time ``ts``, and compare. Returns ``distance``."""
        if self._whole:
            self.tree.extend(self.leaves)
            self._compare(ts)
        self.leaves.clear()
        return self.distance()

    def broken(self, ts: str) -> None:
        """Entries are missing after those gathered: beyond them the tree cannot be known."""
        self.grow(ts)
        self._whole = False

    def impugn(self, case: Case, seq: int = -1) -> None:
        """``case`` may explain why a later checkpoint does not agree; with ``seq`` also one of just that many entries."""
        if self._doubt is None:
            self._doubt = case
        if self._current is not None and self._current.case is None and self._current.size == seq:
            self._current.case = case

    def finish(self, entries: int, ts: str, end: Case | None) -> None:
        """The log ends before entry ``entries``; ``end`` is the case of what is known to be missing there."""
        self.grow(ts)
        for head in self._take(2**63):
            if head.size <= entries:
                self._skip(head)
            elif self._part:
                self._skip(head, "the entries end before it")
            elif self._beyond is None or head.size > self._beyond.size:
                self._beyond = head
        for divergence in self._divergences:
            self._report(divergence)
        if self._beyond is not None:
            code, found = ("TAIL_TRUNCATED", f"{entries} entries") if entries else ("EMPTY_BUT_ANCHORED", "none")
            expected = f"{self._beyond.size} entries, as the {self._beyond.source} says"
            draft = Draft(code, expected, found, seq=entries, file=self._beyond.source)
            self.cases.add(end, draft)
            draft.last = self._beyond.size - 1
        if self._uncompared:
            which = (
                "beyond the range, or for want of the entries before them"
                if self._part
                else "for want of the entries before them"
            )
            self.not_checked.append(f"checkpoints: {self._uncompared} stored ones, {which}")

    def judge(
        self, counts: Counts, entries: int, last_ts: str, now: dt.datetime | None, max_age: dt.timedelta
    ) -> tuple[Anchor | None, bool]:
        """The newest anchor that agreed, and whether it anchors the log: none is newer, and it is young enough.

        Fills in ``counts``.
        """
        counts.checkpoints, counts.checkpoints_valid = self._counts.checkpoints, self._counts.checkpoints_valid
        counts.anchors, counts.anchors_valid = self._counts.anchors, self._counts.anchors_valid
        counts.root = self.tree.root().hex() if self._whole else None
        if self._newest is None or self._newest[0] == 0:
            return None, False
        size, covered = self._newest
        present = now if now is not None else dt.datetime.fromisoformat(last_ts)
        age = present - dt.datetime.fromisoformat(covered)
        anchor = Anchor(size, age.total_seconds(), entries - size)
        if age > max_age:
            source = f"anchor of size {size}"
            expected = f"the newest anchor at most {max_age} behind"
            self.cases.add(None, Draft("ANCHOR_STALE", expected, f"{age}", file=source))
        return anchor, size == self._largest and age <= max_age

    def resume(self, stop: Stop) -> None:
        """Take a part of the tree that ``Pieces`` hashed, and compare."""
        for height, root in stop.subtrees:
            self.tree.push(root, height)
        self._compare(stop.ts)

    # --- Where the heads come from -----------------------------------------------------------------------------------

    def _check_anchors(self, anchors: Iterable[Checkpoint]) -> list[_Head]:
        """The anchors whose origin and signature hold, the largest first."""
        heads = []
        for checkpoint in anchors:
            self._counts.anchors += 1
            head = _Head(checkpoint.size, checkpoint.root, f"anchor of size {checkpoint.size}", anchor=True)
            if self._genuine(checkpoint, head):
                self._counts.anchors_valid += 1
                heads.append(head)
        return sorted(heads, key=lambda head: -head.size)

    def _next_row(self) -> _Head | None:
        """The next stored checkpoint that is not refuted by itself. One without a note yet has only its root to compare."""
        for row in self._rows:
            self._counts.checkpoints += 1
            head = _Head(row.size, row.root, f"stored checkpoint of size {row.size}", anchor=False)
            if row.note is None or not self._vouched:
                return head
            try:
                checkpoint = parse_checkpoint(row.note)
            except ValidationError as error:
                expected = "a signed checkpoint in its one form"
                self.cases.add(None, Draft("NONCANONICAL_ENCODING", expected, error.message, file=head.source))
                continue
            if not self._genuine(checkpoint, head):
                continue
            if (checkpoint.size, checkpoint.root) != (row.size, row.root):
                expected = f"size {checkpoint.size}, root {checkpoint.root.hex()} as signed"
                found = f"size {row.size}, root {row.root.hex()}"
                self.cases.add(None, Draft("PROJECTION_MISMATCH", expected, found, file=head.source))
            self._counts.checkpoints_valid += 1
            if checkpoint.size == row.size:
                return head._replace(root=checkpoint.root)
        return None

    def _genuine(self, checkpoint: Checkpoint, head: _Head) -> bool:
        problem = check_checkpoint(checkpoint, self.trust_root, source=head.source)
        if problem is not None:
            draft = _draft(problem)
            if problem.code == "ORIGIN_MISMATCH":
                self.foreign.append(draft)
            else:
                self.cases.add(None, draft)
            return False
        # Two roots signed for one size: nobody needs the log to see that its keeper showed two of them.
        root, source = self._signed.setdefault(checkpoint.size, (checkpoint.root, head.source))
        if root != checkpoint.root:
            expected = f"one root for size {checkpoint.size}: {root.hex()} ({source})"
            draft = Draft("EQUIVOCATION", expected, checkpoint.root.hex(), file=head.source)
            known = self._equivocations.get(checkpoint.size)
            self._equivocations[checkpoint.size] = self.cases.add(known, draft)
        if not head.anchor:
            if self._last_stored is not None and self._last_stored != checkpoint.size:
                self._forget(self._last_stored)
            self._last_stored = checkpoint.size
        return True

    def _forget(self, size: int) -> None:
        """Stored checkpoints come by size, so only the last one can meet another of its size."""
        if self._signed[size][1].startswith("stored"):
            del self._signed[size]

    def _take(self, size: int) -> Iterator[_Head]:
        """Every head of at most ``size``."""
        while self._anchors and self._anchors[-1].size <= size:
            yield self._anchors.pop()
        while self._row is not None and self._row.size <= size:
            yield self._row
            self._row = self._next_row()

    # --- Comparing ---------------------------------------------------------------------------------------------------

    def _compare(self, ts: str) -> None:
        size, root = self.tree.size, None
        for head in self._take(size):
            if head.size == size:
                root = root if root is not None else self.tree.root()
                self._hold(head, root, ts)
            elif head.size == 0:
                self._hold(head, EMPTY_ROOT, ts)
            else:
                self._skip(head)  # stored out of order

    def _hold(self, head: _Head, root: bytes, ts: str) -> None:
        if head.root == root:
            self._agreed, self._doubt, self._current = head.size, None, None
            if head.anchor:
                self._newest = head.size, ts
            return
        if self._current is None:
            self._current = _Divergence(self._agreed, head.size, self._doubt)
            self._divergences.append(self._current)
        divergence = self._current
        if head.anchor or all(other.anchor for other, _ in divergence.heads):
            divergence.heads.append((head, root.hex()))
        else:
            divergence.more += 1

    def _report(self, divergence: _Divergence) -> None:
        case = divergence.case
        for head, found in divergence.heads:
            more = f", nor do {divergence.more} later ones agree" if divergence.more and not head.anchor else ""
            expected = f"root {head.root.hex()}"
            first = min(divergence.agreed, max(head.size - 1, 0))
            draft = Draft("CHECKPOINT_INCONSISTENT", expected, f"root {found}{more}", seq=first, file=head.source)
            added = self.cases.add(self._equivocations.get(head.size, case), draft)
            draft.last = max(head.size - 1, 0)
            case = case if case is not None else added

    def _skip(self, head: _Head, why: str = "entries before it are missing") -> None:
        if head.anchor:
            self.not_checked.append(f"anchor of size {head.size}: {why}")
        else:
            self._uncompared += 1


class Stop(NamedTuple):
    """Some leaves hashed into subtrees, (log2 of the width, root) each from the left; ``ts`` is the last leaf's time."""

    ts: str
    subtrees: list[tuple[int, bytes]]


class Pieces:
    """In the place of Anchors where only a part of a log is at hand: hashes its leaves for an Anchors to ``resume`` with.

    ``stops`` are the sizes, in order, at which there is something to compare.
    """

    def __init__(self, base: Base, stops: Iterable[int]) -> None:
        self.leaves: list[bytes] = []
        self.foreign: list[Draft] = []
        self.not_checked: list[str] = []
        self.found: list[Stop] = []
        self._size = base.seq
        self._stops = [size for size in stops if size > base.seq][::-1]

    def distance(self) -> int:
        """As of Anchors; beside the stops, at the places where the widest subtrees end."""
        edge = CHUNK - self._size % CHUNK
        return min(edge, self._stops[-1] - self._size) if self._stops else edge

    def grow(self, ts: str) -> int:
        if self.leaves:
            self.found.append(Stop(ts, subtrees(self._size, self.leaves)))
            self._size += len(self.leaves)
            self.leaves.clear()
        while self._stops and self._stops[-1] <= self._size:
            self._stops.pop()
        return self.distance()

    def broken(self, ts: str) -> None:
        """What is found then is not used."""

    def impugn(self, case: Case, seq: int = -1) -> None:
        """Nothing is compared here that a case could explain."""

    def finish(self, entries: int, ts: str, end: Case | None) -> None:  # noqa: ARG002 - as of Anchors
        self.grow(ts)

    def judge(self, *_what: object) -> tuple[Anchor | None, bool]:
        """Anchors judges."""
        return None, False


def _draft(finding: Finding) -> Draft:
    return Draft(finding.code, finding.expected, finding.found, file=finding.file)
