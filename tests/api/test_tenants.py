"""One tenant never sees, changes or counts what another has."""

from __future__ import annotations

import uuid
from collections.abc import Iterator

import httpx2
import pytest

from tests.api.door import check_error, connect, create, create_indexed, embedding, found_ids, listed_ids
from tests.support.product import Product

NODES = "/v1/memory/nodes"


@pytest.fixture
def stranger(product: Product) -> Iterator[httpx2.Client]:
    with connect(product, f"t-{uuid.uuid4().hex[:12]}") as client:
        yield client


def test_reads_keep_apart(http: httpx2.Client, stranger: httpx2.Client) -> None:
    mine = create_indexed(http, content="a shared secret", metadata={"k": 1}, embeddingId="e")
    theirs = create_indexed(stranger, content="a shared secret", metadata={"k": 1}, embeddingId="e")
    for client, own in ((http, mine), (stranger, theirs)):
        assert listed_ids(client) == [own]
        assert listed_ids(client, filter='{"embeddingId":"e"}') == [own]
        assert listed_ids(client, filter='{"metadata.k":1}') == [own]
        for mode in ("semantic", "keyword", "hybrid"):
            assert found_ids(client, query="shared secret", mode=mode) == [own]
    check_error(http.get(f"{NODES}/{theirs}"), 404, "NOT_FOUND")
    check_error(http.get(f"{NODES}/{theirs}/history"), 404, "NOT_FOUND")
    assert listed_ids(http, filter=f'{{"memoryNodeId":"{theirs}"}}') == []


def test_writes_keep_apart(http: httpx2.Client, stranger: httpx2.Client) -> None:
    theirs = create(stranger, content="theirs")
    artifact = stranger.put("/v1/memory/artifacts", content=b"theirs").json()["artifactId"]
    for answer in (
        http.patch(f"{NODES}/{theirs}", json={"content": "mine"}),
        http.delete(f"{NODES}/{theirs}"),
        http.post(f"{NODES}/{theirs}/legal-hold", json={"legalHold": True, "reason": "x"}),
        http.put("/v1/memory/artifacts", params={"memoryNodeId": theirs}, content=b"x"),
        http.get(f"/v1/memory/artifacts/{artifact}"),
        http.get(f"/v1/memory/artifacts/{artifact}/content"),
    ):
        check_error(answer, 404, "NOT_FOUND")
    shown = stranger.get(f"{NODES}/{theirs}").json()
    assert (shown["content"], shown["version"], shown["artifacts"]) == ("theirs", 1, [])


def test_namespaces_of_one_name_may_differ(http: httpx2.Client, stranger: httpx2.Client) -> None:
    mine = create_indexed(http, namespace="n", embedding=embedding(1, 0))
    theirs = create_indexed(stranger, namespace="n", embedding=embedding(1, 0, 0, model="another"))
    assert found_ids(http, namespace="n", queryEmbedding=[1, 0]) == [mine]
    assert found_ids(stranger, namespace="n", queryEmbedding=[1, 0, 0]) == [theirs]


def test_equal_files_of_two_tenants_are_two_objects(http: httpx2.Client, stranger: httpx2.Client) -> None:
    one, two = (client.put("/v1/memory/artifacts", content=b"equal").json() for client in (http, stranger))
    assert one["sha256"] == two["sha256"]
    assert one["url"] != two["url"]


@pytest.mark.parametrize("name", ["a", "A.b_c:d@e-f", "x" * 63])
def test_every_tenant_name_that_a_token_may_hold_works(product: Product, name: str) -> None:
    with connect(product, name) as http:
        node = create_indexed(http, content="hello")
        assert node in found_ids(http, query="hello")
        stored = http.put("/v1/memory/artifacts", content=b"hello").json()
        assert http.get(f"/v1/memory/artifacts/{stored['artifactId']}/content").content == b"hello"
