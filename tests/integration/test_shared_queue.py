"""The queue of the index is shared: tenants take turns, and a single write overtakes a bulk load."""

from __future__ import annotations

import asyncio
import datetime as dt
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from memory_layer.service import nodes, waiting
from memory_layer.service.actions.nodes import CreateNodes, draft
from memory_layer.service.actions.outbox import LONG, EmbeddingSpace
from memory_layer.service.commit import Change
from memory_layer.service.index_entries import Job, in_turns, next_piece
from memory_layer.service.indexing import MAX_ROWS, begin, claim, finish, work_once
from memory_layer.service.installation import Installation
from memory_layer.service.search import SearchRequest, search
from memory_layer.service.word_writer import WordWriter
from memory_layer.stores.breakers import Breakers
from memory_layer.stores.protocols import Embedded
from memory_layer.worker import pool
from tests.support.service import caller, new_node, patch, rows, running_memory

Database = Callable[[str], str]
Root = Callable[..., list[tuple[Any, ...]]]
SPACE = EmbeddingSpace("pgvector", "test-model", 2)


class SlowEmbedder:
    """As slow as a model; ``order``: every text, in the order in which it was asked for."""

    model, dimension = "test-model", 2

    def __init__(self) -> None:
        self.order: list[str] = []
        self.asked = asyncio.Event()

    async def embed(self, texts: Sequence[str], *, query: bool = False) -> Embedded:
        self.order += texts
        self.asked.set()
        await asyncio.sleep(0.005 * len(texts))
        return Embedded(np.full((len(texts), 2), 0.7, np.float32), ["whole"] * len(texts))

    async def close(self) -> None: ...


@pytest.fixture
async def memory(database: Database, tmp_path: Path) -> AsyncIterator[Installation]:
    async with running_memory(database("memory_app"), tmp_path) as opened:
        yield opened.with_parts(embedder=SlowEmbedder(), breakers=Breakers())


@pytest.fixture
def root(database: Database) -> Root:
    return lambda query, *params: rows(database("postgres"), query, params)


async def load(memory: Installation, tenant: str, count: int) -> list[dict[str, Any]]:
    new = [new_node(content=f"bulk of {tenant} {n}", space=SPACE, bulk=True) for n in range(count)]
    items: list[dict[str, Any]] = (await nodes.create_many(memory, caller(tenant), CreateNodes(list(new)))).answer[
        "items"
    ]
    return items


async def single(memory: Installation, tenant: str, text: str) -> dict[str, Any]:
    return (await memory.committer.submit(Change(caller(tenant), new_node(content=text, space=SPACE)))).answer


async def claimed(memory: Installation, limit: int, lanes: Sequence[bool] = (False, True)) -> Counter[tuple[str, bool]]:
    jobs = await claim(memory, uuid.uuid4(), limit, lanes=lanes)
    return Counter((job.tenant, job.bulk) for job in jobs)


async def test_a_round_is_shared_out_to_the_tenants_that_wait(memory: Installation) -> None:
    await load(memory, "ann", 100)
    await load(memory, "bob", 5)
    await load(memory, "cid", 100)
    assert await claimed(memory, 30) == {("ann", True): 10, ("bob", True): 5, ("cid", True): 10}
    assert await claimed(memory, 30) == {("ann", True): 15, ("cid", True): 15}


async def test_single_writes_are_taken_before_what_bulk_requests_wrote(memory: Installation) -> None:
    loaded = await load(memory, "ann", 20)
    await single(memory, "ann", "one")
    await single(memory, "bob", "two")
    await patch(memory, uuid.UUID(loaded[3]["memoryNodeId"]), content="changed meanwhile", space=SPACE)
    assert await claimed(memory, 10, lanes=(True, False)) == {("ann", True): 10}
    assert await claimed(memory, 10) == {("ann", False): 2, ("bob", False): 1}
    assert await claimed(memory, 10, lanes=(False,)) == {}
    assert await claimed(memory, 10) == {("ann", True): 9}


