"""Verify the log in a live database, and the rows against the log."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from threading import Event
from typing import Any, Final

import psycopg
from psycopg import Connection, sql
from psycopg.rows import args_row

from memory_layer.audit import about
from memory_layer.audit.checkpoint import Checkpoint
from memory_layer.audit.seal_chain import SealRow
from memory_layer.audit.trust_root import TrustRoot
from memory_layer.audit.verdict import OK, UNANCHORED, Verdict
from memory_layer.audit.verify import MAX_ANCHOR_AGE, STATE_NOT_CHECKED, CheckpointRow, Row, verify
from memory_layer.errors import DependencyUnavailable
from memory_layer.ops import drift, foreign_logs
from memory_layer.ops.operate import Run
from memory_layer.ops.reconcile import Reconciled, reconcile
from memory_layer.ops.report import Finding as RunFinding
from memory_layer.ops.report import Judgement
from memory_layer.ops.tables.check import check_tables
from memory_layer.progress import Progress, no_progress
from memory_layer.sql import queries

_SQL = queries("audit")
_PAGE: Final = 1000  # rows held at a time

# All columns of memory_nodes are compared, and the others of artifacts. What of other tables is not, ``check_tables`` says.
NOT_CHECKED: Final = ("files: artifacts.hold_due and storage_class, which repeat what the object store last answered",)


def verify_live(
    dsn: str,
    root: TrustRoot,
    *,
    pinned: bool,
    payloads: bool = True,
    anchors: Iterable[Checkpoint] = (),
    max_anchor_age: dt.timedelta = MAX_ANCHOR_AGE,
    progress: Progress = no_progress,
    imported: bool = False,
    others: Iterable[str] = (),
) -> Verdict:
    """Judge the log that the trust root names, as one snapshot of the database shows it, then the rows against it.

    An anchor is as old as the database's clock says of the last entry that it covers.
    ``imported``: the log is judged as a copy that was brought back from an archive, whose rows are in another database. ``others``: names
    of logs that are known to lie in this database too; any other log there is a finding.
    Streams: memory does not grow with the log but for 16 bytes an entry. ``progress`` counts entries.
    Raises DependencyUnavailable when the database does not answer.
    """
    total = entries(dsn)
    try:
        with connect(dsn) as connection:
            snapshot, _ = begin(connection)
            drifted, more_drifted = drift.findings(drift.look(connection))
            connection.execute(_SQL["session"])  # the look at the schema sets another search_path
            ((now,),) = connection.execute(_SQL["now"]).fetchall()
            logs = foreign_logs.held(connection)
            chosen = foreign_logs.choose(logs, root.origin, imported=imported)
            number, origin = chosen.log, chosen.origin
            known = [*others, *foreign_logs.before(connection, chosen)]
            foreign, passed = foreign_logs.findings(connection, logs, chosen, known)
            elsewhere = imported or chosen.ended
            stop = Event()
            # Beside each other: while one waits for Postgres, the other computes.
            with connect(dsn) as second, ThreadPoolExecutor(1) as pool:
                reconciled = pool.submit(
                    _reconcile, second, snapshot, None if elsewhere else number, stop, trusted=payloads
                )
                try:
                    verdict = verify(
                        root,
                        _rows(connection, number, total, progress),
                        _seals(connection, number),
                        expected_origin=origin,
                        pinned=pinned,
                        payloads=payloads,
                        anchors=anchors,
                        checkpoints=_checkpoints(connection, number),
                        now=now,
                        max_anchor_age=max_anchor_age,
                    )
                    rows = reconciled.result()
                finally:
                    stop.set()
            if imported:
                passed.append("rows: those that its entries speak of, which are in another database")
            elif chosen.ended:
                passed.append("rows: the log has ended, and the one that goes on from it is the evidence for them")
            tables = check_tables(connection, number, root, verdict, rows.findings, ended=chosen.ended)
            before = [*chosen.misplaced, *foreign]
            verdict = verdict.extended(
                [*rows.findings, *tables.findings, *drifted], before=before, checked=[STATE_NOT_CHECKED]
            )
            verdict = about.annotate(verdict, lambda wanted: _entries_at(connection, number, wanted))
            not_checked = (*verdict.not_checked, *NOT_CHECKED, *tables.not_checked, *rows.not_checked(), *passed)
            return replace(
                verdict,
                not_checked=not_checked,
                unlisted=verdict.unlisted + rows.unlisted + tables.unlisted + more_drifted,
            )
    except psycopg.OperationalError as error:
        raise DependencyUnavailable(f"Postgres does not answer: {' '.join(str(error).split())}") from error


def judge(run: Run, verdict: Verdict) -> None:
    """Put a verdict on the operator's run that came to it: whole, with its own name and exit code, and each finding."""
    clean = verdict.exit_code in (OK, UNANCHORED) and not verdict.findings
    run.own = Judgement(verdict.name, verdict.exit_code, clean)
    run.fact("verdict", verdict.to_json())
    for finding in verdict.findings:
        place = "" if finding.seq is None else f"entry {finding.seq}: "
        text = f"{place}expected {finding.expected}, found {finding.found}"
        run.find(RunFinding(f"audit.{finding.code.lower().replace('_', '-')}", "error", "fail", text))


