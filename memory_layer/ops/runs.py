"""The frame that every operator's verb runs in: an id, a row in ``ops_runs``, a lock where it is asked for, and an entry in the log.

A verb is a function that is given a Run, puts findings and facts on it, and raises to fail; ``perform`` does the rest:

    def check(run: Run) -> None:
        run.fact("applied", migrate.apply(dsn))

    report = perform(place, "migrate-apply", {}, check)

What becomes of the record when something is missing is decided here once (``docs/decisions/0008-operators-frame.md``):

- no database, no tables or no log yet: the verb runs, the operator is told, and nothing fails. The row is written at the end if
  there are tables by then; its entry is owed, and written by whoever next opens the log (``settle``).
- anything else that keeps row or entry from being written: the verb runs, the operator is told, and the exit is 3.
- a run that ends without having said so (killed, power cut) keeps its row without an end: ``interrupted``, which ``settle`` tells
  the log too. A running one is known by a lock that its session holds.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import hashlib
import json
import re
import uuid
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import psycopg
from psycopg import Connection
from psycopg.rows import DictRow, dict_row

from memory_layer.config import Settings
from memory_layer.errors import DependencyUnavailable, LockHeld, MemoryLayerError, NotFound, ValidationError
from memory_layer.model import SYSTEM_TENANT, format_time, format_time_or_none, uuid7
from memory_layer.ops.report import Finding, Judgement, Report, dumps, finding_of, plain_json
from memory_layer.service import open_committer
from memory_layer.service.actions.log import Record
from memory_layer.service.commit import Change, Committer, Idempotency, request_hash
from memory_layer.service.system import known_caller
from memory_layer.sql import queries
from memory_layer.stores.postgres import ALL_TENANTS, Postgres
from memory_layer.telemetry.logs import get_logger

INTERRUPTED: Final = "interrupted"
RUNNING: Final = "running"
PIECE = 100  # owed entries, read at a time

_SQL = queries("operations")
_VERB = re.compile(r"[a-z][a-z0-9_-]{0,47}")  # as in an entry's type (audit/entry.py, OPS_TYPE)

log = get_logger("memory_layer.runs")


@dataclass(frozen=True, slots=True)
class Place:
    """Where a verb runs. ``dsn``: the database that keeps runs and log, None where there is none yet. ``say``: talk, a line."""

    settings: Settings
    folder: Path
    dsn: str | None
    say: Callable[[str], None]


@dataclass(slots=True)
class Run:
    """What a verb is given to tell its findings to. ``own``: the verdict of a verb that has verdicts of its own."""

    id: uuid.UUID
    verb: str
    arguments: Mapping[str, Any]
    started_at: dt.datetime
    findings: list[Finding] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)
    own: Judgement | None = None

    def find(self, finding: Finding) -> None:
        self.findings.append(finding)

    def fact(self, name: str, value: Any) -> None:
        self.facts[name] = value


def perform(
    place: Place, verb: str, arguments: Mapping[str, Any], work: Callable[[Run], None], *, lock: str | None = None
) -> Report:
    """Do a verb's work in the frame. Not for use inside an event loop: an async verb runs its own, in ``work``.

    ``arguments`` are stored: never a secret among them. ``lock``: LockHeld while another run holds the lock of that name. Whatever
    ``work`` raises is recorded and raised again.
    """
    run = _new_run(verb, arguments)
    failure: Exception | None = None
    with contextlib.closing(_Ledger(place, run)) as ledger:
        ledger.start()
        try:
            if lock is not None:
                ledger.lock(lock)
            work(run)
        except Exception as error:  # noqa: BLE001 - recorded, and raised again below
            failure, run.own = error, None
            run.find(finding_of(error))
        report = ledger.finish()
    if failure is not None:
        raise failure
    return report


async def perform_async(
    place: Place,
    verb: str,
    arguments: Mapping[str, Any],
    work: Callable[[Run], Awaitable[None]],
    *,
    lock: str | None = None,
) -> Report:
    """The same inside an event loop, for what the worker does by itself. Cancelled, the run is an interrupted one."""
    run = _new_run(verb, arguments)
    failure: Exception | None = None
    ledger = _Ledger(place, run)
    try:
        await asyncio.to_thread(ledger.start)
        try:
            if lock is not None:
                await asyncio.to_thread(ledger.lock, lock)
            await work(run)
        except Exception as error:  # noqa: BLE001 - recorded, and raised again below
            failure, run.own = error, None
            run.find(finding_of(error))
        report = await asyncio.to_thread(ledger.finish)
    finally:
        ledger.close()
    if failure is not None:
        raise failure
    return report


def _new_run(verb: str, arguments: Mapping[str, Any]) -> Run:
    if not _VERB.fullmatch(verb):
        raise ValueError(f"{verb!r} is no name for a verb in the log")
    return Run(uuid7(), verb, plain_json(arguments), dt.datetime.now(dt.UTC))


class _Ledger:
    """One run's place in ``ops_runs``: a session that holds the run's lock for as long as it lasts."""

    def __init__(self, place: Place, run: Run) -> None:
        self._place, self._run = place, run
        self._session: Connection[DictRow] | None = None
        self._lock: str | None = None

    def close(self) -> None:
        if self._session is not None:
            with contextlib.suppress(psycopg.Error):
                self._session.close()
            self._session = None

    def start(self) -> None:
        """Write the run down before it does anything, where that is possible yet."""
        run = self._run
        try:
            session = self._open()
            if session is None or not _ledger(session)["runs"]:
                return
            _locked(session, f"run {run.id}")
            facts = {"id": run.id, "verb": run.verb, "arguments": dumps(run.arguments), "started": run.started_at}
            session.execute(_SQL["start_run"], facts)
        except psycopg.Error as error:
            self._place.say(f"run {run.id} could not be written down at its start: {_text(error)}")

    def lock(self, name: str) -> None:
        """Take the lock that keeps two runs apart. Raises LockHeld, or DependencyUnavailable without a database to hold it."""
        if self._place.dsn is None:
            return
        self._lock = name
        try:
            session = self._open()
            if session is None or not _locked(session, f"verb {name}"):
                raise LockHeld(
                    f"another run holds the lock `{name}`. `memoryctl runs list` shows it; try again when it is done."
                )
        except psycopg.Error as error:
            raise DependencyUnavailable(f"the lock `{name}` cannot be taken: {_text(error)}") from error

    def finish(self) -> Report:
        """Write down what the run came to, and tell the log."""
        run = self._run
        if self._lock is not None and (self._session is None or not _answers(self._session)):
            found = "The session that held its lock was lost while it ran: another run may have worked beside it."
            run.find(Finding("run.lock-lost", "error", "fail", found, "See `memoryctl runs list`, and run it again."))
        report = Report(
            run.id,
            run.verb,
            tuple(run.findings),
            plain_json(run.facts),
            run.started_at,
            dt.datetime.now(dt.UTC),
            run.own,
        )
        try:
            missing = self._record(report)
        except Exception as error:  # the work is done: no failure to write it down may take its outcome away
            if not isinstance(error, (psycopg.Error, MemoryLayerError, OSError)):
                log.exception("a run could not be stored", run=run.id)
            reason = error.message if isinstance(error, MemoryLayerError) else _text(error)
            finding = Finding(
                "run.record",
                "error",
                "unavailable",
                f"What this run did is not in the audit log: {reason}",
                "A row in ops_runs is owed its entry, which the worker writes as soon as it can. `memoryctl runs show "
                f"{run.id}` tells when that is so; if there is no such run, keep this output.",
            )
            report = replace(report, findings=(*report.findings, finding))
            with contextlib.suppress(psycopg.Error):
                self._store(report)
            self._say(f"run {run.id}: {finding.finding}")
        else:
            self._say(f"run {run.id}" + (f": not in the audit log, {missing}" if missing else ""))
        return report

    def _say(self, line: str) -> None:
        """Nobody may be listening any more; the run came to what it came to."""
        try:
            self._place.say(line)
        except Exception:
            log.exception("a line of a run could not be shown", line=line)

    def _record(self, report: Report) -> str:
        """Store row and entry; what there is not yet, when there is something."""
        session = self._open()
        if session is None:
            return "there is no database yet."
        there = _ledger(session)
        if not there["runs"]:
            return "this database has no tables yet."
        self._store(report)
        if not (there["entries"] and there["logs"]):
            return "this database's schema is older than that. `memoryctl migrate apply` brings it up to date."
        row = session.execute(_SQL["log_is_open"]).fetchone()
        if row is None or not row["open"]:
            return "which the first start opens; its entry is written then."
        asyncio.run(_settle_alone(self._place))
        return ""

    def _store(self, report: Report) -> None:
        session = self._open()
        if session is None or not (there := _ledger(session))["runs"]:
            return
        facts = {
            "id": report.run_id,
            "verb": report.verb,
            "arguments": dumps(self._run.arguments),
            "started": report.started_at,
            "finished": report.finished_at,
            "verdict": report.verdict,
            "exit": report.exit,
            "report": dumps(report.to_json()),
        }
        with session.transaction():
            session.execute(_SQL["finish_run"], facts)
            if there["entries"]:
                session.execute(_SQL["owe_entry"], facts)

    def _open(self) -> Connection[DictRow] | None:
        if self._place.dsn is None:
            return None
        if self._session is None or not _answers(self._session):
            self._session = _connect(self._place.dsn)
        return self._session


def _connect(dsn: str) -> Connection[DictRow]:
    session = psycopg.connect(
        dsn, autocommit=True, connect_timeout=5, row_factory=dict_row, application_name="memoryctl"
    )
    session.execute(_SQL["session"])
    return session


def _answers(session: Connection[DictRow]) -> bool:
    try:
        session.execute("SELECT 1")
    except psycopg.Error:
        return False
    return True


def _ledger(session: Connection[DictRow]) -> DictRow:
    (row,) = session.execute(_SQL["ledger"]).fetchall()
    return row


def _locked(session: Connection[DictRow], name: str) -> bool:
    (row,) = session.execute(_SQL["try_lock"], {"name": f"memory-layer {name}"}).fetchall()
    return bool(row["held"])


def _text(error: Exception) -> str:
    return " ".join(str(error).split())


# --- the entries


async def _settle_alone(place: Place) -> None:
    assert place.dsn is not None  # noqa: S101 - narrows the type
    async with open_committer(place.settings, place.folder, place.dsn) as opened:
        await settle(opened.postgres, opened.committer)


async def settle(postgres: Postgres, committer: Committer) -> int:
    """Write the entry of every run that is owed one; how many were written. Any number may do it at once: each is written once."""
    written, after = 0, None
    while True:
        (owed,) = await postgres.fetch(ALL_TENANTS, (_SQL["owed_runs"], {"after": after, "limit": PIECE}))
        for row in owed:
            try:
                await _tell(postgres, committer, row)
                written += 1
            except ValidationError as error:
                log.exception("a run has no entry and cannot have one", run=row["id"], error=error.message)
        if len(owed) < PIECE:
            return written
        after = owed[-1]["id"]


async def _tell(postgres: Postgres, committer: Committer, row: DictRow) -> None:
    verdict = row["verdict"] or INTERRUPTED
    succeeded = row["report"] is not None and row["report"].get("succeeded") is True
    payload = {
        "runId": str(row["id"]),
        "verb": row["verb"],
        "arguments": row["arguments"],
        "startedAt": format_time(row["started_at"]),
        "finishedAt": format_time_or_none(row["finished_at"]),
        "verdict": verdict,
        "exit": row["exit_code"],
        "reportSha256": _digest(row["report"]),
    }
    type_ = f"ops.{row['verb']}.{'succeeded' if succeeded else 'failed'}"
    caller = await known_caller(postgres, "memoryctl", str(row["id"]))
    # The key makes it one entry for each report, however often it is tried and by how many.
    once = Idempotency(f"run {row['id']} {payload['reportSha256']}", request_hash(type_, row["id"]))
    outcome = await committer.submit(Change(caller, Record(type_, payload), once))
    assert outcome.receipt is not None  # noqa: S101 - a Record always has one
    facts = {"id": row["id"], "audit": outcome.receipt.id, "verdict": row["verdict"]}
    try:
        await postgres.run(SYSTEM_TENANT, (_SQL["audited_run"], facts))
    except Exception:  # the entry is there; the next look finds it by its key and notes it
        log.exception("the entry of a run is in the log, and its row does not name it yet", run=row["id"])


def _digest(report: Any) -> str | None:
    return None if report is None else hashlib.sha256(dumps(report).encode()).hexdigest()


# --- what is kept


def recent(dsn: str, verb: str | None = None, limit: int = 20) -> list[dict[str, Any]]:
    """The newest runs as JSON, newest first, without their reports; ``verdict`` is ``running`` or ``interrupted`` without an end."""
    with _reading(dsn) as session:
        return [_shape(row) for row in session.execute(_SQL["list_runs"], {"verb": verb, "id": None, "limit": limit})]


def find(dsn: str, run_id: uuid.UUID) -> dict[str, Any]:
    """One run with its report, and whether that is the one that the log speaks of: ``evidence`` is ``ok``, ``differs``, ``owed``, or
    ``unknown`` when the entry's payload is gone. Raises NotFound."""
    with _reading(dsn) as session:
        found = session.execute(_SQL["list_runs"], {"verb": None, "id": run_id, "limit": 1}).fetchone()
        kept = session.execute(_SQL["run_evidence"], {"id": run_id}).fetchone()
    if found is None or kept is None:
        raise NotFound(f"there is no run {run_id}. `memoryctl runs list` shows the newest.")
    evidence = "owed" if found["audit_id"] is None else "unknown"
    if found["audit_id"] is not None and kept["payload"] is not None:
        told = json.loads(kept["payload"])
        evidence = "ok" if told.get("reportSha256") == _digest(kept["report"]) else "differs"
    return _shape(found) | {"evidence": evidence, "report": kept["report"]}


