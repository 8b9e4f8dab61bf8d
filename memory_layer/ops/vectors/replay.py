"""Send again the rows that are not indexed, and follow them until they are. Only the worker's code writes (service/indexing.py)."""

from __future__ import annotations

import asyncio
import uuid
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from memory_layer.errors import MemoryLayerError
from memory_layer.ops.report import Finding
from memory_layer.ops.vectors.spaces import NIL, PAGE, SQL, Portion, Scope
from memory_layer.progress import Progress, no_progress
from memory_layer.service.installation import Installation
from memory_layer.stores.postgres import ALL_TENANTS

LOOK_EVERY: Final = 0.2  # seconds
EXAMPLES: Final = 20
_LEFT: Final = ("failed", "dead")


@dataclass(slots=True)
class Replayed:
    """``before``: rows by the status that they had; ``left``: those that were not indexed in time, by (status, error)."""

    before: Counter[str] = field(default_factory=Counter)
    portions: list[Portion] = field(default_factory=list)
    indexed: int = 0
    left: Counter[tuple[str, str]] = field(default_factory=Counter)
    examples: list[dict[str, Any]] = field(default_factory=list)

    @property
    def rows(self) -> int:
        return sum(len(one.versions) for one in self.portions)


async def replay(
    installation: Installation, scope: Scope, *, within: float, progress: Progress = no_progress
) -> Replayed:
    """Make all outstanding rows due again with all their attempts, and wait until they are indexed, at most ``within`` seconds."""
    done = await make_due(installation, scope, progress)
    await follow(installation, done, within=within, progress=progress)
    return done


async def make_due(installation: Installation, scope: Scope, progress: Progress = no_progress) -> Replayed:
    """Make every outstanding row due, except those that a worker has leased; those are followed too."""
    done = Replayed()
    after: dict[str, Any] = {"after_tenant": "", "after_id": NIL}
    while True:
        facts = {"tenant": scope.tenant, "namespace": scope.namespace, "limit": PAGE, **after}
        (rows,) = await installation.postgres.run(ALL_TENANTS, (SQL["replay"], facts))
        spaces: dict[tuple[str, str], list[tuple[uuid.UUID, int]]] = {}
        for row in rows:
            done.before[row["status"]] += 1
            spaces.setdefault((row["tenant"], row["namespace"]), []).append((row["node_id"], row["version"]))
        for (tenant, namespace), found in spaces.items():
            nodes = b"".join(node.bytes for node, _ in found)
            done.portions.append(Portion(tenant, namespace, nodes, [version for _, version in found]))
        progress("making rows due", done.rows, 0)
        if len(rows) < PAGE:
            return done
        after = {"after_tenant": rows[-1]["tenant"], "after_id": rows[-1]["id"]}


async def follow(
    installation: Installation, done: Replayed, *, within: float, progress: Progress = no_progress
) -> None:
    """Wait until the rows are indexed, or were changed again by another write; portion by portion."""
    total, deadline = done.rows, asyncio.get_running_loop().time() + within
    left: list[tuple[Portion, list[dict[str, Any]]]] = []
    waiting = [one for one in done.portions if one.versions]
    while waiting:
        open_ = await _outstanding(installation, waiting[0])
        moving = [row for row in open_ if row["status"] not in _LEFT]
        late = asyncio.get_running_loop().time() > deadline
        if not moving or late:
            if open_:
                left.append((waiting[0], open_))
            done.indexed += len(waiting[0].versions) - len(open_)
            waiting.pop(0)
        progress("indexing", done.indexed + (len(waiting[0].versions) - len(open_) if waiting and moving else 0), total)
        if moving and not late and await _work(installation) == 0:
            await asyncio.sleep(LOOK_EVERY)
    for one, open_ in left:
        for row in open_:
            error = row["error"] or "no attempt has failed yet"
            done.left[row["status"], error] += 1
            if len(done.examples) < EXAMPLES:
                where = {"tenant": one.tenant, "namespace": one.namespace, "node": str(row["node_id"])}
                done.examples.append({**where, "status": row["status"], "error": error})


async def _work(installation: Installation) -> int:
    if installation.work is None:
        return 0
    try:
        return await installation.work()
    except MemoryLayerError:  # the rows wait; whether anything came of it is looked at above
        return 0


async def _outstanding(installation: Installation, one: Portion) -> list[dict[str, Any]]:
    facts = {"tenant": one.tenant, "namespace": one.namespace, "nodes": one.ids(), "versions": one.versions}
    (rows,) = await installation.postgres.fetch(ALL_TENANTS, (SQL["outstanding"], facts))
    return rows


def findings_of(done: Replayed, *, here: bool) -> list[Finding]:
    """What came of a replay."""
    if not done.left:
        text = f"{done.indexed} rows were replayed and are indexed." if done.rows else "Nothing was left to replay."
        return [Finding("vectors.replay", "error", "pass", text, evidence={"before": dict(done.before)})]
    found = []
    for (status, error), count in done.left.most_common(EXAMPLES):
        name = "vectors.not-settled" if status not in _LEFT else f"vectors.{status}"
        hint = (
            "Repair what the error names and replay again; a change to the node has it tried again too."
            if status in _LEFT
            else "Give it more --timeout."
            if here
            else "Does a worker run? Else use --here; or give it more --timeout."
        )
        examples = [one for one in done.examples if (one["status"], one["error"]) == (status, error)]
        text = f"{count} rows stay {status}: {error}"
        found.append(Finding(name, "error", "fail", text, hint, {"count": count, "examples": examples}))
    return found


def joined(portions: Sequence[Portion]) -> Replayed:
    """Rows that were put back into the outbox, to be followed."""
    return Replayed(portions=[one for one in portions if one.versions])
