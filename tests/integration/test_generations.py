"""Another model for a namespace: what writes do to both generations, filling, switching, going back, retiring."""

from __future__ import annotations

import asyncio
import dataclasses
import random
import uuid
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from memory_layer.errors import (
    Conflict,
    DependencyUnavailable,
    DimensionMismatch,
    EmbedderUnavailable,
    PolicyRefused,
    ValidationError,
    VectorStoreUnavailable,
)
from memory_layer.model import Embedding, Namespace
from memory_layer.service import generations, search
from memory_layer.service.actions.nodes import CreateNodes
from memory_layer.service.actions.outbox import EmbeddingSpace
from memory_layer.service.commit import Change
from memory_layer.service.indexing import probe_services, work_once
from memory_layer.service.installation import Installation
from memory_layer.service.keyword_rows import START, write_keyword_rows
from memory_layer.service.nodes import get
from memory_layer.service.search import SearchRequest
from memory_layer.service.system import system_caller
from memory_layer.sql import queries
from memory_layer.stores.breakers import Breakers
from memory_layer.stores.postgres import ALL_TENANTS
from memory_layer.stores.protocols import Embedder
from tests.support.embedding_server import Words, vector
from tests.support.service import caller, create, delete, hold, new_node, patch, rows, running_memory, verify

Database = Callable[[str], str]
Root = Callable[..., list[tuple[Any, ...]]]
OLD, NEW = "words-48", "words-80"
NAME, SECOND = "kernel-memory", "kernel-memory#2"
SPACE = EmbeddingSpace("pgvector", OLD, 48, ((NEW, 80),))


@pytest.fixture
def root(database: Database) -> Root:
    return lambda query, *params: rows(database("postgres"), query, params)


@pytest.fixture
async def memory(database: Database, tmp_path: Path) -> AsyncIterator[Installation]:
    """Two embedders; afterwards rows and log agree, whatever the test did."""
    async with running_memory(database("memory_app"), tmp_path) as opened:
        old, new = Words(OLD), Words(NEW)
        yield opened.with_parts(embedder=old, next_embedder=new)
    assert verify(database("postgres"), tmp_path).findings == ()


async def text(memory: Installation, content: str, **facts: Any) -> uuid.UUID:
    return await create(memory, content=content, space=SPACE, **facts)


def given(model: str, words: str) -> Embedding:
    made = vector(model, words)
    return Embedding(model, len(made), made.astype("<f4").tobytes())


async def settle(memory: Installation) -> None:
    while await work_once(memory):
        pass


async def space(memory: Installation) -> Namespace:
    return await generations.find(memory.postgres, "ann", NAME)


async def begin(memory: Installation) -> Namespace:
    """Open the second generation."""
    actor = await system_caller(memory, "memoryctl")
    return await generations.open_generation(memory, actor, await space(memory), NEW, 80)


async def switch(memory: Installation, **how: Any) -> dict[str, Any]:
    actor = await system_caller(memory, "memoryctl")
    return await generations.switch(memory, actor, await space(memory), **{"within": 0.0} | how)


async def retire(memory: Installation) -> int:
    actor = await system_caller(memory, "memoryctl")
    return await generations.retire(memory, actor, await space(memory), lambda *_: None)


async def coverage(memory: Installation) -> generations.Coverage:
    return await generations.coverage(memory.postgres, await space(memory))


async def found(memory: Installation, query: str, mode: Any = "semantic", where: Any = None) -> list[uuid.UUID]:
    request = SearchRequest(query, None, 10, where, NAME, None, mode)
    answer = await search.search(memory, caller(), request)
    return [uuid.UUID(hit["memoryNodeId"]) for hit in answer["results"]]


def both(root: Root, node: uuid.UUID) -> dict[str, tuple[Any, ...]]:
    """Index namespace to (status, version, source, model) of a node's rows."""
    return {
        row[0]: row[1:]
        for row in root(
            "SELECT namespace, status, version, metadata ->> 'source', embedding_model FROM memory_vectors"
            " WHERE memory_node_id = %s ORDER BY namespace",
            node,
        )
    }


