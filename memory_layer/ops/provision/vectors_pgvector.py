"""pgvector's part of `memoryctl provision vectors`: the extension, the adapter's tables, the service's rights, standbys."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import psycopg
from psycopg import Connection
from psycopg.rows import dict_row

from memory_layer.config import Settings
from memory_layer.errors import DependencyUnavailable
from memory_layer.ops import migrate
from memory_layer.ops.provision.outcome import Outcome, drift, judged, missing, note, right
from memory_layer.ops.report import Finding, Level
from memory_layer.sql import migrations, queries

OLDEST = (0, 8, 4)  # older ones can lose rows in HNSW vacuum
ROLE = "memory_app"  # what the adapter's files grant to

_SQL = queries("provision")
_TOLD = 10  # of a list that may be as long as there are namespaces
_TABLE = re.compile(r"CREATE TABLE (?:IF NOT EXISTS )?([a-z_]+(?:\.[a-z_]+)?)\s*\(")
_GRANT = re.compile(rf"GRANT ([A-Z, ]+) ON (?:TABLE )?([a-z_]+(?:\.[a-z_]+)?) TO {ROLE}\b")


def plan(settings: Settings, dsn: str) -> Outcome:
    """How the database stands. Raises DependencyUnavailable."""
    try:
        with migrate.connect(dsn) as connection:
            return Outcome(list(_look(connection, settings)))
    except psycopg.Error as error:
        raise DependencyUnavailable(f"Postgres does not answer: {' '.join(str(error).split())}") from error


def apply(settings: Settings, dsn: str) -> Outcome:
    """Make what is missing, as the owner. Raises DependencyUnavailable."""
    before = plan(settings, dsn)
    lacking = before.missing
    if not lacking or any(
        finding.id == "vectors.pgvector.extension" for finding in before.findings if _differs(finding)
    ):
        return before
    migrate.apply_pgvector(dsn)
    after = plan(settings, dsn)
    still = {finding.finding for finding in after.missing}
    after.made = [finding.evidence["makes"] for finding in lacking if finding.finding not in still]
    return after


def _differs(finding: Finding) -> bool:
    return finding.evidence.get("state") == "drift"


def _look(connection: Connection[Any], settings: Settings) -> Iterator[Finding]:
    with connection.cursor(row_factory=dict_row) as cursor:
        yield _extension(_one(cursor.execute(_SQL["extension"])))
        tables = [name for migration in migrations("pgvector") for name in _TABLE.findall(migration.text)]
        lacking = [row["name"] for row in cursor.execute(_SQL["lacking_tables"], {"tables": tables})]
        yield (
            _missing("tables", f"There is no table {', '.join(lacking)}.", f"tables {', '.join(lacking)}")
            if lacking
            else right("vectors.pgvector.tables", f"The adapter's tables are there: {', '.join(tables)}.")
        )
        if not _one(cursor.execute(_SQL["role"], {"role": ROLE}))["there"]:
            yield note(
                "vectors.pgvector.grants",
                f"There is no role {ROLE} on this server: the service connects as whoever VECTOR_DB_ENDPOINT names, and that role "
                "must own the tables or be granted them.",
            )
        else:
            wanted = [
                (table, privilege.strip())
                for migration in migrations("pgvector")
                for privileges, table in _GRANT.findall(migration.text)
                if table in tables
                for privilege in privileges.split(",")
            ]
            facts = {"role": ROLE, "tables": [t for t, _ in wanted], "privileges": [p for _, p in wanted]}
            short = [f"{r['privilege']} on {r['name']}" for r in cursor.execute(_SQL["lacking_grants"], facts)]
            yield (
                _missing("grants", f"{ROLE} lacks {', '.join(short)}.", f"grants to {ROLE}: {', '.join(short)}")
                if short
                else right(
                    "vectors.pgvector.grants", f"{ROLE} may read and write {', '.join(sorted(set(facts['tables'])))}."
                )
                if not lacking
                else _missing("grants", f"{ROLE} has no rights on tables that are not there.", f"grants to {ROLE}")
            )
            if not lacking:
                yield _spaces([row["what"] for row in cursor.execute(_SQL["lacking_space_grants"], {"role": ROLE})])
        yield _standbys(_one(cursor.execute(_SQL["standbys"])), settings)


def _spaces(short: list[str]) -> Finding:
    """Rights on the large namespaces' own tables, which are made while the service runs: as after a restore on another server."""
    if not short:
        return right("vectors.pgvector.spaces", f"{ROLE} may read and write the tables of large namespaces.")
    told = ", ".join(short[:_TOLD]) + (f" and {len(short) - _TOLD} more" if len(short) > _TOLD else "")
    return _missing("spaces", f"{ROLE} lacks {told}: searches there fail.", f"for {ROLE}: {told}")


def _one(cursor: Any) -> dict[str, Any]:
    (row,) = cursor.fetchall()
    return dict(row)


def _missing(name: str, finding: str, makes: str) -> Finding:
    found = missing(f"vectors.pgvector.{name}", finding)
    return Finding(
        found.id, found.level, found.status, found.finding, found.hint, dict(found.evidence) | {"makes": makes}
    )


def _extension(row: dict[str, Any]) -> Finding:
    check, oldest = "vectors.pgvector.extension", ".".join(map(str, OLDEST))
    installed, available = row["installed"], row["available"]
    if installed is not None:
        return judged(
            check,
            _version(installed) >= OLDEST,
            f"The extension vector is {installed}; the vector store needs {oldest} or newer.",
            "Upgrade the server's package and run: ALTER EXTENSION vector UPDATE"
            if _version(available or "0") < OLDEST
            else "Run as the owner: ALTER EXTENSION vector UPDATE",
        )
    if _version(available or "0") >= OLDEST:
        return _missing(
            "extension", f"The extension vector ({available}) is not created here.", f"extension vector {available}"
        )
    return drift(
        check,
        f"This server has no extension vector of {oldest} or newer" + (f", only {available}." if available else "."),
        "Install the server's package of pgvector, or set VECTOR_DB_ENDPOINT to a Postgres that has it.",
    )


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", text)[:3])


def _standbys(row: dict[str, Any], settings: Settings) -> Finding:
    check = "vectors.pgvector.replicas"
    if row["connected"] and not row["told"]:
        return note(
            check,
            f"{row['connected']} connections replicate, and this role may not see how far they are.",
            "GRANT pg_read_all_stats to it, or ask whoever runs the server.",
            {"connected": row["connected"]},
        )
    if row["streaming"]:
        return right(check, f"{row['streaming']} standbys follow.", "warning", standbys=row["streaming"])
    level: Level = "info" if settings.service_env == "dev" else "warning"
    return drift(
        check,
        "No standby follows this server: pgvector has no replicas of its own, Postgres's are its.",
        "Set up a streaming standby, unless the platform replicates below Postgres: then this cannot be seen here.",
        level,
        standbys=0,
    )
