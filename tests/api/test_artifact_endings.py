"""Artifacts are listed, deleted, and end with their nodes; holds and locks win, and nothing that was hidden comes to light by it."""

from __future__ import annotations

import datetime as dt
import uuid
from typing import Any

import httpx2
import pytest

from memory_layer.client import MemoryClient
from memory_layer.model import SCOPES
from tests.api.door import NO_PII, check_error, connect, create, fingerprint
from tests.support.product import Product

NODES, ARTIFACTS = "/v1/memory/nodes", "/v1/memory/artifacts"
HIDDEN = "[redacted]"


def put(http: httpx2.Client, node: str | None = None, content: bytes | None = None, **headers: str) -> dict[str, Any]:
    params = {"name": "a.txt"} | ({} if node is None else {"memoryNodeId": node})
    stored = http.put(ARTIFACTS, params=params, content=content or uuid.uuid4().bytes, headers=headers)
    assert stored.status_code == 201, stored.text
    return dict(stored.json())


def listed(http: httpx2.Client, **params: Any) -> list[str]:
    """All ids, page by page."""
    ids: list[str] = []
    while True:
        page = http.get(ARTIFACTS, params=params)
        assert page.status_code == 200, page.text
        ids += [one["artifactId"] for one in page.json()["items"]]
        if page.json()["nextCursor"] is None:
            return ids
        params["cursor"] = page.json()["nextCursor"]


def soon(days: int = 1) -> str:
    return (dt.datetime.now(dt.UTC) + dt.timedelta(days=days)).isoformat()


# --- List ----------------------------------------------------------------------------------------------------------


def test_they_are_listed_newest_first_page_by_page(http: httpx2.Client) -> None:
    node = create(http)
    made = [put(http, node if n % 2 else None)["artifactId"] for n in range(5)][::-1]
    assert listed(http) == listed(http, limit=2) == listed(http, limit=5) == made
    assert listed(http, memoryNodeId=node, limit=1) == [made[1], made[3]]
    assert listed(http, memoryNodeId=str(uuid.uuid4())) == []
    page = http.get(ARTIFACTS, params={"limit": 1}).json()
    assert page["items"][0] == http.get(f"{ARTIFACTS}/{made[0]}").json()
    check_error(http.get(ARTIFACTS, params={"cursor": page["nextCursor"], "memoryNodeId": node}), 400, "INVALID_CURSOR")
    for params in ({"cursor": "x"},):
        check_error(http.get(ARTIFACTS, params=params), 400, "INVALID_CURSOR")
    for params in ({"limit": 0}, {"limit": 101}, {"memoryNodeId": "x"}, {"color": 1}):
        check_error(http.get(ARTIFACTS, params=params), 422, "VALIDATION_ERROR")


def test_other_tenants_and_readers_see_what_is_theirs(http: httpx2.Client, product: Product, tenant: str) -> None:
    flagged = create(http, content="x", piiFlags={"containsPii": True})
    content = uuid.uuid4().bytes
    hidden, copy = put(http, flagged, content)["artifactId"], put(http, None, content)["artifactId"]
    with connect(product, f"{tenant}-other") as stranger:
        assert listed(stranger) == []
        check_error(stranger.delete(f"{ARTIFACTS}/{copy}"), 404, "NOT_FOUND")
    with connect(product, tenant, NO_PII, "some") as some:
        items = some.get(ARTIFACTS).json()["items"]
        assert [(one["artifactId"], one["name"], one["metadata"]) for one in items] == [
            (copy, HIDDEN, HIDDEN),
            (hidden, HIDDEN, HIDDEN),
        ]
    with connect(product, tenant, ("memory:read", "memory:write"), "writer") as writer:
        check_error(writer.delete(f"{ARTIFACTS}/{copy}"), 403, "FORBIDDEN")


def test_what_is_not_what_the_log_says_is_left_out_and_counted(http: httpx2.Client, product: Product) -> None:
    node = create(http)
    bad, good, of_node = put(http)["artifactId"], put(http)["artifactId"], put(http, node)["artifactId"]
    with product.owner() as owner:
        owner.execute("UPDATE artifacts SET name = 'b.txt' WHERE id = %s", [bad])
        owner.execute("UPDATE memory_nodes SET deleted_at = now() WHERE id = %s", [node])
        page = http.get(ARTIFACTS).json()
        assert ([one["artifactId"] for one in page["items"]], page["dropped"]) == ([good], {"tampered": 2})
        for id_ in (bad, of_node):
            check_error(http.delete(f"{ARTIFACTS}/{id_}"), 409, "TAMPERED")
        owner.execute("UPDATE artifacts SET name = 'a.txt' WHERE id = %s", [bad])
        owner.execute("UPDATE memory_nodes SET deleted_at = NULL WHERE id = %s", [node])
    assert listed(http) == [of_node, good, bad]


