"""The record of runs: ``ops_runs`` with its entries in the log, and how it is read. ``operate`` writes the rows."""

from __future__ import annotations

import contextlib
import hashlib
import json
import uuid
from collections.abc import Iterator, Sequence
from typing import Any, Final

import psycopg
from psycopg import Connection
from psycopg.rows import DictRow, dict_row

from memory_layer.errors import DependencyUnavailable, NotFound, ValidationError
from memory_layer.model import SYSTEM_TENANT, format_time, format_time_or_none
from memory_layer.ops.report import dumps
from memory_layer.service.actions.log import Record
from memory_layer.service.commit import Change, Committer, Idempotency, request_hash
from memory_layer.service.principals import known_caller
from memory_layer.sql import queries
from memory_layer.stores.postgres import ALL_TENANTS, Postgres
from memory_layer.telemetry.logs import get_logger

INTERRUPTED: Final = "interrupted"
RUNNING: Final = "running"
BATCH_SIZE: Final = 100  # owed entries, read at a time

_SQL = queries("operations")

log = get_logger("memory_layer.runs")


# --- the entries


async def write_owed(postgres: Postgres, committer: Committer) -> int:
    """Write the entry of every run that is owed one; how many were written. Any number may do it at once: each is written once."""
    written, after = 0, None
    while True:
        (owed,) = await postgres.fetch(ALL_TENANTS, (_SQL["owed_runs"], {"after": after, "limit": BATCH_SIZE}))
        for row in owed:
            try:
                await _write_entry(postgres, committer, row)
                written += 1
            except ValidationError as error:
                log.exception("a run has no entry and cannot have one", run=row["id"], error=error.message)
        if len(owed) < BATCH_SIZE:
            return written
        after = owed[-1]["id"]


async def _write_entry(postgres: Postgres, committer: Committer, row: DictRow) -> None:
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
    """One run with its report, and whether that is the one that the log names: ``evidence`` is ``ok``, ``differs``, ``owed``, or
    ``unknown`` when the entry's payload is gone. Raises NotFound."""
    with _reading(dsn) as session:
        found = session.execute(_SQL["list_runs"], {"verb": None, "id": run_id, "limit": 1}).fetchone()
        kept = session.execute(_SQL["run_evidence"], {"id": run_id}).fetchone()
    if found is None or kept is None:
        raise NotFound(f"there is no run {run_id}. `memoryctl runs list` shows the newest.")
    evidence = "owed" if found["audit_id"] is None else "unknown"
    if found["audit_id"] is not None and kept["payload"] is not None:
        entry = json.loads(kept["payload"])
        evidence = "ok" if entry.get("reportSha256") == _digest(kept["report"]) else "differs"
    return _shape(found) | {"evidence": evidence, "report": kept["report"]}


def days_since_lock_probe(dsn: str, buckets: Sequence[str]) -> float | None:
    """Days since a run tried the object locks of these buckets and found nothing wrong; None where none has."""
    with _reading(dsn) as session:
        row = session.execute(_SQL["last_lock_probe"], {"buckets": json.dumps(list(buckets))}).fetchone()
    return None if row is None or row["days"] is None else float(row["days"])


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
        with connect(dsn) as session:
            yield session
    except (psycopg.errors.UndefinedTable, psycopg.errors.UndefinedColumn) as error:
        raise DependencyUnavailable(
            "this database's schema is older than this command. `memoryctl migrate apply` brings it up to date."
        ) from error
    except psycopg.Error as error:
        raise DependencyUnavailable(f"Postgres does not answer: {text_of(error)}") from error


# --- the session


def connect(dsn: str) -> Connection[DictRow]:
    """A session of an operator's run. Raises psycopg.Error."""
    session = psycopg.connect(
        dsn, autocommit=True, connect_timeout=5, row_factory=dict_row, application_name="memoryctl"
    )
    session.execute(_SQL["session"])
    return session


def tables(session: Connection[DictRow]) -> DictRow:
    """Which tables of the record there are: ``runs``, ``entries``, ``logs``."""
    (row,) = session.execute(_SQL["ledger"]).fetchall()
    return row


def try_lock(session: Connection[DictRow], name: str) -> bool:
    """Whether this session holds the lock of that name now; it ends with the session."""
    (row,) = session.execute(_SQL["try_lock"], {"name": f"memory-layer {name}"}).fetchall()
    return bool(row["held"])


def text_of(error: Exception) -> str:
    """An error's own words on one line."""
    return " ".join(str(error).split())
