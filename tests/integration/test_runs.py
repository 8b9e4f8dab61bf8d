"""The operator's frame: every run has its row, its entry in the log and its exit code, however it ends."""

from __future__ import annotations

import asyncio
import datetime as dt
import json
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memory_layer import config
from memory_layer.errors import DependencyUnavailable, LockHeld, NotFound, PolicyRefused
from memory_layer.ops import embedded, migrate, runs
from memory_layer.ops.first_start import ensure_keys, start_log
from memory_layer.ops.operate import Run, operate
from memory_layer.ops.report import VERDICTS, Finding, Judgement, Report, plain_json
from memory_layer.service.installation import Installation, open_installation
from memory_layer.telemetry.logs import get_logger
from tests.support.databases import new_database
from tests.support.runs import installed, perform
from tests.support.service import rows, verify

Database = Callable[[str], str]
Root = Callable[..., list[tuple[Any, ...]]]

ROOT = Path(__file__).resolve().parents[2]
FAULT = Finding("test.fault", "error", "fail", "something is wrong", "do something")


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def place(database: Database, tmp_path: Path, said: list[str]) -> Installation:
    """An installation that was started once: tables, keys, an open log."""
    settings = config.load({}, embeddings_provider="none")
    ensure_keys(tmp_path)
    asyncio.run(start_log(settings, tmp_path, database("memory_owner")))
    return installed(settings, tmp_path, database("memory_app"), said.append)


@pytest.fixture
def root(database: Database) -> Root:
    return lambda query, *params: rows(database("postgres"), query, params)


@pytest.fixture
def empty(cluster: embedded.Cluster) -> Iterator[str]:
    """The owner's DSN of a database with nothing in it."""
    with new_database(cluster, "template1") as made:
        yield made("memory_owner")


def nothing(run: Run) -> None:
    run.fact("looked at", 3)


def find_fault(run: Run) -> None:
    run.find(FAULT)


def entries(root: Root) -> list[tuple[str, dict[str, Any]]]:
    """(type, payload) of the operators' entries, in order."""
    found = root(
        "SELECT e.event_type, convert_from(p.payload, 'UTF8') FROM audit_events e JOIN audit_payloads p USING (log, seq)"
        " WHERE e.event_type LIKE 'ops.%%' AND e.event_type NOT LIKE 'ops.principal%%' ORDER BY e.seq"
    )
    return [(type_, json.loads(payload)) for type_, payload in found]


def only(place: Installation, verb: str) -> dict[str, Any]:
    (run,) = runs.recent(place.dsn, verb)
    return runs.find(place.dsn, uuid.UUID(run["runId"]))


def settle(place: Installation) -> int:
    async def once() -> int:
        async with open_installation(place.settings, place.folder, "committer") as log:
            return await runs.write_owed(log.postgres, log.committer)

    return asyncio.run(once())


# --- verdicts


@pytest.mark.parametrize(
    ("findings", "expected"),
    [
        ([], 0),
        ([("error", "pass"), ("error", "skip"), ("warning", "fail"), ("info", "unavailable")], 0),
        ([("error", "pass"), ("error", "fail")], 1),
        ([("error", "unavailable"), ("warning", "fail")], 3),
        ([("error", "unavailable"), ("error", "fail")], 1),
        ([("error", "refused"), ("error", "fail")], 4),
        ([("error", "locked")], 5),
        ([("error", "invalid")], 2),
    ],
)
def test_the_exit_code_follows_from_the_findings(findings: list[tuple[Any, Any]], expected: int) -> None:
    now = dt.datetime.now(dt.UTC)
    made = tuple(Finding(f"test.{n}", level, status, "text") for n, (level, status) in enumerate(findings))
    report = Report(uuid.uuid4(), "test", made, {}, now, now)
    assert (report.exit, report.verdict, report.succeeded) == (expected, VERDICTS[expected], expected == 0)
    assert report.to_json()["verdict"] == VERDICTS[expected]


def test_levels_and_statuses_are_closed_lists() -> None:
    with pytest.raises(ValueError, match="no level fatal"):
        Finding("test.x", "fatal", "fail", "text")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="no status failed"):
        Finding("test.x", "error", "failed", "text")  # type: ignore[arg-type]


@given(
    st.recursive(
        st.none()
        | st.booleans()
        | st.integers()
        | st.floats()
        | st.text(st.characters())
        | st.uuids()
        | st.datetimes(),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(st.characters()), inner, max_size=3),
        max_leaves=10,
    )
)
def test_any_fact_becomes_json_that_postgres_takes(value: Any) -> None:
    text = json.dumps(plain_json(value), allow_nan=False, ensure_ascii=False)
    assert "\\u0000" not in text
    text.encode("utf-8")


