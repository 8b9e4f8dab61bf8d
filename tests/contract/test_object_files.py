"""A directory as an object store: what the contract suite cannot ask of a bucket."""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import errno
import hashlib
import os
import resource
import stat
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memory_layer.errors import ChecksumMismatch, Conflict, LegalHold, ObjectStoreUnavailable, PayloadTooLarge
from memory_layer.stores.objects.files import open_file_store
from memory_layer.stores.protocols import Damage, Lock, ObjectStore, StoredObject
from tests.support.object_stores import MEGABYTE, chunks, content


@pytest.fixture
async def files(tmp_path: Path) -> AsyncIterator[ObjectStore]:
    opened = open_file_store(tmp_path / "objects")
    yield opened
    await opened.close()


def everything(root: Path) -> list[Path]:
    return [path for path in root.rglob("*") if path.is_file()]


async def test_files_are_private_read_only_and_their_url_tells_no_path(files: ObjectStore, tmp_path: Path) -> None:
    stored = await files.put("acme/artifacts", chunks(b"data"))
    path = tmp_path / "objects" / "acme/artifacts" / stored.sha256[:2] / stored.sha256
    assert path.read_bytes() == b"data"
    assert stat.S_IMODE(path.stat().st_mode) == 0o400
    assert str(tmp_path) not in files.url_prefix + stored.key
    assert all(stat.S_IMODE(folder.stat().st_mode) == 0o700 for folder in (tmp_path / "objects").iterdir())


async def test_nothing_stays_behind_whatever_goes_wrong(files: ObjectStore, tmp_path: Path) -> None:
    async def stuck(reached: asyncio.Event) -> AsyncIterator[bytes]:
        yield b"a" * (2 * MEGABYTE)
        reached.set()
        await asyncio.Event().wait()

    for _ in range(3):
        reached = asyncio.Event()
        upload = asyncio.create_task(files.put("acme", stuck(reached)))
        await reached.wait()
        upload.cancel()
        with pytest.raises(asyncio.CancelledError):
            await upload
    with pytest.raises(PayloadTooLarge):
        await files.put("acme", chunks(b"x" * MEGABYTE, b"x"), max_bytes=MEGABYTE)
    with pytest.raises(ChecksumMismatch):
        await files.put("acme", chunks(b"x"), expected_sha256="0" * 64)
    assert everything(tmp_path) == []


def open_handles() -> int:
    return len(list(Path("/proc/self/fd").iterdir())) if sys.platform == "linux" else 0


async def test_an_upload_cancelled_at_any_step_leaves_nothing_or_the_whole(files: ObjectStore, tmp_path: Path) -> None:
    data = os.urandom(2 * MEGABYTE)
    digest = hashlib.sha256(data).hexdigest()
    handles = open_handles()
    for turns in range(40):
        upload = asyncio.create_task(files.put("acme", chunks(data[:MEGABYTE], data[MEGABYTE:])))
        for _ in range(turns):
            await asyncio.sleep(0)
        upload.cancel()
        await asyncio.wait([upload])
        for path in everything(tmp_path / "objects" / "acme"):
            assert path.name == digest
            assert hashlib.sha256(path.read_bytes()).hexdigest() == digest
    assert open_handles() == handles


async def test_what_a_killed_upload_left_is_swept_and_a_living_one_is_not(tmp_path: Path) -> None:
    root = tmp_path / "objects"
    store = open_file_store(root)
    reached, go_on = asyncio.Event(), asyncio.Event()

    async def slow() -> AsyncIterator[bytes]:
        yield b"a" * MEGABYTE
        reached.set()
        await go_on.wait()
        yield b"b"

    upload = asyncio.create_task(store.put("acme", slow()))
    await reached.wait()
    left = root / ".incoming" / "left-by-a-killed-process"
    left.write_bytes(b"half")
    again = open_file_store(root)
    assert not left.exists()
    go_on.set()
    stored = await upload
    assert await content(again, stored.key, stored.version_id) == b"a" * MEGABYTE + b"b"
    assert list((root / ".incoming").iterdir()) == []
    await store.close()
    await again.close()


