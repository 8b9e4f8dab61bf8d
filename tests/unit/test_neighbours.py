"""What a good hit gives to what stands beside it, from scores alone."""

from __future__ import annotations

import dataclasses
import uuid
from typing import Any
from unittest.mock import sentinel

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memory_layer.service.actions.nodes import draft
from memory_layer.service.candidates import Candidate, Neighbours
from memory_layer.service.fusion import LEANING, NEIGHBOURS, THREAD, Hit
from memory_layer.service.neighbours import Share, Surroundings, received


def name(number: int) -> uuid.UUID:
    return uuid.UUID(int=number)


def beside(length: int) -> dict[uuid.UUID, Neighbours]:
    """Who stands beside whom in a thread of so many."""
    return {
        name(at): Neighbours(
            [name(n) for n in range(at - 1, max(at - 4, -1), -1)], [name(n) for n in range(at + 1, min(at + 4, length))]
        )
        for at in range(length)
    }


def talk(
    length: int, *, long: frozenset[int] = frozenset(), thread: str | None = "a talk"
) -> dict[uuid.UUID, Candidate]:
    """The rows of one thread."""
    rows = {}
    for at in range(length):
        node = draft(tenant="ann", id=name(at), owner="ann", namespace="n", thread=thread)
        facts: dict[str, Any] = {field.name: sentinel.unused for field in dataclasses.fields(Candidate)}
        rows[node.id] = Candidate(**facts | {"node": node, "long": at in long})
    return rows


def hits_of(*scores: float) -> list[Hit]:
    return [Hit(name(n), 1, {}, score) for n, score in enumerate(scores)]


def test_shares_grow_smaller_with_the_distance_and_end() -> None:
    rows = beside(9)
    found = received([Hit(name(4), 1, {}, 1.2)], rows, 0.2)
    assert {node.int: share.amount for node, share in found.items()} == pytest.approx(
        {3: NEIGHBOURS[0], 5: NEIGHBOURS[0], 2: NEIGHBOURS[1], 6: NEIGHBOURS[1], 1: NEIGHBOURS[2], 7: NEIGHBOURS[2]}
    )
    assert {(share.seed.int, share.distance) for share in found.values()} == {(4, 1), (4, 2), (4, 3)}


def test_the_neighbour_that_gives_most_counts_alone() -> None:
    rows = beside(3)
    found = received([Hit(name(0), 1, {}, 1.0), Hit(name(2), 1, {}, 0.25)], rows, 0.0)
    assert found[name(1)].amount == pytest.approx(NEIGHBOURS[0])
    assert found[name(0)].amount == pytest.approx(NEIGHBOURS[1] * 0.25 * 0.5)  # a quarter as good gives an eighth


def test_what_neither_found_gives_nothing() -> None:
    assert received([Hit(name(1), 1, {}, 0.3)], beside(3), 0.3) == {}
    assert received([], beside(3), 0.0) == {}


def test_a_long_node_is_none_of_the_best_of_its_thread() -> None:
    rows = talk(3, long=frozenset({0}))
    around = Surroundings({}, 0.0)
    around.rank(hits_of(0.9, 0.5, 0.1), rows.__getitem__)
    assert around.best == {"a talk": [name(1), name(2)]}


def test_a_node_without_a_thread_gets_nothing() -> None:
    rows = talk(3, thread=None)
    ranked = Surroundings(received(hits_of(0.9, 0.5), {}, 0.1), 0.1).rank(hits_of(0.5, 0.9), rows.__getitem__)
    assert [(hit.node_id.int, hit.score, hit.scores) for hit in ranked] == [(1, 0.9, {}), (0, 0.5, {})]


@given(st.lists(st.floats(0, 2), min_size=1, max_size=12), st.floats(0, 1))
def test_the_parts_are_the_score_and_all_who_gave_are_named(scores: list[float], floor: float) -> None:
    rows = talk(len(scores))
    before = {name(n): score for n, score in enumerate(scores)}
    around = Surroundings(received(hits_of(*scores), beside(len(scores)), floor), floor)
    ranked = around.rank(hits_of(*scores), rows.__getitem__)
    assert [hit.score for hit in ranked] == sorted((hit.score for hit in ranked), reverse=True)
    most = max(0.0, max(scores) - floor)
    for hit in ranked:
        assert hit.score == pytest.approx(before[hit.node_id] + sum(hit.scores.values()))
        assert 0 <= hit.scores.get("neighbours", 0) <= NEIGHBOURS[0] * most + 1e-9
        assert 0 <= hit.scores.get("thread", 0) <= THREAD * (1 + NEIGHBOURS[0]) * most + 1e-9
        counted = around.counted([hit])
        if "neighbours" in hit.scores:
            assert around.given[hit.node_id].seed in counted
        assert set(around.best.get("a talk", ())) <= set(counted)


def test_a_long_passage_gets_less_of_what_its_neighbours_give() -> None:
    rows = talk(3, long=frozenset({2}))
    for at, size in ((0, LEANING), (1, 2 * LEANING)):
        rows[name(at)] = dataclasses.replace(
            rows[name(at)], node=dataclasses.replace(rows[name(at)].node, content="x" * size)
        )
    given = {name(at): Share(0.4, name(9), 1) for at in range(3)}
    hits = {hit.node_id.int: hit for hit in Surroundings(given, 0.0).rank(hits_of(0.1, 0.1, 0.1), rows.__getitem__)}
    assert hits[0].scores["neighbours"] == 0.4
    assert hits[1].scores["neighbours"] == pytest.approx(0.1)
    assert 0 < hits[2].scores["neighbours"] < 0.001
