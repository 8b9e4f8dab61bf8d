"""Real worker processes, stopped at the worst moment: late writers, SIGTERM, and two workers that do not share a service."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest

from memory_layer.service.actions.outbox import EmbeddingSpace
from memory_layer.service.installation import Installation
from tests.support import stand_in
from tests.support.product import clean_environment
from tests.support.service import create, delete, patch, rows, running_memory, unit, verify

Database = Callable[[str], str]
Root = Callable[..., list[tuple[Any, ...]]]
SPACE = EmbeddingSpace("pgvector", "test-model", 2)


class Endpoint(stand_in.StandIn):
    """An OpenAI-compatible endpoint. A request with the word "slow" in it waits until it is let go."""

    def __init__(self) -> None:
        super().__init__(Handler, 0)
        self.asked: list[str] = []
        self.go_on = threading.Event()


class Handler(stand_in.Handler):
    server: Endpoint

    def handle_call(self, method: str) -> None:
        texts = json.loads(self.body())["input"]
        self.server.asked += texts
        if any("slow" in text for text in texts):
            self.server.go_on.wait(60)
        vectors = [[0.0, 1.0] if "new" in text else [1.0, 0.0] for text in texts]
        data = [{"object": "embedding", "index": n, "embedding": vector} for n, vector in enumerate(vectors)]
        with contextlib.suppress(OSError):  # whoever asked may be gone
            self.answer(200, {"object": "list", "data": data, "model": "test-model", "usage": {"total_tokens": 1}})


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    with stand_in.running(Endpoint()) as server:
        yield server
        server.go_on.set()


@pytest.fixture
async def memory(database: Database, tmp_path: Path) -> AsyncIterator[Installation]:
    async with running_memory(database("memory_app"), tmp_path) as opened:
        yield opened
    assert verify(database("postgres"), tmp_path).findings == ()


@pytest.fixture
def root(database: Database) -> Root:
    return lambda query, *params: rows(database("postgres"), query, params)


Start = Callable[..., subprocess.Popen[bytes]]


@pytest.fixture
def worker(database: Database, tmp_path: Path, endpoint: Endpoint) -> Iterator[Start]:
    """Starts worker processes; they end with the test."""
    started: list[subprocess.Popen[bytes]] = []

    def start(*words: str, **environment: str) -> subprocess.Popen[bytes]:
        settings = {
            "DATABASE_URL": database("memory_app"),
            "EMBEDDINGS_PROVIDER": "openai",
            "EMBEDDINGS_ENDPOINT": f"{endpoint.url}/v1",
            "EMBEDDINGS_MODEL": "test-model",
            "EMBEDDINGS_DIMENSIONS": "2",
        }
        with (tmp_path / f"worker-{len(started)}.log").open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "memory_layer.cli", "worker", "--data", str(tmp_path), *words],
                env=clean_environment() | settings | environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        started.append(process)
        return process

    yield start
    for process in started:
        if process.poll() is None:
            process.kill()
            process.send_signal(signal.SIGCONT)
        process.wait()


def measured(text: str) -> dict[str, float]:
    """Series to value, of Prometheus's text format."""
    lines = [line.rpartition(" ") for line in text.splitlines() if not line.startswith("#")]
    return {name: float(value) for name, _, value in lines}


async def until(happened: Callable[[], bool | Awaitable[bool]], within: float = 60) -> None:
    deadline = time.monotonic() + within
    while True:
        seen = happened()
        if await seen if isinstance(seen, Awaitable) else seen:
            return
        assert time.monotonic() < deadline, "it did not come true"
        await asyncio.sleep(0.02)


async def held(memory: Installation) -> dict[uuid.UUID, tuple[int, int]]:
    """Node to (version, which of the two numbers of its vector is the larger), of all that the index holds."""
    found = await memory.vectors.search("ann", "kernel-memory", np.array([1, 1], np.float32), 500, None)
    fetched = await memory.vectors.fetch("ann", "kernel-memory", [hit.node_id for hit in found.hits])
    return {r.node_id: (r.version, int(np.argmax(r.vector))) for r in fetched if r.vector is not None}


