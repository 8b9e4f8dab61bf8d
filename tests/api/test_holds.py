"""Legal holds: what they stop, and what they leave on record."""

from __future__ import annotations

import httpx2

from memory_layer.model import SCOPES
from tests.api.door import check_error, connect, create
from tests.support.product import Product

NODES = "/v1/memory/nodes"


def test_a_hold_stops_the_delete_until_it_is_released(http: httpx2.Client) -> None:
    node = create(http, content="evidence")
    url = f"{NODES}/{node}"
    held = http.post(f"{url}/legal-hold", json={"legalHold": True, "reason": "case 7", "caseId": "c-7"})
    assert held.status_code == 204
    assert held.content == b""
    assert int(held.headers["x-audit-seq"]) >= 0
    shown = http.get(url).json()
    assert (shown["legalHold"], shown["legalHoldReason"], shown["version"]) == (True, "case 7", 2)
    refused = check_error(http.delete(url), 409, "LEGAL_HOLD")
    assert "case 7" in refused["message"]
    assert refused["retryable"] is False
    check_error(http.delete(url, headers={"If-Match": '"2"'}), 409, "LEGAL_HOLD")
    assert http.get(url).json()["version"] == 2

    assert http.post(f"{url}/legal-hold", json={"legalHold": False, "reason": "closed"}).status_code == 204
    shown = http.get(url).json()
    assert (shown["legalHold"], shown["legalHoldReason"]) == (False, None)
    assert http.delete(url).status_code == 204


def test_a_deleted_node_can_still_be_held(http: httpx2.Client) -> None:
    node = create(http, content="evidence")
    url = f"{NODES}/{node}"
    assert http.delete(url).status_code == 204
    assert http.post(f"{url}/legal-hold", json={"legalHold": True, "reason": "case 8"}).status_code == 204
    check_error(http.get(url), 404, "NOT_FOUND")  # it is held, and not brought back
    check_error(http.delete(url), 404, "NOT_FOUND")
    assert http.post(f"{url}/legal-hold", json={"legalHold": False, "reason": "closed"}).status_code == 204


def test_a_node_may_be_born_under_hold(http: httpx2.Client) -> None:
    node = create(http, legalHold=True)
    check_error(http.delete(f"{NODES}/{node}"), 409, "LEGAL_HOLD")
    assert http.get(NODES, params={"filter": '{"legalHold":true}'}).json()["items"][0]["memoryNodeId"] == node


def test_the_hold_and_the_delete_need_their_own_scopes(product: Product, tenant: str) -> None:
    def without(scope: str) -> httpx2.Client:
        return connect(product, tenant, [s for s in SCOPES if s != scope], service=f"no-{scope}")

    with without("memory:delete") as keeper, without("memory:legal_hold") as deleter:
        node = create(keeper)
        hold = {"legalHold": True, "reason": "x"}
        check_error(deleter.post(f"{NODES}/{node}/legal-hold", json=hold), 403, "FORBIDDEN")
        assert keeper.post(f"{NODES}/{node}/legal-hold", json=hold).status_code == 204
        check_error(deleter.delete(f"{NODES}/{node}"), 409, "LEGAL_HOLD")
        check_error(keeper.delete(f"{NODES}/{node}"), 403, "FORBIDDEN")


def test_a_hold_can_be_set_again(http: httpx2.Client) -> None:
    node = create(http)
    for reason in ("first", "second"):
        hold = {"legalHold": True, "reason": reason}
        assert http.post(f"{NODES}/{node}/legal-hold", json=hold).status_code == 204
    assert http.get(f"{NODES}/{node}").json()["legalHoldReason"] == "second"
    kinds = [event["type"] for event in http.get(f"{NODES}/{node}/history").json()["items"]]
    assert kinds == ["memory.node.created", "memory.legal_hold.set", "memory.legal_hold.set"]
