"""One bucket, question by question: what is asked, what an answer or a refusal means to the seam, and the forms of its URLs."""

from __future__ import annotations

import asyncio
import base64
import datetime as dt
import json
import re
import unicodedata
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeVar
from urllib.parse import parse_qs, quote, unquote

from memory_layer.errors import Conflict, InvalidCursor, ObjectStoreUnavailable, ValidationError
from memory_layer.stores.objects import rules
from memory_layer.stores.objects.s3_client import Refused, asked, unavailable
from memory_layer.stores.objects.spool import Steps
from memory_layer.stores.protocols import Lock, ObjectPage, ObjectState, ObjectVersion
from memory_layer.stores.remote.aws import SILENT

T = TypeVar("T")

# Seconds that a caller waits for S3's first word of an object. A thread may wait longer, for its tries; a client of ours gives up
# after 30 s, and would get the error that the product, not S3, did not answer.
ANSWER: Final = 10.0
_ABSENT: Final = ("NoSuchKey", "NoSuchVersion", "InvalidArgument", "MethodNotAllowed", "404")
_COLD: Final = ("GLACIER", "DEEP_ARCHIVE")
_SHA256: Final = re.compile(r"[0-9a-f]{64}")


class Bucket:
    """boto3's client of one bucket, in threads."""

    def __init__(self, client: Any, name: str, net: Steps) -> None:
        self.client = client
        self.name = name
        self.net = net
        self.versioned = False

    async def versions(self, prefix: str, cursor: str | None, limit: int) -> ObjectPage:
        """As the Protocol says."""
        markers = markers_of(cursor)
        most = min(max(1, limit), 1000)
        ask = partial(self.client.list_object_versions, Bucket=self.name, Prefix=prefix, MaxKeys=most, **markers)
        return page_of(await self.ask("list its objects", ask))

    async def stale(self, before: dt.datetime) -> list[tuple[str, str]]:
        """(key, upload) of what was begun in parts before then and never ended."""

        def look() -> list[tuple[str, str]]:
            found: list[tuple[str, str]] = []
            markers: dict[str, str] = {}
            while True:
                page = self.client.list_multipart_uploads(Bucket=self.name, **markers)
                found += [(u["Key"], u["UploadId"]) for u in page.get("Uploads", ()) if u["Initiated"] < before]
                if not page.get("IsTruncated"):
                    return found
                markers = {"KeyMarker": page["NextKeyMarker"], "UploadIdMarker": page["NextUploadIdMarker"]}

        return await self.ask("list its unfinished uploads", look)

    async def abort(self, key: str, upload: str) -> bool:
        """Drop an upload and its parts; whether it is gone. What cannot be dropped now is for ``stale`` to find."""
        drop = partial(self.client.abort_multipart_upload, Bucket=self.name, Key=key, UploadId=upload)
        try:
            await self.net.run(asked, drop)
        except Refused as refused:
            return refused.code == "NoSuchUpload"
        return True

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
        except Refused as refused:
            if refused.code == "AccessDenied" and found.lock is not None and found.lock.mode != lock.mode:
                raise Conflict(
                    f"The object {found.key} is locked in {found.lock.mode}, and this server lets only who may bypass that change it to "
                    f"{lock.mode}."
                ) from None
            raise unavailable(f"lock the object {found.key}", refused) from None

    async def hold(self, key: str, version_id: str, held: bool) -> None:
        about = {"Bucket": self.name, "Key": key, "VersionId": version_id}

        def both() -> None:
            checked = {"ChecksumAlgorithm": "SHA256"}
            self.client.put_object_legal_hold(**about, **checked, LegalHold={"Status": "ON" if held else "OFF"})
            tag = tag_of(held)
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
        except Refused as refused:
            if refused.code == "InvalidRange" or refused.status == 416:
                return None
            if refused.code in _ABSENT:
                raise rules.no_version(key, version_id) from None
            raise unavailable(f"give the object {key}", refused) from None

    async def require(self, key: str, version_id: str | None) -> ObjectState:
        found = await self.head(key, version_id)
        if found is None:
            await self.absent(key, version_id)
            raise rules.no_object(key) if version_id is None else rules.no_version(key, version_id)
        return found

    async def head(self, key: str, version_id: str | None) -> ObjectState | None:
        """None where S3 knows no such version, or no such bucket. Raises ObjectStoreUnavailable."""
        rules.check_any(key)
        about = {"Bucket": self.name, "Key": key, "ChecksumMode": "ENABLED"}
        if version_id is not None:
            about["VersionId"] = version_id
        try:
            return state_of(key, await self._soon(partial(self.client.head_object, **about)))
        except Refused as refused:
            if refused.status in (404, 405):
                return None
            if refused.status not in (301, 400, 403):
                raise unavailable(f"describe the object {key}", refused) from None
        await self.absent(key, version_id)  # an answer to HEAD has no body to say why
        return None

    async def absent(self, key: str, version_id: str | None) -> None:
        """Ask why there is no such object. Raises ObjectStoreUnavailable where that is not it, say when the bucket is gone."""
        about: dict[str, Any] = {"Bucket": self.name, "Key": key, "Range": "bytes=0-0"}
        if version_id is not None:
            about["VersionId"] = version_id
        try:
            (await self.net.run(asked, lambda: self.client.get_object(**about)["Body"])).close()
        except Refused as refused:
            if refused.code not in _ABSENT and refused.status != 416:
                raise unavailable(f"describe the object {key}", refused) from None

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

    async def require_versioning(self) -> None:
        """Once: without versions S3 lets any object be overwritten. Raises ObjectStoreUnavailable."""
        if self.versioned:
            return
        try:
            answer = await self.net.run(asked, partial(self.client.get_bucket_versioning, Bucket=self.name))
        except Refused as refused:
            if refused.code == "AccessDenied":
                return  # then the answer to the upload tells, which must name a version
            raise unavailable("answer", refused) from None
        if answer.get("Status") != "Enabled":
            raise unversioned(self.name)
        self.versioned = True

    async def ask(self, what: str, function: Callable[[], T]) -> T:
        try:
            return await self.net.run(asked, function)
        except Refused as refused:
            raise unavailable(what, refused) from None

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


