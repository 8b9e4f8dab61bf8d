"""Compare a manifest with the table of artifacts, and rebuild the table from it."""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec

from memory_layer.errors import LockHeld, PolicyRefused
from memory_layer.ops.artifacts.manifest import Line, Read, lines
from memory_layer.ops.artifacts.places import SQL
from memory_layer.ops.report import Finding
from memory_layer.progress import Progress, no_progress
from memory_layer.service.installation import Installation
from memory_layer.stores.postgres import ALL_TENANTS

LOG: Final = 0  # number of the log's own lock: nobody adds an artifact while the table is restored
TIMEOUT: Final = 30.0  # seconds to get it
NAMED: Final = 20


@dataclass(slots=True)
class Compared:
    """What of a manifest is not in the table, or not as it says."""

    artifacts: int = 0
    missing: list[str] = field(default_factory=list)
    differs: list[str] = field(default_factory=list)


async def compare(installation: Installation, read: Read, *, progress: Progress = no_progress) -> Compared:
    """Read every row of a manifest and look for it. Raises ChecksumMismatch."""
    done = Compared()
    async with contextlib.aclosing(lines(installation.archive, read.manifest)) as pieces:
        async for piece in pieces:
            (rows,) = await installation.postgres.fetch(
                ALL_TENANTS, (SQL["compare"], {"rows": _json(piece), "origin": installation.postgres.origin})
            )
            for row in rows:
                (done.missing if row["missing"] else done.differs).append(str(row["id"]))
            done.artifacts += len(piece)
            progress("comparing artifacts", done.artifacts, read.manifest.artifacts)
    return done


async def findings_of_store(installation: Installation, read: Read) -> list[Finding]:
    """Whether the objects of a manifest are locked and uncovered, and whether Postgres knows the one before."""
    found: list[Finding] = []
    for key, version in ((read.key, read.version_id), (read.manifest.rows.key, read.manifest.rows.version_id)):
        state = await installation.archive.stat(key, version)
        if state.shadowed:
            text = f"A newer version or a delete marker covers {key}; its own version {version} is what was read."
            found.append(Finding("manifest.shadowed", "error", "fail", text, "Find out who wrote it."))
        if state.lock is None or state.lock.until < dt.datetime.now(dt.UTC):
            text = f"{key} is not locked any more."
            found.append(
                Finding("manifest.unlocked", "warning", "fail", text, "It can be deleted: ARCHIVE_LOCK_DAYS are over.")
            )
    previous = read.manifest.previous
    if previous is not None:
        (rows,) = await installation.postgres.fetch(ALL_TENANTS, (SQL["manifest_by_hash"], {"sha256": previous}))
        if not rows:
            text = f"Postgres knows no manifest {previous}, which this one says came before it."
            hint = "Rows of artifact_manifests were lost or removed; the archive has the manifest itself."
            found.append(Finding("manifest.chain", "error", "fail", text, hint))
    return found


def findings_of(done: Compared) -> list[Finding]:
    found = []
    for name, ids, what in (
        ("manifest.missing", done.missing, "are not in the table"),
        ("manifest.differs", done.differs, "are not in the table as the manifest has them"),
    ):
        if ids:
            text = f"{len(ids)} artifacts of the manifest {what}."
            evidence = {"artifactIds": ids[:NAMED]}
            hint = "`memoryctl audit verify` tells whether an entry explains it."
            found.append(Finding(name, "error", "fail", text, hint, evidence))
    if not found:
        text = f"All {done.artifacts} artifacts of the manifest are in the table as it says."
        found.append(Finding("manifest.rows", "info", "pass", text))
    return found


@dataclass(slots=True)
class Rebuilt:
    """``named``: got their file name and metadata back from the log. ``from_log``: came after the manifest. ``missing``: the log created
    them, and neither the manifest nor a payload describes them."""

    restored: int = 0
    named: int = 0
    from_log: int = 0
    missing: int = 0


async def rebuild(installation: Installation, read: Read, *, progress: Progress = no_progress) -> Rebuilt:
    """Restore the table from a manifest, in one transaction under the log's lock, and from the log what came after it.

    Raises PolicyRefused unless the table is empty, ChecksumMismatch, LockHeld while writers leave no gap.
    """
    deadline = asyncio.get_running_loop().time() + TIMEOUT
    while True:
        async with installation.postgres.leading(LOG) as fetch:
            if fetch is not None:
                return await _rebuild(installation, read, fetch, progress)
        if asyncio.get_running_loop().time() > deadline:
            raise LockHeld("Writers hold the log's lock without a gap. Stop them: memoryctl freeze on --reason ...")
        await asyncio.sleep(0.05)


async def _rebuild(installation: Installation, read: Read, fetch: Callable[[Any], Any], progress: Progress) -> Rebuilt:
    await fetch((SQL["see_all"], {}))
    (row,) = await fetch((SQL["any_artifact"], {}))
    if row["found"]:
        raise PolicyRefused(
            "The table artifacts is not empty: it is restored whole or not at all. `memoryctl artifacts manifest verify` compares it."
        )
    done = Rebuilt()
    own = {"origin": installation.postgres.origin}
    async with contextlib.aclosing(lines(installation.archive, read.manifest)) as pieces:
        async for piece in pieces:
            done.restored += len(await fetch((SQL["restore"], {"rows": _json(piece)} | own)))
            progress("restoring artifacts", done.restored, read.manifest.artifacts)
    done.named = len(await fetch((SQL["restore_names"], own)))
    done.from_log = len(await fetch((SQL["restore_from_log"], own)))
    await fetch((SQL["restore_described"], own))
    await fetch((SQL["restore_retention"], own))
    await fetch((SQL["restore_faults"], own))
    (row,) = await fetch((SQL["still_missing"], own))
    done.missing = row["artifacts"]
    return done


def findings_of_rebuild(done: Rebuilt) -> list[Finding]:
    text = f"{done.restored} artifacts were restored from the manifest and {done.from_log} from the log."
    found = [
        Finding("manifest.rebuilt", "info", "pass", text, "Then: memoryctl artifacts scan; memoryctl audit verify.")
    ]
    if done.missing:
        text = f"{done.missing} artifacts that the log created are in neither, for their payloads were erased."
        found.append(Finding("manifest.untold", "error", "fail", text, "Try an older manifest, or restore a backup."))
    return found


def _json(piece: Sequence[Line]) -> str:
    return json.dumps([msgspec.to_builtins(line) for line in piece])
