"""The Pinecone adapter's own: limits, retries, errors, keys, what shows late.

What the drill reads and drops there is in test_pinecone_reading.py, the emulator itself in test_pinecone_emulator.py.
"""

from __future__ import annotations

import asyncio
import json
import logging
import re
import time
import uuid
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from memory_layer import config
from memory_layer.errors import DependencyUnavailable, DimensionMismatch, UsageError, VectorStoreUnavailable
from memory_layer.stores.protocols import VectorEntry
from memory_layer.stores.remote.http import retry_after
from memory_layer.stores.vectors import open_vectors
from memory_layer.stores.vectors.pinecone import MAX_BYTES, Pinecone, open_pinecone
from memory_layer.stores.vectors.pinecone_http import check_endpoint, check_key
from memory_layer.stores.vectors.pinecone_records import MAX_BYTES as MAX_METADATA
from memory_layer.stores.vectors.pinecone_records import live_metadata
from memory_layer.stores.vectors.pinecone_shapes import MAX_RECORDS, batches, encode_namespace
from tests.api.door import connect, create, create_indexed, eventually, found_ids, indexed, search
from tests.support.pinecone_server import KEY, PineconeServer, Record, running_pinecone
from tests.support.product import running_product

SPACE = "kernel-memory"
QUERY = np.array([1, 0], np.float32)


@pytest.fixture
def server() -> Iterator[PineconeServer]:
    with running_pinecone(2) as running:
        yield running
        assert running.faulty_answers == []


@pytest.fixture
async def store(server: PineconeServer) -> AsyncIterator[Pinecone]:
    opened = await open_pinecone(server.url, lambda: KEY, visible_within=5)
    server.calls.clear()
    yield opened
    await opened.close()


def entry(number: int, vector: list[float], version: int = 1, **fields: Any) -> VectorEntry:
    values = np.array(vector, np.float32)
    return VectorEntry("acme", SPACE, uuid.UUID(int=number), version, values / np.linalg.norm(values), fields)


async def found(store: Pinecone) -> list[tuple[int, int]]:
    return [(hit.node_id.int, hit.version) for hit in (await store.search("acme", SPACE, QUERY, 10, None)).hits]


# --- limits


async def test_batches_keep_to_the_count_and_the_bytes(store: Pinecone, server: PineconeServer) -> None:
    await store.upsert([entry(n, [1, 0], owner="x") for n in range(2500)])
    await store.upsert([entry(n, [1, 0], metadata={f"k{i}": i for i in range(60)}) for n in range(1000)])
    assert sum(records for _, records, _ in server.sizes) == 3500
    assert max(records for _, records, _ in server.sizes) == 1000
    assert 10**6 < max(size for _, _, size in server.sizes) <= MAX_BYTES
    assert len(server.sizes) > 4


@given(st.lists(st.integers(1, 300).map(lambda n: b"x" * n), max_size=60), st.integers(100, 1000))
def test_batches_keep_all_in_order(records: list[bytes], most: int) -> None:
    made = list(batches(records, most))
    assert [record for batch in made for record in batch] == records
    assert all(len(batch) == 1 or len(b",".join(batch)) <= most for batch in made)
    assert all(0 < len(batch) <= MAX_RECORDS for batch in made)


@given(st.dictionaries(st.text(max_size=40), st.text(max_size=200) | st.integers() | st.lists(st.text()), max_size=60))
def test_metadata_is_flat_and_small(fields: dict[str, Any]) -> None:
    data = live_metadata(3, {"metadata": fields, "owner": "ann"})
    assert len(data) <= MAX_METADATA
    for value in json.loads(data).values():
        assert isinstance(value, str | int | float | bool) or all(isinstance(one, str) for one in value)


def test_names_and_values_go_out_as_tokens_only() -> None:
    data = live_metadata(1, {"owner": "ann-the-owner", "metadata": {"diagnosis": "none-of-yours"}})
    assert not re.search(rb"ann|owner|diagnosis|yours", data)
    assert json.loads(data)["_whole"] is True


NAMES = st.text(st.sampled_from("a_-.:%h0é日"), max_size=12)


