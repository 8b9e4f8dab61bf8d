"""What a comparison came to, as an operator's findings."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any, Final

from memory_layer.ops.report import Finding
from memory_layer.ops.vectors.digest import total
from memory_layer.ops.vectors.reconcile import KINDS, Comparison
from memory_layer.ops.vectors.spaces import STATUSES

MAX_FINDINGS: Final = 100  # findings; the figures in the facts are complete
_WHAT: Final = {
    "missing": "indexed by Postgres and not in the index",
    "extra": "in the index, and in Postgres deleted or unknown",
    "stale": "in the index at an older version",
    "ahead": "in the index at a newer version than in Postgres",
    "wrong": "in the index with another vector",
    "fields": "in the index with other fields for filters than the node has",
}
_REPAIR: Final = "`memoryctl vectors reconcile --repair` repairs it."
_REBUILD: Final = (
    "No store lets an older version replace a newer one: `memoryctl vectors reindex --drop --tenant {tenant} --namespace "
    "{namespace}` builds it anew from Postgres."
)


def findings_of(compared: Sequence[Comparison], *, repaired: bool = False) -> list[Finding]:
    """One for each namespace and kind of difference, those with most of them first; one that all is well where it is."""
    found = []
    for done in compared:
        where = {"tenant": done.space.tenant, "namespace": done.space.namespace}
        shown = done.to_json()["examples"]
        for kind in KINDS:
            if count := done.counts[kind]:
                hint = _REBUILD.format(**where) if repaired or kind == "ahead" else _REPAIR
                text = f"{where['tenant']}/{where['namespace']}: {count} {_WHAT[kind]}."
                evidence = {**where, "count": count, "examples": shown[kind]}
                found.append((count, Finding(f"vectors.{kind}", "error", "fail", text, hint, evidence)))
    found.sort(key=lambda one: -one[0])
    if len(found) > MAX_FINDINGS:
        rest = Finding(
            "vectors.more",
            "error",
            "fail",
            f"{len(found) - MAX_FINDINGS} more differences are not listed.",
            "Name --tenant or --namespace to see them.",
        )
        return [one for _, one in found[:MAX_FINDINGS]] + [rest]
    if not found:
        text = f"The index holds what Postgres says in all {len(compared)} namespaces."
        if not compared:
            text = "There is no index namespace yet, so there was nothing to compare."
        found.append((0, Finding("vectors.equal", "error", "pass", text)))
    return [one for _, one in found]


def unknown_finding(names: Sequence[str], *, dropped: bool = False) -> Finding:
    """About namespaces that the index holds and Postgres knows nothing of."""
    if not names:
        return Finding(
            "vectors.unknown", "warning", "pass", "The index holds no namespace that Postgres knows nothing of."
        )
    evidence = {"count": len(names), "names": list(names[:MAX_FINDINGS])}
    if dropped:
        text = f"The index has forgotten {len(names)} namespaces that Postgres knows nothing of."
        return Finding("vectors.unknown", "warning", "pass", text, evidence=evidence)
    text = f"The index holds {len(names)} namespaces that Postgres knows nothing of, such as {names[0]}."
    hint = (
        "No search reads them. See that no other installation uses this store; then `memoryctl vectors reconcile --repair --drop-unknown` "
        "forgets them."
    )
    return Finding("vectors.unknown", "warning", "fail", text, hint, evidence)


def waiting_findings(compared: Sequence[Comparison]) -> list[Finding]:
    """What the index does not hold yet, or never will without an operator: no difference, but reported."""
    rows: Counter[str] = Counter()
    for done in compared:
        rows.update(done.space.rows)
    found = []
    if stuck := rows["failed"] + rows["dead"]:
        text = f"{stuck} rows have failed for good and are not in the index at their version."
        found.append(Finding("vectors.failed", "warning", "fail", text, "`memoryctl vectors replay` tries them again."))
    if waiting := rows["pending"] + rows["in_flight"] + rows["deleting"]:
        text = f"{waiting} rows wait for the worker."
        found.append(Finding("vectors.waiting", "info", "fail", text, "`memoryctl vectors status` shows since when."))
    return found


def facts_of(compared: Sequence[Comparison]) -> dict[str, Any]:
    """Figures over all namespaces, and those of each that is not equal on both sides (``vectors status`` shows every one)."""
    counts: Counter[str] = Counter()
    rows: Counter[str] = Counter()
    for done in compared:
        counts.update(done.counts)
        rows.update(done.space.rows)
    return {
        "namespaces": len(compared),
        "rows": {status: rows[status] for status in STATUSES if rows[status]},
        "expected": sum(done.rows for done in compared),
        "index": sum(done.index for done in compared),
        "expectedDigest": total([done.row_digest for done in compared]),
        "indexDigest": total([done.index_digest for done in compared]),
        "vectorsCompared": sum(done.compared for done in compared),
        "differences": dict(counts),
        "spaces": [done.to_json() for done in compared if done.state != "equal"][:MAX_FINDINGS],
    }
