"""Objects that lie in the object store already: registered alone and with a node, and everything that they are refused for."""

from __future__ import annotations

import datetime as dt
import json
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from memory_layer.client import AsyncMemoryClient, MemoryClient
from memory_layer.model import SCOPES
from tests.api.door import check_error, connect, create, fingerprint, sha256
from tests.support.product import Product

ARTIFACTS = "/v1/memory/artifacts"
NODES = "/v1/memory/nodes"
CONTENT = b"weights " * 1000


def lay(product: Product, key: str, content: bytes = CONTENT) -> str:
    """Put an object there as somebody else would; its URL."""
    path = product.data / "objects" / key
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    path.write_bytes(content)
    return f"object://local/{key}"


def told(url: str, content: bytes = CONTENT, **more: Any) -> dict[str, Any]:
    return {"url": url, "sha256": sha256(content), "sizeBytes": len(content)} | more


def in_node(url: str, content: bytes = CONTENT, **more: Any) -> dict[str, Any]:
    return {"artifactUrl": url, "sha256": sha256(content), "sizeBytes": len(content)} | more


def events(http: httpx2.Client, artifact: str) -> list[dict[str, Any]]:
    """What the log tells of an artifact, oldest first."""
    items = http.get("/v1/audit/events", params={"artifactId": artifact}).json()["items"]
    return [http.get(f"/v1/audit/events/{item['auditId']}").json() for item in reversed(items)]


def test_an_object_becomes_an_artifact(http: httpx2.Client, product: Product, tenant: str) -> None:
    url, node = lay(product, f"{tenant}/models/a.bin"), create(http)
    until = "2095-01-01T00:00:00.000000Z"
    body = told(url, node=node, name="a.bin", contentType="application/x-model", manifestSignatureId="manifest-9",
                retainUntil=until, metadata={"from": "training"})  # fmt: skip
    stored = http.post(ARTIFACTS, json=body)
    assert stored.status_code == 201, stored.text
    answer = stored.json()
    shown = http.get(f"{ARTIFACTS}/{answer['artifactId']}").json()
    assert shown == {name: value for name, value in answer.items() if name not in ("audit", "auditId")}
    assert (shown["url"], shown["sha256"], shown["sizeBytes"]) == (url, sha256(CONTENT), len(CONTENT))
    assert (shown["name"], shown["memoryNodeId"], shown["metadata"]) == ("a.bin", node, {"from": "training"})
    assert (shown["retainUntil"], shown["contentType"]) == (until, "application/x-model")
    assert shown["manifestSignatureId"] == "manifest-9"
    assert shown["verifiedAt"] is not None
    assert http.get(f"{ARTIFACTS}/{answer['artifactId']}/content").content == CONTENT
    assert [a["artifactId"] for a in http.get(f"{NODES}/{node}").json()["artifacts"]] == [answer["artifactId"]]
    (event,) = events(http, answer["artifactId"])
    assert (event["type"], event["entry"]["manifest_signature_id"]) == ("memory.artifact.created", "manifest-9")
    assert event["payload"]["value"]["objectKey"] == f"{tenant}/models/a.bin"


def test_a_wrong_hash_is_reported_with_both(http: httpx2.Client, product: Product, tenant: str) -> None:
    url = lay(product, f"{tenant}/in/x.bin")
    before = fingerprint(product, tenant)
    wrong = sha256(b"something else")
    error = check_error(http.post(ARTIFACTS, json=told(url) | {"sha256": wrong}), 422, "CHECKSUM_MISMATCH")
    assert wrong in error["message"]
    assert sha256(CONTENT) in error["message"]
    assert error["details"][0]["path"] == "sha256"
    error = check_error(http.post(ARTIFACTS, json=told(url) | {"sizeBytes": 7}), 422, "CHECKSUM_MISMATCH")
    assert "7" in error["message"]
    assert str(len(CONTENT)) in error["message"]
    assert fingerprint(product, tenant) == before


