"""The handlers of indexing jobs; as thin as those of ``handlers.py``."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from memory_layer.api.calls import Answer, Call, shown, written
from memory_layer.service import jobs


async def get_job(call: Call) -> Answer:
    return shown(await jobs.get(call.installation.postgres, call.caller, call.id()))


async def cancel_job(call: Call) -> Answer:
    return await _cancel_or_retry(call, "cancel")


async def retry_job(call: Call) -> Answer:
    return await _cancel_or_retry(call, "retry")


async def _cancel_or_retry(call: Call, verb: Literal["cancel", "retry"]) -> Answer:
    installation = call.installation
    job, outcome = await jobs.cancel_or_retry(
        installation.postgres, installation.committer, call.caller, call.id(), verb, call.idempotency
    )
    answer = written(200, outcome)
    return replace(answer, body=job, touched=replace(answer.touched, nodes=(job["memoryNodeId"],)))
