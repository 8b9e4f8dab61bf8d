"""Recall of the index as it answers now: its nearest ten against the exact ten, over a set of queries that stays the same."""

from __future__ import annotations

import heapq
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from memory_layer.ops.vectors.spaces import SQL, Space, decode, indexed_rows, row_states
from memory_layer.progress import Progress, no_progress
from memory_layer.service.installation import Installation
from memory_layer.stores.postgres import ALL_TENANTS

DEPTH: Final = 10
ENOUGH: Final = 0.95  # recall@10
QUERIES: Final = 50
_NOISE: Final = 0.5  # length of what is added to a stored vector, so that a query is near many and equal to none
_TIE: Final = 1e-6  # cosine: float32 sums differ by their order


@dataclass(frozen=True, slots=True)
class Recall:
    """``value``: share of the exact nearest that the index found, 0..1; None where there is nothing to find."""

    space: Space
    queries: int
    value: float | None


async def probe(
    installation: Installation, space: Space, *, queries: int = QUERIES, progress: Progress = no_progress
) -> Recall:
    """Recall@10 of a namespace. Every canonical vector is read, in pages."""
    asked = await _queries(installation, space, queries)
    if asked is None:
        return Recall(space, 0, None)
    exact = await _exact(installation, space, asked, progress)
    found = wanted = 0
    for query, best in zip(asked, exact, strict=True):
        # What is being written is on neither side: a few more are asked for, and only indexed rows count.
        answer = await installation.vectors.search(space.tenant, space.namespace, query, 2 * DEPTH, None)
        states = await row_states(installation, space, [hit.node_id for hit in answer.hits], vectors=True)
        hits = [states[hit.node_id] for hit in answer.hits if _is_indexed(states.get(hit.node_id), hit.version)][:DEPTH]
        floor = best[-1][0] - _TIE
        found += min(len(best), sum(float(decode_unit(row["stored"]) @ query) >= floor for row in hits))
        wanted += len(best)
    return Recall(space, len(asked), found / wanted)


async def _queries(installation: Installation, space: Space, count: int) -> NDArray[np.float32] | None:
    """Shape (queries, dimension), unit length; the same as long as the same nodes are there."""
    facts = {"tenant": space.tenant, "namespace": space.namespace, "limit": count}
    (rows,) = await installation.postgres.fetch(ALL_TENANTS, (SQL["probe_rows"], facts))
    made = []
    for row in rows:
        stored = decode_unit(row["stored"])
        noise = np.random.default_rng(row["node_id"].int).standard_normal(stored.shape[0])
        mixed = stored + _NOISE * noise / np.linalg.norm(noise)
        made.append((mixed / np.linalg.norm(mixed)).astype(np.float32))
    # One namespace has one dimension; should it have two, the index answers for the first alone.
    return np.stack([one for one in made if one.shape == made[0].shape]) if made else None


async def _exact(
    installation: Installation, space: Space, asked: NDArray[np.float32], progress: Progress
) -> list[list[tuple[float, uuid.UUID]]]:
    """The nearest of all canonical vectors to each query, nearest first."""
    best: list[list[tuple[float, uuid.UUID]]] = [[] for _ in asked]
    looked = 0
    async for rows in indexed_rows(installation, space, vectors=True):
        pairs = [(row["node_id"], decode_unit(row["stored"])) for row in rows]
        kept = [(node, vector) for node, vector in pairs if vector.shape[0] == asked.shape[1]]
        if kept:
            _merge(best, asked @ np.stack([vector for _, vector in kept]).T, [node for node, _ in kept])
        looked += len(rows)
        progress("finding the exact nearest", looked, space.expected)
    return [sorted(one, reverse=True) for one in best]


def _merge(best: list[list[tuple[float, uuid.UUID]]], scores: NDArray[np.float32], nodes: Sequence[uuid.UUID]) -> None:
    """``scores``: shape (queries, nodes)."""
    for heap, row in zip(best, scores, strict=True):
        places = np.argpartition(row, -DEPTH)[-DEPTH:] if len(nodes) > DEPTH else np.arange(len(nodes))
        for place in places:
            heapq.heappush(heap, (float(row[place]), nodes[place]))
            if len(heap) > DEPTH:
                heapq.heappop(heap)


def _is_indexed(row: dict[str, Any] | None, version: int) -> bool:
    return row is not None and row["status"] == "succeeded" and row["version"] == version and bool(row["vectored"])


def decode_unit(stored: str) -> NDArray[np.float32]:
    """The canonical vector at unit length."""
    vector = decode(stored).astype(np.float64)
    return (vector / np.linalg.norm(vector)).astype(np.float32)
