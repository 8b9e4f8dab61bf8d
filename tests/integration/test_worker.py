"""Indexing: from the outbox into the index and out of it, with everything that can go wrong on the way."""

from __future__ import annotations

import asyncio
import dataclasses
import datetime as dt
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psycopg
import pytest

from memory_layer.analyser import analyse
from memory_layer.errors import DimensionMismatch, EmbedderUnavailable, VectorStoreUnavailable
from memory_layer.filters import parse
from memory_layer.service import index_entries, indexing
from memory_layer.service.actions.outbox import EmbeddingSpace
from memory_layer.service.commit import Change
from memory_layer.service.indexing import MAX_ATTEMPTS, backlog, begin, claim, work_once
from memory_layer.service.installation import Installation
from memory_layer.service.search import SearchRequest, search
from memory_layer.stores import breakers
from memory_layer.stores.breakers import Breakers
from memory_layer.stores.protocols import Embedded, VectorEntry, VectorStore
from memory_layer.worker import pool, schedule
from tests.support.service import caller, create, delete, hold, new_node, patch, rows, running_memory, unit, verify

Database = Callable[[str], str]
Root = Callable[..., list[tuple[Any, ...]]]
SPACE = EmbeddingSpace("pgvector", "test-model", 2)


@pytest.fixture
async def memory(database: Database, tmp_path: Path) -> AsyncIterator[Installation]:
    async with running_memory(database("memory_app"), tmp_path) as opened:
        yield opened
    assert verify(database("postgres"), tmp_path).findings == ()  # whatever the worker did, rows and log agree


@pytest.fixture
def root(database: Database) -> Root:
    return lambda query, *params: rows(database("postgres"), query, params)


class Embedder:
    """Turns text into (length, number of vowels); refuses what the test tells it to."""

    model, dimension = "test-model", 2

    def __init__(self) -> None:
        self.asked: list[int] = []
        self.down = False
        self.before: Callable[[Sequence[str]], Awaitable[None]] | None = None

    async def embed(self, texts: Sequence[str], *, query: bool = False) -> Embedded:
        self.asked.append(len(texts))
        if self.before is not None:
            await self.before(texts)
        if self.down or any("unspeakable" in text for text in texts):
            raise EmbedderUnavailable("the model does not answer")
        if any("broken" in text for text in texts):
            raise ZeroDivisionError("a fault of the embedder")
        made = np.array([[len(t) + 1, sum(c in "aeiou" for c in t)] for t in texts], np.float32)
        vectors = np.asarray(made / np.linalg.norm(made, axis=1, keepdims=True), np.float32)
        unread = ["illegible" in text for text in texts]
        vectors[unread] = 0
        return Embedded(vectors, ["none" if no else "whole" for no in unread])

    async def close(self) -> None: ...


class Vectors:
    """The real store, after whatever the test puts in the way."""

    provider = "pgvector"

    def __init__(self, store: VectorStore) -> None:
        self.store = store
        self.capabilities = store.capabilities
        self.pings = 0
        self.down = False
        self.before_upsert: Callable[[Sequence[VectorEntry]], Awaitable[None]] | None = None
        self.search = store.search

    def _check(self) -> None:
        if self.down:
            raise VectorStoreUnavailable("the store does not answer")

    async def upsert(self, entries: Sequence[VectorEntry]) -> None:
        self._check()
        if self.before_upsert is not None:
            await self.before_upsert(entries)
        await self.store.upsert(entries)

    async def delete(self, tenant: str, namespace: str, nodes: Sequence[tuple[uuid.UUID, int]]) -> None:
        self._check()
        await self.store.delete(tenant, namespace, nodes)

    async def ping(self) -> None:
        self.pings += 1
        self._check()
        await self.store.ping()

    async def sweep(self) -> None:
        self._check()
        assert isinstance(self.store, indexing.Sweeps)
        await self.store.sweep()

    async def close(self) -> None: ...


@pytest.fixture
def embedder() -> Embedder:
    return Embedder()


@pytest.fixture
def vectors(memory: Installation) -> Vectors:
    return Vectors(memory.vectors)


@pytest.fixture
def stores(memory: Installation, embedder: Embedder, vectors: Vectors) -> Installation:
    return memory.with_parts(embedder=embedder, vectors=vectors, breakers=Breakers())


async def found(stores: Installation, where: Any = None, tenant: str = "ann") -> dict[uuid.UUID, int]:
    """Node to version, of all that the index holds."""
    query = np.array([1, 0], np.float32)
    return {
        h.node_id: h.version
        for h in (await stores.vectors.search(tenant, "kernel-memory", query, 500, parse(where))).hits
    }


def row(root: Root, node: uuid.UUID) -> dict[str, Any]:
    names = ("status", "version", "attempts", "error", "error_class", "leased", "wait")
    ((*facts,),) = root(
        "SELECT status, version, attempts, error, error_class, lease_id IS NOT NULL,"
        " extract(epoch FROM next_attempt_at - clock_timestamp())::float8 FROM memory_vectors WHERE memory_node_id = %s",
        node,
    )
    return dict(zip(names, facts, strict=True))