def statuses(root: Root) -> dict[uuid.UUID, tuple[str, int, int]]:
    return {
        node: (status, version, attempts)
        for node, status, version, attempts in root(
            "SELECT memory_node_id, status, version, attempts FROM memory_vectors"
        )
    }


def asleep(process: subprocess.Popen[bytes]) -> bool:
    """Whether SIGSTOP has taken hold."""
    return Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"


@pytest.mark.slow
async def test_a_worker_that_slept_through_updates_and_deletes_changes_nothing(
    memory: Installation, endpoint: Endpoint, worker: Start, root: Root
) -> None:
    """SIGSTOP between claim and upsert, the world goes on without it, SIGCONT: its late writes must find that they are late."""
    updated = await create(memory, content="slow old text", space=SPACE)
    twice = await create(memory, content="slow old text, twice", space=SPACE)
    deleted = await create(memory, content="slow old text to delete", space=SPACE)
    untouched = await create(memory, content="slow text that stays", space=SPACE)
    sleeper = worker()
    await until(lambda: len(endpoint.asked) == 4)
    assert {status for status, _, _ in statuses(root).values()} == {"in_flight"}
    os.kill(sleeper.pid, signal.SIGSTOP)
    await until(lambda: asleep(sleeper))

    await patch(memory, updated, content="new text", space=SPACE)
    await delete(memory, deleted)
    other = worker()
    await until(lambda: statuses(root)[updated][:2] == ("succeeded", 2))
    await until(lambda: statuses(root)[deleted][:2] == ("deleted", 2))
    await patch(memory, twice, content="another slow text", space=SPACE)
    await until(lambda: "another slow text" in endpoint.asked)
    await patch(memory, twice, content="new after all", space=SPACE)
    await until(lambda: statuses(root)[twice][:2] == ("succeeded", 3))
    before = await held(memory)
    assert before == {updated: (2, 1), twice: (3, 1)}

    # Both late answers arrive: the sleeper's for version 1 of all four, the other one's for version 2 of one.
    endpoint.go_on.set()
    os.kill(sleeper.pid, signal.SIGCONT)
    # What was not touched is still the sleeper's, or the lease ran out meanwhile and the other one has it.
    await until(lambda: statuses(root)[untouched][0] == "succeeded", 60)
    # Each late round has settled, or found that it may not: both processes end only when their rounds have.
    for process in (sleeper, other):
        process.send_signal(signal.SIGTERM)
        assert await asyncio.to_thread(process.wait, 30) == 0
    assert await held(memory) == before | {untouched: (1, 0)}
    assert {node: facts[0] for node, facts in statuses(root).items()} == {
        updated: "succeeded",
        twice: "succeeded",
        deleted: "deleted",
        untouched: "succeeded",
    }
    assert root("SELECT count(*) FROM memory_terms WHERE node_id = %s", deleted) == [(0,)]
    words = root("SELECT terms::text FROM memory_terms WHERE node_id = %s", updated)
    assert words == [("'new':1 'text':2",)]
    assert root("SELECT version FROM memory_terms WHERE node_id = %s", twice) == [(3,)]


@pytest.mark.slow
async def test_sigterm_finishes_what_is_in_hand(
    memory: Installation, endpoint: Endpoint, worker: Start, root: Root
) -> None:
    node = await create(memory, content="slow text", space=SPACE)
    process = worker()
    await until(lambda: endpoint.asked == ["slow text"])
    process.send_signal(signal.SIGTERM)
    late = await create(
        memory, embedding=unit(0, 1)
    )  # after the signal: left to others, or to the loop that was asking just then
    endpoint.go_on.set()
    assert await asyncio.to_thread(process.wait, 30) == 0
    assert statuses(root)[node] == ("succeeded", 1, 1)
    assert statuses(root)[late][0] in ("pending", "succeeded")
    assert root("SELECT count(*) FROM memory_vectors WHERE lease_id IS NOT NULL") == [(0,)]


