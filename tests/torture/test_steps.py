"""A blow at each step of a batch: every message between a committer and Postgres is a step, in both directions.

The steps are not listed here: a batch is watched first, and then one is struck at each of its messages. So a change of the write
path changes the matrix with it.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import psycopg
import pytest

from tests.support.postgres_proxy import Moment, Side, Trap, at_message
from tests.torture.checks import problems
from tests.torture.harness import Installation, Process, Say, happened, installed
from tests.torture.workload import Client, Ledger, Operation, count, create_many, make_counters

pytestmark = pytest.mark.torture

Step = tuple[Side, int]


@dataclass
class Bench:
    """One API process whose batches are struck, one client, and what it was told."""

    install: Installation
    api: Process
    client: Client
    ledger: Ledger
    struck: int = 0


async def cut(bench: Bench, step: Step) -> None:
    """The connection ends before the message."""
    await _struck(bench, Trap(at_message(*step)))


async def cut_inside(bench: Bench, step: Step) -> None:
    """The connection ends when half of the message has passed."""
    await _struck(bench, Trap(at_message(*step, passing=0.5)))


async def end_the_backend(bench: Bench, step: Step) -> None:
    def strike(moment: Moment) -> None:
        with psycopg.connect(bench.install.cluster.dsn("postgres"), autocommit=True) as connection:
            connection.execute("SELECT pg_terminate_backend(%s, 2000)", [moment.backend])

    await _struck(bench, Trap(at_message(*step), strike, cut=False))


async def kill_the_backend(bench: Bench, step: Step) -> None:
    """SIGKILL: Postgres throws everybody out, and recovers."""
    await _struck(bench, Trap(at_message(*step), lambda moment: os.kill(moment.backend, signal.SIGKILL), cut=False))


async def kill_the_api(bench: Bench, step: Step) -> None:
    def strike(moment: Moment) -> None:
        assert moment.client == bench.api.pid
        bench.api.kill()

    await _struck(bench, Trap(at_message(*step), strike), bench.api.start)


async def kill_the_signer(bench: Bench, step: Step) -> None:
    signer = bench.install.signer
    assert signer is not None
    await _struck(bench, Trap(at_message(*step), lambda _: signer.kill(), cut=False), signer.start)


async def _struck(bench: Bench, trap: Trap, repair: Callable[[], object] | None = None) -> None:
    """Write until the trap has struck, and until that write is certain: it has a key."""
    bench.install.proxy.arm(trap)
    repairing: asyncio.Future[Any] | None = None
    for operation in (create_many, count):
        writing = asyncio.create_task(_certain(bench.client, operation))
        while not writing.done():
            if trap.struck.is_set() and repairing is None and repair is not None:
                repairing = asyncio.ensure_future(asyncio.to_thread(repair))
            await asyncio.sleep(0.002)
        await writing
    if trap.at is not None:  # the writes may be done before the blow is
        assert await happened(trap.struck.is_set)
    if repairing is None and repair is not None and trap.struck.is_set():
        repairing = asyncio.ensure_future(asyncio.to_thread(repair))
    if repairing is not None:
        await repairing
    bench.install.proxy.disarm()
    bench.struck += trap.struck.is_set()


async def _certain(client: Client, operation: Operation) -> None:
    """Once more where the server refused before the write began."""
    before = client.ledger.acknowledged
    while client.ledger.acknowledged == before:
        await operation(client)


async def _steps(bench: Bench) -> list[Step]:
    """Each message of a batch, as a batch on a connection that is not new has them."""
    await _certain(bench.client, create_many)
    await _certain(bench.client, create_many)
    heard: list[Moment] = []
    with bench.install.proxy.watching(heard.append):
        await _certain(bench.client, create_many)
    # Its request may have been repeated, and is answered from what was kept then: that batch commits nothing.
    (end, *_) = (
        place for place, moment in enumerate(heard) if moment.statement.startswith("COMMIT") and moment.kind == "C"
    )
    begin = max(n for n, moment in enumerate(heard[:end]) if (moment.side, moment.number) == ("to server", 0))
    steps = [(moment.side, moment.number) for moment in heard[begin : end + 2]]  # to ReadyForQuery
    assert len(steps) > 20
    return steps


Strike = Callable[[Bench, Step], Awaitable[None]]
# (what, how many steps of a full run; None: all). A restart of a process or of Postgres takes a second or more.
MATRIX: dict[str, tuple[tuple[Strike, int | None], ...]] = {
    "local": ((cut, None), (cut_inside, 20), (end_the_backend, None), (kill_the_api, 15)),
    "kms": ((cut, None), (end_the_backend, 30), (kill_the_backend, 4), (kill_the_signer, 20), (kill_the_api, 10)),
}


@pytest.mark.parametrize("signer", MATRIX)
async def test_a_blow_at_each_step_of_a_batch(signer: str, kills: int, seed: int, say: Say) -> None:
    ledger, chance = Ledger(), random.Random(seed)
    async with installed(kms=signer == "kms", say=say) as install:
        api = await asyncio.to_thread(install.add, "api", "serve")
        client = Client(install, ledger, "t0", seed)
        client.keyed = 1.0
        await make_counters(client, 1)
        bench = Bench(install, api, client, ledger)
        steps = await _steps(bench)
        for strike, most in MATRIX[signer]:
            number = round(min(most or len(steps), len(steps)) * min(1.0, kills / 500)) or 1
            chosen = sorted(chance.sample(range(len(steps)), number))
            before = bench.struck
            for place in chosen:
                await strike(bench, steps[place])
            say(f"{signer}: {strike.__name__} at {number} of {len(steps)} steps, {bench.struck - before} blows")
            assert bench.struck - before >= number * 0.8
            found = await asyncio.to_thread(problems, install, ledger)
            assert not found, "\n".join([f"TORTURE_SEED={seed}", *found])
        await client.close()
    say(f"{bench.struck} blows, {ledger.acknowledged} writes acknowledged\n")