# --- how a run ends


def test_a_run_that_is_fine(place: Installation, root: Root, said: list[str]) -> None:
    report = perform(place, "test-fine", {"deep": True}, nothing)
    assert (report.exit, report.verdict) == (0, "ok")
    kept = only(place, "test-fine")
    assert (kept["verdict"], kept["exit"], kept["arguments"], kept["evidence"]) == ("ok", 0, {"deep": True}, "ok")
    assert kept["report"] == report.to_json()
    ((type_, payload),) = entries(root)
    assert type_ == "ops.test-fine.succeeded"
    assert (payload["runId"], payload["verdict"], payload["exit"]) == (str(report.run_id), "ok", 0)
    assert payload["finishedAt"] == kept["finishedAt"]
    assert said == [f"run {report.run_id}"]
    assert verify(place.dsn, place.folder).findings == ()


def test_a_run_with_findings_fails(place: Installation, root: Root) -> None:
    report = perform(place, "test-faulty", {}, find_fault)
    assert (report.exit, report.verdict) == (1, "findings")
    assert [type_ for type_, _ in entries(root)] == ["ops.test-faulty.failed"]
    assert only(place, "test-faulty")["report"]["findings"] == [
        {"id": "test.fault", "level": "error", "status": "fail", "finding": "something is wrong", "hint": "do something",
         "evidence": {}}
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("error", "exit_code", "finding"),
    [
        (DependencyUnavailable("the disk is full"), 3, "error.dependency-unavailable"),
        (PolicyRefused("not here"), 4, "error.policy-refused"),
        (ZeroDivisionError("nobody foresaw\0 this \ud800"), 3, "error.unexpected"),
    ],
)
def test_what_a_verb_raises_is_recorded_and_raised_again(
    place: Installation, root: Root, error: Exception, exit_code: int, finding: str
) -> None:
    def work(run: Run) -> None:
        run.find(Finding("test.before", "error", "pass", "it began well"))
        run.own = Judgement("SPLENDID", 0, True)
        raise error

    with pytest.raises(type(error)):
        perform(place, "test-raise", {}, work)
    kept = only(place, "test-raise")
    assert (kept["exit"], kept["verdict"]) == (exit_code, VERDICTS[exit_code])
    assert [f["id"] for f in kept["report"]["findings"]] == ["test.before", finding]
    assert [type_ for type_, _ in entries(root)] == ["ops.test-raise.failed"]


def test_a_verb_with_verdicts_of_its_own_keeps_its_exit_code(place: Installation, root: Root) -> None:
    def work(run: Run) -> None:
        run.find(FAULT)
        run.own = Judgement("TAMPERED", 40, False)

    report = perform(place, "test-own", {}, work)
    assert (report.exit, report.verdict) == (40, "TAMPERED")
    assert (only(place, "test-own")["exit"], entries(root)[0][0]) == (40, "ops.test-own.failed")


@pytest.mark.parametrize("verb", ["", "Doctor", "drill dr", "x" * 49, "9lives", "ops.x"])
def test_a_verb_that_the_log_cannot_name_never_runs(place: Installation, verb: str) -> None:
    with pytest.raises(ValueError, match="no name for a verb"):
        perform(place, verb, {}, lambda run: pytest.fail("it ran"))


KILLED = """
import asyncio, os, signal, sys
from pathlib import Path
from memory_layer import config
from memory_layer.ops.operate import operate
from tests.support.runs import installed

def work(run):
    print(run.id, flush=True)
    sys.stdin.readline()
    os.kill(os.getpid(), signal.SIGKILL)

place = installed(config.load({}, embeddings_provider="none"), Path(sys.argv[2]), sys.argv[1], print)
asyncio.run(operate(place, "test-killed", {}, work))
"""


