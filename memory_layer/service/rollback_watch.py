"""Watch for a rollback of the database: when the log is opened and each minute. A change of the server gets an entry."""

from __future__ import annotations

from memory_layer.errors import MemoryLayerError
from memory_layer.service.actions.log import Record
from memory_layer.service.commit import Change, Committer, Idempotency, request_hash
from memory_layer.service.principals import known_caller
from memory_layer.service.rollback import RollbackGuard
from memory_layer.stores.postgres import Postgres
from memory_layer.telemetry.logs import get_logger

CHANGED = "ops.server-changed.succeeded"

log = get_logger("memory_layer.rollback")


async def watch_rollback(guard: RollbackGuard, postgres: Postgres, committer: Committer) -> None:
    """Look each minute, and when a writer waits for a proof; until cancelled."""
    while True:
        await record_change(guard, postgres, committer)
        await guard.wait()
        await guard.check()


async def record_change(guard: RollbackGuard, postgres: Postgres, committer: Committer) -> None:
    """Write the entry about another server, where the log is proved there. However many processes find it, there is one."""
    changed = guard.changed
    if changed is None:
        return
    try:
        once = f"server {changed.after[0]} {changed.after[1]} after {changed.before[0]} {changed.before[1]}"
        caller = await known_caller(postgres, "memory-layer")
        change = Change(caller, Record(CHANGED, changed.payload()), Idempotency(once, request_hash(CHANGED, once)))
        await committer.submit(change)
        guard.changed = None
    except MemoryLayerError as error:
        log.warning("the entry about another server of Postgres is not written yet", error=error.message)
