"""Vectors from before texts were read whole (docs/decisions/0045) are made anew in the background; until then texts are found by them as
they were. Of the local model alone: of another one it is not known how much it reads."""

from __future__ import annotations

import asyncio
import uuid

from memory_layer.service.installation import Installation
from memory_layer.sql import queries
from memory_layer.stores.postgres import ALL_TENANTS

MODEL = "all-MiniLM-L6-v2"  # as in the SQL and its index; no other one is as old
PAGE = 200  # texts that wait in the queue for it at a time
LOOK_EVERY = 0.5  # seconds
STALLED = 60.0  # seconds without a new vector after which the next run goes on with it

_SQL = queries("indexing")


async def renew(installation: Installation) -> int:
    """Make the vectors anew of all texts that may not be read whole by them; how many. The others are marked as read whole."""
    made, after = 0, ("", uuid.UUID(int=0))
    while _embeds(installation):
        about = {"tenant": after[0], "id": after[1], "limit": PAGE}
        (rows,) = await installation.postgres.run(ALL_TENANTS, (_SQL["renew_vectors"], about))
        if not rows:
            break
        after = (rows[-1]["tenant"], rows[-1]["id"])
        sent = [row for row in rows if row["again"]]
        made += len(sent)
        facts = {"tenants": [row["tenant"] for row in sent], "ids": [row["id"] for row in sent]}
        if sent and not await _settled(installation, facts):
            break
    return made


async def earlier(installation: Installation) -> dict[tuple[str, str], int]:
    """By tenant and index namespace: vectors that are yet to be looked at."""
    if not _embeds(installation):
        return {}
    (rows,) = await installation.postgres.fetch(ALL_TENANTS, (_SQL["count_earlier"], {}))
    return {(row["tenant"], row["namespace"]): row["vectors"] for row in rows}


def _embeds(installation: Installation) -> bool:
    """Whether a worker with these settings makes such vectors: what is sent again waits for one that does."""
    settings = installation.settings
    return ("local", MODEL) in (
        (settings.embeddings_provider, settings.embeddings_model),
        (settings.embeddings_next_provider, settings.embeddings_next_model),
    )


async def _settled(installation: Installation, facts: dict[str, list[object]]) -> bool:
    """Wait for the worker; False where it stands still."""
    now = asyncio.get_running_loop().time
    least, since = len(facts["ids"]), now()
    while least:
        ((row,),) = await installation.postgres.fetch(ALL_TENANTS, (_SQL["unsettled"], facts))
        if row["rows"] < least:
            least, since = row["rows"], now()
        elif now() - since > STALLED:
            return False
        await asyncio.sleep(LOOK_EVERY)
    return True