def words(root: Root, node: uuid.UUID) -> str | None:
    got = root("SELECT terms::text FROM memory_terms WHERE node_id = %s", node)
    return str(got[0][0]) if got else None


def make_due(root: Root) -> None:
    root(
        "UPDATE memory_vectors SET next_attempt_at = now() - interval '1 second' WHERE status IN ('pending', 'deleting')"
    )


async def test_a_callers_vector_becomes_searchable(memory: Installation, stores: Installation, root: Root) -> None:
    node = await create(memory, embedding=unit(3, 4), content="Cats purring", metadata={"a": 1}, owner="eva")
    assert (await found(stores), row(root, node)["status"]) == ({}, "pending")
    assert await backlog(stores) == (1, pytest.approx(0, abs=20))
    assert await work_once(stores) == 1
    assert await found(stores) == {node: 1}
    assert await found(stores, {"metadata.a": 1, "owner": "eva"}) == {node: 1}
    assert await found(stores, {"metadata.a": 2}) == {}
    after = row(root, node)
    assert (after["status"], after["attempts"], after["error"], after["leased"]) == ("succeeded", 1, None, False)
    assert words(root, node) == "'cat':1 'pur':2"
    assert root("SELECT external_vector_id FROM memory_vectors") == [(str(node),)]
    assert await work_once(stores) == 0
    assert (await backlog(stores))[0] == 0


async def test_text_is_embedded_and_its_vector_kept(
    memory: Installation, stores: Installation, embedder: Embedder, root: Root
) -> None:
    nodes = [await create(memory, content=f"text {n}", space=SPACE) for n in range(3)]
    await work_once(stores)
    assert embedder.asked == [3]
    assert await found(stores) == dict.fromkeys(nodes, 1)
    assert root("SELECT DISTINCT vector_data ->> 'encoding', length(vector_data ->> 'data') FROM memory_vectors") == [
        ("f32le", 12)
    ]
    await patch(memory, nodes[0], metadata={"k": "v"}, space=SPACE)  # the text is as it was: nothing to embed
    await work_once(stores)
    assert embedder.asked == [3]
    assert await found(stores, {"metadata.k": "v"}) == {nodes[0]: 2}
    await patch(memory, nodes[0], content="fresh text", space=SPACE)
    await work_once(stores)
    assert embedder.asked == [3, 1]
    assert (await found(stores))[nodes[0]] == 3
    assert "fresh" in (words(root, nodes[0]) or "")


async def test_without_an_embedder_words_alone_are_indexed(memory: Installation, root: Root) -> None:
    node = await create(memory, content="only words")
    await work_once(memory)
    assert row(root, node)["status"] == "succeeded"
    assert words(root, node) == "'word':2"
    assert await found(memory) == {}
    await patch(memory, node, content=None)
    await work_once(memory)
    assert words(root, node) is None


async def test_a_deleted_node_leaves_the_index_and_stays_out(
    memory: Installation, stores: Installation, root: Root
) -> None:
    node, other = [await create(memory, embedding=unit(1, 0), content="words") for _ in range(2)]
    await work_once(stores)
    await delete(memory, node)
    assert row(root, node)["status"] == "deleting"
    await work_once(stores)
    assert (await found(stores), words(root, node)) == ({other: 1}, None)
    assert row(root, node)["status"] == "deleted"
    for version in (1, 2):  # a writer that was late with what it had claimed
        entry = VectorEntry("ann", "kernel-memory", node, version, np.array([1, 0], np.float32), {})
        await stores.vectors.upsert([entry])
        assert await found(stores) == {other: 1}
    assert await work_once(stores) == 0


async def test_a_hold_reaches_the_filters_beside_the_vector(memory: Installation, stores: Installation) -> None:
    node = await create(memory, embedding=unit(1, 0))
    await work_once(stores)
    await hold(memory, node)
    await work_once(stores)
    assert await found(stores, {"legalHold": True}) == {node: 2}


async def test_a_lease_that_ran_out_is_taken_over(memory: Installation, stores: Installation, root: Root) -> None:
    node = await create(memory, embedding=unit(1, 0))
    (job,) = await claim(stores, uuid.uuid4(), 10)
    assert (job.node_id, row(root, node)["status"]) == (node, "in_flight")
    assert await work_once(stores) == 0
    assert (await backlog(stores))[0] == 1
    root("UPDATE memory_vectors SET lease_until = now() - interval '1 second'")
    assert await work_once(stores) == 1
    after = row(root, node)
    assert (after["status"], after["attempts"]) == ("succeeded", 2)


