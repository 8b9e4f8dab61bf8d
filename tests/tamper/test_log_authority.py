"""Only the log that the trust root names is written, read and believed, whatever else somebody puts into the database."""

from __future__ import annotations

import random
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg
import pytest

from memory_layer import config
from memory_layer.audit import trust_root
from memory_layer.audit.checkpoint import parse_checkpoint
from memory_layer.audit.verdict import TAMPERED, UNANCHORED
from memory_layer.errors import LogNotOpen, PolicyRefused
from memory_layer.ops.first_start import ensure_keys, start_log
from memory_layer.service import audit, nodes
from memory_layer.service.checkpoints import publish_once
from memory_layer.service.running import open_service
from tests.support.product import clean_environment, run_ctl
from tests.support.service import caller, create, rows, running_memory, verify
from tests.support.triggers import switched_off

Database = Callable[[str], str]
EVIL = "evil.example/audit/prod/s0/e9"


def owner(database: Database, statement: str, *values: Any) -> None:
    """As the superuser who switched every trigger off."""
    tables = (*APPEND, "audit_logs", "memory_nodes")
    with psycopg.connect(database("postgres"), autocommit=True) as connection, switched_off(connection, *tables):
        connection.execute(statement, values)


def forge(database: Database, log: int, node: uuid.UUID, type_: str) -> None:
    """An entry of another log that says what the forger wants said of a node."""
    owner(
        database,
        """INSERT INTO audit_events (log, seq, id, batch_no, tenant, memory_node_id, event_type, created_at, entry, hash, prev_hash,
                                     signature)
           SELECT %s, %s, gen_random_uuid(), batch_no, tenant, memory_node_id, %s, created_at, entry, hash, prev_hash, signature
           FROM audit_events WHERE memory_node_id = %s AND log = 0 ORDER BY seq DESC LIMIT 1""",
        log,
        random.randrange(10**6, 10**9),
        type_,
        node,
    )


async def test_a_second_log_diverts_nobody(database: Database, tmp_path: Path) -> None:
    async with running_memory(database("memory_app"), tmp_path) as memory:
        await create(memory)
        owner(
            database,
            "INSERT INTO audit_logs (log, origin, incarnation, key_id) SELECT 9, %s, 9, key_id FROM audit_logs",
            EVIL,
        )
        node = await create(memory)
        await publish_once(memory)
        assert rows(database("postgres"), "SELECT DISTINCT log FROM audit_seals") == [(0,)]
        assert rows(database("postgres"), "SELECT DISTINCT log FROM audit_checkpoints") == [(0,)]
        assert parse_checkpoint(await audit.checkpoint(memory)).origin == memory.trust_root.origin
        page = await audit.events(
            memory, caller(scopes=frozenset({"audit:read"})), audit.EventFilter(node=node), None, 10
        )
        assert [item["type"] for item in page.items] == ["memory.node.created"]
    # Another process opens the same log, though a newer one lies in the table.
    async with running_memory(database("memory_app"), tmp_path) as memory:
        await create(memory)
    assert rows(database("postgres"), "SELECT DISTINCT log FROM audit_seals") == [(0,)]


APPEND = {
    "audit_events": """INSERT INTO audit_events (log, seq, id, batch_no, event_type, created_at, entry, hash, prev_hash, signature)
                       SELECT {log}, 10000, gen_random_uuid(), 0, event_type, created_at, entry, hash, prev_hash, signature
                       FROM audit_events WHERE seq = 0""",
    "audit_payloads": "INSERT INTO audit_payloads SELECT {log}, 10000, tenant, salt, payload FROM audit_payloads WHERE seq = 0",
    "audit_seals": """INSERT INTO audit_seals SELECT {log}, 10000, 10000, 10000, head, seal_text, signature, key_id, algorithm,
                      system_identifier, timeline, created_at FROM audit_seals WHERE batch_no = 0""",
    "audit_keys": "INSERT INTO audit_keys VALUES ({log}, 10000, repeat('a', 64), 'ed25519', 'x', now())",
    "audit_checkpoints": "INSERT INTO audit_checkpoints (log, size, root) VALUES ({log}, 10000, decode(repeat('00', 32), 'hex'))",
    "audit_trees": "INSERT INTO audit_trees (log, size, edge, key_id) VALUES ({log}, 10000, '{{}}', repeat('a', 64))",
    "audit_tiles": "INSERT INTO audit_tiles VALUES ({log}, 0, 100, decode(repeat('00', 8192), 'hex'))",
    "archive_segments": """INSERT INTO archive_segments (log, number, first_seq, last_seq, checkpoint_size, tool, begun_at, lock_until)
                           VALUES ({log}, 0, 0, 1, 2, 'x', now(), now())""",
}


