"""The log that the running service wrote, verified: clean as it stands, and every change behind its back is found."""

from __future__ import annotations

import asyncio
import datetime as dt
import hashlib
import json
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from memory_layer import canonical
from memory_layer.audit import trust_root
from memory_layer.audit.report import render
from memory_layer.audit.verdict import Finding, Verdict
from memory_layer.errors import DependencyUnavailable, ValidationError
from memory_layer.ops import audit, embedded
from memory_layer.ops.tables.check import NOT_CHECKED as TABLES_NOT_CHECKED
from memory_layer.service import artifacts
from memory_layer.service.indexing import work_once
from memory_layer.service.installation import Installation
from tests.support.databases import new_database
from tests.support.service import caller, create, delete, hold, patch, rows, running_memory, unit, verify
from tests.support.triggers import switch_off, switched_on


async def live(memory: Installation) -> None:
    """Some days of work: three tenants, every kind of change, several batches."""
    nodes = [
        await create(memory, tenant, content=f"text {n}", metadata={"n": n, "x": 1.5}, embedding_id=f"e{n}",
                     embedding=unit(1, n) if n % 2 else None, ttl_seconds=None if n % 3 else 7200)
        for tenant in ("ann", "bob", "eve") for n in range(6)
    ]  # fmt: skip
    await asyncio.gather(*(create(memory, content=f"together {n}") for n in range(20)))
    await patch(memory, nodes[0], content="other text", metadata={"n": None, "deep": {"list": [1, 2.5, "ä", None]}})
    await patch(memory, nodes[1], embedding=unit(0, 1), pii_flags={"containsPii": True})
    await patch(memory, nodes[1], ttl_seconds=3600)
    await patch(memory, nodes[1], ttl_seconds=None)
    await hold(memory, nodes[2])
    await hold(memory, nodes[3])
    await hold(memory, nodes[3], on=False)
    await delete(memory, nodes[4])
    held = await create(memory, content="held at once", legal_hold=True, embedding_id="held")
    await hold(memory, held, on=False)
    await create(memory, content="told", subjects=["ann", "bob"], embedding_id="told", legal_hold=True,
                 occurred_at=dt.datetime(2020, 2, 28, 12, 30, 0, 5000, dt.UTC))  # fmt: skip
    await upload(memory, "with.txt", nodes[0], {"k": 1e5, "flag": True})
    await upload(memory, "gone.txt", nodes[5], {})
    await upload(memory, "alone.txt", None, {"n": 1})
    await delete(memory, nodes[5])
    while await work_once(memory):
        pass


async def upload(memory: Installation, name: str, node: uuid.UUID | None, metadata: dict[str, Any]) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        yield name.encode()

    await artifacts.upload(memory, caller(), artifacts.Upload(node, name, "text/plain", None, metadata), chunks())


