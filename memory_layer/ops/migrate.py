"""Migrations: pure SQL files, applied in order under a lock, with checksums. Forward only."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, Final, Literal

import psycopg
from psycopg import Connection
from psycopg.errors import Diagnostic

from memory_layer.errors import DependencyUnavailable, LockHeld, PolicyRefused
from memory_layer.sql import Migration, adoption, folded, grants, migrations, queries
from memory_layer.stores.postgres import Postgres, refuse_malformed

_LOCK = (5062476, 1)  # beside the log's lock (commit.sql)
_LOCK_WAIT = 30.0  # seconds
# A migration asks for each of its locks for no more than lock_timeout, 5 s: others that wait for one of ours wait no longer. What it met
# there (a long query, a vacuum that is about to give way, another's change of the same catalogue row) is mostly gone a moment later.
_TRIES = 4
_PAUSE = 0.5  # seconds, doubled after each try

_SQL = queries("migrations")
LAST_FOLDED: Final = "005_isolate_tenants"  # the files after it came later
# The last commit with the files that folded.sql names.
BEFORE_FOLD: Final = "dea8383"

Status = Literal["applied", "pending", "changed", "unknown", "folded"]


@dataclass(frozen=True, slots=True)
class Step:
    """A migration and where it stands. ``unknown``: applied by a newer version than this one. ``folded``: what it makes is there, by the
    files from before they were folded; `apply` records it."""

    version: str
    status: Status


def plan(dsn: str) -> list[Step]:
    """What has been applied and what would be, in order. Changes nothing. Raises PolicyRefused as ``apply``."""
    with connect(dsn) as connection:
        return _steps(_applied(connection))


async def missing(postgres: Postgres) -> list[str]:
    """The migrations that this version needs and this database does not have."""
    (rows,) = await postgres.fetch("", (_SQL["applied"], {}))
    return sorted(_needed() - {row["version"] for row in rows})


@cache
def _needed() -> frozenset[str]:
    """The package's files do not change while it runs, and probes of readiness come every few seconds."""
    return frozenset(migration.version for migration in migrations())


def apply(dsn: str, say: Callable[[str], None] = lambda _: None) -> list[str]:
    """Apply what is pending, then the rights of the runtime role; the versions applied now. Raises PolicyRefused when an applied file
    has changed since, or when only a part of those from before the fold was applied. ``say`` gets what the server warns of, a missing
    role among it, a line each."""
    with connect(dsn) as connection, _locked(connection):
        connection.add_notice_handler(lambda notice: _warn(notice, say))
        applied = _applied(connection)
        _refuse_changed([step.version for step in _steps(applied) if step.status == "changed"])
        if before_fold(applied):
            _run(connection, Migration("folded", adoption(), ""))
            applied = _applied(connection)
        done = []
        for migration in migrations():
            if migration.version not in applied:
                _run(connection, migration)
                done.append(migration.version)
            if applied.get(migration.version) is None:
                connection.execute(
                    "UPDATE schema_migrations SET checksum = %s WHERE version = %s",
                    (migration.checksum, migration.version),
                )
        _run(connection, Migration("grants", grants(), ""))
        return done


def _warn(notice: Diagnostic, say: Callable[[str], None]) -> None:
    if notice.severity_nonlocalized == "WARNING" and notice.message_primary:
        say(f"warning: {notice.message_primary}")


def apply_pgvector(dsn: str) -> None:
    """Bring the pgvector adapter's own table into its database; repeating it changes nothing."""
    with connect(dsn) as connection, _locked(connection):
        for migration in migrations("pgvector"):
            _run(connection, migration)


def _run(connection: Connection[Any], migration: Migration) -> None:
    """One file is one transaction: it has changed everything or nothing, and what was in its way is met again from the start."""
    for attempt in range(_TRIES):
        try:
            connection.execute(migration.text)
            return
        except psycopg.Error as error:
            with contextlib.suppress(psycopg.Error):
                connection.execute("ROLLBACK")
            passing = _passes(error)
            if passing and attempt + 1 < _TRIES and not connection.closed:
                time.sleep(_PAUSE * 2**attempt)
                continue
            advice = (
                f" It was tried {_TRIES} times. See who holds the lock (pg_stat_activity, pg_locks), let it end, and run the "
                "command again: it goes on with this migration."
                if passing
                else ""
            )
            raise DependencyUnavailable(
                f"migration {migration.version} failed and was rolled back: {' '.join(str(error).split())}{advice}"
            ) from error


