"""From `memoryctl up` to ready."""

from __future__ import annotations

import statistics
import time

from bench.report import Table
from bench.running import folder
from tests.support.product import start_product

TIMES = 5


def measure() -> Table:
    first: list[float] = []
    following: list[float] = []
    ending: list[float] = []
    for _ in range(TIMES):
        with folder() as data:
            for seconds in (first, following):
                began = time.monotonic()
                product = start_product(data)
                seconds.append(time.monotonic() - began)
                began = time.monotonic()
                assert product.stop() == 0
                ending.append(time.monotonic() - began)
    rows = [
        ("first start: database, keys and schema made", f"{statistics.median(first):.1f} s"),
        ("next start", f"{statistics.median(following):.1f} s"),
        ("stop", f"{statistics.median(ending):.1f} s"),
    ]
    return Table("startup", rows, f"Medians of {TIMES}, from the start of the process until it is ready for requests")
