"""`memoryctl tamper`: rows that were changed behind the product's back, found, compared, put back and accepted."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from typing import Any

import httpx2
import psycopg
import pytest
from psycopg import sql

from tests.api.door import check_error, connect, create, create_indexed, embedding, eventually, found_ids, search
from tests.api.test_tampered import ALONG, ARTIFACT_CHANGES, ARTIFACTS, CHANGES, NODES
from tests.support.product import Product, running_product


@pytest.fixture(scope="module")
def product() -> Iterator[Product]:
    with running_product() as running:
        yield running


@pytest.fixture
def http(product: Product, tenant: str) -> Iterator[httpx2.Client]:
    with connect(product, tenant) as client:
        yield client


@pytest.fixture
def app(product: Product) -> Iterator[psycopg.Connection[Any]]:
    """The runtime role, as whoever has got hold of the service's password connects."""
    with psycopg.connect(product.database, autocommit=True) as connection:
        connection.execute("SELECT set_config('memory.all_tenants', 'on', false)")
        yield connection


def ctl(product: Product, *words: str, code: int = 0) -> Any:
    done = product.ctl("tamper", *words, "--data", str(product.data), "--json")
    assert done.returncode == code, (done.stdout, done.stderr)
    return json.loads(done.stdout) if done.stdout else done.stderr


def resolve(product: Product, verb: str, row: str, *words: str, code: int = 0) -> Any:
    return ctl(product, verb, row, "--reason", "case 7", "--yes", *words, code=code)


def named(product: Product, row: str) -> list[str]:
    """The codes of the findings of `audit verify` that name this row."""
    done = product.ctl("audit", "verify", "--data", str(product.data), "--json")
    verdict = json.loads(done.stdout)
    return [f["code"] for f in verdict["findings"] if row in f["expected"] + f["found"]]


def edit(app: psycopg.Connection[Any], node: str, column: str) -> None:
    text = sql.SQL("UPDATE memory_nodes SET {} = {}{} WHERE id = %s").format(
        sql.Identifier(column), sql.SQL(CHANGES[column]), sql.SQL(ALONG.get(column, ""))
    )
    assert app.execute(text, [node]).rowcount == 1


def delete_row(app: psycopg.Connection[Any], node: str) -> None:
    """Take a node's row out as nobody may. In one transaction: between two, the worker may give its vectors back their state."""
    with app.transaction():
        app.execute("UPDATE memory_vectors SET status = 'deleted' WHERE memory_node_id = %s", [node])
        assert app.execute("DELETE FROM memory_nodes WHERE id = %s", [node]).rowcount == 1


def test_every_edited_column_is_shown_and_restored(
    http: httpx2.Client, app: psycopg.Connection[Any], product: Product
) -> None:
    body = {"content": "the zebra crosses", "metadata": {"k": 1}, "ttlSeconds": 7201, "embeddingId": "e"}
    node = create_indexed(http, **body)
    before = http.get(f"{NODES}/{node}").json()
    for column in CHANGES:
        edit(app, node, column)
    check_error(http.get(f"{NODES}/{node}"), 409, "TAMPERED")
    assert [row["id"] for row in ctl(product, "list", code=1)["rows"]] == [node]
    shown = ctl(product, "show", node, code=1)["compared"]
    assert {"owner", "content", "metadata", "legalHold", "createdAt", "deletedAt", "version"} <= set(shown["differs"])
    assert (shown["log"]["content"], shown["row"]["content"]) == ("the zebra crosses", "the zebra never was")
    assert shown["lastEntry"]["version"] == before["version"]
    report = resolve(product, "restore", node)
    assert report["facts"]["event"] == "memory.node.updated"
    after = http.get(f"{NODES}/{node}").json()
    volatile = {"version", "updatedAt", "vector", "audit"}
    assert {k: v for k, v in after.items() if k not in volatile} == {
        k: v for k, v in before.items() if k not in volatile
    }
    assert after["version"] == before["version"] + 1
    assert named(product, node) == []
    eventually(lambda: found_ids(http, query="zebra crosses", mode="semantic"), lambda ids: ids == [node])
    assert found_ids(http, query="zebra", mode="keyword") == [node]
    assert found_ids(http, query="never", mode="keyword") == []
    assert http.patch(f"{NODES}/{node}", json={"content": "new"}).status_code == 200
    resolve(product, "restore", node, code=1)
    resolve(product, "accept", node, code=1)
    assert http.delete(f"{NODES}/{node}").status_code == 204


