"""Compare the words of the text index (``memory_terms``) with the texts that they are of, and have the worker write wrong ones again.

Like the vectors, they are judged by what two looks a moment apart find: what is on its way through the worker is no difference.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal, NamedTuple

from memory_layer.analyser import VERSION
from memory_layer.ops.report import Finding
from memory_layer.ops.vectors.reconcile import EXAMPLES, MOMENT
from memory_layer.ops.vectors.spaces import NIL, SQL, Portion, Scope, Space, list_spaces, send_again
from memory_layer.service.installation import Installation
from memory_layer.service.word_writer import analysed
from memory_layer.stores.postgres import ALL_TENANTS

PAGE: Final = 200  # nodes whose texts are analysed together
MAX_DIFFERENCES: Final = 10_000  # differences that are kept

Kind = Literal["missing", "wrong", "stray"]


class Words(NamedTuple):
    """A node whose words are not those of its text. ``namespace``: the index namespace, of stray ones the namespace's own name."""

    kind: Kind
    tenant: str
    node: uuid.UUID
    namespace: str
    version: int | None


@dataclass(slots=True)
class Compared:
    """``compared``: texts. ``sent``: rows that the worker has been given again, ``removed``: stray words that were dropped."""

    compared: int = 0
    found: list[Words] = field(default_factory=list)
    sent: list[Portion] = field(default_factory=list)
    removed: int = 0


async def compare(installation: Installation, scope: Scope, *, repair: bool = False) -> Compared:
    """Every text in scope. ``repair``: wrong words are written again by the worker, stray ones go. Raises DatabaseUnavailable."""
    done = Compared()
    once = [*await _texts(installation, scope, None, done), *await _stray(installation, scope)]
    if once:
        await asyncio.sleep(MOMENT)
        again = {
            *await _texts(installation, scope, [one.node for one in once], None),
            *await _stray(installation, scope),
        }
        done.found = [one for one in once if one in again]
    if repair and done.found:
        await _repair(installation, done)
    return done


async def _texts(
    installation: Installation, scope: Scope, nodes: Sequence[uuid.UUID] | None, done: Compared | None
) -> list[Words]:
    found: list[Words] = []
    after: tuple[str, uuid.UUID] = ("", NIL)
    while True:
        facts: dict[str, Any] = {"tenant": scope.tenant, "namespace": scope.namespace, "nodes": nodes and list(nodes)}
        facts |= {"after_tenant": after[0], "after_id": after[1], "limit": PAGE, "analyser": VERSION}
        (rows,) = await installation.postgres.fetch(ALL_TENANTS, (SQL["words"], facts))
        await _judge(installation, [row for row in rows if row["content"] is not None and row["problem"] is None])
        wrong = [row for row in rows if row["problem"] is not None]
        found += [Words(r["problem"], r["tenant"], r["node_id"], r["namespace"], r["version"]) for r in wrong]
        if done is not None:
            done.compared += len(rows)
        if len(rows) < PAGE or len(found) > MAX_DIFFERENCES:
            return found[:MAX_DIFFERENCES]
        after = (rows[-1]["tenant"], rows[-1]["node_id"])


async def _judge(installation: Installation, rows: Sequence[dict[str, Any]]) -> None:
    """Make the words of these texts again, and mark the rows whose words are others."""
    if not rows:
        return
    made = await analysed([(row["content"], row["declared"]) for row in rows])
    facts = {
        "tenants": [row["tenant"] for row in rows],
        "nodes": [row["node_id"] for row in rows],
        "languages": [one.language for one in made],
        "terms": [one.tsvector for one in made],
    }
    (unlike,) = await installation.postgres.fetch(ALL_TENANTS, (SQL["unlike_words"], facts))
    for found in unlike:
        rows[found["place"] - 1]["problem"] = "wrong"


async def _stray(installation: Installation, scope: Scope) -> list[Words]:
    facts = {"tenant": scope.tenant, "namespace": scope.namespace, "limit": MAX_DIFFERENCES}
    (rows,) = await installation.postgres.fetch(ALL_TENANTS, (SQL["stray_words"], facts))
    return [Words("stray", row["tenant"], row["node_id"], row["namespace"], None) for row in rows]


async def _repair(installation: Installation, done: Compared) -> None:
    stray = [one for one in done.found if one.kind == "stray"]
    facts = {"tenants": [one.tenant for one in stray], "nodes": [one.node for one in stray]}
    await installation.postgres.run(ALL_TENANTS, (SQL["drop_stray_words"], facts))
    done.removed = len(stray)
    by_space: dict[tuple[str, str], list[tuple[uuid.UUID, int]]] = {}
    for one in done.found:
        if one.version is not None:
            by_space.setdefault((one.tenant, one.namespace), []).append((one.node, one.version))
    for (tenant, namespace), rows in by_space.items():
        for space in await list_spaces(installation, Scope(tenant, namespace)):
            done.sent.append(await _again(installation, space, rows))


async def _again(installation: Installation, space: Space, rows: Sequence[tuple[uuid.UUID, int]]) -> Portion:
    # A row of a newer version than these words would keep them: the worker never puts older words over newer ones.
    facts = {"tenants": [space.tenant] * len(rows), "nodes": [node for node, _ in rows]}
    await installation.postgres.run(ALL_TENANTS, (SQL["drop_words"], facts))
    return await send_again(installation, space, rows)


def finding_of(done: Compared, *, repaired: bool = False) -> Finding:
    """One finding about all of them."""
    if not done.found:
        return Finding("vectors.words", "error", "pass", f"The words of {done.compared} texts are those of the texts.")
    counts = {kind: sum(one.kind == kind for one in done.found) for kind in ("missing", "wrong", "stray")}
    examples = [{"kind": one.kind, "node": str(one.node)} for one in done.found[:EXAMPLES]]
    text = f"In the text index {counts['missing']} texts have no words, {counts['wrong']} others, and {counts['stray']} words have no text."
    if repaired:
        fixed = f"{text} Stray ones were removed, and the worker writes the others again."
        return Finding("vectors.words", "warning", "pass", fixed, evidence={**counts, "examples": examples})
    hint = "`memoryctl vectors reconcile --repair` has them written again."
    return Finding("vectors.words", "error", "fail", text, hint, {**counts, "examples": examples})
