"""Indexing: one round of the worker. Claim due rows, commit the lease, call out, write the results by compare-and-set.

No transaction is open while an embedder or a vector store is called. Only the run that holds a row's lease may write its result, and
only at the version that it claimed, so a late run changes nothing. A batch that is refused, by Postgres too, is tried again row by
row: one bad text or vector delays only itself. A lease is short, and is extended for as long as its round works.

A service that is down is not asked: while its breaker is open (``stores/breakers.py``) no row is claimed that needs it.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias, runtime_checkable

from memory_layer.errors import DependencyUnavailable, EmbedderUnavailable, MemoryLayerError
from memory_layer.service import index_entries, index_leases, keyword_rows
from memory_layer.service.index_entries import Job
from memory_layer.service.installation import Installation
from memory_layer.sql import queries
from memory_layer.stores.breakers import Breaker
from memory_layer.stores.postgres import ALL_TENANTS
from memory_layer.stores.protocols import Embedder
from memory_layer.telemetry import metrics
from memory_layer.telemetry.logs import get_logger

LANES = (False, True)  # of the queue, by ``VectorRow.bulk``: single writes before what bulk requests wrote
MAX_ROWS = 256  # of one round, however many the store would take: a round is finished as a whole
# Seconds that a round embeds, of the single writes and of bulk loads. What is left is due at once, behind what waits already, so that nobody
# waits for the rest of somebody else's texts.
EMBED_SECONDS = (2.0, 5.0)
QUICK = 0.5  # seconds for one request, after which the next may be larger: a remote embedder takes as long for one text as for many
REMOVALS_AT_ONCE = 4  # namespaces; a store may let each wait for some moment of its own, such as Milvus's time ticks
LEASE_SECONDS = 30.0  # that the rows of a killed worker wait; a living one extends its lease three times in that
ROUND_SECONDS = 120.0
PROBE_SECONDS = 10.0
MAX_ATTEMPTS = 8
MAX_BACKOFF = 300.0  # seconds
TURN = "Its round's time went to other texts; the next round goes on with it."
NO_EMBEDDER = "No embedder is configured (EMBEDDINGS_PROVIDER=none), but these rows wait for one."
WAITING = ("pending", "in_flight", "deleting")

_SQL = queries("indexing")
log = get_logger("memory_layer.indexing")


@dataclass(slots=True)
class LeasedJobs:
    """One lease and what it covers. Nothing is asked of a service after ``deadline`` (event loop time).

    ``clear``: each call of the vector store was answered, so none of this round's writes is on its way.
    """

    installation: Installation
    lease: uuid.UUID
    deadline: float
    jobs: Sequence[Job]
    clear: bool = True


Step: TypeAlias = Callable[[LeasedJobs, Sequence[Job]], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Service:
    """What a step calls: how to ask whether it is there, and the breaker that keeps rows from being claimed while it is not."""

    probe: Step
    breaker: Callable[[Installation], Breaker | None]


@runtime_checkable
class Sweeps(Protocol):
    """A vector store that keeps marks of removals for a while."""

    async def sweep(self) -> None:
        """Forget the removals that no late writer can undo any more."""
        ...


@runtime_checkable
class Maintains(Protocol):
    """A vector store whose indexes need maintenance."""

    async def maintain(self) -> None:
        """Optimise every namespace for which that is due."""
        ...


async def work_once(installation: Installation, limit: int | None = None) -> int:
    """Index up to ``limit`` due rows; how many were claimed."""
    await probe_services(installation)
    this = await begin(installation, limit)
    if this is None:
        return 0
    await finish(this)
    return len(this.jobs)


async def probe_services(installation: Installation) -> None:
    """Ask each service whose breaker is open, and whose pause is over, whether it is back."""

    async def ping() -> None:
        async with asyncio.timeout(PROBE_SECONDS):
            await installation.vectors.ping()

    def embed(embedder: Embedder | None) -> Callable[[], Awaitable[None]]:
        async def ask() -> None:
            if embedder is None:
                raise EmbedderUnavailable(NO_EMBEDDER)
            async with asyncio.timeout(PROBE_SECONDS):
                await embedder.embed(["probe"])

        return ask

    await asyncio.gather(
        installation.breakers.vectors.attempt(ping),
        installation.breakers.embedder.attempt(embed(installation.embedder)),
        installation.breakers.next_embedder.attempt(embed(installation.next_embedder)),
    )


async def begin(
    installation: Installation, limit: int | None = None, worker: str | None = None, lanes: Sequence[bool] = LANES
) -> LeasedJobs | None:
    """Claim due rows, as many as suit the vector store; None when there are none. Whoever gets a round calls ``finish`` at once.

    ``worker``: the lock that this process holds (``index_leases.py``). ``lanes``: which rows, the ones that come first ahead.
    """
    lease = uuid.uuid4()
    size = min(MAX_ROWS, installation.vectors.capabilities.batch) if limit is None else limit
    async with _released_when_cancelled(installation, lease):
        deadline = asyncio.get_running_loop().time() + ROUND_SECONDS
        jobs = await claim(installation, lease, size, worker, lanes)
    return LeasedJobs(installation, lease, deadline, jobs) if jobs else None


async def finish(this: LeasedJobs) -> None:
    """Index the round's rows, or put them back. If it is cancelled it returns the lease, and no row spends an attempt."""
    try:
        async with _released_when_cancelled(this.installation, this.lease):
            heart = asyncio.create_task(_keep_lease(this))
            try:
                jobs = await _each(this, this.jobs, _read, POSTGRES)
                await _remove(this, [job for job in jobs if job.leaves])
                await _index(this, [job for job in jobs if not job.leaves])
            finally:
                heart.cancel()
                await asyncio.wait([heart])
    except Exception:  # it could not write its results, so it could not repair either
        await index_leases.close(this.installation, this.lease, clear=False)
        raise
    await index_leases.close(this.installation, this.lease, clear=this.clear)


