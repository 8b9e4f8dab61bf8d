"""A list by a filter that is too long for a URL: it goes in a body, and the clients send it there by themselves."""

from __future__ import annotations

import httpx2

from memory_layer.client import MemoryClient
from memory_layer.model import SCOPES
from tests.api.door import check_error, create
from tests.support.product import Product

NODES = "/v1/memory/nodes"


def test_it_lists_as_the_url_does(http: httpx2.Client) -> None:
    nodes = [create(http, content="x", embeddingId=f"e{n}") for n in range(5)]
    where = {"embeddingId": {"$in": [f"e{n}" for n in range(4)] + [f"{n:064}" for n in range(990)]}}
    first = http.post(f"{NODES}:list", json={"filter": where, "limit": 3}).json()
    second = http.post(f"{NODES}:list", json={"filter": where, "cursor": first["nextCursor"]}).json()
    assert [node["memoryNodeId"] for node in first["items"] + second["items"]] == nodes[3::-1]
    assert second["nextCursor"] is None
    assert len(http.post(f"{NODES}:list", json={}).json()["items"]) == 5
    check_error(http.post(f"{NODES}:list", json={"filter": {"$no": 1}}), 422, "VALIDATION_ERROR")
    check_error(http.post(f"{NODES}:list", json={"filter": where, "cursor": "x"}), 400, "INVALID_CURSOR")


def test_the_client_needs_no_other_call(product: Product, http: httpx2.Client, tenant: str) -> None:
    node = create(http, content="x", embeddingId="wanted")
    with MemoryClient(product.url, product.issue("tester", tenant, SCOPES)) as memory:
        where = {"embeddingId": {"$in": ["wanted", *(f"ingest:{n:064x}" for n in range(999))]}}
        assert [found["memoryNodeId"] for found in memory.list(where)] == [node]
