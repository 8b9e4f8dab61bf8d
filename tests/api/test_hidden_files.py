"""A file that flags hide is hidden under every name that its bytes are known by, and whatever a door shows of it."""

from __future__ import annotations

import datetime as dt
import hashlib
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from memory_layer.model import SCOPES
from tests.api.door import NO_PII, check_error, connect, create, create_indexed, eventually, search
from tests.support.product import Product, running_product

ARTIFACTS = "/v1/memory/artifacts"
NODES = "/v1/memory/nodes"
HIDDEN = "[redacted]"
NAME = "diagnosis of Zoe.txt"


@pytest.fixture
def everything(product: Product, tenant: str) -> Iterator[httpx2.Client]:
    with connect(product, tenant) as client:
        yield client


@pytest.fixture
def some(product: Product, tenant: str) -> Iterator[httpx2.Client]:
    """Who may do everything but read what is flagged."""
    with connect(product, tenant, NO_PII, "some") as client:
        yield client


def file_of(http: httpx2.Client, node: str | None, content: bytes, name: str = NAME) -> dict[str, Any]:
    where = {} if node is None else {"memoryNodeId": node}
    put = http.put(ARTIFACTS, params={"name": name} | where, content=content)
    assert put.status_code == 201, put.text
    return dict(put.json())


def registered(http: httpx2.Client, shown: dict[str, Any], **more: Any) -> dict[str, Any]:
    """The same object again, by what an artifact's metadata shows to everybody."""
    body = {name: shown[name] for name in ("url", "sha256", "sizeBytes")} | more
    answer = http.post(ARTIFACTS, json=body)
    assert answer.status_code == 201, answer.text
    return dict(answer.json())


def hidden_from(http: httpx2.Client, artifact: str) -> None:
    """No byte of it, whole, in part or by a link; no name, no metadata."""
    path = f"{ARTIFACTS}/{artifact}"
    for how in ({}, {"Range": "bytes=0-0"}):
        check_error(http.get(f"{path}/content", headers=how), 403, "FORBIDDEN")
    check_error(http.get(f"{path}/content", params={"link": True}), 403, "FORBIDDEN")
    assert http.head(f"{path}/content").status_code == 403
    shown = http.get(path)
    assert (shown.json()["name"], shown.json()["metadata"]) == (HIDDEN, HIDDEN)


def secret() -> bytes:
    return f"she has {uuid.uuid4()}".encode()


@pytest.fixture
def node(everything: httpx2.Client) -> str:
    return create(everything, content="x", piiFlags={"containsPii": True})


def test_registering_the_hidden_object_again_shows_nothing(
    everything: httpx2.Client, some: httpx2.Client, node: str
) -> None:
    original = file_of(everything, node, secret())
    shown = some.get(f"{ARTIFACTS}/{original['artifactId']}").json()
    unlinked = registered(some, shown)
    hidden_from(some, unlinked["artifactId"])
    open_node = create(some, content="open")
    attached = registered(some, shown, node=open_node, name="mine", metadata={"k": "v"})
    hidden_from(some, attached["artifactId"])
    (listed,) = some.get(f"{NODES}/{open_node}").json()["artifacts"]
    assert (listed["name"], listed["metadata"]) == (HIDDEN, HIDDEN)
    with_node = some.post(
        NODES,
        json={
            "owner": "ann",
            "artifacts": [{"artifactUrl": shown["url"], "sha256": shown["sha256"], "sizeBytes": shown["sizeBytes"]}],
        },
    )
    assert with_node.status_code == 201, with_node.text
    hidden_from(some, with_node.json()["artifacts"][0]["artifactId"])
    # Who may read what is flagged reads the copies, too.
    assert everything.get(f"{ARTIFACTS}/{unlinked['artifactId']}/content").status_code == 200


def test_uploading_the_bytes_again_hides_the_copy(everything: httpx2.Client, some: httpx2.Client, node: str) -> None:
    content = secret()
    file_of(everything, node, content)
    copy = file_of(some, None, content, "copy")
    assert copy["name"] == HIDDEN
    hidden_from(some, copy["artifactId"])


