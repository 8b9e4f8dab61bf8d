"""A legal hold keeps what a node says: nothing overwrites it, and it cannot be made to end earlier."""

from __future__ import annotations

from typing import Any

import httpx2
import pytest

from tests.api.door import check_error, create, embedding, fingerprint
from tests.support.product import Product

NODES = "/v1/memory/nodes"
HELD = {"legalHold": True, "reason": "case 7"}
RELEASED = {"legalHold": False, "reason": "closed"}

CHANGES: dict[str, dict[str, Any]] = {
    "content": {"content": "another"},
    "no content": {"content": None},
    "metadata": {"metadata": {"k": 2}},
    "a key removed": {"metadata": {"k": None}},
    "flags": {"piiFlags": {"containsPii": True}},
    "embedding": {"embedding": embedding(0, 1)},
    "an earlier end": {"ttlSeconds": 3600},
    "a later end with a change": {"ttlSeconds": 1_000_000_000, "metadata": {"k": 2}},
}


@pytest.fixture
def held(http: httpx2.Client) -> str:
    node = create(http, content="evidence", metadata={"k": 1}, ttlSeconds=1_000_000, embedding=embedding(1, 0))
    assert http.post(f"{NODES}/{node}/legal-hold", json=HELD).status_code == 204
    return node


@pytest.mark.parametrize("change", CHANGES.values(), ids=list(CHANGES))
def test_what_is_held_is_not_changed(
    http: httpx2.Client, product: Product, tenant: str, held: str, change: dict[str, Any]
) -> None:
    shown, before = http.get(f"{NODES}/{held}").json(), fingerprint(product, tenant)
    error = check_error(http.patch(f"{NODES}/{held}", json=change), 409, "LEGAL_HOLD")
    assert "case 7" in error["message"]
    assert {"memory_nodes", "audit_payloads"} <= set(before)
    after = fingerprint(product, tenant)
    assert (after["memory_nodes"], after["audit_payloads"]) == (before["memory_nodes"], before["audit_payloads"])
    assert http.get(f"{NODES}/{held}").json()["version"] == shown["version"]
    assert http.post(f"{NODES}/{held}/legal-hold", json=RELEASED).status_code == 204
    assert http.patch(f"{NODES}/{held}", json=change).status_code == 200


def test_an_end_where_there_was_none_is_earlier(http: httpx2.Client) -> None:
    node = create(http, content="evidence", legalHold=True)
    check_error(http.patch(f"{NODES}/{node}", json={"ttlSeconds": 3_000_000_000}), 409, "LEGAL_HOLD")


@pytest.mark.parametrize("seconds", [2_000_000, None])
def test_a_held_node_may_be_kept_longer(http: httpx2.Client, held: str, seconds: int | None) -> None:
    assert http.patch(f"{NODES}/{held}", json={"ttlSeconds": seconds}).status_code == 200
    shown = http.get(f"{NODES}/{held}").json()
    assert (shown["ttlSeconds"], shown["content"]) == (seconds, "evidence")


def test_files_may_still_be_added(http: httpx2.Client, held: str) -> None:
    put = http.put("/v1/memory/artifacts", params={"memoryNodeId": held}, content=b"more")
    assert (put.status_code, put.json()["legalHold"]) == (201, True)