async def test_from_one_model_to_another_and_back(memory: Installation, root: Root) -> None:
    first = await text(memory, "north gate locked")
    await settle(memory)
    assert (await begin(memory)).standby == SECOND
    later = await text(memory, "south gate open")
    # What was there has no row yet; what is written now has both. Nothing of it shows.
    assert (list(both(root, first)), list(both(root, later))) == ([NAME], [NAME, SECOND])
    assert both(root, later)[SECOND] == ("pending", 1, "embedder", NEW)
    await settle(memory)
    assert root("SELECT max(attempts) FROM memory_vectors") == [(1,)]  # both rows of a node settle in one round
    assert set(await found(memory, "gate")) == {first, later}
    with pytest.raises(PolicyRefused, match="1 are not indexed there yet"):
        await switch(memory)
    filling = asyncio.create_task(generations.fill(memory, await space(memory)))
    assert await filling == 1
    with pytest.raises(PolicyRefused):
        await switch(memory)  # a row is there, and not yet in the index
    await settle(memory)
    assert (await coverage(memory)).complete(leave_behind=False)
    before = await get(memory, caller(), first)
    await switch(memory)
    after = await get(memory, caller(), first)
    assert (before["vector"]["model"], after["vector"]["model"]) == (OLD, NEW)
    assert after["version"] == before["version"]
    now = await space(memory)
    assert (now.index_namespace, now.model, now.dimension) == (SECOND, NEW, 80)
    assert (now.standby, now.standby_model, now.standby_state) == (NAME, OLD, "kept")
    request = SearchRequest("gate", None, 10, None, NAME, None, "semantic")
    hits = (await search.search(memory, caller(), request))["results"]
    assert {hit["vectorRef"]["namespace"] for hit in hits} == {SECOND}
    # Both are written after the cut-over too, so the way back loses nothing.
    newest = await text(memory, "east gate guarded")
    await delete(memory, later)
    await settle(memory)
    assert set(await found(memory, "gate")) == {first, newest}
    await switch(memory)
    assert (await space(memory)).standby_state == "building"
    assert set(await found(memory, "gate")) == {first, newest}
    assert root("SELECT count(*) FROM vector_entries WHERE namespace = %s AND embedding IS NOT NULL", NAME) == [(2,)]
    await switch(memory)
    assert await retire(memory) == 0
    assert root("SELECT namespace, count(*) FROM vector_entries GROUP BY 1") == [(SECOND, 3)]  # one of them a mark
    assert root("SELECT DISTINCT status FROM memory_vectors WHERE namespace = %s", NAME) == [("deleted",)]
    assert root(
        "SELECT namespace FROM memory_vectors WHERE memory_node_id = %s AND vector_data IS NOT NULL", first
    ) == [(SECOND,)]
    assert set(await found(memory, "gate")) == set(await found(memory, "gate", "keyword")) == {first, newest}
    one = await text(memory, "west gate")
    assert list(both(root, one)) == [SECOND]
    told = root("SELECT event_type FROM audit_events WHERE event_type LIKE 'ops.generation%%' ORDER BY seq")
    assert [name for (name,) in told] == [
        f"ops.generation-{what}.succeeded"
        for what in ("opened", "switched", "switched", "switched", "retired", "dropped")
    ]
    # The next one gets a name that none had.
    actor = await system_caller(memory, "memoryctl")
    third = await generations.open_generation(memory, actor, await space(memory), OLD, 48)
    assert third.standby == "kernel-memory#3"


