"""The handlers of `/v1/admin`; as thin as those of ``handlers.py``."""

from __future__ import annotations

import datetime as dt
import uuid
from dataclasses import replace
from typing import Any

from memory_layer.api import decode
from memory_layer.api.calls import Answer, Call, written
from memory_layer.errors import NotFound
from memory_layer.service import api_keys, principals, tenants
from memory_layer.service.actions.principals import principal_facts
from memory_layer.service.administration import administered, administers_all, refuse_wider, require_operator
from memory_layer.service.commit import Outcome


async def create_tenant(call: Call) -> Answer:
    require_operator(call.installation, call.caller)
    return written(201, await tenants.create(call.installation, call.caller, call.body.tenant, call.idempotency))


async def list_tenants(call: Call) -> Answer:
    own = None if administers_all(call.installation, call.caller) else call.caller.tenant
    query = call.query
    found = await tenants.list_page(call.installation.postgres, own, query.cursor or "", query.limit + 1)
    return _page(found, query.limit, "tenant")


async def revoke_tenant(call: Call) -> Answer:
    return await _end_tenant(call, revoked=True)


async def reinstate_tenant(call: Call) -> Answer:
    return await _end_tenant(call, revoked=False)


async def _end_tenant(call: Call, *, revoked: bool) -> Answer:
    require_operator(call.installation, call.caller)
    tenant, reason = call.path["tenant"], call.body.reason
    outcome = await tenants.revoke(
        call.installation, call.caller, tenant, reason, revoked=revoked, idempotency=call.idempotency
    )
    return written(200, outcome)


async def create_principal(call: Call) -> Answer:
    tenant = administered(call.installation, call.caller, call.body.tenant)
    outcome = await principals.create(call.installation, call.caller, tenant, call.body.service, call.idempotency)
    return written(201, outcome)


async def list_principals(call: Call) -> Answer:
    query = call.query
    tenant = administered(call.installation, call.caller, query.tenant)
    found = await principals.list_page(call.installation.postgres, tenant, query.cursor or "", query.limit + 1)
    return _page([principal_facts(one) for one in found], query.limit, "service")


async def revoke_principal(call: Call) -> Answer:
    return await _end_principal(call, revoked=True)


async def reinstate_principal(call: Call) -> Answer:
    return await _end_principal(call, revoked=False)


async def _end_principal(call: Call, *, revoked: bool) -> Answer:
    who = await principals.principal_of(call.installation.postgres, call.id())
    own = who is not None and who.tenant == call.caller.tenant
    if who is None or not (own or administers_all(call.installation, call.caller)):
        raise NotFound(f"There is no principal {call.id()}.")
    outcome = await principals.revoke(
        call.installation,
        call.caller,
        who.tenant,
        who.service,
        call.body.reason,
        revoked=revoked,
        idempotency=call.idempotency,
    )
    return written(200, outcome)


async def revoke_token(call: Call) -> Answer:
    body = call.body
    tenant = administered(call.installation, call.caller, body.tenant)
    outcome = await principals.revoke_token(
        call.installation, call.caller, tenant, body.jti, body.reason, call.idempotency
    )
    return written(200, outcome)


async def create_api_key(call: Call) -> Answer:
    body = call.body
    tenant = administered(call.installation, call.caller, body.tenant)
    refuse_wider(call.installation, call.caller, body.scopes)
    outcome, key = await api_keys.create(
        call.installation,
        call.caller,
        tenant=tenant,
        service=body.service,
        scopes=body.scopes,
        name=body.name,
        expires_at=decode.timestamp(body.expires_at, "expiresAt"),
        idempotency=call.idempotency,
    )
    return _with_key(outcome, key)


async def list_api_keys(call: Call) -> Answer:
    query = call.query
    tenant = administered(call.installation, call.caller, query.tenant)
    before = None if query.cursor is None else decode.identifier(query.cursor, "query.cursor")
    # One more than is shown tells whether there are more.
    found = await api_keys.list_keys(
        call.installation.postgres, tenant, service=query.service, before=before, limit=query.limit + 1
    )
    return _page(found, query.limit, "apiKeyId")


async def revoke_api_key(call: Call) -> Answer:
    tenant = await _tenant_of_key(call)
    outcome = await api_keys.revoke(
        call.installation, call.caller, tenant, call.id(), call.body.reason, call.idempotency
    )
    return written(200, outcome)


async def rotate_api_key(call: Call) -> Answer:
    tenant = await _tenant_of_key(call)
    overlap = dt.timedelta(seconds=call.body.overlap_seconds)
    outcome, key = await api_keys.rotate(call.installation, call.caller, tenant, call.id(), overlap, call.idempotency)
    return _with_key(outcome, key)


async def _tenant_of_key(call: Call) -> str:
    """Another tenant's key is not there for who may not administer it."""
    key_id: uuid.UUID = call.id()
    if administers_all(call.installation, call.caller):
        return await api_keys.tenant_of(call.installation.postgres, key_id)
    return call.caller.tenant


def _with_key(outcome: Outcome, key: str | None) -> Answer:
    """The key goes out once and is kept nowhere, in no answer under an idempotency key either."""
    answer = written(201, outcome, {"Cache-Control": "no-store"})
    return replace(answer, body={**answer.body, "key": key})


def _page(found: list[dict[str, Any]], limit: int, key: str) -> Answer:
    """``found``: one more than is shown, where there are more."""
    items = found[:limit]
    return Answer(200, {"items": items, "nextCursor": items[-1][key] if len(found) > limit else None})