async def claim(
    installation: Installation, lease: uuid.UUID, limit: int, worker: str | None = None, lanes: Sequence[bool] = LANES
) -> list[Job]:
    """Lease rows: those whose run is overdue, else those that are due (pending or deleting), of the first of ``lanes`` that has any, and of
    each tenant alike.

    What may have ended a run is taken in ever smaller portions, so that the row that did it parts from its neighbours, and
    is dead after its last attempt. Rows that need a service whose breaker is open are left alone, whatever their state: taking them
    would cost a run that is known to fail.
    """
    vectors = installation.breakers.vectors.closed
    if not vectors and installation.embedder is not None:
        return []  # only a server without an embedder has rows that need no vector store, and looking for them costs
    error = f"Its run ended without a result {MAX_ATTEMPTS} times: something about this row may end the worker."
    _, rows, *_ = await installation.postgres.run(
        ALL_TENANTS,
        (_SQL["mark_dead"], {"most": MAX_ATTEMPTS, "error": error}),
        (
            _SQL["claim"],
            {
                "limit": limit,
                "lease": lease,
                "seconds": LEASE_SECONDS,
                "lanes": list(lanes),
                "vectors": vectors,
                **_embeddable(installation),
            },
        ),
        *index_leases.note(installation, lease, worker),
    )
    return [Job(**row) for row in rows]


def _embeddable(installation: Installation) -> dict[str, Any]:
    """For ``claim``: whether any text can be embedded, and the models that cannot, for their breaker is open."""
    pairs = (
        (installation.embedder, installation.breakers.embedder),
        (installation.next_embedder, installation.breakers.next_embedder),
    )
    down = [embedder for embedder, breaker in pairs if embedder is not None and not breaker.closed]
    return {
        "embedder": bool(installation.embedders) or installation.breakers.embedder.closed,
        "down_models": [embedder.model for embedder in down],
        "down_dimensions": [embedder.dimension for embedder in down],
    }


@contextlib.asynccontextmanager
async def _released_when_cancelled(installation: Installation, lease: uuid.UUID) -> AsyncIterator[None]:
    try:
        yield
    except asyncio.CancelledError:
        with contextlib.suppress(MemoryLayerError, TimeoutError):
            async with asyncio.timeout(PROBE_SECONDS / 2):
                await installation.postgres.run(ALL_TENANTS, (_SQL["release"], {"lease": lease}))
        raise


async def _keep_lease(this: LeasedJobs) -> None:
    loop = asyncio.get_running_loop()
    while True:
        await asyncio.sleep(LEASE_SECONDS / 3)
        if loop.time() > this.deadline:  # a round that hangs in spite of all loses its rows to another
            return
        try:
            await this.installation.postgres.run(
                ALL_TENANTS, (_SQL["extend"], {"lease": this.lease, "seconds": LEASE_SECONDS})
            )
        except MemoryLayerError as error:
            log.warning("a lease was not extended", lease=this.lease, error=error.message)
        except Exception:
            log.exception("a lease was not extended", lease=this.lease)