async def test_with_more_tenants_than_take_part_in_a_round_everybody_gets_a_turn(memory: Installation) -> None:
    for n in range(40):
        await load(memory, f"tenant-{n:02}", 1 if n % 2 else 30)
    seen: Counter[str] = Counter()
    for _ in range(2):  # 32 at the most in each
        seen += Counter(tenant for tenant, _ in (await claimed(memory, 320)).elements())
    assert len(seen) == 40
    while await claimed(memory, 320):
        pass


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    loads=st.dictionaries(st.sampled_from(["ann", "ann-2", "bob", "Bob", "z" * 60]), st.integers(1, 12), min_size=1),
    limit=st.integers(1, 40),
)
async def test_nothing_is_claimed_twice_or_left(
    memory: Installation, root: Root, loads: dict[str, int], limit: int
) -> None:
    for tenant, count in loads.items():
        await load(memory, tenant, count)
        await single(memory, tenant, "one")
    total: Counter[tuple[str, bool]] = Counter()
    while found := await claimed(memory, limit):
        assert found.total() <= limit
        total += found
    assert total == {(tenant, True): count for tenant, count in loads.items()} | {(t, False): 1 for t in loads}
    root("UPDATE memory_vectors SET status = 'failed', lease_id = NULL, lease_until = NULL RETURNING 1")


