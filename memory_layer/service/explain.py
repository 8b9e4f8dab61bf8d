"""Why was this found: what each hit was found by, and what was left out, as far as the caller may know it."""

from __future__ import annotations

import uuid
from collections.abc import Collection, Sequence
from typing import Any, Final

from memory_layer.service.boosts import Boosts
from memory_layer.service.candidates import Candidates
from memory_layer.service.fusion import Hit
from memory_layer.service.hiding import sees_all
from memory_layer.service.keywords import Ranking
from memory_layer.service.neighbours import Surroundings

MAX_LEFT_OUT: Final = 100  # nodes that are named with the reason against them


async def explain(
    candidates: Candidates,
    words: Ranking,
    hits: Sequence[Hit],
    around: Surroundings | None,
    boosts: Boosts,
    tampered: Collection[uuid.UUID],
) -> tuple[dict[uuid.UUID, dict[str, Any]], dict[str, Any]]:
    """Of each hit, and of the search: a member ``explain``.

    A word's weight is the most that it can add to ``keyword``. What was left out is named to callers from whom nothing is hidden; what
    Postgres has no node for (``orphan``) to nobody, as it may be anybody's.
    """
    weights = [] if words.words is None else await words.weights([hit.node_id for hit in hits])
    why: dict[uuid.UUID, dict[str, Any]] = {}
    for hit in hits:
        share = None if around is None else around.given.get(hit.node_id)
        best = [] if around is None else around.best.get(around.threads.get(hit.node_id, ""), [])
        row = candidates.admitted(hit.node_id)
        named = boosts.named(row)
        why[hit.node_id] = {
            "words": [{"word": one.word, "weight": one.weight} for one in weights if hit.node_id in one.nodes],
            "cosine": hit.scores.get("semantic"),
            "neighbour": None
            if share is None
            else {"memoryNodeId": str(share.seed), "distance": share.distance, "gave": hit.scores["neighbours"]},
            "threadBest": [str(node) for node in best],
            "date": None if named is None else named.text,
            "ageDays": None if boosts.recency is None else boosts.age(row),
        }
    reasons = dict.fromkeys(tampered, "tampered") | candidates.left_out
    told = list(reasons.items())[:MAX_LEFT_OUT] if sees_all(candidates.caller) else []
    search = {
        "index": {"way": candidates.way, "exact": candidates.index_exact},
        "words": [{"word": one.word, "weight": one.weight} for one in weights],
        "leftOut": [{"memoryNodeId": str(node), "reason": reason} for node, reason in told],
        "dates": boosts.explained(),
    }
    return why, {"explain": search}