def _shape(row: DictRow) -> dict[str, Any]:
    ended = row["finished_at"] is not None
    return {
        "runId": str(row["id"]),
        "verb": row["verb"],
        "arguments": row["arguments"],
        "verdict": row["verdict"] if ended else RUNNING if row["alive"] else INTERRUPTED,
        "exit": row["exit_code"],
        "startedAt": format_time(row["started_at"]),
        "finishedAt": format_time_or_none(row["finished_at"]),
        "auditId": None if row["audit_id"] is None else str(row["audit_id"]),
        "seq": row["seq"],
    }


def schedule(dsn: str) -> list[dict[str, Any]]:
    """What the worker wrote down of each periodic job; the rows of ``ops_schedule`` as they are."""
    with _reading(dsn) as session:
        return session.execute(_SQL["schedule"]).fetchall()


@contextlib.contextmanager
def _reading(dsn: str) -> Iterator[Connection[DictRow]]:
    try:
        with _connect(dsn) as session:
            yield session
    except (psycopg.errors.UndefinedTable, psycopg.errors.UndefinedColumn) as error:
        raise DependencyUnavailable(
            "this database's schema is older than this command. `memoryctl migrate apply` brings it up to date."
        ) from error
    except psycopg.Error as error:
        raise DependencyUnavailable(f"Postgres does not answer: {_text(error)}") from error
