"""Ids in the order of their making."""

from __future__ import annotations

import time

import pytest

from memory_layer import model


def test_ids_of_one_process_are_in_the_order_of_their_making() -> None:
    began = time.time_ns() // 1_000_000
    made = [model.uuid7() for _ in range(20_000)]
    assert made == sorted(set(made))
    assert {(one.version, one.variant) for one in made} == {(7, "specified in RFC 4122")}
    times = [one.int >> 80 for one in made]
    assert began <= times[0]
    assert times[-1] <= time.time_ns() // 1_000_000 + 10


def test_a_clock_that_was_put_back_holds_ids_up_for_seconds_only(monkeypatch: pytest.MonkeyPatch) -> None:
    now = time.time_ns()
    first = model.uuid7()
    monkeypatch.setattr(time, "time_ns", lambda: now - 2 * 10**9)
    assert model.uuid7() > first
    monkeypatch.setattr(time, "time_ns", lambda: now - 3600 * 10**9)
    assert model.uuid7().int >> 80 == (now - 3600 * 10**9) // 1_000_000
