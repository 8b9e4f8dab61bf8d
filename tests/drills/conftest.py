"""An installation of the test's own, whose index can be broken."""

from __future__ import annotations

import contextlib
import dataclasses
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from memory_layer.model import Embedding
from memory_layer.ops.vectors.spaces import Scope, Space, list_spaces
from memory_layer.service.indexing import work_once
from memory_layer.service.installation import Installation
from memory_layer.stores.protocols import VectorStore
from memory_layer.stores.vectors.milvus import open_milvus
from memory_layer.stores.vectors.pinecone import open_pinecone
from tests.support.broken_index import Breaker, BrokenMilvus, BrokenPinecone, BrokenTable
from tests.support.milvus_server import MilvusServer, running_milvus
from tests.support.milvus_server import missing as missing_milvus
from tests.support.pinecone_server import KEY, PineconeServer, running_pinecone
from tests.support.service import create, running_memory

DIMENSION = 8
TENANT, NAMESPACE = "ann", "kernel-memory"
Database = Callable[[str], str]


@dataclasses.dataclass
class DrilledInstallation:
    """``memory`` writes nodes, ``sides`` is what the vectors' verbs work on, ``broken`` breaks its index."""

    memory: Installation
    sides: Installation
    broken: Breaker
    dsn: str  # of a role that sees everything
    folder: Path

    async def space(self) -> Space:
        (space,) = await list_spaces(self.sides, Scope(TENANT, NAMESPACE))
        return space

    async def settle(self) -> None:
        assert self.sides.work is not None
        while await self.sides.work():
            pass

    async def fill(self, count: int, seed: int = 1) -> list[object]:
        """Nodes with vectors of noise, in the index; their ids."""
        noise = np.random.default_rng(seed).standard_normal((count, DIMENSION))
        nodes = [await create(self.memory, TENANT, embedding=embedding(row), content=None) for row in noise]
        await self.settle()
        return nodes


def embedding(row: np.typing.ArrayLike) -> Embedding:
    return Embedding("test-model", DIMENSION, np.asarray(row, "<f4").tobytes())


@pytest.fixture
def pinecone() -> Iterator[PineconeServer]:
    with running_pinecone(DIMENSION, delay=0.002) as server:
        yield server
        assert server.faulty_answers == []


@pytest.fixture(scope="session")
def milvus() -> Iterator[MilvusServer]:
    if (reason := missing_milvus()) is not None:
        pytest.skip(reason)
    with running_milvus() as server:
        yield server


def fresh_environment() -> str:
    """Collections of the test's own in the session's Milvus."""
    return f"drill_{uuid.uuid4().hex[:8]}"


@pytest.fixture(params=["pgvector", "pinecone", pytest.param("milvus", marks=pytest.mark.real)])
async def installation(
    request: pytest.FixtureRequest, database: Database, tmp_path: Path, pinecone: PineconeServer
) -> AsyncIterator[DrilledInstallation]:
    async with contextlib.AsyncExitStack() as stack:
        memory = await stack.enter_async_context(running_memory(database("memory_app"), tmp_path))
        store: VectorStore = memory.vectors
        broken: Breaker = BrokenTable(database("postgres"))
        if request.param == "pinecone":
            store, broken = await open_pinecone(pinecone.url, lambda: KEY), BrokenPinecone(pinecone)
            stack.push_async_callback(store.close)
        elif request.param == "milvus":
            url, environment = request.getfixturevalue("milvus").url, fresh_environment()
            store = await open_milvus(url, lambda: None, environment)
            stack.push_async_callback(store.close)
            broken = stack.enter_context(contextlib.closing(BrokenMilvus(url, environment, DIMENSION)))
        stores = memory.with_parts(vectors=store)
        sides = stores.with_parts(work=partial(work_once, stores))
        yield DrilledInstallation(stores, sides, broken, database("postgres"), tmp_path)