@pytest.mark.parametrize("first", ["the copy", "the original"])
def test_flags_that_come_later_reach_the_copies(everything: httpx2.Client, some: httpx2.Client, first: str) -> None:
    content, later = secret(), create(everything, content="x")
    if first == "the copy":
        copy = file_of(everything, None, content)["artifactId"]
        file_of(everything, later, content)
    else:
        file_of(everything, later, content)
        copy = file_of(everything, None, content)["artifactId"]
    assert some.get(f"{ARTIFACTS}/{copy}/content").content == content
    flags = {"containsPii": True, "paths": ["content", "metadata"]}
    assert everything.patch(f"{NODES}/{later}", json={"piiFlags": flags}).status_code == 200
    hidden_from(some, copy)
    lifted = everything.patch(f"{NODES}/{later}", json={"piiFlags": {"containsPii": False}})
    assert lifted.status_code == 200
    assert some.get(f"{ARTIFACTS}/{copy}/content").content == content


def test_a_deleted_node_still_hides(everything: httpx2.Client, some: httpx2.Client, node: str) -> None:
    content = secret()
    original, copy = file_of(everything, node, content), file_of(everything, None, content)
    assert some.delete(f"{NODES}/{node}").status_code == 204
    check_error(some.get(f"{ARTIFACTS}/{original['artifactId']}"), 404, "NOT_FOUND")  # it ended with its node
    hidden_from(some, copy["artifactId"])


@pytest.mark.slow
def test_a_node_that_is_gone_from_the_table_still_hides(data_folder: Path) -> None:
    # A product of its own: afterwards its log no longer fits its tables.
    with (
        running_product(data=data_folder) as product,
        connect(product, "t") as everything,
        connect(product, "t", NO_PII, "some") as some,
    ):
        node, content = create(everything, content="x", piiFlags={"containsPii": True}), secret()
        original, copy = file_of(everything, node, content), file_of(everything, None, content)
        assert everything.delete(f"{NODES}/{node}").status_code == 204
        left = "SELECT count(*) FROM memory_vectors WHERE memory_node_id = %s AND status <> 'deleted'"
        link = "SELECT memory_node_id FROM artifacts WHERE id = %s"
        with product.owner() as owner:
            eventually(lambda: owner.execute(left, [node]).fetchone(), lambda row: row == (0,))
            owner.execute("DELETE FROM memory_nodes WHERE id = %s", [node])
            assert owner.execute(link, [original["artifactId"]]).fetchone() == (None,)
        # No entry purged it: what was detached from it behind the log's back is served to nobody, and its copy to none of these.
        check_error(some.get(f"{ARTIFACTS}/{original['artifactId']}"), 409, "TAMPERED")
        check_error(some.get(f"{ARTIFACTS}/{original['artifactId']}/content"), 409, "TAMPERED")
        hidden_from(some, copy["artifactId"])


def test_another_version_of_the_object_is_hidden_with_it(
    product: Product, tenant: str, everything: httpx2.Client, some: httpx2.Client, node: str
) -> None:
    path = product.data / "objects" / tenant / "scan.bin"
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    path.write_bytes(one := secret())
    facts = {
        "url": f"object://local/{tenant}/scan.bin",
        "sha256": hashlib.sha256(one).hexdigest(),
        "sizeBytes": len(one),
    }
    registered(everything, facts, node=node)
    path.write_bytes(two := secret() + b"!")
    facts |= {"sha256": hashlib.sha256(two).hexdigest(), "sizeBytes": len(two)}
    hidden_from(some, registered(everything, facts)["artifactId"])


