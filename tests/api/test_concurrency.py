"""Many at once: no update is lost, every write is in the log once, and the log has no gap."""

from __future__ import annotations

import asyncio
import itertools

import httpx2
import pytest

from tests.api.door import create, found_ids, indexed, listed_ids
from tests.support.product import Product

NODES = "/v1/memory/nodes"


@pytest.mark.slow
async def test_no_update_is_lost(product: Product, tenant: str, http: httpx2.Client) -> None:
    node = create(http, metadata={})
    headers = {"Authorization": f"Bearer {product.issue(tenant=tenant)}"}
    refused = 0

    async def add(client: httpx2.AsyncClient, n: int) -> None:
        nonlocal refused
        while True:
            etag = (await client.get(f"{NODES}/{node}")).headers["etag"]
            body = {"metadata": {f"n{n}": n, "last": n}}
            answer = await client.patch(f"{NODES}/{node}", json=body, headers={"If-Match": etag})
            if answer.status_code == 200:
                assert answer.json()["version"] == int(etag.strip('"')) + 1
                return
            assert answer.status_code == 412, answer.text
            refused += 1

    async with httpx2.AsyncClient(base_url=product.url, headers=headers, timeout=60) as client:
        await asyncio.gather(*(add(client, n) for n in range(40)))
    found = http.get(f"{NODES}/{node}").json()
    assert found["version"] == 41
    assert {name for name in found["metadata"] if name != "last"} == {f"n{n}" for n in range(40)}
    assert len(http.get(f"{NODES}/{node}/history").json()["items"]) == 41
    assert refused > 0  # else nothing here was at once


async def test_two_hundred_creates(product: Product, tenant: str, http: httpx2.Client) -> None:
    headers = {"Authorization": f"Bearer {product.issue(tenant=tenant)}"}
    async with httpx2.AsyncClient(base_url=product.url, headers=headers, timeout=60) as client:
        answers = await asyncio.gather(
            *(client.post(NODES, json={"owner": "ann", "metadata": {"n": n}}) for n in range(200))
        )
    assert {answer.status_code for answer in answers} == {201}
    ids = {answer.json()["memoryNodeId"] for answer in answers}
    assert len(ids) == 200
    assert set(listed_ids(http, limit=100)) == ids
    promised = {answer.json()["audit"]["seq"]: answer.json() for answer in answers}
    assert len(promised) == 200
    with product.owner() as owner:
        log = owner.execute(
            "SELECT seq, hash, prev_hash, tenant, memory_node_id FROM audit_events ORDER BY seq"
        ).fetchall()
        seals = owner.execute("SELECT first_seq, last_seq FROM audit_seals ORDER BY batch_no").fetchall()
    assert [row[0] for row in log] == list(range(len(log)))
    assert all(one[1] == next_one[2] for one, next_one in itertools.pairwise(log))
    mine = {row[0]: row for row in log if row[3] == tenant}
    assert mine.keys() == promised.keys()
    for seq, answer in promised.items():
        assert mine[seq][1] == answer["audit"]["hash"]
        assert str(mine[seq][4]) == answer["memoryNodeId"]
    assert [seal[0] for seal in seals[1:]] == [int(str(seal[1])) + 1 for seal in seals[:-1]]


async def test_one_of_many_gets_the_embedding_id(product: Product, tenant: str, http: httpx2.Client) -> None:
    headers = {"Authorization": f"Bearer {product.issue(tenant=tenant)}"}
    body = {"owner": "ann", "embeddingId": "only-one"}
    async with httpx2.AsyncClient(base_url=product.url, headers=headers, timeout=30) as client:
        answers = await asyncio.gather(*(client.post(NODES, json=body) for _ in range(20)))
    assert sorted(answer.status_code for answer in answers) == [201] + [409] * 19
    assert len(listed_ids(http)) == 1


async def test_a_hold_and_a_delete_at_once(product: Product, tenant: str, http: httpx2.Client) -> None:
    """Never a held node that is deleted: a hold that came second is one on what a purge would take."""
    headers = {"Authorization": f"Bearer {product.issue(tenant=tenant)}"}
    hold = {"legalHold": True, "reason": "x"}
    async with httpx2.AsyncClient(base_url=product.url, headers=headers, timeout=30) as client:
        for _ in range(8):
            node = create(http)
            held, deleted = await asyncio.gather(
                client.post(f"{NODES}/{node}/legal-hold", json=hold), client.delete(f"{NODES}/{node}")
            )
            assert (held.status_code, deleted.status_code) in ((204, 409), (204, 204))
            if deleted.status_code == 204:
                assert int(deleted.headers["X-Audit-Seq"]) < int(held.headers["X-Audit-Seq"])


async def test_the_last_of_many_changes_is_what_is_found(product: Product, tenant: str, http: httpx2.Client) -> None:
    node = create(http, embedding={"model": "m", "dimension": 2, "vector": [1, 0]})
    headers = {"Authorization": f"Bearer {product.issue(tenant=tenant)}"}
    async with httpx2.AsyncClient(base_url=product.url, headers=headers, timeout=30) as client:
        answers = await asyncio.gather(
            *(
                client.patch(f"{NODES}/{node}", json={"embedding": {"model": "m", "dimension": 2, "vector": [n, 1]}})
                for n in range(-10, 11)
            )
        )
    assert {answer.status_code for answer in answers} == {200}
    last = max(range(21), key=lambda n: answers[n].json()["version"]) - 10
    indexed(http, node)
    assert found_ids(http, queryEmbedding=[last, 1], scoreThreshold=0.99999) == [node]
