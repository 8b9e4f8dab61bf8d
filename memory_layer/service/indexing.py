"""Indexing: one round of the worker. Claim due rows, commit the lease, call out, settle by compare-and-set.

No transaction is open while an embedder or a vector store is asked. A row settles only for the run that holds its lease and
only at the version it was claimed at, so a late run changes nothing.
"""

from __future__ import annotations

import base64
import logging
import random
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from memory_layer.errors import DimensionMismatch, EmbedderUnavailable, MemoryLayerError
from memory_layer.model import Node
from memory_layer.service.nodes import document
from memory_layer.sql import queries
from memory_layer.stores import Stores
from memory_layer.stores.postgres import ALL_TENANTS
from memory_layer.stores.protocols import VectorEntry
from memory_layer.telemetry import metrics

BATCH = 64
LEASE_SECONDS = 120
MAX_ATTEMPTS = 8
MAX_BACKOFF = 300.0  # seconds

_SQL = queries("indexing")
log = logging.getLogger("memory_layer.indexing")


@dataclass(slots=True)
class Job:
    """A claimed row with the node it belongs to."""

    tenant: str
    id: uuid.UUID
    node_id: uuid.UUID
    namespace: str
    model: str | None
    dimension: int | None
    status: str
    version: int
    attempts: int
    vector: NDArray[np.float32] | None
    node: Node | None
    embedded: bool = False


async def work_once(stores: Stores, limit: int = BATCH) -> int:
    """Settle up to ``limit`` due rows; how many were claimed."""
    lease = uuid.uuid4()
    jobs = await claim(stores, lease, limit)
    if not jobs:
        return 0
    gone = [job for job in jobs if job.status == "deleting" or job.node is None or job.node.deleted_at is not None]
    live = [job for job in jobs if job not in gone]
    await _remove(stores, lease, gone)
    await _index(stores, lease, live)
    return len(jobs)


async def claim(stores: Stores, lease: uuid.UUID, limit: int) -> list[Job]:
    """Lease due rows (pending, deleting, or leased by a run that is overdue) and read their nodes."""
    (rows,) = await stores.postgres.run(
        ALL_TENANTS, (_SQL["claim"], {"limit": limit, "lease": lease, "seconds": LEASE_SECONDS})
    )
    if not rows:
        return []
    (nodes,) = await stores.postgres.fetch(
        ALL_TENANTS,
        (_SQL["claimed_nodes"], {"tenants": [r["tenant"] for r in rows], "ids": [r["memory_node_id"] for r in rows]}),
    )
    by_id = {(n["tenant"], n["id"]): Node(**n) for n in nodes}
    return [
        Job(
            tenant=row["tenant"],
            id=row["id"],
            node_id=row["memory_node_id"],
            namespace=row["namespace"],
            model=row["model"],
            dimension=row["dimension"],
            status=row["status"],
            version=row["version"],
            attempts=row["attempts"],
            vector=None if row["vector"] is None else np.frombuffer(base64.b64decode(row["vector"]), "<f4"),
            node=by_id.get((row["tenant"], row["memory_node_id"])),
        )
        for row in rows
    ]


async def backlog(stores: Stores) -> tuple[int, float]:
    """(rows waiting, age of the oldest in seconds)."""
    ((row,),) = await stores.postgres.fetch(ALL_TENANTS, (_SQL["backlog"], {}))
    return row["pending"], row["oldest"]


async def _remove(stores: Stores, lease: uuid.UUID, jobs: Sequence[Job]) -> None:
    by_space: dict[tuple[str, str], list[Job]] = {}
    for job in jobs:
        by_space.setdefault((job.tenant, job.namespace), []).append(job)
    for (tenant, namespace), group in by_space.items():
        try:
            await stores.vectors.delete(tenant, namespace, [(job.node_id, job.version) for job in group])
        except MemoryLayerError as error:
            await _put_back(stores, lease, group, error)
            continue
        await stores.postgres.run(ALL_TENANTS, (_SQL["removed"], {"lease": lease, **_keys(group)}))
        metrics.indexed.labels("deleted").inc(len(group))


