"""Rows that somebody changed behind the product's back: nothing of them is served, and nothing is written upon them."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from typing import Any

import httpx2
import psycopg
import pytest
from psycopg import sql

from tests.api.door import check_error, create, create_indexed, found_ids, listed_ids, search
from tests.support.product import Product, running_product

NODES = "/v1/memory/nodes"
ARTIFACTS = "/v1/memory/artifacts"
# (column, what the runtime role makes of it)
CHANGES = {
    "owner": "'eve'",
    "namespace": "'elsewhere'",
    "embedding_id": "'taken over'",
    "content": "'the zebra never was'",
    "metadata": """'{"forged": true}'""",
    "pii_flags": """'{"containsPii": false}'""",
    "subjects": "'{nobody}'",
    "legal_hold": "true",
    "legal_hold_reason": "'no reason'",
    "ttl_seconds": "7200",
    "expires_at": "now() - interval '1 day'",
    "occurred_at": "now()",
    "derived_from": "'{01a226ab-d1e6-767d-9586-2bd5c86b51e0}'",
    "language": "'tlh'",
    "thread": "'another'",
    "position": "7",
    "version": "version + 1",
    "created_at": "created_at - interval '1 day'",
    "updated_at": "updated_at + interval '1 s'",
    "deleted_at": "now()",
}
# What a CHECK of the table wants along.
ALONG = {
    "ttl_seconds": ", expires_at = now() + interval '2 hours'",
    "expires_at": ", ttl_seconds = 3600",
    "legal_hold_reason": ", legal_hold = true",
    "position": ", thread = 'another'",
}
HIDES = {"deleted_at", "expires_at"}  # and so it is in no list: that is for `audit verify`, or a look at its id


@pytest.fixture(scope="module")
def product() -> Iterator[Product]:
    """One of its own: what is tampered with here is for no other test to verify."""
    with running_product() as running:
        yield running


@pytest.fixture
def app(product: Product, tenant: str) -> Any:
    """The runtime role, as whoever has got hold of the service's password connects."""
    with psycopg.connect(product.database, autocommit=True) as connection:
        connection.execute("SELECT set_config('memory.all_tenants', 'on', false)")
        yield connection


def tamper(app: psycopg.Connection[Any], node: str, column: str) -> None:
    text = sql.SQL("UPDATE memory_nodes SET {} = {}{} WHERE id = %s").format(
        sql.Identifier(column), sql.SQL(CHANGES[column]), sql.SQL(ALONG.get(column, ""))
    )
    assert app.execute(text, [node]).rowcount == 1


def test_every_column_of_a_node_is_tried(app: psycopg.Connection[Any]) -> None:
    columns = {name for (name,) in app.execute(
        "SELECT attname FROM pg_attribute WHERE attrelid = 'memory_nodes'::regclass AND attnum > 0 AND NOT attisdropped")}  # fmt: skip
    assert columns == {*CHANGES, "tenant", "id"}


@pytest.mark.parametrize("column", CHANGES)
def test_a_node_that_was_edited_is_neither_served_nor_written(
    http: httpx2.Client, app: psycopg.Connection[Any], column: str
) -> None:
    node = create_indexed(http, content="the zebra crosses", metadata={"k": 1})
    good = create_indexed(http, content="another zebra crosses")
    tamper(app, node, column)
    error = check_error(http.get(f"{NODES}/{node}"), 409, "TAMPERED")
    assert node in error["message"]
    assert "zebra" not in error["message"]
    check_error(http.get(f"{NODES}/{node}/history"), 409, "TAMPERED")
    assert listed_ids(http) == [good]
    listed = http.get(NODES).json()
    assert listed["dropped"] == ({} if column in HIDES else {"tampered": 1})
    for mode in ("semantic", "keyword", "hybrid"):
        answer = search(http, query="the zebra crosses", mode=mode)
        assert [hit["memoryNodeId"] for hit in answer["results"]] == [good], mode
        assert answer["dropped"].get("tampered") == 1, (mode, answer)
    for refused in (
        http.patch(f"{NODES}/{node}", json={"content": "new"}),
        http.patch(f"{NODES}/{node}", json={"metadata": {"x": 1}}),
        http.post(f"{NODES}/{node}/legal-hold", json={"legalHold": True, "reason": "case"}),
        http.delete(f"{NODES}/{node}"),
        http.put(ARTIFACTS, params={"memoryNodeId": node}, content=b"x"),
    ):
        check_error(refused, 409, "TAMPERED")
    types = app.execute(
        "SELECT event_type, position('denied' in convert_from(entry, 'UTF8')) > 0 FROM audit_events WHERE memory_node_id = %s"
        " ORDER BY seq OFFSET 1", [node]
    ).fetchall()  # fmt: skip
    assert types == [("ops.tampered-write.failed", True)] * 4


