"""Cancelling and retrying an indexing job, decided under the log lock on the row as it is."""

from __future__ import annotations

from memory_layer.errors import Conflict, NotFound
from memory_layer.model import Caller, VectorStatus
from memory_layer.service.changes import Effect, SettleJob
from memory_layer.stores.log_writer import Known, SettledJob

CANCELLED = "Cancelled by"  # the service and its request follow

_LEAVING = (VectorStatus.DELETING, VectorStatus.DELETED)


def decide_job(action: SettleJob, caller: Caller, known: Known) -> Effect:
    """The effect of a cancel or a retry. Raises NotFound, and Conflict where the job is done, under way or already so."""
    rows = known.vectors.get((caller.tenant, action.node), [])
    row = next((row for row in rows if row.id == action.job), None)
    if row is None:
        raise NotFound(f"There is no indexing job {action.job}.")
    error = f"{CANCELLED} {caller.service}, request {caller.request_id}." if action.verb == "cancel" else None
    if row.status in (VectorStatus.SUCCEEDED, VectorStatus.DELETED):
        raise Conflict(f"Indexing job {row.id} is done ({row.status}); there is nothing to {action.verb}.")
    if row.status == VectorStatus.IN_FLIGHT:
        raise Conflict(f"A worker has indexing job {row.id} in hand. Ask for its status in a few seconds.")
    if error is not None and row.status in _LEAVING:
        raise Conflict(f"Indexing job {row.id} removes a deleted node from the index; that is never cancelled.")
    if error is not None and row.status == VectorStatus.FAILED and (row.error or "").startswith(CANCELLED):
        raise Conflict(f"Indexing job {row.id} is cancelled already.")
    return Effect(
        f"ops.job-{action.verb}.succeeded",
        {},
        {"jobId": str(row.id), "namespace": row.namespace, "was": str(row.status)},
        node=row.memory_node_id,
        version=row.version,
        job=SettledJob(caller.tenant, row.id, row.version, error),
    )