async def sweep(installation: Installation) -> None:
    """Delete the index's marks of removals that have served their time, of all tenants."""
    if isinstance(installation.vectors, Sweeps):
        await installation.vectors.sweep()


async def maintain(installation: Installation) -> None:
    """Build and check the index's indexes where that is due, of all tenants."""
    if isinstance(installation.vectors, Maintains):
        await installation.vectors.maintain()


async def queue(installation: Installation) -> dict[str, tuple[int, float]]:
    """Status to (rows, age of the oldest in seconds), of rows that are outstanding or were given up."""
    (rows,) = await installation.postgres.fetch(ALL_TENANTS, (_SQL["queue"], {}))
    return {row["status"]: (row["rows"], row["oldest"]) for row in rows}


async def report(installation: Installation) -> None:
    """Bring the gauges of the queue up to date."""
    found = await queue(installation)
    for status in (*WAITING, "failed", "dead"):
        rows, oldest = found.get(status, (0, 0.0))
        metrics.index_rows.labels(status).set(rows)
        metrics.index_oldest.labels(status).set(oldest)
    waiting = [found[status] for status in WAITING if status in found]
    metrics.index_pending.set(sum(rows for rows, _ in waiting))
    metrics.index_lag.set(max((oldest for _, oldest in waiting), default=0.0))


async def backlog(installation: Installation) -> tuple[int, float]:
    """(rows waiting, age of the oldest in seconds)."""
    ((row,),) = await installation.postgres.fetch(ALL_TENANTS, (_SQL["backlog"], {}))
    return row["pending"], row["oldest"]


async def _read(this: LeasedJobs, jobs: Sequence[Job]) -> None:
    await index_entries.read(this.installation, jobs)


async def _remove(this: LeasedJobs, jobs: Sequence[Job]) -> None:
    removed = await _each(this, jobs, _delete, VECTORS)
    await _each(this, removed, _removed, POSTGRES)


async def _index(this: LeasedJobs, jobs: Sequence[Job]) -> None:
    without_vector = [job for job in jobs if job.vector is None and job.model is not None]
    await _write(this, [job for job in jobs if job.vector is not None or job.model is None])
    for model, dimension in {(job.model, job.dimension): None for job in without_vector}:
        # Each model by itself: one that is down, or not here, holds up only its own rows.
        same = [job for job in without_vector if (job.model, job.dimension) == (model, dimension)]
        service = _service_of(this.installation, model, dimension)
        waiting, size = index_entries.in_turns(same), index_entries.EMBED_CHARACTERS[0]
        now = asyncio.get_running_loop().time
        began = now()
        until = began + EMBED_SECONDS[same[0].bulk]
        while waiting and began < until:
            piece = index_entries.next_piece(waiting, size)
            await _write(this, await _each(this, piece, _embed, service))
            began, took = now(), now() - began
            size = index_entries.EMBED_CHARACTERS[took < QUICK]
        if waiting:
            await _put_back(this, list(waiting), DependencyUnavailable(TURN), unspent=True)


async def _write(this: LeasedJobs, jobs: Sequence[Job]) -> None:
    # A text that cannot be read has no vector; the index may hold one of what the node said before.
    unread = [job for job in jobs if job.read == "none"]
    written = await _each(this, [job for job in jobs if job.read != "none"], _upsert, VECTORS)
    await _each(this, written + await _each(this, unread, _delete, VECTORS), _succeed, POSTGRES)


async def _each(this: LeasedJobs, jobs: Sequence[Job], step: Step, needs: Service) -> list[Job]:
    """Take all jobs through a step at once, or one by one when that fails; the ones that came through. The others are put back.

    A probe of the service tells a row that is refused from a service that is down: an outage costs no row its life.
    """
    if not jobs:
        return []
    breaker = needs.breaker(this.installation)
    if breaker is not None and not breaker.closed:  # since these were claimed, another round has found it down
        await _put_back(this, jobs, DependencyUnavailable(breaker.reason), unspent=True)
        return []
    error = await _attempt(this, jobs, step, 0.5 * ROUND_SECONDS)
    if error is None:
        return list(jobs)
    this.clear = this.clear and needs is not VECTORS
    if error.retryable and (down := await _attempt(this, jobs, needs.probe, PROBE_SECONDS)) is not None:
        if breaker is not None:
            breaker.trip(down)
        await _put_back(this, jobs, down, unspent=breaker is not None, outage=True)
        return []
    if len(jobs) == 1:
        await _put_back(this, jobs, error)
        return []
    through: list[Job] = []
    now = asyncio.get_running_loop().time
    for position, job in enumerate(jobs):
        # Time is left to write the results of what came through, else a slow service would never get anywhere.
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


