"""Nodes through the door: create, read, change, delete, expire, list, history."""

from __future__ import annotations

import base64
import json
import struct
import uuid
from typing import Any

import httpx2
import pytest

from tests.api.door import (
    check_error,
    connect,
    create,
    create_indexed,
    embedding,
    eventually,
    found_ids,
    indexed,
    listed_ids,
    search,
)
from tests.support.ageing import expire
from tests.support.product import Product

NODES = "/v1/memory/nodes"
FULL: dict[str, Any] = {
    "owner": "ann",
    "namespace": "diary",
    "embeddingId": "day-1",
    "content": "Zoë walked the dog 🐕",
    "metadata": {"mood": "good", "tags": ["dog", "walk"], "nested": {"a": [1, 2.5, None, True]}},
    "piiFlags": {"containsPii": True, "classification": ["gdpr"], "paths": ["metadata.mood"]},
    "subjects": ["ann", "zoë"],
    "ttlSeconds": 86400,
    "occurredAt": "2026-01-31T10:30:00+01:00",
}


def test_a_node_goes_in_and_comes_out(http: httpx2.Client) -> None:
    made = http.post(NODES, json=FULL)
    assert made.status_code == 201, made.text
    answer = made.json()
    assert sorted(answer) == ["audit", "auditId", "embeddingJobId", "memoryNodeId", "version"]
    assert uuid.UUID(answer["memoryNodeId"]).version == 7
    assert made.headers["etag"] == '"1"'
    assert made.headers["x-audit-seq"] == str(answer["audit"]["seq"])
    assert made.headers["content-type"] == "application/json"

    got = http.get(f"{NODES}/{answer['memoryNodeId']}")
    assert got.status_code == 200
    assert got.headers["etag"] == '"1"'
    node = got.json()
    assert {name: node[name] for name in FULL if name != "occurredAt"} == {
        name: value for name, value in FULL.items() if name != "occurredAt"
    }
    assert node["occurredAt"] == "2026-01-31T09:30:00.000000Z"
    assert node["version"] == 1
    assert node["legalHold"] is False
    assert node["artifacts"] == []
    assert node["vector"]["jobId"] == answer["embeddingJobId"]
    assert node["createdAt"] == node["updatedAt"] < node["expiresAt"]
    assert node["audit"] == {
        "auditId": answer["auditId"],
        "seq": answer["audit"]["seq"],
        "hash": answer["audit"]["hash"],
        "type": "memory.node.created",
    }


def test_defaults(http: httpx2.Client) -> None:
    made = http.post(NODES, json={"owner": "ann"}).json()
    assert made["embeddingJobId"] is None  # neither text nor vector: nothing is indexed
    node = http.get(f"{NODES}/{made['memoryNodeId']}").json()
    for name in ("embeddingId", "content", "legalHoldReason", "ttlSeconds", "expiresAt", "occurredAt", "vector"):
        assert node[name] is None
    assert (node["metadata"], node["piiFlags"], node["subjects"]) == ({}, {}, ["ann"])


def test_every_answer_names_its_request(http: httpx2.Client) -> None:
    given = http.get(NODES, headers={"X-Request-Id": "my-request-7"})
    assert given.headers["x-request-id"] == "my-request-7"
    node = create(http)
    http.patch(f"{NODES}/{node}", json={"content": None}, headers={"X-Request-Id": "my-request-8"})
    events = http.get(f"{NODES}/{node}/history").json()["items"]
    assert events[-1]["requestId"] == "my-request-8"
    first, second = (http.get(NODES).headers["x-request-id"] for _ in range(2))
    assert first != second


def test_context_goes_into_the_entry(http: httpx2.Client) -> None:
    headers = {
        "X-Manifest-Signature-Id": "manifest-9",
        "X-Prev-Audit-Hash": "ab" * 32,
        "traceparent": "00-" + "12" * 16 + "-" + "34" * 8 + "-01",
    }
    made = http.post(NODES, json={"owner": "ann"}, headers=headers).json()
    (event,) = http.get(f"{NODES}/{made['memoryNodeId']}/history").json()["items"]
    entry = json.loads(event["entry"])
    assert entry["manifest_signature_id"] == "manifest-9"
    assert entry["caller_prev_hash"] == "ab" * 32
    assert entry["trace_id"] == "12" * 16


