"""Indexing jobs for an operator, who sees those of every tenant: list, show, cancel and retry."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

from memory_layer.errors import Conflict, MemoryLayerError, NotFound
from memory_layer.ops.operate import Run
from memory_layer.ops.report import Finding
from memory_layer.service import jobs
from memory_layer.service.principals import known_caller
from memory_layer.stores.postgres import open_postgres


async def listed(dsn: str, wanted: jobs.Wanted) -> list[dict[str, Any]]:
    """Jobs, those that were touched last first."""
    postgres = await open_postgres(dsn, size=1)
    try:
        return await jobs.list_jobs(postgres, wanted)
    finally:
        await postgres.close()


async def shown(dsn: str, job: uuid.UUID) -> dict[str, Any]:
    """One job. Raises NotFound."""
    postgres = await open_postgres(dsn, size=1)
    try:
        tenant = await jobs.tenant_of(postgres, job)
        return {"tenant": tenant, **await jobs.get(postgres, await _caller(postgres, tenant), job)}
    finally:
        await postgres.close()


async def retry_or_cancel(run: Run, verb: Literal["cancel", "retry"], which: Sequence[uuid.UUID]) -> None:
    """Cancel or retry each; a finding for each that could not be. Each has an entry of its tenant's, beside that of the run."""
    installation, done = (
        await run.installation.need("notifier", "committer"),
        [],
    )  # so that a retried job wakes a worker
    postgres, committer = installation.postgres, installation.committer
    for job in which:
        try:
            tenant = await jobs.tenant_of(postgres, job)
            caller = await _caller(postgres, tenant, str(run.id))
            await jobs.cancel_or_retry(postgres, committer, caller, job, verb)
            done.append(str(job))
        except (NotFound, Conflict) as error:
            run.find(_refused(verb, job, error))
    run.fact("jobs", done)
    if done:
        are = {"cancel": "cancelled", "retry": "due now"}[verb]
        run.find(Finding(f"jobs.{verb}", "info", "pass", f"{len(done)} of {len(which)} jobs are {are}."))


def _refused(verb: str, job: uuid.UUID, error: MemoryLayerError) -> Finding:
    return Finding(
        f"jobs.{verb}", "error", "fail", error.message, f"`memoryctl jobs show {job}` tells where it stands."
    )


async def _caller(postgres: Any, tenant: str, request_id: str | None = None) -> Any:
    return replace(await known_caller(postgres, "memoryctl", request_id), tenant=tenant)
