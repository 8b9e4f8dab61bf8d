"""When a call is tried again, and after how long, in both clients.

Only calls that are safe to repeat are: reads, and writes that carry an ``Idempotency-Key`` (the server then answers a
repeat with the first result). Waits grow exponentially with full jitter
(https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/); a ``Retry-After`` is a lower bound.
"""

from __future__ import annotations

import email.utils
import random
import time
from dataclasses import dataclass

from memory_layer.client.errors import MemoryLayerClientError

RETRIED_STATUSES = frozenset({429, 502, 503, 504})
RETRIED_CODES = frozenset({"UNREACHABLE", "TIMEOUT", "IDEMPOTENCY_IN_PROGRESS", "NOT_YET_PUBLISHED"})


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """``retries`` repeats at most; waits in seconds. A ``Retry-After`` above ``longest_wait`` is not waited for."""

    retries: int = 4
    first_wait: float = 0.1
    longest_wait: float = 60.0

    def wait(self, error: MemoryLayerClientError, attempt: int, *, repeatable: bool) -> float | None:
        """Seconds before the next try, or None to give up. ``attempt`` counts from 0."""
        if not repeatable or attempt >= self.retries:
            return None
        if error.status not in RETRIED_STATUSES and error.code not in RETRIED_CODES:
            return None
        backoff = random.uniform(0.5, 1.0) * min(self.first_wait * 2.0**attempt, self.longest_wait)  # noqa: S311  # nosec B311
        if error.retry_after is None:
            return backoff
        # The jitter on top keeps clients with the same Retry-After from coming back together.
        return None if error.retry_after > self.longest_wait else error.retry_after + min(backoff, 1.0)


def parse_retry_after(value: str | None) -> float | None:
    """``Retry-After`` as seconds from now (RFC 9110, 10.2.3: delay-seconds or an HTTP date)."""
    if value is None:
        return None
    value = value.strip()
    if value.isascii() and value.isdigit():
        return float(value[:9])
    try:
        moment = email.utils.parsedate_to_datetime(value)
    except ValueError:
        return None
    return max(0.0, moment.timestamp() - time.time())
