"""`memoryctl freeze` as a shell and the callers of several processes see it."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import psycopg
import pytest

from memory_layer.cli.access import database_of
from tests.api.door import check_error, connect, create, create_indexed, eventually, found_ids, sha256
from tests.support.ageing import expire
from tests.support.product import Product, running_product


@pytest.fixture(scope="module")
def product() -> Iterator[Product]:
    """A product of its own, with two API processes: a freeze stops everybody."""
    with running_product("--processes", "2") as running:
        yield running


@pytest.fixture(autouse=True)
def thawed(product: Product) -> Iterator[None]:
    yield
    with product.owner() as connection:
        connection.execute("DELETE FROM write_freeze")


def ctl(product: Product, *words: str, code: int = 0) -> Any:
    done = product.ctl("freeze", *words, "--data", str(product.data), "--json")
    assert done.returncode == code, done.stderr
    return json.loads(done.stdout)


def freeze(product: Product, *words: str, reason: str = "the index drifts") -> dict[str, Any]:
    found: dict[str, Any] = ctl(product, "on", "--reason", reason, *words)
    return found


def events(product: Product, pattern: str) -> list[str]:
    with product.owner() as connection:
        found = connection.execute(
            "SELECT event_type FROM audit_events WHERE event_type LIKE %s ORDER BY seq", [pattern]
        )
        return [str(row[0]) for row in found]


def test_every_kind_of_write_is_refused_and_every_read_answered(product: Product, tenant: str) -> None:
    with connect(product, tenant) as http:
        node = create_indexed(http, content="the north gate is locked at nine")
        once = {"Idempotency-Key": "once"}
        first = http.post("/v1/memory/nodes", json={"owner": "ann", "content": "before"}, headers=once)
        etag = http.get(f"/v1/memory/nodes/{node}").headers["ETag"]
        report = freeze(product)
        assert (report["verdict"], report["facts"]["until"]) == ("ok", None)
        with product.owner() as connection:
            before = connection.execute("SELECT max(seq) FROM audit_events WHERE tenant = %s", [tenant]).fetchone()
        refused = [
            http.post("/v1/memory/nodes", json={"owner": "ann", "content": "after"}),
            http.post("/v1/memory/nodes:batch", json=[{"owner": "ann", "content": "after"}]),
            http.patch(f"/v1/memory/nodes/{node}", json={"content": "after"}, headers={"If-Match": etag}),
            http.delete(f"/v1/memory/nodes/{node}"),
            http.post(f"/v1/memory/nodes/{node}/legal-hold", json={"legalHold": True, "reason": "case 7"}),
            http.put("/v1/memory/artifacts", content=b"bytes of a frozen time", params={"name": "a"}),
        ]
        for answer in refused:
            error = check_error(answer, 503, "FROZEN")
            assert error["retryable"] is True
            assert "the index drifts" in error["message"]
            assert answer.headers["Retry-After"] == "1"
        with product.owner() as connection:
            after = connection.execute("SELECT max(seq) FROM audit_events WHERE tenant = %s", [tenant]).fetchone()
        assert after == before
        assert not list((product.data / "objects").rglob(sha256(b"bytes of a frozen time") + "*"))
        # Reads, and the answer to what was committed before, are given as ever.
        assert http.get(f"/v1/memory/nodes/{node}").json()["content"] == "the north gate is locked at nine"
        assert found_ids(http, query="gate")[0] == node
        again = http.post("/v1/memory/nodes", json={"owner": "ann", "content": "before"}, headers=once)
        assert again.status_code in (200, 201)
        assert again.json()["memoryNodeId"] == first.json()["memoryNodeId"]
        ctl(product, "off")
        assert found_ids(http, query="gate")[0] == node
        create(http, content="after")


def test_it_is_reported_audited_and_idempotent(product: Product, tenant: str) -> None:
    assert ctl(product, "status") == {"frozen": False}
    assert [f["finding"] for f in ctl(product, "off")["findings"]] == ["Writes were not frozen."]
    since = freeze(product)["facts"]["since"]
    again = freeze(product, reason="restoring")["facts"]
    assert (again["since"], again["reason"]) == (since, "restoring")
    assert ctl(product, "status") == {"frozen": True, "reason": "restoring", "since": since, "until": None}
    health, ready = httpx2.get(product.url + "/healthz"), httpx2.get(product.url + "/readyz")
    assert (health.status_code, ready.status_code) == (200, 200)
    assert (health.json()["status"], health.json()["checks"]["writes"]) == ("frozen", "frozen")
    assert health.json()["frozen"] == {"reason": "restoring", "since": since, "until": None}
    assert (ready.json()["status"], ready.json()["checks"]["writes"]) == ("ready", "frozen")
    assert "memory_writes_frozen 1.0" in httpx2.get(product.url + "/metrics").text
    # What the installation writes by itself goes on, the entry of the run that lifts the freeze among it.
    ctl(product, "off")
    assert httpx2.get(product.url + "/healthz").json()["status"] == "ok"
    assert "memory_writes_frozen 0.0" in httpx2.get(product.url + "/metrics").text
    kinds = events(product, "ops.%")
    for kind in ("ops.writes-frozen.succeeded", "ops.writes-resumed.succeeded", "ops.freeze-on.succeeded",
                 "ops.freeze-off.succeeded"):  # fmt: skip
        assert kind in kinds
    done = product.ctl("audit", "verify", "--data", str(product.data))
    assert done.returncode == 10, done.stdout


def test_it_ends_by_itself_when_it_was_told_to(product: Product, tenant: str) -> None:
    with connect(product, tenant) as http:
        freeze(product, "--for", "2s")
        answer = http.post("/v1/memory/nodes", json={"owner": "ann", "content": "x"})
        if answer.status_code != 201:  # the command itself may take the two seconds on a busy machine
            check_error(answer, 503, "FROZEN")
            assert 1 <= int(answer.headers["Retry-After"]) <= 2
        eventually(
            lambda: http.post("/v1/memory/nodes", json={"owner": "ann", "content": "x"}).status_code,
            lambda status: status == 201,
        )
        assert ctl(product, "status") == {"frozen": False}


def test_a_command_that_waits_for_the_end_says_so(product: Product) -> None:
    freeze(product, "--for", "6s")
    done = product.ctl("node", "create", "x", "--owner", "ann")
    assert done.returncode == 0, done.stderr
    assert "FROZEN: Writes are frozen by an operator" in done.stderr
    assert "trying again in" in done.stderr


@pytest.mark.parametrize("words", [("--reason", ""), ("--reason", "two\nlines"), ("--reason", "x", "--for", "soon"),
                                   ("--reason", "x", "--for", "0s"), ("--reason", "x" * 501)])  # fmt: skip
def test_nonsense_is_refused(product: Product, words: tuple[str, ...]) -> None:
    done = product.ctl("freeze", "on", *words, "--data", str(product.data))
    assert done.returncode == 2, done.stderr
    assert ctl(product, "status") == {"frozen": False}


def test_no_write_is_committed_after_the_command_returned(product: Product, tenant: str) -> None:
    """Writers at both processes all the time: what the log holds of them ends before the freeze's own entry."""
    stop = threading.Event()

    def write(number: int) -> int:
        written = 0
        with connect(product, tenant, service=f"writer-{number}") as http:
            while not stop.is_set():
                answer = http.post("/v1/memory/nodes", json={"owner": "ann", "content": f"note {written}"})
                assert answer.status_code in (201, 503), answer.text
                written += answer.status_code == 201
        return written

    with ThreadPoolExecutor(4) as pool:
        writers = [pool.submit(write, number) for number in range(4)]
        eventually(lambda: _nodes(product, tenant), lambda count: count > 20)
        freeze(product)
        counted = _nodes(product, tenant)
        deadline = time.monotonic() + 1
        while time.monotonic() < deadline:
            assert _nodes(product, tenant) == counted
        stop.set()
        assert sum(writer.result() for writer in writers) == counted
    with product.owner() as connection:
        row = connection.execute(
            "SELECT (SELECT max(seq) FROM audit_events WHERE tenant = %s),"
            " (SELECT max(seq) FROM audit_events WHERE event_type = 'ops.writes-frozen.succeeded')",
            [tenant],
        ).fetchone()
    assert row is not None
    assert row[0] < row[1]  # type: ignore[operator]


