"""Who acts: each service of a tenant has an opaque id, bound to it by an entry in the transaction that makes its row.

A caller whose service has no row yet carries a *draft* id. The committer makes row and entry before the first entry that names it,
under the log lock, or finds that another process was first and puts that one's id in the caller's place. So no entry names an actor
whom the log does not know, and no door but the committer's makes one (``docs/decisions/0027-principals.md``).
"""

from __future__ import annotations

import datetime as dt
import uuid
from dataclasses import replace
from typing import Any, Final

from memory_layer.errors import MemoryLayerError, NotFound
from memory_layer.model import Caller, Principal, format_time, format_time_or_none, uuid7
from memory_layer.service.changes import Action, AddArtifact, Change, CreateNode, CreateNodes, Effect
from memory_layer.sql import queries
from memory_layer.stores.log_writer import Known
from memory_layer.stores.postgres import Postgres

CREATED: Final = "ops.principal-created.succeeded"
ADOPTED: Final = "ops.principals-adopted.succeeded"
# Its own service: from the entry that makes this principal on, the log knows every other one.
MARK: Final = "installation"

_SQL = queries("nodes")


async def find(postgres: Postgres, tenant: str, service: str) -> tuple[Any, bool]:
    """The id that stands for a service in the log, and whether it is a draft: none is there, and this one is not written yet."""
    (rows,) = await postgres.fetch(tenant, (_SQL["find_principal"], {"tenant": tenant, "service": service}))
    return (rows[0]["id"], False) if rows else (uuid7(), True)


def resolved(change: Change, known: Known) -> Change:
    """The same change, by the id that its service has in the log, where another process gave it one meanwhile."""
    caller = change.caller
    row = known.principals.get((caller.home, caller.service)) if caller.draft else None
    if row is None:
        return change
    return replace(change, caller=replace(caller, actor=row.id, draft=False), action=_made_by(change.action, row.id))


def _made_by(action: Action, actor: uuid.UUID) -> Action:
    """The same action, where it names who does it."""
    match action:
        case AddArtifact():
            return replace(action, artifact=replace(action.artifact, created_by=actor))
        case CreateNode():
            return replace(action, artifacts=[replace(one, created_by=actor) for one in action.artifacts])
        case CreateNodes():
            made = [_made_by(new, actor) if isinstance(new, CreateNode) else new for new in action.nodes]
            return CreateNodes([new for new in made if isinstance(new, (CreateNode, MemoryLayerError))])
    return action


def create(caller: Caller, known: Known, now: dt.datetime) -> Effect:
    """The effect of a service's first act: its row, its tenant's where that is new, and who it is."""
    tenant = caller.home
    principal = Principal(tenant, caller.service, caller.actor, now)
    first = tenant not in known.tenants
    payload = {
        "tenant": tenant,
        "service": caller.service,
        "id": str(caller.actor),
        "createdAt": format_time(now),
        "tenantCreatedAt": format_time(now) if first else None,
    }
    return Effect(CREATED, {}, payload, new_principal=principal, new_tenant=tenant if first else None)


def adopt(known: Known) -> Effect:
    """The effect of taking over the rows from before there were such entries, as they stand. Raises NotFound where there are none."""
    if not known.unbound:
        raise NotFound("Every principal has its entry in the log.")
    payload = {
        "principals": [
            {"tenant": one.tenant, "service": one.service, "id": str(one.id), "createdAt": format_time(one.created_at)}
            for one in known.unbound
        ],
        "tenants": [
            {"tenant": tenant, "createdAt": format_time(created), "disabledAt": format_time_or_none(disabled)}
            for tenant, created, disabled in known.unbound_tenants
        ],
    }
    return Effect(ADOPTED, {}, payload, adopted=[one.id for one in known.unbound])
