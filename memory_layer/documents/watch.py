"""Which files of folders changed since the last look. Files are looked at, not subscribed to: that works on network drives and in containers,
needs no library, and a change that nobody announced is seen too."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from memory_layer.documents.folders import LeftOut, Root, find
from memory_layer.documents.passages import Source

_SHARE: Final = 10  # of the time at most one part in so many is spent on looking
_UNSETTLED: Final = 10  # looks that a file may go on changing before it is taken in all the same


@dataclass(frozen=True, slots=True)
class Seen:
    """The files of a look, and what tells that one changed."""

    sources: dict[str, Source]
    marks: dict[str, tuple[int, int, int]]  # name -> modification time, size, inode


@dataclass(frozen=True, slots=True)
class Changes:
    """``sources``: those that are new or changed. ``folders``: all, where a file came or went."""

    sources: list[Source]
    folders: list[Root]
    seen: Seen


def look(roots: Sequence[Root]) -> Seen | None:
    """The files below the roots, and those that are roots; None while a root is not there, which is no change of its files."""
    sources: dict[str, Source] = {}
    marks: dict[str, tuple[int, int, int]] = {}
    if any(root.is_folder and not root.path.is_dir() for root in roots):
        return None
    for source in find(roots, LeftOut()):
        try:
            stat = source.path.stat()
        except OSError:
            continue
        if source.name not in sources or source.named:
            sources[source.name] = source
        marks[source.name] = (stat.st_mtime_ns, stat.st_size, stat.st_ino)
    return Seen(sources, marks)


async def next_changes(roots: Sequence[Root], last: Seen, interval: float) -> Changes:
    """What has changed since ``last``, as soon as anything has and then stands still for ``interval`` seconds."""
    before, looks = last, 0
    while True:
        begin = time.monotonic()
        seen = await asyncio.to_thread(look, roots)
        took = time.monotonic() - begin
        if seen is not None:
            looks = looks + 1 if seen.marks != last.marks else 0
            if looks and (seen.marks == before.marks or looks > _UNSETTLED):
                break
            before = seen
        await asyncio.sleep(max(interval, _SHARE * took))
    changed = [source for name, source in seen.sources.items() if seen.marks[name] != last.marks.get(name)]
    came_or_went = seen.marks.keys() != last.marks.keys()
    return Changes(changed, [root for root in roots if root.is_folder] if came_or_went else [], seen)
