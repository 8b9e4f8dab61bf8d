"""Functions that run as their owner, and triggers, call nothing that somebody else planted under a better-matching name."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from typing import Any

import psycopg
import pytest

from memory_layer.ops import migrate
from tests.integration.test_migrations import DEBIAN, debian_server

Database = Callable[[str], str]

# What a call by name would take instead of Postgres's own: the arguments fit exactly, or nearer.
PLANTS = """
CREATE FUNCTION {schema}.format(text, text) RETURNS text LANGUAGE sql AS $$ SELECT {schema}.caught('format') $$;
CREATE FUNCTION {schema}.format(text, bigint, bigint) RETURNS text LANGUAGE sql AS $$ SELECT {schema}.caught('format') $$;
CREATE FUNCTION {schema}.greatest_of(bigint) RETURNS bigint LANGUAGE sql AS $$ SELECT 1::bigint $$;
CREATE FUNCTION {schema}.pg_advisory_xact_lock_shared(bigint) RETURNS void LANGUAGE sql AS $$ SELECT {schema}.caught('lock') $$;
CREATE FUNCTION {schema}.hashtextextended(text, integer) RETURNS bigint LANGUAGE sql AS $$ SELECT {schema}.caught('hash')::bigint $$;
CREATE FUNCTION {schema}.unnest(text[], text[]) RETURNS SETOF record LANGUAGE sql AS $$ SELECT {schema}.caught('unnest'), '' $$;
CREATE FUNCTION {schema}.vector_dims({schema}.mine) RETURNS integer LANGUAGE sql AS $$ SELECT {schema}.caught('dims')::integer $$;
CREATE FUNCTION {schema}.concat_own(text, bigint) RETURNS text LANGUAGE sql AS $$ SELECT {schema}.caught('||') $$;
CREATE OPERATOR {schema}.|| (LEFTARG = text, RIGHTARG = bigint, FUNCTION = {schema}.concat_own);
CREATE FUNCTION {schema}.mod_own(bigint, integer) RETURNS bigint LANGUAGE sql AS $$ SELECT {schema}.caught('#')::bigint $$;
CREATE OPERATOR {schema}.# (LEFTARG = bigint, RIGHTARG = integer, FUNCTION = {schema}.mod_own);
CREATE FUNCTION {schema}.less_own(bigint, integer) RETURNS boolean LANGUAGE sql AS $$ SELECT {schema}.caught('<') = '' $$;
CREATE OPERATOR {schema}.< (LEFTARG = bigint, RIGHTARG = integer, FUNCTION = {schema}.less_own);
CREATE FUNCTION {schema}.real_own(integer, double precision) RETURNS boolean LANGUAGE sql AS $$ SELECT {schema}.caught('<f') = '' $$;
CREATE OPERATOR {schema}.< (LEFTARG = double precision, RIGHTARG = bigint, FUNCTION = {schema}.less_real);
"""
CAUGHT = """
CREATE TABLE {schema}.planted (who text, what text);
GRANT ALL ON {schema}.planted TO PUBLIC;
CREATE FUNCTION {schema}.caught(what text) RETURNS text LANGUAGE plpgsql VOLATILE AS $$
BEGIN INSERT INTO {schema}.planted VALUES (current_user, what); RETURN '1'; END $$;
"""


def plant(connection: psycopg.Connection[Any], schema: str) -> int:
    """As a role that may create things there; how many plants took root."""
    connection.execute(CAUGHT.format(schema=schema))
    taken = 0
    for statement in PLANTS.format(schema=schema).split(";\n"):
        if not statement.strip():
            continue
        try:
            with connection.transaction():
                connection.execute(statement)
            taken += 1
        except psycopg.Error:
            continue
    return taken


def write_and_move(app: psycopg.Connection[Any], tenant: str) -> list[Any]:
    """Through every function that runs as its owner."""
    nodes = [uuid.uuid4() for _ in range(12)]
    vectors = ["[" + ",".join(str((n * k) % 7 + 1) for k in range(4)) + "]" for n in range(12)]
    told = app.execute(
        "SELECT * FROM vector_spaces.upsert(%s::text[], %s::text[], %s::uuid[], %s::int[], %s::public.vector[], %s::jsonb[], 8)",
        ([tenant] * 12, ["space"] * 12, nodes, [1] * 12, vectors, ["{}"] * 12),
    ).fetchall()
    (moved,) = app.execute("SELECT vector_spaces.promote(%s, 'space', 8)", [tenant]).fetchone() or (None,)
    assert moved == "moved"
    number = app.execute("SELECT number FROM vector_spaces.registry WHERE tenant = %s", [tenant]).fetchone()
    assert number is not None
    app.execute(
        "SELECT * FROM vector_spaces.upsert(%s::text[], %s::text[], %s::uuid[], %s::int[], %s::public.vector[], %s::jsonb[], 8)",
        ([tenant] * 2, ["space"] * 2, nodes[:2], [2] * 2, vectors[:2], ["{}"] * 2),
    )
    app.execute("SELECT vector_spaces.remove(%s, 'space', %s::uuid[], %s::int[])", (tenant, nodes[:1], [3]))
    app.execute("SELECT vector_spaces.note(%s, 0.99, 100)", number)
    app.execute("SELECT vector_spaces.reindex(%s, 'bit')", number)
    app.execute("SELECT * FROM vector_spaces.due(8)")
    app.execute("SELECT vector_spaces.prewarm(%s)", number)
    app.execute("SELECT vector_spaces.sweep(10)")
    app.execute("SELECT vector_spaces.forget(%s, 'space')", [tenant])
    return told


@pytest.mark.parametrize("schema", ["public", "pg_temp"])
def test_the_vector_spaces_call_no_plant(database: Database, schema: str) -> None:
    with psycopg.connect(database("postgres"), autocommit=True) as root:
        root.execute("GRANT CREATE ON SCHEMA public TO memory_app")
        (name,) = root.execute("SELECT current_database()").fetchone() or ("",)
        root.execute(f"GRANT TEMP ON DATABASE {name} TO memory_app")
    with psycopg.connect(database("memory_app"), autocommit=True) as app:
        assert plant(app, schema) >= 5
        if schema == "pg_temp":
            for table in ("registry", "vector_entries", "pg_extension", "pg_class"):
                app.execute(f"CREATE TEMP TABLE {table} AS SELECT 1 AS number, 'x' AS tenant")
        write_and_move(app, "ann")
        assert app.execute(f"SELECT who, what FROM {schema}.planted").fetchall() == []


def test_a_temporary_table_stands_in_for_none_that_a_trigger_asks(database: Database) -> None:
    node = uuid.uuid4()
    with psycopg.connect(database("postgres"), autocommit=True) as root:
        (name,) = root.execute("SELECT current_database()").fetchone() or ("",)
        root.execute(f"GRANT TEMP ON DATABASE {name} TO memory_app")
        root.execute(
            """INSERT INTO memory_nodes (tenant, id, owner, namespace, created_at, updated_at)
               VALUES ('ann', %s, 'o', 'n', now(), now())""",
            [node],
        )
        root.execute(
            """INSERT INTO memory_vectors (tenant, id, memory_node_id, namespace, provider, status, version, created_at, updated_at)
               VALUES ('ann', gen_random_uuid(), %s, 'n', 'p', 'succeeded', 1, now(), now())""",
            [node],
        )
    with psycopg.connect(database("memory_app"), autocommit=True) as app:
        app.execute("SET memory.tenants = '{ann}'")
        app.execute("CREATE TEMP TABLE memory_vectors (tenant text, memory_node_id uuid, status text)")
        app.execute("CREATE TEMP TABLE audit_logs (log int, imported_at timestamptz)")
        app.execute("INSERT INTO audit_logs VALUES (7, NULL)")
        with pytest.raises(psycopg.errors.RestrictViolation, match="still has vectors"):
            app.execute("DELETE FROM public.memory_nodes WHERE id = %s", [node])
        with pytest.raises(psycopg.errors.ForeignKeyViolation):
            app.execute(
                """INSERT INTO audit_events (log, seq, id, batch_no, event_type, created_at, entry, hash, prev_hash, signature)
                   VALUES (7, 0, gen_random_uuid(), 0, 'x', now(), 'e', repeat('a', 64), repeat('a', 64), 's')"""
            )


FIXED = """
SELECT p.oid::regprocedure::text FROM pg_proc p
WHERE p.pronamespace IN ('public'::regnamespace, to_regnamespace('vector_spaces'))
  AND (p.prosecdef OR p.oid IN (SELECT tgfoid FROM pg_trigger WHERE NOT tgisinternal))
  AND NOT EXISTS (SELECT FROM unnest(p.proconfig) c WHERE c = 'search_path=pg_catalog, pg_temp')
