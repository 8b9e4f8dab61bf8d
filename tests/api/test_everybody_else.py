"""Whatever one request asks for, the process goes on answering the others: the worst of each kind, and the event loop meanwhile."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import httpx2
import pytest

from memory_layer import aside
from tests.api.door import NO_PII, connect, create, eventually
from tests.support.product import Product, clean_environment

pytestmark = pytest.mark.slow

NODES = "/v1/memory/nodes"
PROMPT = 0.1  # seconds that /livez may wait for its turns of the loop
TRIES = 8  # a stall is there each time, what a busy machine does to the caches is not
LARGEST = "[" + ",".join(["0.123456789"] * aside.MAX_VALUES) + "]"


@pytest.fixture(scope="module")
def watched(product: Product) -> Iterator[Product]:
    """Another server on the product's database, with a watch over its event loop (``tests/support/watched_server.py``)."""
    said = product.data.with_name("watched.log")
    with said.open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.watched_server", "serve", "--data", str(product.data)],
            env=clean_environment() | {"DATABASE_URL": product.database, "PORT": "0"},
            stderr=log,
            text=True,
        )
    line = eventually(said.read_text, lambda text: "listening on" in text and text.endswith("\n"), 60)
    server = replace(product, process=process, url=re.search(r"listening on (\S+)", line)[1])  # type: ignore[index]
    eventually(lambda: httpx2.get(server.url + "/readyz").status_code, lambda status: status == 200, 60)
    yield server
    process.terminate()
    process.wait(60)


@pytest.fixture
def http(watched: Product, tenant: str) -> Iterator[httpx2.Client]:
    with connect(watched, tenant) as client:
        yield client


@pytest.fixture
def some(watched: Product, tenant: str) -> Iterator[httpx2.Client]:
    with connect(watched, tenant, NO_PII, "some") as client:
        yield client


def stays_prompt(server: Product, ask: Callable[[], httpx2.Response], *statuses: int) -> None:
    """The request is answered so, and leaves the event loop its turns meanwhile. Where the machine is so busy that Postgres gives up on
    the request (503), it is made again.

    On a slow machine the turns may take as long as five calls that a document of the permitted size needs: 0.1 s where such a call
    takes 20 ms.
    """
    stalls: list[tuple[float, float]] = []
    for _ in range(TRIES):
        httpx2.get(server.url + "/stall")
        answer = ask()
        stall = httpx2.get(server.url + "/stall").json()
        if answer.status_code == 503 and 503 not in statuses:
            continue
        assert answer.status_code in statuses, answer.text[:500]
        if stall <= PROMPT or stall <= 5 * (call := one_long_call()):
            return
        stalls.append((round(stall, 3), round(call, 3)))
    pytest.fail(f"the event loop was kept for (s, one call) {stalls}" if stalls else f"no answer: {answer.text[:500]}")


def one_long_call() -> float:
    """Seconds of processor time for which a document of the permitted size keeps an interpreter on this machine, as it is now."""
    began = time.process_time()
    json.loads(LARGEST)
    return time.process_time() - began


MOST = aside.MAX_VALUES - 100  # values of a body that is accepted


