"""A node under its caller's own id, created or replaced by one request."""

from __future__ import annotations

import contextlib
import uuid
from dataclasses import replace
from typing import Final

from memory_layer import aside
from memory_layer.errors import Conflict, NotFound
from memory_layer.model import Caller
from memory_layer.service.actions.nodes import ExpireNode, precompute_evidence
from memory_layer.service.actions.replacing import Lapsed, Moved, PutNode
from memory_layer.service.commit import Change, Idempotency, Outcome
from memory_layer.service.installation import Installation
from memory_layer.sql import queries

TRIES: Final = 16  # where other requests make and delete the node meanwhile

_SQL = queries("nodes")


async def put(
    installation: Installation, caller: Caller, change: PutNode, idempotency: Idempotency | None = None, size: int = 0
) -> Outcome:
    """Commit the node that the request describes, as version 1 of a new one or as the next of the live one that has its id.

    Who has the id is looked up before, and looked up again where that is not so any more under the log lock: two requests at once make
    one node, and the later one replaces what the earlier one made. ``size``: bytes of the request. Raises LegalHold, PreconditionFailed,
    Forbidden, Tampered, DimensionMismatch, and Conflict for another namespace, or where others never leave the id alone.
    """
    for _ in range(TRIES):
        holder = await _holder(installation, caller, change.embedding_id)
        if holder is None and change.new.evidence is None:
            await aside.run(size, precompute_evidence, change.new, caller.tenant)
        try:
            return await installation.committer.submit(
                Change(caller, replace(change, holder=holder), idempotency, size)
            )
        except Moved:
            continue
        except Lapsed:
            # What its time is over for must be gone, with an entry that says so, before its id is given away.
            if holder is not None:
                with contextlib.suppress(NotFound):
                    await installation.committer.submit(Change(caller, ExpireNode(holder)))
    raise Conflict(
        "Other requests keep creating and deleting the node with this embeddingId. Nothing was changed; try again."
    )


async def _holder(installation: Installation, caller: Caller, embedding_id: str) -> uuid.UUID | None:
    about = {"tenant": caller.tenant, "embedding_id": embedding_id}
    (rows,) = await installation.postgres.fetch(caller.tenant, (_SQL["holder_of_embedding_id"], about))
    return rows[0]["id"] if rows else None
