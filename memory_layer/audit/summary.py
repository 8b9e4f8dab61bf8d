"""The first lines of a verdict, for a reader who knows nothing of logs: the verdict, what was found, whose and when, why it matters."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Final

from memory_layer.audit import plain
from memory_layer.audit.verdict import About, Finding, Verdict

EACH: Final = 3  # findings of one kind that get a sentence each; more are one sentence
NAMED: Final = 4  # tenants, files and ranges that such a sentence names

_ROW: Final = re.compile(r"\b(node|artifact) ([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})\b")
_ABOUT_ROWS: Final = ("STATE_RECONCILE_MISMATCH", "STATE_UNEXPLAINED", "PAYLOAD_COMMITMENT_MISMATCH")
_KINDS: Final = {"node": "Memory node", "artifact": "File"}


def headline(verdict: Verdict, exit_code: int) -> str:
    """The verdict in one line. Where nothing but copies of files is wrong it says what to do."""
    says = plain.VERDICTS.get(verdict.name, "see below")
    codes = {finding.code for finding in verdict.findings}
    if verdict.name == "INCOMPLETE" and codes == {"FILE_NOT_AS_EXPORTED"}:
        says = plain.DAMAGED if verdict.counts.last is None else plain.DAMAGED_OTHERS
    return f"{verdict.name}: {says}. (exit {exit_code})"


def found(verdict: Verdict) -> list[str]:
    """A sentence or a few for each kind of finding, gravest first. What follows from another finding is counted only."""
    groups: dict[tuple[str, plain.Plain], list[Finding]] = {}
    for finding in verdict.findings:
        groups.setdefault((finding.code, plain.of(finding.code, finding.found)), []).append(finding)
    lines: list[str] = []
    for (_, words), findings in groups.items():
        if len(findings) <= EACH:
            its = [
                "Its" if finding.last_seq is None and finding.last_batch is None else "Their" for finding in findings
            ]
            sentences = [_one(words.says, finding) for finding in findings]
            lines += dict.fromkeys(
                f"{text} {words.matters.format(Its=of)}" for text, of in zip(sentences, its, strict=True)
            )
        else:
            lines.append(f"{_many(words.says, findings)} {words.matters.format(Its='Their')}")
    if more := _count_consequences(verdict.findings):
        lines.append(f"{more:,} more {'finding follows' if more == 1 else 'findings follow'} from these.")
    if verdict.unlisted:
        lines.append(f"{verdict.unlisted:,} more findings were counted and not kept.")
    return lines


def checked(verdict: Verdict) -> str:
    """What was looked at, in one sentence."""
    counts = verdict.counts
    if counts.last is None:
        return "no entry of the log" if verdict.findings else "the log, which is empty"
    parts = [
        f"{counts.entries:,} entries ({counts.first:,} to {counts.last:,})",
        f"{counts.batches:,} signatures over them, of which {counts.seals_valid:,} are valid",
        f"the recorded content of {counts.payloads_matched:,}",
    ]
    if counts.payloads_redacted:
        parts[-1] += f" ({counts.payloads_redacted:,} were erased with permission)"
    if counts.checkpoints:
        parts.append(f"{counts.checkpoints_valid:,} of {counts.checkpoints:,} signed copies of its state")
    if counts.anchors:
        parts.append(f"{counts.anchors_valid:,} of {counts.anchors:,} copies that were kept elsewhere")
    return ", ".join(parts)


# --- Words ---------------------------------------------------------------------------------------------------------------


def _one(says: str, finding: Finding) -> str:
    about = finding.about
    run = finding.last_seq or finding.last_batch
    words = {"it": _subject(finding), "code": finding.code, "after": "" if about is None else f" after {_time(about)}"}
    words |= {"was": "were", "has": "have"} if run is not None else {"was": "was", "has": "has"}
    return _sentence(says, words)


def _many(says: str, findings: Sequence[Finding]) -> str:
    abouts = [finding.about for finding in findings if finding.about is not None]
    words = {
        "it": f"{_things(findings)}{_where(findings, abouts)}",
        "code": findings[0].code,
        "was": "were",
        "has": "have",
    }
    words["after"] = f", the first after {_time(min(abouts))}," if abouts else ""
    return _sentence(says, words)


def _sentence(says: str, words: dict[str, str]) -> str:
    text = says.format(**words).replace(", without", " without").replace(",.", ".")
    return text[0].upper() + text[1:]


def _subject(finding: Finding) -> str:
    of = "" if finding.about is None or finding.about.tenant is None else f" of tenant {finding.about.tenant}"
    row = _row(finding)
    if row is not None:
        return f"{_KINDS[row[0]]} {row[1]}{of}"
    if finding.seq is not None and finding.last_seq is not None:
        return f"entries {finding.seq:,} to {finding.last_seq:,} of the log"
    if finding.seq is not None:
        about = finding.about
        details = "" if about is None else f" ({about.type}{of}, {_time(about)})"
        return f"entry {finding.seq:,} of the log{details}"
    if finding.batch is not None and finding.last_batch is not None:
        return f"batches {finding.batch:,} to {finding.last_batch:,} of the log"
    if finding.batch is not None:
        return f"batch {finding.batch:,} of the log"
    return f"the file {finding.file}" if finding.file is not None else "part of the log"


def _row(finding: Finding) -> tuple[str, str] | None:
    """Kind and id of the memory node or file that a finding is about."""
    if finding.code not in _ABOUT_ROWS:
        return None
    match = _ROW.search(f"{finding.expected} {finding.found}")
    if match is not None:
        return match[1], match[2]
    about = finding.about
    if about is None:
        return None
    if about.artifact is not None:
        return "artifact", about.artifact
    return ("node", about.node) if about.node is not None else None


def _things(findings: Sequence[Finding]) -> str:
    kinds = {row[0] if (row := _row(finding)) is not None else _kind(finding) for finding in findings}
    names = {"node": "memory nodes", "artifact": "files", "seq": "entries of the log", "batch": "batches of the log"}
    if kinds <= {"node", "artifact"}:
        return f"{len(findings):,} {' and '.join(names[kind] for kind in sorted(kinds, reverse=True))}"
    if len(kinds) == 1 and (kind := next(iter(kinds))) in ("seq", "batch"):
        count = sum(((f.last_seq if kind == "seq" else f.last_batch) or _at(f)) - _at(f) + 1 for f in findings)
        return f"{count:,} {names[kind]}"
    return f"{len(findings):,} {'files' if kinds == {'file'} else 'places'}"


def _kind(finding: Finding) -> str:
    return "seq" if finding.seq is not None else "batch" if finding.batch is not None else "file"


def _at(finding: Finding) -> int:
    return finding.seq if finding.seq is not None else finding.batch or 0


def _where(findings: Sequence[Finding], abouts: Sequence[About]) -> str:
    tenants = sorted({about.tenant for about in abouts if about.tenant is not None})
    parts = [] if not tenants else [f"of tenant{'s' if len(tenants) > 1 else ''} {listed(tenants)}"]
    if all(_row(finding) is None for finding in findings):
        numbered = [finding for finding in findings if finding.seq is not None or finding.batch is not None]
        files = sorted({finding.file for finding in findings if finding.file is not None})
        parts += [ranges(numbered)] if numbered else [listed(files)] if files else []
    return f" ({'; '.join(parts)})" if parts else ""


def ranges(findings: Iterable[Finding], most: int = NAMED) -> str:
    """Places in as few words as will do: "3 to 9, 12 and 4 more"."""
    spans = sorted((_at(f), f.last_seq if f.last_seq is not None else f.last_batch or _at(f)) for f in findings)
    merged: list[list[int]] = []
    for first, last in spans:
        if merged and first <= merged[-1][1] + 1:
            merged[-1][1] = max(merged[-1][1], last)
        else:
            merged.append([first, last])
    return listed([f"{first:,}" if first == last else f"{first:,} to {last:,}" for first, last in merged], most)


def listed(names: Sequence[str], most: int = NAMED) -> str:
    if len(names) <= most:
        return ", ".join(names)
    return f"{', '.join(names[:most])} and {len(names) - most:,} more"


def _time(about: About) -> str:
    return f"{about.time[:10]} {about.time[11:16]} UTC"


def _count_consequences(findings: Iterable[Finding]) -> int:
    return sum(len(f.consequences) + _count_consequences(f.consequences) for f in findings)
