"""The vector desync drill of the runbook (docs/runbooks/vector-desync.md) as one run, with the time that each step took.

Replay the rows that are not indexed; compare counts and digests; bring the index back, from a snapshot where one is given, and repair the
rest; compare again; probe the recall. The time to recover (RTO) is from the first step to the comparison that found no difference.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from memory_layer.ops.report import Finding, Status
from memory_layer.ops.vectors import findings, replay
from memory_layer.ops.vectors.manifest import Manifest
from memory_layer.ops.vectors.probe import ENOUGH, Recall, probe
from memory_layer.ops.vectors.reconcile import Comparison, Vectors, compare
from memory_layer.ops.vectors.restore import restore
from memory_layer.ops.vectors.spaces import Scope, list_spaces, named_spaces
from memory_layer.progress import Progress, no_progress
from memory_layer.service.installation import Installation

MAX_PROBED: Final = 20  # namespaces, the largest first: a probe reads every vector of its namespace


@dataclass(slots=True)
class _Clock:
    """Seconds of each step, in order."""

    started: float = field(default_factory=time.monotonic)
    steps: dict[str, float] = field(default_factory=dict)

    @contextlib.contextmanager
    def step(self, name: str) -> Iterator[None]:
        begun = time.monotonic()
        try:
            yield
        finally:
            self.steps[name] = round(time.monotonic() - begun, 3)

    def since(self) -> float:
        return round(time.monotonic() - self.started, 3)


async def drill(
    installation: Installation,
    scope: Scope,
    find: Callable[[Finding], None],
    fact: Callable[[str, Any], None],
    *,
    snapshot: tuple[Path, Manifest] | None = None,
    vectors: Vectors = "sample",
    within: float = 600.0,
    queries: int = 50,
    progress: Progress = no_progress,
) -> None:
    """Do the steps, and report each to ``find`` and ``fact``. What remains in the end is an error among the findings."""
    clock = _Clock()

    def report_step(step: str, ok: bool, text: str) -> None:
        evidence = {"seconds": clock.steps[step]}
        status: Status = "pass" if ok else "fail"
        find(Finding(f"drill.{step}", "error", status, f"{text} ({clock.steps[step]:.1f} s)", evidence=evidence))

    await named_spaces(installation, scope)
    with clock.step("replay"):
        replayed = await replay.replay(installation, scope, within=within, progress=progress)
    left = sum(replayed.left.values())
    text = f"{replayed.rows} rows were not indexed and were replayed; {left} still are not."
    report_step("replay", not left, text)
    for finding in replay.findings_of(replayed, here=installation.work is not None) if left else ():
        find(finding)

    with clock.step("compare"):
        before = [
            await compare(installation, space, vectors=vectors, progress=progress)
            for space in await list_spaces(installation, scope)
        ]
    rows, index = sum(done.rows for done in before), sum(done.index for done in before)
    text = f"{len(before)} namespaces: {rows} entries by Postgres, {index} in the index; {_differences(before)}."
    report_step("compare", True, text)  # what was found is what the drill is for: only what is left of it counts
    fact("found", _counts(before))

    if snapshot is not None:
        with clock.step("restore"):
            restored = await restore(installation, *snapshot, scope, within=within, progress=progress)
        counts = restored.counts
        text = (
            f"{counts['written']} vectors were written from the snapshot; {counts['changed']} of its rows have changed since"
            f" and {counts['wrong']} had another vector than Postgres."
        )
        report_step("restore", True, text)

    repaired = _differ(before)
    if repaired:
        with clock.step("repair"):
            spaces = await list_spaces(installation, scope)
            seen = [
                await compare(installation, space, vectors=vectors, repair=True, progress=progress) for space in spaces
            ]
            sent = replay.joined([one for done in seen for one in done.sent])
            await replay.follow(installation, sent, within=within, progress=progress)
        removed = sum(done.removed for done in seen)
        text = f"{sent.rows} rows were sent again and {removed} entries removed; {sum(sent.left.values())} are still not indexed."
        report_step("repair", not sent.left, text)
    final = before
    with clock.step("verify"):
        if repaired or snapshot is not None:
            spaces = await list_spaces(installation, scope)
            final = [await compare(installation, space, vectors=vectors, progress=progress) for space in spaces]
    report_step("verify", not _differ(final), f"{_differences(final)[0].upper()}{_differences(final)[1:]} in the end.")
    for finding in findings.findings_of(final, repaired=True) if _differ(final) else ():
        find(finding)
    fact("rtoSeconds", None if _differ(final) or left else clock.since())

    with clock.step("recall"):
        largest = sorted((done for done in final if done.rows), key=lambda done: -done.rows)[:MAX_PROBED]
        recalls = [await probe(installation, done.space, queries=queries, progress=progress) for done in largest]
    _report_recall(recalls, clock, find)
    fact("recall", {f"{one.space.tenant}/{one.space.namespace}": one.value for one in recalls})
    fact("seconds", clock.steps)
    for name, value in findings.facts_of(final).items():
        fact(name, value)


def _report_recall(recalls: Sequence[Recall], clock: _Clock, find: Callable[[Finding], None]) -> None:
    known = [one for one in recalls if one.value is not None]
    low = [one for one in known if one.value is not None and one.value < ENOUGH]
    for one in low:
        text = f"{one.space.tenant}/{one.space.namespace}: recall@10 is {one.value:.3f}, less than {ENOUGH}."
        hint = (
            "`memoryctl vectors reindex` builds it anew; if that does not help, the index searches too few candidates."
        )
        find(Finding("drill.recall", "error", "fail", text, hint, {"recall": one.value, "queries": one.queries}))
    if not low:
        worst = min((one.value for one in known if one.value is not None), default=None)
        text = (
            "There was nothing to probe."
            if worst is None
            else f"Recall@10 is {worst:.3f} or better in {len(known)} namespaces."
        )
        text = f"{text} ({clock.steps['recall']:.1f} s)"
        find(Finding("drill.recall", "error", "pass", text, evidence={"seconds": clock.steps["recall"]}))


def _differ(compared: Sequence[Comparison]) -> bool:
    return any(done.counts for done in compared)


def _counts(compared: Sequence[Comparison]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for done in compared:
        for kind, count in done.counts.items():
            counts[kind] = counts.get(kind, 0) + count
    return counts


def _differences(compared: Sequence[Comparison]) -> str:
    counts = _counts(compared)
    return "no differences" if not counts else ", ".join(f"{count} {kind}" for kind, count in counts.items())