def test_patch_merges_metadata_and_replaces_the_rest(http: httpx2.Client) -> None:
    node = create(
        http,
        content="before",
        metadata={"keep": 1, "drop": 2, "deep": {"a": 1, "b": 2}, "list": [1, 2]},
        ttlSeconds=7200,
    )
    change = {
        "content": "after",
        "metadata": {"drop": None, "deep": {"b": None, "c": {"d": None, "e": 3}}, "list": [None, 3], "new": {"x": 1}},
        "piiFlags": {"containsPii": False},
        "ttlSeconds": None,
    }
    patched = http.patch(f"{NODES}/{node}", json=change)
    assert patched.status_code == 200, patched.text
    assert patched.headers["etag"] == '"2"'
    assert patched.json()["version"] == 2
    assert patched.headers["x-audit-seq"] == str(patched.json()["audit"]["seq"])
    found = http.get(f"{NODES}/{node}").json()
    # RFC 7396: null removes at every level of objects, and stands for itself inside a list.
    assert found["metadata"] == {"keep": 1, "deep": {"a": 1, "c": {"e": 3}}, "list": [None, 3], "new": {"x": 1}}
    assert found["content"] == "after"
    assert found["piiFlags"] == {"containsPii": False}
    assert found["ttlSeconds"] is None
    assert found["expiresAt"] is None
    assert found["owner"] == "ann"
    assert found["updatedAt"] > found["createdAt"]


def test_absent_members_of_a_patch_stay(http: httpx2.Client) -> None:
    node = http.post(NODES, json=FULL).json()["memoryNodeId"]
    before = http.get(f"{NODES}/{node}").json()
    assert http.patch(f"{NODES}/{node}", json={"metadata": {"new": 1}}).status_code == 200
    after = http.get(f"{NODES}/{node}").json()
    for name in (
        "content",
        "piiFlags",
        "subjects",
        "ttlSeconds",
        "expiresAt",
        "occurredAt",
        "embeddingId",
        "createdAt",
    ):
        assert after[name] == before[name]


def test_if_match(http: httpx2.Client) -> None:
    node = create(http)
    url = f"{NODES}/{node}"
    for etag in ('"1"', '"2"', 'W/"3"', "4", "*"):
        assert http.patch(url, json={"metadata": {"e": etag}}, headers={"If-Match": etag}).status_code == 200
    stale = http.patch(url, json={"metadata": {"e": "late"}}, headers={"If-Match": '"1"'})
    check_error(stale, 412, "PRECONDITION_FAILED")
    check_error(http.delete(url, headers={"If-Match": '"5"'}), 412, "PRECONDITION_FAILED")
    found = http.get(url)
    assert found.json()["metadata"] == {"e": "*"}
    assert http.delete(url, headers={"If-Match": found.headers["etag"]}).status_code == 204


def test_delete(http: httpx2.Client, product: Product, tenant: str) -> None:
    node = create_indexed(http, embedding=embedding(1, 0), metadata={"n": 1})
    gone = http.delete(f"{NODES}/{node}")
    assert gone.status_code == 204
    assert gone.content == b""
    assert int(gone.headers["x-audit-seq"]) >= 0
    check_error(http.get(f"{NODES}/{node}"), 404, "NOT_FOUND")
    check_error(http.delete(f"{NODES}/{node}"), 404, "NOT_FOUND")
    assert listed_ids(http) == []
    assert found_ids(http, queryEmbedding=[1, 0]) == []
    # What was done to it stays on record, and its vector leaves the index.
    kinds = [event["type"] for event in http.get(f"{NODES}/{node}/history").json()["items"]]
    assert kinds == ["memory.node.created", "memory.node.deleted"]
    with product.owner() as owner:
        eventually(
            lambda: owner.execute("SELECT status FROM memory_vectors WHERE tenant = %s", [tenant]).fetchall(),
            lambda rows: rows == [("deleted",)],
        )


