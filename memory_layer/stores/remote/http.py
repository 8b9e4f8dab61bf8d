"""An HTTP request with its tries. (tenacity and stamina were looked at: with Retry-After as a lower bound, a deadline over all tries
and the answer's own error, each would take more code than this loop.)"""

from __future__ import annotations

import asyncio
import itertools
import random
import re
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import NamedTuple, Protocol, TypeVar

from memory_layer.errors import MemoryLayerError

T = TypeVar("T")


class TryAgain(Exception):
    """This try failed in a way that another may not; ``pause`` is what the service asked for, in seconds."""

    def __init__(self, why: str, pause: float | None = None) -> None:
        super().__init__(why)
        self.pause = pause


class Tries(NamedTuple):
    """Pauses in seconds; they double, with jitter. What the service asks for is a lower bound."""

    times: int
    first_pause: float
    longest_pause: float


class Unavailable(Protocol):
    """Makes the error of a service that did not do it: ``what`` happened, and in how many seconds it is worth another try."""

    def __call__(self, what: str, *, retry_after: int | None = None) -> MemoryLayerError: ...


async def with_tries(attempt: Callable[[], Awaitable[T]], tries: Tries, deadline: float, unavailable: Unavailable) -> T:
    """What ``attempt`` returns; each time that it raises TryAgain it is called once more. ``deadline``: seconds for all of it.

    Raises what ``unavailable`` makes of the last failure, and whatever else ``attempt`` raises.
    """
    give_up = time.monotonic() + deadline
    for number in itertools.count(1):
        try:
            async with asyncio.timeout(max(give_up - time.monotonic(), 0)):
                return await attempt()
        except TimeoutError:
            raise unavailable(f"did not answer within {deadline:g} s") from None
        except TryAgain as error:
            pause = min(tries.first_pause * 2.0 ** (number - 1), tries.longest_pause) * random.uniform(0.5, 1)  # noqa: S311 - jitter
            pause = max(pause, error.pause or 0)
            if number >= tries.times or time.monotonic() + pause > give_up:
                wait = None if error.pause is None else round(error.pause + 0.5)
                raise unavailable(f"{error}, in try {number} of {tries.times}", retry_after=wait) from None
        await asyncio.sleep(pause)
    raise AssertionError("unreachable")


def retry_after(value: str | None) -> float | None:
    """Seconds of a Retry-After header, which holds them or a date (RFC 9110, 10.2.3)."""
    if value is None:
        return None
    if re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,9})?", value):
        return float(value)
    try:
        date = parsedate_to_datetime(value)
    except ValueError:
        return None
    date = date if date.tzinfo else date.replace(tzinfo=UTC)
    return max((date - datetime.now(UTC)).total_seconds(), 0)