def test_a_row_that_is_gone_is_not_simply_unknown(http: httpx2.Client, app: psycopg.Connection[Any]) -> None:
    node = create_indexed(http, content="the zebra is gone")
    app.execute("DELETE FROM memory_vectors WHERE memory_node_id = %s", [node])
    app.execute("DELETE FROM memory_nodes WHERE id = %s", [node])
    check_error(http.get(f"{NODES}/{node}"), 409, "TAMPERED")
    check_error(http.get(f"{NODES}/{node}/history"), 409, "TAMPERED")
    check_error(http.delete(f"{NODES}/{node}"), 409, "TAMPERED")
    answer = search(http, query="the zebra is gone", mode="semantic")
    assert (answer["results"], answer["dropped"]) == ([], {"tampered": 1})
    check_error(http.get(f"{NODES}/{uuid.uuid4()}"), 404, "NOT_FOUND")


def test_a_row_without_an_entry_is_not_believed(http: httpx2.Client, app: psycopg.Connection[Any], tenant: str) -> None:
    node = uuid.uuid4()
    app.execute(
        "INSERT INTO memory_nodes (tenant, id, owner, namespace, content, created_at, updated_at)"
        " VALUES (%s, %s, 'eve', 'kernel-memory', 'smuggled in', now(), now())", [tenant, node]
    )  # fmt: skip
    check_error(http.get(f"{NODES}/{node}"), 409, "TAMPERED")
    assert listed_ids(http) == []
    check_error(http.patch(f"{NODES}/{node}", json={"content": "mine"}), 409, "TAMPERED")


def test_an_older_state_put_back_is_not_believed(http: httpx2.Client, app: psycopg.Connection[Any]) -> None:
    node = create(http, content="first")
    columns = "content, version, updated_at"
    (old,) = app.execute(f"SELECT {columns} FROM memory_nodes WHERE id = %s", [node]).fetchall()
    assert http.patch(f"{NODES}/{node}", json={"content": "second"}).status_code == 200
    app.execute(f"UPDATE memory_nodes SET ({columns}) = (%s, %s, %s) WHERE id = %s", [*old, node])
    check_error(http.get(f"{NODES}/{node}"), 409, "TAMPERED")


def test_a_deleted_node_that_is_brought_back_is_not_believed(http: httpx2.Client, app: psycopg.Connection[Any]) -> None:
    node = create_indexed(http, content="the zebra was deleted")
    assert http.delete(f"{NODES}/{node}").status_code == 204
    check_error(http.get(f"{NODES}/{node}"), 404, "NOT_FOUND")
    app.execute("UPDATE memory_nodes SET deleted_at = NULL WHERE id = %s", [node])
    check_error(http.get(f"{NODES}/{node}"), 409, "TAMPERED")
    assert listed_ids(http) == []


def test_an_entry_that_nobody_sealed_proves_nothing(http: httpx2.Client, app: psycopg.Connection[Any]) -> None:
    """A forged entry with its own salt makes the edited row consistent, but no seal covers it."""
    node = create(http, content="true")
    app.execute("UPDATE memory_nodes SET content = 'false' WHERE id = %s", [node])
    with pytest.raises(psycopg.Error), app.transaction():
        app.execute("UPDATE audit_events SET event_type = 'memory.node.purged' WHERE memory_node_id = %s", [node])
    check_error(http.get(f"{NODES}/{node}"), 409, "TAMPERED")


