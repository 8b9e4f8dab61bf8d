"""Warm-up: after a start or a restore, what the first search would otherwise load.

The largest namespaces first, up to a number and a time; a store that is down is left alone, for search says so itself.
"""

from __future__ import annotations

import asyncio

from memory_layer.errors import MemoryLayerError
from memory_layer.service.installation import Installation
from memory_layer.sql import queries
from memory_layer.stores.postgres import ALL_TENANTS
from memory_layer.telemetry.logs import get_logger

SPACES = 64  # that are loaded at the most
PAGES = 1000  # of the table of vectors, that are looked at to tell which are the largest
SECONDS = 30.0  # after which it is over, and /readyz does not wait any longer

_SQL = queries("indexing")
log = get_logger("memory_layer.warming")


async def warm(installation: Installation) -> int:
    """Load the namespaces that are most likely searched; how many. Never raises."""
    loaded = 0
    try:
        async with asyncio.timeout(SECONDS):
            (spaces,) = await installation.postgres.fetch(
                ALL_TENANTS, (_SQL["spaces"], {"limit": SPACES, "pages": PAGES})
            )
            if spaces:
                await installation.vectors.ping()
            for space in spaces:
                await installation.vectors.warm(space["tenant"], space["index_namespace"])
                loaded += 1
    except MemoryLayerError as error:
        log.warning("the warm-up ended early", namespaces=loaded, error=error.message)
    except TimeoutError:
        log.warning("the warm-up ended early: its time is over", namespaces=loaded, seconds=SECONDS)
    except Exception:
        log.exception("the warm-up ended early in an unforeseen way", namespaces=loaded)
    return loaded