async def test_every_kind_of_change_reaches_both(memory: Installation, root: Root) -> None:
    await text(memory, "the first makes the namespace")
    await begin(memory)
    nodes = [await text(memory, f"note number {n}", metadata={"n": n}) for n in range(4)]
    bulk = CreateNodes([new_node(content=f"bulk {n}", space=SPACE) for n in range(3)])
    await memory.committer.submit(Change(caller(), bulk))
    assert all(list(both(root, new.id)) == [NAME, SECOND] for new in bulk.nodes)  # type: ignore[union-attr]
    await settle(memory)
    await patch(memory, nodes[0], content="another text", space=SPACE)
    await patch(memory, nodes[1], metadata={"n": 99}, space=SPACE)
    await patch(memory, nodes[2], content=None, space=SPACE)
    await hold(memory, nodes[3])
    states = [{row[:2] for row in both(root, node).values()} for node in nodes]
    assert states == [{("pending", 2)}, {("pending", 2)}, {("deleting", 2)}, {("pending", 2)}]
    await settle(memory)
    for node in nodes[:2]:
        assert {row[:2] for row in both(root, node).values()} == {("succeeded", 2)}
    await switch(memory, force=True)
    assert (await found(memory, "another text"))[0] == nodes[0]
    from memory_layer.filters import parse

    assert await found(memory, "note", where=parse({"metadata.n": 99})) == [nodes[1]]
    assert nodes[2] not in await found(memory, "note number")
    assert nodes[2] not in await found(memory, "note", "keyword")
    await hold(memory, nodes[3], on=False)
    await delete(memory, nodes[3])
    assert {row[:2] for row in both(root, nodes[3]).values()} == {("deleting", 4)}
    await settle(memory)
    assert {row[0] for row in both(root, nodes[3]).values()} == {"deleted"}
    assert root("SELECT count(*) FROM memory_terms WHERE node_id = %s", nodes[3]) == [(0,)]


async def test_a_change_makes_the_row_that_filling_has_not_reached(memory: Installation, root: Root) -> None:
    node = await text(memory, "an old note", metadata={"a": 1})
    await settle(memory)
    await begin(memory)
    await patch(memory, node, metadata={"a": 2}, space=SPACE)
    assert both(root, node)[SECOND] == ("pending", 2, "embedder", NEW)
    assert await generations.fill(memory, await space(memory)) == 0


async def test_callers_vectors(memory: Installation, root: Root) -> None:
    """A vector goes to the generation of its model. Where there is no text, only the caller can bring a node along."""
    bare = await create(memory, content=None, embedding=given(OLD, "blue"), space=SPACE)
    worded = await create(memory, content="red house", embedding=given(OLD, "red house"), space=SPACE)
    await settle(memory)
    await begin(memory)
    assert await generations.fill(memory, await space(memory)) == 1  # by its text
    await settle(memory)
    now = await coverage(memory)
    assert (now.given, now.behind, now.nodes) == (1, 0, 2)
    with pytest.raises(PolicyRefused, match="1 have no text"):
        await switch(memory)
    # Text and a vector of the old model: the new one gets the text embedded. Only a vector of the new: the old has it by text.
    late = await create(memory, content="green door", embedding=given(OLD, "green door"), space=SPACE)
    ahead = await create(memory, content="grey wall", embedding=given(NEW, "grey wall"), space=SPACE)
    assert [row[2] for row in both(root, late).values()] == ["caller", "embedder"]
    assert [row[2] for row in both(root, ahead).values()] == ["embedder", "caller"]
    with pytest.raises(DimensionMismatch, match="Send the text along"):
        await create(memory, content=None, embedding=given(NEW, "x"), space=SPACE)
    with pytest.raises(DimensionMismatch, match="holds 48-dimensional vectors"):
        await create(memory, content="x", embedding=given("words-7", "x"), space=SPACE)
    # The caller brings the bare one along. The log speaks of the vector that was given last.
    await patch(memory, bare, embedding=given(NEW, "blue"), space=SPACE)
    assert {name: row[2] for name, row in both(root, bare).items()} == {NAME: "earlier", SECOND: "caller"}
    await settle(memory)
    assert bare in await found(memory, "blue")
    await switch(memory)
    assert {bare, worded, late, ahead} == set(await found(memory, "blue red green grey"))
    # Given again for the old one, which is kept: the way back has it.
    await patch(memory, bare, embedding=given(OLD, "blue sky"), metadata={"x": 1}, space=SPACE)
    assert {name: row[2] for name, row in both(root, bare).items()} == {NAME: "caller", SECOND: "earlier"}
    await patch(memory, bare, metadata={"x": 2}, space=SPACE)
    await settle(memory)
    assert await retire(memory) == 0
    # Its last vector went with the index, not from the row that the log speaks of.
    assert both(root, bare)[NAME][0] == "deleted"
    assert root("SELECT count(vector_data) FROM memory_vectors WHERE memory_node_id = %s", bare) == [(2,)]
    assert (await found(memory, "blue"))[0] == bare
    await patch(memory, bare, embedding=given(NEW, "navy"), space=SPACE)
    assert {name: row[2] for name, row in both(root, bare).items()} == {NAME: "earlier", SECOND: "caller"}
    await settle(memory)
    assert both(root, bare)[NAME][0] == "deleted"
    assert (await found(memory, "navy"))[0] == bare
    await delete(memory, bare)
    assert {name: row[0] for name, row in both(root, bare).items()} == {NAME: "deleted", SECOND: "deleting"}


