"""The pgvector adapter by itself: what it finds, how fast, and how that changes with size. No HTTP, one process.

Data: vectors of 48 latent Gaussian dimensions plus noise. VECTORS_GROWTH names the sizes of the last part (default 10000,50000).
"""

from __future__ import annotations

import asyncio
import os
import time
import uuid
from collections.abc import Sequence
from typing import Any

import numpy as np
import psycopg
import uvloop
from numpy.typing import NDArray

from bench import serving
from bench.report import Table, spread
from memory_layer.filters import parse
from memory_layer.stores.protocols import VectorEntry, VectorHits
from memory_layer.stores.vectors import pgvector_search, pgvector_upkeep
from memory_layer.stores.vectors.pgvector import PgVector, open_pgvector
from memory_layer.stores.vectors.pgvector_wire import SQL, encode_vector

DIMENSION = 1536
LATENT = 48
NOISE = 0.15
SIZE = 20_000
TENANTS = 200
SHARES = (2, 10, 100, 1000)  # one in so many passes the filter
QUERIES = 40
WRITERS = 2
BLOCK = 1000  # vectors that are made at a time
BATCH = 64
NEVER = 10**9

Matrix = NDArray[np.float32]
_MIXING = np.random.default_rng(1).standard_normal((LATENT, DIMENSION)).astype(np.float32) / np.sqrt(LATENT)


def measure() -> Table:
    rows: list[tuple[str, str]] = []
    with serving.database() as (_, cluster):
        for part in (crossover, filtered, tenants, growth):
            rows += uvloop.run(part(cluster.dsn("memory_app")))
    about = (
        f"{DIMENSION} floats, {LATENT} latent Gaussian dimensions plus noise; embedded Postgres, fsync on; the adapter in one process; "
        f"{QUERIES} queries a figure, top 10, against all distances in NumPy; share: rows that pass the filter"
    )
    return Table("vectors", rows, about)


# --- data ----------------------------------------------------------------------------------------------------------


def latent(seed: int, count: int = BLOCK) -> Matrix:
    return np.random.default_rng(seed).standard_normal((count, LATENT)).astype(np.float32)


def vectors(points: Matrix, seed: int) -> Matrix:
    """Unit vectors of latent points, shape (count, DIMENSION)."""
    noise = np.random.default_rng(seed + 2**32).standard_normal((len(points), DIMENSION)).astype(np.float32)
    found = points @ _MIXING + np.float32(NOISE) * noise
    return found / np.linalg.norm(found, axis=1, keepdims=True)


def block(number: int) -> tuple[Matrix, Matrix]:
    """Latent points and vectors of the nodes from ``number * BLOCK`` on; the same each time, so that they need not be kept."""
    points = latent(1000 + number)
    return points, vectors(points, 1000 + number)


