"""The rules for keys, locks and sizes, so that every object store refuses the same with the same message."""

from __future__ import annotations

import datetime as dt
import re
from dataclasses import dataclass, replace
from typing import Any, Final
from urllib.parse import parse_qs, urlsplit

from memory_layer.errors import (
    ChecksumMismatch,
    Conflict,
    Forbidden,
    LegalHold,
    NotFound,
    PayloadTooLarge,
    ValidationError,
)
from memory_layer.stores.protocols import Damage, Lock
from memory_layer.telemetry.logs import get_logger

log = get_logger("memory_layer.objects")

KEY_BYTES: Final = 1024  # the longest key of S3
_PART = r"[A-Za-z0-9][A-Za-z0-9._:@=+-]*"
_PATH: Final = re.compile(rf"{_PART}(?:/{_PART})*")
_SHA256: Final = re.compile(r"[0-9a-f]{64}")
_WHAT = "parts of letters, digits and ._:@=+- that begin with a letter or digit, joined by /"


def check_prefix(prefix: str) -> None:
    """Raises ValidationError."""
    if len(prefix) > 512 or not _PATH.fullmatch(prefix) or any(map(_SHA256.fullmatch, prefix.split("/"))):
        raise ValidationError(
            f"{prefix[:80]!r} cannot be a prefix of object keys: it takes {_WHAT}, at most 512 characters, none of them a SHA-256."
        )


def check_name(key: str) -> None:
    """A key of ``put_named``: one that ``put`` could not make. Raises ValidationError."""
    if len(key) > KEY_BYTES or not _PATH.fullmatch(key) or any(map(_SHA256.fullmatch, key.split("/"))):
        raise ValidationError(
            f"{key[:80]!r} cannot be the name of an object: it takes {_WHAT}, at most {KEY_BYTES} characters, none of them a "
            "SHA-256, which stands for bytes that are stored by their hash."
        )


def addressed(key: str) -> str | None:
    """The SHA-256 that ends a key of ``put``; None for one of ``put_named``. Raises ValidationError where it is neither."""
    prefix, _, last = key.rpartition("/")
    if _SHA256.fullmatch(last):
        check_prefix(prefix)
        return last
    check_name(key)
    return None


def is_sha256(text: str) -> bool:
    """Whether it is one as keys have it: 64 lower-case hex digits."""
    return _SHA256.fullmatch(text) is not None


def check_any(key: str) -> None:
    """A key of S3, checked: nothing that a proxy on the way could take for another. Raises ValidationError."""
    try:
        size = len(key.encode())
    except UnicodeEncodeError:
        size = 0
    parts = key.split("/")
    if not 1 <= size <= KEY_BYTES or key.startswith("/") or {".", ".."} & set(parts) or not key.isprintable():
        raise ValidationError(
            f"{key[:80]!r} cannot be an object key: it takes 1 to {KEY_BYTES} bytes of UTF-8 that can be printed, without the parts "
            ". and .. and no / at its beginning."
        )


def check_listing(prefix: str) -> None:
    """What keys may begin with, the empty text among it. Raises ValidationError."""
    if prefix and not _PATH.fullmatch(prefix.removesuffix("/")):
        raise ValidationError(f"{prefix[:80]!r} is nothing that object keys begin with: they take {_WHAT}.")


def located(url: str, prefixes: tuple[str, ...]) -> tuple[str, str | None] | None:
    """(key, version) of ``<prefix><key>?versionId=<version>``; None where it begins with none of the prefixes or names no key."""
    for prefix in prefixes:
        if not url.startswith(prefix):
            continue
        try:
            parts = urlsplit("x://x/" + url[len(prefix) :])
            addressed(key := parts.path[1:])
        except ValueError:
            return None
        except ValidationError:
            return None
        return key, parse_qs(parts.query).get("versionId", [None])[0]
    return None


