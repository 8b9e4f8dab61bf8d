"""Brute force in memory: the oracle that every other adapter is compared with."""

from __future__ import annotations

import uuid
from collections.abc import Collection, Sequence

import numpy as np
from numpy.typing import NDArray

from memory_layer.errors import DimensionMismatch
from memory_layer.filters import Filter, evaluate
from memory_layer.stores.protocols import Capabilities, IndexHit, VectorEntry, VectorHits, VectorPage, VectorRecord
from memory_layer.stores.vectors.entries import joint_name, refuse_invalid, split_name


class ExactVectors:
    """Keeps every entry in a dict and scans it."""

    provider = "exact"
    capabilities = Capabilities(
        mixed_dimensions=True, most_dimensions=2**31, deepest=None, batch=1000, replicas=False, orders_writes=True
    )

    def __init__(self) -> None:
        self._spaces: dict[tuple[str, str], dict[uuid.UUID, VectorEntry]] = {}
        self._removed: dict[tuple[str, str, uuid.UUID], int] = {}

    async def upsert(self, entries: Sequence[VectorEntry]) -> None:
        refuse_invalid(entries)
        for entry in entries:
            space = self._spaces.setdefault((entry.tenant, entry.namespace), {})
            old = space.get(entry.node_id)
            newest = max(
                old.version if old else 0, self._removed.get((entry.tenant, entry.namespace, entry.node_id), -1) + 1
            )
            if entry.version >= newest:
                space[entry.node_id] = entry

    async def delete(self, tenant: str, namespace: str, nodes: Sequence[tuple[uuid.UUID, int]]) -> None:
        space = self._spaces.setdefault((tenant, namespace), {})
        for node_id, version in nodes:
            old = space.get(node_id)
            if old is None or old.version <= version:
                space.pop(node_id, None)
                key = (tenant, namespace, node_id)
                self._removed[key] = max(version, self._removed.get(key, 0))

    async def search(
        self, tenant: str, namespace: str, vector: NDArray[np.float32], limit: int, where: Filter | None, skip: int = 0
    ) -> VectorHits:
        space = self._spaces.get((tenant, namespace), {})
        entries = [e for e in space.values() if where is None or evaluate(where, e.fields)]
        if not entries:
            return VectorHits([], exact=True)
        matrix = np.stack([e.vector for e in entries])
        if matrix.shape[1] != vector.shape[0]:
            raise DimensionMismatch(
                f"Namespace {namespace} holds {matrix.shape[1]} dimensions, the query {vector.shape[0]}."
            )
        scores = matrix @ vector / (np.linalg.norm(matrix, axis=1) * np.linalg.norm(vector))
        order = sorted(range(len(entries)), key=lambda i: (-float(scores[i]), entries[i].node_id))
        page = [IndexHit(entries[i].node_id, entries[i].version, float(scores[i])) for i in order[skip : skip + limit]]
        return VectorHits(page, exact=True)

    async def fetch(self, tenant: str, namespace: str, nodes: Sequence[uuid.UUID]) -> list[VectorRecord]:
        space = self._spaces.get((tenant, namespace), {})
        return [VectorRecord(n, space[n].version, space[n].vector) for n in dict.fromkeys(nodes) if n in space]

    async def count(self, tenant: str, namespace: str) -> int:
        return len(self._spaces.get((tenant, namespace), {}))

    async def scan(
        self, tenant: str, namespace: str, cursor: str | None = None, limit: int = 1000, *, vectors: bool = False
    ) -> VectorPage:
        after = -1 if cursor is None else uuid.UUID(cursor).int
        space = self._spaces.get((tenant, namespace), {})
        rest = sorted((e for e in space.values() if e.node_id.int > after), key=lambda e: e.node_id)
        page = rest[:limit]
        records = [VectorRecord(e.node_id, e.version, e.vector if vectors else None) for e in page]
        return VectorPage(records, str(page[-1].node_id) if len(rest) > len(page) else None)

    async def stale_fields(self, tenant: str, namespace: str, entries: Sequence[VectorEntry]) -> list[uuid.UUID]:
        space = self._spaces.get((tenant, namespace), {})
        held = [(entry, space[entry.node_id]) for entry in entries if entry.node_id in space]
        return [new.node_id for new, old in held if new.version == old.version and new.fields != old.fields]

    async def unknown_namespaces(self, known: Collection[tuple[str, str]]) -> list[str]:
        there = {names for names, space in self._spaces.items() if space} - set(known)
        return [joint_name(*names) for names in sorted(there)]

    async def drop_unknown(self, name: str) -> None:
        if (names := split_name(name)) is not None:
            await self.drop(*names)

    async def drop(self, tenant: str, namespace: str) -> None:
        self._spaces.pop((tenant, namespace), None)
        self._removed = {key: version for key, version in self._removed.items() if key[:2] != (tenant, namespace)}

    async def optimise(self, _tenant: str, _namespace: str, /) -> None:
        return None

    async def warm(self, _tenant: str, _namespace: str, /) -> None:
        return None

    async def ping(self) -> None:
        return None

    async def close(self) -> None:
        return None