def fields(number: int, along: float) -> dict[str, Any]:
    """``share``: lists that an index of the fields finds; ``dice``: the same as numbers, ``along``: a place on the first axis."""
    dice = int(np.random.default_rng(number).integers(1_000_000))
    return {
        "owner": f"owner-{number % 50}",
        "createdAt": f"2026-01-01T00:00:00.{number % 1_000_000:06d}Z",
        "metadata": {"share": [s for s in SHARES if dice < 1_000_000 // s], "dice": dice, "along": float(along)},
    }


class Truth:
    """The ten best of what passes a filter, block by block."""

    def __init__(self, queries: Matrix) -> None:
        self._queries = queries
        self._scores: list[NDArray[np.float32]] = [np.empty(0, np.float32) for _ in queries]
        self._ids: list[NDArray[np.int64]] = [np.empty(0, np.int64) for _ in queries]

    def add(self, ids: NDArray[np.int64], stored: Matrix) -> None:
        scores = self._queries @ stored.T
        for n, row in enumerate(scores):
            both, all_ids = np.concatenate([self._scores[n], row]), np.concatenate([self._ids[n], ids])
            best = np.argsort(-both)[:10]
            self._scores[n], self._ids[n] = both[best], all_ids[best]

    def recall(self, answers: Sequence[VectorHits]) -> tuple[float, bool]:
        """Recall@10, and whether every answer has as many rows as there are."""
        right = sum(len(ids) for ids in self._ids)
        same = sum(
            len({hit.node_id.int for hit in answer.hits} & set(ids.tolist()))
            for answer, ids in zip(answers, self._ids, strict=True)
        )
        full = all(len(answer.hits) == len(ids) for answer, ids in zip(answers, self._ids, strict=True))
        return same / max(right, 1), full


async def ask(
    store: PgVector, tenant: str, queries: Matrix, where: dict[str, Any] | None = None
) -> tuple[list[VectorHits], list[float]]:
    """Each query once: answers, and latencies in seconds."""
    answers, seconds = [], []
    compiled = parse(where)
    for query in queries:
        began = time.perf_counter()
        answers.append(await store.search(tenant, "bench", query, 10, compiled))
        seconds.append(time.perf_counter() - began)
    return answers, seconds


async def insert(store: PgVector, tenant: str, numbers: range, axis: Matrix) -> float:
    """Write nodes in batches from several writers; seconds spent on the store. Vectors are made beforehand, a block at a time."""
    spent = 0.0
    for first in range(numbers.start, numbers.stop, BLOCK):
        points, stored = block(first // BLOCK)
        entries = [
            VectorEntry(tenant, "bench", uuid.UUID(int=first + n), 1, row, fields(first + n, points[n] @ axis))
            for n, row in enumerate(stored[: numbers.stop - first])
        ]
        batches = iter([entries[n : n + BATCH] for n in range(0, len(entries), BATCH)])

        async def write(batches: Any = batches) -> None:
            for batch in batches:
                await store.upsert(batch)

        began = time.perf_counter()
        await asyncio.gather(*(write() for _ in range(WRITERS)))
        spent += time.perf_counter() - began
    return spent


# --- parts ---------------------------------------------------------------------------------------------------------


async def crossover(dsn: str) -> list[tuple[str, str]]:
    """Small namespaces searched exactly, and by way of an index, to see where one overtakes the other."""
    rows, axis = [], np.eye(LATENT, dtype=np.float32)[0]
    queries = vectors(latent(7, QUERIES), 7)
    exactly, near = await open_pgvector(dsn, large=NEVER), await open_pgvector(dsn, large=1)
    for size in (500, 1000, 2000, 4000):
        tenant = f"small-{size}"
        await insert(exactly, tenant, range(size), axis)
        await ask(exactly, tenant, queries)
        _, without = await ask(exactly, tenant, queries)
        await near.optimise(tenant, "bench")
        await ask(near, tenant, queries)
        _, within = await ask(near, tenant, queries)
        rows.append((f"{size:,} rows: exact; by the index", f"{spread(without)}; {spread(within)}"))
    await exactly.close()
    await near.close()
    return rows


async def filtered(dsn: str) -> list[tuple[str, str]]:
    """One namespace, filters of every selectivity; the queries of the second kind stand where the filter lets nothing through."""
    axis = np.eye(LATENT, dtype=np.float32)[0]
    store = await open_pgvector(dsn)
    began = time.perf_counter()
    spent = await insert(store, "one", range(SIZE), axis)
    queries = vectors(latent(8, QUERIES), 8)
    answers, at_once = await ask(store, "one", queries)
    await store.optimise("one", "bench")
    settled = time.perf_counter() - began
    points, stored = (np.concatenate(part) for part in zip(*map(block, range(SIZE // BLOCK)), strict=True))
    ids = np.arange(SIZE)
    truth = Truth(queries)
    truth.add(ids, stored)
    rows = [
        (f"writing {SIZE:,}, batches of {BATCH}, {WRITERS} writers, index included", f"{SIZE / spent:,.0f}/s"),
        ("right after it", f"recall@10 {truth.recall(answers)[0]:.3f}, {spread(at_once)}"),
        ("until nothing was left to build or to measure", f"{settled:.0f} s after the first write"),
    ]
    await ask(store, "one", queries)
    answers, seconds = await ask(store, "one", queries)
    rows.append((f"{SIZE:,} rows, no filter", f"recall@10 {truth.recall(answers)[0]:.3f}, {spread(seconds)}"))
    rows.append(
        (f"{SIZE:,} rows, raw SQL on the same index", spread(await asyncio.to_thread(raw, dsn, store, queries)))
    )
    along = points @ axis
    opposed = vectors(latent(9, QUERIES) + 3 * axis, 9)
    dice = np.array([fields(n, 0)["metadata"]["dice"] for n in range(SIZE)])
    for share in SHARES:
        line = float(np.partition(along, SIZE // share)[SIZE // share])
        kinds: list[tuple[str, Matrix, dict[str, Any], NDArray[np.bool_]]] = [
            ("equality", queries, {"metadata.share": share}, dice < 1_000_000 // share),
            ("range", queries, {"metadata.dice": {"$lt": 1_000_000 // share}}, dice < 1_000_000 // share),
            ("range at odds with the query", opposed, {"metadata.along": {"$lt": line}}, along < line),
        ]
        for kind, asked, where, passes in kinds:
            truth = Truth(asked)
            truth.add(ids[passes], stored[passes])
            answers, seconds = await ask(store, "one", asked, where)
            recall, full = truth.recall(answers)
            exact = sum(answer.exact for answer in answers)
            told = f"recall@10 {recall:.3f}, {'all rows' if full else 'ROWS MISSING'}, {spread(seconds)}, {exact} of {QUERIES} exact"
            rows.append((f"{kind}, {100 / share:g} %", told))
    await store.close()
    return rows


async def tenants(dsn: str) -> list[tuple[str, str]]:
    """The same number of vectors over tenants whose sizes follow Zipf's law, each with a namespace of its own."""
    weights = 1 / np.arange(1, TENANTS + 1)
    sizes = np.maximum(1, np.round(SIZE * weights / weights.sum())).astype(int)
    store = await open_pgvector(dsn)
    holds = {f"tenant-{n}": latent(5000 + n, int(size)) for n, size in enumerate(sizes)}
    stored = {tenant: vectors(points, 5000 + n) for n, (tenant, points) in enumerate(holds.items())}
    began = time.perf_counter()
    for n, (tenant, matrix) in enumerate(stored.items()):
        for first in range(0, len(matrix), BATCH):
            await store.upsert(
                [
                    VectorEntry(tenant, "bench", uuid.UUID(int=k), 1, row, fields(SIZE * n + k, 0))
                    for k, row in enumerate(matrix[first : first + BATCH], first)
                ]
            )
    rate = int(sizes.sum()) / (time.perf_counter() - began)
    await store.maintain()
    large = sum([(await pgvector_upkeep.find(store._wire, tenant, "bench")) is not None for tenant in stored])
    rows = [
        (f"{int(sizes.sum()):,} vectors of {TENANTS} tenants (Zipf), one writer", f"{rate:,.0f}/s"),
        ("of them with an index of their own", f"{large}; the largest holds {sizes[0]:,}"),
    ]
    for share in (1, *SHARES):
        right, seconds, full = [], [], True
        for n, (tenant, matrix) in enumerate(stored.items()):
            passes = np.array(
                [share == 1 or share in fields(SIZE * n + k, 0)["metadata"]["share"] for k in range(len(matrix))]
            )
            queries = vectors(latent(9000 + n, 2), 9000 + n)
            truth = Truth(queries)
            truth.add(np.arange(len(matrix))[passes], matrix[passes])
            answers, took = await ask(store, tenant, queries, {"metadata.share": share} if share > 1 else None)
            seconds += took
            recall, complete = truth.recall(answers)
            full = full and complete
            if passes.any():
                right.append(recall)
        assert right, "no tenant has a row that this filter lets through"
        told = (
            f"recall@10 {np.mean(right):.3f}, worst tenant {min(right):.2f}, {'all rows' if full else 'ROWS MISSING'}"
        )
        rows.append(
            (
                f"by tenant, {'no filter' if share == 1 else f'equality, {100 / share:g} %'}",
                f"{told}, {spread(seconds)}",
            )
        )
    await store.close()
    return rows


async def growth(dsn: str) -> list[tuple[str, str]]:
    """One namespace as it grows."""
    sizes = sorted(int(size) for size in os.environ.get("VECTORS_GROWTH", "10000,50000").split(","))
    axis = np.eye(LATENT, dtype=np.float32)[0]
    store, rows, held = await open_pgvector(dsn), [], 0
    queries = vectors(latent(11, QUERIES), 11)
    truths = {None: Truth(queries), 100: Truth(queries)}
    for size in sizes:
        rate = (size - held) / await insert(store, "growth", range(held, size), axis)
        for number in range(held // BLOCK, -(-size // BLOCK)):
            ids = np.arange(number * BLOCK, min((number + 1) * BLOCK, size))
            _, stored = block(number)
            truths[None].add(ids, stored[: len(ids)])
            passes = np.array([100 in fields(int(n), 0)["metadata"]["share"] for n in ids])
            truths[100].add(ids[passes], stored[: len(ids)][passes])
        held = size
        await store.optimise("growth", "bench")
        await store.warm("growth", "bench")
        told = [f"written at {rate:,.0f}/s"]
        for name, share, where in (
            ("no filter", None, None),
            ("equality, 1 %", 100, {"metadata.share": 100}),
            ("range, 1 %", 100, {"metadata.dice": {"$lt": 10_000}}),
        ):
            await ask(store, "growth", queries[:10], where)
            answers, seconds = await ask(store, "growth", queries, where)
            told.append(f"{name}: recall@10 {truths[share].recall(answers)[0]:.3f}, {spread(seconds)}")
        rows.append((f"one namespace of {size:,}", "; ".join(told)))
    await store.close()
    return rows


def raw(dsn: str, store: PgVector, queries: Matrix) -> list[float]:
    """Latencies of the same statement from a plain psycopg connection: prepared, binary, settings made once for the session."""
    space = store._wire.place("one", "bench")
    assert space is not None
    text = (
        SQL["search_bit"]
        .replace("{relation}", space.relation)
        .replace("{where}", SQL["in_own"])
        .replace("{dimension}", str(space.dimension))
        .replace("{depth}", str(pgvector_search.depth(space, 10)))
        .replace("%(query)s::vector", "$1")
        .replace("%(limit)s::bigint", "10")
        .replace("%(skip)s::bigint", "0")
    )
    seconds = []
    with psycopg.connect(dsn, autocommit=True) as connection:
        for setting in ("plan_cache_mode = force_generic_plan", "enable_seqscan = off", "hnsw.ef_search = 100"):
            connection.execute(f"SET {setting}")
        connection.pgconn.prepare(b"near", text.encode())
        for query in [*queries, *queries]:
            began = time.perf_counter()
            connection.pgconn.exec_prepared(b"near", [encode_vector(query)], [1], result_format=1)
            seconds.append(time.perf_counter() - began)
    return seconds[len(queries) :]