@pytest.mark.parametrize(
    "url",
    [
        "s3://another-bucket/{tenant}/models/a.bin",
        "https://example.org/{tenant}/models/a.bin",
        "object://local/",
        "object://local/{tenant}",
        "object://local/{tenant}/",
        "object://local/{tenant}x/models/a.bin",
        "object://local/{tenant}/../other/a.bin",
        "object://local/{tenant}/%2e%2e/other/a.bin",
        "object://archive/{tenant}/models/a.bin",
        "/etc/passwd",
        "nonsense",
    ],
)
def test_only_what_lies_below_the_tenants_prefix(http: httpx2.Client, product: Product, tenant: str, url: str) -> None:
    lay(product, f"{tenant}x/models/a.bin")
    before = fingerprint(product, tenant)
    check_error(http.post(ARTIFACTS, json=told(url.replace("{tenant}", tenant))), 422, "VALIDATION_ERROR")
    assert fingerprint(product, tenant) == before


def test_nobody_registers_what_is_another_tenants(http: httpx2.Client, product: Product) -> None:
    url = lay(product, f"t-{uuid.uuid4().hex}/secret.bin")
    answers = [http.post(ARTIFACTS, json=told(url)), http.post(ARTIFACTS, json=told(url + "-not-there"))]
    messages = [check_error(answer, 422, "VALIDATION_ERROR")["message"] for answer in answers]
    assert messages[0] == messages[1]  # whether it is there is nobody else's business


def test_what_is_not_there_and_what_is_malformed(http: httpx2.Client, product: Product, tenant: str) -> None:
    url = lay(product, f"{tenant}/a.bin")
    before = fingerprint(product, tenant)
    check_error(http.post(ARTIFACTS, json=told(f"object://local/{tenant}/gone.bin")), 404, "NOT_FOUND")
    check_error(http.post(ARTIFACTS, json=told(f"{url}?versionId=77")), 404, "NOT_FOUND")
    check_error(http.post(ARTIFACTS, json=told(url, node=str(uuid.uuid4()))), 404, "NOT_FOUND")
    for wrong in (
        {"sha256": "A" * 64},
        {"sha256": "abc"},
        {"sizeBytes": -1},
        {"sizeBytes": "12"},
        {"sizeBytes": 1.5},
        {"node": "nonsense"},
        {"retainUntil": "yesterday"},
        {"retainUntil": "2001-01-01T00:00:00Z"},
        {"retainUntil": "9999-01-01T00:00:00Z"},
        {"manifestSignatureId": 'a"b'},
        {"contentType": "a\r\nb"},
        {"url": ""},
        {"url": f"object://local/{tenant}/{'k' * 1025}"},
        {"name": "n" * 1025},
        {"name": ""},
        {"metadata": []},
        {"artifactUrl": url},
    ):
        check_error(http.post(ARTIFACTS, json=told(url) | wrong), 422, "VALIDATION_ERROR")
    two = http.post(
        ARTIFACTS, json=told(url, manifestSignatureId="one"), headers={"X-Manifest-Signature-Id": "another"}
    )
    check_error(two, 422, "VALIDATION_ERROR")
    check_error(
        http.post(ARTIFACTS, content=b'{"url":1,"url":2}', headers={"Content-Type": "application/json"}),
        422,
        "VALIDATION_ERROR",
    )
    assert fingerprint(product, tenant) == before


def test_it_needs_the_scope_to_write(product: Product, tenant: str) -> None:
    url = lay(product, f"{tenant}/a.bin")
    with connect(product, tenant, [s for s in SCOPES if s != "memory:write"], service="reader") as reader:
        check_error(reader.post(ARTIFACTS, json=told(url)), 403, "FORBIDDEN")
        check_error(
            reader.post(f"{ARTIFACTS}/{uuid.uuid4()}/retention", json={"retainUntil": "2095-01-01T00:00:00Z"}),
            403,
            "FORBIDDEN",
        )