"""


def test_each_of_them_has_a_path_of_its_own(database: Database) -> None:
    with psycopg.connect(database("postgres")) as root:
        assert root.execute(FIXED).fetchall() == []
        assert root.execute("SELECT has_schema_privilege('memory_app', 'public', 'CREATE')").fetchone() == (False,)


@pytest.mark.real
@pytest.mark.skipif(not (DEBIAN / "postgres").exists(), reason=f"Debian's Postgres 15 is not installed ({DEBIAN})")
def test_the_same_on_debians_postgres() -> None:
    """Its public schema as it was until Postgres 14: everybody may create things there."""
    with debian_server() as dsn:
        admin = dsn.replace("user=memory_owner", "user=postgres")
        with psycopg.connect(admin, autocommit=True) as root:
            root.execute("GRANT CREATE ON SCHEMA public TO PUBLIC")
            vector = root.execute("SELECT FROM pg_available_extensions WHERE name = 'vector'").fetchone()
            if vector is not None:
                root.execute("CREATE EXTENSION vector")
        migrate.apply(dsn)
        with psycopg.connect(dsn, autocommit=True) as owner:
            assert owner.execute(FIXED).fetchall() == []
            assert owner.execute("SELECT has_schema_privilege('memory_app', 'public', 'CREATE')").fetchone() == (False,)
        if vector is None:
            pytest.skip("Debian's pgvector is not installed (postgresql-15-pgvector)")
        migrate.apply_pgvector(dsn)
        with psycopg.connect(admin, autocommit=True) as root:
            root.execute("GRANT CREATE ON SCHEMA public TO memory_app")
        with psycopg.connect(dsn.replace("user=memory_owner", "user=memory_app"), autocommit=True) as app:
            assert plant(app, "public") >= 5
            write_and_move(app, "ann")
            assert app.execute("SELECT who, what FROM public.planted").fetchall() == []