async def _attempt(this: LeasedJobs, jobs: Sequence[Job], step: Step, seconds: float) -> MemoryLayerError | None:
    """None when the step succeeded; never raises."""
    try:
        async with asyncio.timeout_at(min(this.deadline, asyncio.get_running_loop().time() + seconds)):
            await step(this, jobs)
    except TimeoutError:
        return DependencyUnavailable("Indexing took longer than one round of the worker may.")
    except MemoryLayerError as error:
        return error
    except Exception as error:
        # Unforeseen, so perhaps a fault of ours that a new version fixes: tried again, and dead after the last attempt.
        log.exception("indexing failed in an unforeseen way", rows=len(jobs))
        return DependencyUnavailable(
            f"Indexing failed unexpectedly ({type(error).__name__}); the worker's log says more."
        )
    return None


async def _delete(this: LeasedJobs, jobs: Sequence[Job]) -> None:
    by_space: dict[tuple[str, str], list[tuple[uuid.UUID, int]]] = {}
    for job in jobs:
        by_space.setdefault((job.tenant, job.namespace), []).append((job.node_id, job.version))
    some = asyncio.Semaphore(REMOVALS_AT_ONCE)

    async def delete(space: tuple[str, str], nodes: Sequence[tuple[uuid.UUID, int]]) -> None:
        async with some:
            await this.installation.vectors.delete(*space, nodes)

    # All of them end before an error is raised: after it the rows are tried one by one.
    done = await asyncio.gather(*(delete(*one) for one in by_space.items()), return_exceptions=True)
    for error in done:
        if error is not None:
            raise error


async def _removed(this: LeasedJobs, jobs: Sequence[Job]) -> None:
    row = await _commit_results(this, jobs, "removed", {})
    metrics.indexed.labels("deleted").inc(row["rows"])


async def _commit_results(this: LeasedJobs, jobs: Sequence[Job], query: str, facts: dict[str, Any]) -> dict[str, Any]:
    """Write the results of those of these rows that are still this round's; the statement's first row, if it has one."""
    keys = index_entries.keys(jobs)
    statements = [(_SQL[query], {"lease": this.lease, **keys, **facts})]
    if not this.installation.vectors.capabilities.orders_writes:
        statements.append((_SQL["repair"], keys))
    rows, *_ = await this.installation.postgres.run(ALL_TENANTS, *statements)
    if not rows:
        return {}
    metrics.index_late.inc(len(jobs) - rows[0]["rows"])
    return rows[0]


async def _ping(this: LeasedJobs, _jobs: Sequence[Job]) -> None:
    await this.installation.vectors.ping()


async def _ping_postgres(this: LeasedJobs, _jobs: Sequence[Job]) -> None:
    await this.installation.postgres.ping()


async def _try_embedder(this: LeasedJobs, jobs: Sequence[Job]) -> None:
    await _embedder(this.installation, jobs[0]).embed(["probe"])


VECTORS = Service(_ping, lambda installation: installation.breakers.vectors)
EMBEDDER = Service(_try_embedder, lambda installation: installation.breakers.embedder)
NEXT_EMBEDDER = Service(_try_embedder, lambda installation: installation.breakers.next_embedder)
OTHER_EMBEDDER = Service(_try_embedder, lambda _: None)  # which is not here: its rows wait longer each time
POSTGRES = Service(_ping_postgres, lambda _: None)  # without it nothing can be claimed either


def _service_of(installation: Installation, model: str | None, dimension: int | None) -> Service:
    """What makes the vectors of a model. Where there is no embedder at all, that is as if it were down."""
    found = installation.embedder_of(model, dimension)
    if found is None:
        return OTHER_EMBEDDER if installation.embedders else EMBEDDER
    return EMBEDDER if found is installation.embedder else NEXT_EMBEDDER


