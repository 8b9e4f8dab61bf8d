"""Cancelling and retrying an indexing job. Pure, decided under the log lock on the row as it is."""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from typing import Final, Literal

from memory_layer.errors import Conflict, NotFound
from memory_layer.model import VectorStatus
from memory_layer.service.commit.action import Action, Effect, Situation, Touched
from memory_layer.stores.batch_reads import Wants
from memory_layer.stores.batch_rows import JobDecision

CANCELLED: Final = "Cancelled by"  # the service and its request follow

_LEAVING: Final = (VectorStatus.DELETING, VectorStatus.DELETED)


@dataclass(frozen=True, slots=True)
class CancelOrRetryJob(Action):
    """Stop or repeat the indexing of a node's version; Conflict when the job is done, under way or already so."""

    node: uuid.UUID
    job: uuid.UUID
    verb: Literal["cancel", "retry"]

    def touches(self, tenant: str) -> list[Touched]:
        return [(tenant, "node", self.node)]

    def reads(self, tenant: str, wants: Wants) -> None:
        wants.nodes.append((tenant, self.node))

    def decide(self, at: Situation) -> Effect:
        rows = at.known.vectors.get((at.tenant, self.node), [])
        row = next((row for row in rows if row.id == self.job), None)
        if row is None:
            raise NotFound(f"There is no indexing job {self.job}.")
        error = f"{CANCELLED} {at.caller.service}, request {at.caller.request_id}." if self.verb == "cancel" else None
        if row.status in (VectorStatus.SUCCEEDED, VectorStatus.DELETED):
            raise Conflict(f"Indexing job {row.id} is done ({row.status}); there is nothing to {self.verb}.")
        if row.status == VectorStatus.IN_FLIGHT:
            raise Conflict(f"A worker has indexing job {row.id} in hand. Ask for its status in a few seconds.")
        if error is not None and row.status in _LEAVING:
            raise Conflict(f"Indexing job {row.id} removes a deleted node from the index; that is never cancelled.")
        if error is not None and row.status == VectorStatus.FAILED and (row.error or "").startswith(CANCELLED):
            raise Conflict(f"Indexing job {row.id} is cancelled already.")
        effect = Effect(
            f"ops.job-{self.verb}.succeeded",
            {},
            {"jobId": str(row.id), "namespace": row.namespace, "was": str(row.status)},
            node=row.memory_node_id,
            version=row.version,
        )
        effect.update(JobDecision(at.tenant, row.id, row.version, error))
        return effect
