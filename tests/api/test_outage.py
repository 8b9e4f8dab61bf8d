"""The vector store goes down and comes back, seen through HTTP alone: a second Postgres with pgvector, and Pinecone (emulated)."""

from __future__ import annotations

import contextlib
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import httpx2
import pytest

from memory_layer.ops import embedded
from tests.api.door import check_error, connect, create, create_indexed, embedding, eventually, found_ids, search
from tests.support.folders import make_data_folder
from tests.support.pinecone_server import KEY, running_pinecone
from tests.support.product import Product, running_product

JOBS = "/v1/memory/vectors/jobs"
pytestmark = pytest.mark.slow
DRAINED_WITHIN = 90.0  # seconds: the breaker's longest pause is 8, and the machine may be busy


@dataclass
class Breakable:
    """A product whose vector store can be stopped and started."""

    product: Product
    stop: Callable[[], None]
    start: Callable[[], None]


def running(**environment: str) -> contextlib.AbstractContextManager[Product]:
    return running_product(environment={"EMBEDDINGS_PROVIDER": "none"} | environment)


@contextlib.contextmanager
def pgvector_elsewhere() -> Iterator[Breakable]:
    folder = make_data_folder()
    clusters = [embedded.start(folder, durable=False)]
    try:
        embedded.prepare_database(clusters[0])
        dsn = clusters[0].dsn("memory_owner")

        def start() -> None:
            clusters.append(embedded.start(folder, durable=False))
            assert clusters[-1].dsn("memory_owner") == dsn

        with running(VECTOR_DB_ENDPOINT=dsn) as product:
            yield Breakable(product, clusters[0].stop, start)
    finally:
        clusters[-1].stop()
        shutil.rmtree(folder.parent, ignore_errors=True)


@contextlib.contextmanager
def pinecone() -> Iterator[Breakable]:
    with running_pinecone(2) as server:
        settings = {"VECTOR_DB_PROVIDER": "pinecone", "VECTOR_DB_ENDPOINT": server.url, "VECTOR_DB_API_KEY": KEY}

        def stop() -> None:
            server.set_fault("torn")

        def start() -> None:
            server.set_fault(None)

        with running(**settings) as product:
            yield Breakable(product, stop, start)


@pytest.fixture(scope="module", params=[pgvector_elsewhere, pinecone], ids=lambda make: make.__name__)
def breakable(request: pytest.FixtureRequest) -> Iterator[Breakable]:
    with request.param() as made:
        yield made


def health(product: Product) -> dict[str, Any]:
    answer = httpx2.get(product.url + "/healthz", timeout=30)
    assert answer.status_code == 200  # the service as a whole is not down
    return dict(answer.json())


def test_an_outage_stops_nothing_but_search_by_meaning_and_is_made_up_for(breakable: Breakable, tenant: str) -> None:
    product = breakable.product
    with connect(product, tenant) as http:
        old = create_indexed(http, content="cats purring", embedding=embedding(1, 0))
        gone = create_indexed(http, content="dogs barking", embedding=embedding(1, 0.1))
        changed = create_indexed(http, content="birds singing", embedding=embedding(1, 0.2))
        assert health(product)["status"] == "ok"
        by_meaning = {"queryEmbedding": [1, 0], "topK": 100}

        breakable.stop()
        # Writes go on.
        new = [create(http, content=f"lizard number {n}", embedding=embedding(1, n)) for n in range(30)]
        patched = http.patch(
            f"/v1/memory/nodes/{changed}", json={"content": "bats flying", "embedding": embedding(0, 1)}
        )
        assert patched.status_code == 200
        assert http.delete(f"/v1/memory/nodes/{gone}").status_code == 204
        # Health says so: the API's own look, and what the worker found.
        degraded = eventually(lambda: health(product), lambda h: h["breakers"] != {}, 60)
        assert (degraded["status"], degraded["checks"]["vectors"]) == ("degraded", "down")
        assert degraded["breakers"]["vectors"] in ("open", "half_open")
        shown = httpx2.get(product.url + "/metrics", timeout=30).text
        assert re.search(r'^memory_breaker_state\{service="vectors"\} [12]\.0$', shown, re.MULTILINE)
        assert re.search(r'^memory_index_queue_rows\{status="pending"\} (?!0\.0)', shown, re.MULTILINE)
        # Search by meaning is refused, by words it goes on, what was written meanwhile included; both at once say that they fell back.
        refused = check_error(http.post("/v1/memory/search", json=by_meaning), 503, "VECTOR_STORE_UNAVAILABLE")
        assert refused["retryable"]
        assert found_ids(http, query="cats", mode="keyword") == [old]
        assert found_ids(http, query="dogs", mode="keyword") == []
        eventually(lambda: found_ids(http, query="flying bats", mode="keyword"), lambda ids: ids == [changed], 60)
        assert eventually(
            lambda: set(found_ids(http, query="lizards", mode="keyword", topK=50)), lambda ids: ids == set(new), 60
        )
        fallen = search(http, query="cats", mode="hybrid", **by_meaning)
        assert ([hit["memoryNodeId"] for hit in fallen["results"]], fallen["degraded"]) == ([old], True)
        # No row has spent an attempt, however often it was looked at.
        jobs = [http.get(f"/v1/memory/nodes/{node}").json()["vector"]["jobId"] for node in new]
        waiting = [http.get(f"{JOBS}/{job}").json() for job in jobs]
        assert {job["status"] for job in waiting} <= {"pending", "in_flight"}
        assert max(job["attempts"] for job in waiting if job["status"] == "pending") == 0

        breakable.start()
        drained = eventually(
            lambda: {http.get(f"{JOBS}/{job}").json()["status"] for job in jobs},
            lambda statuses: statuses == {"succeeded"},
            DRAINED_WITHIN,
        )
        assert drained == {"succeeded"}
        assert max(http.get(f"{JOBS}/{job}").json()["attempts"] for job in jobs) == 1
        eventually(lambda: set(found_ids(http, **by_meaning)), lambda ids: ids == {old, changed, *new})
        assert found_ids(http, queryEmbedding=[0, 1], topK=1) == [changed]
        well = eventually(lambda: health(product), lambda h: h["status"] == "ok")
        assert (well["breakers"], well["checks"]["vectors"]) == ({}, "ok")
    done = product.ctl("audit", "verify", "--data", str(product.data))
    assert done.returncode == 10, done.stdout  # nothing but the missing anchor


def test_a_start_without_its_vector_store_is_ready_all_the_same(tenant: str) -> None:
    """Pinecone, for `up` brings pgvector's schema up to date before it starts."""
    with running_pinecone(2) as server:
        server.set_fault("torn")
        settings = {"VECTOR_DB_PROVIDER": "pinecone", "VECTOR_DB_ENDPOINT": server.url, "VECTOR_DB_API_KEY": KEY}
        with running(**settings) as product, connect(product, tenant) as http:
            ready = http.get("/readyz")
            assert (ready.status_code, ready.json()["checks"]) == (
                200,
                {"migrations": "ok", "signer": "ok", "log": "ok"},
            )
            node = create(http, embedding=embedding(1, 0))
            server.set_fault(None)
            eventually(lambda: found_ids(http, queryEmbedding=[1, 0]), lambda ids: ids == [node], DRAINED_WITHIN)
