"""The handlers of indexing jobs; as thin as those of ``handlers.py``."""

from __future__ import annotations

from typing import Literal

from starlette.responses import Response

from memory_layer.api.handlers import Call
from memory_layer.api.replies import reply
from memory_layer.service import jobs


async def get_job(call: Call) -> Response:
    return reply(200, await jobs.get(call.memory.stores.postgres, call.caller, call.id("id")))


async def cancel_job(call: Call) -> Response:
    return await _settle(call, "cancel")


async def retry_job(call: Call) -> Response:
    return await _settle(call, "retry")


async def _settle(call: Call, verb: Literal["cancel", "retry"]) -> Response:
    memory = call.memory
    answer, outcome = await jobs.settle(
        memory.stores.postgres, memory.committer, call.caller, call.id("id"), verb, call.idempotency
    )
    headers = {} if outcome.receipt is None else {"X-Audit-Seq": str(outcome.receipt.seq)}
    if outcome.replayed:
        headers["Idempotency-Replayed"] = "true"
    return reply(200, answer, headers)