async def test_a_result_for_an_older_version_is_dropped(
    memory: Installation, stores: Installation, vectors: Vectors, root: Root
) -> None:
    node = await create(memory, embedding=unit(1, 0), content="old words")

    async def meanwhile(_: Sequence[VectorEntry]) -> None:
        vectors.before_upsert = None
        await patch(memory, node, content="new words", embedding=unit(0, 1))

    vectors.before_upsert = meanwhile
    await work_once(stores)
    after = row(root, node)
    assert (after["status"], after["version"], after["attempts"]) == ("pending", 2, 0)
    assert words(root, node) in (None, "'new':1 'word':2")  # written beside the worker
    await work_once(stores)
    assert (await found(stores), words(root, node)) == ({node: 2}, "'new':1 'word':2")


async def test_a_node_deleted_in_flight_ends_outside_the_index(
    memory: Installation, stores: Installation, vectors: Vectors, root: Root
) -> None:
    node = await create(memory, embedding=unit(1, 0), content="words")

    async def meanwhile(_: Sequence[VectorEntry]) -> None:
        vectors.before_upsert = None
        await delete(memory, node)
        await work_once(stores)  # another worker removes it before this one's upsert arrives

    vectors.before_upsert = meanwhile
    await work_once(stores)
    assert (await found(stores), words(root, node), row(root, node)["status"]) == ({}, None, "deleted")


class LastWriteWins(Vectors):
    """A store that orders nothing: whatever comes last stands, over newer versions and over marks of removals."""

    def __init__(self, store: VectorStore, root: Root) -> None:
        super().__init__(store)
        self.capabilities = dataclasses.replace(store.capabilities, orders_writes=False)
        self.root = root

    async def upsert(self, entries: Sequence[VectorEntry]) -> None:
        if self.before_upsert is not None:
            await self.before_upsert(entries)
        self.root("DELETE FROM vector_entries WHERE node_id = ANY (%s)", [entry.node_id for entry in entries])
        await self.store.upsert(entries)


@pytest.mark.parametrize("settled", [True, False], ids=["settled", "in hand"])
async def test_a_late_writer_repairs_what_it_overwrote(
    memory: Installation, stores: Installation, root: Root, settled: bool
) -> None:
    unordered = LastWriteWins(memory.vectors, root)
    stores = stores.with_parts(vectors=unordered)
    updated, deleted = [await create(memory, embedding=unit(1, n)) for n in range(2)]
    others: list[indexing.LeasedJobs] = []

    async def meanwhile(_: Sequence[VectorEntry]) -> None:
        unordered.before_upsert = None
        await patch(memory, updated, embedding=unit(0, 1))
        await delete(memory, deleted)
        if settled:
            assert await work_once(stores) == 2
        else:
            this = await begin(stores)
            assert this is not None
            others.append(this)
            await unordered.upsert([e for e in index_entries.entries(await with_nodes(stores, this)) if e.version == 2])

    unordered.before_upsert = meanwhile
    await work_once(stores)
    assert await found(stores) == {updated: 1, deleted: 1}  # the newer state is gone from the index
    for this in others:  # the other's lease is, too: what it does from here on settles nothing
        await indexing.finish(this)
        assert row(root, updated)["status"] == "pending"
        root("DELETE FROM vector_entries WHERE node_id = %s", updated)
    while await work_once(stores):
        pass
    assert await found(stores) == {updated: 2}
    assert (row(root, updated)["status"], row(root, deleted)["status"]) == ("succeeded", "deleted")


async def with_nodes(stores: Installation, this: indexing.LeasedJobs) -> Sequence[index_entries.Job]:
    await index_entries.read(stores, this.jobs)
    return this.jobs


async def test_what_comes_back_after_a_namespace_was_dropped_is_never_answered(
    memory: Installation, stores: Installation
) -> None:
    """A drop forgets the marks of removals too, so a late writer finds nothing in its way: the rows are."""
    node, other = [await create(memory, embedding=unit(1, n)) for n in range(2)]
    await work_once(stores)
    await delete(memory, node)
    await work_once(stores)
    await memory.vectors.drop("ann", "kernel-memory")
    late = [VectorEntry("ann", "kernel-memory", n, 1, np.array([1, 0], np.float32), {}) for n in (node, other)]
    await stores.vectors.upsert(late)
    wanted = SearchRequest(None, np.array([1, 0], np.float32), 10, None, "kernel-memory", None, "semantic")
    answer = await search(memory, caller(), wanted)
    assert [hit["memoryNodeId"] for hit in answer["results"]] == [str(other)]
    assert answer["dropped"] == {"orphan": 1}


async def test_a_worker_that_lost_its_lease_writes_nothing(
    memory: Installation, stores: Installation, vectors: Vectors, root: Root
) -> None:
    node = await create(memory, embedding=unit(1, 0))

    async def meanwhile(_: Sequence[VectorEntry]) -> None:
        vectors.before_upsert = None
        root("UPDATE memory_vectors SET lease_until = now() - interval '1 second'")
        await claim(stores, uuid.UUID(int=1), 10)

    vectors.before_upsert = meanwhile
    await work_once(stores)
    assert (row(root, node)["status"], row(root, node)["leased"]) == ("in_flight", True)


