"""Whose entry a finding stands at, and when that was written: read off the entries, as far as they can be read.

What an entry says of itself proves nothing where the finding is that it was changed; it says where to look.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Final

from memory_layer.audit.entry import parse_entry
from memory_layer.audit.verdict import About, Finding, Verdict
from memory_layer.errors import ValidationError

MAX_ENTRIES: Final = 1_000  # entries that are looked up for one verdict

Entries = Callable[[list[int]], Mapping[int, bytes]]


def annotate(verdict: Verdict, entries: Entries) -> Verdict:
    """The verdict with what the entries at its findings say of themselves. ``entries`` gives them by seq, those that are there."""
    wanted = sorted({finding.seq for finding in _every(verdict.findings) if finding.seq is not None})[:MAX_ENTRIES]
    if not wanted:
        return verdict
    found = {seq: about for seq, entry in entries(wanted).items() if (about := _about(entry)) is not None}
    return replace(verdict, findings=tuple(_with(finding, found) for finding in verdict.findings))


def _every(findings: Iterable[Finding]) -> Iterator[Finding]:
    for finding in findings:
        yield finding
        yield from _every(finding.consequences)


def _with(finding: Finding, found: Mapping[int, About]) -> Finding:
    consequences = tuple(_with(other, found) for other in finding.consequences)
    about = None if finding.seq is None else found.get(finding.seq)
    return replace(finding, about=about, consequences=consequences)


def _about(entry: bytes) -> About | None:
    try:
        parsed = parse_entry(entry)
    except (ValidationError, ValueError):
        return None
    return About(parsed.ts, parsed.type, parsed.tenant, parsed.node, parsed.artifact)