def _embedder(installation: Installation, job: Job) -> Embedder:
    """The one of the row's model. A worker that has not got it leaves the row to one that has."""
    found = installation.embedder_of(job.model, job.dimension)
    if found is not None:
        return found
    if not installation.embedders:
        raise EmbedderUnavailable(NO_EMBEDDER)
    own = ", ".join(f"{embedder.model} ({embedder.dimension})" for embedder in installation.embedders)
    raise EmbedderUnavailable(
        f"These rows wait for {job.model} ({job.dimension} dimensions); this worker embeds with {own}. Run one with the model of their "
        "namespace, as EMBEDDINGS_* or EMBEDDINGS_NEXT_*."
    )


async def _upsert(this: LeasedJobs, jobs: Sequence[Job]) -> None:
    entries = index_entries.entries(jobs)
    if entries:
        await this.installation.vectors.upsert(entries)


async def _embed(this: LeasedJobs, jobs: Sequence[Job]) -> None:
    embedder = _embedder(this.installation, jobs[0])  # all of one model
    made = await embedder.embed([(job.node.content if job.node else None) or "" for job in jobs])
    for job, vector, read in zip(jobs, made.vectors, made.read, strict=True):
        job.vector, job.embedded, job.read = None if read == "none" else vector, True, read


async def _succeed(this: LeasedJobs, jobs: Sequence[Job]) -> None:
    made = [index_entries.encode(j.vector) if j.embedded and j.vector is not None else None for j in jobs]
    reads = [job.read if job.embedded else None for job in jobs]
    facts = {
        "vectors": made,
        "embedded": [job.embedded for job in jobs],
        "reads": reads,
        **await index_entries.words(jobs),
    }
    row = await _commit_results(this, jobs, "succeed", facts)
    metrics.indexed.labels("succeeded").inc(row["rows"])
    if row["rows"] == len(jobs):  # else it is not known which of them
        for job in jobs:
            if job.node is not None:
                written = max(job.node.updated_at, job.created_at)
                metrics.index_seconds.observe((row["now"] - written).total_seconds())


async def _put_back(
    this: LeasedJobs, jobs: Sequence[Job], error: MemoryLayerError, *, unspent: bool = False, outage: bool = False
) -> None:
    """Release the lease with the error on the row: retried later, or out of the queue for good.

    ``unspent``: due again at once and at no cost, for it is the open breaker that waits. ``outage`` without a breaker: the row
    keeps its last two attempts; the wait between tries grows, and it outlives the outage, even when its worker is killed in the
    midst of it.
    """
    (log.debug if error.message == TURN else log.warning)(
        "vector rows were not indexed", rows=len(jobs), error=error.message
    )
    statuses, waits, spared = [], [], []
    for job in jobs:
        spent = job.attempts >= MAX_ATTEMPTS and not outage and not unspent
        statuses.append("failed" if not error.retryable else "dead" if spent else "pending")
        wait = random.uniform(0.5, 1.0) * min(MAX_BACKOFF, 2.0**job.attempts)  # noqa: S311 (jitter, no secret)
        waits.append(0.0 if unspent else max(wait, error.retry_after or 0.0))
        spare = outage and job.attempts > MAX_ATTEMPTS - 2
        spared.append(1 if unspent else job.attempts - (MAX_ATTEMPTS - 2) if spare else 0)
    # Whatever an error quotes, Postgres can store it.
    text = error.message[:1000].replace("\0", "").encode("utf-8", "replace").decode("utf-8")
    facts = {
        "statuses": statuses,
        "errors": [text] * len(jobs),
        "classes": ["retryable" if error.retryable else "permanent"] * len(jobs),
        "waits": waits,
        "spared": spared,
    }
    if error.message != TURN:  # whatever keeps a text from getting a vector, it is found by its words
        with contextlib.suppress(MemoryLayerError, TimeoutError):
            async with asyncio.timeout(PROBE_SECONDS):
                await keyword_rows.write(this.installation, this.lease, jobs)
    async with asyncio.timeout(PROBE_SECONDS):
        await _commit_results(this, jobs, "put_back", facts)
    for status, outcome in (("pending", "postponed" if unspent else "retried"), ("failed", "failed"), ("dead", "dead")):
        metrics.indexed.labels(outcome).inc(statuses.count(status))
