"""Words of an older version of the analyser, or of another language of their namespace, are written again in the background; until then
they are found as they were."""

from __future__ import annotations

import asyncio
import uuid

from memory_layer.analyser import VERSION
from memory_layer.service.installation import Installation
from memory_layer.service.word_writer import analysed
from memory_layer.sql import queries
from memory_layer.stores.postgres import ALL_TENANTS

PAGE = 100  # texts
MARKED = 1000  # texts that are marked at a time
PAUSE = 0.02  # seconds between two pages: searches and writes go first

_SQL = queries("text_index")


async def renew(installation: Installation) -> int:
    """Write the words of all texts that have older ones; how many."""
    await _mark(installation)
    written, after = 0, ("", uuid.UUID(int=0))
    while True:
        about = {"tenant": after[0], "node": after[1], "limit": PAGE}
        (rows,) = await installation.postgres.fetch(ALL_TENANTS, (_SQL["older"], about))
        if not rows:
            return written
        made = await analysed([(row["content"] or "", row["declared"]) for row in rows])
        facts = {
            "tenants": [row["tenant"] for row in rows],
            "nodes": [row["node_id"] for row in rows],
            "versions": [row["version"] for row in rows],
            "languages": [one.language for one in made],
            "declared": [row["declared"] for row in rows],
            "terms": [one.tsvector for one in made],
            "analyser": VERSION,
        }
        (renewed,) = await installation.postgres.run(ALL_TENANTS, (_SQL["renew"], facts))
        written += len(renewed)
        after = (rows[-1]["tenant"], rows[-1]["node_id"])
        await asyncio.sleep(PAUSE)


async def _mark(installation: Installation) -> None:
    """Mark the words of namespaces whose language was set as older ones. Cut off, it begins anew."""
    (spaces,) = await installation.postgres.fetch(ALL_TENANTS, (_SQL["respoken"], {"limit": PAGE}))
    for space in spaces:
        after: uuid.UUID | None = uuid.UUID(int=0)
        while after is not None:
            page = {"tenant": space["tenant"], "name": space["name"], "after": after, "limit": MARKED}
            ((row,),) = await installation.postgres.run(ALL_TENANTS, (_SQL["age"], page))
            after = row["last"]
            await asyncio.sleep(PAUSE)
        await installation.postgres.run(ALL_TENANTS, (_SQL["applied"], dict(space)))


async def older(installation: Installation) -> dict[tuple[str, str], int]:
    """By tenant and namespace: texts whose words are of an older version."""
    (rows,) = await installation.postgres.fetch(ALL_TENANTS, (_SQL["count_older"], {}))
    return {(row["tenant"], row["namespace"]): row["texts"] for row in rows}
