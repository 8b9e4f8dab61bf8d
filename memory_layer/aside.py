"""Work that would keep everybody else waiting goes to a thread, where it shares the interpreter instead of having it.

What a request may make the server compute grows with the bytes that it brings or asks for: a document to parse, rows to compare, an
answer to encode. Up to HEAVY bytes that takes a few milliseconds, and a thread would cost more than it saves.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, Final, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

HEAVY: Final = 64 * 1024  # bytes
MAX_VALUES: Final = 100_000  # of one JSON document. A call of C that makes, walks or frees so many keeps the interpreter for about 20 ms
_FEW: Final = 2  # at a time: each one that runs makes the event loop wait for the interpreter
_MANY: Final = 500  # values of a document that is looked at without a thread
_THREADS: Final = ThreadPoolExecutor(_FEW, "memory-layer-aside")


async def run(size: int, work: Callable[P, T], *given: P.args, **named: P.kwargs) -> T:
    """What the work gives; done here and now when ``size``, the bytes that it is about, is small."""
    if size <= HEAVY:
        return work(*given, **named)
    context = contextvars.copy_context()
    return await asyncio.get_running_loop().run_in_executor(_THREADS, partial(context.run, work, *given, **named))


def is_heavy(value: Any) -> bool:
    """Whether a decoded document is large; looks at no more than a few hundred of its values."""
    left, text, waiting = _MANY, HEAVY, [value]
    while waiting:
        item = waiting.pop()
        if isinstance(item, str):
            text -= len(item)
        elif isinstance(item, dict):
            left -= len(item)
            if left > 0:
                text -= sum(map(len, item))
                waiting.extend(item.values())
        elif isinstance(item, list):
            left -= len(item)
            if left > 0:
                waiting.extend(item)
        if left <= 0 or text <= 0:
            return True
    return False


def has_too_many(document: Any) -> bool:
    """Whether a decoded document holds more than MAX_VALUES values, each within another one counted too."""
    left, waiting = MAX_VALUES, [document]
    while waiting and left >= 0:
        item = waiting.pop()
        if isinstance(item, (dict, list)):
            left -= len(item)
            if left >= 0:
                waiting.extend(item.values() if isinstance(item, dict) else item)
    return left < 0
