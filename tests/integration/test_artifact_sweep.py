"""What a crash between the object store and Postgres leaves: nothing that anybody sees, and nothing for long."""

from __future__ import annotations

import contextlib
import datetime as dt
import os
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from memory_layer.errors import ChecksumMismatch, Forbidden, NotFound, PayloadTooLarge, SignerUnavailable
from memory_layer.service import orphans
from memory_layer.service.actions.artifacts import ObjectSwept
from memory_layer.service.freeze import put as freeze
from memory_layer.service.installation import Installation
from memory_layer.service.orphans import SweepResult
from memory_layer.service.system import system_caller
from memory_layer.stores.protocols import Lock
from tests.support.artifacts import chunks, eraser_of, key_of, register, upload, with_objects
from tests.support.service import create, rows, running_memory

Database = Callable[[str], str]
OLD = dt.timedelta(0)


@pytest.fixture
async def memory(database: Database, tmp_path: Path) -> AsyncIterator[Installation]:
    async with running_memory(database("memory_app"), tmp_path) as opened:
        yield opened


async def sweep(memory: Installation, folder: Path, *, age: dt.timedelta = OLD, **more: Any) -> SweepResult:
    async with eraser_of(memory, folder) as eraser:
        return await orphans.sweep(memory.postgres, memory.objects, eraser, age=age, **more)


async def there(memory: Installation, key: str) -> bool:
    try:
        await memory.objects.stat(key)
    except NotFound:
        return False
    return True


async def orphan(memory: Installation, content: bytes, **more: Any) -> str:
    """Bytes whose upload was cut off before its row."""
    stored = await memory.objects.put("ann", chunks(content), **more)
    return stored.key


async def test_an_upload_that_is_cut_off_before_its_row_leaves_nothing_visible(
    memory: Installation, database: Database, tmp_path: Path
) -> None:
    node = await create(memory)

    class Killed(BaseException):
        pass

    async def die(*_: object) -> None:
        raise Killed

    submit = memory.committer.submit
    memory.committer.submit = die  # type: ignore[method-assign]
    with pytest.raises(Killed):
        await upload(memory, b"never named", node=node)
    memory.committer.submit = submit  # type: ignore[method-assign]
    assert rows(database("postgres"), "SELECT count(*) FROM artifacts") == [(0,)]
    assert await there(memory, key_of(b"never named"))
    done = await sweep(memory, tmp_path, age=orphans.AGE)
    assert (done.orphans, done.deleted) == (0, 0)  # too young: its upload may be under way
    done = await sweep(memory, tmp_path)
    assert (done.orphans, done.deleted, done.orphan_bytes) == (1, 1, len(b"never named"))
    assert not await there(memory, key_of(b"never named"))


async def test_a_refused_upload_leaves_bytes_that_go(memory: Installation, tmp_path: Path) -> None:
    """The signer is down: the bytes were stored, the row was not."""

    async def refuse(*_: object) -> None:
        raise SignerUnavailable("down")

    submit = memory.committer.submit
    memory.committer.submit = refuse  # type: ignore[method-assign]
    with pytest.raises(SignerUnavailable):
        await upload(memory, b"refused")
    memory.committer.submit = submit  # type: ignore[method-assign]
    assert (await sweep(memory, tmp_path)).deleted == 1


async def test_what_is_refused_on_the_way_leaves_nothing_at_all(memory: Installation, tmp_path: Path) -> None:
    async def torn() -> AsyncIterator[bytes]:
        yield b"half"
        raise ConnectionResetError

    put = memory.objects.put
    with pytest.raises(ConnectionResetError):
        await put("ann", torn())
    with pytest.raises(ChecksumMismatch):
        await put("ann", chunks(b"x"), expected_sha256="0" * 64)
    with pytest.raises(ChecksumMismatch):
        await put("ann", chunks(b"x"), expected_size=2)
    with pytest.raises(PayloadTooLarge):
        await put("ann", chunks(b"xyz"), max_bytes=2)
    assert (await sweep(memory, tmp_path)).versions == 0


async def test_what_is_named_or_not_ours_stays(memory: Installation, tmp_path: Path) -> None:
    await upload(memory, b"named")
    await register(memory, "ann/models/a", b"registered")
    await memory.objects.put_named("ann/models/b", chunks(b"to be registered later"))
    await memory.objects.put_named("snapshots/2026/x", chunks(b"ours"))
    done = await sweep(memory, tmp_path)
    assert (done.versions, done.orphans, done.deleted) == (4, 0, 0)


async def test_what_is_locked_or_held_stays_and_is_reported(memory: Installation, tmp_path: Path) -> None:
    until = dt.datetime.now(dt.UTC) + dt.timedelta(days=1)
    locked = await orphan(memory, b"locked", lock=Lock("COMPLIANCE", until))
    held = await orphan(memory, b"held", hold=True)
    done = await sweep(memory, tmp_path)
    assert (done.orphans, done.kept, done.deleted) == (2, 2, 0)
    assert sorted(key.partition("?")[0] for key in done.examples) == sorted([locked, held])
    assert await there(memory, locked)
    assert await there(memory, held)


