"""Creating nodes over HTTP, each with its vector, audited and durable when it is answered."""

from __future__ import annotations

import asyncio
import base64
import json
import time
from collections.abc import Iterator

import httpx2
import numpy as np

from bench.report import Table, spread
from bench.running import running
from tests.support.product import Product

ALONE, TOGETHER, CLIENTS = 500, 4_000, 16
DIMENSIONS = (384, 1536)


def measure() -> Table:
    rows = []
    with running() as product:
        for dimension in DIMENSIONS:
            for clients, count in ((1, ALONE), (CLIENTS, TOGETHER)):
                token = product.issue(tenant=f"bench-{dimension}-{clients}")
                seconds, total = asyncio.run(write(product, token, clients, bodies(count, dimension)))
                who = f"{clients} client{'' if clients == 1 else 's'}"
                rows.append((f"{who}, {dimension} floats", f"{count / total:.0f} writes/s, {spread(seconds)}"))
    about = f"Random unit vectors in base64, {ALONE} writes by one client, {TOGETHER:,} by {CLIENTS}; "
    return Table("writes", rows, about + "clients, API, worker and Postgres share the cores")


def bodies(count: int, dimension: int | None, array: bool = False) -> list[bytes]:
    """Create requests, made beforehand so that making them is not measured; without a vector where it is None."""
    return list(_bodies(count, dimension, array))


def _bodies(count: int, dimension: int | None, array: bool) -> Iterator[bytes]:
    random = np.random.default_rng(dimension or 0)
    for number in range(count):
        body: dict[str, object] = {"owner": f"owner-{number % 20}", "metadata": {"number": number, "kind": "bench"}}
        if dimension is not None:
            vector = random.standard_normal(dimension).astype("<f4")
            vector /= np.linalg.norm(vector)
            encoded = vector.tolist() if array else base64.b64encode(vector.tobytes()).decode("ascii")
            body["embedding"] = {"model": f"random-{dimension}", "dimension": dimension, "vector": encoded}
        yield json.dumps(body).encode()


async def write(product: Product, token: str, clients: int, requests: list[bytes]) -> tuple[list[float], float]:
    """Latencies, and seconds for all of them; each client sends its next write when the last was answered."""
    headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
    seconds: list[float] = []
    rest = iter(requests)

    async def client() -> None:
        async with httpx2.AsyncClient(base_url=product.url, headers=headers, timeout=60) as http:
            for body in rest:
                began = time.perf_counter()
                answer = await http.post("/v1/memory/nodes", content=body)
                seconds.append(time.perf_counter() - began)
                assert answer.status_code == 201, answer.text

    began = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(clients)))
    return seconds, time.perf_counter() - began
