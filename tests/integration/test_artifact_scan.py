"""Damage behind the product's back is found and named, once it is looked for: by a scan, a sample, or one file alone."""

from __future__ import annotations

import asyncio
import dataclasses
import datetime as dt
import hashlib
import shutil
import time
import uuid
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from memory_layer.errors import Conflict, NotFound, ObjectStoreUnavailable
from memory_layer.ops import runs
from memory_layer.ops.artifacts import jobs
from memory_layer.ops.artifacts import scan as scanning
from memory_layer.ops.artifacts.scan import Scanned, findings_of, scan, verify_one
from memory_layer.service import artifacts
from memory_layer.service.installation import Installation
from memory_layer.service.system import system_caller
from memory_layer.stores.objects import folder_state
from memory_layer.stores.protocols import Lock
from memory_layer.telemetry import metrics
from tests.support.artifacts import register, upload, with_objects
from tests.support.service import caller, rows, running_memory, verify

Database = Callable[[str], str]
EVENTS = "SELECT event_type, artifact_id FROM audit_events WHERE event_type LIKE 'memory.artifact.%%' AND event_type <> 'memory.artifact.created' ORDER BY seq"
FAULT = "SELECT fault, verified_at IS NOT NULL FROM artifacts WHERE id = %s"


@pytest.fixture
async def memory(database: Database, tmp_path: Path) -> AsyncIterator[Installation]:
    async with running_memory(database("memory_app"), tmp_path) as opened:
        yield opened


def file_of(folder: Path, content: bytes) -> Path:

    (path,) = (folder / "objects" / "ann").rglob(hashlib.sha256(content).hexdigest())
    return path


def flip(path: Path, at: int = 3) -> None:
    """Change one byte, as a failing disk would."""
    path.chmod(0o600)
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


async def scanned(memory: Installation, folder: Path, **more: Any) -> Scanned:
    asked: dict[str, Any] = {"sample": None, "rate": None, "resume": False}
    return await scan(memory, await system_caller(memory, "worker"), **asked | more)


async def test_sound_files_are_verified_without_an_entry_each(
    memory: Installation, database: Database, tmp_path: Path
) -> None:
    ids = [await upload(memory, b"file %d" % n, tenant=f"t{n % 3}") for n in range(7)]
    done = await scanned(memory, tmp_path)
    assert (done.artifacts, done.right, dict(done.faults)) == (7, 7, {})
    assert [f.status for f in findings_of(done)] == ["pass"]
    for artifact in ids:
        assert rows(database("postgres"), FAULT, [artifact]) == [(None, True)]
    assert rows(database("postgres"), EVENTS) == []


async def test_a_lock_in_a_weaker_mode_than_the_setting_is_a_fault(database: Database, tmp_path: Path) -> None:
    dsn, far = database("memory_app"), dt.datetime.now(dt.UTC) + dt.timedelta(days=400)
    async with running_memory(dsn, tmp_path, artifact_lock_mode="GOVERNANCE") as memory:
        artifact = await upload(memory, b"weakly locked", retain_until=far)
        done = await scanned(memory, tmp_path)
        assert (done.faults, done.right) == ({}, 1)
    async with running_memory(dsn, tmp_path) as memory:
        done = await scanned(memory, tmp_path)
        assert done.faults == {"unlocked": 1}
        (found,) = findings_of(done)
        assert (found.evidence["artifactId"], found.evidence["lockedIn"]) == (str(artifact), "GOVERNANCE")
        # What the finding says to do mends it.
        await artifacts.extend(memory, caller(), artifact, far)
        done = await scanned(memory, tmp_path)
        assert done.faults == {}


async def test_a_mode_that_the_store_does_not_change_is_no_acknowledged_lock(
    database: Database, tmp_path: Path
) -> None:
    dsn, far = database("memory_app"), dt.datetime.now(dt.UTC) + dt.timedelta(days=400)
    async with running_memory(dsn, tmp_path, artifact_lock_mode="GOVERNANCE") as memory:
        artifact = await upload(memory, b"weakly locked", retain_until=far)
    async with running_memory(dsn, tmp_path) as memory:

        class Stubborn:
            """As Ceph, which lets only who may bypass GOVERNANCE make it COMPLIANCE."""

            def __getattr__(self, name: str) -> Any:
                return getattr(memory.objects, name)

            async def extend_lock(self, key: str, version_id: str, lock: Lock) -> None:
                raise Conflict("This server does not let you.")

        before = rows(database("postgres"), "SELECT count(*) FROM audit_events")
        with pytest.raises(Conflict, match=r"locked in GOVERNANCE.*ARTIFACT_LOCK_MODE"):
            await artifacts.extend(with_objects(memory, Stubborn()), caller(), artifact, far)
        assert rows(database("postgres"), "SELECT count(*) FROM audit_events") == before


