"""What the worker archives: full segments and checkpoints as they come, and each night the rest of the log."""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
from collections.abc import AsyncIterator
from typing import Final

from memory_layer.errors import LockHeld, NotFound, NotYetPublished, UsageError
from memory_layer.ops.archive import write
from memory_layer.ops.archive.data_keys import DataKeys, open_wrapping_key
from memory_layer.ops.archive.files import ENTRIES_EACH, ArchiveKeys
from memory_layer.ops.archive.write import prefix_of
from memory_layer.ops.manifests import manifest_key
from memory_layer.ops.operate import Run, operate
from memory_layer.ops.report import Finding
from memory_layer.service.commit import Committer
from memory_layer.service.installation import Installation
from memory_layer.sql import queries
from memory_layer.stores.logs import read_trust_root
from memory_layer.stores.postgres import ALL_TENANTS
from memory_layer.stores.protocols import Lock
from memory_layer.telemetry.logs import get_logger

VERB: Final = "audit-archive"
LOCK: Final = "archive"  # one archiver at a time

_SQL = queries("archive")
log = get_logger("memory_layer.archive")


def open_archive_keys(installation: Installation) -> ArchiveKeys:
    """Raises UsageError where this machine has no key to sign manifests with."""
    folder = installation.folder
    key = manifest_key(folder, read_trust_root(folder))
    if key is None:
        raise UsageError(
            f"There is no key for manifests ({folder / 'keys' / 'manifest.pem'}) that the trust root names, and an archive is signed. "
            "Use the data folder that the log was started with (--data)."
        )
    wrapping = open_wrapping_key(installation.settings, folder, make=True)
    return ArchiveKeys(DataKeys(installation.postgres, wrapping), key)


async def run_archive(run: Run, keys: ArchiveKeys, *, until: int | None, rest: bool) -> None:
    """The work of ``memoryctl audit archive`` and of the worker's jobs. Raises RollbackDetected where the log lacks what was signed of it
    before: then nothing of it may go among what can never be taken back."""
    installation, settings = run.installation, run.installation.settings
    await prove(installation.committer)
    written = await write.archive(installation, keys, until=until, rest=rest, progress=installation.progress)
    point = await copy_checkpoint(installation)
    facts = [
        {"first": s.first, "last": s.last, "key": s.key, "version": s.version, "sha256": s.sha256, "bytes": s.bytes}
        for s in written
    ]
    run.fact("segments", facts)
    run.fact("entries", sum(s.last - s.first + 1 for s in written))
    run.fact("bytes", sum(s.bytes for s in written))
    run.fact("lockedDays", settings.archive_lock_days)
    run.fact("checkpoint", point)
    run.fact("wrappedBy", keys.payloads.wrapping_id)
    withheld = sum(s.withheld for s in written)
    if withheld:
        text = f"{withheld} payloads were left out: people whom they concern were erased, and no key is made for them again."
        run.find(Finding("archive.withheld", "warning", "fail", text, "Erase them in the database too."))
    prod = settings.service_env == "prod"
    if not installation.archive.capabilities.enforces_locks:
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


async def copy_checkpoint(installation: Installation) -> str | None:
    """Put the newest signed checkpoint into the archive under the lock; its key. None where there is none."""
    postgres, store, days = installation.postgres, installation.archive, installation.settings.archive_lock_days
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


async def archive_full(installation: Installation) -> None:
    """Write what fills a segment, and the newest checkpoint; nothing is put on record where there is nothing to write."""
    (rows,) = await installation.postgres.fetch(ALL_TENANTS, (_SQL["log"], {"origin": installation.trust_root.origin}))
    if not rows or not rows[0]["covered"]:
        return
    if rows[0]["covered"] - rows[0]["archived"] < ENTRIES_EACH:
        await prove(installation.committer)
        await copy_checkpoint(installation)
        return
    await _perform(installation, rest=False)


async def archive_rest(installation: Installation) -> None:
    """Close the day: what the log has grown by since the last segment goes into one of its own."""
    with contextlib.suppress(NotYetPublished):
        await _perform(installation, rest=True)


async def _perform(installation: Installation, *, rest: bool) -> None:
    keys = await asyncio.to_thread(open_archive_keys, installation)

    async def work(run: Run) -> None:
        await run_archive(run, keys, until=None, rest=rest)

    with contextlib.suppress(LockHeld):  # an operator archives just now
        await operate(installation, VERB, {"rest": rest, "by": "schedule"}, work, lock=LOCK)