@pytest.fixture(scope="module")
def written(cluster: embedded.Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """(superuser's DSN, data folder) of a database that a running service filled and left."""
    data = tmp_path_factory.mktemp("installation")
    with new_database(cluster) as made:

        async def run() -> None:
            async with running_memory(made("memory_app"), data) as memory:
                await live(memory)

        asyncio.run(run())
        yield made("postgres"), data


FORGED = ("audit_events", "audit_seals", "audit_logs", "audit_payloads", "memory_nodes", "artifacts")


@pytest.fixture
def forged(written: tuple[str, Path], cluster: embedded.Cluster) -> Iterator[psycopg.Connection[Any]]:
    """A copy of the database in the hands of someone who may switch every trigger off."""
    original = str(conninfo_to_dict(written[0])["dbname"])
    with (
        new_database(cluster, original) as made,
        psycopg.connect(made("postgres"), autocommit=True) as connection,
    ):
        switch_off(connection, *FORGED)
        yield connection


def judge(connection: psycopg.Connection[Any], written: tuple[str, Path]) -> Verdict:
    with switched_on(connection, *FORGED):
        return verify(make_conninfo(written[0], dbname=connection.info.dbname), written[1])


def every(findings: tuple[Finding, ...]) -> set[str]:
    return {code for f in findings for code in {f.code} | every(f.consequences)}


def test_the_log_of_a_running_service_is_clean(written: tuple[str, Path]) -> None:
    verdict = verify(*written)
    assert verdict.findings == ()
    assert (verdict.exit_code, verdict.name) == (10, "CONSISTENT_UNANCHORED")
    ((entries, batches),) = rows(
        written[0], "SELECT (SELECT count(*) FROM audit_events), (SELECT count(*) FROM audit_seals)"
    )
    counts = verdict.counts
    assert (counts.entries, counts.first, counts.last) == (entries, 0, entries - 1)
    assert (counts.batches, counts.seals_valid, counts.payloads_matched) == (batches, batches, entries)
    assert verdict.not_checked[0].startswith("anchor:")
    assert verdict.not_checked[1:] == (*audit.NOT_CHECKED, *TABLES_NOT_CHECKED)


def test_the_runtime_role_can_verify_too(written: tuple[str, Path]) -> None:
    verdict = verify(make_conninfo(written[0], user="memory_app"), written[1])
    assert (verdict.findings, verdict.exit_code) == ((), 10)


MIDDLE = "(SELECT first_seq + 3 FROM audit_seals WHERE last_seq - first_seq > 6 LIMIT 1)"  # within a batch
LAST = "(SELECT max(seq) FROM audit_events)"
BATCH = "(SELECT batch_no FROM audit_seals WHERE last_seq - first_seq > 6 LIMIT 1)"
NODE = "(SELECT id FROM memory_nodes WHERE embedding_id = 'e0' AND tenant = 'bob')"
FORGERIES: list[tuple[str, str, str]] = [
    ("payload edited", f"UPDATE audit_payloads SET payload = payload || ' ' WHERE seq = {MIDDLE}", "PAYLOAD_COMMITMENT_MISMATCH"),
    ("salt edited", f"UPDATE audit_payloads SET salt = sha256(salt) WHERE seq = {MIDDLE}", "PAYLOAD_COMMITMENT_MISMATCH"),
    ("payload gone", f"DELETE FROM audit_payloads WHERE seq = {MIDDLE}", "PAYLOAD_MISSING_UNAUTHORISED"),
    ("type column edited", f"UPDATE audit_events SET event_type = 'memory.node.deleted' WHERE seq = {MIDDLE}", "PROJECTION_MISMATCH"),
    ("time column edited", f"UPDATE audit_events SET created_at = created_at - interval '1 s' WHERE seq = {MIDDLE}", "PROJECTION_MISMATCH"),
    ("time column in another era", f"UPDATE audit_events SET created_at = (created_at::text || ' BC')::timestamptz WHERE seq = {MIDDLE}", "PROJECTION_MISMATCH"),
    ("tenant column edited", f"UPDATE audit_events SET tenant = 'mallory' WHERE seq = {MIDDLE}", "PROJECTION_MISMATCH"),
    ("node column edited", f"UPDATE audit_events SET memory_node_id = {NODE} WHERE seq = {MIDDLE}", "PROJECTION_MISMATCH"),
    ("artifact column edited", f"UPDATE audit_events SET artifact_id = id WHERE seq = {MIDDLE}", "PROJECTION_MISMATCH"),
    ("manifest column edited", f"UPDATE audit_events SET manifest_signature_id = 'm' WHERE seq = {MIDDLE}", "PROJECTION_MISMATCH"),
    ("hash edited", f"UPDATE audit_events SET hash = repeat('0', 64) WHERE seq = {MIDDLE}", "PROJECTION_MISMATCH"),
    ("prev_hash edited", f"UPDATE audit_events SET prev_hash = repeat('0', 64) WHERE seq = {MIDDLE}", "PROJECTION_MISMATCH"),
    ("batch number edited", f"UPDATE audit_events SET batch_no = batch_no + 1 WHERE seq = {MIDDLE}", "PROJECTION_MISMATCH"),
    ("signature edited", f"UPDATE audit_events SET signature = overlay(signature placing CASE WHEN signature LIKE 'A%' THEN 'B' ELSE 'A' END from 1 for 1) WHERE seq = {MIDDLE}", "SEAL_INVALID"),
    ("middle row gone", f"DELETE FROM audit_events WHERE seq = {MIDDLE}", "SEQ_GAP"),
    ("first rows gone", "DELETE FROM audit_events WHERE seq < 2", "GENESIS_MISSING"),
    ("batch gone", f"DELETE FROM audit_events WHERE batch_no = {BATCH}; DELETE FROM audit_seals WHERE batch_no = {BATCH}", "SEAL_CHAIN_BROKEN"),
    ("seal gone", f"DELETE FROM audit_seals WHERE batch_no = {BATCH}", "SEAL_MISSING"),
    ("seal text edited", f"UPDATE audit_seals SET seal_text = regexp_replace(seal_text, 'time 20..', 'time 2020') WHERE batch_no = {BATCH}", "SEAL_INVALID"),
    ("seal signature edited", f"UPDATE audit_seals SET signature = overlay(signature placing CASE WHEN signature LIKE 'A%' THEN 'B' ELSE 'A' END from 1 for 1) WHERE batch_no = {BATCH}", "SEAL_INVALID"),
    ("rows swapped", (f"UPDATE audit_events SET seq = seq + 1000000 WHERE seq IN ({MIDDLE}, {MIDDLE} + 1);"
     "UPDATE audit_events SET seq = CASE WHEN seq = (SELECT max(seq) FROM audit_events) THEN seq - 1 ELSE seq + 1 END - 1000000"
     " WHERE seq >= 1000000"),
     "ENTRY_SEQ_MISMATCH"),
    ("node edited", f"UPDATE memory_nodes SET content = 'not what was said' WHERE id = {NODE}", "STATE_RECONCILE_MISMATCH"),
    ("metadata edited", f"""UPDATE memory_nodes SET metadata = metadata || '{{"n": 77}}' WHERE id = {NODE}""", "STATE_RECONCILE_MISMATCH"),
    ("owner edited", f"UPDATE memory_nodes SET owner = 'mallory' WHERE id = {NODE}", "STATE_RECONCILE_MISMATCH"),
    ("hold lifted", "UPDATE memory_nodes SET legal_hold = false, legal_hold_reason = NULL WHERE legal_hold", "STATE_RECONCILE_MISMATCH"),
    ("deletion undone", "UPDATE memory_nodes SET deleted_at = NULL WHERE deleted_at IS NOT NULL", "STATE_RECONCILE_MISMATCH"),
    ("life prolonged", f"UPDATE memory_nodes SET expires_at = expires_at + interval '1 day' WHERE id = {NODE}", "STATE_RECONCILE_MISMATCH"),
    ("vector edited", """UPDATE memory_vectors SET vector_data = jsonb_set(vector_data, '{data}', '"AAAAAAAAgD8="')
      WHERE metadata ->> 'source' = 'caller' AND embedding_model = 'test-model'""", "STATE_RECONCILE_MISMATCH"),
    ("row rolled back", f"UPDATE memory_nodes SET version = version + 1 WHERE id = {NODE}", "STATE_RECONCILE_MISMATCH"),
    ("node removed", f"DELETE FROM memory_nodes WHERE id = {NODE}", "STATE_RECONCILE_MISMATCH"),
    ("node smuggled in", """INSERT INTO memory_nodes (tenant, id, owner, namespace, created_at, updated_at)
      VALUES ('ann', gen_random_uuid(), 'o', 'n', now(), now())""", "STATE_RECONCILE_MISMATCH"),
]  # fmt: skip


@pytest.mark.parametrize(("sql", "code"), [f[1:] for f in FORGERIES], ids=[f[0] for f in FORGERIES])
def test_what_is_done_behind_the_logs_back_is_found(
    forged: psycopg.Connection[Any], written: tuple[str, Path], sql: str, code: str
) -> None:
    statements = [s for s in sql.split(";") if s.strip()]
    with forged.transaction():
        forged.execute("SET LOCAL session_replication_role = replica")
        changed = [forged.execute(statement).rowcount for statement in statements]
    assert all(changed), "the forgery touched nothing"
    verdict = judge(forged, written)
    assert verdict.findings, "nothing was found"
    assert verdict.findings[0].code == code, verdict.findings
    assert verdict.exit_code >= 20


PLAIN: list[tuple[str, str, str]] = [
    ("changed", f"UPDATE memory_nodes SET content = 'not what was said' WHERE id = {NODE}",
     "Memory node {id} of tenant bob was changed after {time} UTC without a record. Its content cannot be relied on."),
    ("removed", f"DELETE FROM memory_nodes WHERE id = {NODE}",
     "Memory node {id} of tenant bob was removed from the database after {time} UTC without a record."),
]  # fmt: skip


@pytest.mark.parametrize(("sql", "says"), [case[1:] for case in PLAIN], ids=[case[0] for case in PLAIN])
def test_it_is_described_in_plain_words_whose_it_was_and_when(
    forged: psycopg.Connection[Any], written: tuple[str, Path], sql: str, says: str
) -> None:
    ((node, time),) = forged.execute(
        "SELECT n.id, to_char(max(e.created_at) AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI') FROM memory_nodes n"
        f" JOIN audit_events e ON e.memory_node_id = n.id WHERE n.id = {NODE} GROUP BY n.id"
    ).fetchall()
    with forged.transaction():
        forged.execute("SET LOCAL session_replication_role = replica")
        forged.execute(sql)
    text = render(judge(forged, written))
    assert text.startswith("TAMPERED: something was changed outside the service")
    assert says.format(id=node, time=time) in " ".join(text.split())


TOLD = "memory_nodes WHERE embedding_id = 'told'"
WITH = "artifacts WHERE name = 'with.txt'"
VECTOR = "memory_vectors WHERE metadata ->> 'source' = 'caller' AND memory_node_id = (SELECT id FROM memory_nodes WHERE embedding_id = 'e1' AND tenant = 'ann')"  # fmt: skip
SECRET = "mallory was here"
# (row, column, what it becomes, what the finding calls the column)
TAMPERED: list[tuple[str, str, str, str]] = [
    (TOLD, "subjects", f"ARRAY['{SECRET}']", "subjects"),
    (TOLD, "subjects", "'{}'", "subjects"),
    (TOLD, "embedding_id", f"'{SECRET}'", "embedding_id"),
    (TOLD, "embedding_id", "NULL", "embedding_id"),
    (TOLD, "occurred_at", "NULL", "occurred_at"),
    (TOLD, "occurred_at", "occurred_at + interval '1 us'", "occurred_at"),
    (TOLD, "occurred_at", "'infinity'", "occurred_at"),
    (TOLD, "occurred_at", "'2020-02-28 12:30:00.005+00 BC'", "occurred_at"),
    (TOLD, "legal_hold_reason", f"'{SECRET}'", "legal_hold_reason"),
    (TOLD, "created_at", "created_at - interval '1 us'", "created_at"),
    (TOLD, "updated_at", "updated_at + interval '1 us'", "updated_at"),
    (TOLD, "content", f"'{SECRET}'", "content"),
    (TOLD, "metadata", """'{"n": 1e20000}'""", "metadata"),
    (TOLD, "deleted_at", "'-infinity'", "deleted_at"),
    (TOLD, "namespace", f"'{SECRET}'", "namespace"),
    (TOLD, "pii_flags", """'{"containsPii": true}'""", "pii_flags"),
    ("memory_nodes WHERE embedding_id = 'e2' AND tenant = 'ann'", "legal_hold_reason", f"'{SECRET}'", "legal_hold_reason"),
    ("memory_nodes WHERE embedding_id = 'e2' AND tenant = 'ann'", "legal_hold_reason", "NULL", "legal_hold_reason"),
    ("memory_nodes WHERE embedding_id = 'e1' AND tenant = 'ann'", "subjects", f"ARRAY['{SECRET}']", "subjects"),
    (VECTOR, "embedding_model", f"'{SECRET}'", "memory_vectors.embedding_model"),
    (VECTOR, "dimension", "3", "memory_vectors.dimension"),
    (VECTOR, "vector_data", """'{"encoding": "f32le", "data": "no base64 !"}'""", "memory_vectors.vector_data"),
    (VECTOR, "vector_data", """'{"encoding": "f32le", "data": null}'""", "memory_vectors.vector_data"),
    (WITH, "memory_node_id", "NULL", "memory_node_id"),
    (WITH, "memory_node_id", "(SELECT id FROM memory_nodes WHERE embedding_id = 'told')", "memory_node_id"),
    ("artifacts WHERE name = 'alone.txt'", "memory_node_id", "(SELECT id FROM memory_nodes WHERE embedding_id = 'told')",
     "memory_node_id"),
    (WITH, "name", f"'{SECRET}'", "name"),
    (WITH, "name", "NULL", "name"),
    (WITH, "url", f"'object://local/{SECRET}'", "url"),
    (WITH, "object_key", f"'{SECRET}'", "object_key"),
    (WITH, "object_key", "sha256", "object_key"),
    (WITH, "version_id", f"'{SECRET}'", "version_id"),
    (WITH, "sha256", "translate(sha256, '0123456789', '1234567890')", "sha256"),
    (WITH, "size_bytes", "size_bytes + 1", "size_bytes"),
    (WITH, "content_type", "'text/html'", "content_type"),
    (WITH, "manifest_signature_id", f"'{SECRET}'", "manifest_signature_id"),
    (WITH, "created_by", "gen_random_uuid()", "created_by"),
    (WITH, "created_at", "created_at + interval '1 us'", "created_at"),
    (WITH, "created_at", "'infinity'", "created_at"),
    (WITH, "retain_until", "'2199-01-01Z'", "retain_until"),
    (WITH, "fault", "'corrupt'", "fault"),
    (WITH, "legal_hold", "NOT legal_hold", "legal_hold"),
    (WITH, "verified_at", "created_at + interval '1 us'", "verified_at"),
    (WITH, "metadata", "metadata - 'k'", "metadata"),
    (WITH, "metadata", """metadata || '{"flag": 1}'""", "metadata"),
]  # fmt: skip


@pytest.mark.parametrize(("row", "column", "value", "named"), TAMPERED)
def test_each_column_that_someone_changes_is_named(
    forged: psycopg.Connection[Any], written: tuple[str, Path], row: str, column: str, value: str, named: str
) -> None:
    table, where = row.split(" ", 1)
    owner = "memory_node_id" if table == "memory_vectors" else "id"
    with forged.transaction():
        forged.execute("SET LOCAL session_replication_role = replica")
        ((id_,),) = forged.execute(f"UPDATE {table} SET {column} = {value} {where} RETURNING {owner}").fetchall()
    verdict = judge(forged, written)
    (finding,) = verdict.findings
    assert (finding.code, verdict.exit_code) == ("STATE_RECONCILE_MISMATCH", 40)
    assert str(id_) in finding.expected
    assert named in finding.found.split(": ")[1].split(", ")
    assert SECRET not in str(verdict.to_json()), "a value that may be personal data"


def test_columns_are_compared_by_the_log_without_payload_checks_too(
    forged: psycopg.Connection[Any], written: tuple[str, Path]
) -> None:
    """Who changes a row and the payload that tells of it is found out by the entry."""
    with forged.transaction():
        forged.execute("SET LOCAL session_replication_role = replica")
        forged.execute("UPDATE memory_nodes SET subjects = '{eve}' WHERE embedding_id = 'told'")
        forged.execute("""UPDATE audit_payloads p
            SET payload = convert_to(replace(convert_from(p.payload, 'UTF8'), '["ann","bob"]', '["eve"]'), 'UTF8')
            FROM audit_events e WHERE e.seq = p.seq AND e.memory_node_id = (SELECT id FROM memory_nodes WHERE embedding_id = 'told')""")  # fmt: skip
    root = trust_root.load((written[1] / "trust-root.json").read_bytes())
    dsn = make_conninfo(written[0], dbname=forged.info.dbname)
    for payloads in (True, False):
        with switched_on(forged, *FORGED):
            verdict = audit.verify_live(dsn, root, pinned=True, payloads=payloads)
        assert {f.code for f in verdict.findings} == {"PAYLOAD_COMMITMENT_MISMATCH", "STATE_RECONCILE_MISMATCH"}


def test_an_artifact_row_needs_an_entry_and_an_entry_its_row(
    forged: psycopg.Connection[Any], written: tuple[str, Path]
) -> None:
    with forged.transaction():
        forged.execute("SET LOCAL session_replication_role = replica")
        forged.execute("DELETE FROM artifacts WHERE name = 'alone.txt'")
        ((new,),) = forged.execute(
            "INSERT INTO artifacts (tenant, id, url, object_key, version_id, sha256, size_bytes, content_type, created_by, created_at)"
            " SELECT tenant, gen_random_uuid(), url, object_key, version_id, sha256, size_bytes, content_type, created_by, created_at"
            " FROM artifacts WHERE name = 'with.txt' RETURNING id"
        ).fetchall()
    findings = judge(forged, written).findings
    assert {f.code for f in findings} == {"STATE_RECONCILE_MISMATCH"}
    assert sorted(f.found for f in findings) == [f"artifact {new} has none", "no such row"]


def test_a_node_that_is_gone_nulls_the_link_of_its_artifact(
    forged: psycopg.Connection[Any], written: tuple[str, Path]
) -> None:
    with forged.transaction():
        forged.execute("SET LOCAL session_replication_role = replica")
        ((node,),) = forged.execute(
            "DELETE FROM memory_nodes WHERE id = (SELECT memory_node_id FROM artifacts WHERE name = 'with.txt') RETURNING id"
        ).fetchall()
        forged.execute("UPDATE artifacts SET memory_node_id = NULL WHERE name = 'with.txt'")
    (finding,) = judge(forged, written).findings
    assert str(node) in finding.expected
    assert finding.found == "no such row"


def test_what_a_missing_payload_held_is_named_as_not_checked(
    forged: psycopg.Connection[Any], written: tuple[str, Path]
) -> None:
    forged.execute("""DELETE FROM audit_payloads p USING audit_events e WHERE e.seq = p.seq AND (
        e.memory_node_id = (SELECT id FROM memory_nodes WHERE embedding_id = 'told')
        OR e.artifact_id = (SELECT id FROM artifacts WHERE name = 'alone.txt'))""")
    forged.execute("UPDATE memory_nodes SET subjects = '{eve}' WHERE embedding_id = 'told'")
    verdict = judge(forged, written)
    assert every(verdict.findings) == {"PAYLOAD_MISSING_UNAUTHORISED"}
    assert any(line.startswith("rows: in 2 of them") for line in verdict.not_checked)


@pytest.mark.parametrize("last_of_batch", [False, True])
def test_an_entry_rewritten_with_its_hash_breaks_what_follows(
    forged: psycopg.Connection[Any], written: tuple[str, Path], last_of_batch: bool
) -> None:
    place = f"(SELECT last_seq FROM audit_seals WHERE batch_no = {BATCH})" if last_of_batch else MIDDLE
    ((seq, entry),) = forged.execute(f"SELECT seq, entry FROM audit_events WHERE seq = {place}").fetchall()
    changed = json.loads(entry) | {"request_id": "another"}
    text = json.dumps(changed, sort_keys=True, separators=(",", ":")).encode()
    forged.execute(
        "UPDATE audit_events SET entry = %s, hash = %s WHERE seq = %s",
        [text, hashlib.sha256(b"\0" + text).hexdigest(), seq],
    )
    verdict = judge(forged, written)
    assert verdict.exit_code == 40
    # The seal's head gives it away where it was the last, the next entry's link where it was not.
    expected = {"SEAL_HEAD_MISMATCH", "SEAL_INVALID", "PREV_LINK_BROKEN"} if last_of_batch else {"PREV_LINK_BROKEN"}
    assert verdict.findings[0].code in expected


def test_the_tail_of_the_last_batch_gone(forged: psycopg.Connection[Any], written: tuple[str, Path]) -> None:
    forged.execute("DELETE FROM audit_events WHERE seq = (SELECT max(seq) FROM audit_events)")
    verdict = judge(forged, written)
    assert "SEAL_RANGE_INCOMPLETE" in every(verdict.findings)
    assert verdict.exit_code == 40


def test_a_vanished_server_is_no_verdict(written: tuple[str, Path], tmp_path: Path) -> None:
    with pytest.raises(DependencyUnavailable):
        verify(f"host={tmp_path} user=memory_app dbname=memory", written[1])


# --- what comes back from JSONB is what was committed to

NUMBERS = st.sampled_from([1.0, 1e5, -0.0, 0.0, 1e-7, 123456789.123, 1e15, 2**53 - 1, -(2**53) + 1, 1e-300, 0.1, 1e-6, 1e21 / 1e6,
                           5e-7, 1 / 3, 4.35, 100.0, 1.5e-10])  # fmt: skip
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | NUMBERS
    | st.integers(-(2**53) + 1, 2**53 - 1)
    | st.floats(-(2.0**53), 2.0**53)
    | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=4),
    max_leaves=12,
)


