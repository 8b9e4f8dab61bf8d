"""What the time of a node adds to its score: that its question names it, and how recent it is, where that was asked for.

``occurredAt`` is that time; how recent a node without it is goes by its creation. Nothing is filtered: the best hits by everything else
get a little more (weights in ``fusion.py``), and each says in ``scores`` how much. So no threshold changes what a boost does.
"""

from __future__ import annotations

import asyncio
import datetime as dt
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from memory_layer.analyser import date_words, dates
from memory_layer.model import format_time_or_none
from memory_layer.service.candidates import Candidate
from memory_layer.service.fusion import BOOSTED, DATE, Hit
from memory_layer.service.neighbours import Rows

MAX_TIMES: Final = 4  # of one question


@dataclass(frozen=True, slots=True)
class Recency:
    """``half_life`` in days: a node that old gets half of ``weight``, one twice as old a quarter."""

    half_life: float
    weight: float


@dataclass(frozen=True, slots=True)
class Boosts:
    """Of one search. ``now``: the same for all its tries."""

    now: dt.datetime
    times: Sequence[dates.Span]
    recency: Recency | None

    def depth(self, least: int) -> int:
        """How many hits must be known for the first ``least`` to be right."""
        return max(BOOSTED, least) if self.times or self.recency else least

    def rank(self, hits: Iterable[Hit], row_of: Rows) -> list[Hit]:
        """All of the hits, best first; ties by node id."""
        hits = list(hits)
        if not self.times and self.recency is None:
            return hits
        for hit in hits:
            row = row_of(hit.node_id)
            if self.named(row):
                hit.scores["date"] = DATE
                hit.score += DATE
            if self.recency is not None:
                hit.scores["recency"] = self.recency.weight * 0.5 ** (self.age(row) / self.recency.half_life)
                hit.score += hit.scores["recency"]
        return sorted(hits, key=lambda hit: (-hit.score, hit.node_id))

    def named(self, row: Candidate) -> dates.Span | None:
        """The time of the question that this node is of."""
        at = row.node.occurred_at
        return None if at is None else next((span for span in self.times if span.holds(at)), None)

    def age(self, row: Candidate) -> float:
        """In days; what is yet to come has none."""
        at = row.node.occurred_at or row.node.created_at
        return max(0.0, (self.now - at) / dt.timedelta(1))

    def explained(self) -> list[dict[str, Any]]:
        return [
            {"text": span.text, "start": format_time_or_none(span.start), "end": format_time_or_none(span.end)}
            for span in self.times
        ]


async def boosts_of(query: str | None, recency: Recency | None, *, by_words: bool) -> Boosts:
    """``by_words``: the search looks for words, so what it names counts."""
    now = dt.datetime.now(dt.UTC)
    times: list[dates.Span] = []
    # An environment that was made before this library was needed answers all the same.
    if by_words and query and date_words.is_installed():
        if not date_words.is_loaded():
            await asyncio.to_thread(date_words.load)  # beside the other requests: it takes a third of a second
        times = dates.named_times(query, now)[:MAX_TIMES]
    return Boosts(now, times, recency)