# --- Delete --------------------------------------------------------------------------------------------------------


def test_it_is_deleted_with_an_entry(http: httpx2.Client) -> None:
    node = create(http, content="x")
    stored = put(http, node)
    path = f"{ARTIFACTS}/{stored['artifactId']}"
    gone = http.delete(path)
    assert (gone.status_code, gone.content) == (204, b"")
    for call in (http.get(path), http.get(f"{path}/content"), http.delete(path)):
        check_error(call, 404, "NOT_FOUND")
    check_error(http.post(f"{path}/retention", json={"retainUntil": soon()}), 404, "NOT_FOUND")
    assert (listed(http), http.get(f"{NODES}/{node}").json()["artifacts"]) == ([], [])
    (entry,) = http.get("/v1/audit/events", params={"type": "memory.artifact.deleted"}).json()["items"]
    assert (entry["seq"], entry["artifactId"], entry["memoryNodeId"]) == (
        int(gone.headers["x-audit-seq"]),
        stored["artifactId"],
        node,
    )
    payload = http.get(f"/v1/audit/events/{entry['auditId']}").json()["payload"]["value"]
    assert (payload["sha256"], payload["versionId"]) == (stored["sha256"], stored["versionId"])


def test_the_same_request_is_answered_again(http: httpx2.Client, product: Product, tenant: str) -> None:
    path, key = f"{ARTIFACTS}/{put(http)['artifactId']}", {"Idempotency-Key": "k"}
    first = http.delete(path, headers=key)
    before = fingerprint(product, tenant)
    again = http.delete(path, headers=key)
    assert (first.status_code, again.status_code, again.headers["idempotency-replayed"]) == (204, 204, "true")
    assert again.headers["x-audit-seq"] == first.headers["x-audit-seq"]
    check_error(http.delete(path, headers={"Idempotency-Key": "other"}), 404, "NOT_FOUND")
    check_error(http.delete(f"{ARTIFACTS}/{uuid.uuid4()}", headers={"Idempotency-Key": "third"}), 404, "NOT_FOUND")
    check_error(http.delete(f"{ARTIFACTS}/x"), 422, "VALIDATION_ERROR")
    assert fingerprint(product, tenant) == before


def test_holds_and_locks_win(http: httpx2.Client, product: Product, tenant: str) -> None:
    node = create(http)
    held, locked = put(http, node)["artifactId"], put(http, None, None, **{"X-Retain-Until": soon()})["artifactId"]
    assert http.post(f"{NODES}/{node}/legal-hold", json={"legalHold": True, "reason": "case 7"}).status_code == 204
    later = put(http, node)["artifactId"]
    before = fingerprint(product, tenant)
    check_error(http.delete(f"{ARTIFACTS}/{held}"), 409, "LEGAL_HOLD")
    check_error(http.delete(f"{ARTIFACTS}/{later}"), 409, "LEGAL_HOLD")
    assert "locked until" in check_error(http.delete(f"{ARTIFACTS}/{locked}"), 409, "CONFLICT")["message"]
    after = fingerprint(product, tenant)
    assert {table: after[table] for table in ("artifacts", "audit_events")} == {
        table: before[table] for table in ("artifacts", "audit_events")
    }
    for id_ in (held, locked, later):
        assert http.get(f"{ARTIFACTS}/{id_}/content").status_code == 200


