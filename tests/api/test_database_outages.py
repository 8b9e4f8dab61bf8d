"""A database that answers and does not take writes, or takes nothing: the true reason, what to do, and red health checks until it
is over."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import psycopg
import pytest

from memory_layer import config
from memory_layer.ops import embedded, migrate
from memory_layer.ops.first_start import ensure_keys, start_log
from tests.api.door import check_error, connect, create
from tests.support.folders import make_data_folder
from tests.support.product import Product, clean_environment, running_product

WITHIN = 60.0  # seconds in which a health check must turn
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def own() -> Iterator[Product]:
    with running_product() as product:
        yield product


def probes(url: str) -> tuple[tuple[int, dict[str, Any]], tuple[int, dict[str, Any]]]:
    """(status, answer) of /readyz and of /healthz."""
    found = [httpx2.get(url + path, timeout=30) for path in ("/readyz", "/healthz")]
    return (found[0].status_code, found[0].json()), (found[1].status_code, found[1].json())


def until(condition: Callable[[], bool], what: str, seconds: float = WITHIN) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"not within {seconds} s: {what}"
        time.sleep(0.1)


def red(url: str, reason: str) -> bool:
    (ready, checks), (healthy, health) = probes(url)
    shown = checks["checks"].get("writes") == reason and health["checks"].get("writes") == reason
    return shown and (ready, healthy, health["status"]) == (503, 503, "down")


def green(url: str) -> bool:
    (ready, _), (healthy, health) = probes(url)
    return (ready, healthy, health["status"]) == (200, 200, "ok")


def refused(http: httpx2.Client, said: str) -> None:
    error = check_error(
        http.post("/v1/memory/nodes", json={"owner": "ann", "content": "x"}), 503, "DATABASE_UNAVAILABLE"
    )
    assert error["retryable"] is True
    assert said in error["message"]
    assert "does not answer" not in error["message"]


def api_log(data: Path) -> str:
    return (data / "log" / "api.log").read_text()


@pytest.mark.parametrize("writing", [False, True], ids=["nobody writes", "somebody writes"])
def test_read_only_by_a_setting(own: Product, tenant: str, writing: bool) -> None:
    with connect(own, tenant) as http, own.owner() as root:
        node = create(http, content="before")
        root.execute("ALTER SYSTEM SET default_transaction_read_only = on")
        root.execute("SELECT pg_reload_conf()")
        try:
            if writing:
                until(lambda: http.post("/v1/memory/nodes", json={"owner": "a"}).status_code == 503, "a refusal")
                for _ in range(20):
                    refused(http, "accepts no writes")
                assert red(own.url, "read-only")
            until(lambda: red(own.url, "read-only"), "red")
            refused(http, "default_transaction_read_only")
            assert http.get(f"/v1/memory/nodes/{node}").status_code == 200
            assert httpx2.get(own.url + "/livez").status_code == 200
        finally:
            root.execute("ALTER SYSTEM RESET default_transaction_read_only")
            root.execute("SELECT pg_reload_conf()")
        until(lambda: green(own.url), "green")
        create(http, content="after")
        assert root.execute("SELECT count(*) FROM idempotency_keys WHERE key LIKE 'probe %%'").fetchone() == (0,)
    log = api_log(own.data)
    assert "Traceback" not in log
    lines = [line for line in log.splitlines() if "25006" in line]
    assert 1 <= len(lines) <= 12, lines


# (SQLSTATE, status, code, what the message must say)
STATES = (
    ("25006", 503, "DATABASE_UNAVAILABLE", "no writes"),
    ("28P01", 503, "DATABASE_UNAVAILABLE", "login"),
    ("3D000", 503, "DATABASE_UNAVAILABLE", "does not exist"),
    ("40001", 503, "OVERLOADED", "in the way"),
    ("40P01", 503, "OVERLOADED", "in the way"),
    ("42501", 503, "DATABASE_UNAVAILABLE", "memoryctl migrate apply"),
    ("42P01", 503, "DATABASE_UNAVAILABLE", "memoryctl migrate apply"),
    ("53100", 503, "DATABASE_UNAVAILABLE", "disk of the database is full"),
    ("53200", 503, "DATABASE_UNAVAILABLE", "out of memory"),
    ("53300", 503, "DATABASE_UNAVAILABLE", "no more connections"),
    ("53400", 503, "DATABASE_UNAVAILABLE", "limit"),
    ("55P03", 503, "OVERLOADED", "lock"),
    ("57014", 503, "OVERLOADED", "too long"),
    ("57P01", 503, "DATABASE_UNAVAILABLE", "ended this connection"),
    ("57P03", 503, "DATABASE_UNAVAILABLE", "starting up"),
    ("58030", 503, "DATABASE_UNAVAILABLE", "files"),
    ("22003", 500, "INTERNAL", "nothing was changed"),
    ("XX000", 500, "INTERNAL", "nothing was changed"),
)


def test_each_sqlstate_has_its_answer(own: Product, tenant: str) -> None:
    """A trigger raises what the node's text names, in the middle of a write."""
    with own.owner() as root, connect(own, tenant) as http:
        root.execute(
            "CREATE FUNCTION raise_named() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
            " IF NEW.content LIKE 'state %' THEN RAISE EXCEPTION 'as asked' USING ERRCODE = substr(NEW.content, 7); END IF;"
            " RETURN NEW; END $$"
        )
        root.execute(
            "CREATE TRIGGER raise_named BEFORE INSERT ON memory_nodes FOR EACH ROW EXECUTE FUNCTION raise_named()"
        )
        try:
            before = root.execute("SELECT count(*) FROM memory_nodes").fetchone()
            for state, status, code, said in STATES:
                answer = http.post("/v1/memory/nodes", json={"owner": "ann", "content": f"state {state}"})
                error = check_error(answer, status, code)
                assert said in error["message"], (state, error)
                assert error["retryable"] is (status == 503), state
                assert ("Retry-After" in answer.headers) is (status == 503), state
            assert root.execute("SELECT count(*) FROM memory_nodes").fetchone() == before
            create(http)
        finally:
            root.execute("DROP FUNCTION raise_named CASCADE")
    until(lambda: green(own.url), "green")


