"""Only the log that the trust root names is written, read and believed, whatever else somebody puts into the database."""

from __future__ import annotations

import random
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg

from memory_layer.audit.checkpoint import parse_checkpoint
from memory_layer.audit.verdict import TAMPERED
from memory_layer.service import audit, nodes
from memory_layer.service.checkpoints import publish_once
from tests.support.service import caller, create, rows, running_memory, verify

Database = Callable[[str], str]
EVIL = "evil.example/audit/prod/s0/e9"


def owner(database: Database, statement: str, *values: Any) -> None:
    """As the superuser who switched every trigger off."""
    with psycopg.connect(database("postgres"), autocommit=True) as connection:
        connection.execute("SET session_replication_role = replica")
        for table in ("audit_events", "audit_seals", "audit_logs", "audit_keys", "audit_payloads"):
            connection.execute(f"ALTER TABLE {table} DISABLE TRIGGER ALL")
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
        assert parse_checkpoint(await audit.checkpoint(memory)).origin == memory.stores.trust_root.origin
        page = await audit.events(
            memory, caller(scopes=frozenset({"audit:read"})), audit.EventFilter(node=node), None, 10
        )
        assert [item["type"] for item in page.items] == ["memory.node.created"]
    # Another process opens the same log, though a newer one lies in the table.
    async with running_memory(database("memory_app"), tmp_path) as memory:
        await create(memory)
    assert rows(database("postgres"), "SELECT DISTINCT log FROM audit_seals") == [(0,)]


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
