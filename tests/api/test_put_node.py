"""PUT under the caller's own id: created or replaced, one row whatever comes at once, and nothing that a hold, a flag or the log forbids."""

from __future__ import annotations

import asyncio
import json
from typing import Any
from urllib.parse import quote

import httpx2
import pytest

from memory_layer.client import MemoryClient
from memory_layer.model import SCOPES
from tests.api.door import (
    NO_PII,
    check_error,
    connect,
    create,
    embedding,
    eventually,
    found_ids,
    listed_ids,
)
from tests.support.product import Product

NODES = "/v1/memory/nodes"
BY = f"{NODES}/by-external"


def put(http: httpx2.Client, name: str, *, headers: dict[str, str] | None = None, **body: Any) -> httpx2.Response:
    return http.put(f"{BY}/{quote(name, safe='')}", json={"owner": "ann"} | body, headers=headers or {})


def test_it_creates_and_then_replaces_everything(http: httpx2.Client) -> None:
    first = put(
        http,
        "doc-1",
        content="the old text",
        metadata={"a": 1, "keep": None, "deep": {"x": 1}},
        subjects=["ann", "eve"],
        ttlSeconds=7200,
        occurredAt="2026-01-31T09:30:00Z",
        language="en",
        thread="a talk",
        position=3,
    )
    assert (first.status_code, first.headers["etag"]) == (201, '"1"')
    node = first.json()["memoryNodeId"]
    shown = http.get(f"{NODES}/{node}").json()
    assert (shown["embeddingId"], shown["metadata"]["keep"], shown["version"]) == ("doc-1", None, 1)
    second = put(http, "doc-1", owner="bob", content="a lighthouse", metadata={"b": None, "deep": {"y": 2}})
    assert (second.status_code, second.headers["etag"]) == (200, '"2"')
    assert second.json()["memoryNodeId"] == node
    shown = http.get(f"{NODES}/{node}").json()
    assert shown["metadata"] == {"b": None, "deep": {"y": 2}}
    assert (shown["owner"], shown["subjects"], shown["content"]) == ("bob", ["bob"], "a lighthouse")
    assert [shown[name] for name in ("ttlSeconds", "expiresAt", "occurredAt", "language", "thread", "position")] == [
        None
    ] * 6
    assert shown["audit"]["type"] == "memory.node.updated"
    payload = http.get(f"/v1/audit/events/{second.json()['auditId']}").json()["payload"]["value"]
    assert payload["metadata"] == {"b": None, "deep": {"y": 2}}
    assert listed_ids(http) == [node]
    for mode in ("keyword", "semantic"):
        eventually(lambda mode=mode: found_ids(http, query="lighthouse", mode=mode), lambda ids: ids == [node])
    assert found_ids(http, query="old", mode="keyword") == []


@pytest.mark.parametrize(
    "name", ["a/b", "a/../x", "ä ö", "a?b#c", "x" * 512, "%2F", "history", "a//", "[1]", "a\nb", "\n"]
)
def test_any_id_can_be_in_the_path(http: httpx2.Client, name: str) -> None:
    assert put(http, name, metadata={"n": 1}).status_code == 201
    assert put(http, name, metadata={"n": 2}, embeddingId=name).status_code == 200
    (found,) = http.get(NODES, params={"filter": json.dumps({"embeddingId": name})}).json()["items"]
    assert (found["embeddingId"], found["metadata"]) == (name, {"n": 2})


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("x" * 513, {}),
        ("a%00", {}),
        ("a%FF", {}),
        ("", {}),
        ("a", {"embeddingId": "b"}),
        ("a", {"legalHold": True}),
        ("a", {"artifacts": []}),
        ("a", {"owner": None}),
        ("a", {"metadata": None}),
        ("a", {"ttlSeconds": 1}),
        ("a", {"color": 1}),
    ],
)
def test_what_does_not_fit_is_refused(http: httpx2.Client, path: str, body: dict[str, Any]) -> None:
    check_error(http.put(f"{BY}/{path}", json={"owner": "ann"} | body), 422, "VALIDATION_ERROR")
    assert listed_ids(http) == []


