"""What the drill does in Pinecone: count, scan, fetch and drop, by its limits, late, torn, refused, and beside other processes."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any

import numpy as np
import pytest

from memory_layer.errors import VectorStoreUnavailable
from memory_layer.stores.vectors.pinecone import Pinecone, open_pinecone
from tests.support.pinecone_server import KEY, PineconeServer, Record, running_pinecone
from tests.support.vector_entries import SPACE, entry, found, node

OURS = f"acme__{SPACE}"


@pytest.fixture
def server() -> Iterator[PineconeServer]:
    with running_pinecone(2) as running:
        yield running
        assert running.faulty_answers == []


@pytest.fixture
async def store(server: PineconeServer) -> AsyncIterator[Pinecone]:
    opened = await open_pinecone(server.url, lambda: KEY, visible_within=5)
    yield opened
    await opened.close()


@pytest.fixture
async def other(server: PineconeServer) -> AsyncIterator[Pinecone]:
    """As another process has it."""
    opened = await open_pinecone(server.url, lambda: KEY, visible_within=5)
    yield opened
    await opened.close()


async def scanned(store: Pinecone, limit: int = 1000) -> list[int]:
    numbers: list[int] = []
    cursor = None
    while True:
        page = await store.scan("acme", SPACE, cursor, limit)
        numbers += [record.node_id.int for record in page.records]
        cursor = page.cursor
        if cursor is None:
            return numbers


STEPS: dict[str, tuple[str, Callable[[Pinecone], Awaitable[Any]]]] = {
    "count": ("GET /vectors/list", lambda store: store.count("acme", SPACE)),
    "scan": ("GET /vectors/list", lambda store: store.scan("acme", SPACE)),
    "fetch": ("GET /vectors/fetch", lambda store: store.fetch("acme", SPACE, [node(1)])),
    "drop": ("POST /vectors/delete", lambda store: store.drop("acme", SPACE)),
    "warm": ("POST /query", lambda store: store.warm("acme", SPACE)),
}


# --- limits


async def test_pages_and_answers_keep_to_the_limits() -> None:
    with running_pinecone(3072) as server:  # which refuses pages of more than 100 ids, and answers beyond 4 MB
        store = await open_pinecone(server.url, lambda: KEY)
        matrix = np.random.default_rng(3).normal(size=(230, 3072))
        await store.upsert([entry("acme", n, row.tolist(), metadata={"n": n}) for n, row in enumerate(matrix)])
        server.calls.clear()
        assert await store.count("acme", SPACE) == 230
        assert server.calls.count("GET /vectors/list") == 3
        assert server.calls.count("GET /vectors/fetch") == 5  # 2 for a page of 100: some 52 such vectors are 4 MB
        server.calls.clear()
        records = await store.fetch("acme", SPACE, [node(n) for n in (*range(230), 7, 999)])
        assert sorted(record.node_id.int for record in records) == list(range(230))
        assert server.calls.count("GET /vectors/fetch") == 5
        await store.close()
        assert server.faulty_answers == []


async def test_a_scan_goes_by_id_and_on_from_its_cursor(store: Pinecone, other: Pinecone) -> None:
    numbers = sorted(uuid.UUID(int=n * 2**90 + n).int for n in range(150))
    await store.upsert([entry("acme", n, [1, 0]) for n in reversed(numbers)])
    assert await scanned(store) == numbers
    first = await store.scan("acme", SPACE, limit=40)
    assert [record.node_id.int for record in first.records] == numbers[:40]
    await store.delete("acme", SPACE, [(uuid.UUID(int=numbers[39]), 1)])  # after which it was to go on
    second = await other.scan("acme", SPACE, first.cursor, 40)
    assert [record.node_id.int for record in second.records] == numbers[40:80]
    with pytest.raises(VectorStoreUnavailable) as refused:
        await store.scan("acme", SPACE, "no cursor of ours")
    assert not refused.value.retryable


@pytest.mark.parametrize(("paging", "right"), [("empty", True), ("stuck", False)])
async def test_a_listing_ends(store: Pinecone, server: PineconeServer, paging: str, right: bool) -> None:
    await store.upsert([entry("acme", n, [1, 0]) for n in range(3)])
    server.paging = paging
    if right:
        assert await store.count("acme", SPACE) == 3
        return
    with pytest.raises(VectorStoreUnavailable, match="again and again"):
        await store.count("acme", SPACE)


async def test_marks_and_what_others_put_there_are_passed_over(store: Pinecone, server: PineconeServer) -> None:
    await store.upsert([entry("acme", n, [1, n]) for n in range(5)])
    await store.delete("acme", SPACE, [(node(1), 1), (node(8), 2)])
    server.take(OURS, lambda held: held.update({"not an id": Record(np.array([1, 0], np.float32), {"_live": True})}))
    assert await store.count("acme", SPACE) == 4
    assert await scanned(store) == [0, 2, 3, 4]
    assert [record.node_id.int for record in await store.fetch("acme", SPACE, [node(1), node(3)])] == [3]
    assert await found(store, "acme", [1, 0]) == [0, 2, 3, 4]


# --- errors


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("fault", ["throttle", "503", "torn"])
async def test_what_may_pass_is_tried_again(store: Pinecone, server: PineconeServer, step: str, fault: str) -> None:
    await store.upsert([entry("acme", 1, [1, 0])])
    call, work = STEPS[step]
    server.retry_after, server.fault_on = "0", call.partition(" ")[2]
    server.calls.clear()
    server.set_fault(fault, times=2)
    await work(store)
    assert server.calls.count(call) >= 3
    server.set_fault(None)
    assert await store.count("acme", SPACE) == (0 if step == "drop" else 1)


@pytest.mark.parametrize("step", STEPS)
async def test_pauses_and_refused_keys_are_handed_on(store: Pinecone, server: PineconeServer, step: str) -> None:
    await store.upsert([entry("acme", 1, [1, 0])])
    call, work = STEPS[step]
    server.retry_after = "77"
    server.set_fault("throttle")
    started = time.monotonic()
    with pytest.raises(VectorStoreUnavailable) as busy:
        await work(store)
    assert time.monotonic() - started < 20
    assert busy.value.retry_after in (77, 78)
    server.set_fault(None)
    server.keys = {"another"}
    server.calls.clear()
    with pytest.raises(VectorStoreUnavailable, match="401 UNAUTHENTICATED: check VECTOR_DB_API_KEY") as refused:
        await work(store)
    assert server.calls == [call]  # once, and nothing after it
    assert KEY not in str(refused.value) + repr(refused.value.__context__)
    server.keys = {KEY}
    assert await store.count("acme", SPACE) == 1


@pytest.mark.parametrize("step", STEPS)
async def test_a_namespace_that_nobody_knows_is_empty(store: Pinecone, server: PineconeServer, step: str) -> None:
    server.unknown_is_404 = True
    assert not getattr(await STEPS[step][1](store), "records", None)
    assert await store.count("acme", SPACE) == 0


# --- what shows late, and what others do


@pytest.mark.parametrize("gone", [False, True], ids=["stays", "goes"])
async def test_what_was_dropped_is_gone_when_it_returns(server: PineconeServer, store: Pinecone, gone: bool) -> None:
    """Also where a namespace vanishes with its last record, and its positions begin anew."""
    server.visibility_delay, server.unknown_is_404, server.emptied_is_gone = 0.15, gone, gone
    for version in (9, 2, 1):
        await store.upsert([entry("acme", n, [1, n], version=version) for n in range(3)])
        await store.delete("acme", SPACE, [(node(1), version)])
        assert [record.version for record in (await store.scan("acme", SPACE)).records] == [version] * 2
        await store.drop("acme", SPACE)
        assert (await store.count("acme", SPACE), await found(store, "acme", [1, 0])) == (0, [])
        await store.ping()
    await store.upsert([entry("acme", 1, [1, 0], version=1)])  # neither its mark nor its newer versions are left
    assert await found(store, "acme", [1, 0]) == [1]


async def test_a_drop_takes_what_was_still_on_its_way(server: PineconeServer) -> None:
    store = await open_pinecone(server.url, lambda: KEY, visible_within=0.05)
    server.unknown_is_404 = server.frozen = True
    with pytest.raises(VectorStoreUnavailable, match="did not show"):
        await store.upsert([entry("acme", 1, [1, 0])])
    with pytest.raises(VectorStoreUnavailable, match="did not show"):  # it would come after the drop
        await store.drop("acme", SPACE)
    server.frozen = False
    await store.drop("acme", SPACE)
    await store.ping()
    assert await store.count("acme", SPACE) == 0
    await store.close()


@pytest.mark.parametrize("gone", [False, True], ids=["stays", "goes"])
async def test_another_process_dropped_it_and_older_versions_come_back(
    server: PineconeServer, store: Pinecone, other: Pinecone, gone: bool
) -> None:
    """As a restore does: what a process wrote once is no reason to leave out what is to be written now."""
    server.visibility_delay, server.unknown_is_404, server.emptied_is_gone = 0.02, gone, gone
    await other.upsert([entry("acme", n, [1, n], version=9) for n in range(3)])
    await other.delete("acme", SPACE, [(node(2), 12)])
    await store.drop("acme", SPACE)
    for one in (other, store):
        await one.upsert([entry("acme", n, [1, n], version=4) for n in range(3)])
        assert [record.version for record in (await one.scan("acme", SPACE)).records] == [4, 4, 4]
    await other.delete("acme", SPACE, [(node(0), 4)])
    assert await scanned(store) == [1, 2]


async def test_a_write_on_its_way_that_a_drop_swallowed_is_not_waited_for(
    server: PineconeServer, store: Pinecone
) -> None:
    late = await open_pinecone(server.url, lambda: KEY, visible_within=0.05)
    await store.upsert([entry("acme", 5, [1, 0])])
    server.frozen = True
    with pytest.raises(VectorStoreUnavailable, match="did not show"):
        await late.upsert([entry("acme", 1, [1, 0], version=7)])
    dropping = asyncio.ensure_future(store.drop("acme", SPACE))
    await asyncio.sleep(0)
    server.frozen = False
    await dropping
    await late.upsert([entry("acme", 1, [1, 0], version=3)])
    assert await found(late, "acme", [1, 0]) == [1]
    await late.ping()
    await late.close()


async def test_writers_beside_a_drop_come_before_or_after_it(server: PineconeServer, store: Pinecone) -> None:
    server.visibility_delay, server.unknown_is_404, server.emptied_is_gone = 0.01, True, True
    for version in range(1, 6):
        await asyncio.gather(
            *(store.upsert([entry("acme", n, [1, n], version=version)]) for n in range(4)), store.drop("acme", SPACE)
        )
        assert set(await scanned(store)) <= set(range(4))
        await store.ping()  # no position of before the drop is waited for
