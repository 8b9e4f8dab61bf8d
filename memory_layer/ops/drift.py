"""Whether a database's schema is the one that this version's migrations make. A changed schema may show other data than is stored.

A view in a table's place, a rule, a policy or a trigger can answer each role differently, so a verifier that reads rows alone may see
right ones while everybody else sees others (docs/decisions/0024).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import psycopg
from psycopg import Connection

from memory_layer.audit.verdict import Finding
from memory_layer.errors import DependencyUnavailable
from memory_layer.ops import fingerprint, migrate
from memory_layer.sql import migrations

MAX_LISTED: Final = 50  # differences that are listed


@dataclass(frozen=True, slots=True)
class Drift:
    """``lines``: the differences. ``unknown``: why the two could not be compared, in words; then there are no lines."""

    lines: tuple[str, ...] = ()
    unknown: str | None = None


def look(connection: Connection[Any]) -> Drift:
    """Compare. Leaves the session with search_path = pg_catalog."""
    connection.execute("SET search_path = pg_catalog")
    ((there,),) = connection.execute("SELECT to_regclass('public.schema_migrations') IS NOT NULL").fetchall()
    if not there:
        return Drift(unknown="no migration was ever applied to it")
    applied = dict(connection.execute("SELECT version, checksum FROM public.schema_migrations").fetchall())
    if migrate.before_fold(applied):
        return Drift(unknown="it has the migrations from before they were folded: run `memoryctl migrate apply`")
    known = {migration.version: migration for migration in migrations()}
    if newer := sorted(applied.keys() - known.keys()):
        return Drift(unknown=f"{', '.join(newer)} were applied by another version: judge it with that one")
    if pending := sorted(known.keys() - applied.keys()):
        return Drift(unknown=f"{', '.join(pending)} are not applied: run `memoryctl migrate apply`")
    lines = [
        f"schema_migrations.{version}: its file changed after it was applied"
        for version, checksum in sorted(applied.items())
        if checksum not in (None, known[version].checksum)
    ]
    return Drift((*lines, *fingerprint.drift(fingerprint.catalogue(connection))))


def of_database(dsn: str) -> Drift:
    """The same with a connection of its own. Raises DependencyUnavailable."""
    try:
        with migrate.connect(dsn) as connection:
            return look(connection)
    except psycopg.Error as error:
        raise DependencyUnavailable(f"The schema cannot be read: {' '.join(str(error).split())}") from error


def findings(found: Drift) -> tuple[list[Finding], int]:
    """As findings of a verification, and how many more there are."""
    version = migrations()[-1].version
    if found.unknown is not None:
        return [Finding("SCHEMA_UNKNOWN", f"the schema of {version}", found.unknown)], 0
    listed = [Finding("SCHEMA_DRIFT", f"the schema of {version}", line) for line in found.lines[:MAX_LISTED]]
    return listed, len(found.lines) - len(listed)
