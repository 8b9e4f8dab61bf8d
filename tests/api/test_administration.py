"""Tenants and their services, over HTTP and by command: made, listed, refused, let in again; each an entry."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from typing import Any

import httpx2
import pytest

from tests.api.door import check_error, connect, create, eventually
from tests.support.product import Product

ADMIN, NODES = "/v1/admin", "/v1/memory/nodes"
REASON = {"reason": "case 12"}


@pytest.fixture
def operator(product: Product) -> Iterator[httpx2.Client]:
    with connect(product, "default", ("admin",), "operator") as http:
        yield http


@pytest.fixture
def admin(product: Product, tenant: str) -> Iterator[httpx2.Client]:
    with connect(product, tenant, ("admin",), "boss") as http:
        yield http


def ctl(product: Product, *words: str, code: int = 0) -> Any:
    done = product.ctl(*words, "--data", str(product.data), "--json")
    assert done.returncode == code, done.stdout + done.stderr
    return json.loads(done.stdout) if code == 0 else done.stderr


def entry(http: httpx2.Client, answer: httpx2.Response) -> tuple[str, Any]:
    """Type and payload of the entry that a write answers."""
    found = http.get(f"/v1/audit/events/{answer.json()['auditId']}").json()
    return found["type"], found["payload"]["value"]


def test_a_tenant_is_made_refused_and_let_in_again(product: Product, tenant: str, operator: httpx2.Client) -> None:
    made = operator.post(f"{ADMIN}/tenants", json={"tenant": tenant})
    assert made.status_code == 201, made.text
    check_error(operator.post(f"{ADMIN}/tenants", json={"tenant": tenant}), 409, "CONFLICT")
    with (
        connect(product, tenant) as http,
        connect(product, tenant + "-b") as other,
        connect(product, "default") as auditor,
    ):
        node = create(http, content="the north gate")
        key = http.post(f"{ADMIN}/api-keys", json={"service": "robot", "scopes": ["memory:read"]}).json()["key"]
        gone = operator.post(f"{ADMIN}/tenants/{tenant}/revoke", json=REASON)
        assert gone.status_code == 200, gone.text
        assert entry(auditor, gone) == (
            "ops.tenant-revoked.succeeded",
            {"tenant": tenant, "revokedAt": gone.json()["revokedAt"], "reason": "case 12"},
        )
        refused = eventually(lambda: http.get(NODES), lambda answer: answer.status_code != 200, within=20)
        assert "tenant" in check_error(refused, 403, "FORBIDDEN")["message"]
        by_key = eventually(
            lambda: httpx2.get(product.url + NODES, headers={"X-API-Key": key}),
            lambda answer: answer.status_code != 200,
            within=20,
        )
        check_error(by_key, 403, "FORBIDDEN")
        # A service of it that nobody has seen is refused too, and nobody else is.
        with connect(product, tenant, service="new") as newcomer:
            check_error(newcomer.post(NODES, json={"owner": "ann"}), 403, "FORBIDDEN")
        create(other, content="the south gate")
        (listed,) = [one for one in pages(operator, "tenants") if one["tenant"] == tenant]
        assert listed["revokedAt"] == gone.json()["revokedAt"]
        check_error(operator.post(f"{ADMIN}/tenants/{tenant}/revoke", json=REASON), 409, "CONFLICT")
        assert operator.post(f"{ADMIN}/tenants/{tenant}/reinstate", json=REASON).status_code == 200
        again = eventually(lambda: http.get(f"{NODES}/{node}"), lambda answer: answer.status_code == 200, within=20)
        assert again.json()["content"] == "the north gate"


def pages(http: httpx2.Client, kind: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    cursor: dict[str, str] = {}
    while True:
        page = http.get(f"{ADMIN}/{kind}", params={"limit": "100"} | cursor).json()
        found += page["items"]
        if page["nextCursor"] is None:
            return found
        cursor = {"cursor": page["nextCursor"]}


def test_the_operators_own_tenant_stays(operator: httpx2.Client) -> None:
    check_error(operator.post(f"{ADMIN}/tenants/default/revoke", json=REASON), 409, "CONFLICT")
    for name in ("_system", "nowhere", str(uuid.uuid4())):
        answer = operator.post(f"{ADMIN}/tenants/{name}/revoke", json=REASON)
        assert answer.status_code in (404, 422), answer.text
    assert "_system" not in {one["tenant"] for one in pages(operator, "tenants")}


def test_a_service_is_made_refused_and_let_in_again(product: Product, tenant: str, admin: httpx2.Client) -> None:
    made = admin.post(f"{ADMIN}/principals", json={"service": "robot"})
    assert made.status_code == 201, made.text
    who = made.json()["principalId"]
    with connect(product, tenant, service="robot") as http:
        kind, said = entry(http, made)
        assert kind == "ops.principal-created.succeeded"
        assert (said["service"], said["id"], said["tenantCreatedAt"]) == ("robot", who, None)  # the admin was first
        node = http.post(NODES, json={"owner": "ann"}).json()
        assert http.get(f"/v1/audit/events/{node['auditId']}").json()["actor"] == who
        check_error(admin.post(f"{ADMIN}/principals", json={"service": "robot"}), 409, "CONFLICT")
        assert admin.post(f"{ADMIN}/principals/{who}/revoke", json=REASON).json()["service"] == "robot"
        refused = eventually(lambda: http.get(NODES), lambda answer: answer.status_code != 200, within=20)
        check_error(refused, 401, "UNAUTHENTICATED")
        check_error(admin.post(f"{ADMIN}/principals/{who}/revoke", json=REASON), 409, "CONFLICT")
        assert admin.post(f"{ADMIN}/principals/{who}/reinstate", json=REASON).json()["revokedAt"] is None
        assert http.get(NODES).status_code == 200
    assert [one["service"] for one in pages(admin, "principals")] == ["boss", "robot"]
    page = admin.get(f"{ADMIN}/principals", params={"limit": 1}).json()
    assert (page["items"][0]["service"], page["nextCursor"]) == ("boss", "boss")


def test_the_installations_own_services_are_nobodys_to_refuse(product: Product, operator: httpx2.Client) -> None:
    with product.owner() as connection:
        own = connection.execute("SELECT id::text FROM principals WHERE tenant = '_system'").fetchall()
    assert own
    for (who,) in own:
        check_error(operator.post(f"{ADMIN}/principals/{who}/revoke", json=REASON), 404, "NOT_FOUND")


def test_a_token_is_refused_over_http(product: Product, tenant: str, admin: httpx2.Client) -> None:
    done = admin.post(f"{ADMIN}/tokens:revoke", json={"jti": "lost", **REASON})
    assert done.status_code == 200, done.text
    assert (done.json()["tenant"], done.json()["jti"]) == (tenant, "lost")
    check_error(admin.post(f"{ADMIN}/tokens:revoke", json={"jti": "lost", **REASON}), 409, "CONFLICT")
    check_error(admin.post(f"{ADMIN}/tokens:revoke", json={"jti": "a b", **REASON}), 422, "VALIDATION_ERROR")


def test_tenants_and_services_by_command(product: Product, tenant: str) -> None:
    ctl(product, "tenant", "create", tenant)
    assert "already" in ctl(product, "tenant", "create", tenant, code=1)
    made = ctl(product, "principal", "create", "robot", "--tenant", tenant)["facts"]
    assert [one["id"] for one in ctl(product, "principal", "list", "--tenant", tenant)["principals"]] == [made["id"]]
    words = ("--reason", "case 12", "--yes")
    ctl(product, "tenant", "revoke", tenant, *words)
    (listed,) = [
        one for one in ctl(product, "tenant", "list", "--limit", "10000")["tenants"] if one["tenant"] == tenant
    ]
    assert listed["revokedAt"] is not None
    with connect(product, tenant, service="robot") as http:
        check_error(http.get(NODES), 403, "FORBIDDEN")
        ctl(product, "tenant", "reinstate", tenant, *words)
        assert http.get(NODES).status_code == 200
    assert "is not revoked" in ctl(product, "tenant", "reinstate", tenant, *words, code=1)
    assert "There is no tenant" in ctl(product, "tenant", "revoke", f"{tenant}-nowhere", *words, code=1)
    assert "ADMIN_TENANT" in ctl(product, "tenant", "revoke", "default", *words, code=1)
