"""`memoryctl runs`, and the verbs that leave a run behind, as a shell sees them."""

from __future__ import annotations

import datetime as dt
import json
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg
import pytest

from memory_layer.cli import main, render, reports
from memory_layer.ops.report import Finding, Report
from memory_layer.worker.schedule import JOBS
from tests.support.product import Product, clean_environment, run_ctl

Database = Callable[[str], str]


def ctl_json(product: Product, *words: str, code: int = 0) -> Any:
    done = product.ctl(*words, "--data", str(product.data), "--json")
    assert done.returncode == code, done.stderr
    return json.loads(done.stdout)


def test_audit_verify_is_kept_audited_and_printed_again(product: Product) -> None:
    done = product.ctl("audit", "verify", "--data", str(product.data), "--json")
    assert done.returncode == 10
    verdict = json.loads(done.stdout)
    newest = ctl_json(product, "runs", "list", "--verb", "audit-verify", "--limit", "1")[0]
    assert f"run {newest['runId']}" in done.stderr
    assert (newest["verdict"], newest["exit"]) == ("CONSISTENT_UNANCHORED", 10)
    shown = ctl_json(product, "runs", "show", newest["runId"])
    assert shown["report"]["facts"]["verdict"] == verdict
    assert shown["evidence"] == "ok"
    with product.owner() as connection:
        row = connection.execute(
            "SELECT event_type, convert_from(entry, 'UTF8') FROM audit_events WHERE id = %s", [newest["auditId"]]
        ).fetchone()
    assert row is not None
    entry = json.loads(str(row[1]))
    assert row[0] == "ops.audit-verify.succeeded"
    assert (entry["tenant"], entry["auth"], entry["request_id"]) == (None, "system", newest["runId"])
    text = product.ctl("runs", "show", newest["runId"], "--data", str(product.data))
    assert text.returncode == 0
    assert f"verdict CONSISTENT_UNANCHORED   exit 10   run {newest['runId']}" in text.stdout
    assert "as the audit log has it" in text.stdout


def test_the_list_is_tab_separated_in_a_pipe(product: Product) -> None:
    product.ctl("audit", "verify", "--data", str(product.data))
    done = product.ctl("runs", "list", "--data", str(product.data))
    assert done.returncode == 0
    header, *lines = done.stdout.splitlines()
    assert header.split("\t") == ["run", "verb", "started", "took", "verdict", "exit", "audit"]
    cells = lines[0].split("\t")
    assert (cells[1], cells[4], cells[5]) == ("audit-verify", "CONSISTENT_UNANCHORED", "10")
    assert cells[6].isdigit()


def test_the_schedule_of_a_running_product(product: Product) -> None:
    deadline = time.monotonic() + 60
    while True:
        done = product.ctl("runs", "schedule", "--data", str(product.data), "--json")
        jobs = json.loads(done.stdout)
        regular = [job for job in jobs if job["runs"].startswith("every")]  # the others have an hour of their own
        if all(job["lastSuccess"] for job in regular):
            break
        assert time.monotonic() < deadline, jobs
        time.sleep(0.2)
    assert {job["job"] for job in jobs} == {job.name for job in JOBS}
    assert {job["state"] for job in regular} <= {"fine", "running"}
    assert done.returncode == 0
    assert len({job["leader"] for job in regular}) == 1
    shown = product.ctl("runs", "schedule", "--data", str(product.data))
    assert shown.stdout.splitlines()[0].split("\t") == [
        "job", "runs", "state", "last success", "next due", "failures", "last error",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("change", "state", "code"),
    [
        ("failures = 3, last_error = 'no disk'", "failing", 1),
        ("next_due = now() - interval '1 day'", "overdue", 1),
        ("failures = 1, last_finished = NULL", "running", 0),
        ("failures = 0", "fine", 0),
    ],
)
def test_a_job_that_fails_or_is_late_is_exit_1(
    database: Database, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], change: str, state: str,
    code: int,
) -> None:  # fmt: skip
    with psycopg.connect(database("postgres"), autocommit=True) as connection:
        connection.execute(
            "INSERT INTO ops_schedule VALUES ('expiry', 'host:1', now(), now(), now(), NULL, 0, now() + interval '1 minute')"
        )
        connection.execute(f"UPDATE ops_schedule SET {change}")  # type: ignore[arg-type]
    monkeypatch.setenv("DATABASE_URL", database("memory_app"))
    with pytest.raises(SystemExit) as ended:
        main(["runs", "schedule", "--json"])
    jobs = {job["job"]: job for job in json.loads(capsys.readouterr().out)}
    assert (jobs["expiry"]["state"], ended.value.code) == (state, code)
    assert jobs["heartbeat"]["state"] == "never run"


