"""What every object store does, and below it what only a directory can be asked about."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import os
import resource
import stat
import subprocess
import sys
import tracemalloc
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memory_layer.errors import (
    ChecksumMismatch,
    NotFound,
    ObjectStoreUnavailable,
    PayloadTooLarge,
    ValidationError,
)
from memory_layer.stores.objects import open_files
from memory_layer.stores.protocols import ObjectStore

MEGABYTE = 1024 * 1024
Open = Callable[[Path], ObjectStore]
IMPLEMENTATIONS: list[tuple[str, Open]] = [("files", lambda folder: open_files(folder / "objects"))]


@pytest.fixture(params=[made for _, made in IMPLEMENTATIONS], ids=[name for name, _ in IMPLEMENTATIONS])
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[ObjectStore]:
    opened: ObjectStore = request.param(tmp_path)
    yield opened
    await opened.close()


@pytest.fixture
async def files(tmp_path: Path) -> AsyncIterator[ObjectStore]:
    opened = open_files(tmp_path / "objects")
    yield opened
    await opened.close()


async def chunks(*parts: bytes) -> AsyncIterator[bytes]:
    for part in parts:
        yield part


async def content(store: ObjectStore, key: str, version: str, start: int = 0, stop: int | None = None) -> bytes:
    return b"".join([block async for block in store.read(key, version, start, stop)])


async def gone(store: ObjectStore, prefix: str, data: bytes) -> bool:
    try:
        await content(store, f"{prefix}/{hashlib.sha256(data).hexdigest()}", "1")
    except NotFound:
        return True
    return False


def everything(root: Path) -> list[Path]:
    return [path for path in root.rglob("*") if path.is_file()]


async def test_bytes_come_back_with_their_hash_and_size(store: ObjectStore) -> None:
    data = os.urandom(3 * MEGABYTE + 17)
    stored = await store.put("acme/artifacts", chunks(data[:5], b"", data[5:]))
    digest = hashlib.sha256(data).hexdigest()
    assert (stored.sha256, stored.size, stored.key) == (digest, len(data), f"acme/artifacts/{digest}")
    assert stored.version_id
    assert await content(store, stored.key, stored.version_id) == data


async def test_an_empty_object(store: ObjectStore) -> None:
    stored = await store.put("acme", chunks())
    assert (stored.size, stored.sha256) == (0, hashlib.sha256().hexdigest())
    assert await content(store, stored.key, stored.version_id) == b""


async def test_ranges_are_cut_exactly_and_at_the_end(store: ObjectStore) -> None:
    data = os.urandom(2 * MEGABYTE + 3)
    stored = await store.put("acme", chunks(data))
    for start, stop in [(0, 1), (5, 5), (MEGABYTE - 1, MEGABYTE + 1), (7, None), (len(data) - 1, 10**9), (10**9, None)]:
        assert await content(store, stored.key, stored.version_id, start, stop) == data[start:stop]


async def test_the_same_bytes_twice_are_one_object(store: ObjectStore) -> None:
    data = os.urandom(100_000)
    first, second = await asyncio.gather(store.put("acme", chunks(data)), store.put("acme", chunks(data)))
    assert first == second == await store.put("acme", chunks(data))
    assert await content(store, first.key, first.version_id) == data


async def test_prefixes_do_not_share_objects(store: ObjectStore) -> None:
    await store.put("acme", chunks(b"same"))
    assert await gone(store, "globex", b"same")


async def test_the_announced_hash_is_checked_and_both_are_named(store: ObjectStore) -> None:
    right, wrong = hashlib.sha256(b"data").hexdigest(), hashlib.sha256(b"other").hexdigest()
    with pytest.raises(ChecksumMismatch) as caught:
        await store.put("acme", chunks(b"data"), expected_sha256=wrong)
    assert right in caught.value.message
    assert wrong in caught.value.message
    assert await gone(store, "acme", b"data")
    assert (await store.put("acme", chunks(b"data"), expected_sha256=right.upper())).sha256 == right


async def test_too_many_bytes_are_refused_before_the_rest_is_read(store: ObjectStore) -> None:
    read = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal read
        while True:
            read += 1
            yield b"x" * 1000

    with pytest.raises(PayloadTooLarge):
        await store.put("acme", endless(), max_bytes=2500)
    assert read == 3
    assert (await store.put("acme", chunks(b"x" * 2500), max_bytes=2500)).size == 2500


async def test_a_failing_source_leaves_nothing_and_its_error_passes(store: ObjectStore) -> None:
    async def breaks() -> AsyncIterator[bytes]:
        yield b"a" * MEGABYTE
        raise ConnectionResetError("the client went away")

    with pytest.raises(ConnectionResetError):
        await store.put("acme", breaks())
    assert await gone(store, "acme", b"a" * MEGABYTE)


async def test_gone_objects_and_unknown_versions(store: ObjectStore) -> None:
    stored = await store.put("acme", chunks(b"here"))
    with pytest.raises(NotFound):
        await content(store, "acme/" + "0" * 64, stored.version_id)
    with pytest.raises(NotFound):
        await content(store, stored.key, "no-such-version")


BAD_PREFIXES = [
    "", "/", "..", "a/..", "../a", "/etc", "a//b", "a/", "/a", ".incoming", "a/.b", "a\x00b", "a\n", "a b", "ä", "~",
    "a\\b", "-rf", "0" * 64, "x" * 513,
]  # fmt: skip


@pytest.mark.parametrize("prefix", BAD_PREFIXES)
async def test_prefixes_and_keys_cannot_leave_the_store(store: ObjectStore, prefix: str) -> None:
    with pytest.raises(ValidationError):
        await store.put(prefix, chunks(b"data"))
    with pytest.raises(ValidationError):
        await content(store, f"{prefix}/{'0' * 64}", "1")


@pytest.mark.parametrize("key", ["", "acme/", "0" * 64, "acme/" + "0" * 64 + "/x", "acme/../x", "a" * 1025])
async def test_what_can_be_no_key(store: ObjectStore, key: str) -> None:
    with pytest.raises((NotFound, ValidationError)):  # S3 may hold such objects that others made
        await content(store, key, "1")
    with pytest.raises(ValidationError):
        await store.put_named(key, chunks(b"data"))


@given(key=st.text(max_size=80) | st.from_regex(r"[./a]{0,9}/[0-9a-f]{64}", fullmatch=True))
@settings(deadline=None, max_examples=200)
def test_no_key_reads_outside(tmp_path_factory: pytest.TempPathFactory, key: str) -> None:
    async def attempt() -> None:
        store = open_files(tmp_path_factory.getbasetemp() / "any-key")
        with pytest.raises((NotFound, ValidationError)):
            await content(store, key, "1")
        await store.close()

    asyncio.run(attempt())


async def test_it_answers_and_names_its_objects_by_url(store: ObjectStore) -> None:
    await store.ping()
    assert "://" in store.url_prefix
    assert store.url_prefix.endswith("/")


async def test_a_big_upload_takes_little_memory(store: ObjectStore) -> None:
    async def big() -> AsyncIterator[bytes]:
        block = bytes(64 * 1024)
        for _ in range(48 * 16):
            yield block

    tracemalloc.start()
    try:
        stored = await store.put("acme", big())
        size = 0
        async for block in store.read(stored.key, stored.version_id):
            size += len(block)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert stored.size == size == 48 * MEGABYTE
    assert peak < 8 * MEGABYTE


async def test_many_uploads_at_once(store: ObjectStore) -> None:
    blobs = [os.urandom(200_000) for _ in range(24)]
    stored = await asyncio.gather(*(store.put("acme", chunks(blob)) for blob in blobs))
    for blob, one in zip(blobs, stored, strict=True):
        assert await content(store, one.key, one.version_id) == blob


# A directory.


async def test_files_are_private_read_only_and_their_url_tells_no_path(files: ObjectStore, tmp_path: Path) -> None:
    stored = await files.put("acme/artifacts", chunks(b"data"))
    path = tmp_path / "objects" / "acme/artifacts" / stored.sha256[:2] / stored.sha256
    assert path.read_bytes() == b"data"
    assert stat.S_IMODE(path.stat().st_mode) == 0o440
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
    store = open_files(root)
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
    again = open_files(root)
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
    store = open_files(small_disk)
    with pytest.raises(ObjectStoreUnavailable, match="No space left"):
        await store.put("acme", chunks(b"a" * (4 * MEGABYTE)))
    assert everything(small_disk) == []
    assert (await store.put("acme", chunks(b"fits"))).size == 4
    await store.close()


async def test_a_damaged_object_is_not_passed_off_as_stored(files: ObjectStore, tmp_path: Path) -> None:
    stored = await files.put("acme", chunks(b"data"))
    path = tmp_path / "objects" / "acme" / stored.sha256[:2] / stored.sha256
    path.chmod(0o600)
    path.write_bytes(b"dat")
    with pytest.raises(ObjectStoreUnavailable, match="damaged"):
        await files.put("acme", chunks(b"data"))


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
        open_files(tmp_path / "file" / "objects")
