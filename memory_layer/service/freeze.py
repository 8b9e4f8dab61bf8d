"""An operator's freeze: all writes of tenants are refused (FROZEN) during a drill, a repair or a restore; reads go on.

It is a row that every batch reads with the head of the log, and it is set and lifted under the log lock like any write. So
from the answer of ``put`` on no process commits a write that the freeze refuses, and a restart changes nothing.
"""

from __future__ import annotations

import datetime as dt
from typing import Any

from memory_layer.errors import ValidationError
from memory_layer.model import MAX_REASON, Caller, Freeze, is_reason
from memory_layer.service.actions.log import SetFreeze
from memory_layer.service.commit import Change, Committer
from memory_layer.service.commit.batch import refusal
from memory_layer.sql import queries
from memory_layer.stores.postgres import Postgres
from memory_layer.telemetry import metrics

MAX_SECONDS = 366 * 86_400

_SQL = queries("operations")


async def put(committer: Committer, caller: Caller, reason: str, seconds: int | None = None) -> dict[str, Any]:
    """Freeze, or say another reason and end for a freeze that is there; how it stands now. Raises what a write raises."""
    if not is_reason(reason):
        raise ValidationError(
            f"The reason for a freeze is one line of 1 to {MAX_REASON} characters, shown to every caller."
        )
    if seconds is not None and not 1 <= seconds <= MAX_SECONDS:
        raise ValidationError("A freeze lasts from a second to a year; without a time, until it is lifted.")
    outcome = await committer.submit(Change(caller, SetFreeze(reason.strip(), seconds)))
    return outcome.answer


async def lift(committer: Committer, caller: Caller) -> dict[str, Any]:
    """Let writes go on; what the freeze was. Raises NotFound where there is none, and what a write raises."""
    outcome = await committer.submit(Change(caller, SetFreeze(None)))
    return outcome.answer


async def current(postgres: Postgres) -> Freeze | None:
    """The freeze that is in force."""
    (rows,) = await postgres.fetch("", (_SQL["frozen"], {}))
    metrics.writes_frozen.set(bool(rows))
    return Freeze(**rows[0]) if rows else None


async def require_not_frozen(postgres: Postgres) -> None:
    """Raise Frozen before work that would end in a write which is refused."""
    freeze = await current(postgres)
    if freeze is not None:
        raise refusal(freeze, dt.datetime.now(dt.UTC))
