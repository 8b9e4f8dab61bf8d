"""What every part of a run needs, and what it did so far."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from memory_layer.documents.passages import Bad, Passage, Source
from memory_layer.documents.plan import Stored
from memory_layer.documents.read import Reading

if TYPE_CHECKING:
    from memory_layer.client import AsyncMemoryClient


@dataclass(slots=True)
class Tally:
    """Passages, but for ``renamed`` (files) and ``artifacts``. Survives an interruption."""

    created: int = 0
    changed: int = 0
    removed: int = 0
    skipped: int = 0  # there already
    renamed: int = 0
    held: int = 0  # would have been changed or removed, but for a legal hold
    failed: int = 0
    artifacts: int = 0
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Document:
    """What a file has now. Not ``whole``: some of it cannot become passages, so the next run reads it again. ``source`` None: it is gone."""

    name: str
    passages: Sequence[Passage]
    source: Source | None
    sha256: str | None
    reader: str
    whole: bool = True
    earlier: list[Stored] = field(default_factory=list)  # its passages from before sources were known as a whole

    def without(self, places: set[int]) -> Document:
        """What is left when the server refuses some passages."""
        kept = [one for place, one in enumerate(self.passages) if place not in places]
        return replace(self, passages=kept, whole=self.whole and not places)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a file, or would: passages by what was done to them. ``was``: its name before."""

    name: str
    created: int = 0
    changed: int = 0
    kept: int = 0
    removed: int = 0
    held: int = 0
    was: str | None = None


@dataclass(frozen=True, slots=True)
class Run:
    """``dry``: nothing is written, and the tally is what would be. ``prune``: what is removed from the folders is deleted.
    ``recheck``: files that did not change are compared too."""

    memory: AsyncMemoryClient
    owner: str
    namespace: str | None
    reading: Reading
    tally: Tally
    gate: asyncio.Semaphore  # writes in flight
    files: asyncio.Semaphore  # that are compared at the same time, and so are in memory
    bad: Callable[[Bad], None]
    held: Callable[[str, Stored], None]
    outcome: Callable[[Outcome], None]
    advance: Callable[[int], None]
    dry: bool = False
    prune: bool = False
    recheck: bool = False
    heads: dict[str, str] = field(default_factory=dict)  # name of a source that was written -> node of its first slot
    empty: set[str] = field(default_factory=set)  # names of files without a text
