"""What the verifier found: findings, the exit code they amount to, and what was not looked at."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from typing import Any, Final, NamedTuple

OK, UNANCHORED, INCOMPLETE, DIVERGED, TAMPERED, POLICY = 0, 10, 20, 30, 40, 50
NAMES: Final = {
    OK: "OK_ANCHORED",
    UNANCHORED: "CONSISTENT_UNANCHORED",
    INCOMPLETE: "INCOMPLETE",
    DIVERGED: "DIVERGED",
    TAMPERED: "TAMPERED",
    POLICY: "POLICY",
}

# Exit code of each finding. The order is the rank: of findings that one cause can produce together, the first in this
# list is the primary one and the others are its consequences.
CODES: Final[dict[str, int]] = {
    "TRUST_ROOT_UNPINNED": POLICY,
    "ORIGIN_MISMATCH": TAMPERED,
    "FOREIGN_LOG": TAMPERED,
    "WORM_POLICY_VIOLATION": POLICY,
    "ARCHIVE_VERSION_SHADOWED": TAMPERED,
    "ARCHIVE_TRUNCATED": TAMPERED,
    "ARCHIVE_MALFORMED": TAMPERED,
    "FILE_NOT_AS_EXPORTED": INCOMPLETE,
    "MANIFEST_SIGNATURE_INVALID": TAMPERED,
    "ARCHIVE_RANGE_GAP": TAMPERED,
    "ARCHIVE_CHAIN_BROKEN": TAMPERED,
    "NONCANONICAL_ENCODING": TAMPERED,
    "GENESIS_MISSING": INCOMPLETE,
    "EMPTY_BUT_ANCHORED": DIVERGED,
    "FORK_DETECTED": TAMPERED,
    "ENTRY_SEQ_MISMATCH": TAMPERED,
    "KEY_ENTRY_INVALID": POLICY,
    "ALG_NOT_ALLOWED": POLICY,
    "KEY_UNKNOWN": POLICY,
    "KEY_NOT_AUTHORISED_FOR_EPOCH": POLICY,
    "KEY_EPOCH_CLOSED": POLICY,
    "SEAL_MISSING": TAMPERED,
    "SEAL_INVALID": TAMPERED,
    "SEAL_HEAD_MISMATCH": TAMPERED,
    "SEAL_CHAIN_BROKEN": TAMPERED,
    "SEQ_GAP": TAMPERED,
    "SEAL_RANGE_INCOMPLETE": TAMPERED,
    "PREV_LINK_BROKEN": TAMPERED,
    "CHECKPOINT_INVALID": TAMPERED,
    "PROOF_INVALID": TAMPERED,
    "EQUIVOCATION": DIVERGED,
    "TAIL_TRUNCATED": DIVERGED,
    "CHECKPOINT_INCONSISTENT": DIVERGED,
    "ROLLBACK_DETECTED": DIVERGED,
    "PROJECTION_MISMATCH": TAMPERED,
    "ID_DUPLICATE": TAMPERED,
    "TIME_REGRESSION": TAMPERED,
    "TIME_SKEW": TAMPERED,
    "PAYLOAD_COMMITMENT_MISMATCH": TAMPERED,
    "PAYLOAD_MISSING_UNAUTHORISED": TAMPERED,
    "ERASURE_INCOMPLETE": POLICY,
    "STATE_UNEXPLAINED": TAMPERED,
    "STATE_RECONCILE_MISMATCH": TAMPERED,
    "SEAL_ROW_MISMATCH": TAMPERED,
    "LOG_TABLE_MISMATCH": TAMPERED,
    "PAYLOAD_ORPHAN": TAMPERED,
    "SCHEMA_DRIFT": TAMPERED,
    "SCHEMA_UNKNOWN": INCOMPLETE,
    "ANCHOR_STALE": UNANCHORED,
}
RANK: Final = {code: rank for rank, code in enumerate(CODES)}


class About(NamedTuple):
    """What the entry that a finding stands at says of itself. ``time`` as entries spell it."""

    time: str
    type: str
    tenant: str | None
    node: str | None
    artifact: str | None


@dataclass(frozen=True, slots=True)
class Finding:
    """One inconsistency: where it stands, what was expected there, and what was found.

    ``last_seq`` and ``last_batch`` are set where the same thing holds for a run of entries or batches (both ends inclusive).
    """

    code: str
    expected: str
    found: str
    seq: int | None = None
    last_seq: int | None = None
    batch: int | None = None
    last_batch: int | None = None
    file: str | None = None
    consequences: tuple[Finding, ...] = ()
    about: About | None = None

    @property
    def exit_code(self) -> int:
        """The highest of this finding and its consequences."""
        return max([CODES[self.code], *(other.exit_code for other in self.consequences)])


@dataclass(slots=True)
class Counts:
    """What was looked at. ``first`` and ``last`` are sequence numbers, None of an empty log; ``head`` is the last hash.

    ``root`` is the tree's, over all entries, as hex; None when entries are missing. ``checkpoints`` are those stored with the log.
    """

    entries: int = 0
    first: int | None = None
    last: int | None = None
    head: str | None = None
    batches: int = 0
    seals_valid: int = 0
    payloads_matched: int = 0
    payloads_redacted: int = 0
    payloads_missing: int = 0
    root: str | None = None
    checkpoints: int = 0
    checkpoints_valid: int = 0
    anchors: int = 0
    anchors_valid: int = 0
    delegated_keys: int = 0


@dataclass(frozen=True, slots=True)
class Anchor:
    """The newest anchor that the log agrees with: how much it covers, and how old that is."""

    size: int
    age_seconds: float  # from the last entry that it covers to the present, or to the log's last entry
    uncovered: int  # entries after it


@dataclass(frozen=True, slots=True)
class Verdict:
    """The result of a verification. ``findings`` are the primary ones, gravest first.

    ``anchored``: the newest anchor that was given agrees with the log and is fresh enough. ``anchor`` describes it either way.
    """

    origin: str
    trust_root_digest: str
    trust_root_version: int
    pinned: bool
    anchored: bool
    findings: tuple[Finding, ...]
    counts: Counts
    not_checked: tuple[str, ...]
    unlisted: int = 0  # findings beyond the number that is kept
    anchor: Anchor | None = None

    @property
    def exit_code(self) -> int:
        """0, 10, 20, 30, 40 or 50: the highest that applies."""
        clean = OK if self.anchored else UNANCHORED
        return max([clean, *(finding.exit_code for finding in self.findings)])

    @property
    def name(self) -> str:
        """The word for the exit code."""
        code = self.exit_code
        if code == UNANCHORED and any(finding.code == "ANCHOR_STALE" for finding in self.findings):
            return "ANCHOR_STALE"
        return NAMES[code]

    def extended(
        self,
        findings: Iterable[Finding],
        *,
        before: Iterable[Finding] = (),
        checked: Iterable[str] = (),
        unchecked: Iterable[str] = (),
    ) -> Verdict:
        """This verdict with what a caller found elsewhere (rows against entries, say).

        Those ``before`` stand in front of others as grave. ``checked`` names lines of ``not_checked`` that no longer hold,
        ``unchecked`` adds some.
        """
        done = set(checked)
        return replace(
            self,
            findings=gravest_first([*before, *self.findings, *findings]),
            not_checked=(*(line for line in self.not_checked if line not in done), *unchecked),
        )

    def to_json(self) -> dict[str, Any]:
        """Plain data for a JSON report."""
        return {
            "verdict": self.name,
            "exit": self.exit_code,
            "origin": self.origin,
            "trustRoot": {"version": self.trust_root_version, "sha256": self.trust_root_digest, "pinned": self.pinned},
            "anchored": self.anchored,
            "anchor": None if self.anchor is None else _anchor_json(self.anchor),
            "counts": asdict(self.counts),
            "findings": [_finding_json(finding) for finding in self.findings],
            "unlisted": self.unlisted,
            "notChecked": list(self.not_checked),
        }


def _anchor_json(anchor: Anchor) -> dict[str, Any]:
    return {"size": anchor.size, "ageSeconds": anchor.age_seconds, "uncovered": anchor.uncovered}


def _finding_json(finding: Finding) -> dict[str, Any]:
    places = ("seq", "last_seq", "batch", "last_batch", "file")
    shown: dict[str, Any] = {"code": finding.code}
    for name in places:
        value = getattr(finding, name)
        if value is not None:
            shown[{"last_seq": "lastSeq", "last_batch": "lastBatch"}.get(name, name)] = value
    shown |= {"expected": finding.expected, "found": finding.found}
    if finding.about is not None:
        shown["about"] = finding.about._asdict()
    if finding.consequences:
        shown["consequences"] = [_finding_json(other) for other in finding.consequences]
    return shown


def gravest_first(findings: Iterable[Finding]) -> tuple[Finding, ...]:
    """By exit code, else in the order given."""
    return tuple(sorted(findings, key=lambda finding: -finding.exit_code))


class Case:
    """Findings that one cause explains, in the order in which they came up."""

    __slots__ = ("drafts",)

    def __init__(self) -> None:
        self.drafts: list[Draft] = []


@dataclass(slots=True)
class Draft:
    """A finding while its case is open."""

    code: str
    expected: str
    found: str
    seq: int | None = None
    batch: int | None = None
    file: str | None = None
    last: int | None = None
    case: Case | None = None
    consequence: bool = False  # of what its case already holds, whatever the rank


class Cases:
    """Collects findings in bounded memory: runs become one, and beyond ``LIMIT`` they are only counted."""

    LIMIT: Final = 1_000

    def __init__(self) -> None:
        self.cases: list[Case] = []
        self.count = 0
        self.unlisted = 0
        self._codes: set[str] = set()
        self._recent: dict[tuple[str, str, str, bool], Draft] = {}

    def add(self, case: Case | None, draft: Draft) -> Case:
        """Put ``draft`` into ``case`` (None: a new one), or lengthen the run that it continues. Returns its case."""
        key = (draft.code, draft.expected, draft.found, draft.seq is None)
        place = draft.seq if draft.seq is not None else draft.batch
        run = self._recent.get(key)
        if run is not None and run.case is not None and place is not None and run.last in (place - 1, place):
            run.last = place
            return run.case
        # One finding of each code is kept whatever the number, so the exit code never depends on the limit.
        if self.count >= self.LIMIT and draft.code in self._codes:
            self.unlisted += 1
            return case or self.cases[-1]
        self._codes.add(draft.code)
        if case is None:
            case = Case()
            self.cases.append(case)
        draft.last, draft.case = place, case
        case.drafts.append(draft)
        self.count += 1
        if len(self._recent) > self.LIMIT:
            self._recent.clear()
        self._recent[key] = draft
        return case

    def findings(self) -> tuple[Finding, ...]:
        """Each case as its primary finding with the consequences beneath it, gravest first."""
        return gravest_first(_close(case) for case in self.cases)


def _close(case: Case) -> Finding:
    primary, *others = sorted(case.drafts, key=lambda draft: (draft.consequence, RANK[draft.code]))
    return replace(_finding(primary), consequences=tuple(_finding(draft) for draft in others))


def _finding(draft: Draft) -> Finding:
    by_seq = draft.seq is not None
    first = draft.seq if by_seq else draft.batch
    last = draft.last if draft.last != first else None
    return Finding(
        draft.code,
        draft.expected,
        draft.found,
        seq=draft.seq,
        last_seq=last if by_seq else None,
        batch=draft.batch,
        last_batch=None if by_seq else last,
        file=draft.file,
    )
