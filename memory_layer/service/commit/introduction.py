"""The entry that introduces a caller: before the first entry that names it, in the same transaction (``docs/decisions/0027-principals.md``)."""

from __future__ import annotations

import datetime as dt
from typing import Final

from memory_layer.model import Caller, Principal, format_time, uuid7
from memory_layer.service.commit.action import Effect
from memory_layer.stores.batch_reads import Known
from memory_layer.stores.batch_rows import Tenant

CREATED: Final = "ops.principal-created.succeeded"


def introduction(caller: Caller, known: Known, now: dt.datetime) -> Effect:
    """The effect of a service's first act: its row, its tenant's where that is new, and who it is."""
    tenant, first = caller.home, caller.home not in known.tenants
    payload = {
        "tenant": tenant,
        "service": caller.service,
        "id": str(caller.actor),
        "createdAt": format_time(now),
        "tenantCreatedAt": format_time(now) if first else None,
    }
    effect = Effect(CREATED, {}, payload, entry_id=uuid7())
    if first:
        effect.insert(Tenant(tenant))
    effect.insert(Principal(tenant, caller.service, caller.actor, now, effect.entry_id))
    return effect
