"""What every operator's command and every periodic job runs in: an id, a row in ``ops_runs``, a lock where it is asked for, and an
entry in the log.

The work is a function that is given a Run, puts findings and facts on it, and raises to fail; ``operate`` does the rest:

    async def look(run: Run) -> None:
        installation = await run.installation.need("postgres", "vectors")
        run.fact("rows", await count(installation, installation.progress))

    report = await operate(installation, "vectors-count", {}, look, lock="vectors")

What happens to the record when something is missing is decided here (``docs/decisions/0008-operators-frame.md``):

- no database, no tables or no log yet: the work is done, the operator reads so, and nothing fails. The row is written at the end if
  there are tables by then; its entry is owed, and written by the next process that opens the log (``runs.write_owed``).
- anything else that keeps row or entry from being written: the work is done, the operator reads so, and the exit is 3.
- a run that was killed or lost its power keeps its row without an end: ``interrupted``, which ``write_owed`` puts into the log too. A
  run that is still going is recognised by a lock that its session holds.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import re
import uuid
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import psycopg
from psycopg import Connection
from psycopg.rows import DictRow

from memory_layer.errors import DependencyUnavailable, LockHeld, MemoryLayerError
from memory_layer.model import uuid7
from memory_layer.ops import runs
from memory_layer.ops.blocking import blocking
from memory_layer.ops.report import Finding, Judgement, Report, dumps, finding_of, plain_json
from memory_layer.service.installation import Installation, open_installation
from memory_layer.sql import queries
from memory_layer.telemetry.logs import bound, get_logger

_SQL = queries("operations")
_VERB = re.compile(r"[a-z][a-z0-9_-]{0,47}")  # as in an entry's type (audit/entry.py, OPS_TYPE)

log = get_logger("memory_layer.runs")


@dataclass(slots=True)
class Run:
    """What the work is given. ``own``: the verdict of a verb that has verdicts of its own."""

    id: uuid.UUID
    verb: str
    arguments: Mapping[str, Any]
    started_at: dt.datetime
    installation: Installation
    findings: list[Finding] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)
    own: Judgement | None = None

    def find(self, *findings: Finding) -> None:
        self.findings += findings

    def fact(self, name: str, value: Any) -> None:
        self.facts[name] = value


Work = Callable[[Run], Awaitable[None] | None]
"""A plain function blocks the event loop while it works, as a command may, which is alone on its loop."""


async def operate(
    installation: Installation, verb: str, arguments: Mapping[str, Any], work: Work, *, lock: str | None = None
) -> Report:
    """Do the work on record. Cancelled or killed, the run is an interrupted one.

    ``arguments`` are stored: never a secret among them. ``lock``: LockHeld while another run holds the lock of that name. Whatever
    ``work`` raises is recorded and raised again.
    """
    if not _VERB.fullmatch(verb):
        raise ValueError(f"{verb!r} is no name for a verb in the log")
    run = Run(uuid7(), verb, plain_json(arguments), dt.datetime.now(dt.UTC), installation)
    failure: Exception | None = None
    record = _Record(installation, run)
    try:
        await asyncio.to_thread(record.start)
        try:
            if lock is not None:
                await asyncio.to_thread(record.lock, lock)
            with bound(run=run.id):  # in every line of the log that the work causes
                with blocking():  # a plain function does all of its work here
                    working = work(run)
                if working is not None:
                    await working
        except Exception as error:  # noqa: BLE001 - recorded, and raised again below
            failure, run.own = error, None
            run.find(finding_of(error))
        report = await record.finish()
    finally:
        record.close()
    if failure is not None:
        raise failure
    return report


class _Record:
    """One run's place in ``ops_runs``: a session that holds the run's lock for as long as it lasts."""

    def __init__(self, installation: Installation, run: Run) -> None:
        self._installation, self._run = installation, run
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
            if session is None or not runs.tables(session)["runs"]:
                return
            runs.try_lock(session, f"run {run.id}")
            facts = {"id": run.id, "verb": run.verb, "arguments": dumps(run.arguments), "started": run.started_at}
            session.execute(_SQL["start_run"], facts)
        except psycopg.Error as error:
            self._installation.say(f"run {run.id} could not be written down at its start: {runs.text_of(error)}")

    def lock(self, name: str) -> None:
        """Take the lock that keeps two runs apart. Raises LockHeld, or DependencyUnavailable without a database to hold it."""
        if self._installation.settings.database_url is None:
            return
        self._lock = name
        try:
            session = self._open()
            if session is None or not runs.try_lock(session, f"verb {name}"):
                raise LockHeld(
                    f"another run holds the lock `{name}`. `memoryctl runs list` shows it; try again when it is done."
                )
        except psycopg.Error as error:
            raise DependencyUnavailable(f"the lock `{name}` cannot be taken: {runs.text_of(error)}") from error

    async def finish(self) -> Report:
        """Write down what the run came to, in its row and in the log."""
        run = self._run
        if self._lock is not None and not await asyncio.to_thread(self._answers):
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
            missing = await asyncio.to_thread(self._keep, report)
            if not missing and self._installation.seals:
                await self._write_owed()
        except Exception as error:  # the work is done: no failure to write it down may take its outcome away
            if not isinstance(error, (psycopg.Error, MemoryLayerError, OSError)):
                log.exception("a run could not be stored", run=run.id)
            reason = error.message if isinstance(error, MemoryLayerError) else runs.text_of(error)
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
                await asyncio.to_thread(self._store, report)
            self._say(f"run {run.id}: {finding.finding}")
        else:
            owed = "" if self._installation.seals else ": the worker writes its entry into the audit log"
            self._say(f"run {run.id}" + (f": not in the audit log, {missing}" if missing else owed))
        return report

    async def _write_owed(self) -> None:
        if self._installation.is_open("committer"):
            await runs.write_owed(self._installation.postgres, self._installation.committer)
            return
        async with open_installation(self._installation.settings, self._installation.folder, "committer") as opened:
            await runs.write_owed(opened.postgres, opened.committer)

    def _say(self, line: str) -> None:
        """Nobody may be listening any more; the run came to what it came to."""
        try:
            self._installation.say(line)
        except Exception:
            log.exception("a line of a run could not be shown", line=line)

    def _keep(self, report: Report) -> str:
        """Store the row; why there can be no entry yet, "" where there can."""
        session = self._open()
        if session is None:
            return "there is no database yet, or none that runs: set DATABASE_URL, or start `memoryctl up`."
        there = runs.tables(session)
        if not there["runs"]:
            return "this database has no tables yet."
        self._store(report)
        if not (there["entries"] and there["logs"]):
            return "this database's schema is older than that. `memoryctl migrate apply` brings it up to date."
        row = session.execute(_SQL["log_is_open"]).fetchone()
        if row is None or not row["open"]:
            return "which the first start opens; its entry is written then."
        return ""

    def _store(self, report: Report) -> None:
        session = self._open()
        if session is None or not (there := runs.tables(session))["runs"]:
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
        if self._installation.settings.database_url is None:
            return None
        if not self._answers():
            self._session = runs.connect(self._installation.settings.database_url)
        return self._session

    def _answers(self) -> bool:
        if self._session is None:
            return False
        try:
            self._session.execute("SELECT 1")
        except psycopg.Error:
            return False
        return True