def _nodes(product: Product, tenant: str) -> int:
    with product.owner() as connection:
        row = connection.execute("SELECT count(*) FROM memory_nodes WHERE tenant = %s", [tenant]).fetchone()
    assert row is not None
    return int(str(row[0]))


@pytest.mark.slow
def test_a_freeze_outlives_a_restart_and_expiry_waits_for_its_end(data_folder: Path) -> None:
    with running_product(data=data_folder) as first:
        with connect(first, "ann") as http:
            node = create(http, content="short-lived", ttlSeconds=3600)
        expire(data_folder, first.database, "ann", node)
        freeze(first)
    # While nothing runs, so that the job is due at the start and not at the worker's next look a minute later.
    with database_of(data_folder) as dsn, psycopg.connect(dsn.replace("memory_app@", "postgres@")) as connection:
        connection.execute("UPDATE ops_schedule SET next_due = clock_timestamp() WHERE job = 'expiry'")
    with running_product(data=data_folder) as second:
        with connect(second, "ann") as http:
            check_error(http.post("/v1/memory/nodes", json={"owner": "ann", "content": "x"}), 503, "FROZEN")
        with second.owner() as connection:
            assert _swept(connection) == (0, None)
            deleted = connection.execute("SELECT deleted_at FROM memory_nodes WHERE id = %s", [node]).fetchone()
            assert deleted == (None,)


def _swept(connection: psycopg.Connection[tuple[object, ...]]) -> tuple[object, ...] | None:
    """(failures, last error) of the expiry job once it has run after the start."""

    def look() -> tuple[object, ...] | None:
        return connection.execute(
            "SELECT failures, last_error FROM ops_schedule WHERE job = 'expiry'"
            " AND last_success > pg_postmaster_start_time()"
        ).fetchone()

    return eventually(look, lambda row: row is not None, within=90)