async def test_each_kind_of_damage_is_found_and_named(memory: Installation, database: Database, tmp_path: Path) -> None:
    far = dt.datetime.now(dt.UTC) + dt.timedelta(days=400)
    byte, short, gone, fine = [
        await upload(memory, content) for content in (b"one byte", b"cut short", b"removed", b"all is well")
    ]
    registered = await register(memory, "ann/models/a", b"replaced by others")
    unlocked = await upload(memory, b"locked", retain_until=far)
    flip(file_of(tmp_path, b"one byte"))
    cut = file_of(tmp_path, b"cut short")
    cut.chmod(0o600)
    cut.write_bytes(b"cut")
    file_of(tmp_path, b"removed").unlink()
    model = tmp_path / "objects" / "ann" / "models" / "a"
    model.chmod(0o600)
    model.write_bytes(b"replaced by thieve")
    # Somebody takes the lock off behind the store's back: what the directory knows of its objects lies beside them.
    locked = file_of(tmp_path, b"locked").relative_to(tmp_path / "objects")
    state = folder_state.read_state(tmp_path / "objects", locked)
    folder_state.write_state(tmp_path / "objects", locked, dataclasses.replace(state, lock=None))
    done = await scanned(memory, tmp_path)
    assert done.faults == {"corrupt": 3, "missing": 1, "unlocked": 1}
    assert done.right == 1
    found = {f.evidence["artifactId"]: f for f in findings_of(done)}
    expected = {byte: "corrupt", short: "corrupt", gone: "missing", registered: "corrupt", unlocked: "unlocked"}
    assert {uuid.UUID(id_): f.id.removeprefix("artifacts.") for id_, f in found.items()} == expected
    assert all((f.level, f.status) == ("error", "fail") for f in found.values())
    assert found[str(short)].evidence["foundBytes"] == 3
    assert len(found[str(byte)].evidence["foundSha256"]) == 64
    for artifact, fault in expected.items():
        assert rows(database("postgres"), FAULT, [artifact])[0][0] == fault
    assert rows(database("postgres"), FAULT, [fine]) == [(None, True)]
    assert sorted(rows(database("postgres"), EVENTS)) == sorted(
        ("memory.artifact.corrupt", artifact) for artifact in expected
    )
    assert metrics.artifact_faults.labels("corrupt")._value.get() == 3
    assert metrics.artifact_faults.labels("missing")._value.get() == 1
    await jobs.weekly_scan(memory)  # a recorded run: what it found right was found right during it
    assert verify(database("postgres"), tmp_path).findings == ()


async def test_what_is_right_again_is_reported_as_such(
    memory: Installation, database: Database, tmp_path: Path
) -> None:
    artifact = await upload(memory, b"comes back")
    path = file_of(tmp_path, b"comes back")
    flip(path)
    await scanned(memory, tmp_path)
    flip(path)
    assert (await scanned(memory, tmp_path)).right == 1
    assert [kind for kind, _ in rows(database("postgres"), EVENTS)] == [
        "memory.artifact.corrupt",
        "memory.artifact.verified",
    ]
    assert rows(database("postgres"), FAULT, [artifact]) == [(None, True)]
    assert metrics.artifact_faults.labels("corrupt")._value.get() == 0


async def test_one_alone_is_always_reported(memory: Installation, database: Database, tmp_path: Path) -> None:
    artifact = await upload(memory, b"one alone")
    place = memory
    _, checked = await verify_one(place, await system_caller(place, "worker"), artifact)
    assert (checked.fault, checked.hashed) == (None, 9)
    flip(file_of(tmp_path, b"one alone"))
    assert (await verify_one(place, await system_caller(place, "worker"), artifact))[1].fault == "corrupt"
    assert rows(database("postgres"), EVENTS) == [
        ("memory.artifact.verified", artifact),
        ("memory.artifact.corrupt", artifact),
    ]
    with pytest.raises(NotFound):
        await verify_one(place, await system_caller(place, "worker"), uuid.uuid4())


async def test_a_sample_is_so_many(memory: Installation, tmp_path: Path) -> None:
    for n in range(9):
        await upload(memory, b"%d" % n)
    assert (await scanned(memory, tmp_path, sample=4)).artifacts == 4
    assert (await scanned(memory, tmp_path, sample=400)).artifacts == 9


