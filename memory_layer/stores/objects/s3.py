"""Objects in an S3 bucket with versioning and Object Lock: AWS, Ceph, or another server of that protocol.

A body is spooled to a local file and hashed before there is an object: its key is its hash, lock and hold must be on the request that
makes it, and the role that writes may delete nothing, so that no object can be made provisionally and moved. Where the hash was
announced, the parts of a large body follow the file while it grows, and become an object if the hash is right. boto3 runs in threads.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import hashlib
import time
from collections.abc import AsyncGenerator, AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Final

from memory_layer import private
from memory_layer.config import Settings
from memory_layer.errors import Forbidden, ObjectStoreUnavailable
from memory_layer.stores.objects import rules
from memory_layer.stores.objects.rules import Expected
from memory_layer.stores.objects.s3_bucket import (
    Bucket,
    attachment,
    disk_failed,
    located,
    under,
    unversioned,
    url_prefixes,
)
from memory_layer.stores.objects.s3_client import CONNECTIONS, TRIES, Refused, asked, connect, unavailable
from memory_layer.stores.objects.s3_upload import SINGLE, PartUpload, Target, part_size, put_single
from memory_layer.stores.objects.spool import BLOCK, Growing, Spooled, Steps, create, discard, spooled, sweep
from memory_layer.stores.protocols import Damage, Lock, ObjectCapabilities, ObjectPage, ObjectState, StoredObject
from memory_layer.telemetry.logs import get_logger

# An upload in parts that was begun so long ago and not ended is a killed process's.
ABANDONED: Final = dt.timedelta(days=1)
PING: Final = 4.0  # seconds that a ping waits
_EXISTS: Final = ("PreconditionFailed", "ConditionalRequestConflict", "NoSuchUpload")
_log = get_logger(__name__)


class S3Store:
    """One bucket, with the credentials of one role. Any number of processes may use it."""

    def __init__(
        self, client: Any, bucket: str, endpoint: str | None, spool: Path, *, kms_key: str | None, eraser: bool
    ) -> None:
        self._prefixes = url_prefixes(bucket, endpoint, client.meta.region_name)
        self._spool = spool
        self._kms_key = kms_key
        self._eraser = eraser
        self._disk = Steps(ThreadPoolExecutor(4, thread_name_prefix="spool"), partial(disk_failed, spool))
        net = Steps(ThreadPoolExecutor(CONNECTIONS, thread_name_prefix="s3"), partial(disk_failed, spool))
        self._bucket = Bucket(client, bucket, net)
        self._writing: dict[str, tuple[asyncio.Lock, list[None]]] = {}
        self._uploads: set[str] = set()  # in parts, of this process
        self._swept: float | None = None
        self._asked: asyncio.Future[Any] | None = None

    @property
    def url_prefix(self) -> str:
        return self._prefixes[0]

    @property
    def capabilities(self) -> ObjectCapabilities:
        return ObjectCapabilities(enforces_locks=True, links=True, cold=True)

    async def put(
        self,
        prefix: str,
        chunks: AsyncIterator[bytes],
        *,
        expected_sha256: str | None = None,
        expected_size: int | None = None,
        max_bytes: int | None = None,
        lock: Lock | None = None,
        hold: bool = False,
    ) -> StoredObject:
        """As the Protocol says. Bytes that are there under a foreign version or a delete marker are stored again, over it."""
        rules.check_prefix(prefix)
        lock = rules.whole_or_none(lock)
        expected = Expected(expected_sha256, expected_size, max_bytes)
        early = None
        if expected_sha256 is not None and rules.is_sha256(expected_sha256):
            size = expected_size or max_bytes
            early = self._parts(self._target(f"{prefix}/{expected_sha256}", expected_sha256, lock, hold), size)
        early_send = None if early is None else partial(self._send_early, early)
        try:
            async with spooled(self._disk, self._spool, chunks, expected, meanwhile=early_send) as body:
                return await self._store(f"{prefix}/{body.sha256}", body, lock, hold, early)
        finally:
            if early is not None:
                await early.end()

    async def put_named(
        self, key: str, chunks: AsyncIterator[bytes], *, lock: Lock | None = None, hold: bool = False
    ) -> StoredObject:
        """As the Protocol says. Of two processes that give a name at once one is refused, where the server knows If-None-Match."""
        rules.check_name(key)
        lock = rules.whole_or_none(lock)
        async with spooled(self._disk, self._spool, chunks, Expected()) as body:
            return await self._store(key, body, lock, hold, None, named=True)

    async def read(
        self, key: str, version_id: str, start: int = 0, stop: int | None = None
    ) -> AsyncGenerator[bytes, None]:
        """As the Protocol says, in blocks of at most 1 MiB. A connection that breaks is taken up again where it broke."""
        if start < 0 or (stop is not None and stop < 0):
            raise ValueError("start and stop count from the beginning")
        rules.check_any(key)
        if stop is not None and stop <= start:
            await self._bucket.require(key, version_id)
            return
        at, broken = start, 0
        while True:
            opened = await self._bucket.get(key, version_id, at, stop)
            if opened is None:
                return
            try:
                while block := await self._bucket.net.run(asked, partial(opened.read, BLOCK)):
                    at, broken = at + len(block), 0
                    yield block
                return
            except Refused as refused:
                broken += 1
                if broken >= TRIES:
                    raise unavailable(f"give the object {key}", refused) from None
            finally:
                opened.close()

    async def stat(self, key: str, version_id: str | None = None) -> ObjectState:
        """As the Protocol says; ``sha256`` is S3's own of the whole, or what was recorded with the bytes."""
        rules.check_any(key)
        if version_id is None:
            return await self._bucket.require(key, None)
        found, newest = await asyncio.gather(self._bucket.require(key, version_id), self._bucket.head(key, None))
        return under(found, newest)

    async def versions(self, prefix: str, cursor: str | None = None, limit: int = 1000) -> ObjectPage:
        """As the Protocol says."""
        return await self._bucket.versions(prefix, cursor, limit)

    async def set_hold(self, key: str, version_id: str, held: bool) -> None:
        """As the Protocol says. Either of the two calls can be repeated; the hold itself comes first, on and off."""
        await self._bucket.require(key, version_id)
        await self._bucket.hold(key, version_id, held)

    async def extend_lock(self, key: str, version_id: str, lock: Lock) -> None:
        now = dt.datetime.now(dt.UTC)
        lock = rules.whole_lock(lock, now)
        found = await self._bucket.require(key, version_id)
        rules.check_extension(found.lock, lock, now)
        if found.lock != lock:
            await self._bucket.lock(found, lock)

    async def delete(self, key: str, version_id: str) -> None:
        """As the Protocol says, delete markers too. GOVERNANCE is not bypassed: that is the compliance role's, by hand."""
        if not self._eraser:
            raise rules.not_eraser("Purges and erasure use S3_ERASER_ACCESS_KEY, and nothing else does.")
        rules.check_any(key)
        found = await self._bucket.head(key, version_id)
        if found is not None:
            rules.check_deletable(key, found.lock, found.hold, dt.datetime.now(dt.UTC))
        elif not await self._bucket.is_marker(key, version_id):
            await self._bucket.absent(key, version_id)
            raise rules.no_version(key, version_id)
        ask = partial(self._bucket.client.delete_object, Bucket=self._bucket.name, Key=key, VersionId=version_id)
        try:
            await self._bucket.net.run(asked, ask)
        except Refused as refused:
            if refused.code == "AccessDenied":
                raise Forbidden(
                    f"S3 refused to delete the object {key}: the eraser's credentials may not, a policy forbids it, or it was locked "
                    "meanwhile."
                ) from None
            raise unavailable(f"delete the object {key}", refused) from None

    async def restore(self, key: str, version_id: str, days: int) -> None:
        """As the Protocol says; what is readable, or on its way, is left alone."""
        found = await self._bucket.require(key, version_id)
        if found.readable or found.restoring:
            return
        ask = partial(
            self._bucket.client.restore_object,
            Bucket=self._bucket.name,
            Key=key,
            VersionId=version_id,
            RestoreRequest={"Days": max(1, days), "GlacierJobParameters": {"Tier": "Standard"}},
        )
        try:
            await self._bucket.net.run(asked, ask)
        except Refused as refused:
            if refused.code != "RestoreAlreadyInProgress":
                raise unavailable(f"restore the object {key}", refused) from None

    def link(self, key: str, version_id: str, seconds: int, *, name: str | None, content_type: str) -> str | None:
        """A URL signed here, without asking S3; at most seven days. It shows who signed it, never the secret."""
        rules.check_any(key)
        about = {
            "Bucket": self._bucket.name,
            "Key": key,
            "VersionId": version_id,
            "ResponseContentDisposition": attachment(name or key.rpartition("/")[2]),
            "ResponseContentType": content_type,
        }
        sign = partial(
            self._bucket.client.generate_presigned_url,
            "get_object",
            Params=about,
            ExpiresIn=min(max(1, seconds), 7 * 86400),
        )
        try:
            return str(asked(sign))
        except Refused as refused:
            raise unavailable("sign a link", refused) from None

    def locate(self, url: str) -> tuple[str, str | None] | None:
        return located(url, self._prefixes)

    async def ping(self) -> None:
        """Raise ObjectStoreUnavailable unless the bucket can be listed and the spool written."""

        def probe() -> None:
            opened: list[tuple[int, Path]] = []
            create(self._spool, opened)
            discard(opened)

        await self._disk.run(probe)
        if (
            self._asked is None or self._asked.done()
        ):  # one at a time: pings must not take all threads when a server hangs
            ask = partial(self._bucket.client.list_objects_v2, Bucket=self._bucket.name, MaxKeys=1)
            self._asked = asyncio.ensure_future(self._bucket.ask("answer", ask))
            self._asked.add_done_callback(
                lambda done: done.cancelled() or done.exception()
            )  # nobody may be left to ask
        asked_now = self._asked
        await asyncio.wait([asked_now], timeout=PING)
        if not asked_now.done():
            raise ObjectStoreUnavailable(f"S3 did not answer within {PING:g} s. Check S3_ENDPOINT.")
        await asked_now

    async def sweep(self, older: dt.timedelta = ABANDONED) -> int:
        """Drop uploads in parts that were begun so long ago and never ended, as killed processes leave them; how many there were."""
        found = await self._bucket.stale(dt.datetime.now(dt.UTC) - older)
        left = [(key, upload) for key, upload in found if upload not in self._uploads]
        return sum([await self._bucket.abort(key, upload) for key, upload in left])

    async def close(self) -> None:
        for steps in (self._disk, self._bucket.net):
            steps.threads.shutdown(wait=False, cancel_futures=True)
        self._bucket.client.close()

    def _target(self, key: str, sha256: str, lock: Lock | None, hold: bool) -> Target:
        return Target(self._bucket.name, key, sha256, lock, hold, self._kms_key, once=True)

    def _parts(self, target: Target, most: int | None) -> PartUpload:
        return PartUpload(self._bucket, target, part_size(most or 0), self._uploads)

    async def _send_early(self, upload: PartUpload, growing: Growing) -> None:
        """Send what has come while more comes, once that is more than one request takes, unless it is there already."""
        if await growing.reached(SINGLE + 1) <= SINGLE:
            return
        found = await self._bucket.head(upload.target.key, None)
        if found is not None and found.sha256 == upload.target.sha256:
            return
        await self._bucket.require_versioning()
        await self._sweep_daily()
        try:
            await upload.send(growing)
        except Refused as refused:
            raise _not_taken(upload.target.key, refused) from None

    async def _store(
        self,
        key: str,
        body: Spooled,
        lock: Lock | None,
        hold: bool,
        early: PartUpload | None,
        *,
        named: bool = False,
    ) -> StoredObject:
        async with self._alone(key):
            found = await self._bucket.head(key, None)
            damage = None
            if found is not None and _same(found, body):
                damage = await self._damage(found, body)
                if damage is None:
                    return await self._strengthen(found, body, lock, hold)
                # What protected the damaged version protects the right one too.
                lock, hold = rules.longest(found.lock, lock, dt.datetime.now(dt.UTC)), hold or found.hold
            elif found is not None and named:
                raise rules.taken(key)
            await self._bucket.require_versioning()
            target = replace(self._target(key, body.sha256, lock, hold), once=found is None)
            try:
                version = await self._send(target, body, early)
            except Refused as refused:
                # Another process was quicker; or S3 took the bytes, its answer was lost, and the client asked again.
                found = await self._bucket.head(key, None) if refused.code in _EXISTS else None
                if found is not None and _same(found, body) and await self._damage(found, body) is None:
                    return await self._strengthen(found, body, lock, hold)
                if found is not None and named:
                    raise rules.taken(key) from None
                raise _not_taken(key, refused) from None
            if not version:
                raise unversioned(self._bucket.name)
            if damage is not None:
                rules.say_repaired(key, damage)
            return StoredObject(key, version, body.sha256, body.size, damage)

    async def _send(self, target: Target, body: Spooled, early: PartUpload | None) -> str | None:
        """The version, or Refused."""
        if body.size <= SINGLE:
            return await self._bucket.net.run(put_single, self._bucket.client, target, body)
        upload = early if early is not None and early.begun else self._parts(target, body.size)
        try:
            if not upload.begun:
                await self._sweep_daily()
                await upload.send(Growing(body.handle, body.size, whole=True))
            version = await upload.complete(once=target.once)
        finally:
            await upload.end()
        if version and (target.lock is not None or target.hold):
            # Ceph before 18 forgets both when a body comes in parts.
            found = await self._bucket.require(target.key, version)
            if target.hold and not found.hold:
                await self._bucket.hold(target.key, version, True)
            if (
                target.lock is not None
                and rules.longest(found.lock, target.lock, dt.datetime.now(dt.UTC)) != found.lock
            ):
                await self._bucket.lock(found, target.lock)
        return version

    async def _sweep_daily(self) -> None:
        now = time.monotonic()
        if self._swept is not None and now - self._swept < ABANDONED.total_seconds():
            return
        self._swept = now
        try:
            await self.sweep()
        except ObjectStoreUnavailable as error:
            _log.warning("unfinished uploads were not swept", error=error.message)

    async def _strengthen(self, found: ObjectState, body: Spooled, lock: Lock | None, hold: bool) -> StoredObject:
        whole = rules.longest(found.lock, lock, dt.datetime.now(dt.UTC))
        if whole is not None and lock is not None and whole != found.lock:
            await self._bucket.lock(found, whole)
        if hold and not found.hold:
            await self._bucket.hold(found.key, found.version_id, True)
        return StoredObject(found.key, found.version_id, body.sha256, body.size)

    async def _damage(self, found: ObjectState, body: Spooled) -> Damage | None:
        """Read what says that it is these bytes, for S3's own record of a hash is no look at the bytes. What lies in a cold class cannot
        be read, and is taken at its word."""
        if not found.readable:
            return None
        digest, size = hashlib.sha256(), 0
        async for block in self.read(found.key, found.version_id):
            await asyncio.to_thread(digest.update, block)
            size += len(block)
        sha256 = digest.hexdigest()
        return (
            None
            if (sha256, size) == (body.sha256, body.size)
            else Damage(found.version_id, sha256, size, replaced=False)
        )

    @contextlib.asynccontextmanager
    async def _alone(self, key: str) -> AsyncIterator[None]:
        """One upload of a key at a time in this process, so that equal bytes become one version on servers without If-None-Match."""
        lock, users = self._writing.setdefault(key, (asyncio.Lock(), []))
        users.append(None)
        try:
            async with lock:
                yield
        finally:
            users.pop()
            if not users:
                del self._writing[key]


def open_s3(settings: Settings, bucket: str, data: Path, *, eraser: bool = False) -> S3Store:
    """The store on a bucket; uploads are collected in ``<data>/spool``. Asks nothing of S3.

    Raises UsageError, PolicyRefused, ObjectStoreUnavailable (the spool).
    """
    spool = data / "spool"
    try:
        private.make_folder(spool)
        sweep(spool)
    except OSError as error:
        raise disk_failed(spool, error) from error
    client = connect(settings, eraser=eraser)
    return S3Store(client, bucket, settings.s3_endpoint, spool, kms_key=settings.s3_kms_key_id, eraser=eraser)


def _not_taken(key: str, refused: Refused) -> Exception:
    return unavailable(f"take the object {key}. Nothing was stored", refused)


def _same(found: ObjectState, body: Spooled) -> bool:
    return (found.sha256, found.size) == (body.sha256, body.size)
