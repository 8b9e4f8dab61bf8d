"""The HTTP door as a caller sees it, and what a request leaves behind it."""

from __future__ import annotations

import hashlib
import http.client
import re
import socket
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar
from urllib.parse import urlsplit

import httpx2

from memory_layer.model import SCOPES
from tests.support.product import Product

T = TypeVar("T")

NO_PII = tuple(scope for scope in SCOPES if scope != "read:pii")
TABLES = ("memory_nodes", "memory_vectors", "artifacts", "audit_events", "audit_payloads", "idempotency_keys")
# What an answer must never show: code, SQL, where things lie.
INTERNALS = re.compile(
    r"Traceback|psycopg|starlette|SELECT |INSERT |memory_nodes|/tmp/|/dev/shm|/home/|\.py\b|site-packages"
)


def connect(
    product: Product, tenant: str, scopes: Sequence[str] = SCOPES, service: str = "tester", **more: Any
) -> httpx2.Client:
    """A client with a token of its own."""
    token = product.issue(service, tenant, scopes)
    return httpx2.Client(base_url=product.url, headers={"Authorization": f"Bearer {token}"}, timeout=30, **more)


def create(http: httpx2.Client, **body: Any) -> str:
    """A node's id."""
    made = http.post("/v1/memory/nodes", json={"owner": "ann"} | body)
    assert made.status_code == 201, made.text
    return str(made.json()["memoryNodeId"])


def create_indexed(http: httpx2.Client, **body: Any) -> str:
    """A node's id, once it is searchable. A slow machine answers before that is so: a write waits for 10 s at the most."""
    made = http.post("/v1/memory/nodes?wait=indexed", json={"owner": "ann"} | body)
    assert made.status_code in (201, 202), made.text
    if made.status_code == 202:
        indexed(http, made.json()["memoryNodeId"])
    return str(made.json()["memoryNodeId"])


def patch_indexed(http: httpx2.Client, node: str, **body: Any) -> None:
    """Change a node, and wait as ``create_indexed`` does."""
    changed = http.patch(f"/v1/memory/nodes/{node}?wait=indexed", json=body)
    assert changed.status_code in (200, 202), changed.text
    if changed.status_code == 202:
        indexed(http, node)


def embedding(*numbers: float, model: str = "test-model") -> dict[str, Any]:
    return {"model": model, "dimension": len(numbers), "vector": list(numbers)}


def search(http: httpx2.Client, **body: Any) -> dict[str, Any]:
    found = http.post("/v1/memory/search", json=body)
    assert found.status_code == 200, found.text
    answer: dict[str, Any] = found.json()
    return answer


def found_ids(http: httpx2.Client, **body: Any) -> list[str]:
    """The ids that a search answers, best first."""
    return [hit["memoryNodeId"] for hit in search(http, **body)["results"]]


def listed_ids(http: httpx2.Client, **params: Any) -> list[str]:
    """Every id that a listing answers, page by page."""
    ids: list[str] = []
    cursor: dict[str, str] = {}
    while True:
        page = http.get("/v1/memory/nodes", params=params | cursor)
        assert page.status_code == 200, page.text
        ids += [item["memoryNodeId"] for item in page.json()["items"]]
        if page.json()["nextCursor"] is None:
            return ids
        cursor = {"cursor": page.json()["nextCursor"]}


def eventually(look: Callable[[], T], holds: Callable[[T], bool], within: float = 60) -> T:
    """The first look for which ``holds``; the last one when none did in time."""
    deadline = time.monotonic() + within
    while True:
        seen = look()
        if holds(seen) or time.monotonic() > deadline:
            assert holds(seen), f"did not come true within {within} s; last seen: {seen!r}"
            return seen
        time.sleep(0.02)


def indexed(http: httpx2.Client, node: str) -> None:
    """Wait until nothing is left to do for a node's vector."""
    eventually(
        lambda: http.get(f"/v1/memory/nodes/{node}").json()["vector"],
        lambda vector: vector is None or vector["status"] in ("succeeded", "deleted"),
    )


def check_error(response: httpx2.Response, status: int, code: str) -> dict[str, Any]:
    """Hold an answer to the one shape of every error; its ``error`` object."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    return check_error_body(response.json(), code, response.headers["x-request-id"])


def check_error_body(body: Any, code: str, request_id: str | None) -> dict[str, Any]:
    assert list(body) == ["error"]
    error: dict[str, Any] = body["error"]
    assert sorted(error) == ["code", "details", "message", "requestId", "retryable"]
    assert error["code"] == code, error
    assert isinstance(error["message"], str)
    assert error["message"]
    assert isinstance(error["details"], list)
    for detail in error["details"]:
        assert sorted(detail) == ["path", "problem"]
        assert detail["path"]
        assert detail["problem"]
    assert error["requestId"] == request_id
    assert isinstance(error["retryable"], bool)
    assert INTERNALS.search(str(error)) is None, error
    assert len(str(error)) < 5000
    return error


def fingerprint(product: Product, *tenants: str) -> dict[str, Any]:
    """Everything these tenants have in the database and in the object store, what lies in the store for no tenant at all, and how long
    the log is. What the worker still does for tenants of earlier tests does not show."""
    found: dict[str, Any] = {}
    owner = product.watching()
    for table in TABLES:
        found[table] = owner.execute(
            f"SELECT count(*), md5(string_agg(t::text, '|' ORDER BY t::text)) FROM {table} t WHERE tenant = ANY (%s)",
            [list(tenants)],
        ).fetchone()
    others = {name for (name,) in owner.execute("SELECT tenant FROM tenants") if name not in tenants}
    # A heartbeat may fall between two looks.
    found["log"] = owner.execute(
        "SELECT count(*), count(DISTINCT batch_no), max(id::text) FROM audit_events"
        " WHERE event_type <> 'audit.heartbeat' AND (tenant IS NULL OR NOT tenant = ANY (%s))",
        [list(others)],
    ).fetchone()
    objects = product.data / "objects"
    files = (path.relative_to(objects) for path in objects.rglob("*") if path.is_file())
    found["objects"] = sorted(
        str(path) for path in files if path.parts[0] != ".locks" and others.isdisjoint(path.parts[:2])
    )
    return found


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def exchange(url: str, request: bytes, chunks: Sequence[bytes] = ()) -> tuple[int, dict[str, str], bytes]:
    """Send bytes as they are; (status, headers with names in lower case, body) of what comes back."""
    address = urlsplit(url)
    with socket.create_connection((address.hostname or "", address.port or 80), timeout=30) as connection:
        connection.sendall(request)
        for chunk in chunks:
            connection.sendall(chunk)
        response = http.client.HTTPResponse(connection, method=request.partition(b" ")[0].decode())
        response.begin()
        return response.status, {k.lower(): v for k, v in response.getheaders()}, response.read()
