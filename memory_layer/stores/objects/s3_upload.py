"""One body from a local file into S3: in one request up to 64 MiB, else in parts, several at a time, from a file that may still grow.

Calls: https://docs.aws.amazon.com/AmazonS3/latest/API/API_PutObject.html, API_CreateMultipartUpload.html, API_UploadPart.html,
API_CompleteMultipartUpload.html, API_AbortMultipartUpload.html, API_ListMultipartUploads.html.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import io
import itertools
import os
from collections.abc import Coroutine
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Final

from memory_layer.stores.objects.s3_bucket import Bucket, tag_of
from memory_layer.stores.objects.s3_client import asked
from memory_layer.stores.objects.spool import Growing, Spooled
from memory_layer.stores.protocols import Lock

MIB: Final = 1024 * 1024
SINGLE: Final = 64 * MIB  # the largest body of one request
PART: Final = 8 * MIB
PARTS: Final = 10_000  # the most that S3 takes
IN_MEMORY: Final = PART
PARALLEL: Final = 4  # parts of one upload at a time


@dataclass(frozen=True, slots=True)
class Target:
    """Where a body goes, and what must hold from its first moment on."""

    bucket: str
    key: str
    sha256: str
    lock: Lock | None
    hold: bool
    kms_key: str | None
    once: bool  # only where no object of that name is (If-None-Match)


class Slice(io.RawIOBase):
    """A range of an open file, for a client that reads and, to try again, seeks. The file's own offset stays untouched."""

    def __init__(self, handle: int, start: int, stop: int) -> None:
        super().__init__()
        self._handle, self._start, self._size, self._at = handle, start, stop - start, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        origin = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence]
        self._at = min(max(origin + offset, 0), self._size)
        return self._at

    def readinto(self, buffer: Any, /) -> int:
        view = memoryview(buffer)[: self._size - self._at]
        got = os.preadv(self._handle, [view], self._start + self._at) if view else 0
        self._at += got
        return got

    def __len__(self) -> int:
        return self._size


