"""Circuit breakers: whether a service that indexing needs is likely to answer.

A breaker opens when an outage is proved (a call failed, and a probe of the service failed too), not when a row is refused. While
it is open no row is claimed that needs the service. When its pause is over, one probe decides: it closes, or the pause doubles.
So the breaker waits, not the rows: they stay due, and are indexed as soon as it closes.
"""

from __future__ import annotations

import datetime as dt
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Literal

from memory_layer.errors import DependencyUnavailable, MemoryLayerError
from memory_layer.telemetry import metrics
from memory_layer.telemetry.logs import get_logger

FIRST_PAUSE, LONGEST_PAUSE = 0.5, 8.0  # seconds; the longest is how late the end of an outage may be noticed

log = get_logger("memory_layer.breakers")

State = Literal["closed", "half_open", "open"]
SERVICES = ("vectors", "embedder", "next_embedder")
BREAKER_STATES = {"closed": 0, "half_open": 1, "open": 2}  # as the metric shows them


@dataclass(slots=True)
class Breaker:
    """Of one service, in one process."""

    service: str
    state: State = "closed"
    reason: str = ""
    since: dt.datetime | None = None
    _pause: float = FIRST_PAUSE
    _until: float = 0.0  # time.monotonic()

    def __post_init__(self) -> None:
        self._become("closed")

    @property
    def closed(self) -> bool:
        return self.state == "closed"

    def trip(self, error: MemoryLayerError) -> None:
        """The service is down: a call failed, and so did its probe."""
        if self.closed:
            self.since, self._pause = dt.datetime.now(dt.UTC), FIRST_PAUSE
            metrics.breaker_opened.labels(self.service).inc()
            log.warning("indexing does without a service", service=self.service, error=error.message)
        self.reason = error.message
        # Workers that lost a service together must not all come back to it at the same moment.
        wait = max(random.uniform(0.75, 1.25) * self._pause, float(error.retry_after or 0))  # noqa: S311 - jitter
        self._until = time.monotonic() + wait
        self._become("open")

    async def attempt(self, probe: Callable[[], Awaitable[object]]) -> bool:
        """Whether the service may be called. A breaker that is open and due probes it first, and is False for calls meanwhile."""
        if self.state != "open" or time.monotonic() < self._until:
            return self.closed
        self._become("half_open")
        try:
            await probe()
        except MemoryLayerError as error:
            self._pause = min(2 * self._pause, LONGEST_PAUSE)
            self.trip(error)
        except BaseException as error:
            self._pause = min(2 * self._pause, LONGEST_PAUSE)
            self.trip(DependencyUnavailable(f"The probe of {self.service} failed ({type(error).__name__})."))
            if not isinstance(error, Exception):
                raise
        else:
            log.info("indexing has a service again", service=self.service)
            self.reason, self.since = "", None
            self._become("closed")
        return self.closed

    def _become(self, state: State) -> None:
        self.state = state
        metrics.breaker_state.labels(self.service).set(BREAKER_STATES[state])


@dataclass(frozen=True, slots=True)
class Breakers:
    """One for each service that indexing calls, besides Postgres: without that it can do nothing at all. Two embedders have one each:
    a model that is down must not hold up the rows of the other."""

    vectors: Breaker = field(default_factory=lambda: Breaker("vectors"))
    embedder: Breaker = field(default_factory=lambda: Breaker("embedder"))
    next_embedder: Breaker = field(default_factory=lambda: Breaker("next_embedder"))

    def not_closed(self) -> list[Breaker]:
        return [breaker for breaker in (self.vectors, self.embedder, self.next_embedder) if not breaker.closed]
