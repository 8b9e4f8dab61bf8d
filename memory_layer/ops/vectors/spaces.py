"""Both sides of an index namespace: the rows that say what it must hold, and the store that holds it. All read in pages."""

from __future__ import annotations

import base64
import datetime as dt
import uuid
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from memory_layer.errors import NotFound
from memory_layer.model import Node
from memory_layer.service import index_entries
from memory_layer.service.indexing import work_once
from memory_layer.service.installation import Installation
from memory_layer.sql import queries
from memory_layer.stores.postgres import ALL_TENANTS
from memory_layer.stores.protocols import VectorRecord
from memory_layer.stores.service_role import check_role

LOCK: Final = "vectors"  # of verbs that change an index as a whole, and of the worker's nightly job
PAGE: Final = 1000  # rows without their vectors
VECTORS: Final = 256  # rows with them
NIL: Final = uuid.UUID(int=0)
OUTSTANDING: Final = ("pending", "in_flight", "failed", "dead", "deleting")
STATUSES: Final = ("pending", "in_flight", "succeeded", "failed", "dead", "deleting", "deleted")

SQL = queries("vectors")


@dataclass(frozen=True, slots=True)
class Scope:
    """Which index namespaces; None: all of them."""

    tenant: str | None = None
    namespace: str | None = None

    @property
    def label(self) -> str:
        """For people; "" for all of them."""
        tenant = "" if self.tenant is None else f"of tenant {self.tenant}"
        return " ".join(part for part in (self.namespace or "", tenant) if part)


@dataclass(frozen=True, slots=True)
class Space:
    """An index namespace as its rows describe it. ``oldest``: since when the oldest write waits that is not in the index."""

    tenant: str
    namespace: str
    rows: Mapping[str, int]  # by status
    expected: int  # entries that the index must hold
    model: str | None
    dimension: int | None
    oldest: dt.datetime | None = None
    unread: int = 0  # texts that the model cannot read, so without a vector
    partly: int = 0  # texts so long that only parts of them are in their vector

    @property
    def outstanding(self) -> int:
        return sum(self.rows[status] for status in OUTSTANDING)

    @property
    def scope(self) -> Scope:
        return Scope(self.tenant, self.namespace)


@dataclass(slots=True)
class Portion:
    """Rows that are followed until they are indexed: 20 bytes each, because there may be millions."""

    tenant: str
    namespace: str
    nodes: bytes = b""  # 16 bytes each
    versions: list[int] = field(default_factory=list)

    def ids(self) -> list[uuid.UUID]:
        return [uuid.UUID(bytes=self.nodes[at : at + 16]) for at in range(0, len(self.nodes), 16)]


async def need_index(installation: Installation, *, here: bool = False) -> Installation:
    """Open Postgres and the index. ``here``: also what indexes due rows, in this process instead of a worker."""
    await installation.need("postgres", "vectors")
    if here:
        await check_role(installation.postgres, prod=installation.settings.service_env == "prod")
        await installation.need("log", "keys", "embedder", "next_embedder")
        installation.work = partial(work_once, installation)
    return installation


async def list_spaces(installation: Installation, scope: Scope) -> list[Space]:
    """The index namespaces in scope, by tenant and name, as Postgres knows them; the others: ``unknown_spaces``."""
    where = {"tenant": scope.tenant, "namespace": scope.namespace}
    found, waiting = await installation.postgres.fetch(ALL_TENANTS, (SQL["spaces"], where), (SQL["oldest"], where))
    oldest = {(row["tenant"], row["namespace"]): row["oldest"] for row in waiting}
    return [
        Space(
            row["tenant"],
            row["namespace"],
            {status: row[status] for status in STATUSES},
            row["expected"],
            row["model"],
            row["dimension"],
            oldest.get((row["tenant"], row["namespace"])),
            row["unread"],
            row["partly"],
        )
        for row in found
    ]


async def named_spaces(installation: Installation, scope: Scope) -> list[Space]:
    """As ``list_spaces``. Raises NotFound where a tenant or namespace is named and there is none: all is well with nothing else."""
    found = await list_spaces(installation, scope)
    if not found and scope != Scope():
        raise NotFound(f"There is no index namespace {scope.label}. `memoryctl vectors status` shows those that are.")
    return found


