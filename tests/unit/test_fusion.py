"""The hybrid order, from scores alone."""

from __future__ import annotations

import uuid

import pytest

from memory_layer.service.fusion import MEANING, WORDS, Hit, fuse, most
from memory_layer.stores.protocols import IndexHit


def hit(number: int, version: int = 1, **scores: float) -> Hit:
    return Hit(uuid.UUID(int=number), version, dict(scores))


def said(*candidates: tuple[int, int, float]) -> dict[uuid.UUID, IndexHit]:
    return {uuid.UUID(int=n): IndexHit(uuid.UUID(int=n), version, score) for n, version, score in candidates}


def order(hits: list[Hit]) -> list[int]:
    return [one.node_id.int for one in hits]


def test_the_weights_are_shares() -> None:
    assert sum((MEANING, WORDS)) == pytest.approx(1)


def test_both_scores_count() -> None:
    hits = fuse([hit(1, semantic=0.9), hit(2, semantic=0.6)], [hit(2, keyword=0.5)], said((2, 1, 0.5)))
    assert order(hits) == [2, 1]
    assert hits[0].scores == {"semantic": 0.6, "keyword": 0.5}
    assert [one.score for one in hits] == pytest.approx([MEANING * 0.6 + WORDS * 0.5, MEANING * 0.9])


def test_words_of_another_version_say_nothing() -> None:
    (one,) = fuse([hit(1, version=2, semantic=0.9)], [], said((1, 1, 0.5)))
    assert one.scores == {"semantic": 0.9}


def test_words_alone_count_as_near_as_the_farthest() -> None:
    semantic = [hit(1, semantic=0.9), hit(2, semantic=0.3)]
    hits = fuse(semantic, [hit(3, keyword=0.2)], {})
    assert order(hits) == [1, 3, 2]
    assert hits[1].score == pytest.approx(most(semantic, 0.2)) == pytest.approx(MEANING * 0.3 + WORDS * 0.2)
    assert hits[1].scores == {"keyword": 0.2}


def test_without_meaning_the_words_decide() -> None:
    assert order(fuse([], [hit(2, keyword=0.1), hit(1, keyword=0.4)], {})) == [1, 2]
    assert fuse([], [], {}) == []


def test_ties_are_in_the_order_of_ids() -> None:
    hits = [hit(n, semantic=0.5) for n in (3, 1, 2)]
    assert order(fuse(hits, [], {})) == [1, 2, 3]
    assert order(fuse([], [hit(n, keyword=0.5) for n in (2, 1)], {})) == [1, 2]
