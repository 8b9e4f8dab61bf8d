"""S3 as an object store: what the contract suite cannot ask of a directory. Ceph where it enforces, moto where it knows more."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import datetime as dt
import hashlib
import logging
import os
import socket
import traceback
from collections.abc import AsyncIterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import botocore.auth
import httpx2
import pytest
from botocore.exceptions import ClientError

from memory_layer.errors import (
    ChecksumMismatch,
    Forbidden,
    MemoryLayerError,
    NotFound,
    ObjectStoreUnavailable,
    PayloadTooLarge,
    PolicyRefused,
    UsageError,
    ValidationError,
)
from memory_layer.stores.objects import open_archive, open_eraser, open_objects, s3_client, s3_upload
from memory_layer.stores.objects.s3 import S3Store
from memory_layer.stores.objects.s3_bucket import url_prefixes
from memory_layer.stores.protocols import Damage, Lock, ObjectStore
from memory_layer.stores.remote.faults import Fault
from tests.support.object_stores import MEGABYTE, Place, chunks, content
from tests.support.s3_proxy import refusing, running_proxy
from tests.support.s3_server import S3Server

SERVERS = ["moto", pytest.param("ceph", marks=pytest.mark.real)]
real = pytest.mark.real
NOBODY = "127.0.0.1:1"  # a port that nothing listens on
SECRET = "secret/that+must+never+be+shown/0123456789"


def in_(**time: float) -> dt.datetime:
    return dt.datetime.now(dt.UTC).replace(microsecond=0) + dt.timedelta(**time)


@pytest.fixture
def server(request: pytest.FixtureRequest) -> S3Server:
    found: S3Server = request.getfixturevalue(f"{request.param}_s3")
    return found


@pytest.fixture
def place(server: S3Server, tmp_path: Path) -> Place:
    return Place(tmp_path, server, server.make_bucket())


@pytest.fixture
async def store(place: Place) -> AsyncIterator[ObjectStore]:
    opened = place.open()
    yield opened
    await opened.close()


@contextlib.asynccontextmanager
async def opened(place: Place, **more: object) -> AsyncIterator[ObjectStore]:
    """The place with other settings."""
    assert place.server is not None
    assert place.bucket is not None
    found = open_objects(place.server.settings(place.bucket, **more), place.folder)
    try:
        yield found
    finally:
        await found.close()


def left(place: Place) -> tuple[list[str], list[str], list[Path]]:
    """Keys of all versions, unfinished uploads, spooled files."""
    assert place.server is not None
    client = place.server.client()
    versions = client.list_object_versions(Bucket=place.bucket)
    uploads = client.list_multipart_uploads(Bucket=place.bucket)
    return (
        [v["Key"] for v in versions.get("Versions", ())],
        [u["UploadId"] for u in uploads.get("Uploads", ())],
        list((place.folder / "spool").iterdir()),
    )


NOTHING: tuple[list[str], list[str], list[Path]] = ([], [], [])


# In parts.


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bodies above 1 MiB go in parts of 5 MiB, the least that servers take."""
    monkeypatch.setattr("memory_layer.stores.objects.s3.SINGLE", MEGABYTE)
    monkeypatch.setattr(s3_upload, "PART", 5 * MEGABYTE)


@pytest.mark.parametrize("server", SERVERS, indirect=True)
async def test_a_large_body_goes_in_parts_with_lock_hold_and_tag(
    server: S3Server, place: Place, store: ObjectStore, small_parts: None
) -> None:
    data = os.urandom(22 * MEGABYTE + 3)
    lock = Lock("COMPLIANCE", in_(minutes=2))
    stored = await store.put("acme", chunks(data), lock=lock, hold=True)
    assert stored.sha256 == hashlib.sha256(data).hexdigest()
    head = server.client().head_object(Bucket=place.bucket, Key=stored.key)
    assert head["ETag"].strip('"').endswith("-5")
    state = await store.stat(stored.key, stored.version_id)
    assert (state.lock, state.hold, state.sha256, state.size) == (lock, True, stored.sha256, len(data))
    assert tags(server, place, stored.key, stored.version_id) == {"legal_hold": "true"}
    assert await content(store, stored.key, stored.version_id) == data
    middle = 10 * MEGABYTE
    assert await content(store, stored.key, stored.version_id, middle - 7, middle + 7) == data[middle - 7 : middle + 7]
    assert await store.put("acme", chunks(data)) == stored
    assert left(place) == ([stored.key], [], [])


def tags(server: S3Server, place: Place, key: str, version: str) -> dict[str, str]:
    found = server.client().get_object_tagging(Bucket=place.bucket, Key=key, VersionId=version)
    return {tag["Key"]: tag["Value"] for tag in found["TagSet"]}