@pytest.mark.parametrize("column", CHANGES)
def test_an_edited_node_can_be_accepted(
    http: httpx2.Client, app: psycopg.Connection[Any], product: Product, column: str
) -> None:
    node = create_indexed(http, content="the zebra crosses", metadata={"k": 1})
    edit(app, node, column)
    report = resolve(product, "accept", node)
    assert (report["verdict"], report["facts"]["event"]) == ("ok", "memory.node.updated")
    assert named(product, node) == []
    gone = column in ("deleted_at", "expires_at")
    assert http.get(f"{NODES}/{node}").status_code == (404 if gone else 200)
    with product.owner() as owner:
        payloads = owner.execute(
            "SELECT convert_from(p.payload, 'UTF8') FROM audit_events e JOIN audit_payloads p USING (log, seq)"
            " WHERE e.memory_node_id = %s ORDER BY seq DESC LIMIT 2", [node]).fetchall()  # fmt: skip
    reasons = [json.loads(payload).get("reason") for (payload,) in payloads]
    # A node whose time is accepted as over may have been swept by now.
    assert reasons[0] == "case 7" or (column == "expires_at" and reasons == ["expired", "case 7"])
    if not gone:
        held = column.startswith("legal_hold")
        assert http.patch(f"{NODES}/{node}", json={"metadata": {"x": 1}}).status_code == (409 if held else 200)
    assert named(product, node) == []


def test_a_row_that_is_gone_is_made_again_and_its_files_follow(
    http: httpx2.Client, app: psycopg.Connection[Any], product: Product
) -> None:
    node = create_indexed(http, content="the okapi", embeddingId="x")
    assert http.patch(f"{NODES}/{node}", json={"metadata": {"k": 2}}).status_code == 200
    file = http.put(ARTIFACTS, params={"memoryNodeId": node, "name": "a.txt"}, content=b"okapi").json()["artifactId"]
    delete_row(app, node)
    assert {row["id"] for row in ctl(product, "list", code=1)["rows"]} == {node}
    shown = ctl(product, "show", node, code=1)["compared"]
    assert (shown["row"], shown["log"]["metadata"]) == (None, {"k": 2})
    resolve(product, "restore", node)
    assert {row["id"] for row in ctl(product, "list", code=1)["rows"]} == {file}
    check_error(http.get(f"{ARTIFACTS}/{file}"), 409, "TAMPERED")
    resolve(product, "restore", file)
    assert http.get(f"{ARTIFACTS}/{file}").json()["memoryNodeId"] == node
    assert http.get(f"{NODES}/{node}").json()["metadata"] == {"k": 2}
    eventually(lambda: found_ids(http, query="the okapi", mode="semantic"), lambda ids: ids == [node])
    assert ctl(product, "list")["rows"] == []
    assert (named(product, node), named(product, file)) == ([], [])


def test_a_row_that_is_gone_can_be_accepted_as_gone(
    http: httpx2.Client, app: psycopg.Connection[Any], product: Product
) -> None:
    node = create(http)
    delete_row(app, node)
    resolve(product, "accept", node)
    check_error(http.get(f"{NODES}/{node}"), 404, "NOT_FOUND")
    assert named(product, node) == []
    app.execute("INSERT INTO memory_nodes (tenant, id, owner, namespace, created_at, updated_at)"
                " VALUES (%s, %s, 'eve', 'n', now(), now())", [http_tenant(app, node), node])  # fmt: skip
    assert "final" in resolve(product, "accept", node, code=4)
    resolve(product, "restore", node)
    check_error(http.get(f"{NODES}/{node}"), 404, "NOT_FOUND")
    assert named(product, node) == []


