"""The tamper suite on the database: the runtime role is refused, and what a superuser does has its one name and exit code."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from psycopg import errors
from psycopg.conninfo import make_conninfo

from memory_layer.audit.report import render
from memory_layer.audit.verdict import Finding, Verdict
from memory_layer.ops.audit import verify_live
from tests.support.real_log import FORGED, RealLog, forged_copy
from tests.support.triggers import switched_on

BATCH = "(SELECT batch_no FROM audit_seals WHERE last_seq - first_seq > 2 AND batch_no > 40 ORDER BY 1 LIMIT 1)"
MIDDLE = f"(SELECT first_seq + 1 FROM audit_seals WHERE batch_no = {BATCH})"  # within a batch
END = f"(SELECT last_seq FROM audit_seals WHERE batch_no = {BATCH})"
LAST = "(SELECT max(seq) FROM audit_events)"
NODE = "(SELECT id FROM memory_nodes WHERE tenant = 'bob' AND deleted_at IS NULL ORDER BY id LIMIT 1)"
DELETES = "(SELECT seq FROM audit_events WHERE event_type = 'memory.node.deleted' ORDER BY seq OFFSET 20 LIMIT 2)"


def rewritten(seq: str, old: str, new: str) -> str:
    """An entry changed with its hash computed anew."""
    return f"""UPDATE audit_events e SET entry = n.entry, hash = encode(sha256('\\x00'::bytea || n.entry), 'hex')
               FROM (SELECT seq, convert_to(replace(convert_from(entry, 'UTF8'), '{old}', '{new}'), 'UTF8') AS entry
                     FROM audit_events WHERE seq = {seq}) n WHERE e.seq = n.seq"""


@dataclass(frozen=True)
class Case:
    """``refused``: the runtime role may not do it. A node's row it may change, as that is what a patch does."""

    name: str
    sql: str
    code: str
    exit: int = 40
    refused: bool = True


CASES = [
    Case("payload edited", f"UPDATE audit_payloads SET payload = payload || ' ' WHERE seq = {MIDDLE}", "PAYLOAD_COMMITMENT_MISMATCH"),
    Case("salt edited", f"UPDATE audit_payloads SET salt = sha256(salt) WHERE seq = {MIDDLE}", "PAYLOAD_COMMITMENT_MISMATCH"),
    Case("payload gone", f"DELETE FROM audit_payloads WHERE seq = {MIDDLE}", "PAYLOAD_MISSING_UNAUTHORISED"),
    Case("entry edited", rewritten(MIDDLE, '"auth":"jwt"', '"auth":"mtls"'), "PREV_LINK_BROKEN"),
    Case("last entry of a batch edited", rewritten(END, '"auth":"jwt"', '"auth":"mtls"'), "SEAL_INVALID"),
    Case("type column", f"UPDATE audit_events SET event_type = 'memory.node.purged' WHERE seq = {MIDDLE}", "PROJECTION_MISMATCH"),
    Case("time column", f"UPDATE audit_events SET created_at = created_at - interval '1 s' WHERE seq = {MIDDLE}", "PROJECTION_MISMATCH"),
    Case("node column", f"UPDATE audit_events SET memory_node_id = id WHERE seq = {MIDDLE}", "PROJECTION_MISMATCH"),
    Case("manifest column", f"UPDATE audit_events SET manifest_signature_id = 'm' WHERE seq = {MIDDLE}", "PROJECTION_MISMATCH"),
    Case("node ids of two deletes swapped", f"""UPDATE audit_events e SET memory_node_id = o.memory_node_id FROM audit_events o
         WHERE e.seq IN {DELETES} AND o.seq IN {DELETES} AND e.seq <> o.seq""", "PROJECTION_MISMATCH"),
    Case("rows swapped", f"""UPDATE audit_events SET seq = seq + 1000000 WHERE seq IN ({MIDDLE}, {MIDDLE} + 1);
         UPDATE audit_events SET seq = CASE WHEN seq = {LAST} THEN seq - 1 ELSE seq + 1 END - 1000000 WHERE seq >= 1000000""",
         "ENTRY_SEQ_MISMATCH"),
    Case("middle row gone", f"DELETE FROM audit_events WHERE seq = {MIDDLE}", "SEQ_GAP"),
    Case("batch gone", f"DELETE FROM audit_events WHERE batch_no = {BATCH}; DELETE FROM audit_seals WHERE batch_no = {BATCH}", "SEAL_CHAIN_BROKEN"),
    Case("end of the last batch gone", f"DELETE FROM audit_events WHERE seq = {LAST}", "SEAL_RANGE_INCOMPLETE"),
    Case("seal gone", f"DELETE FROM audit_seals WHERE batch_no = {BATCH}", "SEAL_MISSING"),
    Case("a row's signature gone", f"UPDATE audit_events SET signature = '' WHERE seq = {MIDDLE}", "SEAL_MISSING"),
    Case("seal edited", f"UPDATE audit_seals SET seal_text = regexp_replace(seal_text, 'time 20..', 'time 2020') WHERE batch_no = {BATCH}", "SEAL_INVALID"),
    Case("signature edited", f"UPDATE audit_seals SET signature = overlay(signature placing CASE WHEN signature LIKE 'A%' THEN 'B' ELSE 'A' END from 1 for 1) WHERE batch_no = {BATCH}", "SEAL_INVALID"),
    Case("base64 without padding", f"UPDATE audit_seals SET signature = rtrim(signature, '=') WHERE batch_no = {BATCH}", "NONCANONICAL_ENCODING"),
    Case("base64 in two lines", f"UPDATE audit_events SET signature = signature || chr(10) WHERE seq = {MIDDLE}", "NONCANONICAL_ENCODING"),
    Case("upper-case hex", f"ALTER TABLE audit_events DROP CONSTRAINT audit_events_hash_check; UPDATE audit_events SET hash = upper(hash) WHERE seq = {MIDDLE}", "NONCANONICAL_ENCODING"),
    Case("white space", rewritten(MIDDLE, ':"jwt"', ': "jwt"'), "NONCANONICAL_ENCODING"),
    Case("a key twice", rewritten(MIDDLE, '"auth":"jwt",', '"auth":"jwt","auth":"jwt",'), "NONCANONICAL_ENCODING"),
    Case("another number form", rewritten(MIDDLE, '"v":2,', '"v":2.0,'), "NONCANONICAL_ENCODING"),
    Case("a row changed without an entry", f"UPDATE memory_nodes SET content = 'never said' WHERE id = {NODE}", "STATE_RECONCILE_MISMATCH",
         refused=False),
    Case("a row without an entry", """INSERT INTO memory_nodes (tenant, id, owner, namespace, created_at, updated_at)
         VALUES ('ann', gen_random_uuid(), 'o', 'n', now(), now())""", "STATE_RECONCILE_MISMATCH", refused=False),
    Case("an entry without its row", f"DELETE FROM memory_nodes WHERE id = {NODE}", "STATE_RECONCILE_MISMATCH", refused=False),
    Case("a deletion undone", "UPDATE memory_nodes SET deleted_at = NULL WHERE deleted_at IS NOT NULL", "STATE_RECONCILE_MISMATCH", refused=False),
    Case("a stored checkpoint with another root", "UPDATE audit_checkpoints SET root = sha256(root) WHERE size = (SELECT min(size) FROM audit_checkpoints)",
         "PROJECTION_MISMATCH"),
]  # fmt: skip