@pytest.mark.slow
async def test_sigterm_returns_what_takes_too_long(
    memory: Installation, endpoint: Endpoint, worker: Start, root: Root
) -> None:
    node = await create(memory, content="slow text", space=SPACE)
    process = worker()
    await until(lambda: endpoint.asked == ["slow text"])
    started = time.monotonic()
    process.send_signal(signal.SIGTERM)
    assert await asyncio.to_thread(process.wait, 40) == 0
    assert 9 < time.monotonic() - started < 30  # STOP_SECONDS is 10
    assert statuses(root)[node] == ("pending", 1, 0)
    assert root("SELECT count(*) FROM memory_vectors WHERE lease_id IS NOT NULL OR next_attempt_at > now()") == [(0,)]
    endpoint.go_on.set()
    worker()
    await until(lambda: statuses(root)[node][0] == "succeeded")  # at once, not when a lease has run out


@pytest.mark.slow
async def test_a_worker_without_the_service_leaves_its_rows_to_one_that_has_it(
    memory: Installation, worker: Start, root: Root
) -> None:
    cut_off = worker(EMBEDDINGS_ENDPOINT="http://127.0.0.1:9/v1")
    node = await create(memory, content="text", space=SPACE)
    await until(lambda: root("SELECT service FROM worker_breakers") == [("embedder",)])
    assert statuses(root)[node] == ("pending", 1, 0)
    worker()
    await until(lambda: statuses(root)[node] == ("succeeded", 1, 1))
    assert root("SELECT service FROM worker_breakers") == [("embedder",)]  # of the one that is still cut off
    cut_off.send_signal(signal.SIGTERM)
    assert await asyncio.to_thread(cut_off.wait, 30) == 0
    assert root("SELECT count(*) FROM worker_breakers") == [(0,)]


@pytest.mark.slow
async def test_a_worker_tells_of_its_work(
    memory: Installation, endpoint: Endpoint, worker: Start, root: Root, tmp_path: Path
) -> None:
    given = [await create(memory, embedding=unit(1, n)) for n in range(3)]
    dead = await create(memory, embedding=unit(1, 9))
    root(
        "UPDATE memory_vectors SET status = 'dead', error = 'down', error_class = 'retryable', updated_at = now() - interval '1 hour' WHERE memory_node_id = %s",
        dead,
    )
    slow = await create(memory, content="slow text", space=SPACE)
    process = worker("--metrics-port", "0")
    log = tmp_path / "worker-0.log"
    await until(lambda: "/metrics" in log.read_text())
    url = next(line for line in log.read_text().splitlines() if line.startswith("metrics on ")).removeprefix(
        "metrics on "
    )
    await until(lambda: endpoint.asked == ["slow text"])
    await patch(memory, slow, content="new text", space=SPACE)  # what comes back is late
    await until(lambda: all(statuses(root)[node][0] == "succeeded" for node in given))

    def seen() -> dict[str, float]:
        return measured(httpx2.get(url).text)

    await until(lambda: seen()['memory_index_queue_rows{status="dead"}'] == 1)
    now = seen()
    assert now['memory_index_queue_oldest_seconds{status="dead"}'] >= 3600
    assert now['memory_breaker_state{service="vectors"}'] == now['memory_breaker_state{service="embedder"}'] == 0
    assert now["memory_index_late_results_total"] == 0
    endpoint.go_on.set()
    await until(lambda: statuses(root)[slow][:2] == ("succeeded", 2))
    await until(lambda: seen()["memory_index_late_results_total"] == 1)
    now = seen()
    assert now['memory_index_rows_total{outcome="succeeded"}'] == now["memory_index_seconds_count"] == 4
    assert 0 < now["memory_index_seconds_sum"] < 4 * 60
    await until(lambda: seen()["memory_index_pending"] == 0)  # once it reports again
    process.send_signal(signal.SIGTERM)
    assert await asyncio.to_thread(process.wait, 30) == 0
