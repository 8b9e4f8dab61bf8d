"""How much of other people's bytes one process holds at a time. What goes beyond is refused, and sent again shortly."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Final

from memory_layer.errors import Overloaded

SMALL: Final = 64 * 1024  # bytes of a body that are not counted: most have fewer
MAX_BYTES: Final = 256 * 1024 * 1024  # of all larger bodies that are here
MAX_UPLOADS: Final = 64  # files on their way into the store


class Admission:
    """One per process."""

    def __init__(self) -> None:
        self.held = 0  # bytes
        self.uploads = 0

    def room(self) -> Room:
        return Room(self)

    @contextlib.contextmanager
    def upload(self) -> Iterator[None]:
        """Raises Overloaded when there are too many."""
        if self.uploads >= MAX_UPLOADS:
            raise Overloaded(f"{MAX_UPLOADS} uploads are under way here already. Try again shortly.", retry_after=2)
        self.uploads += 1
        try:
            yield
        finally:
            self.uploads -= 1


class Room:
    """What the body of one request takes up, until ``leave``."""

    __slots__ = ("_admission", "_held")

    def __init__(self, admission: Admission) -> None:
        self._admission = admission
        self._held = 0

    def grow(self, size: int) -> None:
        """The body has ``size`` bytes by now. Raises Overloaded when all bodies together are too large."""
        if size <= SMALL:
            return
        self._admission.held += size - self._held
        self._held = size
        if self._admission.held > MAX_BYTES:
            raise Overloaded("Too many large requests are being read. Try again shortly.", retry_after=2)

    def leave(self) -> None:
        self._admission.held -= self._held
        self._held = 0