async def _index(stores: Stores, lease: uuid.UUID, jobs: Sequence[Job]) -> None:
    ready: list[Job] = []
    to_embed = [job for job in jobs if job.vector is None and job.model is not None]
    ready += [job for job in jobs if job not in to_embed]
    if to_embed:
        try:
            await _embed(stores, to_embed)
            ready += to_embed
        except MemoryLayerError as error:
            await _put_back(stores, lease, to_embed, error)
    entries = [entry for job in ready if (entry := _entry(job)) is not None]
    if entries:
        try:
            await stores.vectors.upsert(entries)
        except MemoryLayerError as error:
            await _put_back(stores, lease, ready, error)
            return
    if ready:
        await _succeed(stores, lease, ready)


async def _embed(stores: Stores, jobs: Sequence[Job]) -> None:
    embedder = stores.embedder
    if embedder is None:
        raise EmbedderUnavailable("No embedder is configured (EMBEDDINGS_PROVIDER=none), but these rows wait for one.")
    for job in jobs:
        if (job.model, job.dimension) != (embedder.model, embedder.dimension):
            raise DimensionMismatch(
                f"Row {job.id} waits for {job.model} ({job.dimension} dimensions); this worker embeds with {embedder.model} "
                f"({embedder.dimension}). Run it with the model of its namespace."
            )
    vectors = await embedder.embed([(job.node.content if job.node else None) or "" for job in jobs])
    for job, vector in zip(jobs, vectors, strict=True):
        job.vector, job.embedded = vector, True


def _entry(job: Job) -> VectorEntry | None:
    if job.vector is None or job.node is None:
        return None
    fields = document(job.node)
    # Long text has no place beside the vector: a filter on it is decided on the row.
    del fields["content"]
    unit = job.vector / np.linalg.norm(job.vector)
    return VectorEntry(job.tenant, job.namespace, job.node_id, job.version, unit.astype(np.float32), fields)


async def _succeed(stores: Stores, lease: uuid.UUID, jobs: Sequence[Job]) -> None:
    ((row,),) = await stores.postgres.run(
        ALL_TENANTS,
        (
            _SQL["succeed"],
            {
                "lease": lease,
                "vectors": [_encode(j.vector) if j.embedded and j.vector is not None else None for j in jobs],
                "namespaces": [j.namespace for j in jobs],
                "contents": [(j.node.content if j.node else None) or None for j in jobs],
                **_keys(jobs),
            },
        ),
    )
    metrics.indexed.labels("succeeded").inc(row["settled"])


async def _put_back(stores: Stores, lease: uuid.UUID, jobs: Sequence[Job], error: MemoryLayerError) -> None:
    """Release the lease with the error on the row: retried later, or out of the queue for good."""
    log.warning("%d vector rows were not indexed: %s", len(jobs), error.message)
    statuses, waits = [], []
    for job in jobs:
        spent = job.attempts >= MAX_ATTEMPTS
        statuses.append("failed" if not error.retryable else "dead" if spent else "pending")
        waits.append(random.uniform(0.5, 1.0) * min(MAX_BACKOFF, 2.0**job.attempts))  # noqa: S311 (jitter, no secret)
    await stores.postgres.run(
        ALL_TENANTS,
        (
            _SQL["put_back"],
            {
                "lease": lease,
                "statuses": statuses,
                "errors": [error.message[:1000]] * len(jobs),
                "classes": ["retryable" if error.retryable else "permanent"] * len(jobs),
                "waits": waits,
                "spared": [0] * len(jobs),
                **_keys(jobs),
            },
        ),
    )
    metrics.indexed.labels("failed" if not error.retryable else "retried").inc(len(jobs))


def _encode(vector: NDArray[np.float32]) -> str:
    return base64.b64encode(vector.astype("<f4").tobytes()).decode("ascii")


def _keys(jobs: Sequence[Job]) -> dict[str, Any]:
    return {
        "tenants": [job.tenant for job in jobs],
        "ids": [job.id for job in jobs],
        "versions": [job.version for job in jobs],
    }