def filled(unit: str, around: tuple[str, str], limit: int = 1_900_000, most: int = MOST) -> str:
    """JSON of about so many bytes or values: one thing again and again."""
    values = 1 + unit.count(",") + sum(unit.count(kind) for kind in "[{") - unit.count("[]") - unit.count("{}")
    return around[0] + ",".join([unit] * min(limit // (len(unit) + 1), most // values)) + around[1]


AROUND = ('{"a":[', "]}")
UNITS = {
    "lists": "[]",
    "objects": '{"b":1}',
    "integers": "123456789",
    "fractions": "0.123456789",
    "texts": '"\\u00e9\\u00e9"',
    "deep": "[" * 60 + "]" * 60,
    "long": '"' + "x" * 40_000 + '"',
}
LARGE = {kind: filled(unit, AROUND) for kind, unit in UNITS.items()}
LARGE["keys"] = '{"a":{' + ",".join(f'"k{n}":1.5' for n in range(MOST)) + "}}"
JSON = {"Content-Type": "application/json"}


def body(metadata: str, **more: Any) -> str:
    return json.dumps({"owner": "ann"} | more)[:-1] + f', "metadata": {metadata}}}'


@pytest.mark.parametrize("kind", LARGE)
def test_creating_and_patching_what_is_large(watched: Product, http: httpx2.Client, kind: str) -> None:
    prompt = partial(stays_prompt, watched)
    prompt(lambda: http.post(NODES, content=body(LARGE[kind]), headers=JSON), 201)
    node = http.post(NODES, content=body(LARGE[kind]), headers=JSON).json()["memoryNodeId"]
    prompt(lambda: http.patch(f"{NODES}/{node}", json={"metadata": {"small": {"a": 1}}}), 200)
    prompt(lambda: http.get(f"{NODES}/{node}"), 200)
    prompt(lambda: http.get(NODES), 200)
    prompt(lambda: http.patch(f"{NODES}/{node}", content=body(LARGE["keys"]).replace('"owner": "ann", ', ""), headers=JSON), 200, 422)  # fmt: skip


@pytest.mark.parametrize("kind", ["lists", "deep"])
def test_many_of_what_is_large(watched: Product, http: httpx2.Client, kind: str) -> None:
    content = "[" + ",".join([body(LARGE[kind], content="kumquat")] * 40) + "]"
    stays_prompt(watched, lambda: http.post(f"{NODES}:batch", content=content, headers=JSON), 200)
    stays_prompt(watched, lambda: http.get(NODES), 200)
    asked = {"query": "kumquat", "mode": "keyword", "topK": 50}
    stays_prompt(watched, lambda: http.post("/v1/memory/search", json=asked), 200, 413)


VALUES = [f"v{n}" for n in range(1000)]
FILTERS: dict[str, dict[str, Any]] = {
    "in": {"metadata.a": {"$in": list(range(2, 1002))}},
    "all": {"metadata.a": {"$all": list(range(1, 1001))}},
    "nin": {"metadata.a": {"$nin": VALUES}},
    "many": {"$or": [{"metadata.a": {"$in": VALUES}} for _ in range(64)]},
    "paths": {"$or": [{f"metadata.a.k{n}": n} for n in range(64)]},
    "ranges": {"$or": [{"metadata.a": {"$gt": n, "$lt": n}} for n in range(2, 34)]},
}


@pytest.mark.parametrize("kind", FILTERS)
def test_filters_over_what_is_large(watched: Product, http: httpx2.Client, kind: str) -> None:
    for shape in ("integers", "objects"):
        for _ in range(1):
            made = http.post(NODES + "?wait=indexed", content=body(LARGE[shape], content="kumquat"), headers=JSON)
            assert made.status_code in (201, 202)  # where the machine is busy, its vector comes later than its words
    where = FILTERS[kind]
    if len(json.dumps(where)) < 60_000:
        stays_prompt(watched, lambda: http.get(NODES, params={"filter": json.dumps(where)}), 200, 422)
    for mode in ("keyword", "semantic"):
        asked = {"query": "kumquat", "mode": mode, "filter": where}
        stays_prompt(watched, lambda asked=asked: http.post("/v1/memory/search", json=asked), 200, 422, 503)  # type: ignore[misc]


def test_flags_of_many_paths_over_what_is_large(watched: Product, http: httpx2.Client, some: httpx2.Client) -> None:
    flags = {"containsPii": True, "paths": [f"metadata.a.k{n}" for n in range(64)]}
    for _ in range(2):
        made = http.post(NODES + "?wait=indexed", content=body(LARGE["objects"], content="kumquat", piiFlags=flags), headers=JSON)  # fmt: skip
        assert made.status_code == 201
    node = made.json()["memoryNodeId"]
    stays_prompt(watched, lambda: some.get(f"{NODES}/{node}"), 200)
    stays_prompt(watched, lambda: some.get(NODES), 200)
    asked = {"query": "kumquat", "mode": "keyword", "filter": {"metadata.x": None}}
    stays_prompt(watched, lambda: some.post("/v1/memory/search", json=asked), 200)


def test_many_rows_and_comparisons(watched: Product, http: httpx2.Client) -> None:
    for _ in range(3):
        nodes = [{"owner": "ann", "metadata": {"a": list(range(100)), "n": n}} for n in range(1000)]
        assert http.post(f"{NODES}:batch", json=nodes).status_code == 200
    where = json.dumps({"$or": [{"metadata.a": {"$gt": 1000 + n}} for n in range(64)]})
    stays_prompt(watched, lambda: http.get(NODES, params={"filter": where}), 200)


@pytest.mark.parametrize("kind", ["lists", "fractions"])
@pytest.mark.parametrize("lines", [False, True])
def test_bulk_requests(watched: Product, http: httpx2.Client, kind: str, lines: bool) -> None:
    one = body(filled({"lists": "[]", "fractions": "0.1"}[kind], ('{"a":[', "]}"), 60_000))
    items = [one] * 100
    content = "\n".join(items) if lines else "[" + ",".join(items) + "]"
    head = {"Content-Type": "application/x-ndjson" if lines else "application/json"}
    stays_prompt(watched, lambda: http.post(f"{NODES}:batch", content=content, headers=head), 200)


REFUSED = {
    "lists": body(filled("[]", AROUND, most=1_000_000)),
    "deep": body(filled(UNITS["deep"], AROUND, most=1_000_000)),
    "texts": body(filled('""', AROUND, most=1_000_000)),
    "brackets": "[" * 2_000_000,
    "digits": '{"owner": "ann", "metadata": {"a": ' + "1" * 1_900_000 + "}}",
    "same key": '{"owner": "ann", "metadata": {' + ",".join(['"a": 1'] * 200_000) + "}}",
    "unknown name": json.dumps({"owner": "ann", " - at `" * 200_000: 1}),
    "escapes": '{"owner": "ann", "metadata": {"a": "' + "\\ud800" * 300_000 + '"}}',
    "exponents": '{"owner": "ann", "metadata": {"a": [' + ",".join(["1e-400"] * 250_000) + "]}}",
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_refused(watched: Product, http: httpx2.Client, kind: str) -> None:
    for path in (NODES, "/v1/memory/search"):
        stays_prompt(watched, lambda path=path: http.post(path, content=REFUSED[kind], headers=JSON), 400, 413, 422)  # type: ignore[misc]
    bulk = "[" + ",".join([REFUSED[kind]] * 4) + "]"
    stays_prompt(watched, lambda: http.post(f"{NODES}:batch", content=bulk, headers=JSON), 200, 400, 413, 422)


def test_vectors_and_queries(watched: Product, http: httpx2.Client) -> None:
    vector = "[" + ",".join(["0.5"] * 480_000) + "]"
    asked = '{"mode": "semantic", "queryEmbedding": ' + vector + "}"
    create(http, content="x", embedding={"model": "m", "dimension": 2, "vector": [1, 0]})
    stays_prompt(watched, lambda: http.post("/v1/memory/search", content=asked, headers=JSON), 200, 422)
    made = '{"owner": "ann", "embedding": {"model": "m", "dimension": 2, "vector": ' + vector + "}}"
    stays_prompt(watched, lambda: http.post(NODES, content=made, headers=JSON), 422)
    words = {"query": ("word" + " wor" * 6000)[:20000], "mode": "keyword"}
    stays_prompt(watched, lambda: http.post("/v1/memory/search", json=words), 200)
    values = {f"metadata.{'k' * 900}{n}": {"$in": VALUES} for n in range(64)}
    asked_for = {"query": "x", "mode": "keyword", "filter": values}
    stays_prompt(watched, lambda: http.post("/v1/memory/search", json=asked_for), 200)
