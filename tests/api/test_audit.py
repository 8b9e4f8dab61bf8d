"""The audit calls: entries with their seals and payloads, checkpoints, tiles and proofs, each verified from what came over HTTP."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import uuid
from collections.abc import Iterator
from typing import Any

import httpx2
import pytest

from memory_layer.audit import seal, trust_root
from memory_layer.audit.checkpoint import Checkpoint, check_checkpoint, parse_checkpoint
from memory_layer.audit.entry import leaf_hash, parse_entry, payload_commitment
from memory_layer.audit.proof import parse_proof, verify_proof
from memory_layer.audit.tree import (
    decode_bundle,
    inclusion_proof,
    root_from_tiles,
    tile_path,
    verify_consistency,
    verify_inclusion,
)
from memory_layer.model import SCOPES
from tests.api.door import NO_PII, check_error, connect, create, eventually
from tests.support.product import Product

EVENTS, CHECKPOINT, CONSISTENCY, TILE = (
    "/v1/audit/events",
    "/v1/audit/checkpoint",
    "/v1/audit/consistency",
    "/v1/audit/",
)
NOWHERE = "00000000-0000-7000-8000-000000000000"
OWN = tuple(scope for scope in SCOPES if scope != "audit:all")


@pytest.fixture
def own(product: Product, tenant: str) -> Iterator[httpx2.Client]:
    """A client of the tenant that sees its own entries only."""
    with connect(product, tenant, OWN) as client:
        yield client


@pytest.fixture(scope="module")
def published(product: Product) -> None:
    """Some checkpoint is there."""
    with connect(product, f"t-{uuid.uuid4().hex[:12]}") as client:
        checkpoint(client, make(client)["audit"]["seq"])


def known(product: Product) -> trust_root.TrustRoot:
    return trust_root.load((product.data / "trust-root.json").read_bytes())


def make(http: httpx2.Client, **body: Any) -> dict[str, Any]:
    made = http.post("/v1/memory/nodes", json={"owner": "ann"} | body)
    assert made.status_code == 201, made.text
    answer: dict[str, Any] = made.json()
    return answer


def checkpoint(http: httpx2.Client, covering: int = 0) -> Checkpoint:
    """The newest one, once it covers entry ``covering``."""

    def look() -> Checkpoint | None:
        answer = http.get(CHECKPOINT)
        if answer.status_code == 409:
            check_error(answer, 409, "NOT_YET_PUBLISHED")
            return None
        assert answer.headers["content-type"] == "text/plain; charset=utf-8"
        return parse_checkpoint(answer.content)

    found = eventually(look, lambda seen: seen is not None and seen.size > covering)
    assert found is not None
    return found


def proof_of(http: httpx2.Client, event: str) -> httpx2.Response:
    def look() -> httpx2.Response:
        answer = http.get(f"{EVENTS}/{event}/proof")
        if answer.status_code == 409:
            assert check_error(answer, 409, "NOT_YET_PUBLISHED")["retryable"] is True
            assert answer.headers["retry-after"] == "1"
        return answer

    return eventually(look, lambda answer: answer.status_code != 409)


def listed(http: httpx2.Client, **params: Any) -> list[dict[str, Any]]:
    items: list[dict[str, Any]] = []
    cursor: dict[str, str] = {}
    while True:
        page = http.get(EVENTS, params=params | cursor)
        assert page.status_code == 200, page.text
        items += page.json()["items"]
        if page.json()["nextCursor"] is None:
            return items
        cursor = {"cursor": page.json()["nextCursor"]}


# --- One entry


def test_an_entry_tells_all_that_is_needed_to_verify_it(product: Product, own: httpx2.Client) -> None:
    made = make(own, content="a fact", metadata={"k": 1}, embedding={"model": "m", "dimension": 2, "vector": [1, 0]})
    answer = own.get(f"{EVENTS}/{made['auditId']}")
    assert answer.status_code == 200
    told = answer.json()
    entry = base64.b64decode(told["entryBytes"])
    assert told["hash"] == leaf_hash(entry) == made["audit"]["hash"]
    assert told["entry"] == json.loads(entry)
    assert (told["seq"], told["type"], told["memoryNodeId"]) == (
        made["audit"]["seq"], "memory.node.created", made["memoryNodeId"]
    )  # fmt: skip
    text, key = told["seal"]["text"].encode(), next(k for k in known(product).keys if k.key_id == told["seal"]["keyId"])
    stated = seal.parse_seal(text)
    assert stated.batch == told["batch"]
    assert stated.first <= told["seq"] <= stated.last
    signature = base64.b64decode(told["seal"]["signature"])
    assert seal.verify_signature(told["seal"]["algorithm"], key.public_key, text, signature)
    payload = told["payload"]
    data, salt = base64.b64decode(payload["bytes"]), base64.b64decode(payload["salt"])
    assert payload["status"] == "shown"
    assert payload["value"] == json.loads(data)
    assert payload["value"]["content"] == "a fact"
    assert payload_commitment(salt, data) == told["entry"]["payload"]


def test_payloads_hide_what_is_flagged_or_ever_was(product: Product, tenant: str, own: httpx2.Client) -> None:
    secret = "Carla's number is -555-"
    made = make(own, content=secret, metadata={"phone": "-555-"}, piiFlags={"containsPii": True, "paths": ["content"]})
    node = made["memoryNodeId"]
    patched = own.patch(
        f"/v1/memory/nodes/{node}", json={"content": secret + "1", "metadata": {"phone": "-556-"}}
    ).json()
    held = own.put("/v1/memory/artifacts", params={"memoryNodeId": node, "name": "-555-.txt"}, content=b"x").json()
    events = [made["auditId"], patched["auditId"], held["auditId"]]
    with connect(product, tenant, [s for s in NO_PII if s != "audit:all"]) as outsider:

        def hidden() -> None:
            for event in events:
                answer = outsider.get(f"{EVENTS}/{event}")
                assert answer.json()["payload"]["status"] == "redacted"
                assert "-555-" not in answer.text
                assert "-556-" not in answer.text
                assert "salt" not in answer.text
                assert "-55" in json.dumps(own.get(f"{EVENTS}/{event}").json()["payload"]["value"])

        hidden()
        assert outsider.get(f"{EVENTS}/{made['auditId']}").json()["payload"]["value"]["owner"] == "ann"
        # What is flagged no more: the words of before still were.
        assert own.patch(
            f"/v1/memory/nodes/{node}", json={"content": "x", "piiFlags": {"containsPii": False}}
        ).is_success
        hidden()
        plain = make(own, content="nothing to hide")
        assert outsider.get(f"{EVENTS}/{plain['auditId']}").json()["payload"]["status"] == "shown"


# --- Lists


def test_lists_are_newest_first_and_filtered(own: httpx2.Client) -> None:
    made = [make(own, content=f"n{n}") for n in range(7)]
    first = made[0]["memoryNodeId"]
    own.patch(f"/v1/memory/nodes/{first}", json={"content": "changed"})
    artifact = own.put("/v1/memory/artifacts", params={"memoryNodeId": first}, content=b"bytes").json()
    everything = listed(own)
    assert [e["seq"] for e in everything] == sorted((e["seq"] for e in everything), reverse=True)
    assert len(everything) == 9
    for limit in (1, 2, 8, 9, 100):
        assert listed(own, limit=limit) == everything
    kinds = {"memory.node.created": 7, "memory.node.updated": 1, "memory.artifact.created": 1, "auth.denied": 0}
    for kind, count in kinds.items():
        assert [e["type"] for e in listed(own, type=kind, limit=3)] == [kind] * count
    assert {e["type"] for e in listed(own, memoryNodeId=first)} == set(list(kinds)[:3])
    (one,) = listed(own, artifactId=artifact["artifactId"])
    assert one["artifactId"] == artifact["artifactId"]
    assert listed(own, memoryNodeId=first, type="memory.node.updated")[0]["version"] == 2
    assert listed(own, memoryNodeId=made[1]["memoryNodeId"], artifactId=artifact["artifactId"]) == []
    times = [e["createdAt"] for e in everything]
    assert listed(own, since=times[3]) == [e for e in everything if e["createdAt"] >= times[3]]
    assert listed(own, until=times[3]) == [e for e in everything if e["createdAt"] < times[3]]
    assert listed(own, since=times[6], until=times[2]) == [
        e for e in everything if times[6] <= e["createdAt"] < times[2]
    ]
    assert listed(own, until="2000-01-01T00:00:00Z") == listed(own, since="2999-01-01T00:00:00Z") == []


def test_own_entries_only_but_for_audit_all(product: Product, tenant: str, own: httpx2.Client) -> None:
    mine = make(own, content="mine")
    stranger = f"t-{uuid.uuid4().hex[:12]}"
    with connect(product, stranger, OWN) as theirs, connect(product, stranger, ["audit:all"]) as auditor:
        make(theirs, content="theirs")
        assert mine["auditId"] not in {e["auditId"] for e in listed(theirs)}
        assert listed(theirs, memoryNodeId=mine["memoryNodeId"]) == []
        check_error(theirs.get(f"{EVENTS}/{mine['auditId']}"), 404, "NOT_FOUND")
        check_error(theirs.get(f"{EVENTS}/{mine['auditId']}/proof"), 404, "NOT_FOUND")
        seen = auditor.get(EVENTS, params={"limit": 100}).json()["items"]
        assert {json.loads(e["entry"])["tenant"] for e in seen} >= {tenant, stranger}
        (found,) = listed(auditor, memoryNodeId=mine["memoryNodeId"])
        assert found["auditId"] == mine["auditId"]
        told = auditor.get(f"{EVENTS}/{mine['auditId']}")
        assert told.json()["payload"] == {"status": "withheld"}
        assert "content" not in told.text
        assert proof_of(auditor, mine["auditId"]).status_code == 200
        cursor = auditor.get(EVENTS, params={"limit": 1}).json()["nextCursor"]
        check_error(theirs.get(EVENTS, params={"cursor": cursor}), 400, "INVALID_CURSOR")


# --- Checkpoints, proofs, tiles


def test_a_write_is_proven_within_seconds(product: Product, own: httpx2.Client) -> None:
    made = make(own, content="proven")
    answer = proof_of(own, made["auditId"])
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "text/plain; charset=utf-8"
    proof = parse_proof(answer.content)
    assert verify_proof(proof, known(product)) is None
    assert proof.index == made["audit"]["seq"]
    assert proof.entry is not None
    assert leaf_hash(proof.entry) == made["audit"]["hash"]
    # A browser or proxy keeps neither.
    assert "no-cache" in answer.headers["cache-control"]


def test_the_checkpoint_names_no_tenant(product: Product, tenant: str, own: httpx2.Client) -> None:
    seq = make(own)["audit"]["seq"]
    found = checkpoint(own, seq)
    assert check_checkpoint(found, known(product)) is None
    assert re.fullmatch(rb"[!-~]+\n[0-9]+\n[A-Za-z0-9+/]{43}=\n\n\xe2\x80\x94 [!-~]+ [A-Za-z0-9+/=]+\n", found.note)
    assert tenant.encode() not in found.note


def test_checkpoints_are_consistent(own: httpx2.Client) -> None:
    before = checkpoint(own, make(own)["audit"]["seq"])
    for _ in range(3):
        seq = make(own)["audit"]["seq"]
    after = checkpoint(own, seq)
    told = own.get(CONSISTENCY, params={"from": before.size, "to": after.size}).json()
    assert (told["origin"], told["from"], told["to"]) == (before.origin, before.size, after.size)
    path = [base64.b64decode(value) for value in told["hashes"]]
    assert verify_consistency(before.size, after.size, path, before.root, after.root)
    assert parse_checkpoint(told["checkpoint"].encode()).root == after.root
    assert own.get(CONSISTENCY).json()["from"] == 0
    beyond = own.get(CONSISTENCY, params={"from": 1, "to": after.size + 10**6})
    check_error(beyond, 409, "NOT_YET_PUBLISHED")
    for params in ({"from": 2, "to": 1}, {"from": -1}, {"from": "x"}, {"to": 2**53}, {"size": 1}):
        check_error(own.get(CONSISTENCY, params=params), 422, "VALIDATION_ERROR")


def test_tiles_lead_to_the_checkpoint(http: httpx2.Client) -> None:
    made = make(http, content="in a tile")
    head = checkpoint(http, made["audit"]["seq"])

    def read(level: int, index: int, width: int) -> bytes:
        answer = http.get(TILE + tile_path(level, index, width))
        assert answer.status_code == 200, answer.text
        assert answer.headers["content-type"] == "application/octet-stream"
        assert len(answer.content) == 32 * width
        assert ("immutable" in answer.headers["cache-control"]) == (width == 256)
        return answer.content

    assert root_from_tiles(head.size, read) == head.root
    seq = made["audit"]["seq"]
    path = inclusion_proof(seq, head.size, read)
    assert verify_inclusion(bytes.fromhex(made["audit"]["hash"]), seq, head.size, path, head.root)
    index, place = divmod(seq, 256)
    width = min(256, head.size - 256 * index)
    entries = decode_bundle(http.get(TILE + tile_path("entries", index, width)).content)
    assert len(entries) == width
    assert parse_entry(entries[place]).seq == seq
    assert hashlib.sha256(b"\0" + entries[place]).hexdigest() == made["audit"]["hash"]


def test_entry_tiles_need_the_scope_for_everything(own: httpx2.Client) -> None:
    checkpoint(own, make(own)["audit"]["seq"])
    assert own.get(TILE + "tile/0/000.p/1").status_code == 200
    check_error(own.get(TILE + "tile/entries/000.p/1"), 403, "FORBIDDEN")


# --- What is wrong with a request


@pytest.mark.parametrize(
    ("path", "status", "code"),
    [
        (f"{EVENTS}/{NOWHERE}", 404, "NOT_FOUND"),
        (f"{EVENTS}/{NOWHERE}/proof", 404, "NOT_FOUND"),
        (f"{EVENTS}/17", 422, "VALIDATION_ERROR"),
        (f"{EVENTS}/17/proof", 422, "VALIDATION_ERROR"),
        (f"{EVENTS}?memoryNodeId=17", 422, "VALIDATION_ERROR"),
        (f"{EVENTS}?artifactId=x", 422, "VALIDATION_ERROR"),
        (f"{EVENTS}?since=yesterday", 422, "VALIDATION_ERROR"),
        (f"{EVENTS}?until=2026-13-01", 422, "VALIDATION_ERROR"),
        (f"{EVENTS}?limit=101", 422, "VALIDATION_ERROR"),
        (f"{EVENTS}?limit=0", 422, "VALIDATION_ERROR"),
        (f"{EVENTS}?kind=x", 422, "VALIDATION_ERROR"),
        (f"{EVENTS}?type=a&type=b", 422, "VALIDATION_ERROR"),
        (f"{EVENTS}?type=%00", 422, "VALIDATION_ERROR"),
        (f"{EVENTS}?cursor=x", 400, "INVALID_CURSOR"),
        (f"{EVENTS}?cursor=e30", 400, "INVALID_CURSOR"),
        (f"{CHECKPOINT}?x=1", 422, "VALIDATION_ERROR"),
        (f"{TILE}tile/0/999", 404, "NOT_FOUND"),
        (f"{TILE}tile/63/000", 404, "NOT_FOUND"),
        (f"{TILE}tile/entries/x999/999/999", 422, "VALIDATION_ERROR"),
        (f"{TILE}tile/entries/x999/x999/999", 404, "NOT_FOUND"),
        *(
            (f"{TILE}tile/{path}", 422, "VALIDATION_ERROR")
            for path in ("0/0", "0", "64/000", "00/000", "0/000.p/0", "0/000.p/257", "0/000.p/256", "0/x000/000",
                         "0/000/", "0//000", "-1/000", "entries/0", "0/..%2f000", "0/000%00", "1e1/000", "0/000.p/01")
        ),
        (f"{TILE}tile", 404, "NOT_FOUND"),
        (f"{EVENTS}/{NOWHERE}/seal", 404, "NOT_FOUND"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_reported(published: None, http: httpx2.Client, path: str, status: int, code: str) -> None:
    check_error(http.get(path), status, code)


@pytest.mark.parametrize(
    "path", [EVENTS, f"{EVENTS}/{NOWHERE}", f"{EVENTS}/{NOWHERE}/proof", CHECKPOINT, CONSISTENCY, f"{TILE}tile/0/000"]
)
def test_reading_the_log_needs_its_scope(product: Product, tenant: str, path: str) -> None:
    with connect(product, tenant, [s for s in SCOPES if not s.startswith("audit:")]) as outsider:
        check_error(outsider.get(path), 403, "FORBIDDEN")
        check_error(outsider.get(path, headers={"Authorization": ""}), 401, "UNAUTHENTICATED")
        answer = outsider.post(path, json={})
        check_error(answer, 405, "METHOD_NOT_ALLOWED")


def test_another_node_s_events_keep_their_filter(own: httpx2.Client) -> None:
    create(own)
    page = own.get(EVENTS, params={"limit": 1}).json()
    create(own)
    cursor = own.get(EVENTS, params={"limit": 1}).json()["nextCursor"]
    assert page["nextCursor"] is None
    check_error(own.get(EVENTS, params={"cursor": cursor, "type": "memory.node.created"}), 400, "INVALID_CURSOR")