@given(st.tuples(NAMES, NAMES), st.tuples(NAMES, NAMES))
def test_no_two_spaces_share_a_namespace(one: tuple[str, str], other: tuple[str, str]) -> None:
    assert (encode_namespace(*one) == encode_namespace(*other)) == (one == other)
    assert re.fullmatch(r"[A-Za-z0-9._-]{2,512}", encode_namespace(*one))


def test_long_names_become_a_digest() -> None:
    names = [encode_namespace("t", "日" * count) for count in range(200, 256)]
    assert len(set(names)) == len(names)
    assert max(map(len, names)) <= 512
    assert encode_namespace("acme", "kernel-memory") == "acme__kernel-memory"
    assert encode_namespace("a_b", "c") == "a_5fb__c"


async def test_another_dimension_never_leaves_the_process(store: Pinecone, server: PineconeServer) -> None:
    with pytest.raises(DimensionMismatch, match="2 dimensions") as refused:
        await store.upsert([entry(1, [1, 0]), entry(2, [1, 0, 0])])
    assert not refused.value.retryable
    assert [call for call in server.calls if "upsert" in call] == []


# --- errors


@pytest.mark.parametrize("fault", ["throttle", "500", "503", "torn", "408"])
async def test_what_may_pass_is_tried_again(store: Pinecone, server: PineconeServer, fault: str) -> None:
    server.retry_after = "0"
    for path, step in (("/vectors/upsert", lambda: store.upsert([entry(1, [1, 0])])), ("/query", lambda: found(store))):
        server.fault_on = path
        server.calls.clear()
        server.set_fault(fault, times=2)
        await step()
        assert len([call for call in server.calls if call == f"POST {path}"]) >= 3
    assert await found(store) == [(1, 1)]


async def test_a_long_pause_asked_for_is_handed_on(store: Pinecone, server: PineconeServer) -> None:
    server.retry_after = "77"
    server.set_fault("throttle")
    started = time.monotonic()
    with pytest.raises(VectorStoreUnavailable, match="429 RESOURCE_EXHAUSTED") as refused:
        await store.upsert([entry(1, [1, 0])])
    assert time.monotonic() - started < 20
    assert refused.value.retryable
    assert refused.value.retry_after in (77, 78)


@pytest.mark.parametrize("fault", ["400", "413", "422"])
async def test_a_refusal_for_good_is_not_tried_again(store: Pinecone, server: PineconeServer, fault: str) -> None:
    server.fault_on = "/vectors/upsert"
    server.set_fault(fault)
    with pytest.raises(VectorStoreUnavailable) as refused:
        await store.upsert([entry(1, [1, 0])])
    assert not refused.value.retryable
    assert server.calls.count("POST /vectors/upsert") == 1


@pytest.mark.parametrize("fault", ["garbage", "500"])
async def test_what_stays_wrong_is_unavailable(store: Pinecone, server: PineconeServer, fault: str) -> None:
    server.set_fault(fault)
    for step in (store.upsert([entry(1, [1, 0])]), found(store), store.ping()):
        with pytest.raises(VectorStoreUnavailable) as refused:
            await step
        assert refused.value.retryable
    server.set_fault(None)
    await store.upsert([entry(1, [1, 0])])
    assert await found(store) == [(1, 1)]


async def test_an_index_made_anew_with_another_dimension(server: PineconeServer) -> None:
    store = await open_pinecone(server.url, lambda: KEY)
    server.dimension = 3
    with pytest.raises(VectorStoreUnavailable):
        await store.ping()
    await store.ping()
    await store.upsert([entry(1, [1, 0, 0])])
    with pytest.raises(DimensionMismatch):
        await store.upsert([entry(1, [1, 0])])
    await store.close()


async def test_silence_ends(server: PineconeServer) -> None:
    store = await open_pinecone(server.url, lambda: KEY, call_timeout=0.1)
    server.set_fault("hang")
    started = time.monotonic()
    with pytest.raises(VectorStoreUnavailable, match="ReadTimeout"):
        await store.ping()
    assert time.monotonic() - started < 30
    server.set_fault(None)
    await store.ping()
    await store.close()