ARTIFACT_CHANGES = {
    "memory_node_id": "NULL",
    "name": "'invoice.pdf'",
    "url": "url || 'x'",
    "object_key": "object_key || 'x'",
    "version_id": "'7'",
    "sha256": "repeat('0', 64)",
    "size_bytes": "size_bytes + 1",
    "content_type": "'text/html'",
    "manifest_signature_id": "'forged'",
    "created_by": "gen_random_uuid()",
    "metadata": """'{"forged": 1}'""",
    "legal_hold": "NOT legal_hold",
    "retain_until": "now() + interval '1 year'",
    "created_at": "created_at - interval '1 day'",
    "fault": "'corrupt'",
}
# Not in an answer, or no more than a note of when and how the worker looked: docs/audit-format.md, "Rows".
NOTES = {"tenant", "id", "hold_due", "verified_at", "storage_class"}


@pytest.mark.parametrize("column", ARTIFACT_CHANGES)
def test_an_artifact_that_was_edited_is_not_served(
    http: httpx2.Client, app: psycopg.Connection[Any], column: str
) -> None:
    node = create(http, content="with a file")
    stored = http.put(ARTIFACTS, params={"memoryNodeId": node, "name": "a.txt"}, content=column.encode()).json()
    artifact = stored["artifactId"]
    change = sql.SQL("UPDATE artifacts SET {} = {} WHERE id = %s")
    app.execute(change.format(sql.Identifier(column), sql.SQL(ARTIFACT_CHANGES[column])), [artifact])
    for path in ("", "/content"):
        check_error(http.get(f"{ARTIFACTS}/{artifact}{path}"), 409, "TAMPERED")
    shown = http.get(f"{NODES}/{node}").json()
    assert shown["artifacts"] == []
    assert shown["dropped"] == ({} if column == "memory_node_id" else {"tampered": 1})
    columns = {name for (name,) in app.execute(
        "SELECT attname FROM pg_attribute WHERE attrelid = 'artifacts'::regclass AND attnum > 0 AND NOT attisdropped")}  # fmt: skip
    assert columns == {*ARTIFACT_CHANGES, *NOTES}


def test_a_file_whose_flag_was_lifted_by_hand_stays_hidden(
    http: httpx2.Client, app: psycopg.Connection[Any], product: Product, tenant: str
) -> None:
    node = create(http, content="secret", piiFlags={"containsPii": True})
    file = http.put(ARTIFACTS, params={"memoryNodeId": node}, content=b"passport").json()["artifactId"]
    app.execute("UPDATE memory_nodes SET pii_flags = '{}' WHERE id = %s", [node])
    token = product.issue("reader", tenant, ["memory:read"])
    bare = {"Authorization": f"Bearer {token}"}
    check_error(http.get(f"{ARTIFACTS}/{file}/content", headers=bare), 409, "TAMPERED")
    assert found_ids(http, query="secret", mode="keyword") == []


def test_a_long_text_is_held_against_its_hash_whichever_way_it_was_read_first(
    http: httpx2.Client, app: psycopg.Connection[Any]
) -> None:
    text = " ".join(f"zebra{n}" for n in range(20_000))
    node = create_indexed(http, content=text)
    for _ in range(2):
        assert search(http, query="zebra7", mode="keyword")["results"][0]["content"] == text
        assert http.get(f"{NODES}/{node}").json()["content"] == text
    app.execute("UPDATE memory_nodes SET content = content || ' zebra' WHERE id = %s", [node])
    assert search(http, query="zebra7", mode="keyword")["dropped"] == {"tampered": 1}
    check_error(http.get(f"{NODES}/{node}"), 409, "TAMPERED")


def test_what_was_read_a_moment_ago_is_looked_at_again_when_it_changes(
    http: httpx2.Client, app: psycopg.Connection[Any]
) -> None:
    node = create_indexed(http, content="the zebra crosses")
    for _ in range(30):  # until the server takes it that most rows were found right lately
        assert found_ids(http, query="the zebra crosses", mode="semantic") == [node]
    assert http.patch(f"{NODES}/{node}", json={"metadata": {"k": 1}}).status_code == 200
    assert http.get(f"{NODES}/{node}").json()["metadata"] == {"k": 1}
    app.execute("UPDATE memory_nodes SET metadata = '{}' WHERE id = %s", [node])
    check_error(http.get(f"{NODES}/{node}"), 409, "TAMPERED")
    assert search(http, query="the zebra crosses", mode="semantic")["dropped"] == {"tampered": 1}
