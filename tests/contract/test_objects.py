"""What every object store does: a directory, S3 as moto plays it, and a real S3 server (Ceph)."""

from __future__ import annotations

import asyncio
import datetime as dt
import hashlib
import os
import tracemalloc
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memory_layer.errors import (
    ChecksumMismatch,
    Conflict,
    Forbidden,
    LegalHold,
    NotFound,
    PayloadTooLarge,
    ValidationError,
)
from memory_layer.stores.objects.files import open_file_store
from memory_layer.stores.protocols import Lock, ObjectStore
from tests.support.object_stores import MEGABYTE, Place, chunks, content

PLACES = ["files", "moto", pytest.param("ceph", marks=pytest.mark.real)]


@pytest.fixture(params=PLACES)
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    """A new directory, or a new bucket."""
    if request.param == "files":
        return Place(tmp_path, None, None)
    server = request.getfixturevalue(f"{request.param}_s3")
    return Place(tmp_path, server, server.make_bucket())


@pytest.fixture
async def store(place: Place) -> AsyncIterator[ObjectStore]:
    opened = place.open()
    yield opened
    await opened.close()


@pytest.fixture
async def eraser(place: Place) -> AsyncIterator[ObjectStore]:
    opened = place.open(eraser=True)
    yield opened
    await opened.close()


async def gone(store: ObjectStore, prefix: str, data: bytes) -> bool:
    try:
        await store.stat(f"{prefix}/{hashlib.sha256(data).hexdigest()}")
    except NotFound:
        return True
    return False


def in_(**time: float) -> dt.datetime:
    return dt.datetime.now(dt.UTC).replace(microsecond=0) + dt.timedelta(**time)


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
    with pytest.raises((NotFound, ValidationError)):  # S3 may hold such objects that others made
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
        store = open_file_store(tmp_path_factory.getbasetemp() / "any-key")
        with pytest.raises((NotFound, ValidationError)):
            await content(store, key, "1")
        await store.close()

    asyncio.run(attempt())


async def test_it_answers_and_names_its_objects_by_url(store: ObjectStore) -> None:
    await store.ping()
    assert "://" in store.url_prefix
    assert store.url_prefix.endswith("/")


async def test_a_big_upload_takes_little_memory(place: Place, store: ObjectStore) -> None:
    if place.kind == "moto":
        pytest.skip("moto keeps the bytes in this process; test_transfers.py measures a process of its own")

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


# Sizes that were announced.


async def test_the_announced_size_is_checked(store: ObjectStore) -> None:
    for wrong in (3, 5):
        with pytest.raises(ChecksumMismatch, match=str(wrong)):
            await store.put("acme", chunks(b"da", b"ta"), expected_size=wrong)
    assert await gone(store, "acme", b"data")
    with pytest.raises(PayloadTooLarge):
        await store.put("acme", chunks(), expected_size=11, max_bytes=10)
    assert (await store.put("acme", chunks(b"data"), expected_size=4, max_bytes=4)).size == 4


# Names of ours.


async def test_a_name_is_given_once(store: ObjectStore) -> None:
    first = await store.put_named("audit/2026/segment-00001.jsonl", chunks(b"one", b"two"))
    assert (first.key, first.size) == ("audit/2026/segment-00001.jsonl", 6)
    assert first.sha256 == hashlib.sha256(b"onetwo").hexdigest()
    assert await content(store, first.key, first.version_id) == b"onetwo"
    assert await store.put_named(first.key, chunks(b"onetwo")) == first
    with pytest.raises(Conflict, match="segment-00001"):
        await store.put_named(first.key, chunks(b"other"))
    assert await content(store, first.key, (await store.stat(first.key)).version_id) == b"onetwo"
    assert [v.version_id for v in (await store.versions("audit/")).versions] == [first.version_id]


async def test_two_that_give_a_name_at_once(store: ObjectStore) -> None:
    results = await asyncio.gather(
        *(store.put_named("audit/head", chunks(data)) for data in (b"one", b"two")), return_exceptions=True
    )
    (kept,) = (r for r in results if not isinstance(r, BaseException))
    (refused,) = (r for r in results if isinstance(r, BaseException))
    assert isinstance(refused, Conflict)
    assert hashlib.sha256(await content(store, kept.key, kept.version_id)).hexdigest() == kept.sha256


# States, listings, URLs.