def _passes(error: psycopg.Error) -> bool:
    """Whether somebody else was in the way: of a lock, in a deadlock, or with a change of the same row of the catalogue."""
    if isinstance(error, (psycopg.errors.LockNotAvailable, psycopg.errors.DeadlockDetected)):
        return True
    # Two changes of one catalogue row, an internal error (XX000) to Postgres; its words are the only sign, and may be translated.
    return isinstance(error, psycopg.errors.InternalError_) and "tuple concurrently" in str(error)


def before_fold(applied: Mapping[str, str | None]) -> bool:
    """Whether what was applied (checksums by version) are migrations from before they were folded, or a part of them.

    Two names are in both sets: there the checksum tells, and without one they count as today's.
    """
    current, former = {migration.version for migration in migrations()}, folded()
    return any(
        version in former and (version not in current or checksum in former[version])
        for version, checksum in applied.items()
    )


def _refuse_changed(changed: list[str]) -> None:
    if changed:
        raise PolicyRefused(
            f"{', '.join(changed)} changed after being applied. Applied migrations are never edited: restore the file "
            "and put the change into a new one."
        )


def _steps(applied: Mapping[str, str | None]) -> list[Step]:
    known = migrations()
    if before_fold(applied):
        former = folded()
        if missing := [version for version in former if version not in applied]:
            raise PolicyRefused(
                f"this database has only a part of the migrations from before they were folded: {', '.join(missing)} are missing. Bring "
                f"it up to date with commit {BEFORE_FOLD}, the last that has these files (`memoryctl migrate apply` or `up` of that "
                "version), then run this version again. Nothing was changed."
            )
        _refuse_changed([version for version in former if applied[version] not in (None, *former[version])])
        return [Step(one.version, "folded" if one.version <= LAST_FOLDED else "pending") for one in known]
    steps = []
    for migration in known:
        checksum = applied.get(migration.version)
        status: Status = "applied" if migration.version in applied else "pending"
        if checksum is not None and checksum != migration.checksum:
            status = "changed"
        steps.append(Step(migration.version, status))
    names = {migration.version for migration in known}
    return steps + [Step(version, "unknown") for version in applied if version not in names]


def _applied(connection: Connection[Any]) -> dict[str, str | None]:
    exists = connection.execute("SELECT to_regclass('schema_migrations') IS NOT NULL").fetchone()
    if not exists or not exists[0]:
        return {}
    rows = connection.execute(_SQL["applied"]).fetchall()
    return dict(rows)


def connect(dsn: str) -> Connection[Any]:
    """A connection in autocommit. Raises DependencyUnavailable, UsageError."""
    refuse_malformed(dsn, "The database's URL (DATABASE_URL or --dsn)")
    try:
        return psycopg.connect(dsn, autocommit=True, connect_timeout=5, application_name="memoryctl migrate")
    except psycopg.Error as error:
        reason = " ".join(str(error).split())
        raise DependencyUnavailable(f"Postgres does not answer at DATABASE_URL: {reason}") from error


@contextlib.contextmanager
def _locked(connection: Connection[Any]) -> Iterator[None]:
    """One migration run at a time. Polled: a runner that waits inside SQL would block CREATE INDEX CONCURRENTLY."""
    deadline = time.monotonic() + _LOCK_WAIT
    while True:
        row = connection.execute("SELECT pg_try_advisory_lock(%s, %s)", _LOCK).fetchone()
        if row and row[0]:
            break
        if time.monotonic() > deadline:
            raise LockHeld("another run of `memoryctl migrate` holds the lock. Try again when it is done.")
        time.sleep(0.1)
    try:
        yield
    finally:
        with contextlib.suppress(psycopg.Error):
            connection.execute("SELECT pg_advisory_unlock(%s, %s)", _LOCK)
