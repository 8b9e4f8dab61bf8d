"""Rounds of the worker, recorded before they write into a vector store that does not order writes.

A worker that finds at the end of a round that a row changed meanwhile repairs what it may have overwritten (the query ``repair``). A
worker that is killed in between cannot. So the rows that it is about to write are recorded in ``index_rounds``, and the other workers
repair them: when its process is gone, for then its last write has been sent; some time after that, for then no request of it is on its
way any more; and when the round is overdue. See docs/decisions/0023-rounds-written-down.md.
"""

from __future__ import annotations

import contextlib
import uuid
from typing import Final

from memory_layer.errors import MemoryLayerError
from memory_layer.service.installation import Installation
from memory_layer.sql import queries
from memory_layer.stores.postgres import ALL_TENANTS, Query

LONGEST: Final = (
    180.0  # seconds from a claim until nothing is sent for it: a round takes 120, a request 30 with its tries
)
GRACE: Final = 60.0  # seconds that what a process had sent may still be on its way after its end

_SQL = queries("indexing")


def note(installation: Installation, lease: uuid.UUID, worker: str | None) -> list[Query]:
    """What to run in the transaction of a claim; nothing where the store orders writes itself.

    ``worker``: the name of a lock that this process holds (``stores/leadership.py``); None: the round is over after a fixed time.
    """
    if installation.vectors.capabilities.orders_writes:
        return []
    return [(_SQL["note_round"], {"lease": lease, "worker": worker}), (_SQL["durably"], {})]


async def close(installation: Installation, lease: uuid.UUID, *, clear: bool) -> None:
    """A round is finished. ``clear``: none of its writes is on its way; else it is checked once more later. Never raises: a record that
    stays is checked in vain, which does no harm."""
    if installation.vectors.capabilities.orders_writes:
        return
    with contextlib.suppress(MemoryLayerError):
        await installation.postgres.run(
            ALL_TENANTS, (_SQL["close_round" if clear else "release_round"], {"lease": lease})
        )


async def repair(installation: Installation) -> int:
    """Make due again what interrupted rounds may have overwritten; how many rows that were. Any number of workers may call it."""
    if installation.vectors.capabilities.orders_writes:
        return 0
    ((row,),) = await installation.postgres.run(
        ALL_TENANTS, (_SQL["repair_rounds"], {"longest": LONGEST, "grace": GRACE})
    )
    return int(row["rows"])