async def test_the_state_of_an_object(store: ObjectStore) -> None:
    stored = await store.put("acme", chunks(b"data"))
    state = await store.stat(stored.key, stored.version_id)
    assert (state.key, state.version_id, state.size) == (stored.key, stored.version_id, 4)
    assert state.sha256 == stored.sha256
    assert (state.lock, state.hold, state.shadowed) == (None, False, False)
    assert (state.storage_class, state.restoring, state.readable) == ("STANDARD", False, True)
    assert await store.stat(stored.key) == state
    named = await store.put_named("manifests/one", chunks(b"data"))
    assert (await store.stat(named.key)).sha256 == stored.sha256
    for key, version in (("acme/" + "0" * 64, None), ("acme/" + "0" * 64, "1"), (stored.key, "no-such-version")):
        with pytest.raises(NotFound):
            await store.stat(key, version)


async def test_a_listing_in_pages(store: ObjectStore) -> None:
    put = [await store.put(prefix, chunks(bytes([n]))) for n in range(9) for prefix in ("acme", "acme/ab", "acme2")]
    put += [await store.put_named(f"acme/{name}", chunks(b"x")) for name in ("a", "ab0.json", "abc", "zz/y")]
    expected = sorted((p.key, p.version_id, p.size) for p in put)
    found = []
    cursor: str | None = None
    while True:
        page = await store.versions("acme", cursor, limit=4)
        assert len(page.versions) <= 4
        found += page.versions
        cursor = page.cursor
        if cursor is None:
            break
    assert [(v.key, v.version_id, v.size) for v in found] == expected
    assert all(v.latest and not v.marker for v in found)
    assert all(abs((dt.datetime.now(dt.UTC) - v.modified).total_seconds()) < 600 for v in found)
    for prefix in ("acme/", "acme/ab", "acme/ab/", "acme2/", "acme/zz/", "other", expected[3][0][:20]):
        only = [v.key for v in (await store.versions(prefix)).versions]
        assert only == [key for key, _, _ in expected if key.startswith(prefix)], prefix


async def test_its_urls_lead_back_to_keys(store: ObjectStore) -> None:
    stored = await store.put("acme", chunks(b"data"))
    url = store.url_prefix + stored.key
    assert store.locate(url) == (stored.key, None)
    assert store.locate(f"{url}?versionId={stored.version_id}") == (stored.key, stored.version_id)
    for foreign in (
        "s3://someone-elses/" + stored.key,
        "https://example.com/x",
        "file:///etc/passwd",
        store.url_prefix,
        "",
    ):
        assert store.locate(foreign) is None
    assert store.locate(f"{store.url_prefix}acme/../../etc/passwd") is None


# Locks, holds, deletion.


async def test_what_serves_requests_cannot_delete(store: ObjectStore) -> None:
    stored = await store.put("acme", chunks(b"data"))
    with pytest.raises(Forbidden):
        await store.delete(stored.key, stored.version_id)
    assert await content(store, stored.key, stored.version_id) == b"data"


async def test_the_eraser_removes_one_version_for_good(store: ObjectStore, eraser: ObjectStore) -> None:
    stored, other = await store.put("acme", chunks(b"data")), await store.put("acme", chunks(b"stays"))
    await eraser.delete(stored.key, stored.version_id)
    assert await gone(store, "acme", b"data")
    with pytest.raises(NotFound):
        await content(store, stored.key, stored.version_id)
    with pytest.raises(NotFound):
        await eraser.delete(stored.key, stored.version_id)
    assert [v.key for v in (await store.versions("acme")).versions] == [other.key]
    again = await store.put("acme", chunks(b"data"))
    assert again.version_id != stored.version_id, "an old reference must not find new bytes"
    with pytest.raises(NotFound):
        await content(store, stored.key, stored.version_id)
    assert await content(store, again.key, again.version_id) == b"data"


@pytest.mark.parametrize("mode", ["COMPLIANCE", "GOVERNANCE"])
async def test_a_lock_comes_with_the_bytes_and_holds(store: ObjectStore, eraser: ObjectStore, mode: str) -> None:
    lock = Lock(mode, in_(hours=1))  # type: ignore[arg-type]  # the parameters are its values
    for stored in (
        await store.put("acme", chunks(b"a"), lock=lock),
        await store.put_named("a/b", chunks(b"b"), lock=lock),
    ):
        assert (await store.stat(stored.key, stored.version_id)).lock == lock
        with pytest.raises(Conflict, match=mode):
            await eraser.delete(stored.key, stored.version_id)
        assert (await store.stat(stored.key)).version_id == stored.version_id


