"""Indexing: one round of the worker. Claim due rows, commit the lease, call out, settle by compare-and-set.

No transaction is open while an embedder or a vector store is asked. A row settles only for the run that holds its lease and
only at the version it was claimed at, so a late run changes nothing. What refuses a batch, Postgres included, is tried again
row by row: one bad text or vector holds up nobody but itself. A lease is short, and kept up for as long as its round works.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import logging
import random
import re
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from memory_layer.errors import DependencyUnavailable, EmbedderUnavailable, MemoryLayerError
from memory_layer.model import Node
from memory_layer.service.nodes import document
from memory_layer.sql import queries
from memory_layer.stores import Stores
from memory_layer.stores.postgres import ALL_TENANTS
from memory_layer.stores.protocols import Embedder, VectorEntry
from memory_layer.telemetry import metrics

BATCH = 64
LEASE_SECONDS = 30.0  # that the rows of a killed worker wait; a living one extends its lease three times in that
ROUND_SECONDS = 120.0
PROBE_SECONDS = 10.0
MAX_ATTEMPTS = 8
MAX_BACKOFF = 300.0  # seconds
# A tsvector holds less than 1 MiB. Text made for it (hyphenated, no word twice) takes up to 3 bytes of it per byte.
MAX_WORDS = 256 * 1024  # bytes of a text that are indexed by word
# Postgres reads a run of joined words again for each of them, and a text to its end for each "<!--" in it: quadratic, so
# minutes for one text without spaces or of comments.
_LONG_RUN = re.compile(r"(\S{256})(?=\S)")

_SQL = queries("indexing")
log = logging.getLogger("memory_layer.indexing")


@dataclass(slots=True, eq=False)
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
    stored: str | None  # the vector in base64
    vector: NDArray[np.float32] | None = None
    node: Node | None = None
    embedded: bool = False

    @property
    def leaves(self) -> bool:
        """Whether the node is to be removed from the index."""
        return self.status == "deleting" or self.node is None or self.node.deleted_at is not None


@dataclass(frozen=True, slots=True)
class Round:
    """One lease and what it covers. Nothing is asked of a service after ``deadline`` (event loop time)."""

    stores: Stores
    lease: uuid.UUID
    deadline: float
    jobs: Sequence[Job]


Step: TypeAlias = Callable[[Round, Sequence[Job]], Awaitable[None]]


@runtime_checkable
class Sweeps(Protocol):
    """A vector store that keeps marks of removals for a while."""

    async def sweep(self) -> None:
        """Forget the removals that no late writer can undo any more."""
        ...


async def work_once(stores: Stores, limit: int = BATCH) -> int:
    """Settle up to ``limit`` due rows; how many were claimed."""
    this = await begin(stores, limit)
    if this is None:
        return 0
    await finish(this)
    return len(this.jobs)


async def begin(stores: Stores, limit: int = BATCH) -> Round | None:
    """Claim due rows; None when there are none. Whoever gets a round calls ``finish`` at once."""
    lease = uuid.uuid4()
    async with _released_when_cancelled(stores, lease):
        deadline = asyncio.get_running_loop().time() + ROUND_SECONDS
        jobs = await claim(stores, lease, limit)
    return Round(stores, lease, deadline, jobs) if jobs else None


async def finish(this: Round) -> None:
    """Settle the round's rows, or put them back. Cancelled, it returns the lease and no row spends an attempt."""
    async with _released_when_cancelled(this.stores, this.lease):
        heart = asyncio.create_task(_keep_lease(this))
        try:
            jobs = await _each(this, this.jobs, _read, _ping_postgres)
            await _remove(this, [job for job in jobs if job.leaves])
            await _index(this, [job for job in jobs if not job.leaves])
        finally:
            heart.cancel()
            await asyncio.wait([heart])


async def claim(stores: Stores, lease: uuid.UUID, limit: int) -> list[Job]:
    """Lease rows: those whose run is overdue, else those that are due (pending or deleting).

    What may have ended a run is taken in ever smaller portions, so that the row that did it parts from its neighbours, and
    is dead after its last attempt.
    """
    error = f"Its run ended without a result {MAX_ATTEMPTS} times: something about this row may end the worker."
    _, rows = await stores.postgres.run(
        ALL_TENANTS,
        (_SQL["bury"], {"most": MAX_ATTEMPTS, "error": error}),
        (_SQL["claim"], {"limit": limit, "lease": lease, "seconds": LEASE_SECONDS}),
    )
    return [Job(**row) for row in rows]


@contextlib.asynccontextmanager
async def _released_when_cancelled(stores: Stores, lease: uuid.UUID) -> AsyncIterator[None]:
    try:
        yield
    except asyncio.CancelledError:
        with contextlib.suppress(MemoryLayerError, TimeoutError):
            async with asyncio.timeout(PROBE_SECONDS / 2):
                await stores.postgres.run(ALL_TENANTS, (_SQL["release"], {"lease": lease}))
        raise


