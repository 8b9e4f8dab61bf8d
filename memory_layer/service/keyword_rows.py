"""Keywords without vectors: while the vector store or the embedder is down, new texts are still found by their words.

Rows that wait for the service are leased for a moment, their words go into the text index under that lease (as in the query
``succeed``, so a late run cannot bring old words back), and then they wait as before.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import uuid
from collections.abc import Sequence
from typing import NamedTuple

from memory_layer.errors import MemoryLayerError
from memory_layer.service import index_entries
from memory_layer.service.index_entries import Job
from memory_layer.service.installation import Installation
from memory_layer.sql import queries
from memory_layer.stores.postgres import ALL_TENANTS
from memory_layer.telemetry.logs import get_logger

ROWS = 64  # texts of one statement: their lease is not kept up
LEASE_SECONDS = 30.0
# How long ago a row may have become due and still be new here: it is due from the time of its batch, and seen from its commit.
OVERLAP = dt.timedelta(seconds=10)

_SQL = queries("indexing")
log = get_logger("memory_layer.indexing")


class Position(NamedTuple):
    """How far the queue was read: rows that wait are read once, not at every look."""

    time: dt.datetime
    id: uuid.UUID


START = Position(dt.datetime(1970, 1, 1, tzinfo=dt.UTC), uuid.UUID(int=0))


async def write_keyword_rows(installation: Installation, after: Position) -> tuple[int, Position]:
    """Put the words of some waiting rows into the text index; how many rows, and where to go on from."""
    lease = uuid.uuid4()
    given = {
        "lease": lease,
        "seconds": LEASE_SECONDS,
        "limit": ROWS,
        "after_time": after.time,
        "after_id": after.id,
        "vectors": installation.breakers.vectors.closed,
    }
    now, rows = await installation.postgres.run(ALL_TENANTS, (_SQL["now"], {}), (_SQL["claim_keywords"], given))
    # Once all is seen, a look need not begin before what may yet become visible.
    last = max((Position(row.pop("due"), row["id"]) for row in rows), default=after)
    if len(rows) < ROWS:
        last = max(after, Position(now[0]["now"] - OVERLAP, uuid.UUID(int=0)))
    if rows:
        try:
            jobs = [Job(**row) for row in rows]
            await index_entries.read(installation, jobs)
            await write(installation, lease, jobs)
        except MemoryLayerError as error:
            log.warning("the words of rows wait with their vectors", rows=len(rows), error=error.message)
        finally:
            with contextlib.suppress(MemoryLayerError):  # else the lease runs out
                await installation.postgres.run(ALL_TENANTS, (_SQL["release"], {"lease": lease}))
    return len(rows), last


async def write(installation: Installation, lease: uuid.UUID, jobs: Sequence[Job]) -> None:
    """Put the words of rows that were read, and are held by this lease, into the text index."""
    there = [job for job in jobs if job.node is not None and job.node.deleted_at is None and not job.worded]
    if not there:
        return
    await installation.postgres.run(
        ALL_TENANTS,
        (
            _SQL["write_keywords"],
            {
                "lease": lease,
                **await index_entries.words(there),
                **index_entries.keys(there),
            },
        ),
    )
