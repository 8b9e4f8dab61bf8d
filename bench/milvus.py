"""The Milvus adapter by itself: how fast it writes and searches, and what it costs beside pymilvus alone. No HTTP, one process.

The server is the one of `make test-real`, in a process of its own, with Milvus's own time tick. Data as in vectors.py.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, Final

import numpy as np
import uvloop

from bench.report import Skipped, Table, spread
from bench.vectors import LATENT, NOISE, Matrix, Truth, latent
from memory_layer.stores.protocols import VectorEntry, VectorHits
from memory_layer.stores.vectors.milvus import Milvus, open_milvus
from memory_layer.stores.vectors.milvus_records import VECTOR, expression, space_name
from tests.support import milvus_server

DIMENSIONS: Final = (384, 1536)
SIZE: Final = 8_000
CALLERS: Final = (1, 8)
QUERIES: Final = 400
TICK: Final = 200  # ms, as Milvus has it
TENANT, SPACE = "bench", "kernel-memory"
_SETTLED_WITHIN: Final = 300.0  # seconds, for an index


def measure() -> Table:
    """Raises Skipped where the server is not installed."""
    if (reason := milvus_server.missing()) is not None:
        raise Skipped(reason)
    rows: list[tuple[str, str]] = []
    with milvus_server.running_milvus(tick=TICK) as server:
        for dimension in DIMENSIONS:
            rows += uvloop.run(one_size(server.url, dimension))
    about = (
        f"Milvus {milvus_server.VERSION} on the same cores, interim index off, time tick {TICK} ms; {SIZE:,} vectors of {LATENT} latent "
        f"Gaussian dimensions plus noise, in one namespace, sealed and indexed; {QUERIES} queries a figure, top 10, without a filter; CPU: "
        "of the calling process alone"
    )
    return Table("milvus", rows, about)


async def one_size(url: str, dimension: int) -> list[tuple[str, str]]:
    stored, queries = vectors(dimension, SIZE, 1), vectors(dimension, QUERIES, 2)
    entries = [VectorEntry(TENANT, SPACE, uuid.UUID(int=n), 1, row, fields(n)) for n, row in enumerate(stored)]
    truth = Truth(queries)
    truth.add(np.arange(SIZE), stored)
    rows: list[tuple[str, str]] = []
    for callers in CALLERS:
        # In collections of its own, each time.
        store = await open_milvus(url, lambda: None, f"bench_{dimension}_{callers}", call_timeout=60.0)
        try:
            rows.append((f"{dimension} floats: writing, {told(callers)}", await write(store, entries, callers)))
            if callers == CALLERS[-1]:
                await settle(store, dimension)
                rows += await searches(store, dimension, queries, truth)
        finally:
            await store.close()
    return rows


async def write(store: Milvus, entries: list[VectorEntry], callers: int) -> str:
    """Batches as large as the worker hands them over."""
    size = store.capabilities.batch
    await store.upsert([entries[0]])  # which makes the collections
    batches = [entries[first : first + size] for first in range(0, len(entries), size)]
    took, seconds, cpu = await drive(store.upsert, batches, callers)
    return f"{len(entries) / took:,.0f}/s, a batch of {size} {spread(seconds)}; CPU {cpu / len(entries) * 1e3:.2f} ms a vector"


async def settle(store: Milvus, dimension: int) -> None:
    """Return when the index holds every vector."""
    await store.optimise(TENANT, SPACE)
    name, give_up = store._held.name(dimension), time.monotonic() + _SETTLED_WITHIN
    while True:
        index = await store._wire.call(lambda client: client.describe_index(name, VECTOR))
        if int(index["indexed_rows"]) >= SIZE and not int(index["pending_index_rows"]):
            break
        assert time.monotonic() < give_up, (
            f"Milvus did not index {SIZE:,} vectors within {_SETTLED_WITHIN:g} s: {index}"
        )
        await asyncio.sleep(0.5)
    await store.warm(TENANT, SPACE)


async def searches(store: Milvus, dimension: int, queries: Matrix, truth: Truth) -> list[tuple[str, str]]:
    name, where = store._held.name(dimension), expression(space_name(TENANT, SPACE))
    answers: dict[int, VectorHits] = {}

    async def adapter(number: int) -> None:
        answers[number] = await store.search(TENANT, SPACE, queries[number], 10, None)

    async def raw(number: int) -> None:
        """What the adapter asks for, by pymilvus alone: as many hits, with what it needs of them."""
        client = await store._wire._connected()
        found = await client.search(
            name, data=[queries[number]], anns_field=VECTOR, filter=where, limit=20, output_fields=["rank"],
            search_params={"metric_type": "COSINE", "params": {"ef": 256}}, consistency_level="Bounded",
        )  # fmt: skip
        assert len(found[0]) == 20

    rows = []
    for label, ask in (("search", adapter), ("pymilvus alone", raw)):
        await drive(ask, range(len(queries)), CALLERS[-1])  # until the server has the sealed part in memory
        for callers in CALLERS:
            took, seconds, cpu = await drive(ask, range(len(queries)), callers)
            figure = f"{len(queries) / took:,.0f}/s, {spread(seconds)}; CPU {cpu / len(queries) * 1e3:.2f} ms a search"
            if ask is adapter:
                recall, full = truth.recall([answers[number] for number in range(len(queries))])
                figure = f"{figure}; recall@10 {recall:.3f}{'' if full else ', ROWS MISSING'}"
            rows.append((f"{dimension} floats: {label}, {told(callers)}", figure))
    return rows


async def drive(
    do: Callable[[Any], Awaitable[None]], what: Iterable[Any], callers: int
) -> tuple[float, list[float], float]:
    """Each of these once, by so many callers: seconds in all, of each, and of this process's CPU."""
    left, seconds = iter(what), []

    async def call() -> None:
        for one in left:
            began = time.perf_counter()
            await do(one)
            seconds.append(time.perf_counter() - began)

    began, cpu = time.perf_counter(), time.process_time()
    await asyncio.gather(*(call() for _ in range(callers)))
    return time.perf_counter() - began, seconds, time.process_time() - cpu


def vectors(dimension: int, count: int, seed: int) -> Matrix:
    """Unit vectors, shape (count, dimension)."""
    mixing = np.random.default_rng(1).standard_normal((LATENT, dimension)).astype(np.float32) / np.sqrt(LATENT)
    noise = np.random.default_rng(seed + 2**32).standard_normal((count, dimension)).astype(np.float32)
    found: Matrix = latent(seed, count) @ mixing + np.float32(NOISE) * noise
    found /= np.linalg.norm(found, axis=1, keepdims=True)
    return found


def fields(number: int) -> dict[str, Any]:
    return {"owner": f"owner-{number % 50}", "createdAt": "2026-01-01T00:00:00.000000Z", "metadata": {"n": number}}


def told(callers: int) -> str:
    return f"{callers} caller{'' if callers == 1 else 's'}"
