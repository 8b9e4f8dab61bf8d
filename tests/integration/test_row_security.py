"""What the database itself refuses: another tenant's rows, pointers across tenants, changes to evidence, early hard deletes."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest
from psycopg import Connection, errors

Database = Callable[[str], str]
HASH = "a" * 64
TENANT_TABLES = ("memory_nodes", "memory_vectors", "artifacts", "namespaces", "audit_payloads", "legal_holds", "subjects",
                 "idempotency_keys", "api_keys", "revoked_tokens")  # fmt: skip
EVIDENCE = ("audit_events", "audit_seals", "audit_logs", "audit_keys")


@pytest.fixture
def nodes(database: Database) -> dict[str, uuid.UUID]:
    """A node each of ann and bob, with a vector, an artifact, an entry and everything else that belongs to a tenant."""
    made = {}
    with psycopg.connect(database("postgres"), autocommit=True) as connection:
        connection.execute(
            "INSERT INTO audit_logs (log, origin, incarnation, key_id) VALUES (0, 'test', 1, %s)", [HASH]
        )
        connection.execute(
            "INSERT INTO audit_seals VALUES (0, 0, 0, 1, %s, 'text', 's', %s, 'ed25519', '1', 1, now())", [HASH, HASH]
        )
        connection.execute("ALTER TABLE audit_keys DISABLE TRIGGER audit_keys_activated")  # no entry activates it
        connection.execute("INSERT INTO audit_keys VALUES (0, 0, %s, 'ed25519', '\\x00', now())", [HASH])
        connection.execute("ALTER TABLE audit_keys ENABLE ALWAYS TRIGGER audit_keys_activated")
        for seq, tenant in enumerate(("ann", "bob")):
            node = made[tenant] = uuid.uuid4()
            facts = {"tenant": tenant, "node": node, "id": uuid.uuid4(), "seq": seq, "hash": HASH, "zeros": bytes(32),
                     "key": bytes([seq]) * 32}  # fmt: skip
            for statement in (
                """INSERT INTO memory_nodes (tenant, id, owner, namespace, created_at, updated_at)
                   VALUES (%(tenant)s, %(node)s, 'o', 'n', now(), now())""",
                """INSERT INTO memory_vectors (tenant, id, memory_node_id, namespace, provider, status, version, created_at,
                                               updated_at)
                   VALUES (%(tenant)s, %(id)s, %(node)s, 'n', 'pgvector', 'deleted', 1, now(), now())""",
                """INSERT INTO artifacts (tenant, id, memory_node_id, url, object_key, version_id, sha256, size_bytes,
                                          content_type, created_by, created_at)
                   VALUES (%(tenant)s, %(id)s, %(node)s, 'u', 'k', 'v', %(hash)s, 1, 't', %(id)s, now())""",
                """INSERT INTO namespaces (tenant, name, index_namespace, embedding_model, dimension, provider, created_at,
                                           updated_at)
                   VALUES (%(tenant)s, 'n', 'n', 'm', 4, 'pgvector', now(), now())""",
                """INSERT INTO audit_events (log, seq, id, batch_no, tenant, memory_node_id, event_type, created_at, entry,
                                             hash, prev_hash, signature)
                   VALUES (0, %(seq)s, %(id)s, 0, %(tenant)s, %(node)s, 'memory.node.created', now(), 'e', %(hash)s, %(hash)s,
                           's')""",
                "INSERT INTO audit_payloads VALUES (0, %(seq)s, %(tenant)s, %(zeros)s, '{}')",
                """INSERT INTO legal_holds (tenant, id, scope, target, reason, set_by, set_at)
                   VALUES (%(tenant)s, %(id)s, 'owner', 'o', 'r', %(id)s, now())""",
                "INSERT INTO subjects (tenant, subject, handle) VALUES (%(tenant)s, 'o', %(id)s)",
                """INSERT INTO idempotency_keys VALUES (%(tenant)s, %(id)s, 'k', %(zeros)s, 200, '{}', now())""",
                """INSERT INTO api_keys (tenant, id, principal, key_sha256, scopes)
                   VALUES (%(tenant)s, %(id)s, %(id)s, %(key)s, '{}')""",
                "INSERT INTO revoked_tokens (tenant, jti, revoked_at) VALUES (%(tenant)s, 'j', now())",
            ):
                connection.execute(statement, facts)
    return made


@pytest.fixture
def app(database: Database, nodes: dict[str, uuid.UUID]) -> Iterator[Connection[Any]]:
    with psycopg.connect(database("memory_app"), autocommit=True) as connection:
        yield connection


def be(connection: Connection[Any], *tenants: str) -> None:
    connection.execute("SELECT set_config('memory.tenants', %s, false)", ["{" + ",".join(tenants) + "}"])


@pytest.mark.parametrize("table", TENANT_TABLES)
def test_without_a_tenant_there_are_no_rows(app: Connection[Any], table: str) -> None:
    assert app.execute(f"SELECT * FROM {table}").fetchall() == []
    with app.transaction():
        app.execute("SELECT set_config('memory.tenants', '{ann}', true)")
        assert len(app.execute(f"SELECT * FROM {table}").fetchall()) == 1
    # The setting of a transaction that is over reads as '' in the same session.
    assert app.execute(f"SELECT * FROM {table}").fetchall() == []


@pytest.mark.parametrize("table", TENANT_TABLES)
def test_a_tenant_sees_its_own_rows(app: Connection[Any], table: str) -> None:
    for tenants in (["ann"], ["bob"], ["ann", "bob"], ["eve"]):
        be(app, *tenants)
        seen = {row[0] for row in app.execute(f"SELECT tenant FROM {table}").fetchall()}
        assert seen == set(tenants) - {"eve"}


@pytest.mark.parametrize("table", TENANT_TABLES)
def test_the_policy_binds_the_owner_too(database: Database, nodes: dict[str, uuid.UUID], table: str) -> None:
    with psycopg.connect(database("memory_owner"), autocommit=True) as owner:
        assert owner.execute(f"SELECT * FROM {table}").fetchall() == []


def test_all_tenants_is_a_setting_of_its_own(app: Connection[Any]) -> None:
    for value, seen in (("on", 2), ("off", 0), ("", 0), ("ON", 0)):
        app.execute("SELECT set_config('memory.all_tenants', %s, false)", [value])
        assert len(app.execute("SELECT FROM memory_nodes").fetchall()) == seen


def test_tenant_names_are_no_patterns(app: Connection[Any]) -> None:
    for setting in ("{%}", "{an_}", "{NULL}", '{"ann,bob"}', "{}", "{ANN}"):
        app.execute("SELECT set_config('memory.tenants', %s, false)", [setting])
        assert app.execute("SELECT FROM memory_nodes").fetchall() == []


def test_another_tenants_rows_can_be_neither_written_nor_taken(
    app: Connection[Any], nodes: dict[str, uuid.UUID]
) -> None:
    be(app, "ann")
    insert = """INSERT INTO memory_nodes (tenant, id, owner, namespace, created_at, updated_at)
                VALUES (%s, gen_random_uuid(), 'o', 'n', now(), now())"""
    app.execute(insert, ["ann"])
    with pytest.raises(errors.InsufficientPrivilege, match="row-level security"):
        app.execute(insert, ["bob"])
    with pytest.raises(errors.InsufficientPrivilege, match="row-level security"):
        app.execute("UPDATE memory_nodes SET tenant = 'bob'")
    assert app.execute("UPDATE memory_nodes SET owner = 'x' WHERE id = %s", [nodes["bob"]]).rowcount == 0
    assert app.execute("DELETE FROM memory_nodes WHERE id = %s", [nodes["bob"]]).rowcount == 0


def test_no_pointer_leads_to_another_tenants_node(app: Connection[Any], nodes: dict[str, uuid.UUID]) -> None:
    be(app, "ann", "bob")  # row security allows both: the keys must refuse it by themselves
    vector = """INSERT INTO memory_vectors (tenant, id, memory_node_id, namespace, provider, version, created_at, updated_at)
                VALUES ('ann', gen_random_uuid(), %s, 'n2', 'p', 1, now(), now())"""
    artifact = """INSERT INTO artifacts (tenant, id, memory_node_id, url, object_key, version_id, sha256, size_bytes,
                                         content_type, created_by, created_at)
                  VALUES ('ann', gen_random_uuid(), %s, 'u', 'k', 'v', repeat('a', 64), 1, 't', gen_random_uuid(), now())"""
    for statement in (vector, artifact):
        app.execute(statement, [nodes["ann"]])
        with pytest.raises(errors.ForeignKeyViolation):
            app.execute(statement, [nodes["bob"]])
    with pytest.raises(errors.ForeignKeyViolation):
        app.execute("UPDATE artifacts SET tenant = 'bob' WHERE tenant = 'ann'")


@pytest.mark.parametrize("statement", ["UPDATE {} SET log = log", "DELETE FROM {}", "TRUNCATE {} CASCADE"])
@pytest.mark.parametrize("table", EVIDENCE)
def test_evidence_is_append_only(
    database: Database, nodes: dict[str, uuid.UUID], app: Connection[Any], table: str, statement: str
) -> None:
    statement = statement.format(table)
    with pytest.raises(errors.InsufficientPrivilege, match="permission denied"):
        app.execute(statement)
    with (
        psycopg.connect(database("memory_owner"), autocommit=True) as owner,
        pytest.raises(errors.InsufficientPrivilege, match="append-only"),
    ):
        owner.execute(statement)
    with psycopg.connect(database("postgres"), autocommit=True) as root:
        root.execute("SET session_replication_role = replica")
        with pytest.raises(errors.InsufficientPrivilege, match="append-only"):
            root.execute(statement)
        (count,) = root.execute(f"SELECT count(*) FROM {table}").fetchone() or (0,)
        assert count > 0


def test_no_place_in_the_log_can_be_taken_twice(database: Database, nodes: dict[str, uuid.UUID]) -> None:
    keys = {"audit_events": ["log", "seq"], "audit_seals": ["log", "batch_no"], "audit_payloads": ["log", "seq"],
            "audit_checkpoints": ["log", "size"], "audit_keys": ["log", "from_seq"], "audit_logs": ["log"]}  # fmt: skip
    with psycopg.connect(database("postgres"), autocommit=True) as root:
        for table, columns in keys.items():
            found = root.execute(
                """SELECT array_agg(a.attname::text ORDER BY k.place)
                   FROM pg_constraint c CROSS JOIN LATERAL unnest(c.conkey) WITH ORDINALITY k(attnum, place)
                   JOIN pg_attribute a ON a.attrelid = c.conrelid AND a.attnum = k.attnum
                   WHERE c.contype = 'p' AND c.conrelid = %s::regclass""",
                [table],
            ).fetchall()
            assert found == [(columns,)], table
        triggers = root.execute(
            """SELECT tgrelid::regclass::text, tgenabled FROM pg_trigger
               WHERE NOT tgisinternal AND tgfoid = 'audit_append_only'::regproc"""
        ).fetchall()
        assert {enabled for _, enabled in triggers} == {"A"}  # ALWAYS
        assert {table for table, _ in triggers} >= {*EVIDENCE, "audit_payloads"}


def test_payloads_may_be_erased_by_the_owner_but_never_changed(
    database: Database, nodes: dict[str, uuid.UUID], app: Connection[Any]
) -> None:
    be(app, "ann")
    for statement in (
        "UPDATE audit_payloads SET payload = 'x'",
        "DELETE FROM audit_payloads",
        "TRUNCATE audit_payloads",
    ):
        with pytest.raises(errors.InsufficientPrivilege):
            app.execute(statement)
    with psycopg.connect(database("postgres"), autocommit=True) as root:
        root.execute("SET session_replication_role = replica")
        with pytest.raises(errors.InsufficientPrivilege, match="append-only"):
            root.execute("UPDATE audit_payloads SET payload = 'x'")
        assert root.execute("DELETE FROM audit_payloads WHERE tenant = 'ann'").rowcount == 1


def test_the_runtime_role_owns_nothing_and_can_make_nothing(app: Connection[Any]) -> None:
    owned = app.execute(
        "SELECT c.relname FROM pg_class c JOIN pg_roles r ON r.oid = c.relowner WHERE r.rolname = 'memory_app'"
    ).fetchall()
    assert owned == []
    role = app.execute(
        "SELECT rolsuper, rolcreatedb, rolcreaterole, rolreplication, rolbypassrls FROM pg_roles WHERE rolname = 'memory_app'"
    ).fetchall()
    assert role == [(False,) * 5]
    member = app.execute(
        "SELECT FROM pg_auth_members m JOIN pg_roles r ON r.oid = m.member WHERE r.rolname = 'memory_app'"
    ).fetchall()
    assert member == []
    for statement in (
        "CREATE TABLE mine (x int)",
        "ALTER TABLE audit_events DISABLE TRIGGER ALL",
        "DROP TRIGGER audit_events_no_change ON audit_events",
        "ALTER TABLE memory_nodes DISABLE ROW LEVEL SECURITY",
        "SET session_replication_role = replica",
        "SET ROLE memory_owner",
        "INSERT INTO schema_migrations (version) VALUES ('x')",
    ):
        with pytest.raises(errors.InsufficientPrivilege):
            app.execute(statement)


def hard_delete(connection: Connection[Any], node: uuid.UUID) -> int:
    return connection.execute("DELETE FROM memory_nodes WHERE id = %s", [node]).rowcount


def test_a_held_node_cannot_be_hard_deleted(app: Connection[Any], nodes: dict[str, uuid.UUID]) -> None:
    be(app, "ann")
    app.execute("UPDATE memory_nodes SET legal_hold = true, legal_hold_reason = 'case 7'")
    with pytest.raises(errors.RestrictViolation, match="under legal hold"):
        hard_delete(app, nodes["ann"])
    assert len(app.execute("SELECT FROM memory_vectors").fetchall()) == 1
    app.execute("UPDATE memory_nodes SET legal_hold = false, legal_hold_reason = NULL")
    assert hard_delete(app, nodes["ann"]) == 1


@pytest.mark.parametrize("status", ["pending", "in_flight", "succeeded", "failed", "dead", "deleting"])
def test_a_node_with_a_live_vector_cannot_be_hard_deleted(
    app: Connection[Any], nodes: dict[str, uuid.UUID], status: str
) -> None:
    be(app, "ann")
    app.execute("UPDATE memory_vectors SET status = %s", [status])
    with pytest.raises(errors.RestrictViolation, match="still has vectors in the index"):
        hard_delete(app, nodes["ann"])
    assert len(app.execute("SELECT FROM memory_nodes").fetchall()) == 1


def test_a_hard_delete_takes_the_vectors_frees_the_artifacts_and_leaves_the_evidence(
    database: Database, app: Connection[Any], nodes: dict[str, uuid.UUID]
) -> None:
    be(app, "ann")
    assert hard_delete(app, nodes["ann"]) == 1
    with psycopg.connect(database("postgres")) as root:
        assert root.execute("SELECT tenant FROM memory_vectors").fetchall() == [("bob",)]
        assert root.execute("SELECT tenant, memory_node_id FROM artifacts ORDER BY tenant").fetchall() == [
            ("ann", None),
            ("bob", nodes["bob"]),
        ]
        assert root.execute("SELECT memory_node_id FROM audit_events ORDER BY seq").fetchall() == [
            (nodes["ann"],),
            (nodes["bob"],),
        ]


def test_checks_refuse_rows_that_no_use_case_makes(app: Connection[Any], nodes: dict[str, uuid.UUID]) -> None:
    be(app, "ann")
    for statement in (
        "UPDATE memory_vectors SET status = 'lost'",
        "UPDATE memory_vectors SET lease_id = gen_random_uuid()",
        "UPDATE memory_vectors SET vector_data = '[1, 2]'",
        """UPDATE memory_vectors SET vector_data = '{"data": "AAAA"}'""",
        "UPDATE memory_nodes SET metadata = '[]'",
        "UPDATE memory_nodes SET ttl_seconds = 60, expires_at = now()",
        "UPDATE memory_nodes SET expires_at = now()",
        "UPDATE memory_nodes SET legal_hold_reason = 'none'",
        "UPDATE memory_nodes SET version = 0",
    ):
        with pytest.raises(errors.CheckViolation):
            app.execute(statement)