async def _keep_lease(this: Round) -> None:
    loop = asyncio.get_running_loop()
    while True:
        await asyncio.sleep(LEASE_SECONDS / 3)
        if loop.time() > this.deadline:  # a round that hangs in spite of all loses its rows to another
            return
        try:
            await this.stores.postgres.run(
                ALL_TENANTS, (_SQL["extend"], {"lease": this.lease, "seconds": LEASE_SECONDS})
            )
        except MemoryLayerError as error:
            log.warning("a lease was not extended: %s", error.message)
        except Exception:
            log.exception("a lease was not extended")


async def sweep(stores: Stores) -> None:
    """Delete the index's marks of removals that have served their time, of all tenants."""
    if isinstance(stores.vectors, Sweeps):
        await stores.vectors.sweep()


async def backlog(stores: Stores) -> tuple[int, float]:
    """(rows waiting, age of the oldest in seconds)."""
    ((row,),) = await stores.postgres.fetch(ALL_TENANTS, (_SQL["backlog"], {}))
    return row["pending"], row["oldest"]


async def _read(this: Round, jobs: Sequence[Job]) -> None:
    (rows,) = await this.stores.postgres.fetch(
        ALL_TENANTS,
        (_SQL["claimed_nodes"], {"tenants": [job.tenant for job in jobs], "ids": [job.node_id for job in jobs]}),
    )
    nodes = {(row["tenant"], row["id"]): Node(**row) for row in rows}
    for job in jobs:
        job.node = nodes.get((job.tenant, job.node_id))
        job.vector = None if job.stored is None else np.frombuffer(base64.b64decode(job.stored), "<f4")


async def _remove(this: Round, jobs: Sequence[Job]) -> None:
    removed = await _each(this, jobs, _delete, _ping)
    await _each(this, removed, _removed, _ping_postgres)


async def _index(this: Round, jobs: Sequence[Job]) -> None:
    wordless = [job for job in jobs if job.vector is None and job.model is not None]
    ready = [job for job in jobs if job.vector is not None or job.model is None]
    models = {(job.model, job.dimension): None for job in wordless}
    for space in models:  # each by itself: an embedder that is down, or not here, holds up only its own rows
        same = [job for job in wordless if (job.model, job.dimension) == space]
        ready += await _each(this, same, _embed, _try_embedder)
    ready = await _each(this, ready, _upsert, _ping)
    await _each(this, ready, _succeed, _ping_postgres)


async def _each(this: Round, jobs: Sequence[Job], step: Step, probe: Step) -> list[Job]:
    """Take all jobs through a step at once, or one by one when that fails; the ones that came through. The others are put back.

    ``probe`` tells a row that is refused from a service that is down: an outage costs no row its life.
    """
    if not jobs:
        return []
    error = await _attempt(this, jobs, step, 0.5 * ROUND_SECONDS)
    if error is None:
        return list(jobs)
    if error.retryable and (down := await _attempt(this, jobs, probe, PROBE_SECONDS)) is not None:
        await _put_back(this, jobs, down, outage=True)
        return []
    if len(jobs) == 1:
        await _put_back(this, jobs, error)
        return []
    through: list[Job] = []
    now = asyncio.get_running_loop().time
    for position, job in enumerate(jobs):
        # Time is left for what came through to be settled, else a slow service would never get anywhere.
        left = this.deadline - 0.25 * ROUND_SECONDS - now()
        if left < 0:
            await _put_back(this, jobs[position:], error, outage=True)
            break
        failed = await _attempt(this, [job], step, min(left, 0.125 * ROUND_SECONDS))
        if failed is None:
            through.append(job)
        else:
            await _put_back(this, [job], failed)
    return through


async def _attempt(this: Round, jobs: Sequence[Job], step: Step, seconds: float) -> MemoryLayerError | None:
    """None when the step succeeded; never raises."""
    try:
        async with asyncio.timeout_at(min(this.deadline, asyncio.get_running_loop().time() + seconds)):
            await step(this, jobs)
    except TimeoutError:
        return DependencyUnavailable("Indexing took longer than one round of the worker may.")
    except MemoryLayerError as error:
        return error
    except Exception as error:
        # Unforeseen, so perhaps a fault of ours that a new version mends: tried again, and dead after the last attempt.
        log.exception("indexing %d rows failed", len(jobs))
        return DependencyUnavailable(
            f"Indexing failed unexpectedly ({type(error).__name__}); the worker's log says more."
        )
    return None


async def _delete(this: Round, jobs: Sequence[Job]) -> None:
    by_space: dict[tuple[str, str], list[tuple[uuid.UUID, int]]] = {}
    for job in jobs:
        by_space.setdefault((job.tenant, job.namespace), []).append((job.node_id, job.version))
    for (tenant, namespace), nodes in by_space.items():
        await this.stores.vectors.delete(tenant, namespace, nodes)


async def _removed(this: Round, jobs: Sequence[Job]) -> None:
    ((row,),) = await this.stores.postgres.run(ALL_TENANTS, (_SQL["removed"], {"lease": this.lease, **_keys(jobs)}))
    metrics.indexed.labels("deleted").inc(row["settled"])


async def _ping(this: Round, _jobs: Sequence[Job]) -> None:
    await this.stores.vectors.ping()


