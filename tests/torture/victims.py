"""What a storm hurts. Each strikes once, and sees to it that what it killed comes back, as an operator's supervisor would."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Awaitable, Callable
from typing import Final

import psycopg

from tests.support.postgres_proxy import Moment, Side, Trap, after_bytes, at_message
from tests.torture.harness import Process, Storm, Victim, happened

LONGEST: Final = 80  # messages of a batch, more or less; most are shorter
SIDES: Final[tuple[Side, Side]] = ("to server", "to client")


async def _sprung(storm: Storm, trap: Trap, what: str) -> str | None:
    """Arm, and wait until somebody steps into it."""
    storm.install.proxy.arm(trap)
    if await happened(trap.struck.is_set, 1.5):
        assert trap.at is not None
        return f"{what} {trap.at.side}, at message {trap.at.number} of a batch ({trap.at.name})"
    storm.install.proxy.disarm()
    return None


async def cut_at_a_byte(storm: Storm) -> str | None:
    side = storm.random.choice(SIDES)
    most = 60_000 if side == "to server" else 6_000
    return await _sprung(storm, Trap(after_bytes(side, storm.random.randrange(most))), "connection cut")


async def cut_at_a_message(storm: Storm) -> str | None:
    side, number = storm.random.choice(SIDES), storm.random.randrange(LONGEST)
    trap = Trap(at_message(side, number, passing=storm.random.choice((0.0, 0.5, 1.0))))
    return await _sprung(storm, trap, "connection cut")


async def kill_a_writer_inside_its_batch(storm: Storm) -> str | None:
    """SIGKILL the very process whose batch comes by the chosen message, be it one of several, be it the worker."""
    killed: list[Process] = []

    def strike(moment: Moment) -> None:
        os.kill(moment.client, signal.SIGKILL)
        killed.extend(p for p in storm.install.processes.values() if p.process and p.process.pid == moment.client)

    done = await _sprung(storm, Trap(_somewhere(storm), strike), "a process killed")
    for process in killed:
        process.kill()  # it is dead: this takes note
        storm.later(process.start)
    return done


async def kill_a_backend_inside_its_batch(storm: Storm) -> str | None:
    """pg_terminate_backend where a batch comes by the chosen message."""

    def strike(moment: Moment) -> None:
        with psycopg.connect(storm.install.cluster.dsn("postgres"), autocommit=True, connect_timeout=5) as connection:
            connection.execute("SELECT pg_terminate_backend(%s, 1000)", [moment.backend])

    return await _sprung(storm, Trap(_somewhere(storm), strike, cut=False), "backend terminated")


def _somewhere(storm: Storm) -> Callable[[Moment], int | None]:
    return at_message(storm.random.choice(SIDES), storm.random.randrange(LONGEST))


def terminate(where: str) -> Callable[[Storm], Awaitable[str | None]]:
    """pg_terminate_backend of one connection that fits."""

    def one(storm: Storm) -> int | None:
        try:
            with psycopg.connect(
                storm.install.cluster.dsn("postgres"), autocommit=True, connect_timeout=5
            ) as connection:
                found = connection.execute(
                    "SELECT pid, pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database()"
                    f" AND pid <> pg_backend_pid() AND backend_type = 'client backend' AND {where} ORDER BY random() LIMIT 1"
                ).fetchone()
        except psycopg.OperationalError:  # Postgres is down: nothing to kill
            return None
        return int(found[0]) if found else None

    async def strike(storm: Storm) -> str | None:
        pid = await asyncio.to_thread(one, storm)
        return None if pid is None else f"backend {pid} terminated"

    return strike


COMMITTERS: Final = "application_name = 'memory-layer committer'"


async def kill_a_backend(storm: Storm) -> str | None:
    """SIGKILL a committer's backend: Postgres throws everybody out and recovers."""

    def one() -> int | None:
        try:
            with psycopg.connect(
                storm.install.cluster.dsn("postgres"), autocommit=True, connect_timeout=5
            ) as connection:
                found = connection.execute(
                    f"SELECT pid FROM pg_stat_activity WHERE {COMMITTERS} ORDER BY (state <> 'idle') DESC LIMIT 1"
                ).fetchone()
        except psycopg.OperationalError:
            return None
        if found is None:
            return None
        os.kill(found[0], signal.SIGKILL)
        return int(found[0])

    pid = await asyncio.to_thread(one)
    return None if pid is None else f"backend {pid} killed"