def test_if_match_names_what_must_be_there(http: httpx2.Client) -> None:
    for demand in ('"1"', "*"):
        check_error(put(http, "e", headers={"If-Match": demand}), 412, "PRECONDITION_FAILED")
    assert put(http, "e").status_code == 201
    assert put(http, "e", headers={"If-Match": '"1"'}).status_code == 200
    check_error(put(http, "e", headers={"If-Match": '"1"'}), 412, "PRECONDITION_FAILED")
    assert put(http, "e", headers={"If-Match": "*"}).json()["version"] == 3
    check_error(put(http, "e", headers={"If-Match": "x"}), 422, "VALIDATION_ERROR")


def test_the_same_request_is_answered_again(http: httpx2.Client) -> None:
    key = {"Idempotency-Key": "k1"}
    first = put(http, "e", headers=key, content="one")
    again = put(http, "e", headers=key, content="one")
    assert (first.status_code, again.status_code, again.headers["idempotency-replayed"]) == (201, 200, "true")
    assert again.json() == first.json()
    check_error(put(http, "e", headers=key, content="two"), 422, "IDEMPOTENCY_MISMATCH")
    second = put(http, "e", headers={"Idempotency-Key": "k2", "If-Match": '"1"'}, content="two")
    assert second.json()["version"] == 2
    # The version that it demanded is gone, the node too: it was done, and is not done again.
    assert http.delete(f"{NODES}/{first.json()['memoryNodeId']}").status_code == 204
    again = put(http, "e", headers={"Idempotency-Key": "k2", "If-Match": '"1"'}, content="two")
    assert again.json() == second.json()
    assert listed_ids(http) == []
    other = put(http, "e", content="three")
    assert (other.status_code, other.json()["version"]) == (201, 1)
    assert other.json()["memoryNodeId"] != first.json()["memoryNodeId"]


def test_a_hold_a_flag_and_another_namespace_refuse_it(http: httpx2.Client, product: Product, tenant: str) -> None:
    node = put(http, "e", content="x", piiFlags={"containsPii": True}).json()["memoryNodeId"]
    with connect(product, tenant, NO_PII, "some") as some:
        check_error(put(some, "e", content="y"), 403, "FORBIDDEN")
        assert put(some, "e", content="y", piiFlags={"containsPii": True}).status_code == 200
    with connect(product, tenant, ("memory:read",), "reader") as reader:
        check_error(put(reader, "e", content="y"), 403, "FORBIDDEN")
    with connect(product, f"{tenant}-other") as stranger:  # whose id it is as well
        assert put(stranger, "e", content="z").json()["memoryNodeId"] != node
    check_error(put(http, "e", content="x", namespace="elsewhere"), 409, "CONFLICT")
    assert http.post(f"{NODES}/{node}/legal-hold", json={"legalHold": True, "reason": "case 7"}).status_code == 204
    error = check_error(put(http, "e", content="y", piiFlags={"containsPii": True}), 409, "LEGAL_HOLD")
    assert "case 7" in error["message"]
    shown = http.get(f"{NODES}/{node}").json()
    assert (shown["version"], shown["content"], shown["legalHold"]) == (3, "y", True)


def test_a_callers_own_vector_is_replaced_along(http: httpx2.Client) -> None:
    assert put(http, "e", content="x", namespace="own", embedding=embedding(1, 0)).status_code == 201
    check_error(put(http, "e", content="y"), 422, "VALIDATION_ERROR")
    check_error(put(http, "e", content="y", embedding=embedding(1, 0, 0)), 422, "DIMENSION_MISMATCH")
    node = put(http, "e", content="y", embedding=embedding(0, 1)).json()["memoryNodeId"]
    shown = http.get(f"{NODES}/{node}").json()
    assert (shown["version"], shown["namespace"]) == (2, "own")
    eventually(
        lambda: http.post("/v1/memory/search", json={"queryEmbedding": [0, 1], "namespace": "own"}).json()["results"],
        lambda hits: [round(hit["score"], 3) for hit in hits] == [1.0],
    )


