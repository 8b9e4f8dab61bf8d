"""What it costs that each row is held against its last sealed entry before it is served (VERIFY_READS): strict beside off, in turn."""

from __future__ import annotations

import json
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path

from bench import load, serving
from bench.report import Table
from bench.search import COUNT, DIMENSION, QUERIES, body, data, drained, fill, working

ROUNDS = 7  # of each, in turn
SECONDS = 3.0  # of load in each


def measure() -> Table:
    """GET and search over HTTP from one client, by two servers on one database that differ in nothing else."""
    if not load.available():
        raise SystemExit("bench verified needs wrk (Debian: apt-get install wrk).")
    vectors, queries = data(COUNT, 2), data(QUERIES, 4)
    bodies = [json.dumps(body(query)).encode() for query in queries]
    with (
        serving.database() as (folder, cluster),
        tempfile.TemporaryDirectory() as place,
        serving.serving(folder, cluster) as strict,
        serving.serving(folder, cluster, environment={"VERIFY_READS": "off"}) as off,
    ):
        names = fill(strict, vectors)
        with working(folder, cluster):
            drained(cluster)
        token, scratch = strict.token(), Path(place)
        paths = [f"/v1/memory/nodes/{name}" for name in names[::5]]

        def searched(served: serving.Served) -> load.Load:
            return load.post(served.url, "/v1/memory/search", token, bodies, 1, SECONDS, scratch)

        def read(served: serving.Served) -> load.Load:
            return load.get(served.url, paths, token, 1, SECONDS, scratch)

        rows = [*_compared("search", searched, strict, off), *_compared("GET of a node", read, strict, off)]
    about = (
        f"{COUNT:,} nodes with {DIMENSION} floats each, given by their caller; top 10, one client, one API process a side, "
        f"{ROUNDS} rounds of {SECONDS:.0f} s each way in turn; median of the pairs. Batches of 250 entries, whose seals are checked once"
    )
    return Table("verified reads", rows, about)


def _compared(
    what: str, run: Callable[[serving.Served], load.Load], strict: serving.Served, off: serving.Served
) -> list[tuple[str, str]]:
    run(strict), run(off)  # warm
    pairs = [(run(strict), run(off)) for _ in range(ROUNDS)]
    rates = [a.rate / b.rate for a, b in pairs]
    more = [a.p50 - b.p50 for a, b in pairs]
    return [
        (f"{what}, strict", f"{statistics.median(a.rate for a, _ in pairs):,.0f}/s"),
        (f"{what}, off", f"{statistics.median(b.rate for _, b in pairs):,.0f}/s"),
        (
            f"{what}, strict / off",
            f"{statistics.median(rates):.3f} of the rate ({min(rates):.3f} to {max(rates):.3f}); p50 {statistics.median(more):+.2f} ms",
        ),
    ]
