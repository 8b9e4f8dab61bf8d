"""`memoryctl api-key`, `rotate api-keys` and `bootstrap`: credentials of services. A key itself is in no report, for reports are stored."""

from __future__ import annotations

import datetime as dt
import uuid
from collections.abc import Sequence
from typing import Any, NamedTuple

from memory_layer.errors import NotFound
from memory_layer.model import format_time
from memory_layer.ops.operate import Run
from memory_layer.ops.report import Finding
from memory_layer.service import api_keys
from memory_layer.service.system import system_caller
from memory_layer.stores.postgres import open_postgres

LOCK = "api-keys"
MANY = 1000  # keys of one service


class Made(NamedTuple):
    """A key that was made, for whoever runs the command. ``replaces``: the id of the one in whose place it is."""

    id: str
    service: str
    key: str
    replaces: str | None = None


async def create(
    run: Run,
    made: list[Made],
    *,
    tenant: str,
    service: str,
    scopes: Sequence[str],
    name: str | None,
    days: int,
    first: bool = False,
) -> None:
    """Make a key and put it into ``made``; ``days`` 0: it never expires. Raises what the use case raises."""
    installation = await run.installation.need("committer")
    caller = await system_caller(installation, "memoryctl", str(run.id))
    expires = dt.datetime.now(dt.UTC) + dt.timedelta(days=days) if days else None
    outcome, key = await api_keys.create(
        installation, caller, tenant=tenant, service=service, scopes=scopes, name=name, expires_at=expires, first=first
    )
    facts = outcome.answer
    made.append(Made(facts["apiKeyId"], service, str(key)))
    for fact in ("apiKeyId", "hint", "scopes", "expiresAt", "auditId"):
        run.fact(fact, facts[fact])
    said = f"{service} of tenant {tenant} has an API key, which is shown once."
    run.find(
        Finding("api-key.create", "info", "pass", said, "It is sent as X-API-Key; the clients take it as MEMORY_TOKEN.")
    )


async def rotate(
    run: Run, made: list[Made], *, tenant: str, service: str, key_id: uuid.UUID | None, overlap: dt.timedelta
) -> None:
    """A new key in the place of each one of a service that counts, or of this one alone. Raises what the use case raises, and NotFound
    where there is none."""
    installation = await run.installation.need("committer")
    caller = await system_caller(installation, "memoryctl", str(run.id))
    now = format_time(dt.datetime.now(dt.UTC))
    found = await api_keys.list_keys(installation.postgres, tenant, service=service, limit=MANY)
    # One that was replaced already goes by itself.
    due = [
        one
        for one in found
        if one["revokedAt"] is None
        and one["replacedBy"] is None
        and (one["expiresAt"] is None or one["expiresAt"] > now)
        and (key_id is None or one["apiKeyId"] == str(key_id))
    ]
    if not due:
        raise NotFound(f"Service {service} of tenant {tenant} has no such API key that still counts.")
    for one in due:
        old = uuid.UUID(one["apiKeyId"])
        outcome, key = await api_keys.rotate(installation, caller, tenant, old, overlap)
        made.append(Made(outcome.answer["apiKeyId"], service, str(key), one["apiKeyId"]))
        ends = outcome.answer["replaces"]["expiresAt"]
        said = f"The key {old} of {service} counts until {ends}; {outcome.answer['apiKeyId']} is in its place."
        run.find(Finding("api-key.rotate", "info", "pass", said))
    run.fact("rotated", len(due))


async def revoke(run: Run, key_id: uuid.UUID, reason: str) -> None:
    """Refuse a key. Raises what the use case raises."""
    installation = await run.installation.need("committer")
    caller = await system_caller(installation, "memoryctl", str(run.id))
    tenant = await api_keys.tenant_of(installation.postgres, key_id)
    outcome = await api_keys.revoke(installation, caller, tenant, key_id, reason)
    for fact in ("service", "revokedAt", "auditId"):
        run.fact(fact, outcome.answer[fact])
    run.find(Finding("api-key.revoke", "info", "pass", f"Every process refuses the API key {key_id} within 5 s."))


async def list_keys(dsn: str, tenant: str | None, limit: int) -> list[dict[str, Any]]:
    """Keys as JSON, newest first."""
    postgres = await open_postgres(dsn, size=1)
    try:
        return await api_keys.list_keys(postgres, tenant, limit=limit)
    finally:
        await postgres.close()