async def test_nodes_without_text_can_be_left_behind(memory: Installation, root: Root) -> None:
    bare = await create(memory, content=None, embedding=given(OLD, "blue"), space=SPACE)
    kept = await text(memory, "blue whale")
    await settle(memory)
    await begin(memory)
    await generations.fill(memory, await space(memory))
    await settle(memory)
    await switch(memory, leave_behind=True)
    assert await found(memory, "blue") == [kept]
    assert (await coverage(memory)).stranded == 1
    await switch(memory, leave_behind=True)
    assert set(await found(memory, "blue")) == {bare, kept}


async def test_one_at_a_time_and_not_the_same_model(memory: Installation) -> None:
    await text(memory, "x")
    actor = await system_caller(memory, "memoryctl")
    with pytest.raises(ValidationError, match="already"):
        await generations.open_generation(memory, actor, await space(memory), OLD, 48)
    await begin(memory)
    assert (await begin(memory)).generations == 2  # goes on with the one that is there
    with pytest.raises(Conflict, match="vectors retire"):
        await generations.open_generation(memory, actor, await space(memory), "words-9", 9)
    stale = dataclasses.replace(await space(memory), standby="kernel-memory#7")
    with pytest.raises(Conflict, match="Look again"):
        await generations.switch(memory, actor, stale, within=0, force=True)


