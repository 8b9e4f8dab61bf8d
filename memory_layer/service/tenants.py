"""Tenants: made, listed, refused as a whole. One is also made by the first write of a service of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from memory_layer.errors import Conflict
from memory_layer.model import Caller, format_time, format_time_or_none
from memory_layer.service.actions.tenants import CreateTenant, RevokeTenant
from memory_layer.service.commit import Change, Idempotency, Outcome
from memory_layer.service.principals import refuse_misfits
from memory_layer.sql import queries
from memory_layer.stores.postgres import Postgres

if TYPE_CHECKING:
    from memory_layer.service.installation import Installation

_SQL = queries("principals")


async def create(
    installation: Installation, caller: Caller, tenant: str, idempotency: Idempotency | None = None
) -> Outcome:
    """Raises Conflict for a tenant that is there, ValidationError, and what a write raises."""
    refuse_misfits(tenant=tenant)
    return await installation.committer.submit(Change(caller, CreateTenant(tenant), idempotency))


async def revoke(
    installation: Installation,
    caller: Caller,
    tenant: str,
    reason: str,
    *,
    revoked: bool = True,
    idempotency: Idempotency | None = None,
) -> Outcome:
    """Refuse every credential of a tenant (403), in each process within five seconds; with ``revoked`` False take them again. What it wrote
    stays. Raises Conflict where it stands so already and for ADMIN_TENANT, NotFound, ValidationError, and what a write raises."""
    refuse_misfits(tenant=tenant, reason=reason)
    if revoked and tenant == installation.settings.admin_tenant:
        raise Conflict(
            f"{tenant} is the ADMIN_TENANT: revoked, it could not be reinstated by its admins. Name another one first."
        )
    return await installation.committer.submit(
        Change(caller, RevokeTenant(tenant, reason.strip(), revoked), idempotency)
    )


async def list_page(postgres: Postgres, tenant: str | None, after: str, limit: int) -> list[dict[str, Any]]:
    """Tenants behind this name, by name; or this one alone."""
    (rows,) = await postgres.fetch("", (_SQL["list_tenants"], {"tenant": tenant, "after": after, "limit": limit}))
    return [
        {
            "tenant": row["tenant"],
            "createdAt": format_time(row["created_at"]),
            "revokedAt": format_time_or_none(row["disabled_at"]),
        }
        for row in rows
    ]