def test_an_embedding_id_is_unique_among_live_nodes(http: httpx2.Client, product: Product) -> None:
    first = create(http, embeddingId="same")
    taken = check_error(http.post(NODES, json={"owner": "bob", "embeddingId": "same"}), 409, "CONFLICT")
    assert first in taken["message"]
    with connect(product, f"t-{uuid.uuid4().hex[:12]}") as other:
        create(other, embeddingId="same")
    http.delete(f"{NODES}/{first}")
    second = create(http, embeddingId="same")
    assert listed_ids(http, filter='{"embeddingId":"same"}') == [second]


def test_an_embedding_id_can_be_changed_and_stays_unique(http: httpx2.Client) -> None:
    one, other = create(http, embeddingId="one"), create(http, embeddingId="other")
    taken = check_error(http.patch(f"{NODES}/{one}", json={"embeddingId": "other"}), 409, "CONFLICT")
    assert other in taken["message"]
    for same in ("one", "moved"):
        assert http.patch(f"{NODES}/{one}", json={"embeddingId": same}).status_code == 200
    assert listed_ids(http, filter='{"embeddingId":"one"}') == []
    assert listed_ids(http, filter='{"embeddingId":"moved"}') == [one]
    create(http, embeddingId="one")  # it is free again
    assert http.patch(f"{NODES}/{other}", json={"embeddingId": None}).status_code == 200
    assert http.get(f"{NODES}/{other}").json()["embeddingId"] is None
    http.post(f"{NODES}/{other}/legal-hold", json={"legalHold": True, "reason": "case"})
    held = check_error(http.patch(f"{NODES}/{other}", json={"embeddingId": "x"}), 409, "LEGAL_HOLD")
    assert "embeddingId" in held["message"]
    check_error(http.patch(f"{NODES}/{one}", json={"embeddingId": ""}), 422, "VALIDATION_ERROR")


def test_a_replaced_embedding_is_found_by_the_new_vector_alone(http: httpx2.Client) -> None:
    node = create_indexed(http, embedding=embedding(1, 0, 0))
    create_indexed(http, embedding=embedding(0, 0.1, 1))
    patched = http.patch(f"{NODES}/{node}", json={"embedding": embedding(0, 1, 0)})
    assert patched.status_code == 200, patched.text
    # From the moment of the answer on, the old vector answers for nothing.
    for hit in search(http, queryEmbedding=[1, 0, 0], scoreThreshold=0.5)["results"]:
        assert hit["memoryNodeId"] != node
    indexed(http, node)
    assert found_ids(http, queryEmbedding=[0, 1, 0], topK=1) == [node]
    assert found_ids(http, queryEmbedding=[1, 0, 0], scoreThreshold=0.5) == []


def test_replaced_text_is_embedded_again(http: httpx2.Client) -> None:
    node = create_indexed(http, content="The cat sleeps on the sofa.")
    create_indexed(http, content="Quarterly revenue exceeded expectations.")
    patched = http.patch(f"{NODES}/{node}", json={"content": "Volcanoes erupt with lava."})
    assert patched.status_code == 200, patched.text
    assert patched.json()["embeddingJobId"] is not None
    indexed(http, node)
    (hit,) = search(http, query="Volcanoes erupt with lava.", topK=1, mode="semantic")["results"]
    assert hit["memoryNodeId"] == node
    assert hit["score"] == pytest.approx(1, abs=1e-4)
    assert found_ids(http, query="sofa", mode="keyword") == []
    assert found_ids(http, query="lava", mode="keyword") == [node]


def test_removed_text_leaves_the_index_and_stays_out(http: httpx2.Client) -> None:
    node = create_indexed(http, content="zebra crossing")
    assert http.patch(f"{NODES}/{node}", json={"content": None}).status_code == 200
    assert found_ids(http, query="zebra crossing") == []
    indexed(http, node)
    # Neither another change nor a hold brings back what was taken out.
    assert http.patch(f"{NODES}/{node}", json={"metadata": {"a": 1}}).json()["embeddingJobId"] is None
    http.post(f"{NODES}/{node}/legal-hold", json={"legalHold": True, "reason": "x"})
    assert http.get(f"{NODES}/{node}").json()["vector"]["status"] in ("deleting", "deleted")
    for mode in ("semantic", "keyword", "hybrid"):
        assert found_ids(http, query="zebra crossing", mode=mode) == []
    http.post(f"{NODES}/{node}/legal-hold", json={"legalHold": False, "reason": "x"})
    assert http.patch(f"{NODES}/{node}", json={"content": "zebra again"}).status_code == 200
    indexed(http, node)
    for mode in ("semantic", "keyword", "hybrid"):
        assert found_ids(http, query="zebra", mode=mode) == [node]


