"""The stores that the contract suites hold to the contract, opened one way."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence

import pytest

from memory_layer.ops import embedded
from memory_layer.stores.protocols import VectorEntry, VectorStore
from memory_layer.stores.vectors.milvus import open_milvus
from memory_layer.stores.vectors.pgvector import PgVector, open_pgvector
from memory_layer.stores.vectors.pgvector_wire import open_wire
from memory_layer.stores.vectors.pinecone import open_pinecone
from tests.support import milvus_server
from tests.support.databases import new_database
from tests.support.exact_vectors import ExactVectors
from tests.support.milvus_lite import running_milvus_lite
from tests.support.pinecone_server import KEY, PineconeServer, running_pinecone

REAL_STORES = [pytest.param(name, marks=pytest.mark.real) for name in ("milvus", "milvus-lite")]
VECTOR_STORES = ["exact", "pgvector", "pgvector-own", "pinecone", *REAL_STORES]


class AtOnce(PgVector):
    """pgvector with a table and an approximate index for each namespace, however small."""

    async def upsert(self, entries: Sequence[VectorEntry]) -> None:
        await super().upsert(entries)
        for tenant, namespace in sorted({(e.tenant, e.namespace) for e in entries}):
            await self.optimise(tenant, namespace)


@pytest.fixture(scope="module")
def vector_database(cluster: embedded.Cluster) -> Iterator[Callable[[str], str]]:
    """One database with the pgvector table for the whole suite; tests keep apart by tenants."""
    with new_database(cluster) as made:
        yield made


@pytest.fixture(scope="module")
def pinecones() -> Iterator[Callable[[int], PineconeServer]]:
    """One emulated index for each dimension; a write shows 5 ms after it was taken."""
    with contextlib.ExitStack() as stack:
        running: dict[int, PineconeServer] = {}

        def index(dimension: int) -> PineconeServer:
            if dimension not in running:
                running[dimension] = stack.enter_context(running_pinecone(dimension, delay=0.005))
            return running[dimension]

        yield index
        assert [fault for server in running.values() for fault in server.faulty_answers] == []


@pytest.fixture(scope="session")
def milvus() -> Iterator[Callable[[str], str]]:
    """The URL of a real Milvus, or of Milvus Lite; one server of each for the whole test process."""
    with contextlib.ExitStack() as stack:
        running: dict[str, str] = {}

        def server(provider: str) -> str:
            lite = provider == "milvus-lite"
            if (reason := milvus_server.missing("milvus_lite" if lite else "milvus")) is not None:
                pytest.skip(reason)
            if provider not in running:
                running[provider] = stack.enter_context(
                    running_milvus_lite() if lite else milvus_server.running_milvus()
                ).url
            return running[provider]

        yield server


Opener = Callable[[str, int], Awaitable[VectorStore]]


@pytest.fixture(scope="module")
def opener(
    vector_database: Callable[[str], str], pinecones: Callable[[int], PineconeServer], milvus: Callable[[str], str]
) -> Opener:
    """Opens a provider's store for vectors of a dimension."""

    async def open_one(provider: str, dimension: int) -> VectorStore:
        match provider:
            case "exact":
                return ExactVectors()
            case "pgvector":
                return await open_pgvector(vector_database("memory_app"), size=2)
            case "pgvector-own":
                return AtOnce(await open_wire(vector_database("memory_app"), 2), 1)
            case "milvus" | "milvus-lite":
                return await open_milvus(milvus(provider), lambda: None, call_timeout=60)
        return await open_pinecone(pinecones(dimension).url, lambda: KEY)

    return open_one


@pytest.fixture(params=VECTOR_STORES)
async def make(
    request: pytest.FixtureRequest, opener: Opener
) -> AsyncIterator[Callable[[int], Awaitable[VectorStore]]]:
    """Opens the provider's store for vectors of a dimension; closed when the test ends."""
    async with contextlib.AsyncExitStack() as stack:

        async def open_one(dimension: int) -> VectorStore:
            opened = await opener(request.param, dimension)
            stack.push_async_callback(opened.close)
            return opened

        yield open_one


@pytest.fixture
async def store(make: Callable[[int], Awaitable[VectorStore]]) -> VectorStore:
    return await make(2)
