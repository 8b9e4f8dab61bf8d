"""`memoryctl runs`: what operators did, and what the worker does by itself."""

from __future__ import annotations

import datetime as dt
from typing import Annotated, Any

from cyclopts import App, Parameter

from memory_layer.cli import command, render, reports
from memory_layer.cli.access import data_folder, database_of
from memory_layer.cli.options import AsJson, Data, Limit
from memory_layer.model import format_time

runs = App(name="runs", help="What operators did, and what the worker does by itself.")

OVERDUE = dt.timedelta(minutes=3)  # that a worker may be late, or may have written nothing down


@runs.command(name="list")
def list_(
    *,
    verb: Annotated[str | None, Parameter(help="Only runs of this verb, such as migrate-apply.")] = None,
    limit: Limit = 20,
    data: Data = None,
    as_json: AsJson = False,
) -> int:
    """List runs, the newest first.

    `interrupted` ended without saying so: it was killed, or the machine was. `audit` is the number of the run's entry in the log;
    one that is `owed` is written by the worker as soon as it can.

    For example:

      memoryctl runs list --verb audit-verify --limit 5
    """
    from memory_layer.ops.runs import recent

    command.check_limit(limit)
    with database_of(data_folder(data)) as dsn:
        found = recent(dsn, verb, limit)
    if as_json:
        render.data(found)
        return 0
    columns = ("run", "verb", "started", "took", "verdict", "exit", "audit")
    rows = [(r["runId"], r["verb"], _time(r["startedAt"]), _took(r), r["verdict"], r["exit"], _entry(r)) for r in found]
    render.table(columns, rows)
    return 0


@runs.command
def show(
    run: Annotated[str, Parameter(help="The id of a run.")], /, *, data: Data = None, as_json: AsJson = False
) -> int:
    """Print a run again, as it was reported. Exit 1 when the report is not the one that the audit log names.

    For example:

      memoryctl runs show 0199f3c2-5b1e-7c41-9d0e-1f2a3b4c5d6e
    """
    from memory_layer.ops.runs import find

    run_id = command.id_of(run, "is no run's id. `memoryctl runs list` shows them.")
    with database_of(data_folder(data)) as dsn:
        found = find(dsn, run_id)
    if as_json:
        render.data(found)
    else:
        report = found["report"]
        meanings = {"ok": "as the audit log has it", "differs": "NOT the one that the audit log names"}
        items = [
            ("run", found["runId"]),
            ("verb", found["verb"]),
            ("arguments", render.words(found["arguments"])),
            ("started", _time(found["startedAt"])),
            ("took", _took(found)),
            ("audit entry", _entry(found)),
            ("report", meanings.get(found["evidence"])),
        ]
        render.pairs(items)
        if report is None:
            render.line(f"verdict {found['verdict']}")
        else:
            reports.show(report, as_json=False)
    return 1 if found["evidence"] == "differs" else 0


@runs.command
def schedule(*, data: Data = None, as_json: AsJson = False) -> int:
    """Show the worker's periodic jobs: when each last succeeded and is due again. Exit 1 when one fails or is overdue.

    For example:

      memoryctl runs schedule --json
    """
    from memory_layer.ops.runs import schedule as stored
    from memory_layer.worker.schedule import JOBS

    with database_of(data_folder(data)) as dsn:
        rows = {row["job"]: row for row in stored(dsn)}
    now = dt.datetime.now(dt.UTC)
    jobs = [_job(job.name, str(job.when), job.period, rows.get(job.name), now) for job in JOBS]
    if as_json:
        render.data(jobs)
    else:
        columns = ("job", "runs", "state", "last success", "next due", "failures", "last error")
        lines = [
            (
                j["job"],
                j["runs"],
                j["state"],
                _time(j["lastSuccess"]),
                _time(j["nextDue"]),
                j["failures"],
                j["lastError"],
            )
            for j in jobs
        ]
        render.table(columns, lines, wide="last error")
    return 1 if any(job["state"] in ("failing", "overdue") for job in jobs) else 0


def _job(name: str, when: str, period: float, row: dict[str, Any] | None, now: dt.datetime) -> dict[str, Any]:
    shape: dict[str, Any] = {"job": name, "runs": when, "state": "never run", "leader": None, "failures": 0}
    moments = ("last_started", "last_finished", "last_success", "next_due")
    times = {moment: None if row is None or row[moment] is None else format_time(row[moment]) for moment in moments}
    if row is not None:
        running = row["last_finished"] is None or row["last_started"] > row["last_finished"]
        overdue = row["next_due"] + max(OVERDUE, dt.timedelta(seconds=period)) < now
        # An attempt that is under way counts as one that failed, until it has succeeded.
        failures = row["failures"] - running
        state = "overdue" if overdue else "failing" if failures > 0 else "running" if running else "fine"
        shape |= {"state": state, "leader": row["leader"], "failures": failures}
    return shape | {
        "lastStarted": times["last_started"],
        "lastFinished": times["last_finished"],
        "lastSuccess": times["last_success"],
        "nextDue": times["next_due"],
        "lastError": None if row is None else row["last_error"],
    }


def _time(text: str | None) -> str:
    """A time to the second, in UTC."""
    return "" if text is None else text[:19].replace("T", " ")


def _took(run: dict[str, Any]) -> str:
    if run["finishedAt"] is None:
        return ""
    seconds = (
        dt.datetime.fromisoformat(run["finishedAt"]) - dt.datetime.fromisoformat(run["startedAt"])
    ).total_seconds()
    return f"{seconds:.1f} s"


def _entry(run: dict[str, Any]) -> str:
    return str(run["seq"]) if run["seq"] is not None else "owed" if run["auditId"] is None else run["auditId"]