async def test_without_an_eraser_orphans_are_reported(memory: Installation) -> None:
    key = await orphan(memory, b"left")
    done = await orphans.sweep(memory.postgres, memory.objects, None, age=OLD)
    assert (done.orphans, done.refused, done.deleted) == (1, 1, 0)
    assert await there(memory, key)
    # The role that writes is no eraser: it is refused, and the object may be named afterwards.
    done = await orphans.sweep(memory.postgres, memory.objects, memory.objects, age=OLD)
    assert (done.refused, done.deleted) == (1, 0)
    await upload(memory, b"left")
    with pytest.raises(Forbidden):
        await memory.objects.delete(key, "1")


async def test_while_writes_are_frozen_nothing_is_deleted(memory: Installation, tmp_path: Path) -> None:
    key = await orphan(memory, b"left")
    await freeze(memory.committer, await system_caller(memory, "tester"), "a drill")
    assert (await sweep(memory, tmp_path)).deleted == 0
    assert await there(memory, key)


async def test_a_sweep_is_bounded_and_goes_on(
    memory: Installation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(orphans, "PAGE", 3)
    for n in range(10):
        await orphan(memory, b"%d" % n)
    counts = []
    while True:
        done = await sweep(memory, tmp_path, pages=1)
        counts.append(done.deleted)
        if done.cursor is None:
            break
    assert sum(counts) == 10
    assert max(counts) == 3
    assert (await sweep(memory, tmp_path)).versions == 0


class Late:
    """An object store that is swept between the end of an upload's bytes and its row."""

    def __init__(self, store: Any, then: Callable[[], Any]) -> None:
        self._store, self._then = store, then

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    async def put(self, *args: Any, **facts: Any) -> Any:
        stored = await self._store.put(*args, **facts)
        await self._then()
        return stored


async def test_an_upload_that_counted_on_bytes_that_are_swept_is_asked_to_come_again(
    memory: Installation, database: Database, tmp_path: Path
) -> None:
    await orphan(memory, b"popular")
    late = with_objects(memory, Late(memory.objects, lambda: sweep(memory, tmp_path)))
    with pytest.raises(ObjectSwept) as refused:
        await upload(late, b"popular")
    assert refused.value.retryable
    assert rows(database("postgres"), "SELECT count(*) FROM artifacts") == [(0,)]
    artifact = await upload(memory, b"popular")
    assert rows(database("postgres"), "SELECT id FROM artifacts") == [(artifact,)]
    assert await there(memory, key_of(b"popular"))
    assert (await sweep(memory, tmp_path)).orphans == 0


async def test_a_sweep_that_died_after_its_mark_is_finished_and_nobody_names_the_object_meanwhile(
    memory: Installation, database: Database, tmp_path: Path
) -> None:
    key = await orphan(memory, b"half swept")

    class Died(Exception):
        pass

    class Dying:
        async def delete(self, *_: object) -> None:
            raise Died

    with pytest.raises(Died):
        await orphans.sweep(memory.postgres, memory.objects, Dying(), age=OLD)  # type: ignore[arg-type]
    assert await there(memory, key)
    with pytest.raises(ObjectSwept):
        await upload(memory, b"half swept")
    assert (await sweep(memory, tmp_path)).deleted == 1
    assert not await there(memory, key)
    await upload(memory, b"half swept")
    assert rows(database("postgres"), "SELECT count(*) FROM artifacts") == [(1,)]


async def test_a_mark_that_nobody_can_act_on_is_taken_back(memory: Installation) -> None:
    key = await orphan(memory, b"half swept")

    class Dying:
        async def delete(self, *_: object) -> None:
            raise RuntimeError

    with contextlib.suppress(RuntimeError):
        await orphans.sweep(memory.postgres, memory.objects, Dying(), age=OLD)  # type: ignore[arg-type]
    await orphans.sweep(memory.postgres, memory.objects, None, age=OLD)
    await upload(memory, b"half swept")
    assert await there(memory, key)


async def test_a_version_beside_a_named_one_is_evidence(
    memory: Installation, database: Database, tmp_path: Path
) -> None:
    """The directory keeps one version at a time, so the row is made to name another."""
    await upload(memory, b"named")
    rows(database("postgres"), "UPDATE artifacts SET version_id = '7'")
    done = await sweep(memory, tmp_path)
    assert (done.beside, done.orphans, done.deleted) == (1, 0, 0)
    assert await there(memory, key_of(b"named"))


async def test_age_is_what_the_store_says(memory: Installation, tmp_path: Path) -> None:
    key = await orphan(memory, b"old")
    (path,) = (p for p in (tmp_path / "objects" / "ann").rglob(key.partition("/")[2]))
    past = dt.datetime.now(dt.UTC).timestamp() - 2 * 3600
    os.utime(path, (past, past))
    assert (await sweep(memory, tmp_path, age=orphans.AGE)).deleted == 1