@pytest.mark.parametrize("log", [-9, 7])
@pytest.mark.parametrize("table", APPEND)
async def test_the_runtime_role_appends_to_no_log_that_is_not_open(
    database: Database, tmp_path: Path, table: str, log: int
) -> None:
    async with running_memory(database("memory_app"), tmp_path) as memory:
        await create(memory)
    with psycopg.connect(database("memory_app"), autocommit=True) as app:
        app.execute("SET memory.all_tenants = 'on'")
        app.execute("SET memory.importing = 'on'")
        with pytest.raises((psycopg.errors.ForeignKeyViolation, psycopg.errors.InsufficientPrivilege)):
            app.execute(APPEND[table].format(log=log))
    with psycopg.connect(database("memory_owner"), autocommit=True) as owner_:
        owner_.execute("SET memory.all_tenants = 'on'")
        with pytest.raises((psycopg.errors.ForeignKeyViolation, psycopg.errors.InsufficientPrivilege)):
            owner_.execute(APPEND[table].format(log=log))


@pytest.mark.parametrize(
    "statement",
    [
        "INSERT INTO audit_logs (log, origin, incarnation, key_id) VALUES (9, 'evil.example/audit/dev/s0/e9', 9, repeat('a', 64))",
        "INSERT INTO audit_logs VALUES (-9, 'evil.example/audit/dev/s0/e9', 9, repeat('a', 64), now(), now())",
        "UPDATE audit_logs SET origin = 'evil.example/audit/dev/s0/e9'",
        "DELETE FROM audit_logs",
        "UPDATE audit_checkpoints SET root = root",
        "UPDATE audit_trees SET key_id = key_id",
        "DELETE FROM audit_trees",
        "DELETE FROM audit_tiles",
        "UPDATE archive_segments SET first_seq = 1",
        "DELETE FROM archive_segments",
        "UPDATE principals SET service = 'x'",
        "UPDATE tenants SET tenant = 'x'",
        "INSERT INTO schema_migrations VALUES ('999')",
    ],
)
async def test_the_runtime_role_may_not(database: Database, tmp_path: Path, statement: str) -> None:
    async with running_memory(database("memory_app"), tmp_path) as memory:
        await create(memory)
    with (
        psycopg.connect(database("memory_app"), autocommit=True) as app,
        pytest.raises(psycopg.errors.InsufficientPrivilege),
    ):
        app.execute(statement)


@pytest.mark.parametrize("log", [-9, 7])
@pytest.mark.parametrize("table", [*APPEND, "audit_logs"])
async def test_rows_of_a_log_that_nobody_knows_are_a_finding(
    database: Database, tmp_path: Path, table: str, log: int
) -> None:
    async with running_memory(database("memory_app"), tmp_path) as memory:
        await create(memory)
        await publish_once(memory)
    clean = verify(database("memory_app"), tmp_path)
    assert (clean.exit_code, clean.findings) == (UNANCHORED, ())
    statement = APPEND.get(table) or (
        "INSERT INTO audit_logs (log, origin, incarnation, key_id, imported_at) SELECT {log}, '"
        + EVIL
        + "', 9, key_id,"
        " CASE WHEN {log} < 0 THEN now() END FROM audit_logs"
    )
    owner(database, statement.format(log=log))
    verdict = verify(database("memory_app"), tmp_path)
    assert verdict.exit_code == TAMPERED
    (finding,) = verdict.findings
    assert finding.code == "FOREIGN_LOG"
    assert f"log {log} " in finding.found
    assert table in finding.found
    if table == "audit_logs":  # an operator who knows of it says so
        known = verify(database("memory_app"), tmp_path, others=[EVIL])
        assert known.findings == ()
        assert any(EVIL in line for line in known.not_checked)
    else:
        assert verify(database("memory_app"), tmp_path, others=[EVIL]).exit_code == TAMPERED


