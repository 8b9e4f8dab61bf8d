"""What the worker does each night: repairs, a snapshot, a run on record, metrics; and the frame inside an event loop."""

from __future__ import annotations

import asyncio
import json
import uuid
from pathlib import Path
from typing import Any

import msgspec
import pytest

from memory_layer.errors import LockHeld, VectorStoreUnavailable
from memory_layer.ops import runs
from memory_layer.ops.operate import Run, operate
from memory_layer.ops.report import Finding
from memory_layer.ops.vectors import nightly as ops
from memory_layer.ops.vectors import reconcile as comparing
from memory_layer.ops.vectors.manifest import read_manifest
from memory_layer.service.installation import Installation
from memory_layer.stores.logs import find_trust_root
from memory_layer.telemetry import metrics
from memory_layer.worker import pool
from tests.drills.conftest import DIMENSION, NAMESPACE, TENANT, DrilledInstallation
from tests.support.service import rows, verify

pytestmark = pytest.mark.parametrize("installation", ["pgvector"], indirect=True)


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(comparing, "MOMENT", 0.05)


def with_settings(installation: DrilledInstallation, **settings: Any) -> Installation:
    memory = installation.memory
    changed = msgspec.structs.replace(memory.settings, **settings)
    return memory.with_parts(settings=changed)


def entries(installation: DrilledInstallation) -> list[Any]:
    query = "SELECT e.event_type FROM ops_runs r JOIN audit_events e ON e.id = r.audit_id ORDER BY r.started_at"
    return [type_ for (type_,) in rows(installation.dsn, query)]


async def test_a_night(installation: DrilledInstallation, tmp_path: Path) -> None:
    nodes = await installation.fill(10)
    installation.broken.lose(TENANT, NAMESPACE, nodes[:2])
    installation.broken.put(TENANT, NAMESPACE, nodes[2], 5, [1] * DIMENSION)
    parent = tmp_path / "snapshots"
    memory = with_settings(installation, vector_snapshot_dir=str(parent), vector_snapshot_keep=1)
    stop = asyncio.Event()
    worker = asyncio.create_task(pool.run(memory, stop))
    try:
        await ops.nightly(memory)
    finally:
        stop.set()
        await worker
    ((run_id,),) = rows(installation.dsn, "SELECT id FROM ops_runs")
    found = runs.find(installation.dsn, run_id)
    assert (found["verb"], found["verdict"], found["evidence"]) == ("vectors-nightly", "findings", "ok")
    facts = found["report"]["facts"]
    assert (facts["found"], facts["differences"]) == ({"missing": 2, "ahead": 1}, {"ahead": 1})
    assert entries(installation) == ["ops.vectors-nightly.failed"]
    assert metrics.vector_differences.labels("ahead")._value.get() == 1
    assert metrics.vector_differences.labels("missing")._value.get() == 0
    (kept,) = parent.iterdir()
    manifest = read_manifest(kept, find_trust_root(installation.folder)).manifest
    assert (manifest.dirty, manifest.rows) == (True, 10)
    assert json.loads((kept / "manifest.json").read_text())["spaces"][0]["differences"] == {"ahead": 1}
    assert verify(installation.dsn, installation.folder).findings == ()


async def test_a_night_without_a_folder_and_without_differences(installation: DrilledInstallation) -> None:
    await installation.fill(3)
    await ops.nightly(installation.memory)
    assert entries(installation) == ["ops.vectors-nightly.succeeded"]
    assert metrics.vector_differences.labels("ahead")._value.get() == 0
    ((report,),) = rows(installation.dsn, "SELECT report FROM ops_runs")
    assert "snapshot" not in report["facts"]


async def test_a_store_that_is_down_fails_the_job(installation: DrilledInstallation) -> None:
    await installation.fill(3)

    class Down:
        provider = "pgvector"

        async def scan(self, *_: object, **__: object) -> None:
            raise VectorStoreUnavailable("the store does not answer")

    down: Any = Down()
    memory = installation.memory
    with pytest.raises(VectorStoreUnavailable):
        await ops.nightly(memory.with_parts(vectors=down))
    assert entries(installation) == ["ops.vectors-nightly.failed"]


# --- the frame inside an event loop


async def test_a_run_inside_an_event_loop_is_kept_as_any_other(installation: DrilledInstallation) -> None:
    async def work(run: Run) -> None:
        await asyncio.sleep(0)
        run.fact("a", 1)
        run.find(Finding("a.b", "error", "fail", "it is so"))

    report = await operate(installation.memory, "test", {"x": 1}, work)
    assert (report.exit, report.facts) == (1, {"a": 1})
    found = await asyncio.to_thread(runs.find, installation.dsn, report.run_id)
    assert (found["verdict"], found["evidence"], found["arguments"]) == ("findings", "ok", {"x": 1})


async def test_two_runs_inside_an_event_loop_keep_apart(installation: DrilledInstallation) -> None:
    inside, done = asyncio.Event(), asyncio.Event()

    async def first(_run: Run) -> None:
        inside.set()
        await done.wait()

    async def never(_run: Run) -> None:
        raise AssertionError

    running = asyncio.create_task(operate(installation.memory, "test", {}, first, lock="a"))
    await inside.wait()
    with pytest.raises(LockHeld):
        await operate(installation.memory, "test", {}, never, lock="a")
    done.set()
    assert (await running).exit == 0
    verdicts = rows(installation.dsn, "SELECT verdict FROM ops_runs ORDER BY started_at")
    assert verdicts == [("ok",), ("locked",)]


async def test_a_run_that_is_cancelled_is_interrupted(installation: DrilledInstallation) -> None:
    inside = asyncio.Event()
    ids: list[uuid.UUID] = []

    async def work(run: Run) -> None:
        ids.append(run.id)
        inside.set()
        await asyncio.Event().wait()

    running = asyncio.create_task(operate(installation.memory, "test", {}, work, lock="a"))
    await inside.wait()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    memory = installation.memory
    for _ in range(100):  # the server notices the closed session a moment later
        if await runs.write_owed(memory.postgres, memory.committer):
            break
        await asyncio.sleep(0.05)
    found = await asyncio.to_thread(runs.find, installation.dsn, ids[0])
    assert (found["verdict"], found["evidence"]) == ("interrupted", "ok")
    assert entries(installation) == ["ops.test.failed"]
    again = await operate(installation.memory, "test", {}, _nothing, lock="a")  # its lock went with it
    assert again.exit == 0


async def _nothing(_run: Run) -> None: ...
