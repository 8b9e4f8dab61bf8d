"""Hybrid ranking: a weighted sum of what the two halves of a search say of a node, and of what stands around it (``neighbours.py``).

Both scores mean something by themselves (a cosine; a share of the best BM25 that the query could get), so they are added as they
are: ranks would throw the distances away. Decision 0009 has the figures.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from memory_layer.stores.protocols import IndexHit

# The weights, all of them; decisions 0042 and 0048 have the figures that they were chosen by.
MEANING, WORDS = 0.45, 0.55
NEIGHBOURS = (0.6, 0.4, 0.2)  # of a seed's gain, to the next node on each side in its thread, the second and the third
LEANING = 280  # characters of a passage up to which it gets all that its neighbours give; beyond them the square of their share of it
THREAD = 0.2  # of the mean gain of a thread's best, to each of its nodes
THREAD_BEST = 3
DATE = 0.1  # of a node whose time the question names
BOOSTED = 50  # hits, or as many as are asked for, whose order their time may change
CERTAIN = 10  # hits by meaning and words, or as many as are asked for, that no word hit left unread could come among
SEEDS = 20  # hits whose neighbours count
NEWCOMERS = 32  # nodes that only stand beside a seed and are looked at, or as many as are asked for


@dataclass(slots=True)
class Hit:
    """A node that was admitted (``candidates.py``); ``version`` is the one that the index holds."""

    node_id: uuid.UUID
    version: int
    scores: dict[str, float]
    score: float = 0.0


def fuse(semantic: Sequence[Hit], keyword: Sequence[Hit], keyword_scores: Mapping[uuid.UUID, IndexHit]) -> list[Hit]:
    """All hits, best first; ties by node id. ``keyword_scores``: of nodes that may be among the hits by meaning."""
    fused = {hit.node_id: hit for hit in semantic}
    for hit in semantic:
        word = keyword_scores.get(hit.node_id)
        if word is not None and word.version == hit.version:
            hit.scores["keyword"] = word.score
        hit.score = MEANING * hit.scores["semantic"] + WORDS * hit.scores.get("keyword", 0.0)
    floor = floor_of(semantic)
    for hit in keyword:
        if fused.setdefault(hit.node_id, hit) is hit:
            hit.score = MEANING * floor + WORDS * hit.scores["keyword"]
    return sorted(fused.values(), key=lambda hit: (-hit.score, hit.node_id))


def above(threshold: float | None, semantic: Sequence[Hit], hits: Sequence[Hit]) -> list[Hit]:
    """The hits whose cosine is the threshold or more, in their order. One that the words alone found counts as near as in its score."""
    if threshold is None:
        return list(hits)
    floor = floor_of(semantic)
    return [hit for hit in hits if hit.scores.get("semantic", floor) >= threshold]


def most(semantic: Sequence[Hit], keyword_score: float) -> float:
    """The most that a node which is not among the hits by meaning can reach with a keyword score."""
    return MEANING * floor_of(semantic) + WORDS * keyword_score


def floor_of(semantic: Sequence[Hit]) -> float:
    """The cosine taken for a node that the words alone found: that of the farthest hit, as it can hardly be nearer."""
    return min((hit.scores["semantic"] for hit in semantic), default=0.0)
