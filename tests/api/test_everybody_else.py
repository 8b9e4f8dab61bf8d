"""Whatever one request asks for, the process goes on answering the others: the worst of each kind, and /livez meanwhile."""

from __future__ import annotations

import http.client
import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, Self
from urllib.parse import urlsplit

import httpx2
import pytest

from tests.api.door import NO_PII, connect, create
from tests.support.product import Product

pytestmark = pytest.mark.slow

NODES = "/v1/memory/nodes"
PROMPT = 0.1  # seconds, on a machine that has nothing else to do
TRIES = 3  # a stall is there each time, a busy machine is not


class Pulse:
    """Asks /livez again and again; ``worst`` is the longest that an answer took."""

    def __init__(self, url: str) -> None:
        self._address = urlsplit(url)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True)
        self.worst = 0.0
        self.beats = 0

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(60)

    def _beat(self) -> None:
        connection = http.client.HTTPConnection(self._address.hostname or "", self._address.port, timeout=120)
        while not self._stop.is_set():
            started = time.perf_counter()
            connection.request("GET", "/livez")
            assert connection.getresponse().read()
            self.worst = max(self.worst, time.perf_counter() - started)
            self.beats += 1
            self._stop.wait(0.002)


def stays_prompt(product: Product, ask: Callable[[], httpx2.Response], *statuses: int) -> None:
    worst, idle = [], []
    for _ in range(TRIES):
        with Pulse(product.url) as alone:
            until = time.monotonic() + 0.3
            while time.monotonic() < until and alone.beats < 100:
                time.sleep(0.01)
        with Pulse(product.url) as pulse:
            answer = ask()
            assert answer.status_code in statuses, answer.text[:500]
        worst.append(pulse.worst)
        idle.append(alone.worst)
        # A thread that others keep from its processor keeps the interpreter, too.
        crowd = max(1.0, 2 * os.getloadavg()[0] / (os.cpu_count() or 1))
        if pulse.worst <= PROMPT * crowd + 10 * alone.worst:
            return
    pytest.fail(f"/livez took {worst} s meanwhile, and {idle} s with nothing else to do")


@pytest.fixture
def some(product: Product, tenant: str) -> Iterator[httpx2.Client]:
    with connect(product, tenant, NO_PII, "some") as client:
        yield client


