"""API, worker, archiver and Postgres are killed at random under uploads, registrations, deletes, holds and archive runs: afterwards
every acknowledged byte is there, no other is, and the archive is one chain without a gap."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from memory_layer.audit.verdict import OK, UNANCHORED
from memory_layer.stores.objects import open_objects
from tests.support.product import run_ctl
from tests.support.s3_server import ceph_missing, running_ceph, running_moto
from tests.torture import byte_stores, checks
from tests.torture.byte_stores import Bytes, Operations
from tests.torture.harness import READY_WITHIN, Installation, Say, Storm, Victim, installed
from tests.torture.victims import (
    COMMITTERS,
    kill_a_writer_inside_its_batch,
    kill_postgres,
    kill_process,
    terminate,
)
from tests.torture.workload import Client, Ledger, create, delete, hold_and_release, make_counters, work

pytestmark = pytest.mark.torture

CLIENTS, TENANTS = 6, 3
PAUSE = 0.05  # seconds at most that a client thinks
LEAST = 12  # kills, for which a slow machine is given longer


@pytest.fixture
def seconds() -> float:
    """TORTURE_SECONDS: how long the storm lasts; 40 seconds unless set."""
    return float(os.environ.get("TORTURE_SECONDS", "40"))


@pytest.fixture(params=["directory", "moto", "ceph"])
def where(request: pytest.FixtureRequest) -> Iterator[Bytes]:
    if request.param == "directory":
        yield Bytes(None)
        return
    if request.param == "ceph" and (reason := ceph_missing()) is not None:
        pytest.skip(reason)
    with running_moto() if request.param == "moto" else running_ceph() as server:
        yield Bytes(server, server.make_bucket(), server.make_bucket(), large=request.param == "ceph")


@dataclass(eq=False)
class Archiver:
    """A process that archives all the time, started again whenever it ends."""

    install: Installation
    more: Mapping[str, str]
    process: subprocess.Popen[str] | None = None
    log: list[Path] = field(default_factory=list)

    def start(self) -> None:
        path = self.install.data.parent / f"archiver-{len(self.log)}.log"
        self.log.append(path)
        with path.open("w") as out:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tests.torture.archiver", str(self.install.data)],
                env=self.install.environment | self.more, stdin=subprocess.PIPE, stdout=out, stderr=out, text=True,
            )  # fmt: skip

    async def supervise(self, calm: asyncio.Event) -> None:
        while not calm.is_set():
            if self.process is None or self.process.poll() is not None:
                await asyncio.to_thread(self.start)
            await asyncio.sleep(0.1)
        assert self.process is not None
        assert self.process.stdin is not None
        self.process.stdin.close()
        await asyncio.to_thread(self.process.wait, READY_WITHIN)

    async def kill(self, storm: Storm) -> str | None:
        """At a moment of its own, for it goes on after a write as before."""
        await asyncio.sleep(storm.random.uniform(0, 0.5))
        if self.process is None or self.process.poll() is not None:
            return None
        self.process.kill()
        await asyncio.to_thread(self.process.wait)
        return f"archiver killed, the {len(self.log)}th"

    @property
    def runs(self) -> int:
        """That came to their end."""
        return sum(path.read_text().count("archived\n") for path in self.log)


async def test_whatever_is_killed_no_byte_is_lost_and_none_is_left_over(
    where: Bytes, seconds: float, seed: int, say: Say
) -> None:
    ledger, chance = Ledger(), random.Random(seed)
    async with installed(kms=False, say=say) as install, contextlib.AsyncExitStack() as stack:
        for name, *words in (("api-1", "serve"), ("api-2", "serve"), ("worker", "worker")):
            await asyncio.to_thread(install.add, name, *words, **where.environment)
        outside = open_objects(where.settings, install.data)
        stack.push_async_callback(outside.close)
        does = Operations(where, outside)
        table = (
            (create, 15),
            (does.upload, 40),
            (does.register, 10),
            (delete, 6),
            (hold_and_release, 8),
            (does.hold, 3),
        )
        clients = [Client(install, ledger, f"t{n % TENANTS}", chance.randrange(2**32)) for n in range(CLIENTS)]
        for client in clients[:TENANTS]:
            await make_counters(client)
        archiver = Archiver(install, where.environment)
        storm = Storm(install, chance, say, lambda: ledger.acknowledged)
        victims = (
            Victim("API process killed", 45, kill_process("api")),
            Victim("worker killed", 15, kill_process("worker")),
            Victim("archiver killed", 45, archiver.kill),
            Victim("writer killed inside its batch", 20, kill_a_writer_inside_its_batch),
            Victim("backend of a committer terminated", 10, terminate(COMMITTERS)),
            Victim("Postgres killed", 4, kill_postgres),
        )
        calm = asyncio.Event()
        async with asyncio.TaskGroup() as load:
            load.create_task(archiver.supervise(calm))
            for client in clients:
                load.create_task(work(client, calm, PAUSE, table))
            end = time.monotonic() + seconds
            while time.monotonic() < (end if storm.kills >= LEAST else end + 2 * seconds):
                await storm.rage(victims, 1)
            calm.set()
        for client in clients:
            await client.close()
        found = await _judge(install, where, ledger)
        stored = [w for w in ledger.writes if w.kind == "memory.artifact.created" and w.fate == "acknowledged"]
        say(
            f"{storm.kills} kills, {len(ledger.writes)} requests, {len(stored)} artifacts acknowledged, {archiver.runs} whole archive "
            f"runs; {len(found)} problems"
        )
        assert not found, "\n".join([f"TORTURE_SEED={seed}", *found])
        assert stored, "no upload was acknowledged: nothing was tried"
        assert archiver.runs, "no archive run came to its end: nothing was tried"
    for name, times in storm.struck.most_common():
        say(f"{times:5} {name}")
    say("")


async def _judge(install: Installation, where: Bytes, ledger: Ledger) -> list[str]:
    """What is wrong after the storm, once what was owed is done."""
    for process in install.processes.values():  # each sweeps as it starts what its forerunner had half received
        await asyncio.to_thread(process.stop)
    for process in install.processes.values():
        await asyncio.to_thread(process.start)
    found = [f"{path} was half received, and is still there" for path in byte_stores.half_received(install.data)]
    found += await byte_stores.problems(install, where, ledger)
    found += await asyncio.to_thread(checks.problems, install, ledger)
    environment = install.environment | where.environment
    folder = ("--data", str(install.data))
    done = await asyncio.to_thread(run_ctl, "audit", "archive", *folder, env=environment)
    if done.returncode != 0:
        found.append(f"audit archive: {done.returncode} {done.stdout} {done.stderr}")
    found += await asyncio.to_thread(lambda: list(byte_stores.archived(install)))
    judged = await asyncio.to_thread(run_ctl, "audit", "verify", "--from-store", *folder, env=environment)
    if judged.returncode not in (OK, UNANCHORED):
        found.append(f"audit verify --from-store: {judged.returncode} {judged.stdout} {judged.stderr}")
    return found


async def test_what_is_wrong_with_bytes_is_found(say: Say) -> None:
    """The judge itself: it finds nothing in a calm installation, and each fault that is made."""
    ledger, where = Ledger(), Bytes(None)
    async with installed(kms=False, say=say) as install, contextlib.AsyncExitStack() as stack:
        for name in ("serve", "worker"):
            await asyncio.to_thread(install.add, name, name)
        outside = open_objects(where.settings, install.data)
        stack.push_async_callback(outside.close)
        does, client = Operations(where, outside), Client(install, ledger, "t0", 1)
        stack.push_async_callback(client.close)
        await make_counters(client)
        for operation in (create, does.upload, does.register, does.hold):
            for _ in range(10):
                await operation(client)
        assert await byte_stores.problems(install, where, ledger) == []
        rows = {row["name"]: row for row in byte_stores.rows(install)}
        lost, lifted, other = list(rows.values())[:3]
        data = (install.data / "objects").resolve()
        (sought,) = [path for path in data.rglob("*") if path.name == lost["key"].rpartition("/")[2]]
        content = sought.read_bytes()
        sought.chmod(0o600)
        sought.write_bytes(content[::-1] + b"?")
        await outside.set_hold(lifted["key"], lifted["version"], not lifted["held"])
        where.sent[other["name"]] = "0" * 64
        found = await byte_stores.problems(install, where, ledger)
        for problem in (
            f"{lost['id']} does not come back",
            f"{lifted['key']}: the hold",
            f"{other['id']} has other bytes",
        ):
            assert [line for line in found if problem in line], (problem, found)
        assert list(byte_stores.archived(install)) == ["nothing was archived"]