def http_tenant(app: psycopg.Connection[Any], node: str) -> str:
    (row,) = app.execute("SELECT DISTINCT tenant FROM audit_events WHERE memory_node_id = %s", [node]).fetchall()
    return str(row[0])


@pytest.mark.parametrize("verb", ["restore", "accept"])
def test_a_row_without_an_entry(
    http: httpx2.Client, app: psycopg.Connection[Any], product: Product, tenant: str, verb: str
) -> None:
    create(http)  # so that the tenant is known
    node = str(uuid.uuid4())
    app.execute(
        "INSERT INTO memory_nodes (tenant, id, owner, namespace, content, legal_hold, created_at, updated_at)"
        " VALUES (%s, %s, 'eve', 'kernel-memory', 'smuggled in', true, now() - interval '1 day', now())", [tenant, node])  # fmt: skip
    assert ctl(product, "show", node, code=1)["compared"]["log"] is None
    report = resolve(product, verb, node)
    assert named(product, node) == []
    if verb == "restore":
        assert report["facts"]["event"] == "memory.node.purged"
        check_error(http.get(f"{NODES}/{node}"), 404, "NOT_FOUND")
    else:
        assert report["facts"]["event"] == "memory.node.created"
        assert http.get(f"{NODES}/{node}").json()["content"] == "smuggled in"
        eventually(lambda: found_ids(http, query="smuggled", mode="keyword"), lambda ids: ids == [node])
        assert http.patch(f"{NODES}/{node}", json={"metadata": {"x": 1}}).status_code in (200, 409)


def test_a_hold_is_lifted_by_no_acceptance(http: httpx2.Client, app: psycopg.Connection[Any], product: Product) -> None:
    node = create(http, content="held")
    assert http.post(f"{NODES}/{node}/legal-hold", json={"legalHold": True, "reason": "case 7"}).status_code == 204
    app.execute("UPDATE memory_nodes SET legal_hold = false, legal_hold_reason = NULL WHERE id = %s", [node])
    assert "hold" in resolve(product, "accept", node, code=4)
    delete_row(app, node)
    resolve(product, "accept", node, code=4)
    resolve(product, "restore", node)
    check_error(http.delete(f"{NODES}/{node}"), 409, "LEGAL_HOLD")
    assert named(product, node) == []


def test_a_given_vector_is_kept_while_it_is_there_and_named_when_it_is_lost(
    http: httpx2.Client, app: psycopg.Connection[Any], product: Product
) -> None:
    node = create_indexed(http, content="mine", namespace="own", embedding=embedding(1.0, 0.0))
    edit(app, node, "owner")
    assert resolve(product, "restore", node)["facts"]["lost"] == []
    app.execute(
        """UPDATE memory_vectors SET vector_data = '{"encoding": "f32le", "data": "AAAAAAAAgD8="}' WHERE memory_node_id = %s""",
        [node])  # fmt: skip
    assert ctl(product, "show", node, code=1)["compared"]["differs"] == ["vector"]
    report = resolve(product, "restore", node, code=0)
    assert report["facts"]["lost"] == ["vector"]
    assert named(product, node) == []
    assert http.get(f"{NODES}/{node}").status_code == 200