def filled(unit: str, around: tuple[str, str], limit: int = 1_900_000) -> str:
    """JSON of about so many bytes: one thing again and again."""
    return around[0] + ",".join([unit] * (limit // (len(unit) + 1))) + around[1]


LARGE = {
    "lists": filled("[]", ('{"a":[', "]}")),
    "objects": filled('{"b":1}', ('{"a":[', "]}")),
    "integers": filled("1", ('{"a":[', "]}")),
    "fractions": filled("0.1", ('{"a":[', "]}")),
    "texts": filled('"\\u00e9"', ('{"a":[', "]}")),
    "keys": '{"a":{' + ",".join(f'"k{n}":1.5' for n in range(140_000)) + "}}",
    "deep": '{"a":[' + ",".join(["[" * 60 + "]" * 60] * 15_000) + "]}",
}
JSON = {"Content-Type": "application/json"}


def body(metadata: str, **more: Any) -> str:
    return json.dumps({"owner": "ann"} | more)[:-1] + f', "metadata": {metadata}}}'


@pytest.mark.parametrize("kind", LARGE)
def test_creating_and_patching_what_is_large(product: Product, http: httpx2.Client, kind: str) -> None:
    stays_prompt(product, lambda: http.post(NODES, content=body(LARGE[kind]), headers=JSON), 201)
    node = http.post(NODES, content=body(LARGE[kind]), headers=JSON).json()["memoryNodeId"]
    stays_prompt(product, lambda: http.patch(f"{NODES}/{node}", json={"metadata": {"small": {"a": 1}}}), 200)
    stays_prompt(product, lambda: http.get(f"{NODES}/{node}"), 200)
    stays_prompt(product, lambda: http.get(NODES), 200)
    stays_prompt(product, lambda: http.patch(f"{NODES}/{node}", content=body(LARGE["keys"])[:-1].replace('"owner": "ann", ', "") + "}", headers=JSON), 200, 422)  # fmt: skip


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
def test_filters_over_what_is_large(product: Product, http: httpx2.Client, kind: str) -> None:
    for shape in ("integers", "objects"):
        for _ in range(1):
            made = http.post(NODES + "?wait=indexed", content=body(LARGE[shape], content="kumquat"), headers=JSON)
            assert made.status_code == 201
    where = FILTERS[kind]
    if len(json.dumps(where)) < 60_000:
        stays_prompt(product, lambda: http.get(NODES, params={"filter": json.dumps(where)}), 200, 422)
    for mode in ("keyword", "semantic"):
        asked = {"query": "kumquat", "mode": mode, "filter": where}
        stays_prompt(product, lambda asked=asked: http.post("/v1/memory/search", json=asked), 200, 422, 503)  # type: ignore[misc]


def test_flags_of_many_paths_over_what_is_large(product: Product, http: httpx2.Client, some: httpx2.Client) -> None:
    flags = {"containsPii": True, "paths": [f"metadata.a.k{n}" for n in range(64)]}
    for _ in range(2):
        made = http.post(NODES + "?wait=indexed", content=body(LARGE["objects"], content="kumquat", piiFlags=flags), headers=JSON)  # fmt: skip
        assert made.status_code == 201
    node = made.json()["memoryNodeId"]
    stays_prompt(product, lambda: some.get(f"{NODES}/{node}"), 200)
    stays_prompt(product, lambda: some.get(NODES), 200)
    asked = {"query": "kumquat", "mode": "keyword", "filter": {"metadata.x": None}}
    stays_prompt(product, lambda: some.post("/v1/memory/search", json=asked), 200)


def test_many_rows_and_comparisons(product: Product, http: httpx2.Client) -> None:
    for _ in range(3):
        nodes = [{"owner": "ann", "metadata": {"a": list(range(100)), "n": n}} for n in range(1000)]
        assert http.post(f"{NODES}:batch", json=nodes).status_code == 200
    where = json.dumps({"$or": [{"metadata.a": {"$gt": 1000 + n}} for n in range(64)]})
    stays_prompt(product, lambda: http.get(NODES, params={"filter": where}), 200)


@pytest.mark.parametrize("kind", ["lists", "fractions"])
@pytest.mark.parametrize("lines", [False, True])
def test_bulk_requests(product: Product, http: httpx2.Client, kind: str, lines: bool) -> None:
    one = body(filled({"lists": "[]", "fractions": "0.1"}[kind], ('{"a":[', "]}"), 60_000))
    items = [one] * 100
    content = "\n".join(items) if lines else "[" + ",".join(items) + "]"
    head = {"Content-Type": "application/x-ndjson" if lines else "application/json"}
    stays_prompt(product, lambda: http.post(f"{NODES}:batch", content=content, headers=head), 200)


REFUSED = {
    "brackets": "[" * 2_000_000,
    "digits": '{"owner": "ann", "metadata": {"a": ' + "1" * 1_900_000 + "}}",
    "same key": '{"owner": "ann", "metadata": {' + ",".join(['"a": 1'] * 200_000) + "}}",
    "unknown name": json.dumps({"owner": "ann", " - at `" * 200_000: 1}),
    "escapes": '{"owner": "ann", "metadata": {"a": "' + "\\ud800" * 300_000 + '"}}',
    "exponents": '{"owner": "ann", "metadata": {"a": [' + ",".join(["1e-400"] * 250_000) + "]}}",
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_refused(product: Product, http: httpx2.Client, kind: str) -> None:
    for path in (NODES, "/v1/memory/search"):
        stays_prompt(product, lambda path=path: http.post(path, content=REFUSED[kind], headers=JSON), 400, 422)  # type: ignore[misc]
    bulk = "[" + ",".join([REFUSED[kind]] * 4) + "]"
    stays_prompt(product, lambda: http.post(f"{NODES}:batch", content=bulk, headers=JSON), 200, 400, 413, 422)


def test_vectors_and_queries(product: Product, http: httpx2.Client) -> None:
    vector = "[" + ",".join(["0.5"] * 480_000) + "]"
    asked = '{"mode": "semantic", "queryEmbedding": ' + vector + "}"
    create(http, content="x", embedding={"model": "m", "dimension": 2, "vector": [1, 0]})
    stays_prompt(product, lambda: http.post("/v1/memory/search", content=asked, headers=JSON), 200, 422)
    made = '{"owner": "ann", "embedding": {"model": "m", "dimension": 2, "vector": ' + vector + "}}"
    stays_prompt(product, lambda: http.post(NODES, content=made, headers=JSON), 422)
    words = {"query": ("word" + " wor" * 6000)[:20000], "mode": "keyword"}
    stays_prompt(product, lambda: http.post("/v1/memory/search", json=words), 200)
    values = {f"metadata.{'k' * 900}{n}": {"$in": VALUES} for n in range(64)}
    asked_for = {"query": "x", "mode": "keyword", "filter": values}
    stays_prompt(product, lambda: http.post("/v1/memory/search", json=asked_for), 200)
