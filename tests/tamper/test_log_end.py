"""What seals the next batch looks at the newest seal first: nothing is built upon a row that is not what the log's keys signed."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import psycopg
import pytest

from memory_layer.errors import LogTampered, PolicyRefused
from memory_layer.service.installation import Installation
from memory_layer.service.log_watch import look_once
from memory_layer.telemetry import metrics
from tests.api.door import connect
from tests.support.product import Product, running_product
from tests.support.service import create, rows, running_memory, verify

Database = Callable[[str], str]

NEWEST = "(log, batch_no) = (SELECT log, batch_no FROM audit_seals ORDER BY batch_no DESC LIMIT 1)"
COUNTS = "SELECT (SELECT count(*) FROM memory_nodes), (SELECT count(*) FROM audit_events), (SELECT count(*) FROM audit_seals)"


def as_owner(dsn: str, *statements: str) -> None:
    """As a superuser who switches the triggers off for it."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        for table in ("audit_events", "audit_seals", "audit_keys", "audit_logs"):
            connection.execute(f"ALTER TABLE {table} DISABLE TRIGGER USER")
        for statement in statements:
            connection.execute(statement)
        for table in ("audit_events", "audit_seals", "audit_keys", "audit_logs"):
            connection.execute(f"ALTER TABLE {table} ENABLE TRIGGER USER")


CHANGES = {
    "first_seq": ("UPDATE audit_seals SET first_seq = first_seq - 1 WHERE {newest}", "first_seq"),
    "last_seq": ("UPDATE audit_seals SET last_seq = last_seq + 5 WHERE {newest}", "last_seq"),
    "head": ("UPDATE audit_seals SET head = repeat('a', 64) WHERE {newest}", "head"),
    "key_id": ("UPDATE audit_seals SET key_id = repeat('a', 64) WHERE {newest}", "key_id"),
    "algorithm": ("UPDATE audit_seals SET algorithm = 'rsa-pss-sha256' WHERE {newest}", "algorithm"),
    "created_at": (
        "UPDATE audit_seals SET created_at = created_at + interval '1 hour' WHERE {newest}",
        "created_at|time",
    ),
    "batch_no": ("UPDATE audit_seals SET batch_no = batch_no + 1 WHERE {newest}", "batch_no"),
    "signature": (
        "UPDATE audit_seals SET signature = (SELECT signature FROM audit_seals WHERE batch_no = 0) WHERE {newest}",
        "signature",
    ),
    "seal_text": ("UPDATE audit_seals SET seal_text = replace(seal_text, 'range', 'Range') WHERE {newest}", "text"),
    "another text": (
        "UPDATE audit_seals SET seal_text = replace(seal_text, 'audit/dev', 'audit/prod') WHERE {newest}",
        "log of its newest seal|text",
    ),
    "an entry that nobody sealed": (
        """INSERT INTO audit_events (log, seq, id, batch_no, event_type, created_at, entry, hash, prev_hash, signature)
           SELECT log, seq + 1, gen_random_uuid(), batch_no + 1, event_type, created_at, entry, hash, prev_hash, signature
           FROM audit_events ORDER BY seq DESC LIMIT 1""",
        "nobody sealed that entry",
    ),
    "an entry far beyond": (
        """INSERT INTO audit_events (log, seq, id, batch_no, event_type, created_at, entry, hash, prev_hash, signature)
           SELECT log, seq + 1000, gen_random_uuid(), batch_no + 1, event_type, created_at, entry, hash, prev_hash, signature
           FROM audit_events ORDER BY seq DESC LIMIT 1""",
        "nobody sealed that entry",
    ),
    "a seal that nobody signed": (
        """INSERT INTO audit_seals SELECT log, batch_no + 1, last_seq + 1, last_seq + 1, head, seal_text, signature, key_id, algorithm,
           system_identifier, timeline, created_at FROM audit_seals ORDER BY batch_no DESC LIMIT 1""",
        "batch_no",
    ),
    "a key that nobody activated": (
        """INSERT INTO audit_keys (log, from_seq, key_id, algorithm, public_key, created_at)
           SELECT log, last_seq + 1, repeat('b', 64), 'ed25519', 'x', created_at FROM audit_seals ORDER BY batch_no DESC LIMIT 1""",
        "nothing proves it",
    ),
    "a key in the past": (
        """INSERT INTO audit_keys (log, from_seq, key_id, algorithm, public_key, created_at)
           SELECT log, 1, key_id, algorithm, 'x', created_at FROM audit_seals ORDER BY batch_no DESC LIMIT 1""",
        "nothing proves it",
    ),
    "the seal is gone": ("DELETE FROM audit_seals WHERE {newest}", "seals behind are gone|nobody sealed that entry"),
    "the batch is gone": (
        "DELETE FROM audit_events WHERE batch_no = (SELECT max(batch_no) FROM audit_seals); DELETE FROM audit_seals WHERE {newest}",
        "seals behind are gone",
    ),
}
# Whoever was not there cannot know that a whole batch is missing: that is for anchors.
UNSEEN = {"the batch is gone"}


async def fill(memory: Installation) -> None:
    for _ in range(3):
        await create(memory)


