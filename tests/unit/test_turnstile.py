"""Requests go through a few in each turn of the event loop, in order, and nobody who leaves keeps the others out."""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest

from memory_layer.api.admission_gate import LEAST, TURN, AdmissionGate


@pytest.mark.parametrize(("size", "at_once"), [(100, 4), (LEAST, 4), (TURN, 1), (10 * TURN, 1)])
async def test_a_few_a_turn_and_in_order(size: int, at_once: int) -> None:
    turnstile, through, turns = AdmissionGate(), [], 0

    async def go(number: int) -> None:
        await turnstile.enter(size)
        through.append((turns, number))

    async def count() -> None:
        nonlocal turns
        while len(through) < 20:
            turns += 1
            await asyncio.sleep(0)

    await asyncio.wait_for(asyncio.gather(count(), *(go(number) for number in range(20))), 60)
    assert [number for _, number in through] == list(range(20))
    assert max(Counter(turn for turn, _ in through).values()) == at_once


async def test_who_leaves_while_waiting_or_just_let_through_keeps_nobody_out() -> None:
    turnstile, through = AdmissionGate(), []

    async def go(number: int) -> None:
        await turnstile.enter(TURN)
        through.append(number)

    for moment in range(6):
        through.clear()
        tasks = [asyncio.create_task(go(number)) for number in range(6)]
        for _ in range(moment):
            await asyncio.sleep(0)
        for task in tasks[1:4]:
            task.cancel()
        await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 60)
        assert {0, 4, 5} <= set(through)
        await asyncio.wait_for(go(9), 60)
