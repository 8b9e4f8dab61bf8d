"""Random kills under load: whatever dies and whenever, what was acknowledged is in the log and in the rows, once."""

from __future__ import annotations

import asyncio
import random

import pytest

from tests.torture.checks import problems
from tests.torture.harness import Say, Storm, installed
from tests.torture.victims import VICTIMS
from tests.torture.workload import Client, Ledger, make_counters, watch_checkpoints, work

pytestmark = pytest.mark.torture

CLIENTS, TENANTS = 10, 3
PAUSE = 0.03  # seconds at most that a client thinks: what is left of two cores goes to restarts
ROUND = 125  # kills after which everything is checked


async def test_whatever_is_killed_nothing_acknowledged_is_lost(kills: int, seed: int, say: Say) -> None:
    ledger, chance = Ledger(), random.Random(seed)
    async with installed(kms=True, say=say) as install:
        await asyncio.to_thread(install.add, "api-1", "serve")  # the first start makes the keys' trust root
        others = (("api-2", "serve"), ("several", "serve", "--processes", "2"), ("worker", "worker"))
        await asyncio.gather(*(asyncio.to_thread(install.add, *words) for words in others))
        clients = [Client(install, ledger, f"t{n % TENANTS}", chance.randrange(2**32)) for n in range(CLIENTS)]
        for client in clients[:TENANTS]:
            await make_counters(client)
        storm = Storm(install, chance, say, lambda: ledger.acknowledged)
        while storm.kills < kills:
            calm = asyncio.Event()
            async with asyncio.TaskGroup() as load:
                for client in clients:
                    load.create_task(work(client, calm, PAUSE))
                load.create_task(watch_checkpoints(clients[0], calm))
                await storm.rage(VICTIMS, min(ROUND, kills - storm.kills))
                calm.set()
            found = await asyncio.to_thread(problems, install, ledger)
            say(f"checked after {storm.kills} kills: {len(ledger.writes)} requests, {len(found)} problems")
            assert not found, "\n".join([f"TORTURE_SEED={seed}", *found])
        for client in clients:
            await client.close()
    fates = {
        fate: sum(write.fate == fate for write in ledger.writes) for fate in ("acknowledged", "refused", "unknown")
    }
    say(f"{storm.kills} kills; writes: {fates}; checkpoints seen: {len(ledger.checkpoints)}")
    say(f"the longest silence: {storm.silence[0]:.1f} s, after: {storm.silence[1]}")
    for name, times in storm.struck.most_common():
        say(f"{times:5} {name}")
    say("")