async def _ping_postgres(this: Round, _jobs: Sequence[Job]) -> None:
    await this.stores.postgres.ping()


def _embedder(stores: Stores, job: Job) -> Embedder:
    """The one of the row's model. A worker that has not got it leaves the row to one that has."""
    found = stores.embedder_of(job.model, job.dimension)
    if found is not None:
        return found
    if not stores.embedders:
        raise EmbedderUnavailable("No embedder is configured (EMBEDDINGS_PROVIDER=none), but these rows wait for one.")
    own = ", ".join(f"{embedder.model} ({embedder.dimension})" for embedder in stores.embedders)
    raise EmbedderUnavailable(
        f"These rows wait for {job.model} ({job.dimension} dimensions); this worker embeds with {own}. Run one with the model of their "
        "namespace, as EMBEDDINGS_* or EMBEDDINGS_NEXT_*."
    )


async def _try_embedder(this: Round, jobs: Sequence[Job]) -> None:
    await _embedder(this.stores, jobs[0]).embed(["probe"])


async def _upsert(this: Round, jobs: Sequence[Job]) -> None:
    entries = [entry for job in jobs if (entry := _entry(job)) is not None]
    if entries:
        await this.stores.vectors.upsert(entries)


async def _embed(this: Round, jobs: Sequence[Job]) -> None:
    embedder = _embedder(this.stores, jobs[0])  # all of one model
    vectors = await embedder.embed([(job.node.content if job.node else None) or "" for job in jobs])
    for job, vector in zip(jobs, vectors, strict=True):
        job.vector, job.embedded = vector, True


def _entry(job: Job) -> VectorEntry | None:
    if job.vector is None or job.node is None:
        return None
    fields = document(job.node)
    # Long text has no place beside the vector: a filter on it is decided on the row.
    del fields["content"]
    exact = job.vector.astype(np.float64)  # the squares of large and small float32 leave float32
    unit = exact / np.linalg.norm(exact)
    return VectorEntry(job.tenant, job.namespace, job.node_id, job.version, unit.astype(np.float32), fields)


async def _succeed(this: Round, jobs: Sequence[Job]) -> None:
    ((row,),) = await this.stores.postgres.run(
        ALL_TENANTS,
        (
            _SQL["succeed"],
            {
                "lease": this.lease,
                "vectors": [_encode(j.vector) if j.embedded and j.vector is not None else None for j in jobs],
                "namespaces": [j.node.namespace if j.node else j.namespace for j in jobs],
                "contents": [_words(j.node.content) if j.node and j.node.content else None for j in jobs],
                **_keys(jobs),
            },
        ),
    )
    metrics.indexed.labels("succeeded").inc(row["settled"])


async def _put_back(this: Round, jobs: Sequence[Job], error: MemoryLayerError, *, outage: bool = False) -> None:
    """Release the lease with the error on the row: retried later, or out of the queue for good.

    In an outage a row keeps its last two attempts: the wait between tries grows, and the row outlives the outage, even when
    its worker is killed in the midst of it.
    """
    log.warning("%d vector rows were not indexed: %s", len(jobs), error.message)
    statuses, waits, spared = [], [], []
    for job in jobs:
        spare = outage and job.attempts > MAX_ATTEMPTS - 2
        spent = job.attempts >= MAX_ATTEMPTS and not outage
        statuses.append("failed" if not error.retryable else "dead" if spent else "pending")
        wait = random.uniform(0.5, 1.0) * min(MAX_BACKOFF, 2.0**job.attempts)  # noqa: S311 (jitter, no secret)
        waits.append(max(wait, error.retry_after or 0.0))
        spared.append(job.attempts - (MAX_ATTEMPTS - 2) if spare else 0)
    # Whatever an error quotes, Postgres can store it.
    text = error.message[:1000].replace("\0", "").encode("utf-8", "replace").decode("utf-8")
    async with asyncio.timeout(PROBE_SECONDS):
        await this.stores.postgres.run(
            ALL_TENANTS,
            (
                _SQL["put_back"],
                {
                    "lease": this.lease,
                    "statuses": statuses,
                    "errors": [text] * len(jobs),
                    "classes": ["retryable" if error.retryable else "permanent"] * len(jobs),
                    "waits": waits,
                    "spared": spared,
                    **_keys(jobs),
                },
            ),
        )
    metrics.indexed.labels("failed" if not error.retryable else "retried").inc(len(jobs))


def _words(content: str) -> str:
    """What the text index sees of a text: what a tsvector can hold, in pieces that are parsed in linear time."""
    first = content.encode()[:MAX_WORDS].decode("utf-8", "ignore")
    return _LONG_RUN.sub(r"\1 ", first.replace("<!--", "<! --"))


def _encode(vector: NDArray[np.float32]) -> str:
    return base64.b64encode(vector.astype("<f4").tobytes()).decode("ascii")


def _keys(jobs: Sequence[Job]) -> dict[str, Any]:
    return {
        "tenants": [job.tenant for job in jobs],
        "ids": [job.id for job in jobs],
        "versions": [job.version for job in jobs],
    }