def tag_of(hold: bool) -> dict[str, str]:
    """On every object, held or not: a lifecycle rule can ask for a tag's value, not for its absence."""
    return {"Key": "legal_hold", "Value": "true" if hold else "false"}


# --- answers in the words of the seam


def state_of(key: str, head: Any) -> ObjectState:
    """Of HeadObject's answer. https://docs.aws.amazon.com/AmazonS3/latest/API/API_HeadObject.html"""
    storage_class = str(head.get("StorageClass") or "STANDARD")
    restore = str(head.get("Restore") or "")
    cold = storage_class in _COLD or bool(head.get("ArchiveStatus"))
    restoring = 'ongoing-request="true"' in restore
    until, mode = head.get("ObjectLockRetainUntilDate"), head.get("ObjectLockMode")
    return ObjectState(
        key=key,
        version_id=str(head.get("VersionId") or "null"),
        size=int(head["ContentLength"]),
        sha256=_recorded(head),
        lock=None if until is None or mode is None else Lock(mode, until.astimezone(dt.UTC)),
        hold=head.get("ObjectLockLegalHoldStatus") == "ON",
        shadowed=False,
        storage_class=storage_class,
        restoring=restoring,
        readable=not cold or 'ongoing-request="false"' in restore,
    )


def under(found: ObjectState, newest: ObjectState | None) -> ObjectState:
    """With what stands over it: another version, or (newest None) a delete marker."""
    return replace(found, shadowed=newest is None or newest.version_id != found.version_id)


def _recorded(head: Any) -> str | None:
    # Only of the whole: what came in parts has a checksum of checksums.
    if head.get("ChecksumType") == "FULL_OBJECT" and head.get("ChecksumSHA256"):
        return base64.b64decode(head["ChecksumSHA256"]).hex()
    recorded = str(head.get("Metadata", {}).get("sha256", "")).lower()
    return recorded if _SHA256.fullmatch(recorded) else None


def page_of(answer: Any) -> ObjectPage:
    """Of ListObjectVersions' answer. https://docs.aws.amazon.com/AmazonS3/latest/API/API_ListObjectVersions.html"""
    found = [_version(one, marker=False) for one in answer.get("Versions", ())]
    found += [_version(one, marker=True) for one in answer.get("DeleteMarkers", ())]
    # The library gives two lists; within a key the sort keeps the order of S3 where times are equal.
    found.sort(key=lambda v: (v.key.encode(), not v.latest, -v.modified.timestamp()))
    cursor = None
    if answer.get("IsTruncated"):
        markers = [answer.get("NextKeyMarker", ""), answer.get("NextVersionIdMarker", "")]
        cursor = base64.urlsafe_b64encode(json.dumps(markers).encode()).decode()
    return ObjectPage(found, cursor)


def _version(one: Any, *, marker: bool) -> ObjectVersion:
    modified = one["LastModified"].astimezone(dt.UTC)
    return ObjectVersion(
        one["Key"], str(one["VersionId"]), int(one.get("Size", 0)), bool(one["IsLatest"]), marker, modified
    )


def markers_of(cursor: str | None) -> dict[str, str]:
    """What ListObjectVersions goes on after. Raises InvalidCursor."""
    if cursor is None:
        return {}
    try:
        key, version = json.loads(base64.urlsafe_b64decode(cursor.encode()))
    except (ValueError, TypeError):
        raise InvalidCursor("The cursor of the listing was not made by this store.") from None
    return {"KeyMarker": str(key)} | ({"VersionIdMarker": str(version)} if version else {})


# --- URLs


def attachment(name: str) -> str:
    """Content-Disposition (RFC 6266), with a plain name for what does not read the other one."""
    plain = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode()
    plain = re.sub(r"[^A-Za-z0-9._ -]", "_", plain).strip()[:100] or "file"
    return f"attachment; filename=\"{plain}\"; filename*=UTF-8''{quote(name, safe='')}"


def url_prefixes(bucket: str, endpoint: str | None, region: str) -> tuple[str, ...]:
    """What stands before a key, ours first, then the forms of HTTP."""
    if endpoint is not None:
        return f"s3://{bucket}/", f"{endpoint.rstrip('/')}/{bucket}/"
    hosts = [f"s3.{region}.amazonaws.com", "s3.amazonaws.com"]
    virtual = [f"https://{bucket}.{host}/" for host in hosts]
    return f"s3://{bucket}/", *virtual, *(f"https://{host}/{bucket}/" for host in hosts)


def located(url: str, prefixes: tuple[str, ...]) -> tuple[str, str | None] | None:
    """(key, version) of a URL that begins with one of the prefixes and names a key; else None."""
    for prefix in prefixes:
        if not url.startswith(prefix):
            continue
        rest = url[len(prefix) :]
        if prefix.startswith("s3://"):  # the key as it is, a ? in it too
            key, found, version = rest.rpartition("?versionId=")
            key, version = (key, version) if found else (rest, "")
        else:
            path, _, query = rest.partition("?")
            key, version = unquote(path), parse_qs(query).get("versionId", [""])[0]
        try:
            rules.check_any(key)
        except ValidationError:
            return None
        return key, version or None
    return None
