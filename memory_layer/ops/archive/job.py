"""What the worker archives by itself: full segments and checkpoints as they come, and each night what is left of the log."""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Final

from memory_layer.config import Settings
from memory_layer.errors import LockHeld, NotFound, NotYetPublished, UsageError
from memory_layer.ops.archive import write
from memory_layer.ops.archive.data_keys import DataKeys, open_wrapping_key
from memory_layer.ops.archive.files import ENTRIES_EACH, Archiver
from memory_layer.ops.archive.write import prefix_of
from memory_layer.ops.data_folder import default_data_folder
from memory_layer.ops.manifests import manifest_key
from memory_layer.ops.operate import Run, operate, worker_place
from memory_layer.ops.report import Finding
from memory_layer.progress import Progress, no_progress
from memory_layer.service import Memory, open_committer
from memory_layer.service.commit import Committer
from memory_layer.sql import queries
from memory_layer.stores.logs import read_trust_root
from memory_layer.stores.objects import open_archive
from memory_layer.stores.postgres import ALL_TENANTS, Postgres
from memory_layer.stores.protocols import Lock, ObjectStore
from memory_layer.telemetry.logs import get_logger

VERB: Final = "audit-archive"
LOCK: Final = "archive"  # one archiver at a time

_SQL = queries("archive")
log = get_logger("memory_layer.archive")


def archiver(
    settings: Settings, folder: Path, postgres: Postgres, committer: Committer, store: ObjectStore
) -> Archiver:
    """Raises UsageError where this machine has no key to sign manifests with."""
    key = manifest_key(folder, read_trust_root(folder))
    if key is None:
        raise UsageError(
            f"There is no key for manifests ({folder / 'keys' / 'manifest.pem'}) that the trust root names, and an archive is signed. "
            "Use the data folder that the log was started with (--data)."
        )
    keys = DataKeys(postgres, open_wrapping_key(settings, folder, make=True))
    return Archiver(postgres, committer, store, keys, key, settings.archive_lock_days)


@contextlib.asynccontextmanager
async def opened(settings: Settings, folder: Path, dsn: str) -> AsyncIterator[Archiver]:
    """For a command: database, log and archive opened."""
    async with open_committer(settings, folder, dsn) as log, opened_store(settings, folder) as store:
        yield await asyncio.to_thread(archiver, settings, folder, log.postgres, log.committer, store)


@contextlib.asynccontextmanager
async def opened_store(settings: Settings, folder: Path) -> AsyncIterator[ObjectStore]:
    store = await asyncio.to_thread(open_archive, settings, folder)
    try:
        yield store
    finally:
        await store.close()


async def run_archive(
    run: Run, settings: Settings, to: Archiver, *, until: int | None, rest: bool, progress: Progress = no_progress
) -> None:
    """The work of ``memoryctl audit archive`` and of the worker's jobs. Raises RollbackDetected where the log lacks what was signed of it
    before: then nothing of it may go among what can never be taken back."""
    await prove(to.committer)
    written = await write.archive(to, until=until, rest=rest, progress=progress)
    point = await copy_checkpoint(to.postgres, to.store, to.days)
    facts = [
        {"first": s.first, "last": s.last, "key": s.key, "version": s.version, "sha256": s.sha256, "bytes": s.bytes}
        for s in written
    ]
    run.fact("segments", facts)
    run.fact("entries", sum(s.last - s.first + 1 for s in written))
    run.fact("bytes", sum(s.bytes for s in written))
    run.fact("lockedDays", to.days)
    run.fact("checkpoint", point)
    run.fact("wrappedBy", to.keys.wrapping_id)
    withheld = sum(s.withheld for s in written)
    if withheld:
        text = f"{withheld} payloads were left out: people whom they concern were erased, and no key is made for them again."
        run.find(Finding("archive.withheld", "warning", "fail", text, "Erase them in the database too."))
    prod = settings.service_env == "prod"
    if not to.store.capabilities.enforces_locks:
        text = "The archive is a directory of this machine: its locks bind this program, and nobody who may write there himself."
        hint = "Set ARCHIVE_BUCKET, S3_ENDPOINT or S3_REGION; `memoryctl provision apply buckets` makes the bucket."
        level, status = ("warning", "fail") if prod else ("info", "pass")
        run.find(Finding("archive.lock", level, status, text, hint if prod else ""))  # type: ignore[arg-type]
    if prod and settings.data_key_id is None:
        text = "The keys of archived payloads are wrapped by a file of this machine (keys/data.key)."
        hint = "Set DATA_KEY_ID to a key of KMS, or to vault:NAME. Keep a copy of that file apart from database and archive: without it the archive's payloads are lost."
        run.find(Finding("archive.data-key", "warning", "fail", text, hint))


async def prove(committer: Committer) -> None:
    """Hold the log to its checkpoints elsewhere, now. Raises RollbackDetected."""
    if committer.rollback_guard is not None:
        await committer.rollback_guard.check()
        committer.rollback_guard.require_proof()


async def copy_checkpoint(postgres: Postgres, store: ObjectStore, days: int) -> str | None:
    """Put the newest signed checkpoint into the archive under the lock; its key. None where there is none."""
    (rows,) = await postgres.fetch(ALL_TENANTS, (_SQL["newest_checkpoint"], {"origin": postgres.origin}))
    if not rows:
        return None
    key = f"{prefix_of(rows[0]['origin'])}checkpoints/{rows[0]['size']:015d}"
    try:
        await store.stat(key)
    except NotFound:
        until = (dt.datetime.now(dt.UTC) + dt.timedelta(days=days) + write.SKEW).replace(microsecond=0)
        await store.put_named(key, _once(rows[0]["note"].encode()), lock=Lock("COMPLIANCE", until))
    return key


async def _once(data: bytes) -> AsyncIterator[bytes]:
    yield data


async def archive_full(memory: Memory) -> None:
    """Write what fills a segment, and the newest checkpoint; nothing is put on record where there is nothing to write."""
    stores = memory.stores
    (rows,) = await stores.postgres.fetch(ALL_TENANTS, (_SQL["log"], {"origin": stores.trust_root.origin}))
    if not rows or not rows[0]["covered"]:
        return
    if rows[0]["covered"] - rows[0]["archived"] < ENTRIES_EACH:
        await prove(memory.committer)
        await copy_checkpoint(stores.postgres, stores.archive, stores.settings.archive_lock_days)
        return
    await _perform(memory, rest=False)


async def archive_rest(memory: Memory) -> None:
    """Close the day: what the log has grown by since the last segment goes into one of its own."""
    with contextlib.suppress(NotYetPublished):
        await _perform(memory, rest=True)


async def _perform(memory: Memory, *, rest: bool) -> None:
    settings, folder = memory.stores.settings, memory.folder or default_data_folder()
    to = await asyncio.to_thread(
        archiver, settings, folder, memory.stores.postgres, memory.committer, memory.stores.archive
    )

    async def work(run: Run) -> None:
        await run_archive(run, settings, to, until=None, rest=rest)

    with contextlib.suppress(LockHeld):  # an operator archives just now
        await operate(worker_place(memory, log.info), VERB, {"rest": rest, "by": "schedule"}, work, lock=LOCK)