def test_a_vector_as_base64_is_the_vector(http: httpx2.Client) -> None:
    data = base64.b64encode(struct.pack("<3f", 0.25, -0.5, 1)).decode()
    text = create_indexed(http, embedding={"model": "m", "dimension": 3, "vector": data})
    numbers = create_indexed(http, embedding={"model": "m", "dimension": 3, "vector": [0.25, -0.5, 1]})
    hits = search(http, queryEmbedding=data)["results"]
    assert [hit["memoryNodeId"] for hit in hits] == sorted([text, numbers])
    assert [hit["score"] for hit in hits] == [pytest.approx(1), pytest.approx(1)]


def test_what_has_expired_is_gone_unless_it_is_held(http: httpx2.Client, product: Product, tenant: str) -> None:
    short = create_indexed(http, content="expires soon", ttlSeconds=3600, embeddingId="e")
    held = create_indexed(http, content="expires soon but is held", ttlSeconds=3600)
    expire(product.data, product.database, tenant, short, held)
    hold = {"legalHold": True, "reason": "case"}
    assert http.post(f"{NODES}/{held}/legal-hold", json=hold).status_code == 204
    indexed(http, held)
    check_error(http.get(f"{NODES}/{short}"), 404, "NOT_FOUND")
    assert listed_ids(http) == [held]
    assert listed_ids(http, filter='{"embeddingId":"e"}') == []
    for mode in ("semantic", "keyword", "hybrid"):
        assert found_ids(http, query="expires soon", mode=mode) == [held]
    check_error(http.patch(f"{NODES}/{short}", json={"ttlSeconds": 7200}), 404, "NOT_FOUND")
    check_error(http.post(NODES, json={"owner": "ann", "embeddingId": "e"}), 409, "CONFLICT")
    attached = http.put("/v1/memory/artifacts", params={"memoryNodeId": short}, content=b"x")
    check_error(attached, 404, "NOT_FOUND")
    # Released, the held one goes too; what expired before its purge can still be kept for a case.
    release = {"legalHold": False, "reason": "closed"}
    assert http.post(f"{NODES}/{held}/legal-hold", json=release).status_code == 204
    assert listed_ids(http) == []
    assert http.post(f"{NODES}/{short}/legal-hold", json=hold).status_code == 204
    assert listed_ids(http) == [short]
    assert http.post(f"{NODES}/{short}/legal-hold", json=release).status_code == 204
    # Deleted, it gives its embeddingId back.
    assert http.delete(f"{NODES}/{short}").status_code == 204
    create(http, embeddingId="e")


def test_pages_end_at_bytes_too(http: httpx2.Client) -> None:
    text = "a memory of some length " * 65_000  # 1.5 MB
    made = [create(http, content=text, metadata={"n": n}) for n in range(8)]
    seen: list[str] = []
    cursor: str | None = None
    while True:
        page = http.get(NODES, params={"limit": 100} | ({"cursor": cursor} if cursor else {}))
        assert len(page.content) < 12 * 2**20
        seen += [item["memoryNodeId"] for item in page.json()["items"]]
        cursor = page.json()["nextCursor"]
        if cursor is None:
            break
    assert seen == made[::-1]
    assert listed_ids(http, filter='{"metadata.n":3}') == [made[3]]


def test_ttl_bounds(http: httpx2.Client) -> None:
    for ttl in (3600, 3_155_760_000):
        node = http.get(f"{NODES}/{create(http, ttlSeconds=ttl)}").json()
        assert node["ttlSeconds"] == ttl
        assert node["expiresAt"] > node["createdAt"]


@pytest.mark.parametrize("moment", ["1000-01-01T00:00:00Z", "9999-12-31T23:59:59.999999Z", "1969-12-31T23:59:60Z"])
def test_far_moments(http: httpx2.Client, moment: str) -> None:
    made = http.post(NODES, json={"owner": "ann", "occurredAt": moment})
    if moment.endswith(":60Z"):
        check_error(made, 422, "VALIDATION_ERROR")
        return
    shown = http.get(f"{NODES}/{made.json()['memoryNodeId']}").json()["occurredAt"]
    assert shown == (moment if "." in moment else moment.replace("Z", ".000000Z"))


