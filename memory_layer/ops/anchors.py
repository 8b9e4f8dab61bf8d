"""Send the newest checkpoint to places outside the installation; each push is checked against what the place has already."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from memory_layer.audit.checkpoint import Checkpoint
from memory_layer.audit.tree import consistency_proof, verify_consistency
from memory_layer.audit.trust_root import TrustRoot
from memory_layer.errors import Conflict, MemoryLayerError, NotYetPublished, RollbackDetected, ValidationError
from memory_layer.ops.durable_files import write_over
from memory_layer.service.installation import Installation
from memory_layer.service.rollback import difference
from memory_layer.service.tiles import load, snapshot
from memory_layer.service.witnesses import FOLDER, genuine, recorded
from memory_layer.sql import queries
from memory_layer.stores.postgres import Postgres
from memory_layer.stores.protocols import AnchorPlace
from memory_layer.telemetry.logs import get_logger

VERB: Final = "audit-anchor"
LOCK: Final = "anchor"
RUNBOOK: Final = "docs/runbooks/rollback.md"

_SQL = queries("log")
log = get_logger("memory_layer.anchors")


@dataclass(frozen=True, slots=True)
class Source:
    """The log whose checkpoints are sent. ``data``: the data folder, which remembers what was."""

    postgres: Postgres
    trust_root: TrustRoot
    log: int
    data: Path


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one place. ``size``: of the newest checkpoint that it keeps now."""

    place: str
    status: Literal["pushed", "current", "failed", "rollback"]
    size: int | None
    error: MemoryLayerError | None = None

    def to_json(self) -> dict[str, Any]:
        error = None if self.error is None else self.error.message
        return {"place": self.place, "status": self.status, "size": self.size, "error": error}


@dataclass(frozen=True, slots=True)
class Kept:
    """What a place keeps, held to the log. ``problem``: why it does not fit, None where the log contains it."""

    place: str
    size: int | None
    root: str | None
    recorded: int | None  # size that this machine remembers to have pushed there
    problem: str | None
    answered: bool = True

    def to_json(self) -> dict[str, Any]:
        return {
            "place": self.place, "size": self.size, "root": self.root, "recorded": self.recorded, "answered": self.answered,
            "problem": self.problem,
        }  # fmt: skip


async def push(source: Source, places: tuple[AnchorPlace, ...]) -> list[Outcome]:
    """Send the newest published checkpoint to each place, all at once; what fails at one is no matter to the others."""
    newest = await _newest(source)
    return list(await asyncio.gather(*(_push_safely(source, place, newest) for place in places)))


async def check(source: Source, places: tuple[AnchorPlace, ...]) -> list[Kept]:
    """What each place keeps, held to the log as it is. Changes nothing."""
    return list(await asyncio.gather(*(_check(source, place) for place in places)))


async def push_scheduled(installation: Installation) -> None:
    """The worker's: every place of AUDIT_ANCHORS. Raises what the first place that failed did, after all were tried."""
    if not installation.anchors:
        return
    if installation.committer.rollback_guard is not None:
        installation.committer.rollback_guard.require_proof()
    assert installation.folder is not None  # noqa: S101 - a worker has one
    source = Source(installation.postgres, installation.trust_root, installation.log, installation.folder)
    outcomes = await push(source, installation.anchors)
    failed = [one for one in outcomes if one.error is not None and not isinstance(one.error, NotYetPublished)]
    for outcome in failed:
        log.warning("no checkpoint was sent", place=outcome.place, error=str(outcome.error))
    if failed:
        worst = next((one for one in failed if one.status == "rollback"), failed[0])
        raise worst.error or MemoryLayerError()


async def _push_safely(source: Source, place: AnchorPlace, newest: Checkpoint | None) -> Outcome:
    try:
        return await _push(source, place, newest)
    except RollbackDetected as error:
        return Outcome(place.name, "rollback", None, error)
    except MemoryLayerError as error:
        return Outcome(place.name, "failed", None, error)


async def _push(source: Source, place: AnchorPlace, newest: Checkpoint | None) -> Outcome:
    for before, where in await _before(source, place):
        if newest is None or before.size > newest.size or not await _continues(source, before, newest):
            await _require_contained(source, before, where)
        if newest is not None and where == place.name and before.size >= newest.size:
            remember(source.data, place.name, before.note)
            return Outcome(place.name, "current", before.size)
    if newest is None:
        raise NotYetPublished(
            "No checkpoint is published yet. A running worker makes one about a second after a write."
        )
    await place.keep(source.trust_root.origin, newest.size, newest.note)
    remember(source.data, place.name, newest.note)
    return Outcome(place.name, "pushed", newest.size)


