"""No answer is larger than 16 MB as it is sent, however well what it holds was compressed in the database."""

from __future__ import annotations

import json
from typing import Any

import httpx2

from tests.api.door import check_error, create, create_indexed, search, sha256
from tests.support.product import Product

NODES = "/v1/memory/nodes"
MOST = 16 * 2**20


def fill(http: httpx2.Client, count: int, **more: Any) -> list[str]:
    """Nodes of 1.9 MB each, which Postgres keeps in some kilobytes."""
    nodes = []
    for _ in range(count):
        body = {"content": "kumquat", "metadata": {"blob": "y" * 1_900_000, "n": 7}} | more
        nodes.append(create_indexed(http, **body))
    return nodes


def test_a_list_ends_its_page_and_goes_on(http: httpx2.Client) -> None:
    nodes = fill(http, 12)
    for where in ({}, {"filter": json.dumps({"metadata.n": 7})}):
        listed: list[str] = []
        cursor: dict[str, str] = {}
        pages = 0
        while True:
            page = http.get(NODES, params={"limit": "100"} | where | cursor)
            assert page.status_code == 200
            assert len(page.content) <= MOST
            listed += [node["memoryNodeId"] for node in page.json()["items"]]
            pages += 1
            if page.json()["nextCursor"] is None:
                break
            cursor = {"cursor": page.json()["nextCursor"]}
        assert listed == nodes[::-1]
        assert pages > 1


def test_a_search_is_refused_and_says_what_to_do(http: httpx2.Client) -> None:
    nodes = fill(http, 12)
    for mode in ("keyword", "semantic", "hybrid"):
        asked = {"query": "kumquat", "mode": mode, "topK": 100}
        error = check_error(http.post("/v1/memory/search", json=asked), 413, "PAYLOAD_TOO_LARGE")
        assert "smaller topK" in error["message"]
        answer = search(http, **asked | {"topK": 5})
        assert len(answer["results"]) == 5
        assert all(len(hit["metadata"]["blob"]) == 1_900_000 for hit in answer["results"])
        # What is long is compared as a whole, too.
        found = search(http, **asked | {"topK": 5, "filter": {"metadata.blob": "y" * 1_900_000, "metadata.n": 7}})
        assert {hit["memoryNodeId"] for hit in found["results"]} <= set(nodes)
        assert len(found["results"]) == 5
        assert search(http, **asked | {"filter": {"metadata.n": 8}})["results"] == []


def test_a_node_with_large_files(http: httpx2.Client, product: Product, tenant: str) -> None:
    node = create(http, content="x")
    content = tenant.encode()
    url = http.put("/v1/memory/artifacts", params={"memoryNodeId": node}, content=content).json()["url"]
    facts = {"url": url, "sha256": sha256(content), "sizeBytes": len(content), "node": node}
    for _ in range(10):
        made = http.post("/v1/memory/artifacts", json=facts | {"metadata": {"blob": "z" * 1_900_000}})
        assert made.status_code == 201, made.text[:300]
    shown = http.get(f"{NODES}/{node}")
    assert len(shown.content) <= MOST
    assert len(shown.json()["artifacts"]) + shown.json()["artifactsLeftOut"] == 11
    (listed,) = http.get(NODES).json()["items"]
    assert listed == shown.json()
    small = create(http, content="y")
    assert "artifactsLeftOut" not in http.get(f"{NODES}/{small}").json()


def test_a_node_with_many_files_is_found_with_all_of_them(http: httpx2.Client, tenant: str) -> None:
    node = create_indexed(http, content="kumquat")
    put = [
        http.put("/v1/memory/artifacts", params={"memoryNodeId": node}, content=f"{tenant}{n}").json()["artifactId"]
        for n in range(70)
    ]
    (hit,) = search(http, query="kumquat", mode="keyword")["results"]
    assert hit["artifactIds"] == put