@contextmanager
def file_size_limit(size: int) -> Iterator[None]:
    """Writes beyond fail as a full disk does, without needing one."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


async def test_a_failing_disk_is_unavailable_and_leaves_nothing(files: ObjectStore, tmp_path: Path) -> None:
    with file_size_limit(MEGABYTE), pytest.raises(ObjectStoreUnavailable) as caught:
        await files.put("acme", chunks(b"a" * (3 * MEGABYTE)))
    assert os.strerror(errno.EFBIG) in caught.value.message
    assert caught.value.retryable
    assert everything(tmp_path) == []


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    place = tmp_path / "small"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(place)], capture_output=True, text=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"no small file system can be mounted here: {mounted.stderr.strip()}")
    yield place
    subprocess.run(["umount", str(place)], check=True)


async def test_a_full_disk_is_unavailable_and_leaves_nothing(small_disk: Path) -> None:
    store = open_file_store(small_disk)
    with pytest.raises(ObjectStoreUnavailable, match="No space left"):
        await store.put("acme", chunks(b"a" * (4 * MEGABYTE)))
    assert everything(small_disk) == []
    assert (await store.put("acme", chunks(b"fits"))).size == 4
    await store.close()


@pytest.mark.parametrize("rotten", [b"dat", b"date", b"data and more", b""])
@pytest.mark.parametrize("named", [False, True])
async def test_a_damaged_object_is_read_and_repaired_when_its_bytes_come_again(
    files: ObjectStore, tmp_path: Path, rotten: bytes, named: bool
) -> None:
    lock = Lock("COMPLIANCE", in_(hours=1))

    async def put() -> StoredObject:
        if named:
            return await files.put_named("archive/segment", chunks(b"data"), lock=lock)
        return await files.put("acme", chunks(b"data"), lock=lock, hold=True)

    stored = await put()
    assert await put() == stored
    assert stored.damage is None
    (path,) = (path for path in everything(tmp_path / "objects") if path.name in (stored.sha256, "segment"))
    path.chmod(0o600)
    path.write_bytes(rotten)
    state = await files.stat(stored.key)
    again = await put()
    assert again.damage == Damage("1", hashlib.sha256(rotten).hexdigest(), len(rotten), replaced=True)
    assert await content(files, again.key, again.version_id) == b"data"
    assert await files.stat(stored.key) == replace(state, size=4)
    assert stat.S_IMODE(path.stat().st_mode) & 0o277 == 0
    assert await put() == stored
    assert everything(tmp_path / "objects" / ".incoming") == []


async def test_other_bytes_do_not_take_the_name_of_a_damaged_object(files: ObjectStore, tmp_path: Path) -> None:
    await files.put_named("archive/segment", chunks(b"data"))
    path = tmp_path / "objects" / "archive" / "segment"
    path.chmod(0o600)
    path.write_bytes(b"rotten")
    with pytest.raises(Conflict):
        await files.put_named("archive/segment", chunks(b"rotten"))


async def test_a_store_that_is_away_is_unavailable_not_empty(files: ObjectStore, tmp_path: Path) -> None:
    stored = await files.put("acme", chunks(b"data"))
    (tmp_path / "objects").rename(tmp_path / "unmounted")
    with pytest.raises(ObjectStoreUnavailable):
        await content(files, stored.key, stored.version_id)
    with pytest.raises(ObjectStoreUnavailable):
        await files.put("acme", chunks(b"more"))
    with pytest.raises(ObjectStoreUnavailable):
        await files.ping()
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(ObjectStoreUnavailable):
        open_file_store(tmp_path / "file" / "objects")


def in_(**time: float) -> dt.datetime:
    return dt.datetime.now(dt.UTC).replace(microsecond=0) + dt.timedelta(**time)


async def test_locks_and_holds_outlive_the_process_and_are_private(files: ObjectStore, tmp_path: Path) -> None:
    lock = Lock("COMPLIANCE", in_(hours=1))
    stored = await files.put("acme", chunks(b"data"), lock=lock, hold=True)
    again = open_file_store(tmp_path / "objects", eraser=True)
    state = await again.stat(stored.key)
    assert (state.lock, state.hold) == (lock, True)
    with pytest.raises(LegalHold):
        await again.delete(stored.key, stored.version_id)
    await again.close()
    assert not files.capabilities.enforces_locks
    kept = everything(tmp_path / "objects" / ".state")
    assert [stat.S_IMODE(path.stat().st_mode) & 0o077 for path in kept] == [0]
    assert everything(tmp_path / "objects" / ".incoming") == []


async def test_a_damaged_state_does_not_pass_for_an_unlocked_object(files: ObjectStore, tmp_path: Path) -> None:
    stored = await files.put("acme", chunks(b"data"), lock=Lock("COMPLIANCE", in_(hours=1)))
    eraser = open_file_store(tmp_path / "objects", eraser=True)
    (state,) = everything(tmp_path / "objects" / ".state")
    for damage in (b"", b"{}", b"[]", b"null", b'{"version":1}', state.read_bytes()[:-9], b"\xff\x00"):
        state.write_bytes(damage)
        for attempt in (eraser.delete(stored.key, "1"), files.stat(stored.key), content(files, stored.key, "1")):
            with pytest.raises(ObjectStoreUnavailable, match="damaged"):
                await attempt
    await eraser.close()


async def test_the_lock_is_on_disk_before_the_bytes_have_their_name(
    files: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    lock = Lock("COMPLIANCE", in_(hours=1))
    with monkeypatch.context() as patch:
        patch.setattr("memory_layer.stores.objects.files._link", killed)
        with pytest.raises(ObjectStoreUnavailable):
            await files.put("acme", chunks(b"data"), lock=lock)
    assert everything(tmp_path / "objects" / "acme") == []
    stored = await files.put("acme", chunks(b"data"))
    assert (await files.stat(stored.key)).lock == lock


async def test_processes_that_change_one_object_at_once_lose_nothing(tmp_path: Path) -> None:
    stores = [open_file_store(tmp_path / "objects") for _ in range(4)]
    stored = await stores[0].put("acme", chunks(b"data"))
    locks = [Lock("COMPLIANCE", in_(hours=hours)) for hours in range(1, 9)]
    work = [one.put("acme", chunks(b"data"), lock=lock) for one, lock in zip(stores * 2, locks, strict=True)]
    work.append(stores[1].put("acme", chunks(b"data"), hold=True))
    assert set(await asyncio.gather(*work)) == {stored}
    state = await stores[2].stat(stored.key)
    assert (state.lock, state.hold) == (locks[-1], True)
    for one in stores:
        await one.close()


async def test_names_cannot_cross(files: ObjectStore) -> None:
    await files.put_named("audit/2026", chunks(b"a file"))
    with pytest.raises(Conflict, match="goes on where"):
        await files.put_named("audit/2026/one", chunks(b"x"))
    with pytest.raises(Conflict, match="ends where"):
        await files.put_named("audit", chunks(b"x"))
    assert [v.key for v in (await files.versions("")).versions] == ["audit/2026"]


@given(
    names=st.sets(st.from_regex(r"[ab01]{1,3}(/[ab01]{1,3}){0,2}", fullmatch=True), max_size=12),
    prefix=st.from_regex(r"([ab01]{1,3}/?){0,2}", fullmatch=True),
    limit=st.integers(1, 5),
)
@settings(deadline=None, max_examples=40)
def test_a_listing_is_that_of_the_keys_sorted(
    tmp_path_factory: pytest.TempPathFactory, names: set[str], prefix: str, limit: int
) -> None:
    async def attempt() -> None:
        store = open_file_store(tmp_path_factory.mktemp("listing"))
        put = [(await store.put(name, chunks(name.encode()))).key for name in names]
        for name in names:
            with contextlib.suppress(Conflict):  # a folder of the others
                put.append((await store.put_named(name, chunks(b"x"))).key)
        found: list[str] = []
        cursor = None
        while True:
            page = await store.versions(prefix, cursor, limit)
            found += [version.key for version in page.versions]
            cursor = page.cursor
            if cursor is None:
                break
        assert found == sorted(key for key in put if key.startswith(prefix))
        await store.close()

    asyncio.run(attempt())