async def test_a_lock_is_made_longer_never_less(store: ObjectStore) -> None:
    stored = await store.put("acme", chunks(b"data"), lock=Lock("COMPLIANCE", in_(hours=2)))
    longer = Lock("COMPLIANCE", in_(hours=3))
    for less in (Lock("COMPLIANCE", in_(hours=1)), Lock("GOVERNANCE", in_(hours=1)), Lock("GOVERNANCE", in_(hours=4))):
        with pytest.raises(Conflict, match="never shorter or weaker"):
            await store.extend_lock(stored.key, stored.version_id, less)
    await store.extend_lock(stored.key, stored.version_id, longer)
    await store.extend_lock(stored.key, stored.version_id, longer)
    assert (await store.stat(stored.key, stored.version_id)).lock == longer
    unlocked = await store.put("acme", chunks(b"unlocked"))
    await store.extend_lock(unlocked.key, unlocked.version_id, longer)
    assert (await store.stat(unlocked.key)).lock == longer
    with pytest.raises(NotFound):
        await store.extend_lock("acme/" + "0" * 64, stored.version_id, longer)


async def test_a_lock_becomes_stronger_or_says_who_may_do_that(place: Place, store: ObjectStore) -> None:
    weak, strong = Lock("GOVERNANCE", in_(hours=2)), Lock("COMPLIANCE", in_(hours=3))
    stored = await store.put("acme", chunks(b"data"), lock=weak)
    with pytest.raises(Conflict, match="never shorter or weaker"):
        await store.extend_lock(stored.key, stored.version_id, Lock("COMPLIANCE", in_(hours=1)))
    if place.kind == "ceph":
        with pytest.raises(Conflict, match="only who may bypass that"):
            await store.extend_lock(stored.key, stored.version_id, strong)
        strong = Lock("GOVERNANCE", strong.until)
    await store.extend_lock(stored.key, stored.version_id, strong)
    assert (await store.stat(stored.key)).lock == strong


async def test_the_same_bytes_again_extend_their_lock(store: ObjectStore) -> None:
    short, long = Lock("COMPLIANCE", in_(hours=1)), Lock("COMPLIANCE", in_(hours=2))
    first = await store.put("acme", chunks(b"data"), lock=long)
    assert await store.put("acme", chunks(b"data"), lock=short) == first
    assert await store.put("acme", chunks(b"data")) == first
    assert (await store.stat(first.key)).lock == long
    longest = Lock("COMPLIANCE", in_(hours=3))
    assert await store.put("acme", chunks(b"data"), lock=longest, hold=True) == first
    state = await store.stat(first.key)
    assert (state.lock, state.hold) == (longest, True)


async def test_a_lock_of_a_past_date_is_refused(store: ObjectStore) -> None:
    over = Lock("COMPLIANCE", in_(seconds=-1))
    with pytest.raises(ValidationError, match="over"):
        await store.put("acme", chunks(b"data"), lock=over)
    with pytest.raises(ValidationError):
        await store.put("acme", chunks(b"data"), lock=Lock("COMPLIANCE", dt.datetime.max))  # noqa: DTZ901 - what is refused
    assert await gone(store, "acme", b"data")


async def test_part_of_a_second_is_rounded_up(store: ObjectStore) -> None:
    until = in_(hours=1) + dt.timedelta(microseconds=1)
    stored = await store.put("acme", chunks(b"data"), lock=Lock("COMPLIANCE", until))
    lock = (await store.stat(stored.key)).lock
    assert lock is not None
    assert 0 <= (lock.until - until).total_seconds() < 1


async def test_a_hold_blocks_deletion_until_it_is_released(store: ObjectStore, eraser: ObjectStore) -> None:
    held = await store.put("acme", chunks(b"held at once"), hold=True)
    later = await store.put("acme", chunks(b"held later"))
    await store.set_hold(later.key, later.version_id, True)
    for stored in (held, later):
        assert (await store.stat(stored.key, stored.version_id)).hold
        with pytest.raises(LegalHold):
            await eraser.delete(stored.key, stored.version_id)
        for _ in range(2):
            await store.set_hold(stored.key, stored.version_id, False)
        assert not (await store.stat(stored.key, stored.version_id)).hold
        await eraser.delete(stored.key, stored.version_id)
    with pytest.raises(NotFound):
        await store.set_hold(held.key, held.version_id, True)