def test_a_killed_run_is_shown_as_interrupted_and_recorded_in_the_log(place: Installation, root: Root) -> None:
    child = subprocess.Popen(
        [sys.executable, "-c", KILLED, place.dsn, str(place.folder)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT,
    )  # fmt: skip
    assert child.stdin is not None
    assert child.stdout is not None
    run_id = child.stdout.readline().strip()
    assert (only(place, "test-killed")["runId"], only(place, "test-killed")["verdict"]) == (run_id, "running")
    assert settle(place) == 0
    child.communicate("go\n", 30)
    until(lambda: only(place, "test-killed")["verdict"] == "interrupted")
    assert root("SELECT finished_at, report FROM ops_runs") == [(None, None)]
    assert settle(place) == 1
    assert settle(place) == 0
    ((type_, payload),) = entries(root)
    assert (type_, payload["verdict"], payload["runId"]) == ("ops.test-killed.failed", "interrupted", run_id)
    kept = only(place, "test-killed")
    assert (kept["verdict"], kept["evidence"], kept["seq"]) == ("interrupted", "ok", 1)


BLOCKED = """
import asyncio, sys, time
from pathlib import Path
from memory_layer import config
from memory_layer.ops.operate import operate
from tests.support.runs import installed

def work(run):
    print(run.id, flush=True)
    time.sleep(60)

place = installed(config.load({}, embeddings_provider="none"), Path(sys.argv[2]), sys.argv[1], print)
asyncio.run(operate(place, "test-blocked", {}, work))
"""


def test_ctrl_c_ends_work_that_never_yields(place: Installation) -> None:
    child = subprocess.Popen(
        [sys.executable, "-c", BLOCKED, place.dsn, str(place.folder)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT,
    )  # fmt: skip
    assert child.stdout is not None
    run_id = child.stdout.readline().strip()
    child.send_signal(signal.SIGINT)
    _, err = child.communicate(timeout=30)
    assert err.rstrip().endswith("KeyboardInterrupt")
    until(lambda: only(place, "test-blocked")["verdict"] == "interrupted")
    assert only(place, "test-blocked")["runId"] == run_id


def test_one_that_was_taken_for_dead_and_comes_back_has_both_entries(place: Installation, root: Root) -> None:
    def work(run: Run) -> None:
        root("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'memoryctl'")
        until(lambda: only(place, "test-lost")["verdict"] == "interrupted")
        thread = threading.Thread(target=settle, args=(place,))
        thread.start()
        thread.join(60)

    report = perform(place, "test-lost", {}, work)
    assert report.exit == 0
    assert [(type_, payload["verdict"]) for type_, payload in entries(root)] == [
        ("ops.test-lost.failed", "interrupted"),
        ("ops.test-lost.succeeded", "ok"),
    ]
    assert only(place, "test-lost")["evidence"] == "ok"


# --- locks


def test_a_lock_that_another_run_holds_is_exit_5(place: Installation, root: Root) -> None:
    async def outer(run: Run) -> None:
        with pytest.raises(LockHeld, match="another run holds the lock `drill`") as refused:
            await operate(place, "test-inner", {}, lambda run: pytest.fail("it ran"), lock="drill")
        assert refused.value.exit_code == 5
        await operate(place, "test-other", {}, nothing, lock="backup")
        await operate(place, "test-unlocked", {}, nothing)

    perform(place, "test-outer", {}, outer, lock="drill")
    assert (only(place, "test-inner")["exit"], only(place, "test-inner")["verdict"]) == (5, "locked")
    assert perform(place, "test-after", {}, nothing, lock="drill").exit == 0
    assert [type_ for type_, _ in entries(root)] == [
        "ops.test-inner.failed", "ops.test-other.succeeded", "ops.test-unlocked.succeeded", "ops.test-outer.succeeded",
        "ops.test-after.succeeded",
    ]  # fmt: skip


def test_a_lock_that_was_lost_on_the_way_is_a_finding(place: Installation, root: Root) -> None:
    def work(run: Run) -> None:
        root("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'memoryctl'")

    report = perform(place, "test-lock", {}, work, lock="drill")
    assert (report.exit, [finding.id for finding in report.findings]) == (1, ["run.lock-lost"])
    assert only(place, "test-lock")["exit"] == 1


def test_what_the_work_logs_names_the_run(place: Installation, caplog: pytest.LogCaptureFixture) -> None:
    log = get_logger("memory_layer.test")

    async def work(run: Run) -> None:
        log.warning("before")
        await asyncio.to_thread(log.warning, "in a thread")

    report = perform(place, "test-log", {}, work)
    log.warning("afterwards")
    said = [(r.msg["event"], r.msg.get("run")) for r in caplog.records if r.name == "memory_layer.test"]
    assert said == [("before", report.run_id), ("in a thread", report.run_id), ("afterwards", None)]


# --- where it cannot be recorded


def test_before_there_is_a_database_it_runs_and_says_so(place: Installation, said: list[str]) -> None:
    nowhere = installed(place.settings, place.folder, None, said.append)
    assert perform(nowhere, "test-early", {}, nothing, lock="drill").exit == 0
    assert "there is no database yet" in said[-1]


def test_on_an_empty_database_the_entry_is_owed_until_the_first_start(
    empty: str, tmp_path: Path, said: list[str]
) -> None:
    place = installed(config.load({}, embeddings_provider="none"), tmp_path, empty, said.append)
    report = perform(place, "migrate-apply", {}, lambda run: run.fact("applied", migrate.apply(empty)))
    assert report.exit == 0
    assert "not in the audit log" in said[-1]
    kept = only(place, "migrate-apply")
    assert (kept["verdict"], kept["evidence"]) == ("ok", "owed")
    assert kept["report"]["facts"]["applied"] == [m.version for m in migrate.migrations()]
    ensure_keys(tmp_path)
    asyncio.run(start_log(place.settings, tmp_path, empty))
    assert settle(place) == 1
    assert only(place, "migrate-apply")["evidence"] == "ok"


def test_a_verb_that_ends_with_an_empty_database_leaves_no_row_and_says_so(
    empty: str, tmp_path: Path, said: list[str]
) -> None:
    place = installed(config.load({}, embeddings_provider="none"), tmp_path, empty, said.append)
    assert perform(place, "test-early", {}, nothing, lock="x").exit == 0
    assert "no tables yet" in said[-1]


def test_an_entry_that_cannot_be_written_fails_the_run_loudly(place: Installation, root: Root, said: list[str]) -> None:
    keys = place.folder / "keys"
    keys.rename(place.folder / "away")
    report = perform(place, "test-keyless", {}, nothing)
    assert (report.exit, report.findings[-1].id) == (3, "run.record")
    assert "There is no signing key" in said[-1]
    kept = only(place, "test-keyless")
    assert (kept["exit"], kept["evidence"]) == (3, "owed")
    assert entries(root) == []
    (place.folder / "away").rename(keys)
    assert perform(place, "test-next", {}, nothing).exit == 0  # and pays what is owed
    assert [type_ for type_, _ in entries(root)] == ["ops.test-keyless.failed", "ops.test-next.succeeded"]


def test_a_graver_exit_and_one_of_its_own_stay_when_the_entry_fails(place: Installation) -> None:
    (place.folder / "keys").rename(place.folder / "away")
    assert perform(place, "test-faulty", {}, find_fault).exit == 1

    def judged(run: Run) -> None:
        run.own = Judgement("CONSISTENT_UNANCHORED", 10, True)

    assert perform(place, "test-own", {}, judged).exit == 10


def test_a_database_that_does_not_answer_is_loud(place: Installation, said: list[str]) -> None:
    nowhere = installed(place.settings, place.folder, "postgresql://x@127.0.0.1:1/x", said.append)
    assert perform(nowhere, "test-nowhere", {}, nothing).exit == 3
    with pytest.raises(DependencyUnavailable, match="the lock `drill` cannot be taken"):
        perform(nowhere, "test-nowhere", {}, lambda run: pytest.fail("it ran"), lock="drill")


def test_two_that_pay_at_once_pay_once(place: Installation, root: Root) -> None:
    (place.folder / "keys").rename(place.folder / "away")
    for _ in range(5):
        perform(place, "test-owing", {}, nothing)
    (place.folder / "away").rename(place.folder / "keys")
    threads = [threading.Thread(target=settle, args=(place,)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(entries(root)) == 5
    assert root("SELECT count(*) FROM ops_runs WHERE audit_id IS NULL") == [(0,)]
    assert verify(place.dsn, place.folder).findings == ()


def test_a_row_that_the_log_cannot_tell_of_holds_up_no_other(place: Installation, root: Root) -> None:
    root("INSERT INTO ops_runs (id, verb, started_at) VALUES (%s, 'no verb', now())", uuid.UUID(int=1))
    assert perform(place, "test-fine", {}, nothing).exit == 0


# --- what is kept


def test_a_report_that_was_changed_behind_its_entry_is_noticed(place: Installation, root: Root) -> None:
    report = perform(place, "test-faulty", {}, find_fault)
    root("UPDATE ops_runs SET report = jsonb_set(report, '{findings}', '[]') WHERE id = %s", report.run_id)
    assert only(place, "test-faulty")["evidence"] == "differs"


def test_runs_are_listed_newest_first_and_missing_ones_are_named(place: Installation) -> None:
    for number in range(4):
        perform(place, f"test-{'odd' if number % 2 else 'even'}", {"number": number}, nothing)
    assert [run["arguments"]["number"] for run in runs.recent(place.dsn, limit=3)] == [3, 2, 1]
    assert [run["arguments"]["number"] for run in runs.recent(place.dsn, "test-even")] == [2, 0]
    with pytest.raises(NotFound, match="there is no run"):
        runs.find(place.dsn, uuid.uuid4())


def test_an_older_schema_is_named(empty: str) -> None:
    with pytest.raises(DependencyUnavailable, match="migrate apply"):
        runs.recent(empty)


def until(true: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.02)