@pytest.mark.parametrize("change", CHANGES)
async def test_a_running_service_builds_upon_nothing_that_was_changed(
    database: Database, tmp_path: Path, change: str
) -> None:
    statement, said = CHANGES[change]
    async with running_memory(database("memory_app"), tmp_path) as memory:
        await fill(memory)
        as_owner(database("postgres"), statement.format(newest=NEWEST))
        before, refused = rows(database("postgres"), COUNTS), metrics.log_refusals._value.get()
        with pytest.raises(LogTampered, match=said) as caught:
            await create(memory)
        assert "memoryctl audit verify" in caught.value.message
        assert (caught.value.code, caught.value.status) == ("LOG_TAMPERED", 503)
        assert rows(database("postgres"), COUNTS) == before
        assert memory.committer.guard.fault is not None
        assert metrics.log_refusals._value.get() > refused


@pytest.mark.parametrize("change", sorted(CHANGES.keys() - UNSEEN))
async def test_nor_does_one_that_starts_afterwards(database: Database, tmp_path: Path, change: str) -> None:
    statement, said = CHANGES[change]
    async with running_memory(database("memory_app"), tmp_path) as memory:
        await fill(memory)
    as_owner(database("postgres"), statement.format(newest=NEWEST))
    before = rows(database("postgres"), COUNTS)
    if change == "a key that nobody activated":  # this server has not got it, so it does not even start
        with pytest.raises(PolicyRefused, match="nothing that it signs would verify"):
            async with running_memory(database("memory_app"), tmp_path):
                pass
        return
    async with running_memory(database("memory_app"), tmp_path) as memory:
        with pytest.raises(LogTampered, match=said):
            await create(memory)
        assert rows(database("postgres"), COUNTS) == before
        memory.committer.guard.fault = None
        with pytest.raises(LogTampered, match=said):  # nor without a write
            await look_once(memory.postgres, memory.committer.guard)
        assert memory.committer.guard.fault is not None


async def test_what_is_put_right_is_written_upon_again(database: Database, tmp_path: Path) -> None:
    async with running_memory(database("memory_app"), tmp_path) as memory:
        await fill(memory)
        as_owner(database("postgres"), "UPDATE audit_seals SET last_seq = last_seq + 1 WHERE " + NEWEST)
        with pytest.raises(LogTampered):
            await create(memory)
        as_owner(database("postgres"), "UPDATE audit_seals SET last_seq = last_seq - 1 WHERE " + NEWEST)
        await create(memory)
        assert memory.committer.guard.fault is None


async def test_two_processes_that_take_turns_see_nothing_wrong(database: Database, tmp_path: Path) -> None:
    async with (
        running_memory(database("memory_app"), tmp_path) as one,
        running_memory(database("memory_app"), tmp_path) as other,
    ):
        for memory in (one, other, other, one, one, other):
            await create(memory)
            for looking in (one, other):
                await look_once(looking.postgres, looking.committer.guard)
        assert one.committer.guard.fault is None
        assert other.committer.guard.fault is None


@pytest.fixture(scope="module")
def own_product() -> Iterator[Product]:
    """A product of this file's own, for its log is damaged."""
    with running_product() as running:
        yield running


def until(answers: Callable[[], httpx2.Response], status: int) -> Any:
    deadline = time.monotonic() + 60
    while (answer := answers()).status_code != status:
        assert time.monotonic() < deadline, answer.text
        time.sleep(0.2)
    return answer.json()


@pytest.mark.slow
def test_health_turns_red_within_a_minute_though_nobody_writes(own_product: Product) -> None:
    with connect(own_product, f"t-{uuid.uuid4().hex[:12]}") as http, own_product.owner() as connection:
        body = {"content": "one", "owner": "ann"}
        assert http.post("/v1/memory/nodes", json=body).status_code == 201
        connection.execute("ALTER TABLE audit_seals DISABLE TRIGGER USER")
        connection.execute("UPDATE audit_seals SET algorithm = 'x' WHERE " + NEWEST)
        ready = until(lambda: http.get("/readyz"), 503)
        assert ready["checks"]["log"] == "LOG_TAMPERED"
        health = http.get("/healthz")
        assert (health.status_code, health.json()["status"]) == (503, "down")
        assert "memory_log_tampered 1.0" in http.get("/metrics").text
        refused = http.post("/v1/memory/nodes", json=body)
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "LOG_TAMPERED")
        connection.execute("UPDATE audit_seals SET algorithm = 'ed25519' WHERE " + NEWEST)
        until(lambda: http.get("/readyz"), 200)
        assert http.post("/v1/memory/nodes", json=body).status_code == 201


RUNBOOK = Path(__file__).parents[2] / "docs" / "runbooks" / "tampered-log.md"


@pytest.mark.parametrize("change", ["an entry that nobody sealed", "an entry far beyond"])
async def test_the_runbook_takes_out_what_nobody_sealed(database: Database, tmp_path: Path, change: str) -> None:
    """As the role that inserted it, the service's own; put right by the owner of the tables, with the page's own statements."""
    async with running_memory(database("memory_app"), tmp_path) as memory:
        await fill(memory)
        with psycopg.connect(database("memory_app"), autocommit=True) as forger:
            forger.execute("SELECT set_config('memory.all_tenants', 'on', false)")
            forger.execute(CHANGES[change][0])
        with pytest.raises(LogTampered, match=r"docs/runbooks/tampered-log\.md"):
            await create(memory)
        _, page = RUNBOOK.read_text().split("```sql\n", 1)
        with psycopg.connect(database("memory_owner"), autocommit=True) as owner:
            owner.execute(page.split("```", 1)[0])
        await create(memory)
        assert verify(database("postgres"), tmp_path).findings == ()
