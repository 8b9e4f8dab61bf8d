"""What the installation does by itself: heartbeats, sweeps, operators' runs. Its entries name no tenant."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING, Any

from memory_layer.model import SYSTEM_TENANT, Caller, uuid7
from memory_layer.service.batch import Outcome
from memory_layer.service.changes import Change, Record
from memory_layer.sql import queries
from memory_layer.stores.postgres import Postgres

if TYPE_CHECKING:
    from memory_layer.service import Memory

_SQL = queries("nodes")


async def system_caller(memory: Memory, service: str, request_id: str | None = None) -> Caller:
    """Who acts: ``service`` (worker, memoryctl, ...) gets the opaque id under which the log knows it."""
    return await known_caller(memory.stores.postgres, service, request_id)


async def known_caller(postgres: Postgres, service: str, request_id: str | None = None) -> Caller:
    """The same for those who have no more than the database open."""
    who = {"tenant": SYSTEM_TENANT, "service": service, "id": uuid7()}
    (rows,) = await postgres.fetch(SYSTEM_TENANT, (_SQL["find_principal"], who))
    if not rows:
        await postgres.run(SYSTEM_TENANT, (_SQL["add_tenant"], who), (_SQL["add_principal"], who))
        (rows,) = await postgres.fetch(SYSTEM_TENANT, (_SQL["find_principal"], who))
    actor: uuid.UUID = rows[0]["id"]
    return Caller(
        tenant=SYSTEM_TENANT,
        actor=actor,
        service=service,
        auth="system",
        scopes=frozenset(),
        request_id=request_id or str(uuid7()),
    )


async def record(memory: Memory, caller: Caller, event_type: str, payload: dict[str, Any]) -> Outcome:
    """Commit an entry that changes no row: ``audit.heartbeat``, ``ops.<verb>.succeeded``, ..."""
    return await memory.committer.submit(Change(caller, Record(event_type, payload)))
