"""A verdict as text for people: first in plain words, then in detail. The word OK never stands alone below exit code 0."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Final

from memory_layer.audit import summary
from memory_layer.audit.verdict import OK, Finding, Verdict

WIDTH: Final = 110  # characters of a line of the summary
SHOWN: Final = 5  # findings of one code in the details, unless all are asked for
BENEATH: Final = 3  # consequences of one finding


def render(verdict: Verdict, exit_code: int | None = None, *, everything: bool = False) -> str:
    """Plain text: the verdict in words, what was found and why it matters, what was checked and what was not; then the details, the
    verdict last.

    ``exit_code``: of a command that ends otherwise than the verdict says. ``everything``: each finding and consequence, not the first
    few of each kind.
    """
    code = verdict.exit_code if exit_code is None else exit_code
    text = [summary.headline(verdict, code), ""]
    if verdict.findings:
        text.append("Found")
        for line in summary.found(verdict):
            text += textwrap.wrap(line, WIDTH, initial_indent="  - ", subsequent_indent="    ", break_on_hyphens=False)
        text.append("")
    text += textwrap.wrap(
        f"Checked: {summary.checked(verdict)}.", WIDTH, subsequent_indent="  ", break_on_hyphens=False
    )
    text += [f"{'not checked':<14} {line}" for line in verdict.not_checked]
    text += ["", "Details", *_counts(verdict)]
    if verdict.findings:
        text += ["", *_findings(verdict.findings, everything)]
        if verdict.unlisted:
            text.append(f"... and {verdict.unlisted:,} more that are not listed")
    name = verdict.name
    if verdict.exit_code == OK and verdict.counts.payloads_redacted:
        name += f" ({verdict.counts.payloads_redacted:,} redactions)"
    text += ["", f"{'VERDICT':<14} {name}   exit {code}"]
    return "\n".join(text) + "\n"


def _counts(verdict: Verdict) -> list[str]:
    counts = verdict.counts
    size = "empty" if counts.first is None else f"{counts.first:,}..{counts.last:,}"
    pin = "pinned" if verdict.pinned else "NOT pinned"
    lines = [
        (
            "log",
            f"{verdict.origin}   trust-root v{verdict.trust_root_version} sha256:{verdict.trust_root_digest} ({pin})",
        ),
        ("range", f"found {size}"),
        ("entries", f"{counts.entries:,} hashed   {_codes(verdict, _ENTRY_CODES)}"),
        ("payloads", _payloads(verdict)),
        ("seals", f"{counts.seals_valid:,}/{counts.batches:,} valid   {_codes(verdict, _SEAL_CODES)}"),
    ]
    if counts.delegated_keys:
        lines.append(("delegated keys", f"{counts.delegated_keys:,} let to seal by a pinned key"))
    if counts.checkpoints:
        lines.append(
            (
                "checkpoints",
                f"{counts.checkpoints_valid:,}/{counts.checkpoints:,} valid   {_codes(verdict, _TREE_CODES)}",
            )
        )
    if counts.anchors:
        lines.append(("anchors", f"{counts.anchors_valid:,}/{counts.anchors:,} valid   {_anchor(verdict)}"))
    if counts.head is not None:
        lines.append(("head", counts.head))
    if counts.root is not None:
        lines.append(("root", counts.root))
    return [f"{label:<14} {value}" for label, value in lines]


_ENTRY_CODES = ("PREV_LINK_BROKEN", "SEQ_GAP", "FORK_DETECTED", "PROJECTION_MISMATCH")
_SEAL_CODES = ("SEAL_INVALID", "SEAL_MISSING", "SEAL_CHAIN_BROKEN", "SEAL_RANGE_INCOMPLETE")
_TREE_CODES = ("CHECKPOINT_INVALID", "CHECKPOINT_INCONSISTENT", "EQUIVOCATION")
_SHORT = {
    "PREV_LINK_BROKEN": "broken links",
    "SEQ_GAP": "gaps",
    "FORK_DETECTED": "forks",
    "PROJECTION_MISMATCH": "columns that differ",
    "SEAL_INVALID": "invalid",
    "SEAL_MISSING": "missing",
    "SEAL_CHAIN_BROKEN": "broken chain",
    "SEAL_RANGE_INCOMPLETE": "incomplete",
    "CHECKPOINT_INVALID": "invalid",
    "CHECKPOINT_INCONSISTENT": "inconsistent",
    "EQUIVOCATION": "equivocations",
}


def _codes(verdict: Verdict, codes: tuple[str, ...]) -> str:
    every = [other.code for finding in verdict.findings for other in (finding, *finding.consequences)]
    return "   ".join(f"{_SHORT[code]} {every.count(code)}" for code in codes)


def _anchor(verdict: Verdict) -> str:
    anchor = verdict.anchor
    if anchor is None:
        return "none agrees with the log"
    newest = "newest" if verdict.anchored else "newest that agrees"
    age = f"{anchor.age_seconds:,.0f} s behind"
    return f"{newest} covers 0..{anchor.size - 1:,}, {age}   not covered: {anchor.uncovered:,}"


def _payloads(verdict: Verdict) -> str:
    counts = verdict.counts
    return (
        f"{counts.payloads_matched:,} matched   erased with permission {counts.payloads_redacted:,}"
        f"   missing {counts.payloads_missing:,}"
    )


def _findings(findings: Sequence[Finding], everything: bool) -> list[str]:
    """In their order; of each code the first few, unless everything is asked for, and how many more there are."""
    shown: dict[str, int] = {}
    left: dict[str, list[Finding]] = {}
    lines: list[str] = []
    for finding in findings:
        shown[finding.code] = shown.get(finding.code, 0) + 1
        if everything or shown[finding.code] <= SHOWN:
            lines += _finding(finding, 0, everything)
        else:
            left.setdefault(finding.code, []).append(finding)
    for code, rest in left.items():
        at = summary.ranges([finding for finding in rest if finding.seq is not None or finding.batch is not None])
        lines.append(f"{code}  {len(rest):,} more{f' at {at}' if at else ''} (--all shows each)")
    return lines


def _finding(finding: Finding, depth: int, everything: bool) -> list[str]:
    indent = "    " * depth
    mark = "because of it: " if depth else ""
    lines = [
        f"{indent}{mark}{finding.code}{_place(finding)}",
        f"{indent}    expected {finding.expected}",
        f"{indent}    found    {finding.found}",
    ]
    most = len(finding.consequences) if everything else BENEATH
    for other in finding.consequences[:most]:
        lines.extend(_finding(other, depth + 1, everything))
    if rest := finding.consequences[most:]:
        codes = summary.listed(sorted({other.code for other in rest}))
        lines.append(f"{indent}    because of it: {len(rest):,} more (--all shows each): {codes}")
    return lines


def _place(finding: Finding) -> str:
    parts = []
    if finding.file is not None:
        parts.append(finding.file)
    if finding.seq is not None:
        parts.append(f"seq {finding.seq:,}" + (f"..{finding.last_seq:,}" if finding.last_seq is not None else ""))
    if finding.batch is not None:
        parts.append(
            f"batch {finding.batch:,}" + (f"..{finding.last_batch:,}" if finding.last_batch is not None else "")
        )
    return "  " + ", ".join(parts) if parts else ""
