"""This tree beside another revision of it, in one run: both products run all the while, and load goes to them in turn.

``BENCH_AGAINST`` names the revision. Machines are as fast as they are at the moment; a ratio within one pair is not.
"""

from __future__ import annotations

import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2

from bench import load, writes
from bench.report import ROOT, Skipped, Table
from bench.running import folder
from bench.search import body, data, encoded
from tests.support.own_text import find_corpus
from tests.support.product import clean_environment

COUNT = 4_000  # nodes, with 1536 floats each
BULK = 200
QUERIES = 100
ROUNDS = 7  # of each figure, in turn
SECONDS = 3.0  # of load in each


@dataclass(frozen=True, slots=True)
class Running:
    """One of the two products."""

    url: str
    token: str
    pid: int  # of `memoryctl up`
    data: Path

    def processor_seconds(self) -> float:
        """Of all its processes so far, Postgres among them."""
        parents = {int(place.name): _stat(place) for place in Path("/proc").iterdir() if place.name.isdigit()}
        mine = {self.pid, int((self.data / "postgres" / "postmaster.pid").read_text().split()[0])}
        while more := {number for number, (parent, _) in parents.items() if parent in mine} - mine:
            mine |= more
        return sum(parents[number][1] for number in mine if number in parents) / os.sysconf("SC_CLK_TCK")


def _stat(process: Path) -> tuple[int, int]:
    """A process's parent, and the ticks that it and its ended children took; nobody's where it is gone."""
    try:
        fields = (process / "stat").read_text("utf-8", "replace").rpartition(")")[2].split()
    except OSError:
        return 0, 0
    return int(fields[1]), sum(map(int, fields[11:15]))


def measure() -> Table:
    """Search, GET and create over HTTP."""
    revision = os.environ.get("BENCH_AGAINST", "")
    if not revision:
        raise Skipped("BENCH_AGAINST names no revision to compare with")
    if not load.available():
        raise Skipped("wrk is not installed (Debian: apt-get install wrk)")
    queries = [json.dumps(body(query)).encode() for query in data(QUERIES, 4)]
    with (
        tempfile.TemporaryDirectory() as scratch,
        worktree(revision) as tree,
        running(tree) as before,
        running(ROOT) as now,
    ):
        place = Path(scratch)
        corpus = find_corpus(place)
        names = {product: fill(product) for product in (before, now)}
        for product in (before, now):
            put(product, [{"owner": "bench", "namespace": "texts", "content": turn.content} for turn in corpus.turns])
        asked = [
            json.dumps({"query": question.text, "topK": 10, "namespace": "texts", "mode": "keyword"}).encode()
            for question in corpus.questions[:QUERIES]
        ]

        def searched(clients: int) -> Callable[[Running], load.Load]:
            return lambda to: load.post(to.url, "/v1/memory/search", to.token, queries, clients, SECONDS, place)

        def worded(to: Running) -> load.Load:
            return load.post(to.url, "/v1/memory/search", to.token, asked, 1, SECONDS, place)

        def read(to: Running) -> load.Load:
            return load.get(to.url, [f"/v1/memory/nodes/{name}" for name in names[to]], to.token, 1, SECONDS, place)

        def written(clients: int) -> Callable[[Running], load.Load]:
            made = writes.bodies(64, None)
            return lambda to: load.post(to.url, "/v1/memory/nodes", to.token, made, clients, SECONDS, place)

        rows = [
            *compared("search, 1 client", searched(1), before, now),
            *compared("search, 8 clients", searched(8), before, now),
            *compared("search by words, 1 client", worded, before, now),
            *compared("GET of a node, 1 client", read, before, now),
            *compared("create, 1 client", written(1), before, now),
            *compared("create, 64 clients", written(64), before, now),
        ]
    about = (
        f"`memoryctl up` of both, started together; {COUNT:,} nodes with 1536 floats each, top 10; creates without text or vector; "
        f"words: questions about {corpus.name}, {len(corpus.turns):,} texts; "
        f"{ROUNDS} rounds of {SECONDS:.0f} s each way in turn, median of the pairs; processors: of all processes of the product. "
        f"Before: revision {revision}"
    )
    return Table("against", rows, about)