def test_a_repeated_registration_is_one_artifact(http: httpx2.Client, product: Product, tenant: str) -> None:
    url = lay(product, f"{tenant}/a.bin")
    key = {"Idempotency-Key": str(uuid.uuid4())}
    first, second = (http.post(ARTIFACTS, json=told(url), headers=key) for _ in range(2))
    assert (first.status_code, second.status_code) == (201, 200)
    assert second.headers["idempotency-replayed"] == "true"
    assert first.json() == second.json()
    check_error(http.post(ARTIFACTS, json=told(url, name="x"), headers=key), 422, "IDEMPOTENCY_MISMATCH")
    # The first answer stands, whatever has become of the object since.
    lay(product, f"{tenant}/a.bin", b"something else by now")
    assert http.post(ARTIFACTS, json=told(url), headers=key).json() == first.json()
    check_error(http.post(ARTIFACTS, json=told(url)), 422, "CHECKSUM_MISMATCH")


def test_an_empty_object(http: httpx2.Client, product: Product, tenant: str) -> None:
    stored = http.post(ARTIFACTS, json=told(lay(product, f"{tenant}/empty", b""), b""))
    assert stored.status_code == 201, stored.text
    assert http.get(f"{ARTIFACTS}/{stored.json()['artifactId']}/content").content == b""


# --- with a node


def test_a_node_comes_with_its_artifacts(http: httpx2.Client, product: Product, tenant: str) -> None:
    one, two = lay(product, f"{tenant}/one"), lay(product, f"{tenant}/two", b"two")
    body = {
        "owner": "ann",
        "content": "with two files",
        "artifacts": [
            in_node(one, manifestSignatureId="m-1", retainUntil="2095-01-01T00:00:00Z"),
            in_node(two, b"two"),
        ],
    }
    made = http.post(NODES, json=body, headers={"X-Manifest-Signature-Id": "of-the-request", "Idempotency-Key": "a"})
    assert made.status_code == 201, made.text
    answer = made.json()
    node = http.get(f"{NODES}/{answer['memoryNodeId']}").json()
    assert [a["url"] for a in node["artifacts"]] == [one, two]
    assert [a["artifactId"] for a in answer["artifacts"]] == [a["artifactId"] for a in node["artifacts"]]
    assert [a["manifestSignatureId"] for a in node["artifacts"]] == ["m-1", "of-the-request"]
    # One batch: each with an entry of its own, under one seal.
    seqs = [answer["audit"]["seq"], *(a["audit"]["seq"] for a in answer["artifacts"])]
    assert seqs == list(range(seqs[0], seqs[0] + 3))
    told_of = [
        http.get(f"/v1/audit/events/{a}").json()
        for a in (answer["auditId"], *(a["auditId"] for a in answer["artifacts"]))
    ]
    assert [e["type"] for e in told_of] == ["memory.node.created", "memory.artifact.created", "memory.artifact.created"]
    assert len({e["batch"] for e in told_of}) == 1
    assert told_of[1]["entry"]["manifest_signature_id"] == "m-1"
    again = http.post(NODES, json=body, headers={"X-Manifest-Signature-Id": "of-the-request", "Idempotency-Key": "a"})
    assert (again.status_code, again.json()) == (200, answer)


def test_a_node_whose_artifact_is_wrong_is_not_made(http: httpx2.Client, product: Product, tenant: str) -> None:
    good, bad = lay(product, f"{tenant}/good"), lay(product, f"{tenant}/bad")
    before = fingerprint(product, tenant)
    for wrong, status, code in (
        (in_node(bad) | {"sha256": sha256(b"x")}, 422, "CHECKSUM_MISMATCH"),
        (in_node(f"object://local/{tenant}/gone"), 404, "NOT_FOUND"),
        (in_node("s3://elsewhere/x"), 422, "VALIDATION_ERROR"),
        (in_node(bad, retainUntil="soon"), 422, "VALIDATION_ERROR"),
    ):
        body = {"owner": "ann", "artifacts": [in_node(good), wrong]}
        error = check_error(http.post(NODES, json=body), status, code)
        assert error["details"][0]["path"].startswith("artifacts[1].")
    body = {"owner": "ann", "artifacts": [in_node(good)] * 101}
    check_error(http.post(NODES, json=body), 422, "VALIDATION_ERROR")
    assert fingerprint(product, tenant) == before


