"""Indexing jobs: the rows of ``memory_vectors`` as callers and operators see them; cancel and retry.

Both change what can be found, so both go through the committer, with an entry. The worker finishes rows outside the log, so it may
finish one between the decision and its commit: what had succeeded by then stays so, and the answer is read afterwards.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from memory_layer.errors import NotFound
from memory_layer.model import Caller, format_time, format_time_or_none
from memory_layer.service.actions.jobs import CANCELLED, CancelOrRetryJob
from memory_layer.service.commit import Change, Committer, Idempotency, Outcome
from memory_layer.sql import queries
from memory_layer.stores.postgres import ALL_TENANTS, Postgres
from memory_layer.telemetry.logs import get_logger

STATUSES = ("pending", "in_flight", "succeeded", "failed", "dead", "deleting", "deleted")
UNSETTLED = ("pending", "in_flight", "failed", "dead", "deleting")

_SQL = queries("indexing")

log = get_logger("memory_layer.jobs")


async def get(postgres: Postgres, caller: Caller, job: uuid.UUID) -> dict[str, Any]:
    """A job of the caller's tenant. Raises NotFound."""
    return shape(await _find(postgres, caller.tenant, job))


async def cancel_or_retry(
    postgres: Postgres,
    committer: Committer,
    caller: Caller,
    job: uuid.UUID,
    verb: Literal["cancel", "retry"],
    idempotency: Idempotency | None = None,
) -> tuple[dict[str, Any], Outcome]:
    """Cancel or retry a job of the caller's tenant: the job afterwards, and the entry. Raises NotFound, Conflict.

    Where the job cannot be read once more after the commit, it is shown as the commit left it: the change stands, and an error would
    say otherwise.
    """
    row = await _find(postgres, caller.tenant, job)
    outcome = await committer.submit(Change(caller, CancelOrRetryJob(row["memory_node_id"], job, verb), idempotency))
    try:
        after = await _find(postgres, caller.tenant, job)
    except Exception:
        log.exception("an indexing job was changed, and cannot be read afterwards", job=job)
        after = row | _left(row["status"], verb, caller)
    return shape(after), outcome


def _left(status: str, verb: Literal["cancel", "retry"], caller: Caller) -> dict[str, Any]:
    """What ``cancel_or_retry_jobs`` (commit.sql) wrote into the row of a job that had this status."""
    none = {"lease_until": None, "next_attempt_at": None, "read": None}
    if verb == "cancel":
        error = f"{CANCELLED} {caller.service}, request {caller.request_id}."
        return none | {"status": "failed", "error": error, "error_class": "cancelled"}
    left = "deleting" if status == "deleting" else "pending"
    return none | {"status": left, "error": None, "error_class": None, "attempts": 0}


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which jobs an operator lists; None: all."""

    tenant: str | None
    namespace: str | None
    statuses: tuple[str, ...]
    limit: int


async def list_jobs(postgres: Postgres, wanted: Wanted) -> list[dict[str, Any]]:
    """Jobs of all tenants, those that were touched last first."""
    given = {
        "tenant": wanted.tenant,
        "namespace": wanted.namespace,
        "statuses": list(wanted.statuses),
        "limit": wanted.limit,
    }
    (rows,) = await postgres.fetch(ALL_TENANTS, (_SQL["list_jobs"], given))
    return [{"tenant": row["tenant"], **shape(row)} for row in rows]


async def tenant_of(postgres: Postgres, job: uuid.UUID) -> str:
    """Whose job it is, for an operator. Raises NotFound."""
    (rows,) = await postgres.fetch(ALL_TENANTS, (_SQL["tenant_of_job"], {"id": job}))
    if not rows:
        raise NotFound(f"There is no indexing job {job}.")
    return str(rows[0]["tenant"])


async def _find(postgres: Postgres, tenant: str, job: uuid.UUID) -> dict[str, Any]:
    (rows,) = await postgres.fetch(tenant, (_SQL["get_job"], {"tenant": tenant, "id": job}))
    if not rows:
        raise NotFound(f"There is no indexing job {job}.")
    return dict(rows[0])


def shape(row: Mapping[str, Any]) -> dict[str, Any]:
    """The job as the API shows it. ``nextAttemptAt`` only where there is to be one."""
    waits = row["status"] in ("pending", "deleting")
    return {
        "jobId": str(row["id"]),
        "memoryNodeId": str(row["memory_node_id"]),
        "version": row["version"],
        "namespace": row["namespace"],
        "provider": row["provider"],
        "model": row["embedding_model"],
        "dimension": row["dimension"],
        "status": row["status"],
        "textRead": row["read"],
        "attempts": row["attempts"],
        "error": row["error"],
        "errorClass": row["error_class"],
        "nextAttemptAt": format_time_or_none(row["next_attempt_at"]) if waits else None,
        "leasedUntil": format_time_or_none(row["lease_until"]),
        "createdAt": format_time(row["created_at"]),
        "updatedAt": format_time(row["updated_at"]),
    }
