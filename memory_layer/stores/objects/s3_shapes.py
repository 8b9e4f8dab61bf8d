"""S3's answers in the words of the seam, and the forms of its URLs."""

from __future__ import annotations

import base64
import datetime as dt
import json
import re
import unicodedata
from dataclasses import replace
from typing import Any, Final
from urllib.parse import parse_qs, quote, unquote

from memory_layer.errors import InvalidCursor, ValidationError
from memory_layer.stores.objects import keys
from memory_layer.stores.protocols import Lock, ObjectPage, ObjectState, ObjectVersion

_COLD: Final = ("GLACIER", "DEEP_ARCHIVE")
_SHA256: Final = re.compile(r"[0-9a-f]{64}")


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
            keys.check_any(key)
        except ValidationError:
            return None
        return key, version or None
    return None