async def test_what_is_not_cold_needs_no_restoring(store: ObjectStore) -> None:
    stored = await store.put("acme", chunks(b"data"))
    await store.restore(stored.key, stored.version_id, 1)
    assert not (await store.stat(stored.key)).restoring
    with pytest.raises(NotFound):
        await store.restore("acme/" + "0" * 64, stored.version_id, 1)


async def test_what_it_can_is_what_it_says(store: ObjectStore) -> None:
    stored = await store.put("acme", chunks(b"data"))
    link = store.link(stored.key, stored.version_id, 60, name="a.txt", content_type="text/plain")
    assert (link is not None) == store.capabilities.links


# Damage behind its back.


async def test_an_object_that_is_lost_is_not_found_and_the_same_bytes_repair_it(
    place: Place, store: ObjectStore
) -> None:
    stored = await store.put("acme", chunks(b"data"))
    place.lose(stored.key, stored.version_id)
    with pytest.raises(NotFound):
        await store.stat(stored.key, stored.version_id)
    with pytest.raises(NotFound):
        await content(store, stored.key, stored.version_id)
    again = await store.put("acme", chunks(b"data"))
    assert await content(store, again.key, again.version_id) == b"data"


async def test_a_changed_byte_comes_back_changed_for_the_reader_to_find(place: Place, store: ObjectStore) -> None:
    if place.server is not None:
        pytest.skip("no version in S3 can be changed, only put under another")
    stored = await store.put("acme", chunks(b"data"))
    place.overwrite(stored.key, b"dat4")
    found = await content(store, stored.key, stored.version_id)
    assert hashlib.sha256(found).hexdigest() != stored.sha256
    assert (await store.stat(stored.key)).sha256 == stored.sha256


@pytest.mark.parametrize("how", ["newer version", "delete marker"])
async def test_what_stands_over_an_object_is_reported_and_it_stays_readable(
    place: Place, store: ObjectStore, how: str
) -> None:
    if place.server is None:
        pytest.skip("a directory has one version of a key")
    stored = await store.put("acme", chunks(b"data"))
    assert not (await store.stat(stored.key, stored.version_id)).shadowed
    if how == "newer version":
        place.overwrite(stored.key, b"forged")
        assert (await store.stat(stored.key)).version_id != stored.version_id
    else:
        place.mark_deleted(stored.key)
        with pytest.raises(NotFound):
            await store.stat(stored.key)
    assert (await store.stat(stored.key, stored.version_id)).shadowed
    assert await content(store, stored.key, stored.version_id) == b"data"
    listed = (await store.versions(stored.key)).versions
    assert [(v.latest, v.marker) for v in listed] == [(True, how == "delete marker"), (False, False)]
    assert listed[1].version_id == stored.version_id
    again = await store.put("acme", chunks(b"data"))
    state = await store.stat(again.key)
    assert (state.version_id, state.sha256) == (again.version_id, stored.sha256)
    assert await content(store, again.key, again.version_id) == b"data"


async def test_a_delete_marker_is_removed_by_its_version(place: Place, store: ObjectStore, eraser: ObjectStore) -> None:
    if place.server is None:
        pytest.skip("a directory has no delete markers")
    stored = await store.put("acme", chunks(b"data"))
    place.mark_deleted(stored.key)
    (marker,) = (v for v in (await store.versions(stored.key)).versions if v.marker)
    with pytest.raises(NotFound):
        await store.stat(stored.key, marker.version_id)
    await eraser.delete(stored.key, marker.version_id)
    assert not (await store.stat(stored.key, stored.version_id)).shadowed


async def test_an_upload_cancelled_at_any_step_can_be_repeated(store: ObjectStore) -> None:
    data = os.urandom(100_000)
    for turns in range(0, 60, 3):
        upload = asyncio.create_task(store.put("acme", chunks(data[:50_000], data[50_000:])))
        for _ in range(turns):
            await asyncio.sleep(0)
        upload.cancel()
        await asyncio.wait([upload])
    stored = await store.put("acme", chunks(data))
    assert await content(store, stored.key, stored.version_id) == data
    assert len((await store.versions("acme")).versions) == 1
