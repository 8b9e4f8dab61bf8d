"""Creating nodes over HTTP, each with its vector, audited, sealed and durable when it is answered; beside it raw SQL."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psycopg

from bench import load, serving
from bench.report import Table
from bench.running import running
from memory_layer.ops import embedded
from tests.support import kms_server

DIMENSION = 1536
SECONDS = 3.0  # of load behind one figure
WARM = 1.0  # seconds of load before it
CONNECTIONS = 8  # of raw SQL
BULK = 256  # nodes in one request


def measure() -> Table:
    """The write path alone (no worker), then the whole product."""
    if not load.available():
        raise SystemExit(
            "bench writes needs wrk (Debian: apt-get install wrk), or the load would cost as much as what it loads."
        )
    cores = os.cpu_count() or 1
    rows: list[tuple[str, str]] = []
    with serving.database() as (data, cluster), tempfile.TemporaryDirectory() as folder:
        raw = raw_sql(cluster)
        rows.append((f"raw SQL, one transaction a node, no index, {CONNECTIONS} connections", f"{raw:,.0f}/s"))
        with serving.serving(data, cluster, processes=cores) as served:
            work = _Work(served, Path(folder))
            empty = work.run(_bodies("base64"), 64, warm=False)
            many = work.run(_bodies("base64"), 64)
            arrays = work.run(_bodies("array"), 64)
            bulk = work.run(_bulks(), 4, path="/v1/memory/nodes:batch")
            some = work.run(_bodies("base64"), 16)
            single = work.run(_bodies("base64"), 1)
        rows += [
            ("HTTP, base64, 1 client", _figure(single)),
            ("HTTP, base64, 16 clients", _figure(some)),
            ("HTTP, base64, 64 clients", f"{_figure(many)}; {many.rate / raw:.2f} of raw SQL"),
            ("HTTP, JSON arrays, 64 clients", f"{_figure(arrays)}; {arrays.rate / raw:.2f} of raw SQL"),
            (
                "HTTP, base64, 64 clients, from an empty database on",
                f"{empty.rate:,.0f}/s; {empty.rate / many.rate:.2f} of that",
            ),
            (
                f"HTTP, bulk, {BULK} nodes a request, 4 clients",
                f"{bulk.rate * BULK:,.0f} nodes/s, p99 {bulk.p99:.0f} ms",
            ),
        ]
    # One process: a signature is made under the log lock, so what counts with a slow signer is how much one batch holds.
    local = {clients: with_signer(None, clients) for clients in (64, 256)}
    rows += [(f"one process, local key, {clients} clients", _figure(found)) for clients, found in local.items()]
    for delay, clients in ((10, 64), (10, 256), (50, 256)):
        found = with_signer(delay, clients)
        ratio = found.rate / local[clients].rate
        rows.append(
            (f"one process, KMS with {delay} ms, {clients} clients", f"{_figure(found)}; {ratio:.2f} of the local key")
        )
    with running() as product, tempfile.TemporaryDirectory() as folder:
        token = product.issue(tenant="bench")
        whole = load.post(product.url, "/v1/memory/nodes", token, _bodies("base64"), 64, SECONDS, Path(folder))
    rows.append(("whole product with its worker indexing beside it, 64 clients, one process", _figure(whole)))
    about = (
        f"{DIMENSION} floats a node, fsync on; `memoryctl serve --processes {cores}` without a worker unless the row says otherwise, "
        f"{SECONDS:.0f} s a figure; wrk, API and Postgres share the cores. Raw SQL: psycopg in {cores} processes, three INSERTs "
        "(node, vector, entry) and a COMMIT a node. KMS: the stand-in of the tests over HTTP, its delay beside boto3's own time"
    )
    return Table("writes", rows, about)


class _Work:
    """Load on one server."""

    def __init__(self, served: serving.Served, folder: Path) -> None:
        self._served = served
        self._folder = folder

    def run(self, bodies: list[bytes], clients: int, path: str = "/v1/memory/nodes", warm: bool = True) -> load.Load:
        token = self._served.token()
        if warm:
            load.post(self._served.url, path, token, bodies, clients, WARM, self._folder)
        return load.post(self._served.url, path, token, bodies, clients, SECONDS, self._folder)


def _figure(found: load.Load) -> str:
    return f"{found.rate:,.0f}/s, p50 {found.p50:.1f} ms, p99 {found.p99:.1f} ms"


def with_signer(delay: int | None, clients: int) -> load.Load:
    """Load on one process whose seals come from a key service that takes ``delay`` milliseconds; None: from a local key."""
    with contextlib.ExitStack() as stack:
        environment = {}
        if delay is not None:
            url = stack.enter_context(key_service(delay))
            environment = {"AUDIT_SIGNER": "kms", "KMS_ENDPOINT": url, **kms_server.ENVIRONMENT}
        data, cluster = stack.enter_context(serving.database(environment))
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        served = stack.enter_context(serving.serving(data, cluster, environment=environment))
        return _Work(served, Path(folder)).run(_bodies("base64"), clients)


@contextlib.contextmanager
def key_service(delay: int) -> Iterator[str]:
    """The tests' KMS stand-in in a process of its own; its URL."""
    command = [sys.executable, "-m", "tests.support.kms_server", "--delay-ms", str(delay)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        yield process.stdout.readline().strip()
    finally:
        process.terminate()
        process.wait(10)


def _bodies(spelling: str) -> list[bytes]:
    return bodies(64, DIMENSION, spelling == "array")


def _bulks() -> list[bytes]:
    nodes = bodies(BULK * 4, DIMENSION)
    return [b"[" + b",".join(nodes[start : start + BULK]) + b"]" for start in range(0, len(nodes), BULK)]


def bodies(count: int, dimension: int | None, array: bool = False) -> list[bytes]:
    """Create requests, made beforehand so that making them is not measured; without a vector where it is None."""
    return list(_made(count, dimension, array))


def _made(count: int, dimension: int | None, array: bool) -> Iterator[bytes]:
    random = np.random.default_rng(dimension or 0)
    for number in range(count):
        body: dict[str, object] = {"owner": f"owner-{number % 20}", "metadata": {"number": number, "kind": "bench"}}
        if dimension is not None:
            vector = random.standard_normal(dimension).astype("<f4")
            vector /= np.linalg.norm(vector)
            encoded = vector.tolist() if array else base64.b64encode(vector.tobytes()).decode("ascii")
            body["embedding"] = {"model": f"random-{dimension}", "dimension": dimension, "vector": encoded}
        yield json.dumps(body).encode()


# --- raw SQL -------------------------------------------------------------------------------------------------------

_TABLES = """
CREATE SCHEMA raw;
CREATE TABLE raw.nodes (tenant text, id uuid, owner text, namespace text, metadata jsonb, version int, created_at timestamptz);
CREATE TABLE raw.vectors (tenant text, id uuid, node uuid, status text, vector_data jsonb);
ALTER TABLE raw.vectors ALTER vector_data SET STORAGE EXTERNAL;
CREATE TABLE raw.entries (seq bigint, id uuid, entry bytea, hash text, prev_hash text);
"""


def raw_sql(cluster: embedded.Cluster) -> float:
    """Transactions a second of a service that writes the same data without an index, a chain, a seal or a check."""
    dsn = cluster.dsn("postgres")
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(_TABLES)
    cores = os.cpu_count() or 1
    context = multiprocessing.get_context("spawn")
    with context.Pool(cores) as pool:
        counts = pool.starmap(_raw_process, [(dsn, CONNECTIONS // cores, SECONDS)] * cores)
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute("DROP SCHEMA raw CASCADE")
    return sum(counts) / SECONDS


def _raw_process(dsn: str, connections: int, seconds: float) -> int:
    return asyncio.run(_raw_connections(dsn, connections, seconds))


async def _raw_connections(dsn: str, connections: int, seconds: float) -> int:
    return sum(await asyncio.gather(*(_raw_connection(dsn, seconds) for _ in range(connections))))


async def _raw_connection(dsn: str, seconds: float) -> int:
    vector = np.random.default_rng(1).standard_normal(DIMENSION).astype("<f4")
    data = json.dumps({"encoding": "f32le", "data": base64.b64encode(vector.tobytes()).decode()})
    entry, digest, done = b"e" * 620, "0" * 64, 0
    connection = await psycopg.AsyncConnection.connect(dsn, autocommit=True, prepare_threshold=1)
    async with connection:
        end = time.perf_counter() + seconds
        while time.perf_counter() < end:
            node = uuid.uuid4()
            async with connection.pipeline():
                await connection.execute("BEGIN")
                await connection.execute(
                    "INSERT INTO raw.nodes VALUES ('t', %b, 'ann', 'kernel-memory', '{\"n\": 1}', 1, now())", (node,)
                )
                await connection.execute(
                    "INSERT INTO raw.vectors VALUES ('t', gen_random_uuid(), %b, 'pending', %b::text::jsonb)",
                    (node, data),
                )
                await connection.execute(
                    "INSERT INTO raw.entries VALUES (1, %b, %b, %b, %b)", (node, entry, digest, digest)
                )
                await connection.execute("COMMIT")
            done += 1
    return done
