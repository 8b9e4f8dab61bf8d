"""API keys over HTTP and by command: shown once, kept as a hash, replaced with an overlap, refused within seconds."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from typing import Any

import httpx2
import pytest

from memory_layer.client import MemoryClient
from memory_layer.service.api_keys import is_key, new_key
from tests.api.door import check_error, connect, eventually
from tests.support.product import Product

NODES, KEYS = "/v1/memory/nodes", "/v1/admin/api-keys"


@pytest.fixture
def admin(product: Product, tenant: str) -> Iterator[httpx2.Client]:
    with connect(product, tenant, ("admin",), service="boss") as http:
        yield http


def make(
    admin: httpx2.Client, service: str = "robot", scopes: tuple[str, ...] = ("memory:read",), **more: Any
) -> dict[str, Any]:
    made = admin.post(KEYS, json={"service": service, "scopes": scopes} | more)
    assert made.status_code == 201, made.text
    answer: dict[str, Any] = made.json()
    return answer


def ask(product: Product, key: str, **headers: str) -> httpx2.Response:
    return httpx2.get(product.url + NODES, headers={"X-API-Key": key} | headers)


def refused(product: Product, key: str) -> httpx2.Response:
    return eventually(lambda: ask(product, key), lambda answer: answer.status_code != 200, within=20)


def ctl(product: Product, *words: str, code: int = 0) -> Any:
    done = product.ctl(*words, "--data", str(product.data), "--json")
    assert done.returncode == code, done.stdout + done.stderr
    return json.loads(done.stdout) if code == 0 else done.stderr


def test_a_key_is_shown_once_and_kept_as_a_hash(product: Product, tenant: str, admin: httpx2.Client) -> None:
    body = {"service": "robot", "scopes": ["memory:read", "memory:write"], "name": "nightly"}
    idempotent = {"Idempotency-Key": "one"}
    first = admin.post(KEYS, json=body, headers=idempotent)
    again = admin.post(KEYS, json=body, headers=idempotent)
    assert (first.status_code, again.status_code) == (201, 200)
    assert first.headers["cache-control"] == "no-store"
    made, repeated = first.json(), again.json()
    key = made.pop("key")
    assert is_key(key)
    assert repeated.pop("key") is None
    assert repeated == made
    assert (made["hint"], made["tenant"], made["scopes"]) == (key[:8], tenant, body["scopes"])
    assert ask(product, key, **{"X-Service-Id": "robot"}).status_code == 200
    check_error(ask(product, key, **{"X-Service-Id": "boss"}), 403, "FORBIDDEN")
    (listed,) = admin.get(KEYS).json()["items"]
    assert listed == {name: made[name] for name in listed if name != "lastUsedAt"} | {"lastUsedAt": None}
    with product.owner() as connection:
        for table in ("api_keys", "idempotency_keys", "audit_payloads", "ops_runs", "principals"):
            found = connection.execute(
                f"SELECT count(*) FROM {table} t WHERE t::text LIKE %s", [f"%{key[10:]}%"]
            ).fetchone()
            assert found == (0,), table
        entries = connection.execute(
            "SELECT count(*) FROM audit_payloads WHERE convert_from(payload, 'UTF8') LIKE %s", [f"%{key[10:]}%"]
        )
        assert entries.fetchone() == (0,)


def test_the_service_writes_by_its_key_and_the_log_says_so(product: Product, tenant: str, admin: httpx2.Client) -> None:
    made = make(admin, scopes=("memory:read", "memory:write", "audit:read"))
    with MemoryClient(product.url, token=made["key"]) as client:
        node = client.remember("by a key", owner="ann")
        assert client.get(node["memoryNodeId"])["content"] == "by a key"
    with connect(product, tenant) as http:
        entry = http.get(f"/v1/audit/events/{node['auditId']}").json()["entry"]
    assert (entry["auth"], entry["actor"]) == ("api-key", made["principalId"])


def test_wrong_keys_are_answered_like_wrong_tokens(product: Product, tenant: str, admin: httpx2.Client) -> None:
    key = make(admin)["key"]
    wrong = [
        new_key(),
        key[:-1],
        key[:-1] + ("a" if key[-1] != "a" else "b"),
        key + "0",
        "mlk_",
        "x",
        key.upper(),
        "'" * 40,
    ]
    answers = [ask(product, one) for one in wrong]
    answers += [httpx2.get(product.url + NODES, headers={"Authorization": f"Bearer {one}"}) for one in ("a.b.c", key)]
    messages = {check_error(answer, 401, "UNAUTHENTICATED")["message"] for answer in answers}
    assert messages == {"The token or API key is not valid here, or has expired."}
    both = ask(product, key, Authorization=f"Bearer {product.issue(tenant=tenant)}")
    assert "not both" in check_error(both, 401, "UNAUTHENTICATED")["message"]
    check_error(ask(product, ""), 401, "UNAUTHENTICATED")


def test_a_key_is_replaced_with_an_overlap_and_then_refused(product: Product, admin: httpx2.Client) -> None:
    old, other = make(admin, expiresAt="2090-01-01T00:00:00Z"), make(admin)
    assert ask(product, old["key"]).status_code == 200
    path = f"{KEYS}/{old['apiKeyId']}/rotate"
    new = admin.post(path, json={"overlapSeconds": 600})
    assert new.status_code == 201, new.text
    assert new.json()["replaces"]["apiKeyId"] == old["apiKeyId"]
    assert new.json()["scopes"] == old["scopes"]
    assert "2089" <= new.json()["expiresAt"][:4] <= "2091"
    assert [ask(product, key).status_code for key in (old["key"], new.json()["key"])] == [200, 200]
    assert "replaced already" in check_error(admin.post(path, json={}), 409, "CONFLICT")["message"]
    at_once = admin.post(f"{KEYS}/{new.json()['apiKeyId']}/rotate", json={"overlapSeconds": 0}).json()
    check_error(refused(product, new.json()["key"]), 401, "UNAUTHENTICATED")
    assert [ask(product, key).status_code for key in (at_once["key"], other["key"])] == [200, 200]


def test_a_revoked_key_is_refused_and_no_other(product: Product, tenant: str, admin: httpx2.Client) -> None:
    lost, kept = make(admin), make(admin)
    assert [ask(product, one["key"]).status_code for one in (lost, kept)] == [200, 200]
    path = f"{KEYS}/{lost['apiKeyId']}/revoke"
    check_error(admin.post(path, json={"reason": "two\nlines"}), 422, "VALIDATION_ERROR")
    gone = admin.post(path, json={"reason": "in a repository, case 12"})
    assert gone.status_code == 200
    assert gone.json()["revokedAt"] is not None
    check_error(refused(product, lost["key"]), 401, "UNAUTHENTICATED")
    assert ask(product, kept["key"]).status_code == 200
    check_error(admin.post(path, json={"reason": "again"}), 409, "CONFLICT")
    check_error(admin.post(f"{KEYS}/{lost['apiKeyId']}/rotate", json={}), 409, "CONFLICT")
    # A revoked service takes its keys with it.
    ctl(product, "principal", "revoke", "robot", "--tenant", tenant, "--reason", "case 13", "--yes")
    assert "revoked" in check_error(refused(product, kept["key"]), 401, "UNAUTHENTICATED")["message"]
    check_error(admin.post(KEYS, json={"service": "robot", "scopes": ["memory:read"]}), 409, "CONFLICT")


def test_an_admin_administers_its_own_tenant_and_the_operators_all(
    product: Product, tenant: str, admin: httpx2.Client
) -> None:
    own = make(admin)
    with (
        connect(product, tenant + "-b", ("admin",)) as stranger,
        connect(product, "default", ("admin",), "operator") as operator,
    ):
        assert stranger.get(KEYS).json()["items"] == []
        for answer in (
            stranger.get(KEYS, params={"tenant": tenant}),
            stranger.get(KEYS, params={"tenant": "nowhere"}),
            stranger.post(KEYS, json={"service": "x", "scopes": ["admin"], "tenant": tenant}),
            stranger.post(f"{KEYS}/{own['apiKeyId']}/rotate", json={}),
            stranger.post(f"{KEYS}/{own['apiKeyId']}/revoke", json={"reason": "x"}),
            stranger.post(f"{KEYS}/{uuid.uuid4()}/revoke", json={"reason": "x"}),
        ):
            check_error(answer, 404, "NOT_FOUND")
        wide = {"service": "x", "scopes": ["audit:all"]}
        check_error(stranger.post(KEYS, json=wide), 403, "FORBIDDEN")
        assert [one["apiKeyId"] for one in operator.get(KEYS, params={"tenant": tenant}).json()["items"]] == [
            own["apiKeyId"]
        ]
        assert operator.post(KEYS, json=wide | {"tenant": tenant}).status_code == 201
        assert operator.post(f"{KEYS}/{own['apiKeyId']}/revoke", json={"reason": "x"}).status_code == 200
    assert {one["service"]: one["revokedAt"] is None for one in admin.get(KEYS).json()["items"]} == {
        "x": True,
        "robot": False,
    }


def test_pages_of_keys(admin: httpx2.Client) -> None:
    made = [make(admin, service=f"s{n % 2}")["apiKeyId"] for n in range(5)]
    seen, cursor = [], {}
    while True:
        page = admin.get(KEYS, params={"limit": 2} | cursor).json()
        seen += [one["apiKeyId"] for one in page["items"]]
        if page["nextCursor"] is None:
            break
        cursor = {"cursor": page["nextCursor"]}
    assert seen == made[::-1]
    assert len(admin.get(KEYS, params={"service": "s1"}).json()["items"]) == 2
    check_error(admin.get(KEYS, params={"cursor": "x"}), 422, "VALIDATION_ERROR")


@pytest.mark.parametrize(
    "body",
    [
        {"service": "a b", "scopes": ["memory:read"]},
        {"service": "robot", "scopes": []},
        {"service": "robot", "scopes": ["memory:all"]},
        {"service": "robot", "scopes": ["memory:read"], "expiresAt": "2020-01-01T00:00:00Z"},
        {"service": "robot", "scopes": ["memory:read"], "expiresAt": "soon"},
        {"service": "robot", "scopes": ["memory:read"], "name": "two\nlines"},
        {"service": "robot", "scopes": ["memory:read"], "tenant": "_system"},
        {"service": "robot", "scopes": ["memory:read"], "key": "mlk_mine"},
        {},
    ],
    ids=str,
)
def test_what_does_not_fit_makes_no_key(admin: httpx2.Client, body: dict[str, Any]) -> None:
    check_error(admin.post(KEYS, json=body), 422, "VALIDATION_ERROR")
    assert admin.get(KEYS).json()["items"] == []


def test_keys_by_command(product: Product, tenant: str) -> None:
    made = ctl(product, "api-key", "create", "robot", "--tenant", tenant, "--scope", "memory:read", "--name", "nightly")
    (key,) = made["keys"]
    assert ask(product, key["key"]).status_code == 200
    rotated = ctl(product, "rotate", "api-keys", "--service", "robot", "--tenant", tenant, "--overlap", "600", "--yes")
    (new,) = rotated["keys"]
    assert new["replaces"] == key["apiKeyId"]
    assert [ask(product, one["key"]).status_code for one in (key, new)] == [200, 200]
    listed = ctl(product, "api-key", "list", "--tenant", tenant)["apiKeys"]
    assert [(one["apiKeyId"], one["replacedBy"]) for one in listed] == [
        (new["apiKeyId"], None),
        (key["apiKeyId"], new["apiKeyId"]),
    ]
    words = ("api-key", "revoke", new["apiKeyId"], "--reason", "case 12", "--yes")
    ctl(product, *words)
    assert "is revoked already" in ctl(product, *words, code=1)
    check_error(refused(product, new["key"]), 401, "UNAUTHENTICATED")
    assert "no such API key" in ctl(
        product, "rotate", "api-keys", "--service", "robot", "--tenant", tenant, "--yes", code=1
    )
    # The runs are stored, and no key is in them.
    for run in (made["runId"], rotated["runId"]):
        shown = product.ctl("runs", "show", run, "--data", str(product.data), "--json").stdout
        assert run in shown
        assert key["key"] not in shown
        assert new["key"] not in shown
    plain = product.ctl("api-key", "create", "other", "--tenant", tenant, "--data", str(product.data))
    assert is_key(plain.stdout.strip()), plain.stdout


def test_the_first_admin_comes_from_one_command_once(product: Product) -> None:
    made = ctl(product, "bootstrap", "--service", "first")
    (key,) = made["keys"]
    assert httpx2.get(product.url + KEYS, headers={"X-API-Key": key["key"]}).status_code == 200
    check_error(ask(product, key["key"]), 403, "FORBIDDEN")  # it administers, and reads no memory
    assert "had an API key with the scope admin before" in ctl(product, "bootstrap", code=4)