def test_in_a_bulk_request_a_node_with_a_wrong_artifact_fails_alone(
    http: httpx2.Client, product: Product, tenant: str
) -> None:
    good, bad = lay(product, f"{tenant}/good"), lay(product, f"{tenant}/bad")
    nodes = [
        {"owner": "ann", "artifacts": [in_node(good)]},
        {"owner": "ann", "artifacts": [in_node(bad) | {"sha256": sha256(b"x")}]},
        {"owner": "ann"},
    ]
    items = http.post(f"{NODES}:batch", json=nodes).json()["items"]
    assert [item.get("error", {}).get("code") for item in items] == [None, "CHECKSUM_MISMATCH", None]
    assert items[0]["artifacts"][0]["url"] == good
    assert "artifacts" not in items[2]
    many = [{"owner": "ann", "artifacts": [in_node(good)] * 60}] * 2
    check_error(http.post(f"{NODES}:batch", json=many), 422, "VALIDATION_ERROR")


def test_an_object_under_a_held_node_is_held(http: httpx2.Client, product: Product, tenant: str) -> None:
    url = lay(product, f"{tenant}/evidence")
    made = http.post(NODES, json={"owner": "ann", "legalHold": True, "artifacts": [in_node(url)]}).json()
    assert made["artifacts"][0]["legalHold"] is True
    later = http.post(ARTIFACTS, json=told(url, node=made["memoryNodeId"])).json()
    assert later["legalHold"] is True


# --- kept until a date


def test_an_upload_is_kept_until_its_date(http: httpx2.Client, product: Product, tenant: str) -> None:
    stored = http.put(ARTIFACTS, content=b"keep me", headers={"X-Retain-Until": "2095-06-01T12:00:00+02:00"})
    assert stored.status_code == 201, stored.text
    assert stored.json()["retainUntil"] == "2095-06-01T10:00:00.000000Z"
    for wrong in ("2001-01-01T00:00:00Z", "tomorrow", "2095-06-01"):
        before = fingerprint(product, tenant)
        refused = http.put(ARTIFACTS, content=b"no", headers={"X-Retain-Until": wrong})
        check_error(refused, 422, "VALIDATION_ERROR")
        assert fingerprint(product, tenant) == before


def test_retention_is_extended_and_never_shortened(http: httpx2.Client) -> None:
    stored = http.put(ARTIFACTS, content=b"longer", headers={"X-Retain-Until": "2090-01-01T00:00:00Z"}).json()
    url = f"{ARTIFACTS}/{stored['artifactId']}/retention"
    longer = http.post(url, json={"retainUntil": "2092-01-01T00:00:00Z"})
    assert longer.status_code == 200, longer.text
    assert longer.json()["retainUntil"] == "2092-01-01T00:00:00.000000Z"
    error = check_error(http.post(url, json={"retainUntil": "2091-01-01T00:00:00Z"}), 409, "CONFLICT")
    assert "2092" in error["message"]
    check_error(http.post(url, json={"retainUntil": "2001-01-01T00:00:00Z"}), 422, "VALIDATION_ERROR")
    check_error(http.post(url, json={"retainUntil": None}), 422, "VALIDATION_ERROR")
    assert http.get(f"{ARTIFACTS}/{stored['artifactId']}").json()["retainUntil"] == "2092-01-01T00:00:00.000000Z"
    created, extended = events(http, stored["artifactId"])
    assert (created["type"], extended["type"]) == ("memory.artifact.created", "memory.artifact.verified")
    assert extended["payload"]["value"]["previous"] == "2090-01-01T00:00:00.000000Z"
    assert extended["payload"]["value"]["lock"] == {"mode": "COMPLIANCE", "until": "2092-01-01T00:00:00.000000Z"}
    check_error(
        http.post(f"{ARTIFACTS}/{uuid.uuid4()}/retention", json={"retainUntil": "2095-01-01T00:00:00Z"}),
        404,
        "NOT_FOUND",
    )


