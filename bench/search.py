"""Indexing and searching 1536-float vectors over HTTP, beside the same search in raw SQL on the same table and index."""

from __future__ import annotations

import base64
import contextlib
import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import psycopg
from numpy.typing import NDArray

from bench import load, serving
from bench.report import Table, spread
from memory_layer.ops import embedded
from tests.support.product import clean_environment

DIMENSION = 1536
LATENT = 48  # dimensions that the vectors really have
COUNT = 8_000
QUERIES = 200
SECONDS = 4.0  # of load behind one figure
BULK = 250  # nodes in one request
SETTLED = 60.0  # seconds after the last vector

Matrix = NDArray[np.float32]


def measure() -> Table:
    """Fill the outbox, drain it by the worker, search at once, and again when all is settled."""
    if not load.available():
        raise SystemExit("bench search needs wrk (Debian: apt-get install wrk).")
    rows: list[tuple[str, str]] = []
    vectors, queries = data(COUNT, 2), data(QUERIES, 4)
    truth = np.argsort(-(queries @ vectors.T), axis=1)[:, :10]
    cores = os.cpu_count() or 1
    with (
        serving.database() as (folder, cluster),
        tempfile.TemporaryDirectory() as place,
        serving.serving(folder, cluster, processes=cores) as served,
    ):
        names = fill(served, vectors)
        with working(folder, cluster):
            seconds = drained(cluster)
            rows.append(("indexing: the outbox drained by one worker", f"{COUNT / seconds:,.0f} vectors/s"))
            at_once = ask(served, queries)
            rows.append(("recall@10 right after the last vector", f"{recall(at_once[1], truth, names):.3f}"))
            rows.append(("search right after, 1 client", spread(at_once[0])))
            time.sleep(SETTLED)
            settled = ask(served, queries)
            rows.append(
                (
                    f"the same {SETTLED:.0f} s later",
                    f"{spread(settled[0])}; recall@10 {recall(settled[1], truth, names):.3f}",
                )
            )
        rows += searched(served, cluster, queries, Path(place))
    about = (
        f"{COUNT:,} nodes of one namespace with {DIMENSION} floats each ({LATENT} latent dimensions, Gaussian, plus noise), top 10; "
        f"`memoryctl serve --processes {cores}`, {SECONDS:.0f} s a figure, no worker during the searches; wrk, API and Postgres "
        "share the cores. Raw SQL: psycopg, prepared, the adapter's own statement"
    )
    return Table("search", rows, about)


def searched(served: serving.Served, cluster: embedded.Cluster, queries: Matrix, folder: Path) -> list[tuple[str, str]]:
    """Over HTTP and in raw SQL, in turn, from 1 and from 8 clients."""
    rows = []
    bodies = [json.dumps(body(query)).encode() for query in queries]
    for clients in (1, 8):
        load.post(served.url, "/v1/memory/search", served.token(), bodies, clients, 1, folder)
        raw = raw_sql(cluster, queries, clients)
        http = load.post(served.url, "/v1/memory/search", served.token(), bodies, clients, SECONDS, folder)
        s = "s" if clients > 1 else ""
        rows.append((f"raw SQL, {clients} client{s}", f"{raw:,.0f}/s"))
        rows.append(
            (
                f"HTTP, {clients} client{s}",
                f"{http.rate:,.0f}/s, p50 {http.p50:.1f} ms, p95 {http.p95:.1f} ms; {http.rate / raw:.2f} of raw SQL",
            )
        )
    return rows


def data(count: int, seed: int) -> Matrix:
    """Unit vectors near a subspace, as embeddings are: shape (count, DIMENSION)."""
    axes = np.random.default_rng(1).standard_normal((LATENT, DIMENSION)).astype(np.float32) / np.float32(LATENT**0.5)
    numbers = np.random.default_rng(seed)
    latent = numbers.standard_normal((count, LATENT)).astype(np.float32)
    made = latent @ axes + np.float32(0.15) * numbers.standard_normal((count, DIMENSION)).astype(np.float32)
    return np.asarray(made / np.linalg.norm(made, axis=1, keepdims=True), np.float32)


def body(query: Matrix) -> dict[str, Any]:
    return {"queryEmbedding": encoded(query), "topK": 10}


def encoded(vector: Matrix) -> str:
    return base64.b64encode(vector.astype("<f4").tobytes()).decode("ascii")


