"""Times that are none, locks that are too long, cursors over two logs, and the moment after a start."""

from __future__ import annotations

import base64
import datetime as dt
import json
import math
import subprocess
import sys
import time
from pathlib import Path

import httpx2
import jwt
import pytest

from tests.api.door import check_error, connect, create, sha256
from tests.support.product import Product, clean_environment, running_product

NODES = "/v1/memory/nodes"
ARTIFACTS = "/v1/memory/artifacts"


def signed(product: Product, claims: str) -> str:
    """A token of this product's key whose claims are this text."""
    key = (product.data / "keys" / "jwt.pem").read_text()
    return jwt.api_jws.encode(claims.encode(), key, "EdDSA")


TIMES = ["1" + "0" * 400, "1e400", "-1e400", "NaN", "Infinity", "1" + "0" * 5000, '"9999999999"', "true", "null", "[]", "{}",
         "-1", "1e300", "9007199254740993"]  # fmt: skip


@pytest.mark.parametrize("value", TIMES, ids=lambda value: value[:16])
@pytest.mark.parametrize("claim", ["exp", "nbf", "iat"])
def test_a_claim_that_is_no_time(product: Product, claim: str, value: str) -> None:
    claims = {"iss": "memory-layer", "aud": "memory-layer", "sub": "s", "tenant": "t", "scope": "memory:read"}
    numbers = {"exp": str(int(time.time()) + 600)} | {claim: value}
    text = json.dumps(claims)[:-1] + "".join(f', "{name}": {number}' for name, number in numbers.items()) + "}"
    head = {"Authorization": f"Bearer {signed(product, text)}"}
    check_error(httpx2.get(product.url + NODES, headers=head), 401, "UNAUTHENTICATED")


def test_claims_that_are_times_are_taken(product: Product) -> None:
    now = time.time()
    claims = {"iss": "memory-layer", "aud": "memory-layer", "sub": "s", "tenant": "t", "scope": "memory:read"}
    text = json.dumps(claims | {"exp": now + 600.5, "nbf": int(now) - 5, "iat": math.floor(now) - 5})
    head = {"Authorization": f"Bearer {signed(product, text)}"}
    assert httpx2.get(product.url + NODES, headers=head).status_code == 200


def ahead(days: float) -> str:
    return (dt.datetime.now(dt.UTC) + dt.timedelta(days=days)).isoformat().replace("+00:00", "Z")


def test_who_may_write_cannot_lock_for_a_century(product: Product, tenant: str) -> None:
    with (
        connect(product, tenant, ("memory:read", "memory:write"), "writer") as writer,
        connect(product, tenant) as all_,
    ):
        content = tenant.encode()
        made = writer.put(ARTIFACTS, content=content).json()
        path = f"{ARTIFACTS}/{made['artifactId']}/retention"
        facts = {"url": made["url"], "sha256": sha256(content), "sizeBytes": len(content)}
        for late in (3651, 36_000):
            refusals = (
                writer.post(path, json={"retainUntil": ahead(late)}),
                writer.put(ARTIFACTS, content=b"more", headers={"X-Retain-Until": ahead(late)}),
                writer.post(ARTIFACTS, json=facts | {"retainUntil": ahead(late)}),
            )
            for refusal in refusals:
                error = check_error(refusal, 422, "VALIDATION_ERROR")
                assert "ARTIFACT_MAX_RETENTION_DAYS" in error["message"]
        assert writer.get(f"{ARTIFACTS}/{made['artifactId']}").json()["retainUntil"] is None
        assert writer.post(path, json={"retainUntil": ahead(1)}).status_code == 200
        assert all_.post(path, json={"retainUntil": ahead(3651)}).status_code == 200


@pytest.mark.slow
def test_history_is_that_of_one_log_whole(data_folder: Path) -> None:
    # A product of its own: another log in it would be a finding for everybody else.
    with running_product(data=data_folder) as product, connect(product, "t") as http:
        node = create(http, content="x")
        for n in range(4):
            assert http.patch(f"{NODES}/{node}", json={"metadata": {"n": n}}).status_code == 200
        with product.owner() as owner:
            owner.execute("SET memory.importing = 'on'")  # as `audit replay` does
            owner.execute(
                """INSERT INTO audit_logs (log, origin, incarnation, key_id, imported_at)
                   SELECT -1, 'earlier', 9, key_id, now() FROM audit_logs WHERE log = 0"""
            )
            owner.execute(
                """INSERT INTO audit_events (log, seq, id, batch_no, tenant, memory_node_id, event_type, created_at, entry, hash,
                                             prev_hash, signature)
                   SELECT -1, e.seq + 5, gen_random_uuid(), e.batch_no, e.tenant, e.memory_node_id, e.event_type, e.created_at,
                          e.entry, e.hash, e.prev_hash, e.signature
                   FROM audit_events e WHERE e.log = 0 AND e.memory_node_id = %s""",
                [node],
            )
        seen: list[str] = []
        cursor: dict[str, str] = {}
        while True:
            page = http.get(f"{NODES}/{node}/history", params={"limit": "2"} | cursor).json()
            seen += [item["auditId"] for item in page["items"]]
            if page["nextCursor"] is None:
                break
            cursor = {"cursor": page["nextCursor"]}
        assert len(seen) == len(set(seen)) == 5  # and none of what another log says


def test_a_cursor_of_before_is_understood(http: httpx2.Client) -> None:
    node = create(http, content="x")
    for n in range(3):
        http.patch(f"{NODES}/{node}", json={"metadata": {"n": n}})
    path = f"{NODES}/{node}/history"
    page = http.get(path, params={"limit": "1"}).json()
    fields = json.loads(base64.urlsafe_b64decode(page["nextCursor"] + "=="))
    fields.pop("l")
    old = base64.urlsafe_b64encode(json.dumps(fields).encode()).decode().rstrip("=")
    assert http.get(path, params={"cursor": old}).json()["items"] == http.get(path).json()["items"][1:]
    for log in (True, "0", 2**40, None):
        bad = base64.urlsafe_b64encode(json.dumps(fields | {"l": log}).encode()).decode().rstrip("=")
        check_error(http.get(path, params={"cursor": bad}), 400, "INVALID_CURSOR")


@pytest.mark.slow
def test_env_waits_for_the_start_that_it_sees(data_folder: Path) -> None:
    """Without a moment in which /readyz is green and `env` has no token."""
    with running_product(data=data_folder):
        said = json.loads((data_folder / "up.json").read_text())
        (data_folder / "up.json").rename(data_folder / "later.json")
        ask = [sys.executable, "-m", "memory_layer.cli", "env", "--json", "--data", str(data_folder)]
        with subprocess.Popen(ask, env=clean_environment(), stdout=subprocess.PIPE, text=True) as asking:
            with pytest.raises(subprocess.TimeoutExpired):
                asking.wait(1.5)  # it waits, as it would for a start
            (data_folder / "later.json").rename(data_folder / "up.json")
            out, _ = asking.communicate(timeout=30)
        assert asking.returncode == 0
        assert json.loads(out)["MEMORY_TOKEN"] == said["token"]