async def test_nothing_is_lost_between_filling_and_what_others_write(memory: Installation, root: Root) -> None:
    """Patches, deletes and new nodes all the while: at the end each node has the same row in both, at its own version."""
    nodes = [await text(memory, f"note {n} of many") for n in range(60)]
    await begin(memory)
    choice = random.Random(4)
    gone: set[uuid.UUID] = set()

    async def write() -> None:
        for turn in range(60):
            node = choice.choice(nodes)
            kind = choice.randrange(4)
            if node in gone:
                continue
            if kind == 0:
                gone.add(node)
                await delete(memory, node)
            elif kind == 1:
                await patch(memory, node, content=f"turn {turn}", space=SPACE)
            elif kind == 2:
                await patch(memory, node, metadata={"turn": turn}, space=SPACE)
            else:
                nodes.append(await text(memory, f"new in turn {turn}"))

    async def work(stop: asyncio.Event) -> None:
        while not stop.is_set():
            if not await work_once(memory, 16):
                await asyncio.sleep(0.005)

    piece, generations.BATCH_SIZE = generations.BATCH_SIZE, 7
    stop = asyncio.Event()
    worker = asyncio.create_task(work(stop))
    try:
        now = await space(memory)
        await asyncio.gather(write(), *(generations.fill(memory, now) for _ in range(2)))
    finally:
        generations.BATCH_SIZE = piece
        stop.set()
        await worker
    # What met another writer at its row is tried again later; here at once.
    root("UPDATE memory_vectors SET next_attempt_at = now() WHERE status IN ('pending', 'deleting')")
    await settle(memory)
    wrong = root(
        "SELECT n.id FROM memory_nodes n LEFT JOIN memory_vectors a ON a.memory_node_id = n.id AND a.namespace = %s"
        " LEFT JOIN memory_vectors b ON b.memory_node_id = n.id AND b.namespace = %s"
        " WHERE n.deleted_at IS NULL AND (a.status, b.status, a.version, b.version) IS DISTINCT FROM"
        " ('succeeded', 'succeeded', n.version, n.version)"
        " OR n.deleted_at IS NOT NULL AND (a.status <> 'deleted' OR b.status NOT IN ('deleted'))",
        NAME,
        SECOND,
    )
    assert wrong == []
    entries = root(
        "SELECT namespace, array_agg(node_id ORDER BY node_id) FROM vector_entries WHERE embedding IS NOT NULL GROUP BY 1"
    )
    live = sorted(set(nodes) - gone)
    assert {name: sorted(ids) for name, ids in entries} == {NAME: live, SECOND: live}


async def test_a_switch_is_decided_on_what_stands_under_the_lock(memory: Installation, root: Root) -> None:
    """What is on its way into both counts in neither; what one has and the other has not is missing."""
    node = await text(memory, "a note")
    await settle(memory)
    await begin(memory)
    await generations.fill(memory, await space(memory))
    await settle(memory)
    await text(memory, "on its way")
    await patch(memory, node, content="changed", space=SPACE)
    assert (await coverage(memory)).complete(leave_behind=False)
    await switch(memory)
    await switch(memory)
    await settle(memory)
    await patch(memory, node, metadata={"a": 1}, space=SPACE)  # found by what the index has of the version before
    with pytest.raises(PolicyRefused):
        await switch(memory)
    await settle(memory)
    await patch(memory, node, metadata={"a": 2}, space=SPACE)
    root("UPDATE memory_vectors SET status = 'succeeded' WHERE namespace = %s", SECOND)
    await switch(memory)


async def test_a_worker_without_the_new_model_holds_up_nobody(memory: Installation, root: Root) -> None:
    await text(memory, "x")
    await begin(memory)
    node = await text(memory, "y")
    without = memory.with_parts(next_embedder=None)
    await work_once(without)
    assert both(root, node)[NAME][0] == "succeeded"
    assert both(root, node)[SECOND][0] == "pending"
    root("UPDATE memory_vectors SET next_attempt_at = now() WHERE status = 'pending'")
    await work_once(memory)
    assert both(root, node)[SECOND][0] == "succeeded"


async def test_an_index_is_dropped_only_when_no_worker_has_its_rows_in_hand(memory: Installation, root: Root) -> None:
    """A round that has begun may still write into the index: its rows are waited for."""
    await text(memory, "x")
    await begin(memory)
    await generations.fill(memory, await space(memory))
    await settle(memory)
    await switch(memory)
    node = await text(memory, "late")
    begun, go_on = asyncio.Event(), asyncio.Event()

    class Slow(Words):
        async def embed(self, texts: Any, **how: Any) -> Any:
            begun.set()
            await go_on.wait()
            return await super().embed(texts, **how)

    slow: Embedder = Slow(OLD)
    working = asyncio.create_task(work_once(memory.with_parts(embedder=slow)))
    await begun.wait()
    ending = asyncio.create_task(retire(memory))
    while (await space(memory)).standby_state != "retired":  # noqa: ASYNC110 - a row is waited for
        await asyncio.sleep(0.01)
    assert both(root, node)[NAME][0] == "in_flight"
    go_on.set()
    await working
    assert await ending == 0
    assert both(root, node)[NAME][0] == "deleted"
    assert root("SELECT count(*) FROM vector_entries WHERE namespace = %s", NAME) == [(0,)]
    assert (await space(memory)).standby is None


