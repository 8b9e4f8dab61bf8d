"""Idempotency-Key: a retry answers what the first answered and does nothing more."""

from __future__ import annotations

import asyncio
import uuid

import httpx2

from tests.api.door import check_error, connect, create, fingerprint, listed_ids
from tests.support.product import Product

NODES, ARTIFACTS = "/v1/memory/nodes", "/v1/memory/artifacts"


def test_a_create_again(http: httpx2.Client, product: Product, tenant: str) -> None:
    headers = {"Idempotency-Key": "k-1"}
    first = http.post(NODES, json={"owner": "ann", "embeddingId": "e"}, headers=headers)
    assert first.status_code == 201
    assert "idempotency-replayed" not in first.headers
    before = fingerprint(product, tenant)
    again = http.post(NODES, json={"owner": "ann", "embeddingId": "e"}, headers=headers)
    assert again.status_code == 200
    assert again.headers["idempotency-replayed"] == "true"
    assert again.json() == first.json()
    assert again.headers["x-audit-seq"] == first.headers["x-audit-seq"]
    assert fingerprint(product, tenant) == before
    # Another body, another path, another method: not this request.
    check_error(http.post(NODES, json={"owner": "bob"}, headers=headers), 422, "IDEMPOTENCY_MISMATCH")
    node = first.json()["memoryNodeId"]
    check_error(http.patch(f"{NODES}/{node}", json={"content": "x"}, headers=headers), 422, "IDEMPOTENCY_MISMATCH")
    check_error(http.delete(f"{NODES}/{node}", headers=headers), 422, "IDEMPOTENCY_MISMATCH")
    assert fingerprint(product, tenant) == before


def test_every_write_can_be_sent_again(http: httpx2.Client) -> None:
    node = create(http)
    url = f"{NODES}/{node}"
    for method, path, status, body in (
        ("PATCH", url, 200, {"metadata": {"n": 1}}),
        ("POST", f"{url}/legal-hold", 204, {"legalHold": True, "reason": "x"}),
        ("POST", f"{url}/legal-hold", 204, {"legalHold": False, "reason": "x"}),
        ("DELETE", url, 204, None),
    ):
        headers = {"Idempotency-Key": str(uuid.uuid4())}
        answers = [http.request(method, path, json=body, headers=headers) for _ in range(3)]
        assert [answer.status_code for answer in answers] == [status] * 3
        assert [answer.headers.get("idempotency-replayed") for answer in answers] == [None, "true", "true"]
        assert len({answer.content for answer in answers if status == 200}) <= 2  # the order of members may differ
        assert len({answer.headers["x-audit-seq"] for answer in answers}) == 1
    assert len(http.get(f"{url}/history").json()["items"]) == 5


def test_an_upload_again(http: httpx2.Client) -> None:
    headers = {"Idempotency-Key": "upload"}
    first = http.put(ARTIFACTS, content=b"abc", params={"name": "x"}, headers=headers)
    again = http.put(ARTIFACTS, content=iter([b"a", b"bc"]), params={"name": "x"}, headers=headers)
    assert (first.status_code, again.status_code) == (201, 200)
    assert again.json() == first.json()
    # The same length is not the same body.
    for content, name in ((b"xyz", "x"), (b"abc", "y")):
        other = http.put(ARTIFACTS, content=content, params={"name": name}, headers=headers)
        check_error(other, 422, "IDEMPOTENCY_MISMATCH")


def test_a_refused_write_leaves_its_key_free(http: httpx2.Client) -> None:
    node = create(http, legalHold=True)
    headers = {"Idempotency-Key": "later"}
    check_error(http.delete(f"{NODES}/{node}", headers=headers), 409, "LEGAL_HOLD")
    http.post(f"{NODES}/{node}/legal-hold", json={"legalHold": False, "reason": "x"})
    deleted = http.delete(f"{NODES}/{node}", headers=headers)
    assert deleted.status_code == 204
    assert "idempotency-replayed" not in deleted.headers


def test_a_create_whose_node_is_gone_is_still_answered(http: httpx2.Client) -> None:
    headers = {"Idempotency-Key": "k"}
    for url in (NODES, f"{NODES}?wait=indexed"):
        headers = {"Idempotency-Key": url}
        first = http.post(url, json={"owner": "ann", "content": "soon gone"}, headers=headers).json()
        http.delete(f"{NODES}/{first['memoryNodeId']}")
        again = http.post(url, json={"owner": "ann", "content": "soon gone"}, headers=headers)
        assert again.status_code in (200, 202)
        assert again.headers["idempotency-replayed"] == "true"
        # What was written is told as it was; whether it can be found, as it is now.
        assert again.json() == first | ({"indexed": False} if "wait" in url else {})


def test_keys_belong_to_a_service_of_a_tenant(product: Product, tenant: str, http: httpx2.Client) -> None:
    headers = {"Idempotency-Key": "shared"}
    body = {"owner": "ann"}
    with connect(product, tenant, service="other") as service, connect(product, f"{tenant}-b") as stranger:
        answers = [client.post(NODES, json=body, headers=headers) for client in (http, service, stranger)]
    assert [answer.status_code for answer in answers] == [201, 201, 201]
    assert len({answer.json()["memoryNodeId"] for answer in answers}) == 3


async def test_twenty_at_once_make_one_node(product: Product, tenant: str, http: httpx2.Client) -> None:
    headers = {"Authorization": f"Bearer {product.issue(tenant=tenant)}", "Idempotency-Key": "twenty"}
    async with httpx2.AsyncClient(base_url=product.url, headers=headers, timeout=30) as client:
        answers = await asyncio.gather(
            *(client.post(NODES, json={"owner": "ann", "content": "one"}) for _ in range(20))
        )
    assert sorted(answer.status_code for answer in answers) == [200] * 19 + [201]
    assert len({answer.json()["memoryNodeId"] for answer in answers}) == 1
    assert len(listed_ids(http)) == 1
    with product.owner() as owner:
        assert owner.execute("SELECT count(*) FROM audit_events WHERE tenant = %s", [tenant]).fetchone() == (1,)
