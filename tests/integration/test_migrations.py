"""The schema: from empty, again, by psql, on another major version; always the catalogue that is committed."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Any

import psycopg
import pytest

from memory_layer.errors import DependencyUnavailable, PolicyRefused
from memory_layer.ops import drift, embedded, fingerprint, migrate
from memory_layer.ops.data_folder import database_account
from memory_layer.sql import folded, grants, migrations
from tests.support.databases import new_database
from tests.support.folders import make_data_folder

VERSIONS = [migration.version for migration in migrations()]
REGENERATE = "the schema differs from sql/fingerprint.json; if that is meant: python -m memory_layer.ops.fingerprint"
DEBIAN = Path("/usr/lib/postgresql/15/bin")


@pytest.fixture
def empty(cluster: embedded.Cluster) -> Iterator[str]:
    """The owner's DSN of a database with nothing in it."""
    with new_database(cluster, "template1") as made:
        yield made("memory_owner")


def catalogue(dsn: str) -> dict[str, Any]:
    with psycopg.connect(dsn, autocommit=True) as connection:
        return fingerprint.catalogue(connection)


def rows(dsn: str, query: str) -> list[tuple[Any, ...]]:
    with psycopg.connect(dsn, autocommit=True) as connection:
        return connection.execute(query).fetchall()


# What psql says when somebody else is in the way for a moment, an autovacuum for example: the file is rolled back and run again.
IN_THE_WAY = re.compile("lock timeout|deadlock detected|tuple concurrently")


def psql(cluster: embedded.Cluster, dsn: str, text: str) -> None:
    """``psql -f``, the text by standard input: the file may lie where the database's account cannot read."""
    for _ in range(3):
        done = subprocess.run(
            [str(cluster.binaries / "psql"), "-X", "-q", "-v", "ON_ERROR_STOP=1", "-d", dsn, "-f", "-"],
            input=text,
            capture_output=True,
            text=True,
            env={"PATH": os.defpath, "LC_ALL": "C"},
            cwd="/",
            check=False,
            **cluster.account.popen_arguments(),
        )
        if done.returncode == 0 or not IN_THE_WAY.search(done.stderr):
            break
    log = (cluster.data / "log" / "postgres.log").read_text("utf-8", "replace").splitlines()[-8:]
    said = [f"psql ended with {done.returncode}:", done.stdout, done.stderr, "Postgres's own log:", *log]
    assert done.returncode == 0, "\n".join(said)


def test_the_guides_files_and_tables_exist(empty: str) -> None:
    assert {"001_create_memory_schema", "002_enhance_memory_vectors"} <= set(VERSIONS)
    migrate.apply(empty)
    assert {"memory_nodes", "memory_vectors", "artifacts", "audit_events"} <= set(catalogue(empty)["tables"])


def test_from_empty_gives_the_committed_catalogue_and_again_changes_nothing(empty: str) -> None:
    assert migrate.apply(empty) == VERSIONS
    first = catalogue(empty)
    assert not fingerprint.drift(first), REGENERATE
    before = rows(empty, "SELECT * FROM schema_migrations ORDER BY version")
    assert migrate.apply(empty) == []
    assert catalogue(empty) == first
    assert rows(empty, "SELECT * FROM schema_migrations ORDER BY version") == before
    assert {step.status for step in migrate.plan(empty)} == {"applied"}


def test_the_committed_file_is_in_its_normal_form() -> None:
    stored = (resources.files("memory_layer.sql") / "fingerprint.json").read_text("utf-8")
    assert stored == fingerprint.text(fingerprint.committed()), REGENERATE


def test_the_fingerprint_sees_every_kind_of_drift(empty: str) -> None:
    migrate.apply(empty)
    with psycopg.connect(empty) as connection:
        for change, where in (
            ("ALTER TABLE memory_nodes ADD COLUMN extra text", "columns.extra"),
            ("ALTER TABLE memory_nodes ALTER COLUMN content SET NOT NULL", "columns.content"),
            ("ALTER TABLE memory_nodes ALTER COLUMN legal_hold SET DEFAULT true", "columns.legal_hold"),
            ("ALTER TABLE memory_vectors DROP CONSTRAINT memory_vectors_lease", "memory_vectors_lease: missing"),
            ("DROP INDEX memory_vectors_due", "memory_vectors_due: missing"),
            ("ALTER TABLE audit_events DISABLE TRIGGER audit_events_no_change", "audit_events_no_change"),
            ("ALTER TABLE audit_events ENABLE TRIGGER audit_events_no_change", "audit_events_no_change"),
            ("ALTER TABLE memory_nodes NO FORCE ROW LEVEL SECURITY", "memory_nodes.row_security"),
            ("ALTER POLICY tenant_rows ON artifacts USING (true)", "artifacts.policies.tenant_rows"),
            ("GRANT UPDATE ON audit_events TO memory_app", "audit_events.grants.memory_app"),
            ("GRANT SELECT ON subjects TO PUBLIC", "subjects.grants.PUBLIC"),
            (("CREATE OR REPLACE FUNCTION audit_append_only() RETURNS trigger LANGUAGE plpgsql AS "
             "'BEGIN RETURN NEW; END'"), "functions.audit_append_only()"),
        ):  # fmt: skip
            with connection.transaction(force_rollback=True):
                connection.execute(change)
                found = fingerprint.drift(fingerprint.catalogue(connection))
            assert len(found) == 1, (change, found)
            assert where in found[0]


