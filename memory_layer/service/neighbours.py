"""Ranking by context: what stands beside a good hit in its thread, and in the same thread, is likelier to be what was looked for.

A *gain* is what a hit's own meaning and words give above a node that neither found. The best hits, the *seeds*, give shares of it to their
neighbours (weights in ``fusion.py``), a long passage getting less of it; then the best of a thread give all its hits a share. Whatever gives was admitted and is verified, so
nobody learns through a neighbour what they may not read; a long node, which would have to be read whole for that, gives nothing.
"""

from __future__ import annotations

import math
import uuid
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple, TypeAlias

from memory_layer.service.candidates import SHORT, Candidate, Neighbours
from memory_layer.service.fusion import LEANING, NEIGHBOURS, THREAD, THREAD_BEST, Hit

Rows: TypeAlias = Callable[[uuid.UUID], Candidate]


class Share(NamedTuple):
    """What a node gets from the neighbour that gives it most."""

    amount: float
    seed: uuid.UUID
    distance: int  # 1: they stand next to each other


_NOTHING: Final = Share(0.0, uuid.UUID(int=0), 0)


def received(seeds: Sequence[Hit], beside: Mapping[uuid.UUID, Neighbours], floor: float) -> dict[uuid.UUID, Share]:
    """What stands beside the seeds, and the most that one of them gives it. ``floor``: the score of a node that neither meaning nor words
    found. A seed that is far behind the best gives less than its share."""
    given: dict[uuid.UUID, Share] = {}
    best = max((seed.score - floor for seed in seeds), default=0.0)
    for seed in seeds:
        gain = seed.score - floor
        if gain <= 0 or seed.node_id not in beside:
            continue
        gain *= math.sqrt(gain / best)
        for side in beside[seed.node_id]:
            for distance, (share, node) in enumerate(zip(NEIGHBOURS, side, strict=False), 1):
                if share * gain > given.get(node, _NOTHING).amount:
                    given[node] = Share(share * gain, seed.node_id, distance)
    return given


@dataclass(slots=True)
class Surroundings:
    """What counts for the hits of one search beside themselves. ``best``: thread -> its best hits."""

    given: Mapping[uuid.UUID, Share]
    floor: float
    best: dict[str, list[uuid.UUID]] = field(default_factory=dict)
    threads: dict[uuid.UUID, str] = field(default_factory=dict)  # of the hits

    def rank(self, hits: Iterable[Hit], row_of: Rows) -> list[Hit]:
        """All of the hits, best first; ties by node id. Each says in ``scores`` what its neighbours and its thread added."""
        hits, found = list(hits), defaultdict(list)
        for hit in hits:
            row = row_of(hit.node_id)
            if hit.node_id in self.given:
                _add(hit, "neighbours", self.given[hit.node_id].amount * _leans(row))
            if row.node.thread is not None:
                self.threads[hit.node_id] = row.node.thread
                if not row.long and hit.score > self.floor:
                    found[row.node.thread].append((self.floor - hit.score, hit.node_id))
        gains = {}
        for thread, losses in found.items():
            losses.sort()
            self.best[thread] = [node for _, node in losses[:THREAD_BEST]]
            gains[thread] = -sum(loss for loss, _ in losses[:THREAD_BEST]) / THREAD_BEST
        for hit in hits:
            gain = gains.get(self.threads.get(hit.node_id, ""))
            if gain is not None:
                _add(hit, "thread", THREAD * gain)
        return sorted(hits, key=lambda hit: (-hit.score, hit.node_id))

    def counted(self, hits: Iterable[Hit]) -> list[uuid.UUID]:
        """The nodes that gave something to these hits: they must be what the log says, too."""
        found: dict[uuid.UUID, None] = {}
        for hit in hits:
            best = self.best.get(self.threads.get(hit.node_id, ""), ())
            found.update(dict.fromkeys(best))
            found.update((self.given[node].seed, None) for node in (hit.node_id, *best) if node in self.given)
        return list(found)


def _leans(row: Candidate) -> float:
    """The share of what its neighbours give that a passage gets: a turn of a talk answers what the one before it asks, a long paragraph
    without the words that are looked for is about something else."""
    size = SHORT if row.long else len(row.node.content or "")
    return min(1.0, (LEANING / size) ** 2) if size else 1.0


def _add(hit: Hit, part: str, amount: float) -> None:
    hit.scores[part] = amount
    hit.score += amount