def test_metadata_of_a_file_is_redacted_as_its_nodes(everything: httpx2.Client, some: httpx2.Client) -> None:
    flags = {"containsPii": True, "paths": ["metadata.patient.name", "metadata.mail"]}
    part = create(everything, content="x", metadata={"mail": "z@example.org"}, piiFlags=flags)
    content = secret()
    shown = file_of(everything, None, content, "open.txt")
    metadata = {"patient": [{"name": "Zoe", "ward": 4}], "mail": "z@example.org", "kind": "scan"}
    copy = registered(everything, shown, node=part, name="scan.txt", metadata=metadata)
    expected = {"patient": [{"name": HIDDEN, "ward": 4}], "mail": HIDDEN, "kind": "scan"}
    got = some.get(f"{ARTIFACTS}/{copy['artifactId']}").json()
    assert (got["name"], got["metadata"]) == ("scan.txt", expected)
    (listed,) = some.get(f"{NODES}/{part}").json()["artifacts"]
    assert listed == got
    (page,) = [n for n in some.get(NODES).json()["items"] if n["memoryNodeId"] == part]
    assert page["artifacts"] == [got]
    # The paths do not name the content, so the bytes stay readable.
    assert some.get(f"{ARTIFACTS}/{copy['artifactId']}/content").content == content
    assert everything.get(f"{ARTIFACTS}/{copy['artifactId']}").json()["metadata"] == metadata


def test_no_answer_of_a_write_shows_the_hidden_name(
    product: Product, tenant: str, everything: httpx2.Client, some: httpx2.Client, node: str
) -> None:
    original = file_of(everything, node, secret())
    until = (dt.datetime.now(dt.UTC) + dt.timedelta(days=2)).isoformat().replace("+00:00", "Z")
    path = f"{ARTIFACTS}/{original['artifactId']}/retention"
    key = {"Idempotency-Key": uuid.uuid4().hex}
    for replayed in (None, "true"):
        answer = some.post(path, json={"retainUntil": until}, headers=key)
        assert answer.status_code == 200, answer.text
        assert answer.headers.get("idempotency-replayed") == replayed
        assert (answer.json()["name"], answer.json()["metadata"]) == (HIDDEN, HIDDEN)
        assert "Zoe" not in answer.text
    # A service that could read flagged things once, and repeats its request with a token that cannot.
    content, key = secret(), {"Idempotency-Key": uuid.uuid4().hex}
    with connect(product, tenant, SCOPES, "two") as then, connect(product, tenant, NO_PII, "two") as now:
        first = then.put(ARTIFACTS, params={"memoryNodeId": node, "name": NAME}, content=content, headers=key)
        again = now.put(ARTIFACTS, params={"memoryNodeId": node, "name": NAME}, content=content, headers=key)
    assert first.json()["name"] == NAME
    assert again.headers["idempotency-replayed"] == "true"
    assert again.json()["name"] == HIDDEN


def test_payloads_of_copies_are_redacted(everything: httpx2.Client, some: httpx2.Client, node: str) -> None:
    content = secret()
    copy = file_of(everything, None, content)
    events = {"artifactId": copy["artifactId"]}
    (item,) = some.get("/v1/audit/events", params=events).json()["items"]
    assert some.get(f"/v1/audit/events/{item['auditId']}").json()["payload"]["status"] == "shown"
    file_of(everything, node, content)
    payload = some.get(f"/v1/audit/events/{item['auditId']}").json()["payload"]
    assert payload["status"] == "redacted"
    assert payload["value"]["name"] == HIDDEN
    assert everything.get(f"/v1/audit/events/{item['auditId']}").json()["payload"]["status"] == "shown"


def test_bytes_that_nobody_flagged_stay_open(everything: httpx2.Client, some: httpx2.Client, node: str) -> None:
    file_of(everything, node, secret())
    content, open_node = secret(), create_indexed(some, content="aardwolf " + uuid.uuid4().hex)
    mine = file_of(some, open_node, content, "mine.txt")
    assert mine["name"] == "mine.txt"
    assert some.get(f"{ARTIFACTS}/{mine['artifactId']}/content").content == content
    hits = search(some, query="aardwolf", mode="keyword")["results"]
    assert [hit["artifactIds"] for hit in hits] == [[mine["artifactId"]]]