async def indexed_rows(
    installation: Installation, space: Space, *, buckets: Sequence[int] | None = None, vectors: bool = False
) -> AsyncIterator[list[dict[str, Any]]]:
    """Pages of what the index must hold, by node id: ``node_id``, ``version``, and ``stored`` (base64) where ``vectors``."""
    after, limit = NIL, VECTORS if vectors else PAGE
    while True:
        facts: dict[str, Any] = {"tenant": space.tenant, "namespace": space.namespace, "after": after, "limit": limit}
        facts |= {"vectors": vectors, "buckets": None if buckets is None else list(buckets)}
        (rows,) = await installation.postgres.fetch(ALL_TENANTS, (SQL["indexed_rows"], facts))
        if rows:
            yield rows
        if len(rows) < limit:
            return
        after = rows[-1]["node_id"]


async def held(installation: Installation, space: Space, *, vectors: bool = False) -> AsyncIterator[list[VectorRecord]]:
    """Pages of what the index holds."""
    cursor = None
    while True:
        page = await installation.vectors.scan(
            space.tenant, space.namespace, cursor, VECTORS if vectors else PAGE, vectors=vectors
        )
        if page.records:
            yield page.records
        cursor = page.cursor
        if cursor is None:
            return


async def row_states(
    installation: Installation, space: Space, nodes: Sequence[uuid.UUID], *, vectors: bool = False
) -> dict[uuid.UUID, dict[str, Any]]:
    """The rows of these nodes: ``version``, ``status``, ``vectored`` (has a vector), and ``stored`` (base64) where ``vectors``."""
    facts = {"tenant": space.tenant, "namespace": space.namespace, "nodes": list(nodes), "vectors": vectors}
    (rows,) = await installation.postgres.fetch(ALL_TENANTS, (SQL["row_states"], facts))
    return {row["node_id"]: row for row in rows}


async def stale_fields(installation: Installation, space: Space, nodes: Sequence[uuid.UUID]) -> set[uuid.UUID]:
    """Of these nodes, those beside whose vector the index holds other fields than the node has at that version."""
    facts = {"tenant": space.tenant, "namespace": space.namespace, "nodes": list(nodes)}
    (rows,) = await installation.postgres.fetch(ALL_TENANTS, (SQL["indexed_nodes"], facts))
    entries = [index_entries.bare_entry(space.tenant, space.namespace, Node(**row)) for row in rows]
    return set(await installation.vectors.stale_fields(space.tenant, space.namespace, entries)) if entries else set()


async def unknown_spaces(installation: Installation) -> list[str]:
    """Namespaces of the index that Postgres knows nothing of, by their names there. Asked twice, for one may be new: its rows are
    committed before the index gets them."""
    names: list[str] = []
    for _ in range(2):
        known = [(space.tenant, space.namespace) for space in await list_spaces(installation, Scope())]
        found = await installation.vectors.unknown_namespaces(known)
        if not found:
            return []
        names = [name for name in found if not names or name in names]
    return names


async def send_again(installation: Installation, space: Space, rows: Sequence[tuple[uuid.UUID, int]]) -> Portion:
    """Put rows that are indexed at these versions back into the outbox; which ones those were."""
    facts: dict[str, Any] = {
        "tenant": space.tenant,
        "namespace": space.namespace,
        "provider": installation.vectors.provider,
    }
    facts |= {"nodes": [node for node, _ in rows], "versions": [version for _, version in rows]}
    (sent,) = await installation.postgres.run(ALL_TENANTS, (SQL["send_again"], facts))
    return portion(space, [(row["node_id"], row["version"]) for row in sent])


def portion(space: Space, rows: Sequence[tuple[uuid.UUID, int]]) -> Portion:
    nodes = b"".join(node.bytes for node, _ in rows)
    return Portion(space.tenant, space.namespace, nodes, [version for _, version in rows])


def decode(stored: str) -> NDArray[np.float32]:
    """The canonical vector, shape (dimension,)."""
    return np.frombuffer(base64.b64decode(stored), "<f4").astype(np.float32, copy=False)


def cosine(one: NDArray[np.float32], other: NDArray[np.float32]) -> float:
    """-1..1; -1 also where they cannot be compared: another dimension, no direction."""
    if one.shape != other.shape:
        return -1.0
    left, right = one.astype(np.float64), other.astype(np.float64)
    lengths = float(np.linalg.norm(left) * np.linalg.norm(right))
    return float(left @ right) / lengths if np.isfinite(lengths) and lengths > 0 else -1.0