def apply(connection: psycopg.Connection[Any], case: Case) -> int:
    """How many rows it touched."""
    with connection.transaction():
        connection.execute("SET LOCAL session_replication_role = replica")
        return sum(
            max(0, connection.execute(statement).rowcount) for statement in case.sql.split(";") if statement.strip()
        )


def judge(connection: psycopg.Connection[Any], log: RealLog) -> Verdict:
    dsn = make_conninfo(log.dsn, dbname=connection.info.dbname)
    with switched_on(connection, *FORGED):
        return verify_live(dsn, log.root, pinned=True, anchors=[log.anchor])


def every(findings: tuple[Finding, ...]) -> set[str]:
    return {code for f in findings for code in {f.code} | every(f.consequences)}


@pytest.mark.parametrize("case", [case for case in CASES if case.refused], ids=lambda case: case.name)
def test_the_runtime_role_is_refused(log: RealLog, case: Case) -> None:
    with psycopg.connect(make_conninfo(log.dsn, user="memory_app"), autocommit=True) as app:
        app.execute("SELECT set_config('memory.all_tenants', 'on', false)")
        for statement in case.sql.split(";"):
            with pytest.raises(errors.InsufficientPrivilege):
                app.execute(statement)


ERASURE = "payload gone"  # the owner may: the verifier then asks for the erasure's entry
GUARDED = [case for case in CASES if case.refused and case.name != ERASURE and "ALTER" not in case.sql]


@pytest.mark.parametrize("case", GUARDED, ids=lambda case: case.name)
def test_the_triggers_refuse_even_the_owner(log: RealLog, case: Case) -> None:
    """Also with session_replication_role = replica, which switches ordinary triggers off. A payload may be erased, not changed."""
    with psycopg.connect(log.dsn) as root:
        root.execute("SET session_replication_role = replica")
        with pytest.raises(errors.InsufficientPrivilege, match=r"append-only|takes nothing back"):
            root.execute(case.sql.split(";", maxsplit=1)[0])
        root.rollback()


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_each_forgery_has_its_name(log: RealLog, case: Case) -> None:
    with forged_copy(log) as connection:
        assert apply(connection, case), "the forgery touched nothing"
        verdict = judge(connection, log)
    render(verdict)
    assert (verdict.findings[0].code, verdict.exit_code) == (case.code, case.exit), verdict.findings


def test_the_log_as_it_stands(log: RealLog) -> None:
    with psycopg.connect(log.dsn) as connection:
        verdict = judge(connection, log)
    assert (verdict.findings, verdict.exit_code) == ((), 0)


@settings(max_examples=10, deadline=None, suppress_health_check=list(HealthCheck))
@given(chosen=st.lists(st.sampled_from(CASES), min_size=2, max_size=4, unique_by=lambda case: case.name))
def test_no_combination_passes(log: RealLog, chosen: list[Case]) -> None:
    with forged_copy(log) as connection:
        touched = 0
        for case in chosen:
            try:
                touched += apply(connection, case)
            except errors.IntegrityError:
                continue  # what it would change is changed already
        verdict = judge(connection, log)
    assert touched
    assert verdict.exit_code not in (0, 10), every(verdict.findings)