def test_each_file_alone_twice_by_psql_gives_the_same_catalogue(cluster: embedded.Cluster, empty: str) -> None:
    for migration in migrations():
        psql(cluster, empty, migration.text)
        once = catalogue(empty)
        psql(cluster, empty, migration.text)
        assert not fingerprint.differences(once, catalogue(empty)), migration.version
    psql(cluster, empty, grants())
    assert not fingerprint.drift(catalogue(empty)), REGENERATE
    # And any of them alone on the finished schema.
    for text in (*(migration.text for migration in migrations()), grants()):
        psql(cluster, empty, text)
        assert not fingerprint.drift(catalogue(empty)), text[:200]


def test_the_pgvector_file_repeats_and_touches_nothing_else(
    cluster: embedded.Cluster, database: Callable[[str], str]
) -> None:
    owner = database("memory_owner")
    once = catalogue(owner)
    migrate.apply_pgvector(owner)
    for migration in migrations("pgvector"):
        psql(cluster, owner, migration.text)
    assert catalogue(owner) == once
    assert fingerprint.drift(once) == []


def test_a_dump_that_is_restored_is_the_same_schema(
    cluster: embedded.Cluster, database: Callable[[str], str], empty: str
) -> None:
    dump = subprocess.run(
        [str(cluster.binaries / "pg_dump"), "-d", database("postgres")],
        capture_output=True,
        text=True,
        env={"PATH": os.defpath, "LC_ALL": "C"},
        cwd="/",
        check=True,
        **cluster.account.popen_arguments(),
    ).stdout
    psql(cluster, empty.replace("memory_owner@", "postgres@"), dump)
    assert drift.of_database(empty) == drift.Drift()


def test_what_psql_applied_gets_its_checksum_recorded(cluster: embedded.Cluster, empty: str) -> None:
    for migration in migrations()[:2]:
        psql(cluster, empty, migration.text)
    assert rows(empty, "SELECT count(*) FROM schema_migrations WHERE checksum IS NULL") == [(2,)]
    assert [step.status for step in migrate.plan(empty)] == ["applied"] * 2 + ["pending"] * (len(VERSIONS) - 2)
    assert migrate.apply(empty) == VERSIONS[2:]
    expected = sorted((migration.version, migration.checksum) for migration in migrations())
    assert rows(empty, "SELECT version, checksum FROM schema_migrations ORDER BY version") == expected


def test_a_file_that_changed_after_being_applied_is_refused(empty: str) -> None:
    migrate.apply(empty)
    with psycopg.connect(empty, autocommit=True) as connection:
        connection.execute("UPDATE schema_migrations SET checksum = repeat('0', 64) WHERE version LIKE '002%'")
    before = catalogue(empty)
    assert [s.version for s in migrate.plan(empty) if s.status == "changed"] == ["002_enhance_memory_vectors"]
    with pytest.raises(PolicyRefused, match="002_enhance_memory_vectors changed after being applied"):
        migrate.apply(empty)
    assert catalogue(empty) == before


def test_a_newer_versions_migration_is_named_and_left_alone(empty: str) -> None:
    migrate.apply(empty)
    with psycopg.connect(empty, autocommit=True) as connection:
        connection.execute("INSERT INTO schema_migrations (version) VALUES ('999_from_tomorrow')")
    assert migrate.plan(empty)[-1] == migrate.Step("999_from_tomorrow", "unknown")
    assert migrate.apply(empty) == []