async def test_an_outage_of_the_index_only_delays(
    memory: Installation, stores: Installation, vectors: Vectors, root: Root
) -> None:
    nodes = [await create(memory, embedding=unit(1, n)) for n in range(5)]
    gone = await create(memory, embedding=unit(1, 9))
    await work_once(stores)
    for node in nodes:
        await patch(memory, node, metadata={"new": True})
    await delete(memory, gone)
    vectors.down = True
    assert await work_once(stores) == 6
    for _ in range(MAX_ATTEMPTS + 3):
        assert await work_once(stores) == 0  # nothing is claimed, for it would fail
        after = row(root, nodes[0])
        assert (after["status"], after["error"], after["error_class"], after["attempts"]) == (
            "pending",
            "the store does not answer",
            "retryable",
            0,
        )
        assert row(root, gone)["status"] == "deleting"
    assert after["wait"] <= 0  # what waits is the breaker
    vectors.down = False
    await until(lambda: settles(stores, 6))
    assert await found(stores, {"metadata.new": True}) == dict.fromkeys(nodes, 2)
    assert gone not in await found(stores)
    assert row(root, nodes[0])["error"] is None


async def settles(stores: Installation, most: int) -> bool:
    """Whether a round came to be once the breaker let one."""
    done = await work_once(stores)
    assert done in (0, most)
    return done == most


