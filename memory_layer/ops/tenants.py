"""`memoryctl tenant`: who the installation serves, and whose credentials are refused as a whole."""

from __future__ import annotations

from typing import Any

from memory_layer.ops.operate import Run
from memory_layer.ops.report import Finding
from memory_layer.service import tenants
from memory_layer.service.system import system_caller
from memory_layer.stores.postgres import open_postgres

LOCK = "principals"


async def create(run: Run, tenant: str) -> None:
    """Raises what the use case raises."""
    installation = await run.installation.need("committer")
    caller = await system_caller(installation, "memoryctl", str(run.id))
    run.fact("auditId", (await tenants.create(installation, caller, tenant)).answer["auditId"])
    run.find(Finding("tenant.create", "info", "pass", f"There is a tenant {tenant}."))


async def revoke(run: Run, tenant: str, reason: str, *, revoked: bool) -> None:
    """Refuse a tenant's credentials, or take them again. Raises what the use case raises."""
    installation = await run.installation.need("committer")
    caller = await system_caller(installation, "memoryctl", str(run.id))
    facts = (await tenants.revoke(installation, caller, tenant, reason, revoked=revoked)).answer
    for name in ("revokedAt", "auditId"):
        run.fact(name, facts[name])
    if revoked:
        hint = f"`memoryctl tenant reinstate {tenant}` takes them again."
        said = f"Every process refuses the credentials of tenant {tenant} within 5 s."
        run.find(Finding("tenant.revoke", "info", "pass", said, hint))
    else:
        run.find(Finding("tenant.reinstate", "info", "pass", f"Tenant {tenant} is let in again, within 5 s."))


async def list_tenants(dsn: str, limit: int) -> list[dict[str, Any]]:
    """Tenants as JSON, by name."""
    postgres = await open_postgres(dsn, size=1)
    try:
        return await tenants.list_page(postgres, None, "", limit)
    finally:
        await postgres.close()
