"""`memoryctl principal`: who acts here, and whose credentials are refused."""

from __future__ import annotations

from typing import Any

from memory_layer.model import format_time, format_time_or_none
from memory_layer.ops.operate import Run
from memory_layer.ops.report import Finding
from memory_layer.service import principals
from memory_layer.service.principals import principals_of
from memory_layer.service.principals import revoke as submit
from memory_layer.service.principals import revoke_token as submit_token
from memory_layer.service.system import system_caller
from memory_layer.stores.postgres import open_postgres

LOCK = "principals"


async def revoke(run: Run, tenant: str, service: str, reason: str, *, revoked: bool) -> None:
    """Refuse a service, or let it in again. Raises what the use case raises."""
    installation = await run.installation.need("committer")
    caller = await system_caller(installation, "memoryctl", str(run.id))
    facts = (await submit(installation, caller, tenant, service, reason, revoked=revoked)).answer
    run.fact("id", facts["principalId"])
    for name in ("revokedAt", "auditId"):
        run.fact(name, facts[name])
    who = f"{service} of tenant {tenant}"
    if revoked:
        hint = f"`memoryctl principal reinstate {service} --tenant {tenant}` lets it in again."
        run.find(Finding("principal.revoke", "info", "pass", f"Every process refuses {who} within 5 s.", hint))
    else:
        run.find(Finding("principal.reinstate", "info", "pass", f"{who} is let in again, within 5 s."))


async def create(run: Run, tenant: str, service: str) -> None:
    """Give a service its id. Raises what the use case raises."""
    installation = await run.installation.need("committer")
    caller = await system_caller(installation, "memoryctl", str(run.id))
    facts = (await principals.create(installation, caller, tenant, service)).answer
    run.fact("id", facts["principalId"])
    run.fact("auditId", facts["auditId"])
    run.find(Finding("principal.create", "info", "pass", f"The audit log knows {service} of tenant {tenant}."))


async def revoke_token(run: Run, tenant: str, jti: str, reason: str) -> None:
    """Refuse one token. Raises what the use case raises."""
    installation = await run.installation.need("committer")
    caller = await system_caller(installation, "memoryctl", str(run.id))
    facts = (await submit_token(installation, caller, tenant, jti, reason)).answer
    for name in ("revokedAt", "auditId"):
        run.fact(name, facts[name])
    said = f"Every process refuses the token {jti} of tenant {tenant} within 5 s, for as long as it would have lived."
    run.find(Finding("token.revoke", "info", "pass", said))


async def list_principals(dsn: str, tenant: str | None) -> list[dict[str, Any]]:
    """Those that the log knows, as JSON."""
    postgres = await open_postgres(dsn, size=1)
    try:
        found = await principals_of(postgres, tenant)
    finally:
        await postgres.close()
    return [
        {
            "tenant": one.tenant,
            "service": one.service,
            "id": str(one.id),
            "createdAt": format_time(one.created_at),
            "revokedAt": format_time_or_none(one.revoked_at),
        }
        for one in found
    ]