def _entries_at(connection: Connection[Any], log: int, wanted: list[int]) -> dict[int, bytes]:
    return dict(connection.execute(_SQL["entries_at"], {"log": log, "seqs": wanted}).fetchall())


def connect(dsn: str) -> Connection[Any]:
    """A connection that only reads, and all from one snapshot."""
    connection = psycopg.connect(dsn, connect_timeout=5, application_name="memoryctl audit verify")
    connection.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
    connection.read_only = True
    return connection


def begin(connection: Connection[Any]) -> tuple[str, list[tuple[int, str]]]:
    """The name of the snapshot that is judged, and (number, origin) of the logs in it, the newest first."""
    connection.execute(_SQL["session"])
    logs = connection.execute(_SQL["logs"]).fetchall()
    ((snapshot,),) = connection.execute(_SQL["export_snapshot"]).fetchall()
    return snapshot, logs


def entries(dsn: str) -> int:
    """How many entries there are about to be read, for a progress bar."""
    try:
        with psycopg.connect(dsn, connect_timeout=5) as connection:
            row = connection.execute("SELECT coalesce(max(last_seq) + 1, 0) FROM audit_seals").fetchone()
            return int(row[0]) if row else 0
    except psycopg.OperationalError as error:
        raise DependencyUnavailable(f"Postgres does not answer: {' '.join(str(error).split())}") from error


def _rows(connection: Connection[Any], log: int, total: int, progress: Progress) -> Iterator[Row]:
    with connection.cursor("audit_rows", row_factory=args_row(Row)) as cursor:
        cursor.itersize = _PAGE
        cursor.execute(_SQL["rows"], {"log": log}, binary=True)
        for count, row in enumerate(cursor, start=1):
            if count % _PAGE == 0:
                progress("verifying", count, total)
            yield row


def _seals(connection: Connection[Any], log: int) -> Iterator[SealRow]:
    with connection.cursor("audit_seals") as cursor:
        cursor.itersize = _PAGE
        cursor.execute(_SQL["seals"], {"log": log})
        for batch, text, signature in cursor:
            yield SealRow(batch, text.encode(), signature)


def _checkpoints(connection: Connection[Any], log: int) -> Iterator[CheckpointRow]:
    with connection.cursor("audit_checkpoints") as cursor:
        cursor.itersize = _PAGE
        cursor.execute(_SQL["checkpoints"], {"log": log}, binary=True)
        for size, root, note in cursor:
            yield CheckpointRow(size, root, None if note is None else note.encode())


def _reconcile(
    connection: Connection[Any], snapshot: str, log: int | None, stop: Event, *, trusted: bool
) -> Reconciled:
    try:
        connection.execute(sql.SQL("SET TRANSACTION SNAPSHOT {}").format(snapshot))
    except (psycopg.errors.InvalidParameterValue, psycopg.errors.UndefinedObject) as error:
        raise DependencyUnavailable(
            "Two connections by this DSN do not reach the same database server. Name one server, not a balancer."
        ) from error
    connection.execute(_SQL["session"])
    if log is None:  # a copy, brought back from an archive: its rows are in another database
        return Reconciled()
    return reconcile(connection, log, stop, trusted=trusted)
