"""What this process knows of the blocks of objects that it has read whole and found right (``reading.py``)."""

from __future__ import annotations

import asyncio
import uuid
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Final

KEPT: Final = 32 * 2**20  # bytes of hashes: of a terabyte of objects
AT_A_TIME: Final = 2  # objects that are read whole side by side

Place = tuple[str, str, str]


@dataclass(slots=True)
class Blocks:
    """One per process (``Installation.blocks``): hashes of blocks by (key, version, SHA-256 of the whole), those used last at the end."""

    known: OrderedDict[Place, bytes] = field(default_factory=OrderedDict)
    kept: int = 0  # bytes of hashes
    running: dict[Place, asyncio.Task[bytes]] = field(default_factory=dict)
    waiting: dict[Place, int] = field(default_factory=dict)
    slots: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(AT_A_TIME))
    recording: set[uuid.UUID] = field(default_factory=set)

    def keep(self, place: Place, hashes: bytes) -> None:
        self.forget(place)
        self.known[place] = hashes
        self.kept += len(hashes)
        while self.kept > KEPT:
            _, oldest = self.known.popitem(last=False)
            self.kept -= len(oldest)

    def find(self, place: Place) -> bytes | None:
        hashes = self.known.get(place)
        if hashes is not None:
            self.known.move_to_end(place)
        return hashes

    def forget(self, place: Place) -> None:
        self.kept -= len(self.known.pop(place, b""))
