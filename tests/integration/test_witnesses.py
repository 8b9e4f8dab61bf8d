"""The newest checkpoint of an archive, in a directory and in S3: found page by page, once, and again only from where it ended."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from memory_layer.audit.checkpoint import sign_checkpoint
from memory_layer.audit.trust_root import TrustRoot, dump, load, trusted_key
from memory_layer.errors import ObjectStoreUnavailable
from memory_layer.service import witnesses
from memory_layer.service.witnesses import Witnesses
from memory_layer.stores.objects import open_archive
from memory_layer.stores.objects.files import open_file_store
from memory_layer.stores.protocols import ObjectStore
from tests.support.s3_server import S3Server

ORIGIN = "memory-1/audit/dev/s0/e1"
KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
DER = KEY.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
PLACE = f"archive/{ORIGIN}/"


@pytest.fixture(scope="module")
def root() -> TrustRoot:
    return load(dump(ORIGIN, [trusted_key("ed25519", DER, "checkpoint")]))


@pytest.fixture(params=["directory", "s3"])
async def store(request: pytest.FixtureRequest, tmp_path: Path, moto_s3: S3Server) -> AsyncIterator[ObjectStore]:
    if request.param == "directory":
        opened = open_file_store(tmp_path / "archive")
    else:
        opened = open_archive(moto_s3.settings(moto_s3.make_bucket()), tmp_path)
    yield opened
    await opened.close()


def note(size: int, root: bytes = b"\x01" * 32) -> bytes:
    return sign_checkpoint(ORIGIN, size, root, public_key_der=DER, sign=KEY.sign)


async def put(store: ObjectStore, name: str, data: bytes) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        yield data

    await store.put_named(PLACE + name, chunks())


class Counting:
    """The store, and how often its listing and its objects were asked for."""

    def __init__(self, store: ObjectStore) -> None:
        self.store, self.listed, self.read_ = store, 0, 0

    async def versions(self, *given: Any) -> Any:
        self.listed += 1
        return await self.store.versions(*given)

    def read(self, *given: Any) -> Any:
        self.read_ += 1
        return self.store.read(*given)


async def test_the_newest_of_many(store: ObjectStore, root: TrustRoot, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(witnesses, "_PAGE", 3)
    monkeypatch.setattr(witnesses, "REMEMBERED", 4)
    counting = Counting(store)
    looks = Witnesses(root, counting)  # type: ignore[arg-type]
    empty = await looks.gather()
    assert (empty.witnesses, empty.unread, empty.archive_empty, empty.answered) == ([], [], True, 1)
    for size in (1, 5, 20, 100, 1000, 30_000, 400_000, 5_000_000):
        await put(store, f"checkpoints/{size:015d}", note(size))
    await put(store, "checkpoints/other", b"not by size")

    async def newest() -> int:
        (found,) = (await looks.gather()).witnesses
        return found.checkpoint.size

    assert await newest() == 5_000_000
    counting.listed = counting.read_ = 0
    assert await newest() == 5_000_000
    assert (counting.listed, counting.read_) == (2, 0)  # the last page of each listing, and nothing read again
    await put(store, f"segments/{0:015d}-{5_999_999:015d}/checkpoint", note(6_000_000))
    await put(store, f"segments/{0:015d}-{5_999_999:015d}/manifest.json", b"{}")
    assert await newest() == 6_000_000
    await put(store, f"checkpoints/{6_000_001:015d}", note(6_000_001))
    assert await newest() == 6_000_001


async def test_what_proves_nothing_hides_nothing(store: ObjectStore, root: TrustRoot) -> None:
    looks = Witnesses(root, store)
    await put(store, f"checkpoints/{7:015d}", note(7))
    other = Ed25519PrivateKey.generate()
    der = other.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    foreign = sign_checkpoint(ORIGIN, 99, bytes(32), public_key_der=der, sign=other.sign)
    another = sign_checkpoint(ORIGIN.replace("/e1", "/e2"), 98, bytes(32), public_key_der=DER, sign=KEY.sign)
    for size, data in ((99, foreign), (98, another), (97, b"x" * 200_000), (96, note(96)[:-3])):
        await put(store, f"checkpoints/{size:015d}", data)
    found = await looks.gather()
    assert [w.checkpoint.size for w in found.witnesses] == [7]
    assert len(found.doubtful) == 4
    assert (await looks.gather()).doubtful == []  # said once


async def test_what_lies_over_a_checkpoint_does_not_hide_it(moto_s3: S3Server, tmp_path: Path, root: TrustRoot) -> None:
    bucket = moto_s3.make_bucket()
    store = open_archive(moto_s3.settings(bucket), tmp_path)
    await put(store, f"checkpoints/{7:015d}", note(7))
    await put(store, f"checkpoints/{8:015d}", note(8))
    client = moto_s3.client()
    client.put_object(Bucket=bucket, Key=f"{PLACE}checkpoints/{8:015d}", Body=b"another version")
    client.delete_object(Bucket=bucket, Key=f"{PLACE}checkpoints/{8:015d}")
    (found,) = (await Witnesses(root, store).gather()).witnesses
    assert found.checkpoint.size == 8
    await store.close()


@pytest.mark.parametrize("fault", [ObjectStoreUnavailable("S3 did not answer."), None])
async def test_an_archive_that_cannot_be_opened_is_unread_and_one_that_is_not_there_is_empty(
    root: TrustRoot, fault: ObjectStoreUnavailable | None
) -> None:
    found = await Witnesses(root, fault).gather()
    assert (len(found.unread), found.answered, found.archive_empty) == ((1, 0, False) if fault else (0, 1, True))