@pytest.mark.parametrize("server", SERVERS, indirect=True)
async def test_an_upload_in_parts_that_fails_or_is_cancelled_leaves_nothing(
    place: Place, small_parts: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = os.urandom(22 * MEGABYTE)
    store = place.open()
    sent = asyncio.Event()
    loop = asyncio.get_running_loop()
    put_part = s3_upload.put_part

    def slow(*args: object) -> object:
        done = put_part(*args)  # type: ignore[arg-type]  # passed on as they came
        loop.call_soon_threadsafe(sent.set)
        return done

    monkeypatch.setattr(s3_upload, "put_part", slow)
    upload = asyncio.create_task(store.put("acme", chunks(data)))
    await sent.wait()
    upload.cancel()
    with pytest.raises(asyncio.CancelledError):
        await upload
    assert left(place) == NOTHING

    def fails(client: object, target: object, upload: str, handle: int, number: int, *more: int) -> object:
        if number == 3:
            raise s3_client.Refused("InternalError", 500, Fault("it answered 500", True))
        return put_part(client, target, upload, handle, number, *more)  # type: ignore[arg-type]  # passed on

    monkeypatch.setattr(s3_upload, "put_part", fails)
    with pytest.raises(ObjectStoreUnavailable, match="Nothing was stored"):
        await store.put("acme", chunks(data))
    assert left(place) == NOTHING
    await store.close()


@pytest.mark.parametrize("server", SERVERS, indirect=True)
async def test_parts_of_an_announced_body_go_while_more_comes(
    server: S3Server, place: Place, store: ObjectStore, small_parts: None
) -> None:
    data = os.urandom(22 * MEGABYTE + 3)
    announced = hashlib.sha256(data).hexdigest()
    lock = Lock("COMPLIANCE", in_(minutes=2))
    client = server.client()

    async def rest_once_parts_are_there(rest: bytes) -> AsyncIterator[bytes]:
        """Not until S3 has two parts does the end come."""
        yield data[: 12 * MEGABYTE]
        await until_parts(client, place, 2)
        yield rest

    right = data[12 * MEGABYTE :]
    with pytest.raises(ChecksumMismatch, match=announced):
        await store.put("acme", rest_once_parts_are_there(right[:-1] + b"?"), expected_sha256=announced)
    assert left(place) == NOTHING
    with pytest.raises(PayloadTooLarge):
        await store.put("acme", rest_once_parts_are_there(right), expected_sha256=announced, max_bytes=20 * MEGABYTE)
    assert left(place) == NOTHING
    stored = await store.put("acme", rest_once_parts_are_there(right), expected_sha256=announced, lock=lock, hold=True)
    state = await store.stat(stored.key, stored.version_id)
    assert (state.lock, state.hold, state.sha256, state.size) == (lock, True, announced, len(data))
    assert tags(server, place, stored.key, stored.version_id) == {"legal_hold": "true"}
    assert await content(store, stored.key, stored.version_id) == data
    assert await store.put("acme", chunks(data), expected_sha256=announced) == stored
    with pytest.raises(ChecksumMismatch):  # that it is there already is no reason to believe who says so
        await store.put("acme", chunks(data[:-1]), expected_sha256=announced)
    assert left(place) == ([stored.key], [], [])


async def until_parts(client: Any, place: Place, count: int) -> None:
    """Wait until S3 has so many parts of the one unfinished upload."""
    deadline = asyncio.get_running_loop().time() + 20
    found: list[object] = []
    while len(found) < count:
        assert asyncio.get_running_loop().time() < deadline, "no parts came"
        await asyncio.sleep(0.01)
        for upload in (await asyncio.to_thread(client.list_multipart_uploads, Bucket=place.bucket)).get("Uploads", ()):
            about = {"Bucket": place.bucket, "Key": upload["Key"], "UploadId": upload["UploadId"]}
            found = (await asyncio.to_thread(client.list_parts, **about)).get("Parts", [])


@pytest.mark.parametrize("server", SERVERS, indirect=True)
async def test_an_announced_body_that_breaks_off_or_that_s3_refuses_leaves_nothing(
    server: S3Server, place: Place, store: ObjectStore, small_parts: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = os.urandom(22 * MEGABYTE)
    announced = hashlib.sha256(data).hexdigest()
    client, came = server.client(), asyncio.Event()

    async def comes(end: Exception | None) -> AsyncIterator[bytes]:
        yield data[: 12 * MEGABYTE]
        await until_parts(client, place, 1)
        came.set()
        if end is not None:
            raise end
        await asyncio.Event().wait()

    with pytest.raises(ConnectionResetError):
        await store.put("acme", comes(ConnectionResetError("the client went away")), expected_sha256=announced)
    assert left(place) == NOTHING
    came.clear()
    upload = asyncio.create_task(store.put("acme", comes(None), expected_sha256=announced))
    await came.wait()
    upload.cancel()
    with pytest.raises(asyncio.CancelledError):
        await upload
    assert left(place) == NOTHING
    with running_proxy(server.endpoint) as proxy:
        async with opened(place, s3_endpoint=proxy.url) as through:
            proxy.cut, proxy.cuts_left = MEGABYTE, 1_000
            with pytest.raises(ObjectStoreUnavailable, match="Nothing was stored"):
                await through.put("acme", chunks(data), expected_sha256=announced)
            proxy.cuts_left = 0
    unfinished = left(place)
    assert (unfinished[0], unfinished[2]) == ([], [])


@pytest.mark.parametrize("server", SERVERS, indirect=True)
async def test_two_uploads_of_the_same_announced_body_become_one_object(
    place: Place, store: ObjectStore, small_parts: None
) -> None:
    data = os.urandom(12 * MEGABYTE)
    announced = hashlib.sha256(data).hexdigest()
    both = [store.put("acme", chunks(data[:MEGABYTE], data[MEGABYTE:]), expected_sha256=announced) for _ in range(2)]
    one, other = await asyncio.gather(*both)
    assert one == other
    assert left(place) == ([one.key], [], [])


def test_a_body_is_signed_with_its_hash_and_names_it_in_its_checksum(moto_s3: S3Server) -> None:
    """A server that does not know the checksum checks what is signed, and the other way round."""
    seen: dict[str, str] = {}
    client = s3_client.connect(moto_s3.settings("b"))

    def note(request: Any, **_: Any) -> None:
        for name, value in request.headers.items():
            seen[name.lower()] = value.decode() if isinstance(value, bytes) else str(value)
        raise LookupError  # not sent

    client.meta.events.register("before-send.s3", note)
    digest = hashlib.sha256(b"bytes").digest()
    for call in (partial(client.put_object), partial(client.upload_part, UploadId="u", PartNumber=1)):
        with contextlib.suppress(LookupError):
            call(Bucket="b", Key="k", Body=b"bytes", ChecksumSHA256=base64.b64encode(digest).decode())
        assert seen.pop("x-amz-content-sha256") == digest.hex()
        assert base64.b64decode(seen.pop("x-amz-checksum-sha256")) == digest
        assert "x-amz-content-sha256" in seen.pop("authorization")


@pytest.mark.parametrize("server", SERVERS, indirect=True)
async def test_what_a_killed_process_left_is_swept_and_living_uploads_are_not(
    server: S3Server, place: Place, small_parts: None
) -> None:
    client = server.client()
    client.create_multipart_upload(Bucket=place.bucket, Key="acme/" + "0" * 64)
    (place.folder / "spool").mkdir()
    (place.folder / "spool" / "left").write_bytes(b"half")
    async with opened(place) as store:
        assert isinstance(store, S3Store)
        assert left(place)[2] == []
        if server.kind == "ceph":  # moto dates them all 2010
            assert await store.sweep() == 0
        assert await store.sweep(dt.timedelta(seconds=-60)) == 1
        assert left(place) == NOTHING
        client.create_multipart_upload(Bucket=place.bucket, Key="acme/" + "1" * 64)
        stored = await store.put(
            "acme", chunks(os.urandom(6 * MEGABYTE))
        )  # moto: swept by itself before the first one in parts
        assert len(left(place)[1]) == (1 if server.kind == "ceph" else 0)
        assert left(place)[0] == [stored.key]


# Locks that the server enforces, whoever asks.


@real
@pytest.mark.parametrize("server", ["ceph"], indirect=True)
async def test_compliance_stands_against_the_administrators_own_key(
    server: S3Server, place: Place, store: ObjectStore, small_parts: None
) -> None:
    until = in_(hours=1)
    admin = server.client()
    big = os.urandom(6 * MEGABYTE)
    for data in (b"small", big):
        stored = await store.put("acme", chunks(data), lock=Lock("COMPLIANCE", until))
        at = {"Bucket": place.bucket, "Key": stored.key, "VersionId": stored.version_id}
        for bypass in ({}, {"BypassGovernanceRetention": True}):
            with pytest.raises(ClientError, match="AccessDenied"):
                admin.delete_object(**at, **bypass)
            for retention in (
                {"Mode": "COMPLIANCE", "RetainUntilDate": until - dt.timedelta(minutes=1)},
                {"Mode": "GOVERNANCE", "RetainUntilDate": until + dt.timedelta(minutes=1)},
            ):
                with pytest.raises(ClientError, match="AccessDenied"):
                    admin.put_object_retention(**at, **bypass, Retention=retention)
        assert (await store.stat(stored.key, stored.version_id)).lock == Lock("COMPLIANCE", until)
        admin.put_object_retention(
            **at, Retention={"Mode": "COMPLIANCE", "RetainUntilDate": until + dt.timedelta(hours=1)}
        )
        assert await content(store, stored.key, stored.version_id) == data


@real
@pytest.mark.parametrize("server", ["ceph"], indirect=True)
async def test_a_hold_stands_against_the_administrators_own_key_until_released(
    server: S3Server, place: Place, store: ObjectStore
) -> None:
    stored = await store.put("acme", chunks(b"data"), hold=True)
    at = {"Bucket": place.bucket, "Key": stored.key, "VersionId": stored.version_id}
    with pytest.raises(ClientError, match="AccessDenied"):
        server.client().delete_object(**at, BypassGovernanceRetention=True)
    await store.set_hold(stored.key, stored.version_id, False)
    server.client().delete_object(**at)
    with pytest.raises(NotFound):
        await store.stat(stored.key, stored.version_id)


@pytest.mark.parametrize("server", SERVERS, indirect=True)
async def test_a_hold_changes_its_tag_and_no_other(server: S3Server, place: Place, store: ObjectStore) -> None:
    stored = await store.put("acme", chunks(b"data"))
    assert tags(server, place, stored.key, stored.version_id) == {"legal_hold": "false"}
    server.client().put_object_tagging(
        Bucket=place.bucket,
        Key=stored.key,
        Tagging={"TagSet": [{"Key": "owner", "Value": "finance"}, {"Key": "legal_hold", "Value": "false"}]},
    )
    for held in (True, False):
        await store.set_hold(stored.key, stored.version_id, held)
        found = tags(server, place, stored.key, stored.version_id)
        assert found == {"owner": "finance", "legal_hold": str(held).lower()}


@pytest.mark.parametrize("server", SERVERS, indirect=True)
async def test_a_bucket_without_versions_is_refused_before_a_byte_is_stored(server: S3Server, tmp_path: Path) -> None:
    place = Place(tmp_path, server, server.make_bucket(locks=False))
    async with opened(place) as store:
        with pytest.raises(ObjectStoreUnavailable, match="has no versioning"):
            await store.put("acme", chunks(b"data"))
        assert left(place) == NOTHING


@pytest.mark.parametrize("server", ["moto"], indirect=True)
async def test_a_bucket_without_object_lock_takes_nothing_that_is_to_be_locked(
    server: S3Server, tmp_path: Path
) -> None:
    place = Place(tmp_path, server, server.make_bucket(locks=False))
    server.client().put_bucket_versioning(Bucket=place.bucket, VersioningConfiguration={"Status": "Enabled"})
    async with opened(place) as store:
        with pytest.raises(ObjectStoreUnavailable, match="Nothing was stored"):
            await store.put("acme", chunks(b"data"), lock=Lock("COMPLIANCE", in_(hours=1)))
        assert left(place) == NOTHING


# Conditional requests, checksums, encryption, cold classes: what moto knows.


@pytest.mark.parametrize("server", ["moto"], indirect=True)
async def test_of_two_processes_one_gives_the_name(server: S3Server, place: Place) -> None:
    async with opened(place) as one, opened(place) as other:
        results = await asyncio.gather(
            *(s.put_named("audit/head", chunks(data)) for s, data in ((one, b"one"), (other, b"two"))),
            return_exceptions=True,
        )
        assert sorted(type(r).__name__ for r in results) == ["Conflict", "StoredObject"]
        same = await asyncio.gather(*(s.put("acme", chunks(b"same")) for s in (one, other, one, other)))
        assert len(set(same)) == 1
    assert len(left(place)[0]) == 2


@pytest.mark.parametrize("server", ["moto"], indirect=True)
async def test_s3_keeps_the_checksum_and_the_encryption_that_were_asked_for(server: S3Server, place: Place) -> None:
    async with opened(place, s3_kms_key_id="arn:aws:kms:us-east-1:111122223333:key/one") as store:
        stored = await store.put("acme", chunks(b"data"))
    head = server.client().head_object(Bucket=place.bucket, Key=stored.key, ChecksumMode="ENABLED")
    assert (head["ServerSideEncryption"], head["SSEKMSKeyId"]) == (
        "aws:kms",
        "arn:aws:kms:us-east-1:111122223333:key/one",
    )
    assert head["ChecksumSHA256"] and head["Metadata"]["sha256"] == stored.sha256  # noqa: PT018 - one matter


@pytest.mark.parametrize("server", ["moto"], indirect=True)
async def test_a_cold_object_is_reported_and_brought_back(server: S3Server, place: Place, store: ObjectStore) -> None:
    key = f"acme/{hashlib.sha256(b'cold').hexdigest()}"
    version = server.client().put_object(Bucket=place.bucket, Key=key, Body=b"cold", StorageClass="DEEP_ARCHIVE")[
        "VersionId"
    ]
    state = await store.stat(key, version)
    assert (state.storage_class, state.readable, state.restoring) == ("DEEP_ARCHIVE", False, False)
    with pytest.raises(ObjectStoreUnavailable, match="cold storage class"):
        await content(store, key, version)
    await store.restore(key, version, 3)
    await store.restore(key, version, 3)
    state = await store.stat(key, version)
    assert state.restoring or state.readable


# Links.


@pytest.mark.parametrize("server", SERVERS, indirect=True)
async def test_a_link_gives_the_bytes_as_an_attachment_for_a_while(store: ObjectStore) -> None:
    stored = await store.put("acme", chunks(b"data"))
    await store.put("acme", chunks(b"other"))
    link = store.link(
        stored.key, stored.version_id, 60, name='Bericht "Ä" 1.pdf\r\nX: y', content_type="application/pdf"
    )
    assert link is not None
    async with httpx2.AsyncClient() as client:
        answer = await client.get(link)
    assert (answer.status_code, answer.content) == (200, b"data")
    assert answer.headers["Content-Type"] == "application/pdf"
    disposition = answer.headers["Content-Disposition"]
    assert disposition.startswith("attachment; ")
    assert disposition.endswith("filename*=UTF-8''Bericht%20%22%C3%84%22%201.pdf%0D%0AX%3A%20y")
    assert "X" not in answer.headers


@real
@pytest.mark.parametrize("server", ["ceph"], indirect=True)
async def test_a_link_ends_and_cannot_be_changed(store: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> None:
    stored, other = await store.put("acme", chunks(b"data")), await store.put("acme", chunks(b"other"))
    past = dt.datetime.now(dt.UTC) - dt.timedelta(seconds=120)
    with monkeypatch.context() as patch:
        patch.setattr(botocore.auth, "get_current_datetime", lambda *_, **__: past)
        ended = store.link(stored.key, stored.version_id, 60, name=None, content_type="text/plain")
    link = store.link(stored.key, stored.version_id, 60, name=None, content_type="text/plain")
    assert ended is not None
    assert link is not None
    async with httpx2.AsyncClient() as client:
        assert (await client.get(link)).content == b"data"
        for bad in (ended, link.replace(stored.sha256, other.sha256), link.replace("text", "evil")):
            assert (await client.get(bad)).status_code == 403


# What others put there.


@pytest.mark.parametrize("server", SERVERS, indirect=True)
@pytest.mark.parametrize("key", ["Rechnung Ä 2026 (1).pdf", "a?b=c&d#e+f%20g", "日本語/写真.png", "x" * 1024])
async def test_an_object_of_any_name_can_be_read_and_located(
    server: S3Server, place: Place, store: ObjectStore, key: str
) -> None:
    version = server.client().put_object(Bucket=place.bucket, Key=key, Body=b"theirs")["VersionId"]
    assert await content(store, key, version) == b"theirs"
    assert (await store.stat(key)).sha256 is None
    assert store.locate(f"s3://{place.bucket}/{key}") == (key, None)
    link = store.link(key, version, 60, name=None, content_type="text/plain")
    assert link is not None
    assert store.locate(link) == (key, version)
    await store.set_hold(key, version, True)
    await store.extend_lock(key, version, Lock("COMPLIANCE", in_(minutes=1)))
    state = await store.stat(key, version)
    assert state.hold
    assert [v.key for v in (await store.versions(key)).versions] == [key]


@pytest.mark.parametrize("server", ["moto"], indirect=True)
@pytest.mark.parametrize("key", ["", "/x", "a/../b", ".", "a\n", "x" * 1025, "ä" * 513, "\ud800"])
async def test_names_that_s3_or_a_proxy_would_take_for_another_are_refused(store: ObjectStore, key: str) -> None:
    with pytest.raises(ValidationError):
        await content(store, key, "1")
    with pytest.raises(ValidationError):
        await store.stat(key)
    with pytest.raises(ValidationError):
        store.link(key, "1", 60, name=None, content_type="text/plain")
    with pytest.raises(ValidationError):
        await store.put_named(key, chunks(b"x"))
    assert store.locate(f"{store.url_prefix}{key}") is None


def test_the_urls_of_aws_in_their_forms() -> None:
    from memory_layer.stores.objects.s3_bucket import located

    prefixes = url_prefixes("b", None, "eu-central-1")
    for url in (
        "s3://b/k/%41?versionId=v",
        "https://b.s3.eu-central-1.amazonaws.com/k/%2541?versionId=v&X-Amz-Date=1",
        "https://b.s3.amazonaws.com/k/%2541?versionId=v",
        "https://s3.eu-central-1.amazonaws.com/b/k/%2541?versionId=v",
    ):
        assert located(url, prefixes) == ("k/%41", "v"), url
    for url in (
        "https://b.s3.eu-west-1.amazonaws.com/k",
        "https://s3.amazonaws.com/bb/k",
        "http://b.s3.amazonaws.com/k",
    ):
        assert located(url, prefixes) is None


# Nothing half stored, and clear words.


def check_words(error: MemoryLayerError, caught: pytest.ExceptionInfo[MemoryLayerError], *logged: str) -> None:
    """No secret in the error, in what led to it, or in a log."""
    shown = "".join(traceback.format_exception(caught.value)) + error.message + "".join(logged)
    assert SECRET not in shown
    assert "Signature=" not in shown
    assert "Credential=" not in shown


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"s3_bucket": "no-such-bucket-here"}, "there is no bucket of this name"),
        ({"s3_access_key": "nobody-at-all"}, "does not know the access key. Check S3_ACCESS_KEY"),
        ({"s3_secret": SECRET}, "does not accept the signature. Check S3_SECRET"),
    ],
    ids=["bucket", "key", "secret"],
)
@pytest.mark.parametrize("server", [pytest.param("ceph", marks=real)], indirect=True)
async def test_wrong_settings_are_named_by_a_real_server(
    place: Place, changed: dict[str, str], words: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "memory_layer")
    missing = "acme/" + "0" * 64
    async with opened(place, **changed) as store:
        for attempt in (
            store.ping,
            lambda: store.put("acme", chunks(b"data"), lock=Lock("COMPLIANCE", in_(hours=1))),
            lambda: store.put_named("a/b", chunks(b"data")),
            lambda: content(store, missing, "1"),
            lambda: store.stat(missing),
            lambda: store.stat(missing, "1"),
            lambda: store.versions(""),
            lambda: store.set_hold(missing, "1", True),
        ):
            with pytest.raises(ObjectStoreUnavailable, match=words) as caught:
                await attempt()
            check_words(caught.value, caught, caplog.text)
    assert left(place) == NOTHING