@dataclass(frozen=True, slots=True)
class Expected:
    """What a caller announced of the bytes to come."""

    sha256: str | None = None
    size: int | None = None
    max_bytes: int | None = None

    def begin(self) -> None:
        """Before a byte is read. Raises PayloadTooLarge."""
        if self.size is not None and self.max_bytes is not None and self.size > self.max_bytes:
            raise _too_large(self.max_bytes)

    def so_far(self, size: int) -> None:
        """Raises PayloadTooLarge or ChecksumMismatch as soon as there are too many bytes."""
        if self.max_bytes is not None and size > self.max_bytes:
            raise _too_large(self.max_bytes)
        if self.size is not None and size > self.size:
            raise ChecksumMismatch(f"More bytes came than the announced {self.size}. Nothing was kept.")

    def end(self, sha256: str, size: int) -> None:
        """Raises ChecksumMismatch, which names both."""
        if self.size is not None and size != self.size:
            raise ChecksumMismatch(f"{size} bytes came, not the announced {self.size}. Nothing was kept.")
        if self.sha256 is not None and self.sha256.lower() != sha256:
            raise ChecksumMismatch(
                f"The bytes have SHA-256 {sha256}, not the announced {self.sha256[:80]}. Nothing was kept."
            )


def _too_large(most: int) -> PayloadTooLarge:
    return PayloadTooLarge(f"The bytes exceed the limit of {most} bytes. Send fewer, or in parts.")


def whole_lock(lock: Lock, now: dt.datetime) -> Lock:
    """The lock in UTC and whole seconds, which is what S3 keeps, never a moment shorter. Raises ValidationError when it is over."""
    if lock.mode not in ("GOVERNANCE", "COMPLIANCE"):
        raise ValidationError(f"{lock.mode[:40]!r} is no mode of a lock: GOVERNANCE or COMPLIANCE.")
    if lock.until.tzinfo is None:
        raise ValidationError("The end of a lock has no time zone. Give it in UTC.")
    until = lock.until.astimezone(dt.UTC)
    if until.microsecond:
        until = until.replace(microsecond=0) + dt.timedelta(seconds=1)
    if until <= now:
        raise ValidationError(f"A lock cannot end at {until.isoformat()}, which is over. Name a date to come.")
    return replace(lock, until=until)


def whole_or_none(lock: Lock | None) -> Lock | None:
    """The same of a lock that begins now, if there is to be one."""
    return None if lock is None else whole_lock(lock, dt.datetime.now(dt.UTC))


def longest(there: Lock | None, asked: Lock | None, now: dt.datetime) -> Lock | None:
    """Both locks in one: the stronger mode, the later end. One that is over counts for nothing."""
    if there is None or there.until <= now:
        return asked
    if asked is None:
        return there
    return Lock(
        "COMPLIANCE" if "COMPLIANCE" in (there.mode, asked.mode) else "GOVERNANCE", max(there.until, asked.until)
    )


def check_extension(there: Lock | None, asked: Lock, now: dt.datetime) -> None:
    """Raises Conflict where ``asked`` would shorten or weaken what there is."""
    if longest(there, asked, now) != asked and there is not None:
        raise Conflict(
            f"The object is locked in {there.mode} until {there.until.isoformat()}. A lock can be made longer or stronger, never "
            f"shorter or weaker, as {asked.mode} until {asked.until.isoformat()} would be."
        )


def check_deletable(key: str, lock: Lock | None, hold: bool, now: dt.datetime) -> None:
    """Raises LegalHold, Conflict."""
    if hold:
        raise LegalHold(f"The object {key} is under legal hold. Release the hold first.")
    if lock is not None and lock.until > now:
        raise Conflict(
            f"The object {key} is locked in {lock.mode} until {lock.until.isoformat()} and cannot be deleted before."
        )


def taken(key: str) -> Conflict:
    return Conflict(
        f"There is another object under the name {key} already, and names are given once. Nothing was written."
    )


def no_version(key: str, version_id: Any) -> NotFound:
    return NotFound(f"There is no version {str(version_id)[:120]} of the object {key}.")


def no_object(key: str) -> NotFound:
    return NotFound(f"The object {key} is gone from the object store.")


def not_eraser(how: str) -> Forbidden:
    return Forbidden(f"This connection to the object store may not delete. {how}")


def say_repaired(key: str, damage: Damage) -> None:
    """For the log of the process; what names the object in the audit log is written by who asked for the bytes to be stored."""
    log.error(
        "an object was damaged, and the same bytes came again",
        object=key,
        version=damage.version_id,
        size=damage.size,
        sha256=damage.sha256,
        repair="its bytes were replaced" if damage.replaced else "a new version has its bytes, and this one stays",
    )
