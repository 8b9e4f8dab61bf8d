"""Two processes and eight clients for a minute: one log without a fork, no lost update, and a fair share for each process."""

from __future__ import annotations

import asyncio
import os
import re
import time
from collections.abc import Callable
from pathlib import Path

import httpx2
import pytest
from prometheus_client.multiprocess import MultiProcessCollector

from tests.torture.checks import problems
from tests.torture.harness import Installation, Process, Say, installed
from tests.torture.workload import Client, Ledger, count, create, make_counters

pytestmark = pytest.mark.torture

CLIENTS = 8
OPERATIONS = 5  # of each kind on one connection: which process accepts it is for the system to say, and must not decide the share
FAIR = 0.3


async def _write(client: Client, until: float) -> None:
    """Creates and changes of shared nodes in turn, each as soon as the last one was answered."""
    while time.monotonic() < until:
        for _ in range(OPERATIONS):
            await create(client)
            await count(client)
        await client.connect_anew()


async def _minute(
    install: Installation, ledger: Ledger, urls: list[str], seconds: float, committed: Callable[[], dict[str, float]]
) -> dict[str, float]:
    """Each process's part of what eight clients, shared out among the URLs, commit meanwhile."""
    clients = [Client(install, ledger, "t0", n) for n in range(CLIENTS)]
    for n, client in enumerate(clients):
        client.only = urls[n % len(urls)]
    await make_counters(clients[0], 2)
    before = committed()
    await asyncio.gather(*(_write(client, time.monotonic() + seconds) for client in clients))
    after = committed()
    for client in clients:
        await client.close()
    gained = {name: after[name] - before.get(name, 0.0) for name in after}
    return {name: part / sum(gained.values()) for name, part in gained.items()}


def _add(install: Installation, name: str, *words: str) -> Process:
    """Straight at Postgres: nothing is cut here."""
    return install.add(name, *words, DATABASE_URL=install.cluster.dsn("memory_app"))


@pytest.fixture
def seconds(kills: int) -> float:
    """A minute in a full run."""
    return max(10.0, 60.0 * min(1.0, kills / 500))


async def test_two_servers_share_one_log(seconds: float, say: Say) -> None:
    ledger = Ledger()
    async with installed(kms=False, say=say) as install:
        servers = [await asyncio.to_thread(_add, install, f"api-{n}", "serve") for n in range(2)]
        await asyncio.to_thread(_add, install, "worker", "worker")

        def committed() -> dict[str, float]:
            found = {}
            for server in servers:
                text = httpx2.get(f"{server.url}/metrics").text
                match = re.search(r"^memory_commit_batch_size_sum (\S+)$", text, re.MULTILINE)
                assert match is not None
                found[server.name] = float(match[1])
            return found

        shares = await _minute(install, ledger, [server.url for server in servers], seconds, committed)
        found = await asyncio.to_thread(problems, install, ledger)
    _tell(say, "two servers", shares, ledger, seconds)
    assert not found, "\n".join(found)
    assert len(shares) == 2
    assert min(shares.values()) >= FAIR, shares


async def test_two_processes_at_one_port_share_one_log(seconds: float, say: Say) -> None:
    ledger = Ledger()
    async with installed(kms=False, say=say) as install:
        several = await asyncio.to_thread(_add, install, "several", "serve", "--processes", "2")
        await asyncio.to_thread(_add, install, "worker", "worker")
        shares = await _minute(install, ledger, [several.url], seconds, lambda: _committed_by_pid(several))
        found = await asyncio.to_thread(problems, install, ledger)
    _tell(say, "two processes at one port", shares, ledger, seconds)
    assert not found, "\n".join(found)
    assert len(shares) == 2
    assert min(shares.values()) >= FAIR, shares


def _committed_by_pid(several: Process) -> dict[str, float]:
    """/metrics of several processes tells their sum; what each of them did stands in its own files."""
    found = {}
    for pid in several.children():
        environment = dict(
            line.split("=", 1) for line in Path(f"/proc/{pid}/environ").read_bytes().decode().split("\0") if "=" in line
        )
        files = Path(environment["PROMETHEUS_MULTIPROC_DIR"]).glob(f"*_{pid}.db")
        for metric in MultiProcessCollector.merge([os.fspath(file) for file in files]):
            for sample in metric.samples:
                if sample.name == "memory_commit_batch_size_sum":
                    found[str(pid)] = sample.value
    return found


def _tell(say: Say, what: str, shares: dict[str, float], ledger: Ledger, seconds: float) -> None:
    parts = ", ".join(f"{part:.0%}" for part in shares.values())
    say(
        f"{what}: {ledger.acknowledged} of {len(ledger.writes)} writes acknowledged in {seconds:.0f} s, shares {parts}\n"
    )