async def _before(source: Source, place: AnchorPlace) -> list[tuple[Checkpoint, str]]:
    """What was sent there before: as the place has it, and as this machine remembers it, with the name of each."""
    note = await place.newest(source.trust_root.origin)
    found = [] if note is None else [(_require_genuine(note, source.trust_root, place.name), place.name)]
    path = record_of(source.data, place.name)
    there = [
        (checkpoint, str(path))
        for known, checkpoint in recorded(source.data / FOLDER, source.trust_root)
        if known == path
    ]
    return found + there


def _require_genuine(note: bytes, trust_root: TrustRoot, name: str) -> Checkpoint:
    checkpoint = genuine(note, trust_root)
    if isinstance(checkpoint, Checkpoint):
        return checkpoint
    raise Conflict(
        f"What {name} keeps as the newest checkpoint of this log is none that its keys signed ({checkpoint}). Nothing was sent there. Find "
        "out who wrote it, and take it away."
    )


async def _continues(source: Source, before: Checkpoint, newest: Checkpoint) -> bool:
    """Whether the log's tiles prove (RFC 9162) that ``newest`` goes on from ``before``."""
    try:
        read = await load(snapshot(source.postgres), source.log, newest.size, max(before.size - 1, 0))
        path = consistency_proof(before.size, newest.size, read)
    except ValidationError:
        return False
    return verify_consistency(before.size, newest.size, path, before.root, newest.root)


async def _require_contained(source: Source, before: Checkpoint, where: str) -> None:
    """Raise RollbackDetected unless the log begins with what ``before`` covers."""
    what = await _problem(source, before)
    if what is not None:
        raise RollbackDetected(
            f"{where} keeps a signed checkpoint of {before.size} entries, and {what}: the database was restored to an earlier point, or rows "
            f"were taken from it. Nothing was sent there or overwritten. Restore the newest backup or standby that has entry "
            f"{before.size - 1} ({RUNBOOK})."
        )


async def _problem(source: Source, checkpoint: Checkpoint) -> str | None:
    fetch = snapshot(source.postgres)
    (row,) = await fetch((_SQL["grown"], {"log": source.log}))
    return await difference(fetch, source.log, row["entries"], checkpoint)


async def _check(source: Source, place: AnchorPlace) -> Kept:
    path = record_of(source.data, place.name)
    ours = next((c for known, c in recorded(source.data / FOLDER, source.trust_root) if known == path), None)
    remembered = None if ours is None else ours.size
    try:
        note = await place.newest(source.trust_root.origin)
        kept = ours if note is None else _require_genuine(note, source.trust_root, place.name)
        if kept is None:
            return Kept(place.name, None, None, None, None)
        problem = await _problem(source, kept)
        if problem is None and ours is not None and ours.size > kept.size:
            problem = f"a checkpoint of {ours.size} entries was sent there, and it is there no more"
        return Kept(place.name, kept.size, kept.root.hex(), remembered, problem)
    except Conflict as error:
        return Kept(place.name, None, None, remembered, error.message)
    except MemoryLayerError as error:
        return Kept(place.name, None, None, remembered, error.message, answered=False)


async def _newest(source: Source) -> Checkpoint | None:
    """The newest published one, which the trust root's key must have signed; None where there is none yet."""
    rows = await snapshot(source.postgres)((_SQL["checkpoint"], {"origin": source.trust_root.origin}))
    if not rows:
        return None
    checkpoint = genuine(rows[0]["note"].encode(), source.trust_root)
    if not isinstance(checkpoint, Checkpoint):
        raise Conflict(
            f"The newest checkpoint in the database is not signed by a key of the trust root ({checkpoint}). Nothing was sent. Run "
            "`memoryctl audit verify`."
        )
    return checkpoint


def record_of(data: Path, name: str) -> Path:
    """Where the data folder remembers the newest checkpoint that was sent to a place."""
    short = re.sub(r"[^A-Za-z0-9]+", "-", name).strip("-")[:40]
    return data / FOLDER / f"{short}-{hashlib.sha256(name.encode()).hexdigest()[:12]}.checkpoint"


def remember(data: Path, name: str, note: bytes) -> None:
    """Best effort: the place itself keeps it too."""
    path = record_of(data, name)
    with contextlib.suppress(OSError):
        if path.exists() and path.read_bytes() == note:
            return
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_over(path, note, 0o600)
