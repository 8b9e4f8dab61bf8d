"""Checkpoints that lie outside the database: in the archive, where anchors are pushed, and what this machine remembers of them.

Each is signed by the log itself, so the place that keeps it cannot forge one; what is not signed by a key of the trust root proves nothing,
and is skipped with a warning.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, NamedTuple

from memory_layer.audit.checkpoint import MAX_NOTE, Checkpoint, check_checkpoint, parse_checkpoint
from memory_layer.audit.trust_root import TrustRoot
from memory_layer.errors import MemoryLayerError, ValidationError
from memory_layer.stores.protocols import AnchorPlace, ObjectStore

WITHIN: Final = 10.0  # seconds that one place gets to answer in
REMEMBERED: Final = 256  # names of each listing, the newest
TRIED: Final = 64  # of them, where what they hold is not signed by the log
FOLDER: Final = "anchors"  # of the data folder: what was pushed from this machine

_SIZE: Final = re.compile(r"[0-9]{15}")
_SEGMENT: Final = re.compile(r"[0-9]{15}-[0-9]{15}(-a[0-9]+)?/checkpoint")
_PAGE: Final = 1000


class Witness(NamedTuple):
    """A checkpoint of the log and where it was found. ``outside``: not on this machine's own word."""

    source: str
    checkpoint: Checkpoint
    outside: bool = True


@dataclass(slots=True)
class Gathered:
    """``unread``: places that could not be asked, each with the reason. ``doubtful``: notes that prove nothing."""

    witnesses: list[Witness] = field(default_factory=list)
    unread: list[str] = field(default_factory=list)
    doubtful: list[str] = field(default_factory=list)
    answered: int = 0  # places outside this machine's own record that answered, the archive among them
    archive_empty: bool = False


class _Listing:
    """The newest names below a prefix. It goes on where it ended, so that a long archive is listed once and not each minute."""

    def __init__(self, store: ObjectStore, prefix: str, pattern: re.Pattern[str]) -> None:
        self._store, self._prefix, self._pattern = store, prefix, pattern
        self._cursor: str | None = None
        self._names: dict[str, str] = {}  # key to its oldest version: what came over it later is not what was put there
        self._doubtful: set[tuple[str, str]] = set()
        self._known: tuple[str, str, Checkpoint] | None = None

    async def newest(self, trust_root: TrustRoot, doubtful: list[str]) -> Checkpoint | None:
        await self._list()
        for key in sorted(self._names, reverse=True)[:TRIED]:
            version = self._names[key]
            if self._known is not None and self._known[:2] == (key, version):
                return self._known[2]
            if (key, version) in self._doubtful:
                continue
            data = bytearray()
            async for block in self._store.read(key, version, 0, MAX_NOTE + 1):
                data += block
            found = genuine(bytes(data), trust_root)
            if isinstance(found, Checkpoint):
                self._known = key, version, found
                return found
            self._doubtful.add((key, version))
            doubtful.append(f"{key} in the archive: {found}")
        return None

    async def _list(self) -> None:
        while True:
            page = await self._store.versions(self._prefix, self._cursor, _PAGE)
            for version in page.versions:
                if not version.marker and self._pattern.fullmatch(version.key.removeprefix(self._prefix)):
                    self._names[version.key] = version.version_id
            for key in sorted(self._names)[:-REMEMBERED]:
                del self._names[key]
            if page.cursor is None:
                return
            self._cursor = page.cursor


class Witnesses:
    """Asks every place for the newest checkpoint of one log. ``records``: the folder of what was pushed from here."""

    def __init__(
        self,
        trust_root: TrustRoot,
        archive: ObjectStore | MemoryLayerError | None,
        anchors: Sequence[AnchorPlace] = (),
        records: Path | None = None,
    ) -> None:
        """``archive``: None where nothing was archived yet, an error where it could not be opened."""
        self.trust_root, self.anchors, self.records = trust_root, tuple(anchors), records
        self._fault = archive if isinstance(archive, MemoryLayerError) else None
        self._listings: tuple[_Listing, ...] = ()
        if archive is not None and not isinstance(archive, MemoryLayerError):
            prefix = f"archive/{trust_root.origin}/"
            self._listings = (
                _Listing(archive, f"{prefix}checkpoints/", _SIZE),
                _Listing(archive, f"{prefix}segments/", _SEGMENT),
            )

    async def gather(self) -> Gathered:
        """The newest checkpoint of each place; never raises."""
        found = Gathered()
        await asyncio.gather(self._ask_archive(found), *(self._ask_anchor(place, found) for place in self.anchors))
        self._ask_records(found)
        return found

    async def _ask_archive(self, found: Gathered) -> None:
        try:
            if self._fault is not None:
                raise self._fault
            async with asyncio.timeout(WITHIN):
                newest = [await listing.newest(self.trust_root, found.doubtful) for listing in self._listings]
        except MemoryLayerError as error:
            found.unread.append(f"the archive: {error.message}")
            return
        except TimeoutError:
            found.unread.append(f"the archive: it did not answer within {WITHIN:g} s")
            return
        found.answered += 1
        there = [checkpoint for checkpoint in newest if checkpoint is not None]
        found.archive_empty = not there
        if there:
            largest = max(there, key=lambda checkpoint: checkpoint.size)
            found.witnesses.append(Witness("the archive", largest))

    async def _ask_anchor(self, place: AnchorPlace, found: Gathered) -> None:
        try:
            async with asyncio.timeout(WITHIN):
                note = await place.newest(self.trust_root.origin)
        except MemoryLayerError as error:
            found.unread.append(f"the anchor at {place.name}: {error.message}")
            return
        except TimeoutError:
            found.unread.append(f"the anchor at {place.name}: it did not answer within {WITHIN:g} s")
            return
        if note is None:
            return
        checkpoint = genuine(note, self.trust_root)
        if isinstance(checkpoint, Checkpoint):
            found.answered += 1
            found.witnesses.append(Witness(f"the anchor at {place.name}", checkpoint))
        else:
            found.doubtful.append(f"the anchor at {place.name}: {checkpoint}")

    def _ask_records(self, found: Gathered) -> None:
        for path, checkpoint in recorded(self.records, self.trust_root):
            found.witnesses.append(Witness(f"the record of an anchor, {path}", checkpoint, outside=False))


def genuine(note: bytes, trust_root: TrustRoot) -> Checkpoint | str:
    """A checkpoint that a key of the trust root signed, or why it is none."""
    try:
        checkpoint = parse_checkpoint(note)
    except ValidationError as error:
        return error.message
    problem = check_checkpoint(checkpoint, trust_root)
    return checkpoint if problem is None else f"{problem.code}: expected {problem.expected}, found {problem.found}"


def recorded(folder: Path | None, trust_root: TrustRoot) -> list[tuple[Path, Checkpoint]]:
    """What this machine remembers of anchors that it pushed, of this log."""
    found = []
    try:
        paths = sorted(folder.iterdir()) if folder is not None and folder.is_dir() else []
        for path in paths:
            if path.suffix == ".checkpoint" and path.is_file():
                checkpoint = genuine(path.read_bytes()[: MAX_NOTE + 1], trust_root)
                if isinstance(checkpoint, Checkpoint):
                    found.append((path, checkpoint))
    except OSError:
        return found
    return found
