"""A schema that lies is named: by `memoryctl migrate drift`, and by the verifier, to whom it may show the truth."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import psycopg
import pytest

from memory_layer.audit.verdict import INCOMPLETE, TAMPERED, UNANCHORED
from memory_layer.ops import drift, migrate
from tests.support.product import clean_environment, run_ctl
from tests.support.service import create, rows, running_memory, verify

Database = Callable[[str], str]

# What was done, by whom, and what the finding names.
LIES: dict[str, tuple[str, str, str]] = {
    "a view in a table's place": (
        "memory_owner",
        """ALTER TABLE memory_nodes RENAME TO memory_nodes_x;
           CREATE VIEW memory_nodes AS SELECT * FROM memory_nodes_x WHERE current_user <> 'memory_app'""",
        "tables.memory_nodes.kind",
    ),
    "a view of the log": (
        "memory_owner",
        "ALTER TABLE audit_checkpoints RENAME TO x; CREATE VIEW audit_checkpoints AS SELECT * FROM x",
        "tables.audit_checkpoints.kind",
    ),
    "a rule that swallows": (
        "memory_owner",
        "CREATE RULE quiet AS ON UPDATE TO memory_nodes DO INSTEAD NOTHING",
        "tables.memory_nodes.rules.quiet",
    ),
    "a rule that copies": (
        "memory_owner",
        "CREATE TABLE spy (LIKE memory_nodes); CREATE RULE spy AS ON INSERT TO memory_nodes DO ALSO INSERT INTO spy VALUES (NEW.*)",
        "tables.memory_nodes.rules.spy",
    ),
    "a trigger that rewrites": (
        "memory_owner",
        """CREATE FUNCTION evil() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN NEW.owner := ''eve''; RETURN NEW; END';
           CREATE TRIGGER evil BEFORE INSERT ON memory_nodes FOR EACH ROW EXECUTE FUNCTION evil()""",
        "tables.memory_nodes.triggers.evil",
    ),
    "a trigger that is switched off": (
        "memory_owner",
        "ALTER TABLE audit_events DISABLE TRIGGER audit_events_no_change",
        "tables.audit_events.triggers.audit_events_no_change",
    ),
    "a trigger that is no longer always": (
        "memory_owner",
        "ALTER TABLE audit_seals ENABLE TRIGGER audit_seals_no_change",
        "tables.audit_seals.triggers.audit_seals_no_change",
    ),
    "the triggers behind foreign keys": (
        "postgres",
        "ALTER TABLE audit_seals DISABLE TRIGGER ALL",
        "tables.audit_seals.triggers.of a foreign key",
    ),
    "a policy that hides": (
        "memory_owner",
        "CREATE POLICY hide ON memory_nodes AS RESTRICTIVE USING (current_user <> 'memory_app')",
        "tables.memory_nodes.policies.hide",
    ),
    "a policy that shows all": (
        "memory_owner",
        "ALTER POLICY tenant_rows ON memory_nodes USING (true)",
        "tables.memory_nodes.policies.tenant_rows",
    ),
    "row security that hides all": (
        "memory_owner",
        "ALTER TABLE audit_events ENABLE ROW LEVEL SECURITY",
        "tables.audit_events.row_security",
    ),
    "row security that is not forced": (
        "memory_owner",
        "ALTER TABLE artifacts NO FORCE ROW LEVEL SECURITY",
        "tables.artifacts.row_security",
    ),
    "a table that inherits": (
        "memory_owner",
        "CREATE SCHEMA elsewhere; CREATE TABLE elsewhere.more () INHERITS (memory_nodes)",
        "tables.memory_nodes.heirs.elsewhere.more",
    ),
    "a column that computes": (
        "memory_owner",
        "ALTER TABLE memory_nodes ADD COLUMN shadow text GENERATED ALWAYS AS (content) STORED",
        "tables.memory_nodes.columns.shadow",
    ),
    "a default": (
        "memory_owner",
        "ALTER TABLE memory_nodes ALTER COLUMN metadata SET DEFAULT '{\"x\": 1}'",
        "tables.memory_nodes.columns.metadata",
    ),
    "a constraint that is gone": (
        "memory_owner",
        "ALTER TABLE audit_seals DROP CONSTRAINT audit_seals_log",
        "tables.audit_seals.constraints.audit_seals_log",
    ),
    "an index that is gone": ("memory_owner", "DROP INDEX audit_events_node", "tables.audit_events.indexes"),
    "a table that forgets": (
        "memory_owner",
        "ALTER TABLE ops_runs SET UNLOGGED",
        "tables.ops_runs.kind",
    ),
    "a function with another body": (
        "memory_owner",
        "CREATE OR REPLACE FUNCTION audit_append_only() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END'",
        "functions.audit_append_only()",
    ),
    "a function with another path": (
        "memory_owner",
        "ALTER FUNCTION memory_nodes_guard() SET search_path = public",
        "functions.memory_nodes_guard()",
    ),
    "a function that runs as its owner": (
        "memory_owner",
        "ALTER FUNCTION vector_spaces.key(text, text) SECURITY DEFINER",
        "pgvector.functions.key",
    ),
    "a planted function": (
        "memory_owner",
        "CREATE FUNCTION encode(bytea, text) RETURNS text LANGUAGE sql AS 'SELECT ''''::text'",
        "functions.encode",
    ),
    "a planted operator": (
        "memory_owner",
        """CREATE FUNCTION yes(text, text) RETURNS boolean LANGUAGE sql AS 'SELECT true';
           CREATE OPERATOR public.= (LEFTARG = text, RIGHTARG = text, FUNCTION = yes)""",
        "others.operator",
    ),
    "a trigger on commands": (
        "postgres",
        """CREATE FUNCTION elsewhere() RETURNS event_trigger LANGUAGE plpgsql AS 'BEGIN END';
           CREATE EVENT TRIGGER evil ON ddl_command_end EXECUTE FUNCTION elsewhere()""",
        "others.event trigger evil",
    ),
    "a right on a table": ("memory_owner", "GRANT INSERT ON audit_logs TO memory_app", "tables.audit_logs.grants"),
    "a right on a column": ("memory_owner", "GRANT UPDATE (entry) ON audit_events TO memory_app", "tables.audit_events.grants"),
    "a right for everybody": ("memory_owner", "GRANT SELECT ON subjects TO PUBLIC", "tables.subjects.grants.PUBLIC"),
    "a right that is missing": ("memory_owner", "REVOKE INSERT ON audit_seals FROM memory_app", "tables.audit_seals.grants"),
    "a right to create": ("postgres", "GRANT CREATE ON SCHEMA public TO PUBLIC", "others.CREATE on schema public for PUBLIC"),
    "rights for tables to come": (
        "memory_owner",
        "ALTER DEFAULT PRIVILEGES IN SCHEMA public GRANT ALL ON TABLES TO memory_app",
        "others.default privilege",
    ),
    "an owner": ("postgres", "ALTER TABLE memory_nodes OWNER TO memory_app", "tables.memory_nodes.owner"),
    "a schema before public": (
        "postgres",
        "CREATE SCHEMA memory_app; CREATE VIEW memory_app.memory_nodes AS SELECT * FROM public.memory_nodes WHERE false",
        "others.schema memory_app",
    ),
    "a trigger in a partition": (
        "memory_owner",
        """CREATE TABLE access_log_1 PARTITION OF access_log FOR VALUES FROM ('2026-01-01') TO ('2027-01-01');
           CREATE RULE quiet AS ON INSERT TO access_log_1 DO INSTEAD NOTHING""",
        "tables.access_log.partitions",
    ),
}  # fmt: skip


def do(dsn: str, statements: str) -> None:
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(statements)


async def written(database: Database, folder: Path) -> None:
    async with running_memory(database("memory_app"), folder) as memory:
        await create(memory)


@pytest.mark.parametrize("lie", LIES)
async def test_a_schema_that_lies_is_named(database: Database, tmp_path: Path, lie: str) -> None:
    role, statements, named = LIES[lie]
    await written(database, tmp_path)
    do(database(role), statements)
    found = drift.of_database(database("memory_owner"))
    assert any(line.startswith(named) for line in found.lines), found
    verdict = verify(database("postgres"), tmp_path)
    assert verdict.exit_code == TAMPERED
    assert any(f.code == "SCHEMA_DRIFT" and f.found.startswith(named) for f in verdict.findings), verdict.findings


async def test_what_the_product_makes_while_it_runs_is_no_drift(database: Database, tmp_path: Path) -> None:
    await written(database, tmp_path)
    with psycopg.connect(database("memory_app"), autocommit=True) as app:
        for namespace, dimension in (("a", 4), ("b", 768)):
            vector = "[" + ",".join(["1"] * dimension) + "]"
            app.execute(
                "SELECT vector_spaces.upsert(array_fill('t'::text, '{9}'), array_fill(%s::text, '{9}'), array(SELECT gen_random_uuid()"
                " FROM generate_series(1, 9)), array_fill(1, '{9}'), array_fill(%s::vector, '{9}'), array_fill('{}'::jsonb, '{9}'), 8)",
                (namespace, vector),
            )
            assert app.execute("SELECT vector_spaces.promote('t', %s, 8)", [namespace]).fetchall() == [("moved",)]
    do(
        database("memory_owner"),
        "CREATE TABLE access_log_1 PARTITION OF access_log FOR VALUES FROM ('2026-01-01') TO ('2027-01-01')",
    )
    do(database("postgres"), "DROP ROLE IF EXISTS drift_reader")
    do(database("postgres"), "CREATE ROLE drift_reader")
    try:
        do(database("memory_owner"), "GRANT SELECT ON memory_nodes, audit_events TO drift_reader")  # theirs to give
        for role in ("memory_app", "memory_owner", "postgres"):
            assert drift.of_database(database(role)) == drift.Drift()
        verdict = verify(database("memory_app"), tmp_path)
        assert (verdict.exit_code, verdict.findings) == (UNANCHORED, ())
    finally:
        do(database("memory_owner"), "REVOKE ALL ON memory_nodes, audit_events FROM drift_reader")
        do(database("postgres"), "DROP ROLE drift_reader")


@pytest.mark.parametrize(
    "change",
    [
        "INSERT INTO schema_migrations (version) VALUES ('999_from_tomorrow')",
        "DELETE FROM schema_migrations WHERE version LIKE '005%'",
    ],
)
async def test_a_schema_of_another_version_is_never_right(database: Database, tmp_path: Path, change: str) -> None:
    await written(database, tmp_path)
    do(database("memory_owner"), change)
    verdict = verify(database("memory_app"), tmp_path)
    assert verdict.exit_code == INCOMPLETE
    assert [finding.code for finding in verdict.findings] == ["SCHEMA_UNKNOWN"]


def test_the_command_names_each_difference(database: Database, tmp_path: Path) -> None:
    environment = clean_environment() | {"DATABASE_URL": database("memory_app")}
    same = run_ctl("migrate", "drift", env=environment)
    assert (same.returncode, same.stdout) == (0, ""), same.stdout
    do(database("memory_owner"), "ALTER TABLE audit_events DISABLE TRIGGER audit_events_no_change")
    told = run_ctl("migrate", "drift", env=environment)
    assert told.returncode == 1
    assert "tables.audit_events.triggers.audit_events_no_change" in told.stdout
    as_json = run_ctl("migrate", "drift", "--json", env=environment)
    assert as_json.returncode == 1
    assert len(json.loads(as_json.stdout)["differences"]) == 1
    do(database("memory_owner"), "DELETE FROM schema_migrations WHERE version LIKE '005%'")
    pending = run_ctl("migrate", "drift", env=environment)
    assert (pending.returncode, "005_isolate_tenants are not applied" in pending.stdout) == (1, True), pending.stdout


def test_an_upgrade_brings_rights_and_nothing_else_to_a_schema_that_was_changed(database: Database) -> None:
    """`migrate apply` gives the rights anew; it does not undo what somebody planted, which stays named."""
    do(database("memory_owner"), "GRANT INSERT ON audit_logs TO memory_app")
    do(database("memory_owner"), "CREATE RULE quiet AS ON UPDATE TO memory_nodes DO INSTEAD NOTHING")
    migrate.apply(database("memory_owner"))
    assert [line.split(":")[0] for line in drift.of_database(database("memory_owner")).lines] == [
        "tables.memory_nodes.rules.quiet"
    ]
    assert rows(database("postgres"), "SELECT has_table_privilege('memory_app', 'audit_logs', 'INSERT')") == [(False,)]
