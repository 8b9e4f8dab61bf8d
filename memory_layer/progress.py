"""How a long operation reports its progress."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

Progress: TypeAlias = Callable[[str, int, int], None]
"""What is being done, how much of it is done, and of how much in all; 0 where that is unknown."""


def no_progress(_what: str, _done: int, _total: int) -> None:
    """For callers that need no progress."""