async def test_a_scan_that_is_cut_off_goes_on(
    memory: Installation, database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scanning, "PAGE", 4)
    for n in range(10):
        await upload(memory, b"%d" % n, tenant=f"t{n}")
    seen = []

    class Dying:
        def __getattr__(self, name: str) -> Any:
            return getattr(memory.objects, name)

        async def stat(self, key: str, version_id: str | None = None) -> Any:
            if len(seen) == 6:
                raise asyncio.CancelledError
            seen.append(key)
            return await memory.objects.stat(key, version_id)

    with pytest.raises(asyncio.CancelledError):
        await scanned(with_objects(memory, Dying()), tmp_path)
    assert rows(database("postgres"), "SELECT count(*) FROM artifacts WHERE verified_at IS NOT NULL") == [(4,)]
    done = await scanned(memory, tmp_path, resume=True)
    assert (done.resumed, done.artifacts) == (True, 6)
    assert rows(database("postgres"), "SELECT count(*) FROM artifacts WHERE verified_at IS NULL") == [(0,)]
    done = await scanned(memory, tmp_path, resume=True)
    assert (done.resumed, done.artifacts) == (False, 10)


async def test_the_rate_is_held_to(memory: Installation, tmp_path: Path) -> None:
    for n in range(3):
        await upload(memory, bytes([n]) * 200_000)
    started = time.monotonic()
    await scanned(memory, tmp_path, rate=1_000_000)
    assert 0.55 < time.monotonic() - started < 5
    free = []
    for _ in range(5):  # one of them undisturbed
        started = time.monotonic()
        await scanned(memory, tmp_path)
        free.append(time.monotonic() - started)
    assert min(free) < 0.5


async def test_a_store_that_is_away_is_no_damage(memory: Installation, database: Database, tmp_path: Path) -> None:
    artifact = await upload(memory, b"unmounted")
    shutil.move(tmp_path / "objects", tmp_path / "away")
    with pytest.raises(ObjectStoreUnavailable):
        await scanned(memory, tmp_path)
    shutil.move(tmp_path / "away", tmp_path / "objects")
    assert rows(database("postgres"), EVENTS) == []
    assert rows(database("postgres"), FAULT, [artifact]) == [(None, False)]


async def test_one_that_cannot_be_read_stops_no_other(memory: Installation, tmp_path: Path) -> None:
    for n in range(3):
        await upload(memory, b"%d" % n)

    class Bad:
        def __getattr__(self, name: str) -> Any:
            return getattr(memory.objects, name)

        async def read(self, key: str, *args: Any) -> AsyncIterator[bytes]:
            if key == keys[1]:
                raise ObjectStoreUnavailable("Input/output error")
            async for block in memory.objects.read(key, *args):
                yield block

    keys = [version.key for version in (await memory.objects.versions("")).versions]
    done = await scanned(with_objects(memory, Bad()), tmp_path)
    assert (done.right, len(done.unreadable)) == (2, 1)
    assert [(f.id, f.status) for f in findings_of(done)] == [("artifacts.unreadable", "unavailable")]


async def test_the_weekly_job_is_on_record(memory: Installation, database: Database, tmp_path: Path) -> None:
    artifact = await upload(memory, b"weekly")
    await jobs.weekly_scan(memory)
    flip(file_of(tmp_path, b"weekly"))
    await jobs.weekly_scan(memory)
    found = rows(database("postgres"), "SELECT id, verb, verdict FROM ops_runs ORDER BY started_at")
    assert [row[1:] for row in found] == [("artifacts-scan", "ok"), ("artifacts-scan", "findings")]
    report = runs.find(database("postgres"), found[1][0])["report"]
    assert report["findings"][0]["evidence"]["artifactId"] == str(artifact)
    kinds = rows(
        database("postgres"), "SELECT event_type FROM audit_events WHERE event_type LIKE 'ops.artifacts%%' ORDER BY seq"
    )
    assert kinds == [("ops.artifacts-scan.succeeded",), ("ops.artifacts-scan.failed",)]


async def test_the_nightly_sweep_is_on_record(memory: Installation, database: Database) -> None:
    await jobs.nightly_sweep(memory)
    assert rows(database("postgres"), "SELECT verb, verdict FROM ops_runs") == [("artifacts-sweep", "ok")]


async def test_a_covered_version_is_named(memory: Installation, tmp_path: Path) -> None:
    """The directory covers nothing; what it says is made up here, and the S3 tests have a store that does."""
    artifact = await upload(memory, b"covered")

    class Covering:
        def __getattr__(self, name: str) -> Any:
            return getattr(memory.objects, name)

        async def stat(self, *args: Any) -> Any:
            return replace(await memory.objects.stat(*args), shadowed=True)

    done = await scanned(with_objects(memory, Covering()), tmp_path)
    assert done.faults == {"shadowed": 1}
    assert findings_of(done)[0].evidence["artifactId"] == str(artifact)
