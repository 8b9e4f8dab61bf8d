"""Checkpoints in a bucket: ``<prefix>/<name of the log>/<size, 15 digits>``, locked in COMPLIANCE mode where the bucket has Object Lock."""

from __future__ import annotations

import asyncio
import datetime as dt
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Final

from memory_layer.audit.checkpoint import MAX_NOTE
from memory_layer.config import Settings
from memory_layer.errors import AnchorUnavailable, Conflict, MemoryLayerError
from memory_layer.stores.anchors.folder import SIZE, taken
from memory_layer.stores.objects.s3 import open_s3
from memory_layer.stores.objects.s3_client import Refused, asked, connect, unavailable
from memory_layer.stores.protocols import Lock, ObjectStore

_NO_LOCKS: Final = ("ObjectLockConfigurationNotFoundError", "NotImplemented", "MethodNotAllowed", "501")
_PAGE: Final = 1000
_SKEW: Final = dt.timedelta(minutes=1)  # that S3's clock may be behind


class BucketPlace:
    """An ``AnchorPlace`` in S3. Use ``open_bucket``."""

    def __init__(self, store: ObjectStore, name: str, prefix: str, days: int, ask_locks: Callable[[], bool]) -> None:
        """``days``: that what is put there stays locked. ``ask_locks`` asks S3 whether the bucket has Object Lock, and blocks."""
        self.name = name
        self._store, self._prefix, self._days, self._ask_locks = store, prefix, days, ask_locks
        self._locks: bool | None = None
        self._cursors: dict[str, str] = {}
        self._last: dict[str, tuple[str, str]] = {}

    async def newest(self, origin: str) -> bytes | None:
        try:
            found = await self._find(origin)
            if found is None:
                return None
            data = bytearray()
            async for block in self._store.read(*found, 0, MAX_NOTE + 1):
                data += block
            return bytes(data)
        except MemoryLayerError as error:
            raise AnchorUnavailable(f"{self.name}: {error.message}") from error

    async def keep(self, origin: str, size: int, note: bytes) -> None:
        key = f"{self._folder(origin)}{size:015d}"
        try:
            if self._locks is None:
                self._locks = await asyncio.to_thread(self._ask_locks)
            until = (dt.datetime.now(dt.UTC) + dt.timedelta(days=self._days) + _SKEW).replace(microsecond=0)
            await self._store.put_named(key, _once(note), lock=Lock("COMPLIANCE", until) if self._locks else None)
        except Conflict:
            raise taken(self.name, size) from None
        except MemoryLayerError as error:
            raise AnchorUnavailable(f"{self.name}: {error.message}") from error

    async def close(self) -> None:
        await self._store.close()

    def _folder(self, origin: str) -> str:
        return f"{self._prefix}/{origin}/" if self._prefix else f"{origin}/"

    async def _find(self, origin: str) -> tuple[str, str] | None:
        """Key and version of the largest size: its oldest version, for what came over it later is not what was put there."""
        folder = self._folder(origin)
        while True:
            page = await self._store.versions(folder, self._cursors.get(origin), _PAGE)
            for version in page.versions:
                if not version.marker and SIZE.fullmatch(version.key.removeprefix(folder)):
                    self._last[origin] = version.key, version.version_id
            if page.cursor is None:
                return self._last.get(origin)
            self._cursors[origin] = page.cursor


def open_bucket(settings: Settings, data: Path, bucket: str, prefix: str) -> BucketPlace:
    """By the settings of S3. Asks nothing of it. Raises UsageError, PolicyRefused."""
    name = f"s3://{bucket}" + (f"/{prefix}" if prefix else "")
    client = connect(settings)

    def locks() -> bool:
        try:
            found = asked(lambda: client.get_object_lock_configuration(Bucket=bucket))
        except Refused as refused:
            if refused.code in _NO_LOCKS:
                return False
            if refused.code == "AccessDenied":
                return True  # without the right to ask: then the bucket says so itself when it has none
            raise unavailable("show Object Lock", refused) from None
        return bool(found["ObjectLockConfiguration"]["ObjectLockEnabled"] == "Enabled")

    return BucketPlace(open_s3(settings, bucket, data), name, prefix, settings.archive_lock_days, locks)


async def _once(data: bytes) -> AsyncIterator[bytes]:
    yield data
