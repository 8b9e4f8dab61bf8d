"""A large file in and out through the SDK: SHA-256 before, during and after."""

from __future__ import annotations

import random
import statistics
import tempfile
import time
from pathlib import Path

from bench.report import Table
from bench.running import running
from memory_layer.client import MemoryClient

SIZE = 50 * 2**20
TIMES = 5


def measure() -> Table:
    up, down = [], []
    with tempfile.TemporaryDirectory(prefix="memory-layer-bench-") as place, running() as product:
        path = Path(place) / "sent"
        with MemoryClient(product.url, product.token) as memory:
            for turn in range(TIMES):
                path.write_bytes(random.Random(turn).randbytes(SIZE))
                began = time.monotonic()
                stored = memory.upload(path)
                up.append(SIZE / 1e6 / (time.monotonic() - began))
                began = time.monotonic()
                memory.download(stored["artifactId"], Path(place) / "back")
                down.append(SIZE / 1e6 / (time.monotonic() - began))
    rows = [
        ("upload (hashed by both sides, synced to disk)", f"{statistics.median(up):.0f} MB/s"),
        ("download (hashed by the client)", f"{statistics.median(down):.0f} MB/s"),
    ]
    return Table("files", rows, f"50 MiB of random bytes, medians of {TIMES}")