def test_every_edited_column_of_an_artifact(
    http: httpx2.Client, app: psycopg.Connection[Any], product: Product
) -> None:
    node = create(http, content="with a file")
    file = http.put(ARTIFACTS, params={"memoryNodeId": node, "name": "a.txt"}, content=b"all").json()
    id_ = file["artifactId"]
    assert resolve(product, "restore", id_, code=1)
    for column, value in ARTIFACT_CHANGES.items():
        app.execute(
            sql.SQL("UPDATE artifacts SET {} = {} WHERE id = %s").format(sql.Identifier(column), sql.SQL(value)), [id_]
        )
    resolve(product, "restore", id_)
    assert named(product, id_) == []
    got = http.get(f"{ARTIFACTS}/{id_}").json()
    assert {k: v for k, v in got.items() if k != "verifiedAt"} == {
        k: v for k, v in file.items() if k in got and k != "verifiedAt"
    }
    assert http.get(f"{ARTIFACTS}/{id_}/content").content == b"all"
    for column in ("name", "metadata", "fault", "memory_node_id", "retain_until", "legal_hold", "created_at"):
        value = ARTIFACT_CHANGES[column]
        app.execute(
            sql.SQL("UPDATE artifacts SET {} = {} WHERE id = %s").format(sql.Identifier(column), sql.SQL(value)), [id_]
        )
        check_error(http.get(f"{ARTIFACTS}/{id_}"), 409, "TAMPERED")
        resolve(product, "accept", id_)
        assert named(product, id_) == [], column
        assert http.get(f"{ARTIFACTS}/{id_}").status_code == 200, (product.data.parent / "data.out").read_text()[-3000:]
    # A file that is gone, accepted as gone, and planted again.
    with product.owner() as owner:
        owner.execute("UPDATE artifacts SET retain_until = NULL WHERE id = %s", [id_])
    assert "kept until" in resolve(product, "accept", id_, code=4)
    resolve(product, "restore", id_)


def test_what_an_operator_sees_is_redacted_and_cannot_steer_a_terminal(
    http: httpx2.Client, app: psycopg.Connection[Any], product: Product
) -> None:
    node = create(http, content="secret", metadata={"ssn": "078-05-1120", "k": 1},
                  piiFlags={"containsPii": True, "paths": ["content", "metadata.ssn"]})  # fmt: skip
    app.execute("UPDATE memory_nodes SET pii_flags = '{}', owner = E'eve\\x1b]0;owned\\x07' WHERE id = %s", [node])
    shown = product.ctl("tamper", "show", node, "--data", str(product.data))
    assert shown.returncode == 1
    assert "secret" not in shown.stdout
    assert "078-05-1120" not in shown.stdout
    assert "\x1b" not in shown.stdout
    assert "\x07" not in shown.stdout
    both = ctl(product, "show", node, "--show-pii", code=1)
    assert both["compared"]["row"]["metadata"]["ssn"] == "078-05-1120"
    with product.owner() as owner:
        reports = owner.execute("SELECT report::text FROM ops_runs WHERE verb = 'tamper-show'").fetchall()
    assert "078-05-1120" not in str(reports)


def test_a_payload_that_is_gone_is_named(http: httpx2.Client, app: psycopg.Connection[Any], product: Product) -> None:
    node = create(http, content="was")
    assert http.patch(f"{NODES}/{node}", json={"metadata": {"k": 1}}).status_code == 200
    with product.owner() as owner:
        (seq,) = owner.execute("SELECT min(seq) FROM audit_events WHERE memory_node_id = %s", [node]).fetchone()
        owner.execute("DELETE FROM audit_payloads WHERE seq = %s", [seq])
    edit(app, node, "owner")
    error = resolve(product, "restore", node, code=1)
    assert f"entry {seq} is not there" in error
    # Whether it is held is said by that payload alone, so that an acceptance might lift a hold.
    assert "may be under legal hold" in resolve(product, "accept", node, code=4)


def test_it_works_during_a_freeze_and_is_recorded(
    http: httpx2.Client, app: psycopg.Connection[Any], product: Product
) -> None:
    node = create(http, content="still")
    edit(app, node, "content")
    assert product.ctl("freeze", "on", "--reason", "r", "--data", str(product.data)).returncode == 0
    try:
        report = resolve(product, "restore", node)
    finally:
        assert product.ctl("freeze", "off", "--data", str(product.data)).returncode == 0
    with product.owner() as owner:
        types = owner.execute("SELECT event_type FROM audit_events ORDER BY seq DESC LIMIT 20").fetchall()
    assert ("ops.tamper-restore.succeeded",) in types
    assert report["facts"]["seq"]
    assert search(http, query="still", mode="keyword")["dropped"] == {}
