"""Warm-up: which namespaces are loaded, in which order, and that nothing waits for a store that is down."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import httpx2
import pytest
from starlette.applications import Starlette

from memory_layer.api import health
from memory_layer.errors import VectorStoreUnavailable
from memory_layer.service import warming
from memory_layer.service.indexing import work_once
from memory_layer.service.installation import Installation
from memory_layer.stores.protocols import VectorStore
from tests.support.service import create, running_memory, unit

Database = Callable[[str], str]


@pytest.fixture
async def memory(database: Database, tmp_path: Path) -> AsyncIterator[Installation]:
    async with running_memory(database("memory_app"), tmp_path) as opened:
        yield opened


class Watched:
    """The real store; what is warmed is noted, and waits or fails where the test says so."""

    def __init__(self, store: VectorStore) -> None:
        self.store = store
        self.warmed: list[tuple[str, str]] = []
        self.hang = False
        self.down_at: int | None = None

    def __getattr__(self, name: str) -> object:
        return getattr(self.store, name)

    async def ping(self) -> None:
        if self.down_at == 0:
            raise VectorStoreUnavailable("down")
        await self.store.ping()

    async def warm(self, tenant: str, namespace: str, /) -> None:
        if self.hang:
            await asyncio.Event().wait()
        if self.down_at is not None and len(self.warmed) >= self.down_at:
            raise VectorStoreUnavailable("down")
        await self.store.warm(tenant, namespace)
        self.warmed.append((tenant, namespace))


@pytest.fixture
def watched(memory: Installation) -> Watched:
    return Watched(memory.vectors)


async def fill(memory: Installation) -> None:
    for tenant, namespace, rows in (("ann", "small", 1), ("bob", "large", 9), ("ann", "middle", 4)):
        for n in range(rows):
            await create(memory, tenant, namespace=namespace, embedding=unit(1, n))
    while await work_once(memory):
        pass


async def test_the_largest_come_first_and_no_more_than_the_bound(
    memory: Installation, watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    await fill(memory)
    stores = memory.with_parts(vectors=watched)
    assert await warming.warm(stores) == 3
    assert watched.warmed == [("bob", "large"), ("ann", "middle"), ("ann", "small")]
    monkeypatch.setattr(warming, "SPACES", 2)
    assert await warming.warm(stores) == 2


@pytest.mark.parametrize("down_at", [0, 1])
async def test_a_store_that_is_down_ends_it(memory: Installation, watched: Watched, down_at: int) -> None:
    await fill(memory)
    watched.down_at = down_at
    assert await warming.warm(memory.with_parts(vectors=watched)) == down_at


@contextlib.asynccontextmanager
async def door(memory: Installation) -> AsyncIterator[httpx2.AsyncClient]:
    app = Starlette(routes=health.routes())
    app.state.installation = memory
    async with httpx2.AsyncClient(transport=httpx2.ASGITransport(app=app), base_url="http://door") as http:
        yield http


async def test_readiness_waits_for_it_and_not_for_ever(
    memory: Installation, watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    await fill(memory)
    monkeypatch.setattr(warming, "SECONDS", 1.0)
    watched.hang = True
    stores = memory.with_parts(vectors=watched)
    loading = asyncio.create_task(warming.warm(stores))
    async with door(memory.with_parts(warming=loading)) as http:
        early = await http.get("/readyz")
        assert early.status_code == 503
        assert early.json()["checks"]["warmUp"] == "loading"
        assert (await http.get("/livez")).status_code == 200
        assert await asyncio.wait_for(loading, 60) == 0
        ready = await http.get("/readyz")
        assert (ready.status_code, ready.json()["status"]) == (200, "ready")


async def test_it_is_over_after_a_start(memory: Installation) -> None:
    assert memory.warming is not None
    assert await asyncio.wait_for(memory.warming, 60) == 0  # an empty database has nothing to load
    async with door(memory) as http:
        assert (await http.get("/readyz")).json() == {
            "status": "ready",
            "checks": {"migrations": "ok", "signer": "ok", "log": "ok"},
        }