async def test_a_log_made_a_copy_is_not_judged_as_one_unasked(database: Database, tmp_path: Path) -> None:
    """A copy has no rows to be compared with: to call the log one must not hide what happened to its rows."""
    async with running_memory(database("memory_app"), tmp_path) as memory:
        node = await create(memory)
    owner(database, "DELETE FROM memory_nodes WHERE id = %s", node)
    owner(database, "UPDATE audit_logs SET imported_at = now(), log = -1")
    for table in ("audit_events", "audit_seals", "audit_payloads"):
        owner(database, f"UPDATE {table} SET log = -1")
    verdict = verify(database("memory_app"), tmp_path)
    assert verdict.exit_code == TAMPERED
    assert {"FOREIGN_LOG", "STATE_RECONCILE_MISMATCH"} <= {finding.code for finding in verdict.findings}


async def test_a_log_is_opened_by_the_owner_alone(database: Database, tmp_path: Path) -> None:
    settings = config.load({}, database_url=database("memory_app"), embeddings_provider="none")
    ensure_keys(tmp_path)
    with pytest.raises(LogNotOpen, match="migrate apply --open-log"):
        await start_log(settings, tmp_path, database("memory_app"))
    assert not (tmp_path / "trust-root.json").exists()
    assert rows(database("postgres"), "SELECT count(*) FROM audit_logs") == [(0,)]
    served = run_ctl(
        "serve", "--data", str(tmp_path), env=clean_environment() | {"DATABASE_URL": database("memory_app")}
    )
    assert (served.returncode, "migrate apply --open-log" in served.stderr) == (3, True), served.stderr
    owner_ = clean_environment() | {"MIGRATION_DATABASE_URL": database("memory_owner"), "VECTOR_DB_PROVIDER": "milvus"}
    opened = run_ctl("migrate", "apply", "--open-log", "--data", str(tmp_path), env=owner_)
    assert opened.returncode == 0, opened.stderr
    again = run_ctl("migrate", "apply", "--open-log", "--data", str(tmp_path), env=owner_)
    assert again.returncode == 0, again.stderr
    assert rows(database("postgres"), "SELECT count(*) FROM audit_logs") == [(1,)]
    async with open_service(settings, tmp_path) as memory:
        await create(memory)
    assert verify(database("memory_app"), tmp_path).exit_code == UNANCHORED


async def test_a_trust_root_of_another_log_opens_nothing(database: Database, tmp_path: Path) -> None:
    async with running_memory(database("memory_app"), tmp_path) as memory:
        await create(memory)
    root = trust_root.load((tmp_path / "trust-root.json").read_bytes())
    (tmp_path / "trust-root.json").write_bytes(trust_root.dump("other.example/audit/dev/s0/e1", root.keys))
    settings = config.load({}, database_url=database("memory_app"), embeddings_provider="none")
    with pytest.raises(LogNotOpen, match=r"does not hold the log other\.example"):
        async with open_service(settings, tmp_path):
            pass
    with pytest.raises(PolicyRefused, match=r"is for the log other\.example"):
        await start_log(settings, tmp_path, database("memory_owner"))
    assert rows(database("postgres"), "SELECT count(*) FROM audit_logs") == [(1,)]


async def test_entries_of_another_log_speak_for_no_row(database: Database, tmp_path: Path) -> None:
    async with running_memory(database("memory_app"), tmp_path) as memory:
        lost, changed, kept = [await create(memory) for _ in range(3)]
        await publish_once(memory)
        owner(database, "DELETE FROM memory_nodes WHERE id = %s", lost)
        owner(database, "UPDATE memory_nodes SET owner = 'eve' WHERE id = %s", changed)
        for log in (-9, 7):
            forge(database, log, lost, "memory.node.purged")
            forge(database, log, changed, "memory.node.updated")
            forge(database, log, kept, "memory.node.updated")
        page = await nodes.history(memory, caller(), kept, None, 10)
        assert [item["type"] for item in page.items] == ["memory.node.created"]
        shown = await nodes.get(memory, caller(), kept)
        assert shown["audit"]["seq"] < 1_000_000, shown["audit"]
    verdict = verify(database("postgres"), tmp_path)
    assert verdict.exit_code == TAMPERED
    text = [f"{finding.expected} {finding.found}" for finding in verdict.findings if "RECONCILE" in finding.code]
    assert any(str(lost) in line for line in text), text
    assert any(str(changed) in line for line in text), text
    assert not any(str(kept) in line for line in text), text