async def test_a_bulk_load_delays_neither_single_writes_nor_other_tenants(memory: Installation) -> None:
    embedder = memory.embedder
    assert isinstance(embedder, SlowEmbedder)
    stop = asyncio.Event()
    working = asyncio.create_task(pool.run(memory, stop))
    try:
        await load(memory, "ann", 12 * MAX_ROWS // 2)
        await load(memory, "ann", 12 * MAX_ROWS // 2)
        async with asyncio.timeout(60):
            await embedder.asked.wait()
        late = {
            "ann": [await single(memory, "ann", "mine")],
            "bob": [await single(memory, "bob", "theirs")],
            "cid": await load(memory, "cid", 10),
        }
        writes = [
            waiting.Write(tenant, uuid.UUID(answer["embeddingJobId"]), 1)
            for tenant, answers in late.items()
            for answer in answers
        ]
        assert await memory.waits.until_indexed(memory.postgres, writes, 60)
        places = [embedder.order.index(text) for text in ("mine", "theirs", "bulk of cid 9")]
    finally:
        stop.set()
        working.cancel()
        await asyncio.wait([working])
    # What the rounds under way had in hand comes first, and at most one more round of each.
    assert max(places) < 2 * pool.BULK_ROUNDS * MAX_ROWS
    assert len(embedder.order) < 12 * MAX_ROWS  # nobody waited for the end of the load


class GatedEmbedder(SlowEmbedder):
    """Long texts are not ready before ``gate`` is set; ``inside``: how many of them it has."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.inside = asyncio.Event(), 0

    async def embed(self, texts: Sequence[str], *, query: bool = False) -> Embedded:
        if any(len(text) > LONG for text in texts):
            self.inside += len(texts)
            await self.gate.wait()
        return await super().embed(texts)


async def test_long_texts_of_one_tenant_never_occupy_all_rounds(memory: Installation, root: Root) -> None:
    """However long a text takes, notes are indexed meanwhile, those of its own tenant too."""
    embedder = GatedEmbedder()
    memory = memory.with_parts(embedder=embedder)
    long = [await single(memory, "ann", f"{n} " + "word " * 2_000) for n in range(2 * pool.ROUNDS)]
    changed = uuid.UUID(long[0]["memoryNodeId"])
    await patch(memory, changed, content="1 " + "word " * 3_000, space=SPACE)
    await patch(memory, changed, metadata={"a": 1})
    assert root("SELECT bulk, count(*) FROM memory_vectors GROUP BY bulk") == [(True, 2 * pool.ROUNDS)]
    stop = asyncio.Event()
    working = asyncio.create_task(pool.run(memory, stop))
    try:
        async with asyncio.timeout(60):
            for n in range(3):
                notes = {tenant: await single(memory, tenant, f"note {n}") for tenant in ("bob", "ann")}
                writes = [waiting.Write(t, uuid.UUID(one["embeddingJobId"]), 1) for t, one in notes.items()]
                assert await memory.waits.until_indexed(memory.postgres, writes, 60)
        assert not any(len(text) > LONG for text in embedder.order)
        assert embedder.inside <= pool.BULK_ROUNDS
        embedder.gate.set()
        jobs = [waiting.Write("ann", uuid.UUID(one["embeddingJobId"]), 1) for one in long]
        assert await memory.waits.until_indexed(memory.postgres, jobs, 60)
    finally:
        stop.set()
        working.cancel()
        await asyncio.wait([working])
    # What has its vector is no long text to embed any more, whatever else is said of it.
    await patch(memory, changed, metadata={"a": 2})
    assert root("SELECT bulk FROM memory_vectors WHERE memory_node_id = %s", changed) == [(False,)]


def test_what_is_embedded_together_is_little_and_of_each_tenant_in_turn() -> None:
    def job(tenant: str, characters: int, *, bulk: bool = True) -> Job:
        node = draft(id=uuid.uuid4(), owner="o", namespace="n", content="x" * characters)
        now = dt.datetime.now(dt.UTC)
        return Job(tenant, node.id, node.id, "n", "m", 2, "in_flight", 1, 1, now, bulk, None, node=node)

    jobs = [job("ann", 30_000), *(job("ann", 1_000) for _ in range(40)), job("bob", 20_000), job("bob", 10)]
    waiting = in_turns([*jobs, job("cid", 9_000, bulk=False)])
    pieces = []
    while waiting:
        pieces.append([(one.tenant, len(one.node.content or "")) for one in next_piece(waiting, 16_384) if one.node])
    assert pieces[:3] == [
        [("cid", 9_000), ("bob", 10), ("ann", 1_000), ("ann", 1_000)],
        [("bob", 20_000)],
        [("ann", 1_000)] * 16,
    ]
    assert pieces[-1] == [("ann", 30_000)]
    assert sum(map(len, pieces)) == 44
    assert all(sum(size for _, size in piece) <= 16_384 or len(piece) == 1 for piece in pieces)


async def test_the_words_of_a_note_do_not_wait_for_those_of_a_long_text(
    database: Database, root: Root, tmp_path: Path
) -> None:
    """The long text's words are kept from being written; the note came after it."""

    async def written(count: int) -> list[tuple[Any, ...]]:
        async with asyncio.timeout(60):
            while len(there := await asyncio.to_thread(root, "SELECT tenant FROM memory_terms")) < count:  # noqa: ASYNC110 - rows are waited for
                await asyncio.sleep(0.02)
        return there

    with psycopg.connect(database("postgres"), autocommit=True) as held:
        held.execute("""CREATE FUNCTION hold_long() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
            IF 'zxqv' = ANY (tsvector_to_array(NEW.terms)) THEN PERFORM pg_advisory_xact_lock(47, 11); END IF; RETURN NEW; END $$;
            CREATE TRIGGER hold_long BEFORE INSERT ON memory_terms FOR EACH ROW EXECUTE FUNCTION hold_long();
            SELECT pg_advisory_lock(47, 11)""")
        async with running_memory(database("memory_app"), tmp_path) as memory:
            memory.words = WordWriter(memory.postgres)
            writing = asyncio.create_task(memory.words.run())
            try:
                await single(memory, "ann", "zxqv " * 16_000)
                await single(memory, "bob", "a short note")
                assert await written(1) == [("bob",)]
                held.execute("SELECT pg_advisory_unlock(47, 11)")
                assert await written(2)
            finally:
                held.execute("SELECT pg_advisory_unlock_all()")
                writing.cancel()
                await asyncio.wait([writing])


async def test_an_answer_says_how_many_writes_are_not_found_by_meaning_yet(memory: Installation) -> None:
    async def pending(mode: Literal["semantic", "keyword", "hybrid"], tenant: str = "ann") -> int | None:
        request = SearchRequest("text", None, 5, None, "kernel-memory", None, mode)
        return (await search(memory, caller(tenant), request)).get("pending")

    await load(memory, "ann", 3)
    await single(memory, "ann", "text")
    await single(memory, "bob", "text")
    assert [await pending("semantic"), await pending("hybrid"), await pending("keyword")] == [4, 4, None]
    assert await pending("hybrid", "bob") == 1
    round_ = await begin(memory, 2)
    assert round_ is not None
    assert await pending("hybrid") == 4  # one of them is in a worker's hand
    await finish(round_)
    assert await pending("hybrid") == 3
    while await work_once(memory):
        pass
    assert [await pending("semantic"), await pending("hybrid", "bob")] == [None, None]