def test_no_connection_left(own: Product, tenant: str) -> None:
    with own.owner() as root, connect(own, tenant) as http:
        create(http)
        root.execute("ALTER ROLE memory_app CONNECTION LIMIT 0")
        try:
            root.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'memory_app'")
            until(lambda: http.post("/v1/memory/nodes", json={"owner": "a"}).status_code == 503, "a refusal")
            refused(http, "takes no more connections")
            error = check_error(http.get("/v1/memory/nodes"), 503, "DATABASE_UNAVAILABLE")
            assert "takes no more connections" in error["message"]
            until(lambda: probes(own.url)[0][0] == probes(own.url)[1][0] == 503, "red")
        finally:
            root.execute("ALTER ROLE memory_app CONNECTION LIMIT -1")
        until(lambda: green(own.url), "green")
        create(http)


def test_a_right_that_is_missing_is_named(own: Product, tenant: str) -> None:
    with own.owner() as root, connect(own, tenant) as http:
        create(http)
        root.execute("REVOKE INSERT ON audit_events FROM memory_app")
        try:
            refused(http, "memoryctl migrate apply")
            assert "permission denied for table audit_events" in api_log(own.data)
        finally:
            root.execute("GRANT INSERT ON audit_events TO memory_app")
        until(lambda: green(own.url), "green")


