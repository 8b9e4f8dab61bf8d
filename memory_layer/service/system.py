"""What the installation does on its own account: heartbeats, sweeps, operators' runs. Its entries name no tenant."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from memory_layer.errors import MemoryLayerError, NotFound
from memory_layer.model import SYSTEM_TENANT, Caller
from memory_layer.service import principals
from memory_layer.service.actions.log import Record
from memory_layer.service.actions.principals import AdoptPrincipals, Introduce
from memory_layer.service.commit import Change, Outcome
from memory_layer.sql import queries
from memory_layer.telemetry.logs import get_logger

if TYPE_CHECKING:
    from memory_layer.service.installation import Installation

_SQL = queries("principals")
log = get_logger("memory_layer.service")


async def system_caller(installation: Installation, service: str, request_id: str | None = None) -> Caller:
    """Who acts: ``service`` (worker, memoryctl, ...) gets the opaque id under which the log knows it."""
    return await principals.known_caller(installation.postgres, service, request_id)


async def bind_principals(installation: Installation) -> None:
    """Give the installation its own principal, and an entry to each principal from before there were any: at every start.

    What keeps it from that (no signer yet) is logged: writes would fail for the same reason, and the next start does it.
    """
    try:
        caller = await system_caller(installation, principals.MARK)
        ((row,),) = await installation.postgres.fetch(SYSTEM_TENANT, (_SQL["unbound"], {}))
        if row["any"] or caller.draft:
            await installation.committer.submit(Change(caller, AdoptPrincipals() if row["any"] else Introduce()))
    except NotFound:
        pass  # another process was first
    except MemoryLayerError as error:
        log.warning("the principals of this installation have no entry in the log yet", error=error.message)


async def record(installation: Installation, caller: Caller, event_type: str, payload: dict[str, Any]) -> Outcome:
    """Commit an entry that changes no row: ``audit.heartbeat``, ``ops.<verb>.succeeded``, ..."""
    return await installation.committer.submit(Change(caller, Record(event_type, payload)))
