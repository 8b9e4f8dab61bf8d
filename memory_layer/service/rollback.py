"""Whether the log still contains the checkpoints that are kept elsewhere, and what is refused while it does not.

Checked when a process that writes starts, each minute, and before anything is archived. A database that was restored to an earlier
point, or whose newest rows are gone, is found by checkpoints that lie outside it. The reasons and the limits stand in
``docs/decisions/0026-rollback.md``.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from memory_layer.audit.checkpoint import Checkpoint
from memory_layer.audit.entry import leaf_hash
from memory_layer.audit.tree import (
    EMPTY_ROOT,
    HASH_BYTES,
    TILE_WIDTH,
    Frontier,
    root_from_tiles,
)
from memory_layer.errors import MemoryLayerError, RollbackDetected, ValidationError
from memory_layer.service.tiles import load, snapshot
from memory_layer.service.witnesses import Gathered, Witness, Witnesses
from memory_layer.sql import queries
from memory_layer.stores.batch_reads import Head
from memory_layer.stores.postgres import Fetch, Postgres
from memory_layer.telemetry import metrics
from memory_layer.telemetry.logs import get_logger

EVERY: Final = 60.0  # seconds between two checks
SOON: Final = 5.0  # where a proof is awaited
CHUNK: Final = 32_768  # leaf hashes read at a time, where all of them are needed
RUNBOOK: Final = "docs/runbooks/rollback.md"

_SQL = queries("log")
log = get_logger("memory_layer.rollback")

Server = tuple[str, int]
"""System identifier and timeline of a Postgres server."""


class _Grown(NamedTuple):
    """The row of query ``grown``."""

    entries: int
    sealed_system: str | None
    sealed_timeline: int | None
    system_identifier: str
    timeline: int
    segments: int

    @property
    def server(self) -> Server:
        return self.system_identifier, self.timeline

    @property
    def sealed_on(self) -> Server | None:
        if self.sealed_system is None or self.sealed_timeline is None:
            return None
        return self.sealed_system, self.sealed_timeline


@dataclass(frozen=True, slots=True)
class ServerChange:
    """The newest seal was made on another server than the one that answers, and the log is proved to go on from what was signed."""

    before: Server
    after: Server
    entries: int
    proved: tuple[Witness, ...]

    def payload(self) -> dict[str, Any]:
        """Of its entry."""
        return {
            "before": {"systemIdentifier": self.before[0], "timeline": self.before[1]},
            "after": {"systemIdentifier": self.after[0], "timeline": self.after[1]},
            "entries": self.entries,
            "proved": [
                {"size": size, "root": root.hex()}
                for size, root in sorted({(w.checkpoint.size, w.checkpoint.root) for w in self.proved})
            ],
        }


class RollbackGuard:
    """What one process knows of it. ``check`` looks; ``require_intact`` and ``require_server`` refuse."""

    def __init__(self, postgres: Postgres, number: int, witnesses: Witnesses) -> None:
        """``number``: of the log."""
        self._postgres, self._number = postgres, number
        self.witnesses = witnesses
        self.conflict: RollbackDetected | None = None
        self.gathered = Gathered()  # by the last check
        self.proved_at: dt.datetime | None = None
        self.changed: ServerChange | None = None  # proved, and its entry is not known to be written
        self.waiting = False  # writes wait for a proof on a server that is another than before
        self._looked = False
        self._server: Server | None = None  # on which the log was proved
        self._lock = asyncio.Lock()
        self._asked = asyncio.Event()

    @property
    def state(self) -> str:
        """For health: ``ok``; ``ROLLBACK_DETECTED``; ``waiting`` for a proof on another server; ``unproved`` while a place that keeps
        checkpoints does not answer, and writes go on."""
        if self.conflict is not None:
            return self.conflict.code
        return "waiting" if self.waiting else "unproved" if self.gathered.unread or self.proved_at is None else "ok"

    @property
    def refuses(self) -> bool:
        """Whether nothing is written just now."""
        return self.conflict is not None or self.waiting

    def require_intact(self) -> None:
        """Raise RollbackDetected where the last check found that the log lacks what was signed."""
        if self.conflict is not None:
            # A new one each time: a raised error keeps hold of the frames that it passed.
            raise RollbackDetected(self.conflict.message)

    def require_proof(self) -> None:
        """The same, and while a proof is awaited on another server: for what signs or keeps something for good."""
        self.require_intact()
        if self.waiting:
            raise _unproved(self.gathered)

    def require_server(self, head: Head) -> None:
        """The same for a batch on a server other than the one that the newest seal was made on, until the log is proved there."""
        server = head.system_identifier, head.timeline
        if head.sealed_on in (None, server) or self._server == server:
            return
        self._asked.set()
        raise _unproved(self.gathered)

    async def check(self) -> None:
        """Hold the log to the newest checkpoint of each place. Without a database everything stays as it was. Never raises."""
        async with self._lock:
            try:
                # First what is kept elsewhere: the log only grows, so it must have that whenever it is read afterwards.
                gathered = await self.witnesses.gather()
                await self._judge(gathered)
            except MemoryLayerError as error:
                log.warning("the log could not be compared with its checkpoints elsewhere", error=error.message)
            except Exception:
                log.exception("the log could not be compared with its checkpoints elsewhere")

    async def _judge(self, gathered: Gathered) -> None:
        fetch = snapshot(self._postgres)
        (row,) = await fetch((_SQL["grown"], {"log": self._number}))
        grown = _Grown(**row)
        if gathered.archive_empty and grown.segments:
            gathered.answered -= 1
            gathered.unread.append(
                f"the archive: it holds nothing of this log, and {grown.segments} segments were written"
            )
        lacking = [
            (witness, what)
            for witness in gathered.witnesses
            if (what := await difference(fetch, self._number, grown.entries, witness.checkpoint)) is not None
        ]
        self.gathered = gathered
        self._say(gathered)
        if lacking:
            self._found(lacking)
            return
        if self.conflict is not None:
            log.warning("the log contains every checkpoint that is kept elsewhere again: writes go on")
        self.conflict = None
        metrics.rollback_detected.set(0)
        self._looked = True
        self.waiting = grown.sealed_on not in (None, grown.server) and not gathered.answered
        if self.waiting:
            return
        if not gathered.unread:
            self.proved_at = dt.datetime.now(dt.UTC)
            metrics.rollback_proved.set(self.proved_at.timestamp())
        if grown.sealed_on is not None and grown.server not in (grown.sealed_on, self._server):
            proved = tuple(gathered.witnesses)
            self.changed = ServerChange(grown.sealed_on, grown.server, grown.entries, proved)
            log.warning(
                "Postgres is another server than the log was sealed on",
                sealedOn=list(grown.sealed_on),
                now=list(grown.server),
                reason="the newest checkpoint elsewhere is part of the log, so writes go on"
                if proved
                else "nothing of the log is kept elsewhere yet",
            )
        self._server = grown.server

    def _found(self, lacking: list[tuple[Witness, str]]) -> None:
        metrics.rollback_detected.set(1)
        for witness, what in lacking:
            log.error(
                "ROLLBACK_DETECTED: a signed checkpoint that is kept elsewhere is not part of the log. Nothing is written or archived",
                place=witness.source,
                size=witness.checkpoint.size,
                root=witness.checkpoint.root.hex(),
                reason=what,
            )
        witness, what = max(lacking, key=lambda found: found[0].checkpoint.size)
        place = "An anchor" if "anchor" in witness.source else "The archive"
        self.conflict = RollbackDetected(
            f"{place} has a signed checkpoint of {witness.checkpoint.size} entries, and {what}: the database was restored to an earlier "
            "point, or rows were taken from it. Nothing is written, and nothing is read while VERIFY_READS is strict. An operator restores the newest backup or standby "
            f"that has entry {witness.checkpoint.size - 1}; then both go on by themselves within a minute ({RUNBOOK})."
        )

    def _say(self, gathered: Gathered) -> None:
        for line in gathered.unread:
            log.warning("a place of checkpoints could not be read", reason=line)
        for line in gathered.doubtful:
            log.warning("a checkpoint is not one of this log", reason=line)

    async def wait(self) -> None:
        """Until the next check is due, or a writer waits for one."""
        if self.waiting or not self._looked:
            await asyncio.sleep(SOON)
        else:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(EVERY):
                    await self._asked.wait()
        self._asked.clear()


def _unproved(gathered: Gathered) -> RollbackDetected:
    return RollbackDetected(
        "Postgres is another server than the one that the log was last sealed on (a failover, or a restore), and it is not proved yet "
        "that the log still contains the newest checkpoint that is kept elsewhere. Nothing was written; reads go on. Writes go on by "
        + (
            f"themselves once the archive or an anchor answers ({RUNBOOK})."
            if gathered.unread
            else "themselves in a moment, when it is proved."
        ),
        retryable=True,
        retry_after=int(SOON),
    )


async def difference(fetch: Fetch, number: int, entries: int, checkpoint: Checkpoint) -> str | None:
    """What the log of so many entries says against a checkpoint of it, or None: it begins with just what the checkpoint covers."""
    size = checkpoint.size
    if size > entries:
        return f"the log has {entries} entries"
    if size == 0:
        return None if checkpoint.root == EMPTY_ROOT else "an empty log has another root"
    # By its links the last entry commits to all before it, so it is read itself and not by its hash alone.
    last = await fetch((_SQL["entry_at"], {"log": number, "seq": size - 1}))
    edge = await _leaves(fetch, number, (size - 1) // TILE_WIDTH * TILE_WIDTH, size)
    if not last or edge is None:
        return f"of its first {size} entries some are missing"
    if bytes.fromhex(leaf_hash(bytes(last[0]["entry"]))) != edge[-HASH_BYTES:]:
        return f"entry {size - 1} has another hash"
    root = await _root_by_tiles(fetch, number, size, edge)
    if root != checkpoint.root:
        # Tiles are derived, and may be damaged by themselves: the entries' own hashes decide.
        root = await root_by_leaves(fetch, number, size)
    if root is None:
        return f"of its first {size} entries some are missing"
    return None if root == checkpoint.root else f"the first {size} entries of the log have the root {root.hex()}"


async def _root_by_tiles(fetch: Fetch, number: int, size: int, edge: bytes) -> bytes | None:
    """The root of the first ``size`` entries, of which ``edge`` are the hashes in the last tile, as the entries have them. None where
    tiles are missing or damaged."""
    index = (size - 1) // TILE_WIDTH
    stored = await load(fetch, number, size, size - 1)

    def read(level: int, tile: int, width: int) -> bytes:
        return edge[: width * HASH_BYTES] if (level, tile) == (0, index) else stored(level, tile, width)

    try:
        return root_from_tiles(size, read)
    except ValidationError:
        return None


async def root_by_leaves(fetch: Fetch, number: int, size: int) -> bytes | None:
    """The root of the first ``size`` entries; None where some are missing."""
    tree = Frontier()
    for first in range(0, size, CHUNK):
        hashes = await _leaves(fetch, number, first, min(first + CHUNK, size))
        if hashes is None:
            return None
        tree.extend([hashes[place : place + HASH_BYTES] for place in range(0, len(hashes), HASH_BYTES)])
    return tree.root()


async def _leaves(fetch: Fetch, number: int, first: int, last: int) -> bytes | None:
    (row,) = await fetch((_SQL["leaf_hashes"], {"log": number, "first": first, "last": last}))
    return bytes(row["hashes"]) if row["count"] == last - first else None