@contextlib.contextmanager
def serving(data: Path, dsn: str, log: Path) -> Iterator[str]:
    """The address of a `serve` on this database, with its log in a file."""
    environment = clean_environment() | {"DATABASE_URL": dsn, "PORT": "0", "EMBEDDINGS_PROVIDER": "none"}
    with log.open("w") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", "memory_layer.cli", "serve", "--data", str(data)],
            env=environment, stdout=out, stderr=out, stdin=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
    try:
        until(lambda: "listening on http://" in log.read_text() or process.poll() is not None, "a start")
        assert process.poll() is None, log.read_text()
        url = log.read_text().partition("listening on ")[2].split()[0]
        until(lambda: httpx2.get(url + "/readyz", timeout=30).status_code == 200, "ready")
        yield url
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


def test_a_primary_that_becomes_a_standby(data_folder: Path) -> None:
    database = make_data_folder()
    log = data_folder.with_name("serve.log")
    with contextlib.ExitStack() as stack:
        stack.callback(shutil.rmtree, database.parent, ignore_errors=True)
        cluster = stack.enter_context(embedded.start(database, durable=False))
        embedded.prepare_database(cluster)
        migrate.apply(cluster.dsn("memory_owner"))
        migrate.apply_pgvector(cluster.dsn("memory_owner"))
        dsn = cluster.dsn("memory_app")
        install(data_folder, dsn, cluster.dsn("memory_owner"))
        with serving(data_folder, dsn, log) as url:
            product = Product(data_folder, None, url)  # type: ignore[arg-type]
            with connect(product, "default") as http:
                node = create(http, content="before")
                cluster.stop()
                signal_file = cluster.pgdata / "standby.signal"
                signal_file.touch()
                os.chown(signal_file, cluster.account.uid, cluster.account.gid)
                cluster = stack.enter_context(embedded.start(database, durable=False))
                until(lambda: red(url, "read-only"), "red")
                refused(http, "standby")
                assert http.get(f"/v1/memory/nodes/{node}").status_code == 200
                with psycopg.connect(cluster.dsn("postgres"), autocommit=True) as root:
                    root.execute("SELECT pg_promote()")
                until(lambda: green(url), "green")
                # A promotion changes the timeline: writes wait until the log is proved to be whole there.
                after = {"owner": "ann", "content": "after"}
                until(lambda: http.post("/v1/memory/nodes", json=after).status_code == 201, "a write")
    assert "Traceback" not in log.read_text()


def install(data: Path, dsn: str, owner: str) -> None:
    """What `serve` finds in a data folder and a database that another start has made."""
    data.mkdir(parents=True)
    ensure_keys(data)
    asyncio.run(start_log(config.load({}, embeddings_provider="none"), data, dsn, owner))


def test_a_full_disk(data_folder: Path) -> None:
    data_folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=420m,mode=711", "tmpfs", str(data_folder)]
    mounted = subprocess.run(mount, capture_output=True, text=True, check=False)
    if mounted.returncode:
        pytest.skip(f"no small file system can be mounted here: {mounted.stderr.strip()}")
    try:
        with (
            running_product(data=data_folder, environment={"EMBEDDINGS_PROVIDER": "none"}) as product,
            connect(product, "default") as http,
        ):
            create(http, content="before")
            ballast = data_folder / "ballast"
            with ballast.open("wb", buffering=0) as file, contextlib.suppress(OSError):
                while True:
                    file.write(bytes(2**16))
            until(lambda: red(product.url, "disk full"), "red")
            assert probes(product.url)[1][1]["checks"]["objects"] == "down"
            text = os.urandom(300_000).hex()
            error = check_error(
                http.post("/v1/memory/nodes", json={"owner": "a", "content": text}), 503, "DATABASE_UNAVAILABLE"
            )
            assert "disk of the database is full" in error["message"]
            upload = http.put("/v1/memory/artifacts", content=os.urandom(300_000), params={"name": "a"})
            assert "No space left" in check_error(upload, 503, "OBJECT_STORE_UNAVAILABLE")["message"]
            ballast.unlink()
            until(lambda: green(product.url), "green")
            create(http, content="after")
        assert "Traceback" not in api_log(data_folder)
    finally:
        subprocess.run(["umount", str(data_folder)], check=True)