def test_an_artifact_of_the_same_bytes_keeps_its_own_date(http: httpx2.Client) -> None:
    short = http.put(ARTIFACTS, content=b"shared", headers={"X-Retain-Until": "2080-01-01T00:00:00Z"}).json()
    long = http.put(ARTIFACTS, content=b"shared", headers={"X-Retain-Until": "2090-01-01T00:00:00Z"}).json()
    kept = http.post(f"{ARTIFACTS}/{short['artifactId']}/retention", json={"retainUntil": "2085-01-01T00:00:00Z"})
    assert kept.status_code == 200, kept.text
    assert kept.json()["retainUntil"].startswith("2085")
    assert http.get(f"{ARTIFACTS}/{long['artifactId']}").json()["retainUntil"].startswith("2090")


# --- links


def test_a_store_without_links_streams(http: httpx2.Client) -> None:
    stored = http.put(ARTIFACTS, content=b"bytes").json()
    url = f"{ARTIFACTS}/{stored['artifactId']}/content"
    assert http.get(url, params={"link": "true"}).content == b"bytes"
    assert http.get(url, params={"link": "false"}).content == b"bytes"
    check_error(http.get(url, params={"link": "perhaps"}), 422, "VALIDATION_ERROR")


# --- the clients and the command line


@pytest.fixture
def client(product: Product, tenant: str) -> Iterator[MemoryClient]:
    with MemoryClient(product.url, product.issue(tenant=tenant)) as memory:
        yield memory


def test_the_client_registers_and_retains(client: MemoryClient, product: Product, tenant: str) -> None:
    url = lay(product, f"{tenant}/c.bin")
    node = client.remember(
        "with a file", owner="ann", artifacts=[in_node(url, retainUntil=dt.datetime(2090, 1, 1, tzinfo=dt.UTC))]
    )
    assert node["artifacts"][0]["retainUntil"].startswith("2090-01-01")
    stored = client.register(url, sha256=sha256(CONTENT), size=len(CONTENT), node=node["memoryNodeId"], name="c.bin")
    kept = client.retain(stored["artifactId"], dt.datetime(2092, 1, 1, tzinfo=dt.UTC))
    assert kept["retainUntil"].startswith("2092-01-01")


async def test_the_async_client_does_too(product: Product, tenant: str) -> None:
    url = lay(product, f"{tenant}/c.bin")
    async with AsyncMemoryClient(product.url, product.issue(tenant=tenant)) as memory:
        stored = await memory.register(
            url, sha256=sha256(CONTENT), size=len(CONTENT), retain_until="2090-01-01T00:00:00Z"
        )
        kept = await memory.retain(stored["artifactId"], "2091-01-01T00:00:00Z")
        assert kept["retainUntil"].startswith("2091")


def test_the_command_line_registers(product: Product, tmp_path: Path) -> None:
    name = uuid.uuid4().hex
    url = lay(product, f"default/{name}")
    done = product.ctl("artifacts", "register", url, "--sha256", sha256(CONTENT), "--size", str(len(CONTENT)), "--json")
    assert done.returncode == 0, done.stderr
    stored = json.loads(done.stdout)
    assert stored["url"] == url
    kept = product.ctl("artifacts", "retain", stored["artifactId"], "2090-01-01T00:00:00Z")
    assert (kept.returncode, "2090-01-01" in kept.stdout) == (0, True), kept.stderr
    shorter = product.ctl("artifacts", "retain", stored["artifactId"], "2089-01-01T00:00:00Z")
    assert shorter.returncode == 1
    wrong = product.ctl("artifacts", "register", url, "--sha256", sha256(b"x"), "--size", str(len(CONTENT)))
    assert wrong.returncode == 1
    assert sha256(CONTENT) in wrong.stderr
    file = tmp_path / "kept.txt"
    file.write_bytes(b"kept")
    put = product.ctl("artifacts", "put", str(file), "--retain-until", "2090-01-01T00:00:00Z", "--json")
    assert json.loads(put.stdout)["retainUntil"].startswith("2090"), put.stderr
