"""Stores that do not order writes: a worker that is stopped before its write, overtaken, let go and killed over it leaves nothing stale.

The worst moment of all: its write is the last one to reach the store, and it does not live to see that.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from memory_layer.service.installation import Installation
from tests.integration.test_worker_process import asleep, until
from tests.support import milvus_server
from tests.support.milvus_lite import running_milvus_lite
from tests.support.pinecone_server import KEY, PineconeServer, running_pinecone
from tests.support.product import clean_environment
from tests.support.service import create, delete, patch, rows, running_memory, unit, verify

Database = Callable[[str], str]
Root = Callable[..., list[tuple[Any, ...]]]


class Place(NamedTuple):
    provider: str
    endpoint: str
    key: str | None
    emulator: PineconeServer | None = None


@pytest.fixture(
    params=["pinecone", *(pytest.param(name, marks=pytest.mark.real) for name in ("milvus-lite", "milvus"))]
)
def place(request: pytest.FixtureRequest) -> Iterator[Place]:
    """A store of this test alone."""
    if request.param == "pinecone":
        with running_pinecone(2, delay=0.005) as server:
            yield Place("pinecone", server.url, KEY, server)
        return
    lite = request.param == "milvus-lite"
    if (reason := milvus_server.missing("milvus_lite" if lite else "milvus")) is not None:
        pytest.skip(reason)
    running: Any = running_milvus_lite() if lite else milvus_server.running_milvus()
    with running as server:
        yield Place("milvus", server.url, None)


@pytest.fixture
async def memory(database: Database, tmp_path: Path, place: Place) -> AsyncIterator[Installation]:
    settings = {
        "vector_db_provider": place.provider,
        "vector_db_endpoint": place.endpoint,
        "vector_db_api_key": place.key,
    }
    async with running_memory(database("memory_app"), tmp_path, **settings) as opened:
        yield opened
    assert verify(database("postgres"), tmp_path).findings == ()


@pytest.fixture
def root(database: Database) -> Root:
    return lambda query, *params: rows(database("postgres"), query, params)


@contextlib.contextmanager
def worker(database: Database, folder: Path, place: Place, module: str) -> Iterator[subprocess.Popen[bytes]]:
    """A worker process; it is ended with its rounds done, unless it has ended by itself."""
    settings = {
        "DATABASE_URL": database("memory_app"),
        "EMBEDDINGS_PROVIDER": "none",
        "VECTOR_DB_PROVIDER": place.provider,
        "VECTOR_DB_ENDPOINT": place.endpoint,
    } | ({} if place.key is None else {"VECTOR_DB_API_KEY": place.key})
    with (folder / "workers.log").open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", module, "worker", "--data", str(folder)],
            env=clean_environment() | settings,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        yield process
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            assert process.wait(30) == 0, (folder / "workers.log").read_text()
    finally:
        if process.poll() is None:
            process.kill()
            process.send_signal(signal.SIGCONT)
        process.wait()


async def held(memory: Installation, nodes: list[uuid.UUID]) -> dict[uuid.UUID, tuple[int, int]]:
    """Node to (version, which of the two numbers of its vector is the larger)."""
    found = await memory.vectors.fetch("ann", "kernel-memory", nodes)
    return {r.node_id: (r.version, int(np.argmax(r.vector))) for r in found if r.vector is not None}


def settled(root: Root, facts: dict[uuid.UUID, tuple[str, int]]) -> bool:
    found = root("SELECT memory_node_id, status, version FROM memory_vectors WHERE lease_id IS NULL")
    return {node: (status, version) for node, status, version in found} == facts


@pytest.mark.slow
async def test_what_a_killed_late_writer_overwrote_comes_back(
    memory: Installation, database: Database, tmp_path: Path, place: Place, root: Root
) -> None:
    updated = await create(memory, embedding=unit(1, 0))
    deleted = await create(memory, embedding=unit(1, 0))
    both = [updated, deleted]
    done = {updated: ("succeeded", 2), deleted: ("deleted", 2)}
    with worker(database, tmp_path, place, "tests.support.stalling_worker") as sleeper:
        await until(lambda: asleep(sleeper))
        assert {status for (status,) in root("SELECT status FROM memory_vectors")} == {"in_flight"}
        await patch(memory, updated, embedding=unit(0, 1))
        await delete(memory, deleted)
        with worker(database, tmp_path, place, "memory_layer.cli"):
            await until(lambda: settled(root, done))
            # The others see that the sleeper lives, so its round stays written down, however often they look.
            await until(lambda: len(root("SELECT 1 FROM index_rounds WHERE gone_at IS NULL")) == 1)
        assert await held(memory, both) == {updated: (2, 1)}
        os.kill(sleeper.pid, signal.SIGCONT)
        assert await asyncio.to_thread(sleeper.wait, 60) == -signal.SIGKILL
    # The old state is over the new one, every row says that it is done, and whoever wrote it is dead.
    await until_async(memory, both, {updated: (1, 0), deleted: (1, 0)})
    assert settled(root, done)

    with worker(database, tmp_path, place, "memory_layer.cli"):
        await until_async(memory, both, {updated: (2, 1)})
        await until(lambda: settled(root, done))
    assert root("SELECT count(*) FROM index_rounds WHERE gone_at IS NULL") == [(0,)]


async def until_async(memory: Installation, nodes: list[uuid.UUID], wanted: dict[uuid.UUID, tuple[int, int]]) -> None:
    async def seen() -> bool:
        return await held(memory, nodes) == wanted

    await until(seen, 60)
