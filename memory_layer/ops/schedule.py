"""The state of each periodic job in ``ops_schedule``: when it ran, how it ended, when it is due."""

from __future__ import annotations

import datetime as dt
from dataclasses import asdict, dataclass

from memory_layer.model import SYSTEM_TENANT
from memory_layer.sql import queries
from memory_layer.stores.postgres import Postgres

_SQL = queries("operations")


@dataclass(slots=True)
class State:
    """A row of ``ops_schedule``."""

    next_due: dt.datetime
    last_started: dt.datetime | None = None
    last_finished: dt.datetime | None = None
    last_success: dt.datetime | None = None
    last_error: str | None = None
    failures: int = 0


async def load(postgres: Postgres, job: str) -> State | None:
    """None of a job that never ran."""
    (rows,) = await postgres.fetch(SYSTEM_TENANT, (_SQL["scheduled_job"], {"job": job}))
    return State(**rows[0]) if rows else None


async def save(postgres: Postgres, job: str, leader: str, state: State) -> None:
    """``leader``: the process that leads the job."""
    # What Postgres takes no text with: lone surrogates and NUL.
    error = state.last_error and state.last_error[:1000].encode("utf-8", "replace").decode().replace("\0", "\ufffd")
    facts = {"job": job, "leader": leader, **asdict(state), "last_error": error}
    await postgres.run(SYSTEM_TENANT, (_SQL["put_scheduled_job"], facts))