@real
@pytest.mark.parametrize("server", ["ceph"], indirect=True)
@pytest.mark.parametrize("hours", [-2, 2])
async def test_clocks_that_differ_are_named_by_a_real_server(
    place: Place, hours: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(place) as store:
        wrong = dt.datetime.now(dt.UTC) + dt.timedelta(hours=hours)
        monkeypatch.setattr(botocore.auth, "get_current_datetime", lambda *_, **__: wrong)
        for attempt in (store.ping, lambda: store.put("acme", chunks(b"data"))):
            with pytest.raises(ObjectStoreUnavailable, match="clocks of this machine and of S3 differ"):
                await attempt()
    monkeypatch.undo()
    assert left(place) == NOTHING


@pytest.mark.parametrize(
    ("status", "code", "words"),
    [
        (400, "ExpiredToken", "credentials have expired. Renew them"),
        (403, "RequestTimeTooSkewed", "clocks of this machine and of S3 differ"),
        (403, "AccessDenied", "s3:PutObject"),
        (403, "InvalidAccessKeyId", "Check S3_ACCESS_KEY"),
        (404, "NoSuchBucket", "memoryctl provision apply buckets"),
        (503, "SlowDown", "throttles"),
        (500, "InternalError", "it answered 500"),
        (400, "BadDigest", "changed on the way"),
        (400, "KMS.NotFoundException", "S3_KMS_KEY_ID"),
        (403, "Odd <Code> with %s", "403"),
    ],
)
@pytest.mark.parametrize("server", ["moto"], indirect=True)
async def test_refusals_in_words_without_what_was_sent(
    place: Place, status: int, code: str, words: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3_client, "TRIES", 1)
    caplog.set_level(logging.DEBUG, "memory_layer")
    code = code.replace("<", "&lt;").replace(">", "&gt;")
    with refusing(status, code) as url:
        async with opened(place, s3_endpoint=url, s3_secret=SECRET) as store:
            for attempt in (
                store.ping,
                lambda: store.put("acme", chunks(b"data")),
                lambda: store.stat("acme/" + "0" * 64),
            ):
                with pytest.raises(ObjectStoreUnavailable, match=words) as caught:
                    await attempt()
                check_words(caught.value, caught, caplog.text)
    assert left(place) == NOTHING


@pytest.mark.parametrize("server", ["moto"], indirect=True)
async def test_s3_that_is_down_is_unavailable(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3_client, "TRIES", 1)
    async with opened(place, s3_endpoint=f"http://{NOBODY}") as store:
        for attempt in (
            store.ping,
            lambda: store.put("acme", chunks(b"data")),
            lambda: content(store, "acme/" + "0" * 64, "1"),
            lambda: store.stat("acme/" + "0" * 64),
        ):
            with pytest.raises(ObjectStoreUnavailable, match=r"cannot be reached.*S3_ENDPOINT"):
                await attempt()


@pytest.mark.parametrize("server", ["moto"], indirect=True)
async def test_a_server_that_hangs_holds_no_ping_up(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("memory_layer.stores.objects.s3.PING", 0.1)
    monkeypatch.setattr(s3_client, "READ", 5.0)
    monkeypatch.setattr(s3_client, "TRIES", 1)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen(64)
        async with opened(place, s3_endpoint=f"http://127.0.0.1:{silent.getsockname()[1]}") as store:
            pings = await asyncio.gather(*(store.ping() for _ in range(50)), return_exceptions=True)
            with pytest.raises(ObjectStoreUnavailable, match="did not answer within"):
                await store.ping()
        assert {type(ping) for ping in pings} == {ObjectStoreUnavailable}
        silent.settimeout(0.2)
        with silent.accept()[0], pytest.raises(TimeoutError):  # one connection, not fifty
            silent.accept()


@pytest.mark.parametrize("server", SERVERS, indirect=True)
async def test_a_connection_cut_in_an_upload_is_tried_again_or_leaves_nothing(server: S3Server, place: Place) -> None:
    data = os.urandom(3 * MEGABYTE)
    with running_proxy(server.endpoint) as proxy:
        async with opened(place, s3_endpoint=proxy.url) as store:
            proxy.cut, proxy.cuts_left = MEGABYTE, 1
            stored = await store.put("acme", chunks(data))
            assert proxy.cuts == 1
            assert await content(store, stored.key, stored.version_id) == data
            proxy.cuts_left = 1_000
            with pytest.raises(ObjectStoreUnavailable, match="Nothing was stored"):
                await store.put("acme", chunks(data[::-1]))
            assert (
                1 + s3_client.TRIES <= proxy.cuts <= 1 + 2 * s3_client.TRIES
            )  # bounded: asked whether it is there, and sent
            proxy.cuts_left = 0
    assert left(place) == ([stored.key], [], [])


@pytest.mark.parametrize("server", SERVERS, indirect=True)
async def test_a_connection_cut_in_a_download_is_taken_up_where_it_broke(server: S3Server, place: Place) -> None:
    data = os.urandom(5 * MEGABYTE)
    with running_proxy(server.endpoint) as proxy:
        async with opened(place, s3_endpoint=proxy.url) as store:
            stored = await store.put("acme", chunks(data))
        async with opened(place, s3_endpoint=proxy.url) as store:  # with connections of its own
            proxy.cut, proxy.cuts_left = 2 * MEGABYTE, 2
            assert await content(store, stored.key, stored.version_id) == data
            assert proxy.cuts == 2
            proxy.cut, proxy.cuts_left = 1, 1_000
            with pytest.raises(ObjectStoreUnavailable, match="give the object"):
                await content(store, stored.key, stored.version_id)


@real
@pytest.mark.parametrize("server", ["ceph"], indirect=True)
@pytest.mark.parametrize("in_parts", [False, True], ids=["single", "parts"])
async def test_bytes_that_change_on_the_way_are_refused_by_the_server(
    server: S3Server, place: Place, in_parts: bool, request: pytest.FixtureRequest
) -> None:
    if in_parts:
        request.getfixturevalue("small_parts")
    data = b"A" * (6 * MEGABYTE)
    with running_proxy(server.endpoint) as proxy:
        proxy.change = lambda block: block.replace(b"A" * 512, b"A" * 511 + b"B")
        async with opened(place, s3_endpoint=proxy.url) as store:
            with pytest.raises(ObjectStoreUnavailable, match="Nothing was stored"):
                await store.put("acme", chunks(data))
    assert left(place) == NOTHING


@pytest.mark.parametrize("server", SERVERS, indirect=True)
async def test_what_does_not_match_is_refused_before_s3_gets_it(server: S3Server, place: Place) -> None:
    async def breaks() -> AsyncIterator[bytes]:
        yield b"a" * MEGABYTE
        raise ConnectionResetError("the client went away")

    async with opened(place, s3_endpoint=f"http://{NOBODY}") as store:
        with pytest.raises(ChecksumMismatch):
            await store.put("acme", chunks(b"data"), expected_sha256="0" * 64)
        with pytest.raises(ChecksumMismatch):
            await store.put("acme", chunks(b"data"), expected_size=5)
        with pytest.raises(ConnectionResetError):
            await store.put("acme", breaks())
    assert left(place) == NOTHING


@pytest.mark.parametrize("server", ["moto"], indirect=True)
async def test_a_spool_that_fails_is_named(place: Place) -> None:
    async with opened(place) as store:
        (place.folder / "spool").rename(place.folder / "away")
        with pytest.raises(ObjectStoreUnavailable, match="where uploads to S3 are collected"):
            await store.put("acme", chunks(b"data"))
        with pytest.raises(ObjectStoreUnavailable):
            await store.ping()


# Settings.


def test_settings_that_cannot_be(moto_s3: S3Server, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="S3_SECRET"):
        open_objects(moto_s3.settings("b", s3_secret=""), tmp_path)
    with pytest.raises(UsageError, match="S3_ENDPOINT"):
        open_objects(moto_s3.settings("b", s3_endpoint="no url"), tmp_path)
    with pytest.raises(PolicyRefused, match="S3_ENDPOINT begins with http://"):
        open_objects(moto_s3.settings("b", s3_endpoint="http://s3.example.com", service_env="prod"), tmp_path)
    for missing in ({"s3_eraser_access_key": ""}, {"s3_eraser_secret": ""}):
        with pytest.raises(Forbidden, match="S3_ERASER_ACCESS_KEY"):
            open_eraser(moto_s3.settings("b", **missing), tmp_path)


async def test_buckets_have_names_by_default(moto_s3: S3Server, tmp_path: Path) -> None:
    for opener, name in ((open_objects, "acme-memory-staging"), (open_archive, "acme-audit-archive-staging")):
        settings = moto_s3.settings("", archive_bucket="", service_env="staging", bucket_prefix="acme")
        store = opener(settings, tmp_path)
        assert store.url_prefix == f"s3://{name}/"
        await store.close()


def test_parts_are_large_enough_for_the_largest_body() -> None:
    for size in (1, 64 * MEGABYTE + 1, 80 * 2**30, 5 * 2**40):
        part = s3_upload.part_size(size)
        assert -(-size // part) <= s3_upload.PARTS
        assert part >= 5 * MEGABYTE


def test_a_slice_is_a_file_of_its_range(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(range(100)))
    handle = os.open(path, os.O_RDONLY)
    part = s3_upload.Slice(handle, 10, 30)
    assert len(part) == 20
    assert part.read(5) == bytes(range(10, 15))
    assert part.seek(-2, os.SEEK_END) == 18
    assert part.read() == bytes([28, 29])
    assert part.seek(0) == 0
    assert part.read(100) == bytes(range(10, 30))
    os.close(handle)


@pytest.mark.parametrize("server", SERVERS, indirect=True)
@pytest.mark.parametrize("size", [9, 7 * MEGABYTE])
async def test_what_only_says_that_it_is_these_bytes_is_read_and_stored_again_over_it(
    server: S3Server, place: Place, store: ObjectStore, small_parts: None, size: int
) -> None:
    """S3 keeps a record of a hash with the bytes; bytes that rot, or that somebody laid there, keep the record."""
    data = os.urandom(size)
    sha256 = hashlib.sha256(data).hexdigest()
    key, lock = f"acme/{sha256}", Lock("GOVERNANCE", in_(minutes=2))
    for expected in (None, sha256):
        wrong = os.urandom(size)
        place_of = {"Bucket": place.bucket, "Key": key}
        forged = server.client().put_object(**place_of, Body=wrong, Metadata={"sha256": sha256})["VersionId"]
        server.client().put_object_legal_hold(**place_of, VersionId=forged, LegalHold={"Status": "ON"})
        stored = await store.put("acme", chunks(data), lock=lock, expected_sha256=expected)
        assert stored.version_id != forged
        assert stored.damage == Damage(forged, hashlib.sha256(wrong).hexdigest(), size, replaced=False)
        assert await content(store, key, stored.version_id) == data
        state = await store.stat(key, stored.version_id)
        assert (state.lock, state.hold) == (lock, True)
        assert await store.put("acme", chunks(data), expected_sha256=expected) == replace(stored, damage=None)