async def test_a_server_that_restarts_is_found_again() -> None:
    with running_pinecone(2) as first:
        store = await open_pinecone(first.url, lambda: KEY)
        await store.upsert([entry(1, [1, 0])])
        port = first.server_address[1]
    with pytest.raises(VectorStoreUnavailable, match="cannot be reached"):
        await store.ping()
    second = PineconeServer(2, port)
    second.spaces = first.spaces
    second.start()
    try:
        assert await found(store) == [(1, 1)]
        await store.upsert([entry(1, [1, 0], version=2)])
        assert await found(store) == [(1, 2)]
    finally:
        second.stop()
        await store.close()


async def test_an_index_that_is_down_is_no_reason_not_to_start() -> None:
    with running_pinecone(2) as server:
        url = server.url
    store = await open_pinecone(url, lambda: KEY)
    with pytest.raises(VectorStoreUnavailable):
        await store.search("acme", SPACE, QUERY, 10, None)
    await store.close()


async def test_an_index_of_another_metric_is_refused() -> None:
    with running_pinecone(2, metric="dotproduct") as server, pytest.raises(DependencyUnavailable, match="cosine"):
        await open_pinecone(server.url, lambda: KEY)


# --- the key


async def test_a_refused_key_is_asked_for_once_and_never_shown(
    store: Pinecone, server: PineconeServer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    server.keys = {"another"}
    for step in (store.upsert([entry(1, [1, 0])]), found(store), store.ping()):
        server.calls.clear()
        with pytest.raises(VectorStoreUnavailable, match="401 UNAUTHENTICATED: check VECTOR_DB_API_KEY") as refused:
            await step
        assert len(server.calls) == 1
        assert refused.value.retryable  # the row is not at fault: it waits for the key
        assert KEY not in str(refused.value) + repr(refused.value.__context__)
    for fault in ("500", "throttle", "400"):  # whose bodies quote the key
        server.keys, server.retry_after = {KEY}, "0"
        server.set_fault(fault)
        with pytest.raises(VectorStoreUnavailable) as broken:
            await store.ping()
        assert KEY not in str(broken.value)
    assert KEY not in caplog.text
    assert KEY not in repr(store)


async def test_a_new_key_in_the_file_is_taken_without_a_restart(
    server: PineconeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "key"
    file.write_text(f"{KEY}\n")
    for name, value in {
        "VECTOR_DB_PROVIDER": "pinecone",
        "VECTOR_DB_ENDPOINT": server.url,
        "VECTOR_DB_API_KEY_FILE": str(file),
    }.items():
        monkeypatch.setenv(name, value)
    store = await open_vectors(config.load())
    assert store.provider == "pinecone"
    await store.upsert([entry(1, [1, 0])])
    server.keys = {"the-next-key"}
    file.unlink()  # in the midst of being replaced
    with pytest.raises(VectorStoreUnavailable, match="401"):
        await store.ping()
    file.write_text("the-next-key")
    await store.upsert([entry(1, [1, 0], version=2)])
    assert [hit.version for hit in (await store.search("acme", SPACE, QUERY, 1, None)).hits] == [2]
    await store.close()


@pytest.mark.parametrize(
    "endpoint",
    ["http://index.example.com", "ftp://127.0.0.1", "https://user:secret@index.example.com", "", "https://[::1"],
)
def test_endpoints_that_cannot_be(endpoint: str) -> None:
    with pytest.raises(UsageError, match="VECTOR_DB_ENDPOINT") as refused:
        check_endpoint(endpoint)
    assert "secret" not in str(refused.value)


def test_endpoints_and_keys_that_can() -> None:
    assert str(check_endpoint("docs-abc.svc.aped-1.example.io")).rstrip("/") == "https://docs-abc.svc.aped-1.example.io"
    assert check_endpoint(" http://localhost:5081/ ").port == 5081
    assert check_key("pcsk_1") == "pcsk_1"
    for wrong in (None, "", "two words", "pcsk_secret\n", "schlüssel"):
        with pytest.raises(UsageError) as refused:
            check_key(wrong)
        assert "pcsk_secret" not in str(refused.value)
    assert [retry_after(text) for text in (None, "3", "1.5", "soon", "Thu, 01 Jan 1970 00:00:00 GMT")] == [
        None,
        3,
        1.5,
        None,
        0,
    ]


async def test_settings_that_are_missing_are_named(server: PineconeServer) -> None:
    with pytest.raises(UsageError, match="VECTOR_DB_ENDPOINT"):
        await open_vectors(config.load({}, vector_db_provider="pinecone"))
    with pytest.raises(UsageError, match="VECTOR_DB_API_KEY"):
        await open_vectors(config.load({}, vector_db_provider="pinecone", vector_db_endpoint=server.url))


# --- what shows late


async def test_a_write_is_searchable_when_it_returns(store: Pinecone, server: PineconeServer) -> None:
    server.visibility_delay = 0.15
    await store.upsert([entry(1, [1, 0]), entry(2, [0, 1])])
    assert await found(store) == [(1, 1), (2, 1)]
    await store.delete("acme", SPACE, [(uuid.UUID(int=1), 1)])
    assert await found(store) == [(2, 1)]
    await asyncio.gather(*(store.upsert([entry(3, [1, n], version=n)]) for n in (2, 3, 1)))
    assert await found(store) == [(3, 3), (2, 1)]


async def test_an_index_that_lags_is_unavailable_until_it_has_caught_up(server: PineconeServer) -> None:
    store = await open_pinecone(server.url, lambda: KEY, visible_within=0.05)
    server.frozen = True
    with pytest.raises(VectorStoreUnavailable, match="did not show") as late:
        await store.upsert([entry(1, [1, 0])])
    assert late.value.retryable
    with pytest.raises(VectorStoreUnavailable, match="not show yet"):  # so a worker spends none of the row's attempts
        await store.ping()
    with pytest.raises(VectorStoreUnavailable):
        await store.upsert([entry(1, [0, 1], version=2)])
    with pytest.raises(VectorStoreUnavailable):
        await store.upsert([entry(2, [1, 0])])
    await store.upsert([entry(1, [1, 0])])  # older than what this process wrote, shown or not: nothing to do
    server.frozen = False
    await store.ping()
    assert await found(store) == [(2, 1), (1, 2)]
    await store.close()


async def test_without_positions_nothing_is_waited_for(store: Pinecone, server: PineconeServer) -> None:
    server.tells_lsn = False
    await store.upsert([entry(1, [1, 0])])
    assert await found(store) == [(1, 1)]


async def test_namespaces_that_are_not_known_yet(store: Pinecone, server: PineconeServer) -> None:
    server.unknown_is_404 = True
    assert await found(store) == []
    await store.delete("acme", SPACE, [(uuid.UUID(int=1), 1)])
    await store.upsert([entry(1, [1, 0], version=2)])
    assert await found(store) == [(1, 2)]


async def test_a_writer_in_another_process_is_older(store: Pinecone, server: PineconeServer) -> None:
    other = await open_pinecone(server.url, lambda: KEY)
    await store.upsert([entry(1, [1, 0], version=5)])
    await store.delete("acme", SPACE, [(uuid.UUID(int=2), 5)])
    for version in (3, 4, 5):
        await other.upsert([entry(2, [1, 0], version=version)])
    await other.upsert([entry(1, [0, 1], version=4)])
    await other.delete("acme", SPACE, [(uuid.UUID(int=1), 4)])
    assert await found(other) == await found(store) == [(1, 5)]
    await other.close()


async def test_a_late_writer_that_came_last_is_written_over(store: Pinecone, server: PineconeServer) -> None:
    def stale(space: str, ids: list[str]) -> None:
        record = Record(np.array([0, 1], np.float32), json.loads(live_metadata(1, {})))
        server.take(space, lambda held: held.update(dict.fromkeys(ids, record)))

    def once(space: str, ids: list[str]) -> None:
        server.after_upsert = None
        stale(space, ids)

    server.after_upsert = once
    await store.upsert([entry(1, [1, 0], version=2)])
    assert await found(store) == [(1, 2)]
    server.after_upsert = once
    await store.delete("acme", SPACE, [(uuid.UUID(int=1), 3)])
    assert await found(store) == []
    server.after_upsert = stale  # and again, and again
    with pytest.raises(VectorStoreUnavailable, match="older vectors over newer") as refused:
        await store.upsert([entry(2, [1, 0], version=2)])
    assert refused.value.retryable


async def test_a_removal_leaves_nothing_of_the_node_and_its_mark_goes_after_a_day(
    store: Pinecone, server: PineconeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    await store.upsert([entry(n, [0.6, 0.8], owner="ann", metadata={"secret": "word"}) for n in (1, 2)])
    await store.delete("acme", SPACE, [(uuid.UUID(int=1), 4)])
    server.take("someone-elses", lambda held: held.update(x=Record(QUERY, {"_live": False, "_removed": 1})))
    held = server.settle("acme__kernel-memory").records
    mark = held[str(uuid.UUID(int=1))]
    assert (mark.values.tolist(), sorted(mark.metadata)) == ([1, 0], ["_live", "_removed", "_version"])
    await store.sweep()
    assert len(server.settle("acme__kernel-memory").records) == 2
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 90_000)
    await store.sweep()
    assert list(server.settle("acme__kernel-memory").records) == [str(uuid.UUID(int=2))]
    assert list(server.settle("someone-elses").records) == ["x"]


async def test_beyond_ten_thousand_there_is_nothing(store: Pinecone, server: PineconeServer) -> None:
    rows = np.random.default_rng(2).normal(size=(10_050, 2)).astype(np.float32)
    space = encode_namespace("acme", SPACE)
    metadata = json.loads(live_metadata(1, {}))
    records = {str(uuid.UUID(int=n)): Record(row, metadata) for n, row in enumerate(rows)}
    server.take(space, lambda held: held.update(records))
    pages = [(await store.search("acme", SPACE, QUERY, 500, None, skip)).hits for skip in (0, 600, 9_800, 10_000)]
    assert [len(page) for page in pages] == [500, 500, 200, 0]
    scores = [hit.score for page in pages for hit in page]
    assert scores == sorted(scores, reverse=True)


# --- through the product


@pytest.mark.slow
def test_the_product_searches_and_deletes_in_pinecone(data_folder: Path) -> None:
    with running_pinecone(384, delay=0.05) as server:
        environment = {"VECTOR_DB_PROVIDER": "pinecone", "VECTOR_DB_ENDPOINT": server.url, "VECTOR_DB_API_KEY": KEY}
        with (
            running_product(data=data_folder, environment=environment) as product,
            connect(product, "default") as http,
        ):
            cat = create_indexed(http, content="The cat sleeps on the warm sofa.", owner="ann")
            dog = create_indexed(http, content="A dog is running through the park.", owner="bob")
            assert found_ids(http, query="a kitten napping on the couch", mode="semantic") == [cat, dog]
            assert search(http, query="kitten", mode="semantic")["exact"] is False  # Pinecone's index is approximate
            assert found_ids(http, query="kitten", mode="semantic", filter={"owner": {"$ne": "ann"}}) == [dog]
            assert http.delete(f"/v1/memory/nodes/{cat}").status_code in (200, 202, 204)
            assert found_ids(http, query="a kitten napping on the couch", mode="semantic") == [dog]
            # The removal is done before anything breaks: a breaker that it opened would keep the bird from being tried.
            with product.owner() as database:
                gone = "SELECT FROM memory_vectors WHERE memory_node_id = %s AND status = 'deleted'"
                assert eventually(lambda: database.execute(gone, [cat]).fetchone(), lambda row: row is not None) == ()
            server.set_fault("500")
            answer = http.post("/v1/memory/search", json={"query": "kitten", "mode": "semantic"})
            assert (answer.status_code, answer.json()["error"]["code"]) == (503, "VECTOR_STORE_UNAVAILABLE")
            server.set_fault(None)
            # A key that is refused costs no row its life: what was written meanwhile is indexed once the key is good again.
            server.keys = {"another"}
            bird = create(http, content="A bird sings in the tree.", owner="eve")
            with product.owner() as database:
                status = "SELECT status, error FROM memory_vectors WHERE memory_node_id = %s AND error IS NOT NULL"
                row = eventually(lambda: database.execute(status, [bird]).fetchone(), lambda row: row is not None)
            assert row is not None
            assert row[0] in ("pending", "in_flight")
            assert "401 UNAUTHENTICATED" in str(row[1])
            server.keys = {KEY}
            indexed(http, bird)
            assert found_ids(http, query="a bird", mode="semantic") == [bird, dog]
            assert KEY not in data_folder.with_name(data_folder.name + ".out").read_text()
        assert server.faulty_answers == []