def test_deleting_an_artifact_brings_nothing_hidden_to_light(
    http: httpx2.Client, product: Product, tenant: str
) -> None:
    """Whoever may delete and register, but not read what is flagged, must not come by the bytes so."""
    flagged = create(http, content="x", piiFlags={"containsPii": True})
    stored = put(http, flagged, f"she has {uuid.uuid4()}".encode())
    with connect(product, tenant, NO_PII, "some") as some:
        body = {name: stored[name] for name in ("url", "sha256", "sizeBytes")}
        before = some.post(ARTIFACTS, json=body).json()["artifactId"]
        assert some.delete(f"{ARTIFACTS}/{stored['artifactId']}").status_code == 204
        after = some.post(ARTIFACTS, json=body).json()["artifactId"]
        mine = some.post(ARTIFACTS, json=body | {"node": create(some, content="open")}).json()["artifactId"]
        for id_ in (before, after, mine):
            check_error(some.get(f"{ARTIFACTS}/{id_}/content"), 403, "FORBIDDEN")
            assert some.get(f"{ARTIFACTS}/{id_}").json()["name"] == HIDDEN
        events = some.get("/v1/audit/events", params={"artifactId": stored["artifactId"]}).json()["items"]
        assert len(events) == 2
        for event in events:
            payload = some.get(f"/v1/audit/events/{event['auditId']}").json()["payload"]
            assert payload["status"] == "redacted"
            assert "a.txt" not in str(payload)
        assert some.delete(f"{NODES}/{flagged}").status_code == 204
        check_error(some.get(f"{ARTIFACTS}/{after}/content"), 403, "FORBIDDEN")
    # Nor does it hide anything for good: who may read it reads it, and so does everybody once the flags are lifted.
    assert http.get(f"{ARTIFACTS}/{after}/content").status_code == 200


def test_lifted_flags_lift_it_for_bytes_of_deleted_artifacts_too(
    http: httpx2.Client, product: Product, tenant: str
) -> None:
    flagged = create(http, content="x", piiFlags={"containsPii": True})
    content = uuid.uuid4().bytes
    original, copy = put(http, flagged, content)["artifactId"], put(http, None, content)["artifactId"]
    assert http.delete(f"{ARTIFACTS}/{original}").status_code == 204
    with connect(product, tenant, NO_PII, "some") as some:
        check_error(some.get(f"{ARTIFACTS}/{copy}/content"), 403, "FORBIDDEN")
        assert http.patch(f"{NODES}/{flagged}", json={"piiFlags": {"containsPii": False}}).status_code == 200
        assert some.get(f"{ARTIFACTS}/{copy}/content").content == content


# --- With their nodes ----------------------------------------------------------------------------------------------


def test_they_end_with_their_node_unless_they_are_kept(http: httpx2.Client) -> None:
    node = create(http, content="x")
    plain, locked = put(http, node)["artifactId"], put(http, node, None, **{"X-Retain-Until": soon()})["artifactId"]
    other = put(http)["artifactId"]
    assert http.delete(f"{NODES}/{node}").status_code == 204
    for call in ("", "/content"):
        check_error(http.get(f"{ARTIFACTS}/{plain}{call}"), 404, "NOT_FOUND")
        assert http.get(f"{ARTIFACTS}/{locked}{call}").status_code == 200
    check_error(http.delete(f"{ARTIFACTS}/{plain}"), 404, "NOT_FOUND")
    check_error(http.delete(f"{ARTIFACTS}/{plain}", headers={"Idempotency-Key": "k"}), 404, "NOT_FOUND")
    check_error(http.post(f"{ARTIFACTS}/{plain}/retention", json={"retainUntil": soon()}), 404, "NOT_FOUND")
    assert listed(http) == [other, locked]
    assert listed(http, memoryNodeId=node) == [locked]
    # A hold may be set over a deletion: then the files are there again, for as long as it lasts.
    assert http.post(f"{NODES}/{node}/legal-hold", json={"legalHold": True, "reason": "case 7"}).status_code == 204
    assert http.get(f"{ARTIFACTS}/{plain}/content").status_code == 200
    assert listed(http, memoryNodeId=node) == [locked, plain]


def test_the_client_lists_and_deletes(product: Product, http: httpx2.Client, tenant: str) -> None:
    node = create(http)
    made = [put(http, node)["artifactId"] for _ in range(3)]
    with MemoryClient(product.url, product.issue("tester", tenant, SCOPES)) as memory:
        assert [one.artifact_id for one in memory.artifacts(page_size=2)] == made[::-1]
        assert "auditSeq" in memory.delete_artifact(made[0])
        assert [one["artifactId"] for one in memory.artifacts(node)] == made[:0:-1]


@pytest.mark.parametrize("scope", ["memory:write", "audit:read"])
def test_reading_takes_the_scope(product: Product, tenant: str, scope: str) -> None:
    with connect(product, tenant, (scope,), "some") as some:
        check_error(some.get(ARTIFACTS), 403, "FORBIDDEN")