async def kill_postgres(storm: Storm) -> str | None:
    began = time.monotonic()
    await asyncio.to_thread(storm.install.kill_postgres)
    return f"Postgres killed, and started again after {time.monotonic() - began:.1f} s"


def _living(storm: Storm, prefix: str) -> str | None:
    names = [
        n for n, p in storm.install.processes.items() if n.startswith(prefix) and p.pid and (p.url or not p.serves)
    ]
    return storm.random.choice(names) if names else None


def kill_process(prefix: str) -> Callable[[Storm], Awaitable[str | None]]:
    """SIGKILL a process of the installation, and start it again."""

    async def strike(storm: Storm) -> str | None:
        name = _living(storm, prefix)
        if name is None or not await asyncio.to_thread(storm.install.processes[name].kill):
            return None
        storm.later(storm.install.processes[name].start)
        return f"{name} killed"

    return strike


async def kill_one_of_several(storm: Storm) -> str | None:
    """The process that keeps the others starts it again, after a pause that grows: then another one is taken."""
    children = storm.install.processes["several"].children()
    if not children:
        return None
    pid = storm.random.choice(children)
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return None
    return f"one of several API processes ({pid}) killed"


async def kill_the_signer(storm: Storm) -> str | None:
    signer = storm.install.signer
    if signer is None:
        return None
    await asyncio.to_thread(signer.kill)
    await asyncio.to_thread(signer.start)
    return "signer killed and started again"


async def stop_the_signer_for_a_moment(storm: Storm) -> str | None:
    signer = storm.install.signer
    if signer is None:
        return None
    signer.signal(signal.SIGSTOP)
    try:
        await asyncio.sleep(storm.random.uniform(0.01, 2.5))  # the fault itself: beyond 2 s no signature comes in time
    finally:
        signer.signal(signal.SIGCONT)
    return "signer stopped for a moment"


def signer_fault(name: str, most: int) -> Callable[[Storm], Awaitable[str | None]]:
    async def strike(storm: Storm) -> str | None:
        signer = storm.install.signer
        if signer is None:
            return None
        await asyncio.to_thread(signer.fault, name, storm.random.randint(1, most))
        return f"signer: {name}"

    return strike


# The dear ones (a restart takes a second or two) are rare among the cheap ones.
VICTIMS: Final = (
    Victim("connection cut at a byte", 130, cut_at_a_byte),
    Victim("connection cut at a message", 120, cut_at_a_message),
    Victim("backend of a committer terminated", 50, terminate(COMMITTERS)),
    Victim("backend of a reader terminated", 30, terminate(f"NOT ({COMMITTERS})")),
    Victim("backend killed", 8, kill_a_backend),
    Victim("Postgres killed", 10, kill_postgres),
    Victim("API process killed", 30, kill_process("api")),
    Victim("writer killed inside its batch", 30, kill_a_writer_inside_its_batch),
    Victim("backend terminated inside its batch", 50, kill_a_backend_inside_its_batch),
    Victim("one of several API processes killed", 15, kill_one_of_several),
    Victim("all of several API processes killed", 7, kill_process("several")),
    Victim("worker killed", 10, kill_process("worker")),
    Victim("signer killed", 20, kill_the_signer),
    Victim("signer stopped for a moment", 15, stop_the_signer_for_a_moment, kill=False),
    Victim("signer gives a wrong signature", 10, signer_fault("wrong signature", 2), kill=False),
    Victim("signer gives another key's signature", 5, signer_fault("another key", 1), kill=False),
    Victim("signer hangs", 5, signer_fault("hang", 1), kill=False),
    Victim("signer's answer is torn", 5, signer_fault("torn", 2), kill=False),
)
