"""The handlers of `/v1/admin`; as thin as those of ``handlers.py``."""

from __future__ import annotations

import datetime as dt
import uuid
from dataclasses import replace

from memory_layer.api import decode
from memory_layer.api.calls import Answer, Call, written
from memory_layer.service import api_keys
from memory_layer.service.administration import administered, administers_all, refuse_wider
from memory_layer.service.commit import Outcome


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
    more = len(found) > query.limit
    items = found[: query.limit]
    return Answer(200, {"items": items, "nextCursor": items[-1]["apiKeyId"] if more else None})


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
