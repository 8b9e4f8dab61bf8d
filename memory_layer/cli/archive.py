"""`memoryctl audit archive`, `audit replay`, and `audit verify` of an archive."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

from cyclopts import Parameter

from memory_layer import config
from memory_layer.cli import command, render
from memory_layer.cli.access import data_folder, database_of
from memory_layer.cli.options import AsJson, Data, FromStore, TrustRootFile
from memory_layer.errors import MemoryLayerError, UsageError

if TYPE_CHECKING:
    from memory_layer.audit.archive import Held, Open
    from memory_layer.audit.checkpoint import Checkpoint
    from memory_layer.audit.trust_root import TrustRoot
    from memory_layer.audit.verdict import Verdict
    from memory_layer.ops.operate import Run

T = TypeVar("T")


async def archive(
    *,
    until: Annotated[
        int | None, Parameter(help="The last entry; else the last one that a signed checkpoint covers.")
    ] = None,
    full: Annotated[bool, Parameter(negative="", help="Full segments alone, and not what is left of the log.")] = False,
    data: Data = None,
    as_json: AsJson = False,
) -> int:
    """Write the log's new entries into the archive, in segments that are signed, chained and locked.

    Payloads are encrypted by the keys of the people whom they concern. A run that was cut off is finished by the next. The worker does
    the same by itself: full segments as they come, the rest each night.

    For example:

      memoryctl audit archive
      memoryctl audit archive --until 250000 --json
    """
    from memory_layer.ops.archive import job

    if until is not None and until < 0:
        raise UsageError("--until takes the number of an entry, from 0.")

    async def work(run: Run) -> None:
        await run.installation.need("committer", "archive")
        await job.run_archive(run, job.open_archive_keys(run.installation), until=until, rest=not full)

    arguments = {"until": until, "rest": not full}
    return await command.run(job.VERB, arguments, work, data=data, as_json=as_json, lock=job.LOCK)


async def replay(
    *,
    into: Annotated[str | None, Parameter(help="DSN of the database to bring the log back into.")] = None,
    from_store: FromStore = False,
    from_file: Annotated[Path | None, Parameter(help="A folder that an archive was downloaded to.")] = None,
    dry_run: Annotated[bool, Parameter(negative="", help="Verify all of it, and write nothing.")] = False,
    first: Annotated[
        int | None, Parameter(name="--from", help="The archive is a part of the log, from this entry on.")
    ] = None,
    trust_root: TrustRootFile = None,
    data: Data = None,
    as_json: AsJson = False,
) -> int:
    """Bring a log back from its archive into another database, byte for byte, and compare head and root.

    Everything is verified before a row is written. The copy is marked as imported: nothing signs it again or appends to it. Refused
    (exit 4) into the database that the archive is of, and into one that keeps a log of production. Exit 0 when the archive is right,
    anchored or not; else as of `audit verify`.

    For example:

      memoryctl audit replay --from-s3 --into postgresql://staging/memory
      memoryctl audit replay --from-file archive --dry-run --trust-root mine.json
    """
    from memory_layer.audit.report import render as text
    from memory_layer.ops.archive.replay import replay as bring_back

    if into is None and not dry_run:
        raise UsageError("Name the database to bring the log back into with --into, or --dry-run.")
    folder = data_folder(data)
    root = root_of(folder, trust_root)
    source, opened, _ = await _own(folder, root)
    with render.reporting() as (progress, _say):
        done = await with_segments(
            folder,
            root,
            from_store,
            from_file,
            lambda segments: bring_back(
                segments, root, into, pinned=True, source=source, first=first, opened=opened, dry_run=dry_run, progress=progress
            ),
        )  # fmt: skip
    copied = {
        "log": done.log, "entries": done.entries, "payloads": done.payloads, "skipped": done.skipped, "root": done.root, "dryRun": dry_run,
    }  # fmt: skip
    code = done.verdict.exit_code if done.verdict.findings else 0
    if as_json:
        render.data(done.verdict.to_json() | {"exit": code, "replay": copied})
    else:
        for line in text(done.verdict, code).splitlines():
            render.line(line)
        if done.verdict.findings:
            render.say("nothing was written" if done.log is None else "the copy is not what the archive holds")
        elif not dry_run:
            render.line(
                f"{'REPLAYED':<14} {done.entries:,} entries, {done.payloads:,} payloads as log {done.log}, {done.skipped:,} were there; "
                "head and root agree"
            )
    return code


async def judge_archive(
    folder: Path,
    from_folder: Path | None,
    trust_root: Path | None,
    anchors: list[Checkpoint],
    max_anchor_age: int,
    first: int | None,
    last: int | None,
    payloads: bool,
) -> Verdict:
    """``audit verify --archive DIR`` (``from_folder``), or of the archive in the object store."""
    from memory_layer.audit.archive import LOCKS_NOT_CHECKED, verify_archive

    root = root_of(folder, trust_root)
    opened, end = None, None
    if from_folder is None:
        _, opened, end = await _own(folder, root)
    with render.reporting() as (progress, _say):
        verdict = await with_segments(
            folder,
            root,
            from_folder is None,
            from_folder,
            lambda segments: verify_archive(
                segments(), root, pinned=True, anchors=anchors, first=first, last=end if last is None else last, opened=opened if payloads else None,
                max_anchor_age=dt.timedelta(seconds=max_anchor_age), progress=progress,
            ),
        )  # fmt: skip
    return verdict if from_folder is not None else verdict.extended((), checked=[LOCKS_NOT_CHECKED])


def root_of(folder: Path, trust_root: Path | None) -> TrustRoot:
    from memory_layer.audit.trust_root import load

    path = trust_root or folder / "trust-root.json"
    try:
        return load(path.read_bytes())
    except OSError as error:
        raise UsageError(
            f"the trust root {path} cannot be read: {error.strerror}. Name yours with --trust-root."
        ) from error


async def with_segments(
    folder: Path,
    root: TrustRoot,
    from_store: bool,
    from_file: Path | None,
    work: Callable[[Callable[[], Iterable[Held]]], T],
) -> T:
    """Do ``work`` on the segments of a folder or of the object store."""
    from memory_layer.audit.archive import local_segments
    from memory_layer.ops.blocking import blocking

    if from_store == (from_file is not None):
        raise UsageError("Say where the archive is: --from-s3, or --from-file with a folder.")
    if from_file is not None:
        found = local_segments(from_file, root.origin)
        with blocking():
            return work(lambda: found)
    from memory_layer.ops.archive import read  # and with it the drivers, which files do without

    return await read.with_store(config.load(), folder, root.origin, work)


async def _own(folder: Path, root: TrustRoot) -> tuple[str | None, Open | None, int | None]:
    """The database that the archive is of, the keys that it still has, and the last entry that it has archived; None of each where
    it is not in reach."""
    from memory_layer.ops.archive import data_keys, read

    dsn = end = None
    try:
        with database_of(folder) as dsn:
            end = await read.archived_end(dsn, root.origin)
            wrapping = data_keys.open_wrapping_key(config.load(), folder, make=False)
            return dsn, await data_keys.read_keys(dsn, wrapping, root.origin), end
    except MemoryLayerError as error:
        render.say(f"payloads stay encrypted: {error.message}")
    return dsn, None, end
