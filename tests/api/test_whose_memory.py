"""Owner, subjects and the time of what happened can be changed: audited, found by filters and searches, and held like the rest."""

from __future__ import annotations

import json
from typing import Any

import httpx2
import pytest

from tests.api.door import NO_PII, check_error, connect, create, create_indexed, eventually, found_ids, listed_ids
from tests.support.product import Product

NODES = "/v1/memory/nodes"
MOMENT = "2026-01-31T10:30:00+01:00"
STORED = "2026-01-31T09:30:00.000000Z"


def patched(http: httpx2.Client, node: str, **change: Any) -> dict[str, Any]:
    answer = http.patch(f"{NODES}/{node}", json=change)
    assert answer.status_code == 200, answer.text
    shown: dict[str, Any] = http.get(f"{NODES}/{node}").json()
    assert shown["audit"]["auditId"] == answer.json()["auditId"]
    return shown


def payload_of(http: httpx2.Client, shown: dict[str, Any]) -> Any:
    return http.get(f"/v1/audit/events/{shown['audit']['auditId']}").json()["payload"]["value"]


def test_subjects_that_nobody_named_follow_the_owner(http: httpx2.Client) -> None:
    node = create(http, content="x")
    shown = patched(http, node, owner="bob")
    assert (shown["owner"], shown["subjects"], shown["version"]) == ("bob", ["bob"], 2)
    assert payload_of(http, shown) == {"owner": "bob", "subjects": ["bob"]}


def test_subjects_that_were_named_stay_until_they_are_named_anew(http: httpx2.Client) -> None:
    node = create(http, content="x", subjects=["ann", "eve"])
    shown = patched(http, node, owner="bob")
    assert (shown["owner"], shown["subjects"]) == ("bob", ["ann", "eve"])
    assert payload_of(http, shown) == {"owner": "bob"}
    assert patched(http, node, subjects=["eve"])["subjects"] == ["eve"]
    shown = patched(http, node, subjects=[])
    assert shown["subjects"] == ["bob"]
    assert payload_of(http, shown) == {"subjects": ["bob"]}
    shown = patched(http, node, owner="zoe", subjects=["ann"])
    assert (shown["owner"], shown["subjects"]) == ("zoe", ["ann"])
    shown = patched(http, node, owner="ann", subjects=[])
    assert (shown["owner"], shown["subjects"]) == ("ann", ["ann"])


def test_when_it_happened_is_an_instant_and_may_be_unknown(http: httpx2.Client) -> None:
    node = create(http, content="x")
    shown = patched(http, node, occurredAt=MOMENT)
    assert shown["occurredAt"] == STORED
    assert payload_of(http, shown) == {"occurredAt": STORED}
    assert patched(http, node, metadata={"k": 1})["occurredAt"] == STORED
    shown = patched(http, node, occurredAt=None)
    assert shown["occurredAt"] is None
    assert payload_of(http, shown) == {"occurredAt": None}


def test_filters_and_searches_follow(http: httpx2.Client) -> None:
    node = create_indexed(http, content="the lighthouse keeper")
    patched(http, node, owner="bob", subjects=["eve"], occurredAt=MOMENT)
    for where in ({"owner": "bob"}, {"subjects": {"$contains": "eve"}}, {"occurredAt": {"$lte": MOMENT}}):
        assert listed_ids(http, filter=json.dumps(where)) == [node]
        for mode in ("semantic", "keyword"):
            eventually(
                lambda where=where, mode=mode: found_ids(http, query="lighthouse", mode=mode, filter=where),
                lambda ids: ids == [node],
            )
    assert found_ids(http, query="lighthouse", filter={"owner": "ann"}) == []


@pytest.mark.parametrize("change", [{"owner": "bob"}, {"subjects": ["bob"]}, {"occurredAt": None}, {"subjects": []}])
def test_under_a_hold_they_stay(http: httpx2.Client, change: dict[str, Any]) -> None:
    node = create(http, content="x", legalHold=True)
    error = check_error(http.patch(f"{NODES}/{node}", json=change), 409, "LEGAL_HOLD")
    assert next(iter(change)) in error["message"]
    assert http.get(f"{NODES}/{node}").json()["version"] == 1


@pytest.mark.parametrize(
    "change",
    [
        {"owner": ""},
        {"owner": None},
        {"owner": "x" * 257},
        {"owner": 7},
        {"owner": "a\0"},
        {"subjects": None},
        {"subjects": "ann"},
        {"subjects": [""]},
        {"subjects": ["x"] * 65},
        {"subjects": [None]},
        {"occurredAt": "yesterday"},
        {"occurredAt": "2026-01-31"},
        {"occurredAt": "2026-01-31T10:30:00"},
        {"occurredAt": 7},
        {"occurredAt": ""},
    ],
    ids=json.dumps,
)
def test_what_does_not_fit_is_refused(http: httpx2.Client, change: dict[str, Any]) -> None:
    node = create(http, content="x")
    check_error(http.patch(f"{NODES}/{node}", json=change), 422, "VALIDATION_ERROR")
    assert http.get(f"{NODES}/{node}").json()["version"] == 1


def test_other_tenants_and_conditions(http: httpx2.Client, product: Product, tenant: str) -> None:
    node = create(http, content="secret", piiFlags={"containsPii": True})
    with connect(product, f"{tenant}-other") as stranger:
        check_error(stranger.patch(f"{NODES}/{node}", json={"owner": "bob"}), 404, "NOT_FOUND")
    check_error(
        http.patch(f"{NODES}/{node}", json={"owner": "bob"}, headers={"If-Match": '"2"'}), 412, "PRECONDITION_FAILED"
    )
    with connect(product, tenant, NO_PII, "some") as some:  # flags hide content and metadata, never whose it is
        assert some.patch(f"{NODES}/{node}", json={"owner": "bob"}).status_code == 200
        shown = some.get(f"{NODES}/{node}").json()
    assert (shown["owner"], shown["content"]) == ("bob", "[redacted]")
