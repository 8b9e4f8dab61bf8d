"""What keeps pgvector's large namespaces fast and true: tables of their own, and a measured recall."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from memory_layer.stores.vectors.pgvector_filters import EVERYTHING
from memory_layer.stores.vectors.pgvector_search import Look, depth, near, scan
from memory_layer.stores.vectors.pgvector_wire import SQL, Moved, Space, Wire, decode_vector
from memory_layer.telemetry import metrics
from memory_layer.telemetry.logs import get_logger

ENOUGH: Final = 0.97  # recall@10 on stored vectors, so that it is 0.95 for certain, also on others
DEPTHS: Final = (100, 200, 400, 800)  # candidates that are compared exactly
BUSY: Final = 10.0  # seconds to wait for another process that moves the namespace
QUERIES: Final = 30  # of one measurement
_MAX_HALF = 4000  # dimensions of a halfvec that pgvector indexes

log = get_logger("memory_layer.pgvector")


async def promote(wire: Wire, tenant: str, namespace: str, threshold: int) -> str:
    """Give a namespace a table of its own when it is large enough. What it came to: see ``vector_spaces.promote``."""
    values = {"tenant": tenant, "namespace": namespace, "threshold": threshold}
    outcome, until = "busy", asyncio.get_running_loop().time() + BUSY
    while outcome == "busy":
        async with wire.alone() as connection:
            row = await (await connection.execute(SQL["promote"], values)).fetchone()
        outcome = "" if row is None else str(row["outcome"])
        if outcome == "busy":  # another process is at it, and this one's writers are to wait as that one's do
            if asyncio.get_running_loop().time() > until:
                return outcome
            await asyncio.sleep(0.2)
    if outcome == "moved":
        log.info("a namespace has a table of its own now", tenant=tenant, namespace=namespace)
    elif outcome == "mixed":
        log.warning(
            "a namespace stays without an index: it holds vectors of several dimensions",
            tenant=tenant,
            namespace=namespace,
        )
    return outcome


async def find(wire: Wire, tenant: str, namespace: str) -> Space | None:
    """Where the namespace is now."""
    while True:
        try:
            await wire.ask(tenant, namespace, wire.place(tenant, namespace))
        except Moved:
            continue
        return wire.place(tenant, namespace)


async def check_recall(wire: Wire, tenant: str, namespace: str, threshold: int) -> None:
    """Measure the recall of a large namespace where that is due, and make its searches look deeper until it suffices."""
    if await find(wire, tenant, namespace) is not None:
        await due(wire, threshold)  # it also notes how large the tables are by now
    while (space := await find(wire, tenant, namespace)) is not None and space.method != "none":
        async with wire.alone() as connection:
            row = await (await connection.execute(SQL["health"], {"number": space.number})).fetchone()
        if row is None or not (row["old"] is not False or row["rows"] > 1.25 * row["checked"]):
            return
        try:
            recall, rerank = await _deepen(wire, tenant, namespace, space)
        except Moved:
            continue
        async with wire.alone() as connection:
            await connection.execute(SQL["note"], {"number": space.number, "recall": recall, "rerank": rerank})
        if recall >= ENOUGH:
            return
        other = "halfvec" if space.method == "bit" and space.dimension <= _MAX_HALF else "none"
        log.warning(
            "the recall of an index is too low; another way of searching replaces it",
            tenant=tenant,
            namespace=namespace,
            method=space.method,
            recall=round(recall, 3),
            candidates=rerank,
            instead="a halfvec index" if other == "halfvec" else "exact searches",
        )
        async with wire.alone() as connection:
            await connection.execute(SQL["reindex"], {"number": space.number, "method": other})


async def _deepen(wire: Wire, tenant: str, namespace: str, space: Space) -> tuple[float, int]:
    """Recall@10 and the least depth that brings enough of it. Raises Moved."""
    percent = min(100.0, 100.0 * 20 * QUERIES / max(space.rows, 1))
    text = SQL["some"].replace("{relation}", space.relation).replace("{where}", SQL["in_own"])
    (rows,) = await wire.ask(tenant, namespace, space, (text, {"percent": percent, "limit": QUERIES}))
    looks = [Look(tenant, namespace, decode_vector(row["vector"]), 11, 0, EVERYTHING) for row in rows]
    if not looks:
        return 1.0, space.rerank
    floors = []
    for look in looks:
        scores = [hit.score for hit in (await scan(wire, space, look)).hits]
        floors.append(scores[-1] if scores else 1.0)
    recall = 0.0
    for rerank in DEPTHS:
        recall = await _recall(wire, replace(space, rerank=rerank), looks, floors)
        if recall >= ENOUGH:
            return recall, rerank
    return recall, DEPTHS[-1]


async def _recall(wire: Wire, space: Space, looks: Sequence[Look], floors: Sequence[float]) -> float:
    """Of the ten nearest beside the vector itself, how many are found; an equally near one is as good."""
    found = 0.0
    for look, floor in zip(looks, floors, strict=True):
        answer, reason = await near(wire, space, look)
        hits = answer.hits.hits
        if reason == "ties" or (reason == "short" and space.rows < depth(space, look.wanted)):
            found += 1  # a search goes on exactly, as it should
            continue
        if reason is not None or len(hits) < 2:
            continue  # it would too, but then the index is of no use
        found += (sum(hit.score >= floor - 1e-6 for hit in hits) - 1) / (len(hits) - 1)
    return found / len(looks)


async def due(wire: Wire, threshold: int) -> list[tuple[str, str]]:
    """The namespaces that something is to be done about."""
    async with wire.alone() as connection:
        cursor = await connection.execute(SQL["due"], {"threshold": threshold})
        return [(row["tenant"], row["namespace"]) for row in await cursor.fetchall()]


async def report_recall(wire: Wire) -> None:
    async with wire.alone() as connection:
        row = await (await connection.execute(SQL["least_recall"])).fetchone()
    if row is not None and row["recall"] is not None:
        metrics.index_recall.set(row["recall"])