async def test_a_breaker_probes_ever_more_seldom_and_once_at_a_time(
    stores: Installation, vectors: Vectors, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(breakers, "FIRST_PAUSE", 0.02)
    monkeypatch.setattr(breakers, "LONGEST_PAUSE", 0.08)
    vectors.down = True
    breaker = stores.breakers.vectors
    assert (breaker.closed, vectors.pings) == (True, 0)
    await indexing.probe_services(stores)
    assert vectors.pings == 0  # nobody asks a service that nobody found down
    breaker.trip(VectorStoreUnavailable("gone", retry_after=0))
    started = time.monotonic()
    while vectors.pings < 6:
        await asyncio.gather(*(indexing.probe_services(stores) for _ in range(5)))
        await asyncio.sleep(0)
    # Pauses of 20, 40, 80, 80, 80 and 80 ms, each up to a quarter shorter.
    assert time.monotonic() - started > 0.75 * 0.380
    assert (breaker.state, breaker.reason) == ("open", "the store does not answer")
    vectors.down = False
    while not breaker.closed:
        await indexing.probe_services(stores)
        await asyncio.sleep(0)
    assert (vectors.pings, breaker.state, breaker.reason) == (7, "closed", "")
    breaker.trip(VectorStoreUnavailable("come back later", retry_after=60))
    await asyncio.sleep(0.1)
    await indexing.probe_services(stores)
    assert vectors.pings == 7


async def test_a_probe_that_hangs_holds_up_no_other_row(
    memory: Installation, stores: Installation, embedder: Embedder, root: Root, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(breakers, "FIRST_PAUSE", 0.0)
    stores.breakers.embedder.trip(EmbedderUnavailable("gone"))
    asked, go_on = asyncio.Event(), asyncio.Event()

    async def hang(_: Sequence[str]) -> None:
        asked.set()
        await go_on.wait()

    embedder.before = hang
    stop = asyncio.Event()
    running = asyncio.create_task(pool.run(stores, stop))
    await asyncio.wait_for(asked.wait(), 60)
    text = await create(memory, content="text", space=SPACE)
    given = await create(memory, embedding=unit(1, 0))

    async def indexed() -> bool:
        return await found(stores) == {given: 1}

    await until(indexed)
    assert row(root, text)["attempts"] == 0
    assert root("SELECT service, state, reason FROM worker_breakers") in ([], [("embedder", "half_open", "gone")])
    go_on.set()

    async def both() -> bool:
        return set(await found(stores)) == {given, text}

    await until(both)
    stop.set()
    await asyncio.wait_for(running, 60)
    assert root("SELECT count(*) FROM worker_breakers") == [(0,)]


async def test_one_vector_refused_for_good_fails_alone(
    memory: Installation, stores: Installation, vectors: Vectors, root: Root
) -> None:
    nodes = [await create(memory, embedding=unit(1, n), content="words") for n in range(5)]

    async def refuse(entries: Sequence[VectorEntry]) -> None:
        if any(entry.node_id == nodes[2] for entry in entries):
            raise DimensionMismatch("no such vector here")

    vectors.before_upsert = refuse
    await work_once(stores)
    after = row(root, nodes[2])
    assert (after["status"], after["error"], after["error_class"]) == ("failed", "no such vector here", "permanent")
    assert set(await found(stores)) == set(nodes) - {nodes[2]}
    make_due(root)
    assert await work_once(stores) == 0
    vectors.before_upsert = None
    await patch(memory, nodes[2], embedding=unit(1, 1))  # a new version is a new chance
    await work_once(stores)
    assert row(root, nodes[2])["status"] == "succeeded"


async def test_eight_attempts_then_dead(
    memory: Installation, stores: Installation, vectors: Vectors, root: Root
) -> None:
    bad, good = [await create(memory, embedding=unit(1, n)) for n in range(2)]

    async def refuse(entries: Sequence[VectorEntry]) -> None:
        if any(entry.node_id == bad for entry in entries):
            raise VectorStoreUnavailable("not this one, not now")

    vectors.before_upsert = refuse
    for attempt in range(1, MAX_ATTEMPTS + 1):
        assert row(root, bad)["status"] == "pending"
        await work_once(stores)
        assert row(root, bad)["attempts"] == attempt
        make_due(root)
    assert row(root, bad)["status"] == "dead"
    assert await work_once(stores) == 0
    assert await found(stores) == {good: 1}


@pytest.mark.parametrize("text", ["unspeakable", "broken"])
async def test_one_bad_text_holds_up_nobody(
    memory: Installation, stores: Installation, embedder: Embedder, root: Root, text: str
) -> None:
    texts = ["one", "two", text, "three", "four"]
    nodes = [await create(memory, content=t, space=SPACE) for t in texts]
    given = await create(memory, embedding=unit(1, 0))
    await work_once(stores)
    assert set(await found(stores)) == {given, *nodes} - {nodes[2]}
    after = row(root, nodes[2])
    assert (after["status"], after["error_class"], after["leased"]) == ("pending", "retryable", False)
    assert words(root, nodes[2]) is not None  # what has no vector yet is found by its words
    await patch(memory, nodes[2], content="harmless", space=SPACE)
    await work_once(stores)
    assert (await found(stores))[nodes[2]] == 2


async def test_an_embedder_that_is_down_is_asked_once_more_and_left_alone(
    memory: Installation, stores: Installation, embedder: Embedder, root: Root
) -> None:
    nodes = [await create(memory, content=f"text {n}", space=SPACE) for n in range(20)]
    given = await create(memory, embedding=unit(1, 0))
    embedder.down = True
    await work_once(stores)
    assert embedder.asked == [20, 1]  # the batch, then the probe that tells an outage from a bad text
    assert await found(stores) == {given: 1}
    another = await create(memory, embedding=unit(0, 1))
    for _ in range(MAX_ATTEMPTS + 1):
        await work_once(stores)  # the text is left alone, and what needs no embedder is not
    assert set(await found(stores)) == {given, another}
    await delete(memory, another)
    await work_once(stores)
    assert row(root, another)["status"] == "deleted"
    assert row(root, nodes[0])["attempts"] == 0
    embedder.down = False
    await until(lambda: settles(stores, 20))
    assert set(await found(stores)) == {given, *nodes}


async def test_text_waits_for_an_embedder(memory: Installation, stores: Installation, root: Root) -> None:
    node = await create(memory, content="text", space=SPACE)
    await work_once(stores.with_parts(embedder=None))
    assert row(root, node)["status"] == "pending"
    assert "EMBEDDINGS_PROVIDER=none" in row(root, node)["error"]
    await work_once(stores.with_parts(breakers=Breakers()))  # another worker
    assert await found(stores) == {node: 1}


async def test_a_row_of_another_model_waits_for_a_worker_that_has_it(
    memory: Installation, stores: Installation, embedder: Embedder, root: Root
) -> None:
    other = await create(
        memory, namespace="other", content="text", space=EmbeddingSpace("pgvector", "another-model", 2)
    )
    node = await create(memory, content="text", space=SPACE)
    await work_once(stores)
    assert row(root, node)["status"] == "succeeded"
    assert (row(root, other)["status"], row(root, other)["error_class"]) == ("pending", "retryable")
    assert "another-model" in row(root, other)["error"]
    another = Embedder()
    another.model, another.dimension = "another-model", 2
    make_due(root)
    await work_once(stores.with_parts(next_embedder=another))
    assert row(root, other)["status"] == "succeeded"


async def test_a_store_that_hangs_ends_the_round_in_time(
    memory: Installation, stores: Installation, vectors: Vectors, root: Root, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(indexing, "ROUND_SECONDS", 0.5)
    node = await create(memory, embedding=unit(1, 0))

    async def hang(_: Sequence[VectorEntry]) -> None:
        await asyncio.Event().wait()

    vectors.before_upsert = hang
    assert await asyncio.wait_for(work_once(stores), 60) == 1
    assert (row(root, node)["status"], row(root, node)["error_class"]) == ("pending", "retryable")


async def test_two_workers_share_the_rows(memory: Installation, stores: Installation, root: Root) -> None:
    actions = [new_node(embedding=unit(1, n), content=f"word{n}") for n in range(300)]
    await asyncio.gather(*(memory.committer.submit(Change(caller(), action)) for action in actions))

    async def work() -> int:
        total = 0
        while done := await work_once(stores):
            total += done
        return total

    assert sum(await asyncio.gather(work(), work())) == 300
    assert root("SELECT status, attempts, count(*) FROM memory_vectors GROUP BY 1, 2") == [("succeeded", 1, 300)]
    assert len(await found(stores)) == 300


# --- texts and rows that Postgres refuses

# 192,000 characters, 448 KB: compounds of four words, no two alike, make a tsvector of more than its 1 MiB.
RICH = "".join(chr(0x4E00 + n // 300) + chr(0x5000 + n % 300) + "---\n"[n % 4] for n in range(64_000))


@pytest.mark.parametrize("text", [RICH, "a_" * 130_000, "<!--" * 65_000, "\u023a-\u0130 " * 60_000], ids=len)
async def test_text_of_any_kind_is_indexed_with_its_neighbours(
    memory: Installation, stores: Installation, root: Root, text: str
) -> None:
    rich = await create(memory, content=f"beginning {text}", space=SPACE)
    other = await create(memory, "bob", content="words of another tenant", space=SPACE)
    while await work_once(stores):
        pass
    assert [row(root, node)["status"] for node in (rich, other)] == ["succeeded", "succeeded"]
    assert (await found(stores), await found(stores, tenant="bob")) == ({rich: 1}, {other: 1})
    assert "'begin':1" in (words(root, rich) or "")
    assert "'tenant'" in (words(root, other) or "")


async def test_what_postgres_refuses_fails_alone(
    memory: Installation, stores: Installation, root: Root, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("memory_layer.analyser.MAX_BYTES", 2**30)
    many = " ".join(f"{n:05}abcdefghijkl" for n in range(48_000))
    with pytest.raises(psycopg.errors.ProgramLimitExceeded):
        root("SELECT %s::tsvector", analyse(many).tsvector)
    nodes = [await create(memory, content=t, embedding=unit(1, 0)) for t in ("one", many, "three")]
    other = await create(memory, "bob", content="four", embedding=unit(1, 0))
    await work_once(stores)
    after = [row(root, node) for node in (*nodes, other)]
    assert [facts["status"] for facts in after] == ["succeeded", "failed", "succeeded", "succeeded"]
    assert (after[1]["error_class"], after[1]["leased"]) == ("permanent", False)


async def test_a_removal_that_postgres_refuses_holds_up_nobody(
    memory: Installation, stores: Installation, root: Root
) -> None:
    bad, good = [await create(memory, embedding=unit(1, n)) for n in range(2)]
    await work_once(stores)
    root(f"""CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
        IF NEW.status = 'deleted' AND NEW.memory_node_id = '{bad}' THEN RAISE data_exception; END IF; RETURN NEW; END $$""")
    root("CREATE TRIGGER refuse BEFORE UPDATE ON memory_vectors FOR EACH ROW EXECUTE FUNCTION refuse()")
    for node in (bad, good):
        await delete(memory, node)
    await work_once(stores)
    assert row(root, good)["status"] == "deleted"
    assert (row(root, bad)["status"], row(root, bad)["leased"]) == (
        "deleting",
        False,
    )  # it may not stay: tried for ever
    root("DROP TRIGGER refuse ON memory_vectors")
    make_due(root)
    await work_once(stores)
    assert row(root, bad)["status"] == "deleted"
    root("DROP FUNCTION refuse")  # or the schema would not be this version's


async def test_a_node_that_cannot_be_read_fails_alone(memory: Installation, stores: Installation, root: Root) -> None:
    bad, good = [await create(memory, embedding=unit(1, n)) for n in range(2)]
    root("UPDATE memory_nodes SET occurred_at = 'infinity' WHERE id = %s", bad)  # later than any datetime of Python
    await work_once(stores)
    root("UPDATE memory_nodes SET occurred_at = NULL WHERE id = %s", bad)
    assert row(root, good)["status"] == "succeeded"
    assert (row(root, bad)["leased"], row(root, bad)["error"] is not None) == (False, True)


async def test_a_service_too_slow_for_a_batch_gets_on_row_by_row(
    memory: Installation, stores: Installation, embedder: Embedder, root: Root, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(indexing, "ROUND_SECONDS", 4)
    nodes = [await create(memory, content=f"text {n}", space=SPACE) for n in range(4)]

    async def hang(texts: Sequence[str]) -> None:
        if len(texts) > 1 or "text 3" in texts:
            await asyncio.Event().wait()

    embedder.before = hang
    await asyncio.wait_for(work_once(stores), 60)
    assert await found(stores) == dict.fromkeys(nodes[:3], 1)
    assert (row(root, nodes[3])["status"], row(root, nodes[3])["leased"]) == ("pending", False)


# --- leases: killed workers, slow ones, stopped ones


def run_out(root: Root, attempts: int) -> None:
    root("UPDATE memory_vectors SET lease_until = now() - interval '1 second', attempts = %s", attempts)


async def test_what_a_killed_worker_left_is_indexed_half_a_minute_later(
    memory: Installation, stores: Installation, root: Root
) -> None:
    nodes = [await create(memory, embedding=unit(1, n)) for n in range(3)]
    assert await begin(stores) is not None  # and never heard of again
    ((wait,),) = root("SELECT max(extract(epoch FROM lease_until - now()))::float8 FROM memory_vectors")
    assert 20 < wait <= 30
    assert await work_once(stores) == 0
    run_out(root, 1)
    while await work_once(stores):
        pass
    assert await found(stores) == dict.fromkeys(nodes, 1)


async def test_rows_that_ended_their_runs_are_parted_and_die(
    memory: Installation, stores: Installation, root: Root
) -> None:
    nodes = [await create(memory, embedding=unit(1, n)) for n in range(40)]
    sizes = []
    for attempts in range(MAX_ATTEMPTS):
        jobs = await claim(stores, uuid.uuid4(), 64)
        sizes.append(len(jobs))
        run_out(root, attempts + 1)
    assert sizes == [40, 32, 16, 8, 4, 2, 1, 1]
    assert await claim(stores, uuid.uuid4(), 64) == []
    after = row(root, nodes[0])
    assert (after["status"], after["leased"], after["attempts"]) == ("dead", False, MAX_ATTEMPTS)
    assert "may end the worker" in after["error"]
    assert root("SELECT DISTINCT status FROM memory_vectors") == [("dead",)]
    await patch(memory, nodes[0], content="a new version is a new chance")
    await work_once(stores)
    assert await found(stores) == {nodes[0]: 2}


async def test_a_removal_never_dies(memory: Installation, stores: Installation, root: Root) -> None:
    node = await create(memory, embedding=unit(1, 0))
    await work_once(stores)
    await delete(memory, node)
    await claim(stores, uuid.uuid4(), 64)
    run_out(root, MAX_ATTEMPTS + 30)
    assert await work_once(stores) == 1
    assert (await found(stores), row(root, node)["status"]) == ({}, "deleted")


async def test_an_outage_and_a_killed_worker_together_cost_no_row_its_life(
    memory: Installation, stores: Installation, vectors: Vectors, root: Root
) -> None:
    node = await create(memory, embedding=unit(1, 0))
    vectors.down = True
    for _ in range(MAX_ATTEMPTS + 2):  # of as many workers
        await work_once(stores.with_parts(breakers=Breakers()))
    await claim(stores, uuid.uuid4(), 64)
    root("UPDATE memory_vectors SET lease_until = now() - interval '1 second'")
    vectors.down = False
    await work_once(stores)
    assert await found(stores) == {node: 1}


async def test_a_slow_round_keeps_its_lease(
    memory: Installation, stores: Installation, vectors: Vectors, root: Root, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(indexing, "LEASE_SECONDS", 0.6)
    node = await create(memory, embedding=unit(1, 0))
    seen: set[tuple[Any, ...]] = set()

    async def slow(_: Sequence[VectorEntry]) -> None:
        while len(seen) < 6:
            seen.update(root("SELECT lease_until FROM memory_vectors"))
            assert await claim(stores, uuid.uuid4(), 64) == []

    vectors.before_upsert = slow
    await asyncio.wait_for(work_once(stores), 60)
    assert max(seen)[0] - min(seen)[0] > dt.timedelta(seconds=0.6)
    assert (row(root, node)["status"], row(root, node)["attempts"]) == ("succeeded", 1)


async def until(happened: Callable[[], Awaitable[bool]]) -> None:
    deadline = time.monotonic() + 60
    while not await happened():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)


async def test_a_stopped_worker_finishes_what_it_has_in_hand(
    memory: Installation, stores: Installation, vectors: Vectors, root: Root
) -> None:
    node = await create(memory, embedding=unit(1, 0))
    busy, go_on = asyncio.Event(), asyncio.Event()

    async def slow(_: Sequence[VectorEntry]) -> None:
        busy.set()
        await go_on.wait()

    vectors.before_upsert = slow
    stop = asyncio.Event()
    running = asyncio.create_task(pool.run(stores, stop))
    await asyncio.wait_for(busy.wait(), 60)
    stop.set()
    other = await create(memory, embedding=unit(0, 1))
    go_on.set()
    await asyncio.wait_for(running, 60)
    assert row(root, node)["status"] == "succeeded"
    # The other loop may have been asking for work at that very moment; then it finished this one too.
    assert row(root, other)["status"] in ("pending", "succeeded")
    assert not row(root, other)["leased"]


async def test_a_stopped_worker_returns_what_it_cannot_finish(
    memory: Installation, stores: Installation, vectors: Vectors, root: Root, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool, "STOP_SECONDS", 0.1)
    node, gone = [await create(memory, embedding=unit(1, n)) for n in range(2)]
    await work_once(stores)
    await patch(memory, node, metadata={"k": 1})
    await delete(memory, gone)
    busy = asyncio.Event()

    async def hang(_: Any) -> None:
        busy.set()
        await asyncio.Event().wait()

    monkeypatch.setattr(vectors, "delete", lambda *_: hang(None))
    vectors.before_upsert = hang
    stop = asyncio.Event()
    running = asyncio.create_task(pool.run(stores, stop))
    await asyncio.wait_for(busy.wait(), 60)
    stop.set()
    await asyncio.wait_for(running, 60)
    for which, status in ((node, "pending"), (gone, "deleting")):
        after = row(root, which)
        assert (after["status"], after["attempts"], after["leased"]) == (status, 0, False)
        assert after["wait"] <= 0


async def test_the_next_batch_is_worked_on_while_one_is_embedded(
    memory: Installation, stores: Installation, embedder: Embedder, root: Root
) -> None:
    go_on = asyncio.Event()

    async def slow(_: Sequence[str]) -> None:
        await go_on.wait()

    embedder.before = slow
    first = await create(memory, content="text", space=SPACE)
    stop = asyncio.Event()
    running = asyncio.create_task(pool.run(stores, stop))

    async def asked() -> bool:
        return embedder.asked == [1]

    async def second_found() -> bool:
        return second in await found(stores)

    await until(asked)
    second = await create(memory, embedding=unit(1, 0))
    await until(second_found)
    assert row(root, first)["status"] == "in_flight"
    go_on.set()
    stop.set()
    await asyncio.wait_for(running, 60)
    assert row(root, first)["status"] == "succeeded"


# --- what the loop does besides


async def test_the_words_of_a_node_with_a_callers_vector_follow_its_text(
    memory: Installation, stores: Installation, root: Root
) -> None:
    node = await create(memory, embedding=unit(1, 0), content="old words")
    await work_once(stores)
    await patch(memory, node, content="fresh text")
    await work_once(stores)
    assert (words(root, node), await found(stores)) == ("'fresh':1 'text':2", {node: 2})
    await patch(memory, node, content=None)
    await work_once(stores)
    assert (words(root, node), await found(stores)) == (None, {node: 3})
    await patch(memory, node, content="words again", embedding=unit(0, 1))
    await work_once(stores)
    assert (words(root, node), await found(stores)) == ("'word':1", {node: 4})


async def test_marks_that_have_served_their_time_are_swept(
    memory: Installation, stores: Installation, vectors: Vectors, root: Root
) -> None:
    node = await create(memory, embedding=unit(1, 0))
    await work_once(stores)
    await delete(memory, node)
    await work_once(stores)
    root("UPDATE vector_entries SET removed_at = now() - interval '25 hours'")
    vectors.down = True  # a job that fails is tried again
    (job,) = [job for job in schedule.JOBS if job.name == "index-sweep"]
    stop = asyncio.Event()
    running = asyncio.create_task(schedule.run_schedule(stores, stop, [job]))

    async def failed() -> bool:
        return root("SELECT last_error FROM ops_schedule") == [("the store does not answer",)]

    async def forgotten() -> bool:
        return root("SELECT count(*) FROM vector_entries") == [(0,)]

    await until(failed)
    assert not await forgotten()
    vectors.down = False
    await until(forgotten)
    stop.set()
    await asyncio.wait_for(running, 60)


async def test_the_loop_works_until_it_is_stopped_and_outlives_bad_rounds(
    memory: Installation, stores: Installation, root: Root, monkeypatch: pytest.MonkeyPatch
) -> None:
    rounds = 0

    async def sometimes(stores: Installation, **more: Any) -> indexing.LeasedJobs | None:
        nonlocal rounds
        rounds += 1
        if rounds in (2, 3):
            raise RuntimeError("nobody foresaw this")
        return await begin(stores)

    async def never(this: indexing.LeasedJobs) -> None:
        monkeypatch.setattr(pool, "finish", indexing.finish)
        root("UPDATE memory_vectors SET lease_until = now() - interval '1 second' WHERE lease_id IS NOT NULL")
        raise RuntimeError("nor this")

    monkeypatch.setattr(pool, "begin", sometimes)
    monkeypatch.setattr(pool, "finish", never)
    monkeypatch.setattr(pool, "LONGEST", 0.05)
    stop = asyncio.Event()
    running = asyncio.create_task(pool.run(stores, stop))
    nodes = [await create(memory, embedding=unit(1, n)) for n in range(5)]

    async def all_found() -> bool:
        assert not running.done()
        return rounds > 4 and set(await found(stores)) == set(nodes)

    await until(all_found)
    stop.set()
    await asyncio.wait_for(running, 60)
    assert root("SELECT count(*) FROM memory_vectors WHERE lease_id IS NOT NULL") == [(0,)]
