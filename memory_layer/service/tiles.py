"""The log's tree as tiles in the database: roots and proofs from a handful of rows, however long the log is.

Full tiles are rows of ``audit_tiles``; what is not full yet comes from the entries (level 0) and from the edge in ``audit_trees``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from memory_layer.audit.tree import HASH_BYTES, TILE_HEIGHT, ReadTile, tile_width
from memory_layer.model import SYSTEM_TENANT
from memory_layer.sql import queries
from memory_layer.stores.postgres import Fetch, Postgres, Query

_SQL = queries("log")


async def load(fetch: Fetch, log: int, size: int, *leaves: int) -> ReadTile:
    """What is read for the root of a tree of ``size`` leaves and for proofs about ``leaves``, fetched by one query.

    It serves a consistency proof from the size n when leaf n - 1 is among them. Where a tile is not there, it gives nothing, and
    ``tree`` raises ValidationError.
    """
    found = await read_tiles(fetch, log, needed(size, *leaves))
    return lambda level, index, width: found.get((level, index), b"")[: width * HASH_BYTES]


def needed(size: int, *leaves: int) -> list[tuple[int, int, int]]:
    """(level, index, width) of each tile on the way from the leaves to the root, and of the right edge: what proofs are made of.

    A sibling on the way up is in the tile of what it is the sibling of, as 256 is a power of two; beside those, the root and
    proofs only need the perfect subtrees that the tree of ``size`` leaves ends with.
    """
    return [
        (level, index, width)
        for level in range(-(-size.bit_length() // TILE_HEIGHT))
        for index in sorted({place >> TILE_HEIGHT * (level + 1) for place in (*leaves, size)})
        if (width := tile_width(level, index, size))
    ]


async def read_tiles(fetch: Fetch, log: int, tiles: Sequence[tuple[int, int, int]]) -> dict[tuple[int, int], bytes]:
    """The first ``width`` hashes of each (level, index, width), where the tree is that large."""
    if not tiles:
        return {}
    levels, indexes, widths = (list(column) for column in zip(*tiles, strict=True))
    rows = await fetch((_SQL["tiles"], {"log": log, "level": levels, "tile": indexes, "width": widths}))
    return {(row["level"], row["tile"]): bytes(row["data"]) for row in rows if row["data"] is not None}


def snapshot(postgres: Postgres) -> Fetch:
    """Reads outside of any transaction, each in a snapshot of its own. The log's tables belong to no tenant."""

    async def fetch(query: Query) -> list[dict[str, Any]]:
        (rows,) = await postgres.fetch(SYSTEM_TENANT, query)
        return rows

    return fetch
