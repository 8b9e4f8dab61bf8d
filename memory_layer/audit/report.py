"""A verdict as text for people. The word OK never stands alone below exit code 0."""

from __future__ import annotations

from memory_layer.audit.verdict import OK, Finding, Verdict


def render(verdict: Verdict, exit_code: int | None = None) -> str:
    """Plain text: what was judged by which keys, what was looked at and was not, every finding, the verdict last.

    ``exit_code``: of a command that ends otherwise than the verdict says.
    """
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
    lines.extend(("not checked", line) for line in verdict.not_checked)
    text = [f"{label:<14} {value}" for label, value in lines]
    if verdict.findings:
        text.append("")
        for finding in verdict.findings:
            text.extend(_finding(finding, 0))
        if verdict.unlisted:
            text.append(f"... and {verdict.unlisted:,} more that are not listed")
        text.append("")
    name = verdict.name
    if verdict.exit_code == OK and counts.payloads_redacted:
        name += f" ({counts.payloads_redacted:,} redactions)"
    text.append(f"{'VERDICT':<14} {name}   exit {verdict.exit_code if exit_code is None else exit_code}")
    return "\n".join(text) + "\n"


_ENTRY_CODES = ("PREV_LINK_BROKEN", "SEQ_GAP", "FORK_DETECTED", "PROJECTION_MISMATCH")
_SEAL_CODES = ("SEAL_INVALID", "SEAL_MISSING", "SEAL_CHAIN_BROKEN", "SEAL_RANGE_INCOMPLETE")
_TREE_CODES = ("CHECKPOINT_INVALID", "CHECKPOINT_INCONSISTENT", "EQUIVOCATION")
_SHORT = {
    "PREV_LINK_BROKEN": "broken links",
    "SEQ_GAP": "gaps",
    "FORK_DETECTED": "forks",
    "PROJECTION_MISMATCH": "projection mismatches",
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
        f"{counts.payloads_matched:,} matched   redacted {counts.payloads_redacted:,} (authorised)"
        f"   missing {counts.payloads_missing:,}"
    )


def _finding(finding: Finding, depth: int) -> list[str]:
    indent = "    " * depth
    mark = "because of it: " if depth else ""
    lines = [
        f"{indent}{mark}{finding.code}{_place(finding)}",
        f"{indent}    expected {finding.expected}",
        f"{indent}    found    {finding.found}",
    ]
    for other in finding.consequences:
        lines.extend(_finding(other, depth + 1))
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