def part_size(size: int) -> int:
    """Of all parts but the last."""
    return max(PART, -(-size // PARTS // MIB) * MIB)


def body_of(handle: int, start: int, stop: int) -> bytes | Slice:
    """A range to send: small ones in memory, for the client sends those in one go, and files by a few kilobytes."""
    if stop - start > IN_MEMORY:
        return Slice(handle, start, stop)
    return os.pread(handle, stop - start, start)


def put_single(client: Any, target: Target, body: Spooled) -> str | None:
    """The version that S3 made of it, None where the bucket keeps none. Blocks. Raises Refused."""
    checksum = base64.b64encode(bytes.fromhex(target.sha256)).decode()
    answer = asked(
        lambda: client.put_object(
            **_about(target),
            **_condition(target),
            Body=body_of(body.handle, 0, body.size),
            ChecksumSHA256=checksum,
        )
    )
    return _version(answer)


# --- in parts


class PartUpload:
    """``living``: the uploads of this process, which no sweep takes for abandoned. Whoever calls ``send`` calls ``end``."""

    def __init__(self, bucket: Bucket, target: Target, part_size: int, living: set[str]) -> None:
        self.target = target
        self._bucket, self._size, self._living = bucket, part_size, living
        self._upload: str | None = None
        self._parts: dict[int, dict[str, Any]] = {}

    @property
    def begun(self) -> bool:
        return self._upload is not None

    async def send(self, growing: Growing) -> None:
        """Begin, and send each part once it is whole in the file. Raises Refused."""
        upload = await self._bucket.net.run(self._begin)
        numbers = itertools.count(1)

        async def one_by_one() -> None:
            while True:
                number = next(numbers)
                start = (number - 1) * self._size
                stop = min(start + self._size, await growing.reached(start + self._size))
                if start >= stop:
                    return
                put = partial(put_part, self._bucket.client, self.target, upload, growing.handle)
                self._parts[number] = await self._bucket.net.run(put, number, start, stop)

        await _all([one_by_one() for _ in range(PARALLEL)])

    def _begin(self) -> str:
        # Noted in the thread: a caller who is cancelled meanwhile must still drop it.
        self._upload = upload = begin(self._bucket.client, self.target)
        self._living.add(upload)
        return upload

    async def complete(self, *, once: bool) -> str | None:
        """The version that S3 made of all parts, None where the bucket keeps none. Raises Refused."""
        assert self._upload is not None, "send comes first"  # noqa: S101 - narrows the type
        target, parts = replace(self.target, once=once), [self._parts[number] for number in sorted(self._parts)]
        version = await self._bucket.net.run(complete, self._bucket.client, target, self._upload, parts)
        self._forget()
        return version

    async def end(self) -> None:
        """Drop what was begun and not completed."""
        if self._upload is not None:
            try:
                await self._bucket.abort(self.target.key, self._upload)
            finally:
                self._forget()

    def _forget(self) -> None:
        if self._upload is not None:
            self._living.discard(self._upload)
            self._upload = None


async def _all(work: list[Coroutine[Any, Any, None]]) -> None:
    """Run all; where one fails, end the others before its error passes."""
    tasks = [asyncio.ensure_future(one) for one in work]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def begin(client: Any, target: Target) -> str:
    """The id of a multipart upload. Blocks, as do the next two. Raises Refused."""
    return str(asked(lambda: client.create_multipart_upload(**_about(target))["UploadId"]))


def put_part(
    client: Any, target: Target, upload: str, handle: int, number: int, start: int, stop: int
) -> dict[str, Any]:
    """What ``complete`` takes of the part. Raises Refused."""
    body = body_of(handle, start, stop)
    checksum = base64.b64encode(_hash_of(body)).decode()
    answer = asked(
        lambda: client.upload_part(
            Bucket=target.bucket,
            Key=target.key,
            UploadId=upload,
            PartNumber=number,
            Body=body,
            ChecksumAlgorithm="SHA256",
            ChecksumSHA256=checksum,
        )
    )
    return {"PartNumber": number, "ETag": answer["ETag"], "ChecksumSHA256": checksum}


def complete(client: Any, target: Target, upload: str, parts: list[dict[str, Any]]) -> str | None:
    """The version. Raises Refused; then nothing was stored, unless it took the request and its answer was lost."""
    answer = asked(
        lambda: client.complete_multipart_upload(
            Bucket=target.bucket,
            Key=target.key,
            UploadId=upload,
            MultipartUpload={"Parts": parts},
            **_condition(target),
        )
    )
    return _version(answer)


# --- of both


def _version(answer: Any) -> str | None:
    return None if answer.get("VersionId") is None else str(answer["VersionId"])


def _hash_of(body: bytes | Slice) -> bytes:
    if isinstance(body, bytes):
        return hashlib.sha256(body).digest()
    digest = hashlib.file_digest(body, "sha256").digest()
    body.seek(0)
    return digest


def _about(target: Target) -> dict[str, Any]:
    tag = tag_of(target.hold)
    asked_for: dict[str, Any] = {
        "Bucket": target.bucket,
        "Key": target.key,
        "ContentType": "application/octet-stream",
        # S3 keeps no hash of the whole of what came in parts, and older servers none at all.
        "Metadata": {"sha256": target.sha256},
        "Tagging": f"{tag['Key']}={tag['Value']}",
        "ChecksumAlgorithm": "SHA256",
    }
    if target.lock is not None:
        asked_for |= {"ObjectLockMode": target.lock.mode, "ObjectLockRetainUntilDate": target.lock.until}
    if target.hold:
        asked_for["ObjectLockLegalHoldStatus"] = "ON"
    if target.kms_key:
        asked_for |= {"ServerSideEncryption": "aws:kms", "SSEKMSKeyId": target.kms_key}
    return asked_for


def _condition(target: Target) -> dict[str, str]:
    return {"IfNoneMatch": "*"} if target.once else {}