async def test_without_a_worker_filling_and_retiring_come_to_an_end(
    memory: Installation, root: Root, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(generations, "BATCH_SIZE", 2)
    nodes = [await text(memory, f"gate {n}") for n in range(5)]
    await settle(memory)
    await begin(memory)
    with pytest.raises(DependencyUnavailable, match=r"memoryctl worker.*EMBEDDINGS_NEXT_"):
        await generations.fill(memory, await space(memory), within=0.2)
    kept = root("SELECT count(*) FROM memory_vectors WHERE namespace = %s", SECOND)
    assert kept == [(2,)]  # what was filled stays, and the next call goes on from there
    filling = asyncio.create_task(generations.fill(memory, await space(memory)))
    while not filling.done():
        await work_once(memory)
        await asyncio.sleep(0.01)
    await settle(memory)
    await switch(memory)

    root(
        "UPDATE memory_vectors SET lease_id = gen_random_uuid(), lease_until = now() + interval '1 hour' WHERE namespace = %s AND memory_node_id = %s",
        NAME,
        nodes[0],
    )
    told: list[tuple[int, int]] = []
    actor = await system_caller(memory, "memoryctl")
    with pytest.raises(DependencyUnavailable, match=r"1 rows of kernel-memory are leased to a worker.*vectors retire"):
        await generations.retire(memory, actor, await space(memory), lambda *seen: told.append(seen), within=0.2)
    assert told[-1] == (4, 1)
    assert root("SELECT count(*) FROM vector_entries WHERE namespace = %s", NAME) == [
        (5,)
    ]  # not dropped under its writer
    root("UPDATE memory_vectors SET lease_id = NULL, lease_until = NULL WHERE namespace = %s", NAME)
    assert await retire(memory) == 0
    assert (await space(memory)).standby is None


async def test_a_switch_reads_nothing_of_a_backlog_that_is_not_its_own(memory: Installation, root: Root) -> None:
    """Under the log lock nobody writes: what waits elsewhere, however much, must not be looked through there."""
    await text(memory, "north gate")
    await settle(memory)
    await begin(memory)
    await generations.fill(memory, await space(memory))
    await settle(memory)
    root(
        "INSERT INTO memory_nodes (tenant, id, owner, namespace, content, metadata, pii_flags, subjects, legal_hold, version,"
        " created_at, updated_at) SELECT 'ann', gen_random_uuid(), 'ann', 'other', 'text', '{}', '{}', '{}', false, 1, now(), now()"
        " FROM generate_series(1, 20000)"
    )
    root(
        "INSERT INTO memory_vectors (tenant, id, memory_node_id, namespace, provider, embedding_model, dimension, status, version,"
        " metadata, next_attempt_at, created_at, updated_at) SELECT tenant, gen_random_uuid(), id, namespace, 'pgvector', 'm', 2,"
        " 'pending', 1, '{}', now() - interval '1 hour', now(), now() FROM memory_nodes WHERE namespace = 'other'"
    )
    root("ANALYZE memory_vectors")
    seen = await generations._look(memory.postgres, await space(memory))
    facts = {"tenant": "ann", "name": NAME, **seen._asdict(), "outstanding": list(seen.outstanding)}
    (told,) = await memory.postgres.fetch(
        ALL_TENANTS, (f"EXPLAIN (ANALYZE, FORMAT JSON) {queries('commit')['find_lacks']}", facts)
    )
    (plan,) = told[0]["QUERY PLAN"]

    def rows_read(node: dict[str, Any]) -> float:
        own = (node["Actual Rows"] + node.get("Rows Removed by Filter", 0)) * node["Actual Loops"]
        return max([own, *(rows_read(part) for part in node.get("Plans", []))])

    assert rows_read(plan["Plan"]) < 50
    root("DELETE FROM memory_vectors WHERE namespace = 'other'")
    root("DELETE FROM memory_nodes WHERE namespace = 'other'")
    await switch(memory)


async def test_a_switch_waits_until_its_own_backlog_is_small(
    memory: Installation, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(generations, "MAX_LOOKED", 2)
    await text(memory, "north gate")
    await settle(memory)
    await begin(memory)
    await generations.fill(memory, await space(memory))
    await settle(memory)
    for n in range(3):
        await text(memory, f"gate {n}")  # on their way into both: none is missed more than before
    with pytest.raises(PolicyRefused, match=r"More than 2 nodes .* wait for the worker"):
        await switch(memory)
    await settle(memory)
    await switch(memory)


async def test_a_repair_while_a_switch_is_decided_is_seen(
    memory: Installation, root: Root, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A row of the new generation that is put back into the queue without an entry, after the nodes were counted."""
    node = await text(memory, "north gate")
    await settle(memory)
    await begin(memory)
    await generations.fill(memory, await space(memory))
    await settle(memory)
    look = generations._look

    async def then_repaired(*given: Any) -> Any:
        seen = await look(*given)
        root(
            "UPDATE memory_vectors SET status = 'pending', next_attempt_at = clock_timestamp()"
            " WHERE memory_node_id = %s AND namespace = %s", node, SECOND,
        )  # fmt: skip
        return seen

    monkeypatch.setattr(generations, "_look", then_repaired)
    with pytest.raises(PolicyRefused, match="1 are not indexed there yet"):
        await switch(memory)


async def test_queries_by_vector_follow_the_generation(memory: Installation) -> None:
    node = await text(memory, "north gate")
    await settle(memory)
    await begin(memory)
    await generations.fill(memory, await space(memory))
    await settle(memory)
    await switch(memory)

    async def ask(model: str) -> list[str]:
        query = np.asarray(vector(model, "north gate"), np.float32)
        answer = await search.search(memory, caller(), SearchRequest(None, query, 5, None, NAME, None, "semantic"))
        return [hit["memoryNodeId"] for hit in answer["results"]]

    assert await ask(NEW) == [str(node)]
    with pytest.raises(DimensionMismatch, match="holds 80-dimensional vectors"):
        await ask(OLD)


async def cut_over(memory: Installation) -> None:
    await begin(memory)
    await generations.fill(memory, await space(memory))
    await settle(memory)
    await switch(memory)


class Down(Words):
    """An embedder that does not answer, until it is told to."""

    def __init__(self, model: str) -> None:
        super().__init__(model)
        self.down = True

    async def embed(self, texts: Any, **how: Any) -> Any:
        if self.down:
            raise EmbedderUnavailable(f"{self.model} does not answer", retry_after=0)
        return await super().embed(texts, **how)


async def test_a_search_by_what_was_cut_over_from_looks_again_before_it_fails(memory: Installation) -> None:
    """A process that has seen the namespace before, and searches by meaning alone: what went wrong with the old index, its model or
    its dimension is no answer when another one answers by now."""
    node = await text(memory, "north gate")
    await settle(memory)

    def elsewhere(**stores: Any) -> Installation:
        """Another process, which saw the old generation last."""
        return memory.with_parts(seen=dict(before), **stores)

    assert await found(memory, "gate") == [node]
    before = dict(memory.seen)
    await cut_over(memory)
    query = vector(NEW, "north gate")
    answer = await search.search(elsewhere(), caller(), SearchRequest(None, query, 5, None, NAME, None, "semantic"))
    assert [hit["memoryNodeId"] for hit in answer["results"]] == [str(node)]
    assert await found(elsewhere(embedder=Down(OLD)), "gate") == [node]  # it was switched off after the cut-over
    assert await found(elsewhere(embedder=Words(NEW), next_embedder=None), "gate") == [node]
    # What is wrong with the index that answers is still an answer.
    with pytest.raises(EmbedderUnavailable, match="words-80 does not answer"):
        await found(elsewhere(next_embedder=Down(NEW)), "gate")


async def test_a_namespace_that_is_gone_is_forgotten(memory: Installation, root: Root) -> None:
    """The database was set back to before it was there, under a process that goes on."""
    await text(memory, "north gate")
    await settle(memory)
    assert len(await found(memory, "gate")) == 1
    saved = root("SELECT row_to_json(s)::text FROM namespaces s WHERE name = %s", NAME)
    root("DELETE FROM namespaces WHERE name = %s", NAME)
    assert await found(memory, "gate") == []
    root("INSERT INTO namespaces SELECT * FROM json_populate_record(NULL::namespaces, %s::json)", saved[0][0])
    assert len(await found(memory, "gate")) == 1


async def test_words_are_found_during_an_outage_in_a_namespace_of_two_generations(
    memory: Installation, root: Root
) -> None:
    """Both rows of a node wait at once, and neither's words belong to the generation that it is for."""
    first = await text(memory, "north gate")
    await settle(memory)
    await cut_over(memory)
    memory.breakers.vectors.trip(VectorStoreUnavailable("gone"))
    late = await text(memory, "south gate")
    assert {name: row[0] for name, row in both(root, late).items()} == {NAME: "pending", SECOND: "pending"}
    looked, after = await write_keyword_rows(memory, START)
    assert looked == 2
    assert set(await found(memory, "gate", "keyword")) == {first, late}
    assert root("SELECT DISTINCT namespace FROM memory_terms") == [(NAME,)]
    assert (await write_keyword_rows(memory, after))[0] == 0


@pytest.mark.parametrize("broken", [OLD, NEW])
async def test_an_embedder_that_is_down_holds_up_only_its_own_rows(
    memory: Installation, root: Root, broken: str
) -> None:
    await text(memory, "x")
    await settle(memory)
    await begin(memory)
    down = Down(broken)
    name, other = (NAME, SECOND) if broken == OLD else (SECOND, NAME)
    stores = memory.with_parts(**{"embedder" if broken == OLD else "next_embedder": down}, breakers=Breakers())
    for turn in range(3):
        node = await text(memory, f"note {turn}")
        while await work_once(stores):
            pass
        assert both(root, node)[name][0] == "pending"
        assert both(root, node)[other][0] == "succeeded"
    # It is its breaker that waits: no row has spent an attempt, and nobody asks for each of them.
    assert root("SELECT max(attempts) FROM memory_vectors WHERE namespace = %s AND status = 'pending'", name) == [(0,)]
    asked = [breaker.service for breaker in stores.breakers.not_closed()]
    assert asked == ["embedder" if broken == OLD else "next_embedder"]
    # Meanwhile what waits for it is found by its words; when it is back, it drains.
    down.down = False
    while stores.breakers.not_closed():
        await probe_services(stores)
        await asyncio.sleep(0.01)
    while await work_once(stores):
        pass
    assert root("SELECT count(*) FROM memory_vectors WHERE status <> 'succeeded' AND namespace = %s", name) == [(0,)]


async def test_the_only_embedder_may_be_the_next_one(memory: Installation, root: Root) -> None:
    """Its outage ends when it is back, although there is no embedder of the first settings that could be asked."""
    await text(memory, "x")
    await settle(memory)
    await cut_over(memory)
    node = await text(memory, "y")
    down = Down(NEW)
    stores = memory.with_parts(embedder=None, next_embedder=down, breakers=Breakers())
    while await work_once(stores):
        pass
    assert both(root, node)[SECOND][0] == "pending"
    down.down = False
    async with asyncio.timeout(60):
        while both(root, node)[SECOND][0] != "succeeded":
            await work_once(stores)
            await asyncio.sleep(0.01)