def test_two_runs_at_once_share_the_work(empty: str) -> None:
    done: list[list[str]] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            done.append(migrate.apply(empty))
        except BaseException as error:  # noqa: BLE001 - shown by the assertion below
            errors.append(error)

    threads = [threading.Thread(target=run) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not errors
    assert sorted(done, key=len) == [[], VERSIONS]
    assert not fingerprint.drift(catalogue(empty)), REGENERATE


def test_a_failed_migration_leaves_nothing_of_itself(empty: str) -> None:
    with psycopg.connect(empty, autocommit=True) as connection:
        connection.execute("CREATE VIEW memory_terms AS SELECT 1 AS tenant")  # stands where 002 wants a table
    with pytest.raises(Exception, match="migration 002_enhance_memory_vectors failed and was rolled back"):
        migrate.apply(empty)
    assert rows(empty, "SELECT version FROM schema_migrations") == [("001_create_memory_schema",)]
    assert rows(empty, "SELECT count(*) FROM pg_attribute WHERE attrelid = 'memory_vectors'::regclass"
                       " AND attname = 'lease_id'") == [(0,)]  # fmt: skip
    with psycopg.connect(empty, autocommit=True) as connection:
        connection.execute("DROP VIEW memory_terms")
    assert migrate.apply(empty) == VERSIONS[1:]
    assert not fingerprint.drift(catalogue(empty)), REGENERATE


@pytest.fixture
def hurried(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Migrations that wait for a lock for a tenth of a second; each attempt's version."""
    attempts: list[str] = []
    passes = migrate._passes

    def noted(error: psycopg.Error) -> bool:
        attempts.append(type(error).__name__)
        return passes(error)

    monkeypatch.setattr(migrate, "_PAUSE", 0.05)
    monkeypatch.setattr(migrate, "_passes", noted)
    hasty = [replace(m, text=m.text.replace("lock_timeout = '5s'", "lock_timeout = '100ms'")) for m in migrations()]
    monkeypatch.setattr(migrate, "migrations", lambda *_: hasty)
    return attempts


def first_two(cluster: embedded.Cluster, dsn: str) -> None:
    for migration in migrations()[:2]:
        psql(cluster, dsn, migration.text)


def test_a_lock_that_is_given_back_soon_is_waited_for(
    cluster: embedded.Cluster, empty: str, hurried: list[str]
) -> None:
    first_two(cluster, empty)
    with psycopg.connect(empty) as reader:
        reader.execute("SELECT FROM memory_nodes")  # held until this transaction ends
        run = threading.Thread(target=migrate.apply, args=(empty,))
        run.start()
        while not hurried:
            assert run.is_alive()
            run.join(0.01)
        reader.rollback()
        run.join(60)
    assert set(hurried) == {"LockNotAvailable"}
    assert not fingerprint.drift(catalogue(empty)), REGENERATE


def test_a_lock_that_is_kept_is_reported_with_what_to_do(
    cluster: embedded.Cluster, empty: str, hurried: list[str]
) -> None:
    first_two(cluster, empty)
    with psycopg.connect(empty) as reader:
        reader.execute("SELECT FROM memory_nodes")
        with pytest.raises(
            DependencyUnavailable, match=r"005_isolate_tenants failed and was rolled back.*run the command again"
        ):
            migrate.apply(empty)
    assert len(hurried) == migrate._TRIES
    assert migrate.apply(empty)[0] == "005_isolate_tenants"
    assert not fingerprint.drift(catalogue(empty)), REGENERATE


def test_two_changes_of_one_catalogue_row_are_somebody_in_the_way(empty: str) -> None:
    migrate.apply(empty)
    change = "GRANT USAGE ON SCHEMA public TO memory_app WITH GRANT OPTION"
    errors: list[psycopg.Error] = []

    def second() -> None:
        try:
            with psycopg.connect(empty, autocommit=True) as connection:
                connection.execute(change)
        except psycopg.Error as error:
            errors.append(error)

    with psycopg.connect(empty) as first, psycopg.connect(empty, autocommit=True) as watch:
        first.execute(change)
        other = threading.Thread(target=second)
        other.start()
        waits = "SELECT FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query = %s"
        while watch.execute(waits, [change]).fetchone() is None and other.is_alive():
            other.join(0.01)
        first.commit()
        other.join(60)
    (error,) = errors
    assert migrate._passes(error), repr(error)


def grants_of(dsn: str) -> dict[str, Any]:
    return {name: table["grants"] for name, table in catalogue(dsn)["tables"].items()}


def test_rights_are_put_right_each_time_though_no_migration_is_new(empty: str) -> None:
    migrate.apply(empty)
    before = grants_of(empty)
    with psycopg.connect(empty, autocommit=True) as owner:
        owner.execute("GRANT ALL ON audit_logs, audit_events, schema_migrations TO memory_app")
        owner.execute("GRANT UPDATE (entry), INSERT (hash) ON audit_events TO memory_app")
        owner.execute("GRANT SELECT ON subjects TO PUBLIC")
        owner.execute("REVOKE ALL ON memory_nodes FROM memory_app")
        owner.execute("GRANT CREATE ON SCHEMA public TO PUBLIC")
    assert grants_of(empty) != before
    assert migrate.apply(empty) == []
    assert grants_of(empty) == before
    columns = "SELECT count(*) FROM pg_attribute WHERE attrelid = 'audit_events'::regclass AND attacl IS NOT NULL"
    assert rows(empty, columns) == [(0,)]
    assert rows(empty, "SELECT has_schema_privilege('memory_app', 'public', 'CREATE')") == [(False,)]


BEFORE_FOLD = {version: min(checksums) for version, checksums in folded().items()}
SINCE = [version for version in VERSIONS if version > "005_isolate_tenants"]  # what came after the fold


def as_before_the_fold(dsn: str, applied: dict[str, str | None]) -> None:
    """A migrated database as the files from before they were folded left it: what they recorded, and two constraints of theirs."""
    with psycopg.connect(dsn) as owner:
        owner.execute("DELETE FROM schema_migrations")
        for version, checksum in applied.items():
            owner.execute("INSERT INTO schema_migrations VALUES (%s, %s, '2026-11-29')", [version, checksum])
        owner.execute("ALTER TABLE memory_vectors DROP CONSTRAINT memory_vectors_error_class")
        owner.execute(
            "ALTER TABLE memory_vectors ADD CONSTRAINT memory_vectors_error_class CHECK (error_class IN ('permanent', 'retryable',"
            " 'cancelled')) NOT VALID"
        )
        owner.execute("ALTER TABLE audit_tiles DROP CONSTRAINT audit_tiles_place")
        owner.execute(
            "ALTER TABLE audit_tiles ADD CONSTRAINT audit_tiles_place CHECK (level BETWEEN 0 AND 7 AND tile >= 0)"
        )


@pytest.mark.parametrize("by_psql", [False, True])
def test_a_database_from_before_the_fold_is_up_to_date(empty: str, by_psql: bool) -> None:
    migrate.apply(empty)
    as_before_the_fold(empty, dict.fromkeys(BEFORE_FOLD) if by_psql else dict(BEFORE_FOLD))
    assert {step.version for step in migrate.plan(empty) if step.status != "folded"} == set(SINCE)
    found = drift.of_database(empty)
    assert found.unknown is not None
    assert "before they were folded" in found.unknown
    assert migrate.apply(empty) == SINCE
    expected = sorted((migration.version, migration.checksum) for migration in migrations())
    assert rows(empty, "SELECT version, checksum FROM schema_migrations ORDER BY version") == expected
    assert rows(empty, "SELECT count(*) FROM schema_migrations WHERE applied_at = '2026-11-29'") == [
        (len(VERSIONS) - len(SINCE),)
    ]
    assert drift.of_database(empty) == drift.Drift()
    assert {step.status for step in migrate.plan(empty)} == {"applied"}
    assert migrate.apply(empty) == []


@pytest.mark.parametrize(
    ("applied", "said"),
    [
        (list(BEFORE_FOLD)[:1], "002_enhance_memory_vectors, 003_audit_log, .*are missing"),
        (list(BEFORE_FOLD)[:5], "006_audit_keys, .*are missing"),
        (list(BEFORE_FOLD)[:-1], r"folded: 025_copies_of_bytes are missing\. Bring it up to date with commit"),
    ],
)
def test_a_part_of_what_was_folded_is_refused_with_the_version_that_completes_it(
    empty: str, applied: list[str], said: str
) -> None:
    migrate.apply(empty)
    as_before_the_fold(empty, {version: BEFORE_FOLD[version] for version in applied})
    before = rows(empty, "SELECT * FROM schema_migrations ORDER BY version")
    for act in (migrate.plan, migrate.apply):
        with pytest.raises(PolicyRefused, match=said) as refused:
            act(empty)
        assert refused.value.exit_code == 4
    assert rows(empty, "SELECT * FROM schema_migrations ORDER BY version") == before


def test_a_constraint_from_before_the_fold_that_somebody_dropped_stays_named(empty: str) -> None:
    migrate.apply(empty)
    as_before_the_fold(empty, dict(BEFORE_FOLD))
    with psycopg.connect(empty, autocommit=True) as owner:
        owner.execute("ALTER TABLE audit_tiles DROP CONSTRAINT audit_tiles_place")
    said: list[str] = []
    assert migrate.apply(empty, said.append) == SINCE
    assert "migrate drift" in "".join(said)
    found = drift.of_database(empty).lines
    assert "tables.audit_tiles.constraints.audit_tiles_place: missing" in found


def test_an_edited_file_from_before_the_fold_is_refused(empty: str) -> None:
    migrate.apply(empty)
    as_before_the_fold(empty, BEFORE_FOLD | {"004_governance": "0" * 64})
    with pytest.raises(PolicyRefused, match="004_governance changed after being applied"):
        migrate.apply(empty)


@pytest.fixture
def nameless(tmp_path: Path) -> Iterator[embedded.Cluster]:
    """A server on which nobody made the runtime role."""
    folder = make_data_folder()
    with embedded.start(folder, durable=False) as running:
        embedded.prepare_database(running)
        with psycopg.connect(running.dsn("postgres"), autocommit=True) as root:
            root.execute("REVOKE ALL ON DATABASE memory FROM memory_app")
            root.execute("DROP ROLE memory_app")
        yield running
    shutil.rmtree(folder.parent, ignore_errors=True)


def test_a_role_that_is_missing_is_reported_and_gets_its_rights_later(nameless: embedded.Cluster) -> None:
    said: list[str] = []
    owner = nameless.dsn("memory_owner")
    assert migrate.apply(owner, said.append) == VERSIONS
    assert [line for line in said if "no role memory_app" in line], said
    with psycopg.connect(nameless.dsn("postgres"), autocommit=True) as root:
        root.execute("CREATE ROLE memory_app LOGIN")
        root.execute("GRANT CONNECT ON DATABASE memory TO memory_app")
    said.clear()
    assert migrate.apply(owner, said.append) == []
    assert said == []
    assert not fingerprint.drift(catalogue(owner)), REGENERATE


def test_the_files_say_what_a_reader_relies_on() -> None:
    for migration in migrations():
        assert re.search(r"^BEGIN;$", migration.text, re.MULTILINE), migration.version
        assert migration.text.rstrip().endswith("COMMIT;"), migration.version
        assert f"VALUES ('{migration.version}')" in migration.text


@contextlib.contextmanager
def debian_server() -> Iterator[str]:
    """The DSN of a database on Debian's Postgres 15, which listens on a socket in a folder of its own account."""
    account = database_account()
    folder = make_data_folder().parent
    arguments = {"cwd": folder, "env": {"PATH": os.defpath, "LC_ALL": "C"}, "stdin": subprocess.DEVNULL,
                 **account.popen_arguments()}  # fmt: skip
    data, log = folder / "pg15", folder / "pg15.log"
    try:
        folder.chmod(0o711)
        if account.switch:
            os.chown(folder, account.uid, account.gid)
        subprocess.run(
            [DEBIAN / "initdb", "-D", data, "-U", "postgres", "-E", "UTF8", "--locale=C.UTF-8", "-A", "trust", "-N"],
            check=True, capture_output=True, **arguments,
        )  # fmt: skip
        with log.open("w") as out:
            server = subprocess.Popen(
                [DEBIAN / "postgres", "-D", data, "-k", folder, "-c", "listen_addresses=", "-c", "fsync=off"],
                stdout=out, stderr=out, **arguments,
            )  # fmt: skip
        try:
            admin = f"host={folder} user=postgres dbname=postgres"
            subprocess.run([DEBIAN / "pg_isready", "-h", folder, "-t", "1"], capture_output=True, check=False)
            with connect_when_ready(admin, server, log) as connection:
                connection.execute("CREATE ROLE memory_owner LOGIN")
                connection.execute("CREATE ROLE memory_app LOGIN")
                connection.execute("CREATE DATABASE memory OWNER memory_owner")
            yield f"host={folder} user=memory_owner dbname=memory"
        finally:
            server.send_signal(2)
            server.wait(30)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def connect_when_ready(dsn: str, server: subprocess.Popen[bytes], log: Path) -> psycopg.Connection[Any]:
    wake = threading.Event()
    for _ in range(300):
        with contextlib.suppress(psycopg.OperationalError):
            return psycopg.connect(dsn, autocommit=True)
        assert server.poll() is None, log.read_text()
        wake.wait(0.1)
    raise AssertionError(f"Postgres 15 did not start:\n{log.read_text()}")


@pytest.mark.skipif(not (DEBIAN / "postgres").exists(), reason=f"Debian's Postgres 15 is not installed ({DEBIAN})")
def test_postgres_15_gets_the_same_schema() -> None:
    with debian_server() as dsn:
        assert migrate.apply(dsn) == VERSIONS
        assert migrate.apply(dsn) == []
        assert fingerprint.drift(catalogue(dsn)) == []