def test_migrate_apply_tells_the_log_of_it(product: Product) -> None:
    environment = clean_environment() | {"DATABASE_URL": product.database.replace("memory_app@", "memory_owner@")}
    done = run_ctl("migrate", "apply", "--data", str(product.data), "--json", env=environment)
    assert (done.returncode, json.loads(done.stdout)["applied"]) == (0, []), done.stderr
    assert ctl_json(product, "runs", "show", json.loads(done.stdout)["runId"])["evidence"] == "ok"
    # Without the key there can be no entry: what was asked for is done, and the shell is told that it is not on record yet.
    keyless = run_ctl("migrate", "apply", "--data", str(product.data / "elsewhere"), "--json", env=environment)
    assert keyless.returncode == 3
    assert "not in the audit log" in keyless.stderr
    assert json.loads(keyless.stdout)["applied"] == []
    assert not (product.data / "elsewhere").exists()


def test_what_cannot_be_asked_for(product: Product) -> None:
    for words, code, message in (
        (("show", "x"), 2, "is no run's id"),
        (("show", str(uuid.uuid4())), 1, "there is no run"),
        (("list", "--limit", "0"), 2, "--limit takes a number"),
    ):
        done = product.ctl("runs", *words, "--data", str(product.data))
        assert (done.returncode, done.stdout) == (code, "")
        assert message in done.stderr


def test_an_auditor_who_may_only_read_gets_the_verdict_all_the_same(product: Product, tmp_path: Path) -> None:
    with product.owner() as owner:
        owner.execute("DROP ROLE IF EXISTS auditor")
        owner.execute("CREATE ROLE auditor")
        owner.execute("GRANT pg_read_all_data TO auditor")
    reader = product.database.replace("memory_app@", "postgres@") + "&options=-c%20role%3Dauditor"
    environment = clean_environment() | {"DATABASE_URL": reader}
    root = product.data / "trust-root.json"
    done = run_ctl("audit", "verify", "--trust-root", str(root), "--data", str(tmp_path), "--json", env=environment)
    assert (done.returncode, json.loads(done.stdout)["exit"]) == (10, 10), done.stderr
    assert "not in the audit log" in done.stderr
    assert list(tmp_path.iterdir()) == []


# --- the renderer


def made(*findings: Finding, **facts: Any) -> dict[str, Any]:
    now = dt.datetime(2026, 11, 23, 12, tzinfo=dt.UTC)
    return Report(uuid.UUID(int=7), "test", findings, facts, now, now).to_json()


def test_faults_come_first_and_the_verdict_last(capsys: pytest.CaptureFixture[str]) -> None:
    report = made(
        Finding("a.fine", "error", "pass", "it is there"),
        Finding("b.broken", "error", "fail", "it is\tnot there", "make it"),
        count=3,
        steps={"reset": 1.5, "replay": 2},
        tables=["a", "b"],
        deep={"a": {"b": 1}},
    )
    assert reports.show(report, as_json=False) == 1
    assert capsys.readouterr().out.splitlines() == [
        "count   3",
        "steps   reset 1.5000, replay 2",
        "tables  a, b",
        'deep    a {"b": 1}',
        "status\tlevel\tid\tfinding\thint",
        "fail\terror\tb.broken\tit is not there\tmake it",
        "pass\t\ta.fine\tit is there\t",
        "verdict findings   exit 1   run 00000000-0000-0000-0000-000000000007",
    ]
    assert reports.show(report, as_json=True) == 1
    assert json.loads(capsys.readouterr().out) == report


def test_a_terminal_gets_colours_and_no_control_characters(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(render.sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    report = made(
        Finding("b.broken", "error", "fail", "it is \x1b[2Jgone", "make it"), Finding("c.odd", "warning", "fail", "odd")
    )
    assert reports.show(report, as_json=False) == 1
    out = capsys.readouterr().out
    assert "\x1b[1;31mfail" in out
    assert "\x1b[33mwarning" in out
    assert "\x1b[2J" not in out
    assert "make it" in out