@contextlib.contextmanager
def worktree(revision: str) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="bench-against-") as place:
        tree = Path(place) / "tree"
        subprocess.run(["git", "-C", str(ROOT), "worktree", "add", "-q", "--detach", str(tree), revision], check=True)
        try:
            yield tree
        finally:
            subprocess.run(["git", "-C", str(ROOT), "worktree", "remove", "--force", str(tree)], check=True)


@contextlib.contextmanager
def running(tree: Path) -> Iterator[Running]:
    """``memoryctl up`` of a tree, its log in a file."""
    environment = clean_environment() | {"PYTHONPATH": str(tree), "EMBEDDINGS_PROVIDER": "none"}
    ctl = [sys.executable, "-m", "memory_layer.cli"]
    with folder() as data, tempfile.NamedTemporaryFile("w+", prefix="bench-up-", suffix=".log") as log:
        process = subprocess.Popen(
            [*ctl, "up", "--data", str(data), "--port", "0"], env=environment, stdout=log, stderr=log, cwd=tree
        )
        try:
            deadline = time.monotonic() + 120
            while "export MEMORY_TOKEN" not in Path(log.name).read_text():
                if process.poll() is not None or time.monotonic() > deadline:
                    raise AssertionError(f"the product of {tree} did not start:\n{Path(log.name).read_text()}")
                time.sleep(0.1)
            lines = Path(log.name).read_text().splitlines()
            exported = dict(line.removeprefix("export ").split("=", 1) for line in lines if line.startswith("export "))
            yield Running(exported["MEMORY_URL"], exported["MEMORY_TOKEN"], process.pid, data)
        finally:
            process.terminate()
            process.wait(60)


def fill(to: Running) -> list[str]:
    """Create nodes with vectors and wait until they are indexed; some of their ids."""
    vectors = data(COUNT, 2)
    nodes = [
        {
            "owner": "bench",
            "metadata": {"n": n},
            "embedding": {"model": "bench", "dimension": vector.shape[0], "vector": encoded(vector)},
        }
        for n, vector in enumerate(vectors)
    ]
    return put(to, nodes)[::5]


def put(to: Running, nodes: list[dict[str, Any]]) -> list[str]:
    """Create nodes and wait until they are indexed; their ids."""
    names: list[str] = []
    with httpx2.Client(base_url=to.url, headers={"Authorization": f"Bearer {to.token}"}, timeout=60) as http:
        for start in range(0, len(nodes), BULK):
            answer = http.post("/v1/memory/nodes:batch", json=nodes[start : start + BULK]).raise_for_status()
            names += [item["memoryNodeId"] for item in answer.json()["items"]]
        deadline = time.monotonic() + 300
        while http.get("/healthz").json()["indexing"]["pending"]:
            if time.monotonic() > deadline:
                raise AssertionError("the nodes were not indexed")
            time.sleep(0.2)
    return names


def compared(what: str, run: Callable[[Running], load.Load], before: Running, now: Running) -> list[tuple[str, str]]:
    def once(to: Running) -> tuple[load.Load, float]:
        """The load, and milliseconds of the processors for each request."""
        began = to.processor_seconds()
        done = run(to)
        return done, 1000 * (to.processor_seconds() - began) / done.requests

    run(before), run(now)  # warm
    pairs = [(once(before), once(now)) for _ in range(ROUNDS)]
    rates = [n.rate / b.rate for (b, _), (n, _) in pairs]
    old, new = (statistics.median(pair[side][0].rate for pair in pairs) for side in (0, 1))
    spent = [statistics.median(pair[side][1] for pair in pairs) for side in (0, 1)]
    more = statistics.median(n.p50 - b.p50 for (b, _), (n, _) in pairs)
    figure = (
        f"{old:,.0f}/s before, {new:,.0f}/s now: {statistics.median(rates):.2f} ({min(rates):.2f} to {max(rates):.2f}); "
        f"p50 {more:+.2f} ms; processors {spent[0]:.2f} ms a request before, {spent[1]:.2f} now"
    )
    return [(what, figure)]
