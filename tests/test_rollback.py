"""A data folder whose database was put back to an earlier day, as its operator and its callers meet it."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import httpx2
import psycopg
import pytest

from memory_layer.audit.checkpoint import parse_checkpoint
from tests.api.door import check_error, eventually
from tests.support.folders import make_data_folder
from tests.support.product import Product, clean_environment, run_ctl, running_product

QUIET = {"EMBEDDINGS_PROVIDER": "none"}
pytestmark = pytest.mark.slow


@pytest.fixture
def folder() -> Iterator[Path]:
    folder = make_data_folder()
    yield folder
    shutil.rmtree(folder.parent, ignore_errors=True)


def write(product: Product) -> httpx2.Response:
    headers = {"Authorization": f"Bearer {product.token}"}
    return httpx2.post(f"{product.url}/v1/memory/nodes", json={"owner": "ann", "content": "x"}, headers=headers)


def test_a_database_of_yesterday(folder: Path) -> None:
    elsewhere = folder.parent / "elsewhere"
    elsewhere.mkdir()
    settings = QUIET | {"AUDIT_ANCHORS": str(elsewhere)}
    with running_product(data=folder, environment=settings) as first:
        node = write(first).json()["memoryNodeId"]
    shutil.copytree(folder / "postgres", folder.parent / "yesterday", symlinks=True)

    with running_product(data=folder, environment=settings) as second:
        made = write(second)
        seq = made.json()["audit"]["seq"]
        pushed = run_ctl(
            "audit", "anchor", "check", "--data", str(folder), "--json", env=clean_environment() | settings
        )
        assert pushed.returncode == 0, pushed.stderr

        def archive() -> int:
            done = second.ctl("audit", "archive", "--data", str(folder), "--json")
            assert done.returncode == 0, done.stderr
            point = json.loads(done.stdout)["facts"]["checkpoint"]
            return int(point.rpartition("/")[2])

        eventually(archive, lambda size: size > seq)

    shutil.rmtree(folder / "postgres")
    (folder.parent / "yesterday").rename(folder / "postgres")
    with running_product(data=folder, environment=settings) as third:
        error = check_error(write(third), 503, "ROLLBACK_DETECTED")
        assert "docs/runbooks/rollback.md" in error["message"]
        assert error["retryable"] is False
        headers = {"Authorization": f"Bearer {third.token}"}
        # What is read could be what an older log says of it.
        check_error(httpx2.get(f"{third.url}/v1/memory/nodes/{node}", headers=headers), 503, "ROLLBACK_DETECTED")
        for probe in ("healthz", "readyz"):
            answer = httpx2.get(f"{third.url}/{probe}")
            assert (answer.status_code, answer.json()["checks"]["rollback"]) == (503, "ROLLBACK_DETECTED")
        assert httpx2.get(f"{third.url}/livez").status_code == 200
        assert "memory_rollback_detected 1.0" in httpx2.get(f"{third.url}/metrics").text
        before = sorted(str(path) for path in (folder / "archive").rglob("*"))
        archived = third.ctl("audit", "archive", "--data", str(folder))
        assert archived.returncode == 4, (archived.stdout, archived.stderr)
        assert "signed checkpoint" in archived.stderr
        assert sorted(str(path) for path in (folder / "archive").rglob("*")) == before
        # What goes outside is held to what is there: nothing smaller or other is laid over it.
        newest = max((folder / "archive").rglob("checkpoints/" + "[0-9]" * 15)).read_bytes()
        checkpoint = parse_checkpoint(newest)
        assert checkpoint.size > seq
        there = elsewhere / checkpoint.origin / f"{checkpoint.size:015d}"
        there.parent.mkdir(parents=True, exist_ok=True)
        there.write_bytes(newest)
        anchored = third.ctl("audit", "anchor", "push", str(elsewhere), "--data", str(folder))
        assert anchored.returncode == 4, (anchored.stdout, anchored.stderr)
        assert "ROLLBACK_DETECTED" in anchored.stdout
        judged = third.ctl("audit", "verify", "--data", str(folder), "--json")
        verdict = json.loads(judged.stdout)
        assert (judged.returncode, {f["code"] for f in verdict["findings"]}) == (30, {"ROLLBACK_DETECTED"})


def test_a_server_on_a_new_timeline_is_written_to_once_the_log_is_proved_there(folder: Path) -> None:
    """What a promoted standby is: the same cluster after archive recovery, on the next timeline."""
    with running_product(data=folder, environment=QUIET) as first:
        seq = write(first).json()["audit"]["seq"]
        with psycopg.connect(first.database) as connection:
            before = connection.execute("SELECT max(timeline) FROM audit_seals").fetchone()

        def archived() -> int:
            done = first.ctl("audit", "archive", "--data", str(folder), "--json")
            assert done.returncode in (0, 1), done.stderr
            return int((json.loads(done.stdout)["facts"].get("checkpoint") or "/0").rpartition("/")[2])

        eventually(archived, lambda size: size > seq)
    server = folder / "postgres"
    with (server / "postgresql.auto.conf").open("a") as conf:
        conf.write("restore_command = 'false'\nhot_standby = off\n")  # nobody is let in before it is promoted
    signal = server / "recovery.signal"
    signal.touch()
    owner = (server / "postgresql.auto.conf").stat()
    os.chown(signal, owner.st_uid, owner.st_gid)
    with running_product(data=folder, environment=QUIET) as second:
        assert write(second).status_code == 201
        with second.owner() as connection:
            found = connection.execute(
                "SELECT convert_from(p.payload, 'UTF8')::jsonb FROM audit_events e JOIN audit_payloads p USING (log, seq)"
                " WHERE e.event_type = 'ops.server-changed.succeeded'"
            ).fetchall()
        assert before is not None
        ((payload,),) = found
        assert isinstance(payload, dict)
        assert (payload["before"]["timeline"], payload["after"]["timeline"]) == (before[0], before[0] + 1)
        assert payload["proved"]
        judged = second.ctl("audit", "verify", "--data", str(folder), "--json")
        assert (judged.returncode, json.loads(judged.stdout)["findings"]) == (10, [])
