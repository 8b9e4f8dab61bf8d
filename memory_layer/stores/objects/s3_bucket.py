"""One bucket, question by question: what is asked, and what an answer or a refusal means to the seam."""

from __future__ import annotations

import asyncio
import datetime as dt
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeVar

from memory_layer.errors import Conflict, ObjectStoreUnavailable
from memory_layer.stores.objects import keys, s3_shapes, s3_upload
from memory_layer.stores.objects.s3_wire import SILENT, Refused, asked, unavailable
from memory_layer.stores.objects.spool import Steps
from memory_layer.stores.protocols import Lock, ObjectPage, ObjectState

T = TypeVar("T")

# Seconds that a caller waits for S3's first word of an object. A thread may wait longer, for its tries; a client of ours gives up
# after 30 s, and would be told that the product, not S3, did not answer.
ANSWER: Final = 10.0
_ABSENT: Final = ("NoSuchKey", "NoSuchVersion", "InvalidArgument", "MethodNotAllowed", "404")


class Bucket:
    """boto3's client of one bucket, in threads."""

    def __init__(self, client: Any, name: str, net: Steps) -> None:
        self.client = client
        self.name = name
        self.net = net
        self.versioned = False

    async def versions(self, prefix: str, cursor: str | None, limit: int) -> ObjectPage:
        """As the Protocol says."""
        markers = s3_shapes.markers_of(cursor)
        most = min(max(1, limit), 1000)
        ask = partial(self.client.list_object_versions, Bucket=self.name, Prefix=prefix, MaxKeys=most, **markers)
        return s3_shapes.page_of(await self.ask("list its objects", ask))

    async def stale(self, before: dt.datetime) -> list[tuple[str, str]]:
        """(key, upload) of what was begun in parts before then and never ended."""
        try:
            return await self.net.run(s3_upload.stale, self.client, self.name, before)
        except Refused as error:
            refused = error
        raise unavailable("list its unfinished uploads", refused)

    async def abort(self, key: str, upload: str) -> bool:
        return await self.net.run(s3_upload.abort, self.client, self.name, key, upload)

    async def lock(self, found: ObjectState, lock: Lock) -> None:
        ask = partial(
            self.client.put_object_retention,
            Bucket=self.name,
            Key=found.key,
            VersionId=found.version_id,
            ChecksumAlgorithm="SHA256",
            Retention={"Mode": lock.mode, "RetainUntilDate": lock.until},
        )
        try:
            await self.net.run(asked, ask)
            return
        except Refused as error:
            refused = error
        if refused.code == "AccessDenied" and found.lock is not None and found.lock.mode != lock.mode:
            raise Conflict(
                f"The object {found.key} is locked in {found.lock.mode}, and this server lets only who may bypass that change it to "
                f"{lock.mode}."
            )
        raise unavailable(f"lock the object {found.key}", refused)

    async def hold(self, key: str, version_id: str, held: bool) -> None:
        about = {"Bucket": self.name, "Key": key, "VersionId": version_id}

        def both() -> None:
            checked = {"ChecksumAlgorithm": "SHA256"}
            self.client.put_object_legal_hold(**about, **checked, LegalHold={"Status": "ON" if held else "OFF"})
            tag = s3_upload.tag_of(held)
            others = [t for t in self.client.get_object_tagging(**about).get("TagSet", ()) if t["Key"] != tag["Key"]]
            self.client.put_object_tagging(**about, **checked, Tagging={"TagSet": [*others, tag]})

        await self.ask(f"{'hold' if held else 'release'} the object {key}", both)

    async def get(self, key: str, version_id: str, start: int, stop: int | None) -> Any | None:
        """The body of a range; None where it begins at the end or beyond. Raises NotFound."""
        about: dict[str, Any] = {"Bucket": self.name, "Key": key, "VersionId": version_id}
        if start or stop is not None:
            about["Range"] = f"bytes={start}-{'' if stop is None else stop - 1}"
        try:
            return await self._soon(lambda: self.client.get_object(**about)["Body"], late=lambda body: body.close())
        except Refused as error:
            refused = error
        if refused.code == "InvalidRange" or refused.status == 416:
            return None
        if refused.code in _ABSENT:
            raise keys.no_version(key, version_id)
        raise unavailable(f"give the object {key}", refused)

    async def demand(self, key: str, version_id: str | None) -> ObjectState:
        found = await self.head(key, version_id)
        if found is None:
            await self.absent(key, version_id)
            raise keys.no_object(key) if version_id is None else keys.no_version(key, version_id)
        return found

    async def head(self, key: str, version_id: str | None) -> ObjectState | None:
        """None where S3 knows no such version, or no such bucket. Raises ObjectStoreUnavailable."""
        keys.check_any(key)
        about = {"Bucket": self.name, "Key": key, "ChecksumMode": "ENABLED"}
        if version_id is not None:
            about["VersionId"] = version_id
        try:
            return s3_shapes.state_of(key, await self._soon(partial(self.client.head_object, **about)))
        except Refused as error:
            refused = error
        if refused.status in (404, 405):
            return None
        if refused.status in (301, 400, 403):  # an answer to HEAD has no body to say why
            await self.absent(key, version_id)
            return None
        raise unavailable(f"describe the object {key}", refused)

    async def absent(self, key: str, version_id: str | None) -> None:
        """Ask why there is no such object. Raises ObjectStoreUnavailable where that is not it, say when the bucket is gone."""
        about: dict[str, Any] = {"Bucket": self.name, "Key": key, "Range": "bytes=0-0"}
        if version_id is not None:
            about["VersionId"] = version_id
        try:
            (await self.net.run(asked, lambda: self.client.get_object(**about)["Body"])).close()
            return
        except Refused as error:
            refused = error
        if refused.code in _ABSENT or refused.status == 416:
            return
        raise unavailable(f"describe the object {key}", refused)

    async def is_marker(self, key: str, version_id: str) -> bool:
        cursor = None
        while True:
            page = await self.versions(key, cursor, 1000)
            for version in page.versions:
                if (version.key, version.version_id, version.marker) == (key, version_id, True):
                    return True
            cursor = page.cursor
            if cursor is None or page.versions[-1].key != key:
                return False

    async def demand_versioning(self) -> None:
        """Once: without versions S3 lets any object be overwritten. Raises ObjectStoreUnavailable."""
        if self.versioned:
            return
        try:
            answer = await self.net.run(asked, partial(self.client.get_bucket_versioning, Bucket=self.name))
        except Refused as error:
            if error.code == "AccessDenied":
                return  # then the answer to the upload tells, which must name a version
            refused = error
        else:
            if answer.get("Status") != "Enabled":
                raise unversioned(self.name)
            self.versioned = True
            return
        raise unavailable("answer", refused)

    async def ask(self, what: str, function: Callable[[], T]) -> T:
        try:
            return await self.net.run(asked, function)
        except Refused as error:
            refused = error
        raise unavailable(what, refused)

    async def _soon(self, function: Callable[[], T], late: Callable[[T], object] = lambda _: None) -> T:
        """What ``function`` returns; Refused when that takes longer than ANSWER. ``late`` is given what nobody waits for any more."""
        step = asyncio.ensure_future(self.net.run(asked, function))

        def forget(done: asyncio.Future[T]) -> None:
            if not done.cancelled() and done.exception() is None:
                late(done.result())

        try:
            await asyncio.wait([step], timeout=ANSWER)
        finally:
            taken = step.done()
            if not taken:
                step.add_done_callback(forget)
        if not taken:
            raise Refused("", 0, SILENT)
        return step.result()


def unversioned(bucket: str) -> ObjectStoreUnavailable:
    return ObjectStoreUnavailable(
        f"The bucket {bucket} has no versioning, so that its objects could be overwritten. Turn it on; `memoryctl provision apply "
        "buckets` does."
    )


def disk_failed(folder: Path, error: OSError) -> ObjectStoreUnavailable:
    return ObjectStoreUnavailable(
        f"The folder {folder}, where uploads to S3 are collected, failed: {error.strerror or error}. Check its disk and permissions, "
        "then retry."
    )