def test_listing_is_newest_first_and_complete_while_others_write(http: httpx2.Client) -> None:
    made = [create(http, metadata={"n": n}) for n in range(25)]
    seen: list[str] = []
    params: dict[str, Any] = {"limit": 4}
    while True:
        page = http.get(NODES, params=params).json()
        seen += [item["memoryNodeId"] for item in page["items"]]
        assert len(page["items"]) <= 4
        create(http, metadata={"late": True})
        if page["nextCursor"] is None:
            break
        params["cursor"] = page["nextCursor"]
    assert seen == made[::-1]


def test_listing_nodes_of_one_moment(http: httpx2.Client) -> None:
    """Nodes of one batch share their time; pages still neither repeat nor lose one."""
    answer = http.post(f"{NODES}:batch", json=[{"owner": "ann"} for _ in range(11)])
    made = {item["memoryNodeId"] for item in answer.json()["items"]}
    assert len({http.get(f"{NODES}/{node}").json()["createdAt"] for node in made}) == 1
    for limit in (1, 3, 11, 100):
        ids = listed_ids(http, limit=limit)
        assert len(ids) == 11
        assert set(ids) == made
        assert ids == sorted(made, reverse=True)


def test_listing_by_filter(http: httpx2.Client) -> None:
    ids = [
        create(http, owner="ann" if n % 3 else "bob", metadata={"n": n, "tags": ["a", str(n % 2)]}) for n in range(12)
    ]

    def expect(where: dict[str, Any], chosen: list[int]) -> None:
        assert listed_ids(http, filter=json.dumps(where), limit=2) == [ids[n] for n in reversed(chosen)], where

    expect({}, list(range(12)))
    expect({"owner": "bob"}, [0, 3, 6, 9])
    expect({"owner": ["bob", "eve"], "metadata.n": {"$gt": 3}}, [6, 9])
    expect({"owner": {"$ne": "bob"}, "metadata.tags": "1"}, [1, 5, 7, 11])
    expect({"$or": [{"metadata.n": 2}, {"metadata.n": {"$gte": 11}}]}, [2, 11])
    expect({"metadata.missing": None, "metadata.n": {"$in": [1, "2", 3.0]}}, [1, 3])
    expect({"metadata.n": {"$exists": False}}, [])
    expect({"$not": {"metadata.n": {"$lt": 10}}}, [10, 11])
    expect({"memoryNodeId": ids[4]}, [4])
    expect({"createdAt": {"$gt": "2000-01-01T00:00:00Z"}, "metadata.n": 7}, [7])
    expect({"createdAt": {"$gt": "2999-01-01T00:00:00Z"}}, [])


def test_history(http: httpx2.Client) -> None:
    node = create(http, content="one", metadata={"secret": "kept out of the log"})
    for n in range(4):
        http.patch(f"{NODES}/{node}", json={"metadata": {"n": n}})
    http.post(f"{NODES}/{node}/legal-hold", json={"legalHold": True, "reason": "case 1", "caseId": "c-1"})
    http.post(f"{NODES}/{node}/legal-hold", json={"legalHold": False, "reason": "closed"})
    http.put("/v1/memory/artifacts", params={"memoryNodeId": node}, content=b"x")
    http.delete(f"{NODES}/{node}")
    events: list[dict[str, Any]] = []
    params: dict[str, Any] = {"limit": 2}
    while True:
        page = http.get(f"{NODES}/{node}/history", params=params).json()
        events += page["items"]
        if page["nextCursor"] is None:
            break
        params["cursor"] = page["nextCursor"]
    assert [event["type"].removeprefix("memory.") for event in events] == [
        "node.created",
        *["node.updated"] * 4,
        "legal_hold.set",
        "legal_hold.released",
        "artifact.created",
        "node.deleted",
    ]
    assert [event["version"] for event in events] == [1, 2, 3, 4, 5, 6, 7, None, 8]
    sequence = [event["seq"] for event in events]
    assert sequence == sorted(set(sequence))
    assert all("kept out of the log" not in event["entry"] for event in events)
    assert {event["memoryNodeId"] for event in events} == {node}
