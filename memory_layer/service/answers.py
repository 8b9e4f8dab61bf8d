"""Answers of many parts: each part becomes JSON at once, so that what is counted is what is sent, and little else is in memory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final, ParamSpec

import msgspec

from memory_layer import aside

P = ParamSpec("P")

MAX_ANSWER: Final = 16 * 2**20  # bytes of an answer as sent
READ_BYTES: Final = (
    2**20
)  # of content and metadata that one query reads, the row that crosses it included: all is decoded at a time
_AROUND: Final = 4096  # bytes for what stands around the parts


@dataclass(slots=True)
class Parts:
    """The parts of one answer, and their bytes."""

    items: list[msgspec.Raw] = field(default_factory=list)
    size: int = _AROUND

    async def add(self, size: int, make: Callable[P, dict[str, Any]], *given: P.args, **named: P.kwargs) -> bool:
        """Add the part that ``make`` gives; False: the answer would be too large with it, and it is not in. ``size``: about how many
        bytes it has."""
        data = await aside.run(size, lambda: msgspec.json.encode(make(*given, **named)))
        if self.size + len(data) + 1 > MAX_ANSWER:
            return False
        self.items.append(msgspec.Raw(data))
        self.size += len(data) + 1
        return True