@pytest.fixture(scope="module")
def service(
    cluster: embedded.Cluster, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[asyncio.Runner, Installation, Callable[[], Verdict]]]:
    """A running service on a loop of its own, so that Hypothesis may write many examples through it."""
    data = tmp_path_factory.mktemp("numbers")
    with new_database(cluster) as made, asyncio.Runner() as runner:
        opened = running_memory(made("memory_app"), data)
        memory = runner.run(opened.__aenter__())
        yield runner, memory, lambda: verify(made("postgres"), data)
        runner.run(opened.__aexit__(None, None, None))


@pytest.mark.slow
@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(metadata=st.lists(st.dictionaries(st.text(max_size=8), VALUES, max_size=4), min_size=8, max_size=8))
def test_any_metadata_that_is_accepted_reconciles(
    service: tuple[asyncio.Runner, Installation, Callable[[], Verdict]], metadata: list[dict[str, Any]]
) -> None:
    runner, memory, _ = service
    accepted = []
    for item in metadata:
        try:
            accepted.append(canonical.loads(json.dumps(item).encode()))
        except ValidationError:
            continue  # refused at the API: NUL, lone surrogates, numbers that are too small

    async def write() -> None:
        nodes = await asyncio.gather(*(create(memory, metadata=item) for item in accepted))
        # A second entry commits to the row as Postgres gave it back, merged with the same again.
        await asyncio.gather(*(patch(memory, n, metadata=item) for n, item in zip(nodes, accepted, strict=True)))

    runner.run(write())
    assert all(f.code != "STATE_RECONCILE_MISMATCH" for f in service[2]().findings)


def test_every_spelling_of_a_number_reconciles(
    service: tuple[asyncio.Runner, Installation, Callable[[], Verdict]],
) -> None:
    runner, memory, judge_now = service
    spellings = ["1.0", "1e5", "1E5", "1e+5", "-0.0", "-0", "0e0", "1e-7", "123456789.123", "0.1000", "1.10e1", "9007199254740991",
                 "9007199254740991.0", "1e-300", "0.30000000000000004", "100e-2"]  # fmt: skip
    text = "{" + ",".join(f'"{n}":{spelling}' for n, spelling in enumerate(spellings)) + "}"
    runner.run(create(memory, metadata=canonical.loads(text.encode())))
    assert judge_now().findings == ()