def fill(served: serving.Served, vectors: Matrix) -> list[str]:
    """Create a node for each vector; their ids, in order."""
    names: list[str] = []
    headers = {"Authorization": f"Bearer {served.token()}"}
    with httpx2.Client(base_url=served.url, headers=headers, timeout=60) as http:
        for start in range(0, len(vectors), BULK):
            nodes = [
                {
                    "owner": "bench",
                    "metadata": {"n": start + n},
                    "embedding": {"model": "bench", "dimension": DIMENSION, "vector": encoded(vector)},
                }
                for n, vector in enumerate(vectors[start : start + BULK])
            ]
            answer = http.post("/v1/memory/nodes:batch", json=nodes)
            answer.raise_for_status()
            names += [item["memoryNodeId"] for item in answer.json()["items"]]
    return names


@contextlib.contextmanager
def working(folder: Path, cluster: embedded.Cluster, count: int = 1) -> Iterator[None]:
    """``memoryctl worker`` on that database."""
    settings = {"DATABASE_URL": cluster.dsn("memory_app"), "EMBEDDINGS_PROVIDER": "none"}
    workers = [
        subprocess.Popen(
            [sys.executable, "-m", "memory_layer.cli", "worker", "--data", str(folder)],
            env=clean_environment() | settings,
            stderr=subprocess.DEVNULL,
        )
        for _ in range(count)
    ]
    try:
        yield
    finally:
        for worker in workers:
            worker.terminate()
        for worker in workers:
            worker.wait(30)


def drained(cluster: embedded.Cluster) -> float:
    """Seconds from the first vector that is searchable to the last."""
    began = None
    with psycopg.connect(cluster.dsn("postgres"), autocommit=True) as connection:
        deadline = time.monotonic() + 900
        while time.monotonic() < deadline:
            row = connection.execute(
                "SELECT count(*) FILTER (WHERE status = 'succeeded'), count(*) FROM memory_vectors"
            ).fetchone()
            assert row is not None
            if began is None and row[0]:
                began = time.monotonic()
            if row[0] == row[1]:
                return time.monotonic() - (began or time.monotonic())
            time.sleep(0.05)
    raise AssertionError("the worker did not come to an end")


def ask(served: serving.Served, queries: Matrix) -> tuple[list[float], list[list[str]]]:
    """Latencies in seconds, and the nodes found."""
    headers = {"Authorization": f"Bearer {served.token()}", "Content-Type": "application/json"}
    seconds, found = [], []
    with httpx2.Client(base_url=served.url, headers=headers, timeout=30) as http:
        for query in queries:
            data = json.dumps(body(query)).encode()
            began = time.perf_counter()
            answer = http.post("/v1/memory/search", content=data)
            seconds.append(time.perf_counter() - began)
            assert answer.status_code == 200, answer.text
            found.append([hit["memoryNodeId"] for hit in answer.json()["results"]])
    return seconds, found


def recall(found: list[list[str]], truth: NDArray[np.int64], names: list[str]) -> float:
    right = [{names[n] for n in row} for row in truth]
    return float(np.mean([len(set(got) & want) / len(want) for got, want in zip(found, right, strict=True)]))


def raw_sql(cluster: embedded.Cluster, queries: Matrix, clients: int) -> float:
    """Searches a second from as many processes."""
    context = multiprocessing.get_context("spawn")
    told = context.Queue()
    processes = [
        context.Process(target=_search, args=(cluster.dsn("memory_app"), queries, told)) for _ in range(clients)
    ]
    for process in processes:
        process.start()
    total = sum(told.get(timeout=60) for _ in processes)
    for process in processes:
        process.join()
    return float(total)


def _search(dsn: str, queries: Matrix, told: Any) -> None:
    with psycopg.connect(dsn, autocommit=True) as connection:
        number, depth = connection.execute(
            "SELECT number, rerank FROM vector_spaces.registry WHERE tenant = 'bench' AND number IS NOT NULL"
        ).fetchone() or (0, 0)
        signs = f"binary_quantize({{}})::bit({DIMENSION})"
        statement = (
            "SELECT node_id, version, 1 - distance FROM (SELECT node_id, version, embedding <=> %(q)s::vector AS distance"  # noqa: S608 - numbers of ours
            f" FROM vector_spaces.space_{number} WHERE removed_at IS NULL ORDER BY {signs.format('embedding')} <~> "
            f"{signs.format('%(q)s::vector')} LIMIT {depth}) near ORDER BY distance, node_id LIMIT 10"
        )
        connection.execute(f"SET hnsw.ef_search = {depth}")
        connection.execute("SET plan_cache_mode = force_generic_plan")
        connection.execute("SET enable_seqscan = off")
        literals = ["[" + ",".join(map(str, query.tolist())) + "]" for query in queries]
        for literal in literals[:20]:
            connection.execute(statement, {"q": literal}, prepare=True).fetchall()
        count, end = 0, time.monotonic() + SECONDS
        while time.monotonic() < end:
            connection.execute(statement, {"q": literals[count % len(literals)]}, prepare=True).fetchall()
            count += 1
        told.put(count / SECONDS)
