"""Entries for the vector stores, and what a search finds of them."""

from __future__ import annotations

import uuid
from typing import Any

import numpy as np

from memory_layer.filters import parse
from memory_layer.stores.protocols import IndexHit, VectorEntry, VectorStore

SPACE = "kernel-memory"


def node(number: int) -> uuid.UUID:
    return uuid.UUID(int=number)


def entry(
    tenant: str, number: int, vector: list[float], *, version: int = 1, space: str = SPACE, **fields: Any
) -> VectorEntry:
    values = np.array(vector, np.float32)
    return VectorEntry(tenant, space, node(number), version, values / np.linalg.norm(values), fields)


async def found(
    store: VectorStore, tenant: str, query: list[float], *, limit: int = 10, space: str = SPACE, skip: int = 0,
    where: Any = None,
) -> list[int]:  # fmt: skip
    return [
        hit.node_id.int for hit in await hits(store, tenant, query, limit=limit, space=space, skip=skip, where=where)
    ]


async def hits(
    store: VectorStore, tenant: str, query: list[float], *, limit: int = 10, space: str = SPACE, skip: int = 0,
    where: Any = None,
) -> list[IndexHit]:  # fmt: skip
    return (await store.search(tenant, space, np.array(query, np.float32), limit, parse(where), skip)).hits