def test_nothing_left_to_index_leaves_the_index(http: httpx2.Client) -> None:
    put(http, "e", content="a lighthouse")
    eventually(lambda: len(found_ids(http, query="lighthouse", mode="semantic")), lambda n: n == 1)
    put(http, "e", metadata={"k": 1})
    for mode in ("keyword", "semantic"):
        eventually(lambda mode=mode: found_ids(http, query="lighthouse", mode=mode), lambda ids: ids == [])


def test_a_row_that_is_not_what_the_log_says_is_not_replaced(http: httpx2.Client, product: Product) -> None:
    node = put(http, "e", content="x").json()["memoryNodeId"]
    with product.owner() as owner:
        owner.execute("UPDATE memory_nodes SET owner = 'eve' WHERE id = %s", [node])
        check_error(put(http, "e", content="y"), 409, "TAMPERED")
        owner.execute("UPDATE memory_nodes SET owner = 'ann' WHERE id = %s", [node])
    assert put(http, "e", content="y").status_code == 200


async def test_many_at_once_make_one_node(product: Product, tenant: str, http: httpx2.Client) -> None:
    headers = {"Authorization": f"Bearer {product.issue(tenant=tenant)}"}
    async with httpx2.AsyncClient(base_url=product.url, headers=headers, timeout=60) as client:
        bodies = [{"owner": "ann", "metadata": {"n": n}} for n in range(40)]
        answers = await asyncio.gather(*(client.put(f"{BY}/one", json=body) for body in bodies))
    assert sorted(answer.status_code for answer in answers) == [200] * 39 + [201]
    (node,) = {answer.json()["memoryNodeId"] for answer in answers}
    assert sorted(answer.json()["version"] for answer in answers) == list(range(1, 41))
    assert listed_ids(http) == [node]
    (last,) = (n for n, answer in enumerate(answers) if answer.json()["version"] == 40)
    assert http.get(f"{NODES}/{node}").json()["metadata"] == {"n": last}
    assert len(http.get(f"{NODES}/{node}/history").json()["items"]) == 40


async def test_beside_deletes_and_creates_there_is_never_more_than_one(
    product: Product, tenant: str, http: httpx2.Client
) -> None:
    headers = {"Authorization": f"Bearer {product.issue(tenant=tenant)}"}
    async with httpx2.AsyncClient(base_url=product.url, headers=headers, timeout=60) as client:

        async def once(n: int) -> int:
            if n % 3 == 0:
                return (await client.put(f"{BY}/two", json={"owner": "ann"})).status_code
            if n % 3 == 1:
                return (await client.post(NODES, json={"owner": "ann", "embeddingId": "two"})).status_code
            there = (await client.get(NODES)).json()["items"]
            return 0 if not there else (await client.delete(f"{NODES}/{there[0]['memoryNodeId']}")).status_code

        statuses = await asyncio.gather(*(once(n) for n in range(60)))
    assert set(statuses[::3]) <= {200, 201}
    assert set(statuses[1::3]) <= {201, 409}
    assert len(listed_ids(http)) <= 1


def test_the_client_has_it(product: Product, http: httpx2.Client, tenant: str) -> None:
    with MemoryClient(product.url, product.issue("tester", tenant, SCOPES)) as memory:
        made = memory.put("a/b", {"owner": "ann", "content": "x", "subjects": ("ann", "eve")})
        assert made.version == 1
        assert memory.put("a/b", {"owner": "ann", "content": "y"}, if_match=1).memory_node_id == made.memory_node_id
    assert http.get(f"{NODES}/{made['memoryNodeId']}").json()["content"] == "y"


def test_an_id_that_a_create_took_is_replaced(http: httpx2.Client) -> None:
    node = create(http, embeddingId="e", content="x")
    assert put(http, "e", content="y").json()["memoryNodeId"] == node
