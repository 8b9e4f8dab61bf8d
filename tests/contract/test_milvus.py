"""The Milvus adapter's own: limits, restarts, errors, tokens, collections, the interim index; through the product once.

What is marked ``real`` runs on a Milvus 2.3.5; nothing here was run on a newer server, whose partition key therefore is not tried.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import socket
import sys
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
from memory_layer.errors import (
    DependencyUnavailable,
    DimensionMismatch,
    UsageError,
    ValidationError,
    VectorStoreUnavailable,
)
from memory_layer.filters import parse
from memory_layer.stores.protocols import VectorEntry
from memory_layer.stores.vectors import open_vectors
from memory_layer.stores.vectors.milvus import Milvus, open_milvus
from memory_layer.stores.vectors.milvus_records import (
    DEEPEST,
    MAX_ROWS,
    collection_name,
    collection_spec,
    dimension_of,
    expression,
    key_of,
    portions,
    space_name,
)
from memory_layer.stores.vectors.milvus_wire import check_endpoint, check_token, check_version
from tests.api.door import connect, create_indexed, eventually, found_ids, search
from tests.contract.test_vector_filters import FILTERS
from tests.support import milvus_server
from tests.support.milvus_server import MilvusServer, running_milvus
from tests.support.product import running_product
from tests.support.vector_entries import SPACE, entry, found, hits, node

QUERY = np.array([1, 0], np.float32)
TOKEN = "root:Milvus"  # what a new Milvus has


def start(**how: Any) -> contextlib.AbstractContextManager[MilvusServer]:
    if (reason := milvus_server.missing()) is not None:
        pytest.skip(reason)
    return running_milvus(**how)


@pytest.fixture(scope="module")
def server() -> Iterator[MilvusServer]:
    with start() as running:
        yield running


@pytest.fixture
async def store(server: MilvusServer) -> AsyncIterator[Milvus]:
    opened = await open_milvus(server.url, lambda: None, call_timeout=60)
    yield opened
    await opened.close()


@contextlib.asynccontextmanager
async def raw(server: MilvusServer, **how: Any) -> AsyncIterator[Any]:
    """Milvus's own client, to look beneath the adapter."""
    from pymilvus import AsyncMilvusClient

    client = AsyncMilvusClient(server.url, dedicated=True, **how)
    yield client
    await client.close()


# --- names, expressions, portions: no server


def test_collections_are_named_as_milvus_allows() -> None:
    assert collection_name("dev", 384) == "kernel_memory_dev_384"
    assert collection_name("prod", None) == "kernel_memory_prod_removed"
    assert re.fullmatch("[A-Za-z0-9_]+", collection_name("a-b.c", 3))
    names = {"kernel_memory_dev_384": 384, "kernel_memory_dev_removed": None, "kernel_memory_devil_384": None,
             "kernel_memory_dev_0": None, "kernel_memory_dev_3x": None, "other": None}  # fmt: skip
    assert {name: dimension_of("dev", name) for name in names} == names


def test_the_partition_key_waits_for_a_server_that_keeps_to_it() -> None:
    assert not collection_spec("dev", 384, version=(2, 3, 5)).partition_key
    assert not collection_spec("dev", 384, version=None).partition_key
    assert collection_spec("dev", 384, version=(2, 4, 0)).partition_key
    assert not collection_spec("dev", None, version=(2, 6, 0)).partition_key


@pytest.mark.parametrize("text", ["v2.3.5-lite", "v2.3.5", "2.6.1", "v3.0", "milvus_lite-3.2.2"])
def test_versions_that_are_served(text: str) -> None:
    version = check_version(text)
    assert version is None if "_lite" in text else version is not None and version >= (2, 3, 5)


@pytest.mark.parametrize("text", ["v2.3.4", "v2.2.16", "1.9.99", "", "nightly"])
def test_older_servers_are_refused_with_what_to_do(text: str) -> None:
    with pytest.raises(DependencyUnavailable, match=r"needs Milvus 2\.3\.5 or newer.*Upgrade it"):
        check_version(text)


def test_endpoints_and_tokens() -> None:
    assert check_endpoint(" milvus ").url == "http://milvus:19530"
    assert check_endpoint("https://milvus.example.com/memory") == ("https://milvus.example.com:443", "memory", "milvus.example.com:443")  # fmt: skip
    assert check_endpoint("http://[::1]:19531/").url == "http://[::1]:19531"
    assert [check_token(text) for text in (None, "", "root:Milvus")] == [None, None, "root:Milvus"]
    for wrong in ("http://user:hidden@milvus", "ftp://milvus", "", "http://[::1", "http://milvus/a/b", "http://milvus?x=hidden", "http://milvus:x"):  # fmt: skip
        with pytest.raises(UsageError, match="VECTOR_DB_ENDPOINT") as refused:
            check_endpoint(wrong)
        assert "hidden" not in str(refused.value)
    for wrong in ("user:hidden word", "hidden\n"):
        with pytest.raises(UsageError, match="VECTOR_DB_API_KEY") as refused:
            check_token(wrong)
        assert "hidden" not in str(refused.value)


@given(st.lists(st.tuples(st.integers(), st.integers(1, 300)), max_size=60), st.integers(100, 1000))
def test_portions_keep_all_in_order(rows: list[tuple[int, int]], most: int) -> None:
    made = list(portions(rows, most))
    assert [row for portion in made for row in portion] == [row for row, _ in rows]
    sizes = iter(size for _, size in rows)
    for portion in made:
        taken = [next(sizes) for _ in portion]
        assert len(taken) == 1 or sum(taken) <= most
    assert [len(one) for one in portions([(1, 1)] * (MAX_ROWS + 1))] == [MAX_ROWS, 1]


NAMES = st.text(st.sampled_from("a_-.:%\"'\\ h0é日"), max_size=12)


@given(st.tuples(NAMES, NAMES), st.tuples(NAMES, NAMES), st.uuids(), st.uuids())
def test_no_two_nodes_share_a_key(one: tuple[str, str], other: tuple[str, str], a: uuid.UUID, b: uuid.UUID) -> None:
    keys = key_of(space_name(*one), a), key_of(space_name(*other), b)
    assert (keys[0] == keys[1]) == ((one, a) == (other, b))
    assert all(re.fullmatch("[A-Za-z0-9_-]{32}[0-9a-f]{32}", key) for key in keys)


_WORDS = re.compile(
    r'"[A-Za-z0-9_.=-]*"|-?[0-9.e+-]+|and|or|not|json_contains_any|space|facts|rank|true|false|[\[\](),]|[<>=]=?'
)


@given(NAMES, NAMES, FILTERS)
def test_nothing_of_a_caller_stands_in_an_expression(tenant: str, namespace: str, obj: Any) -> None:
    try:
        where = parse(obj)
    except ValidationError:
        return  # a value that its field cannot be compared with
    text = expression(space_name(tenant, namespace), where)
    assert _WORDS.sub("", text).strip() == "", text


async def test_settings_that_are_missing_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="VECTOR_DB_ENDPOINT"):
        await open_vectors(config.load({}, vector_db_provider="milvus"))
    monkeypatch.setitem(sys.modules, "pymilvus", None)  # as where the extra is not installed
    with pytest.raises(UsageError, match=r"pip install .*\[server,milvus\]"):
        await open_vectors(config.load({}, vector_db_provider="milvus", vector_db_endpoint="http://127.0.0.1:1"))


# --- restarts, silence, refusals


@pytest.mark.real
async def test_the_server_tells_its_version(store: Milvus) -> None:
    assert await store.server_version() == "v2.3.5-lite"


@pytest.mark.real
async def test_a_server_that_is_killed_and_started_again_is_found_by_the_same_adapter(
    server: MilvusServer, store: Milvus, tenant: str
) -> None:
    await store.upsert([entry(tenant, 1, [1, 0])])
    await store.delete(tenant, SPACE, [(node(2), 4)])
    server.kill()
    try:
        started = time.monotonic()
        for step in (
            store.ping,
            lambda: found(store, tenant, [1, 0]),
            lambda: store.upsert([entry(tenant, 3, [1, 0])]),
        ):
            with pytest.raises(VectorStoreUnavailable, match="cannot be reached") as refused:
                await step()
            assert refused.value.retryable
        assert time.monotonic() - started < 15
        late = await open_milvus(server.url, lambda: None)  # a server that is down is no reason not to start
    finally:
        server.start()
    for one in (store, late):
        assert await eventually_found(one, tenant) == [1]
        await one.upsert([entry(tenant, 2, [1, 0], version=4)])  # its removal outlived the kill
        await one.upsert([entry(tenant, 1, [0, 1], version=2)])
        assert [(h.node_id.int, h.version) for h in await hits(one, tenant, [1, 0])] == [(1, 2)]
    await late.close()


async def eventually_found(store: Milvus, tenant: str) -> list[int]:
    """A server says that it is up before it has its collections in memory again."""
    deadline = time.monotonic() + 60
    while True:
        try:
            return await found(store, tenant, [1, 0])
        except VectorStoreUnavailable as error:
            if not error.retryable or time.monotonic() > deadline:
                raise
            await asyncio.sleep(0.2)


@pytest.mark.real
async def test_silence_ends(server: MilvusServer, tenant: str) -> None:
    store = await open_milvus(server.url, lambda: None, call_timeout=0.5)
    await store.upsert([entry(tenant, 1, [1, 0])])
    server.pause()
    try:
        for step in (store.ping, lambda: found(store, tenant, [1, 0]), lambda: store.fetch(tenant, SPACE, [node(1)])):
            started = time.monotonic()
            with pytest.raises(VectorStoreUnavailable) as refused:
                await step()
            assert refused.value.retryable
            assert time.monotonic() - started < 5
    finally:
        server.resume()
    assert await eventually_found(store, tenant) == [1]
    await store.close()


@pytest.mark.real
async def test_a_server_at_its_limits_is_given_a_pause(store: Milvus) -> None:
    """Its answers as pymilvus raises them; the server itself says so only under quotas that this release's wheel does not set."""
    from pymilvus.exceptions import MilvusException

    for code in (4, 8, 9):  # service busy, quota exhausted, rate limit

        async def refuse(_: Any, code: int = code) -> None:
            raise MilvusException(code=code, message="secret: too much")

        with pytest.raises(VectorStoreUnavailable, match=f"at its limits .code {code}") as refused:
            await store._wire.call(refuse)
        assert (refused.value.retryable, refused.value.retry_after) == (True, 1)
        assert "secret" not in str(refused.value)


@pytest.mark.real
async def test_a_refusal_for_good_is_not_tried_again(store: Milvus, tenant: str) -> None:
    """By pymilvus, which knows the collection's fields, and by the server, which knows their lengths."""
    await store.upsert([entry(tenant, 1, [1, 0])])
    row = {"pk": "k", "space": "s", "node": "n", "rank": 2, "facts": {}, "embedding": [1.0, 0.0]}
    for change in ({"rank": "hidden"}, {"pk": "hidden" * 20}):
        calls = 0

        async def write(client: Any, change: dict[str, Any] = change) -> Any:
            nonlocal calls
            calls += 1
            return await client.upsert(store._held.name(2), [row | change], retry_times=3)

        with pytest.raises(VectorStoreUnavailable, match="refuses this request for good") as refused:
            await store._wire.call(write)
        assert (refused.value.retryable, calls) == (False, 1)
        assert "hidden" not in str(refused.value)
    assert await found(store, tenant, [1, 0]) == [1]


@pytest.mark.real
async def test_another_dimension_is_refused_before_it_is_written(
    server: MilvusServer, store: Milvus, tenant: str
) -> None:
    await store.upsert([entry(tenant, 1, [1, 0])])
    other = await open_milvus(server.url, lambda: None)  # which did not write the first
    for one in (store, other):
        with pytest.raises(DimensionMismatch, match="holds 2 dimensions, the vector has 3"):
            await one.upsert([entry(tenant, 9, [1, 0], space="beside"), entry(tenant, 2, [1, 0, 0])])
        assert (await one.count(tenant, SPACE), await one.count(tenant, "beside")) == (1, 0)
    await other.close()


@pytest.mark.real
async def test_a_refused_token_is_repaired_without_a_restart_and_never_shown(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
    tenant: str,
) -> None:
    caplog.set_level(logging.DEBUG)
    file = tmp_path / "token"
    file.write_text("root:not-the-password\n")
    with start(authorization=True) as guarded:
        for name, value in {
            "VECTOR_DB_PROVIDER": "milvus",
            "VECTOR_DB_ENDPOINT": guarded.url,
            "VECTOR_DB_API_KEY_FILE": str(file),
        }.items():
            monkeypatch.setenv(name, value)
        store = await open_vectors(config.load())  # no reason not to start
        for step in (store.ping, lambda: store.upsert([entry(tenant, 1, [1, 0])]), lambda: hits(store, tenant, [1, 0])):
            with pytest.raises(VectorStoreUnavailable, match="refuses the token: check VECTOR_DB_API_KEY") as refused:
                await step()
            assert refused.value.retryable  # the row is not at fault: it waits for the token
            assert "not-the-password" not in str(refused.value) + repr(refused.value.__context__)
        file.unlink()  # in the midst of being replaced
        with pytest.raises(VectorStoreUnavailable):
            await store.ping()
        file.write_text(TOKEN)
        await store.upsert([entry(tenant, 1, [1, 0])])
        assert await found(store, tenant, [1, 0]) == [1]
        # The password is changed under a running service.
        async with raw(guarded, token=TOKEN) as client:
            await client.update_password("root", "Milvus", "another-one")
        file.write_text("root:another-one")
        await eventually_ok(store.ping)
        assert await found(store, tenant, [1, 0]) == [1]
        await store.close()
    said = caplog.text + "".join(capfd.readouterr())
    for secret in ("not-the-password", "another-one", TOKEN):
        assert secret not in said
        assert secret not in repr(store)


async def eventually_ok(step: Any) -> None:
    deadline = time.monotonic() + 30
    while True:
        try:
            await step()
            return
        except VectorStoreUnavailable:
            if time.monotonic() > deadline:
                raise
            await asyncio.sleep(0.1)


# --- limits


@pytest.mark.real
@pytest.mark.slow
async def test_calls_larger_than_a_request_may_be_are_parted(store: Milvus, tenant: str) -> None:
    """By count, and by bytes: 90 MB, where a request holds 64."""
    await store.upsert([entry(tenant, n, [1, n]) for n in range(MAX_ROWS + 500)])
    assert await store.count(tenant, SPACE) == MAX_ROWS + 500
    wide = np.random.default_rng(1).normal(size=(700, 32_768)).astype(np.float32)
    await store.upsert([VectorEntry(tenant, "wide", node(n), 1, row, {}) for n, row in enumerate(wide)])
    assert await store.count(tenant, "wide") == 700
    fetched = await store.fetch(tenant, "wide", [node(n) for n in range(700)])
    assert sorted(record.node_id.int for record in fetched) == list(range(700))
    with pytest.raises(DimensionMismatch, match="32,768"):
        await store.upsert([VectorEntry(tenant, "wider", node(1), 1, np.ones(32_769, np.float32), {})])


@pytest.mark.real
@pytest.mark.slow
async def test_beyond_the_deepest_there_is_nothing(store: Milvus, tenant: str) -> None:
    rows = np.random.default_rng(2).normal(size=(DEEPEST + 100, 2)).tolist()
    await store.upsert([entry(tenant, n, row) for n, row in enumerate(rows)])
    pages = [await hits(store, tenant, [1, 0], limit=500, skip=skip) for skip in (0, 500, DEEPEST - 200, DEEPEST)]
    assert [len(page) for page in pages] == [500, 500, 200, 0]
    scores = [hit.score for page in pages for hit in page]
    assert scores == sorted(scores, reverse=True)
    seen: set[int] = set()
    cursor = None
    while True:  # several pages of the largest size
        page = await store.scan(tenant, SPACE, cursor, 10_000)
        seen |= {record.node_id.int for record in page.records}
        cursor = page.cursor
        if cursor is None:
            break
    assert seen == set(range(DEEPEST + 100))


@pytest.mark.real
def test_the_tests_server_listens_on_loopback_alone(server: MilvusServer) -> None:
    """By the kernel's table of this network (man proc_net_tcp): local address and port in hex, state 0A is LISTEN."""
    lines = [
        line.split() for name in ("tcp", "tcp6") for line in Path(f"/proc/net/{name}").read_text().splitlines()[1:]
    ]
    listening = [line[1].split(":") for line in lines if line[3] == "0A"]
    assert [address for address, port in listening if int(port, 16) == server.port] == ["0100007F"]
    with pytest.raises(ConnectionRefusedError), socket.socket() as other:
        other.connect(("127.0.0.2", server.port))


# --- versions


@pytest.mark.real
async def test_a_writer_in_another_process_is_older(server: MilvusServer, store: Milvus, tenant: str) -> None:
    other = await open_milvus(server.url, lambda: None)
    await store.upsert([entry(tenant, 1, [1, 0], version=5)])
    await store.delete(tenant, SPACE, [(node(2), 5)])
    for version in (3, 4, 5):
        await other.upsert([entry(tenant, 2, [1, 0], version=version)])
    await other.upsert([entry(tenant, 1, [0, 1], version=4)])
    await other.delete(tenant, SPACE, [(node(1), 4)])
    for one in (other, store):
        assert [(h.node_id.int, h.version) for h in await hits(one, tenant, [1, 0])] == [(1, 5)]
    await other.close()


@pytest.mark.real
@pytest.mark.parametrize("shows", ["nothing yet", "what was dropped"])
async def test_a_replica_that_lags_neither_admits_older_versions_nor_keeps_out_what_follows_a_drop(
    server: MilvusServer, store: Milvus, tenant: str, shows: str
) -> None:
    """Readings with Bounded are answered as they once were, as a second replica would, for which two query nodes are needed."""
    other = await open_milvus(server.url, lambda: None)
    by_key = store._held.by_key
    past: dict[str, list[dict[str, Any]]] = {}

    async def lagging(
        collection: str, keys: list[str], fields: list[str], *, dimension: int = 0, consistency: str = "Bounded"
    ) -> list[dict[str, Any]]:
        now = await by_key(collection, keys, fields, dimension=dimension, consistency=consistency)
        return past.setdefault(collection, now) if consistency == "Bounded" else now

    async def versions() -> dict[int, int]:
        return {h.node_id.int: h.version for h in await hits(other, tenant, [1, 0])}

    store._held.by_key = lagging  # type: ignore[method-assign]
    for _ in range(2):
        if shows == "what was dropped":
            past.clear()
        await store.upsert([entry(tenant, n, [1, 0], version=9) for n in (1, 2)])
    await store.upsert([entry(tenant, n, [1, 0], version=8) for n in (1, 2)])
    assert await versions() == {1: 9, 2: 9}
    await other.drop(tenant, SPACE)
    await store.upsert([entry(tenant, n, [1, 0], version=4) for n in (1, 2)])
    assert await versions() == {1: 4, 2: 4}
    await other.close()


@pytest.mark.real
async def test_many_namespaces_in_one_call(store: Milvus, tenant: str) -> None:
    spaces = [f"s{n}" for n in range(60)]
    await store.upsert([entry(tenant, 1, [1, n], space=space, version=2) for n, space in enumerate(spaces)])
    assert [(await hits(store, tenant, [1, 0], space=space))[0].version for space in spaces] == [2] * 60


@pytest.mark.real
async def test_a_removal_before_the_first_write_holds(server: MilvusServer, tenant: str) -> None:
    """In an environment that has no collection yet."""
    store = await open_milvus(server.url, lambda: None, f"fresh_{uuid.uuid4().hex[:8]}")
    await store.delete(tenant, SPACE, [(node(1), 3)])
    await store.upsert([entry(tenant, 1, [1, 0], version=2), entry(tenant, 2, [1, 0])])
    assert await found(store, tenant, [1, 0]) == [2]
    await store.close()


@pytest.mark.real
async def test_a_late_writer_that_came_last_is_written_over(store: Milvus, tenant: str) -> None:
    """Another process, simulated where its write would fall: between ours and the look at what stands."""
    send, space = store._held.send, space_name(tenant, SPACE)
    stale = {"space": space, "rank": 2, "facts": {"_has": ["-"], "_whole": True}, "embedding": [0.0, 1.0]}
    data = store._held.name(2)
    times = 1

    async def send_and_be_late(collection: str, rows: list[dict[str, Any]]) -> None:
        nonlocal times
        await send(collection, rows)
        if times:
            times -= 1
            await send(data, [stale | {"pk": row["pk"], "node": row["node"]} for row in rows])

    await store.upsert([entry(tenant, 9, [-1, 0])])
    store._held.send = send_and_be_late  # type: ignore[method-assign]
    await store.upsert([entry(tenant, 1, [1, 0], version=2)])
    assert [(h.node_id.int, h.version) for h in await hits(store, tenant, [1, 0])] == [(1, 2), (9, 1)]
    times = 1
    await store.delete(tenant, SPACE, [(node(1), 3)])
    assert await found(store, tenant, [1, 0]) == [9]
    times = 99  # and again, and again
    with pytest.raises(VectorStoreUnavailable, match="older vectors over newer") as refused:
        await store.upsert([entry(tenant, 2, [1, 0], version=2)])
    assert refused.value.retryable


@pytest.mark.real
async def test_a_removal_leaves_nothing_of_the_node_and_its_mark_goes_after_a_day(
    server: MilvusServer, monkeypatch: pytest.MonkeyPatch, tenant: str
) -> None:
    store = await open_milvus(server.url, lambda: None, f"marks_{uuid.uuid4().hex[:8]}")
    await store.sweep()  # with nothing there
    await store.upsert([entry(tenant, n, [0.6, 0.8], owner="ann", metadata={"secret": "word"}) for n in (1, 2)])
    await store.delete(tenant, SPACE, [(node(1), 4)])

    async def standing() -> tuple[list[str], list[dict[str, Any]]]:
        async with raw(server) as client:
            names = (store._held.name(2), store._held.marks)
            rows = [
                await client.query(name, filter="rank >= 0", output_fields=["*"], limit=100, consistency_level="Strong")
                for name in names
            ]
        return [row["node"] for row in rows[0]], [dict(row) for row in rows[1]]

    nodes, marks = await standing()
    assert nodes == [str(node(2))]
    ((mark),) = marks
    assert {k: v for k, v in mark.items() if k not in ("pk", "space", "node", "removed_at")} == {
        "rank": 9,
        "embedding": [1.0, 0.0],
    }
    await store.sweep()
    assert len((await standing())[1]) == 1
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 90_000)
    await store.sweep()
    monkeypatch.undo()
    assert await standing() == ([str(node(2))], [])
    await store.close()


# --- collections


@pytest.mark.real
async def test_what_is_released_dropped_or_half_made_is_repaired(
    server: MilvusServer, store: Milvus, tenant: str
) -> None:
    environment = f"mend_{uuid.uuid4().hex[:8]}"
    store = await open_milvus(server.url, lambda: None, environment)
    await store.upsert([entry(tenant, 1, [1, 0])])
    name = collection_name(environment, 2)
    async with raw(server) as client:
        await client.release_collection(name)
        assert await found(store, tenant, [1, 0]) == [1]
        await client.release_collection(name)
        await store.warm(tenant, SPACE)
        assert (await client.get_load_state(name))["state"].name == "Loaded"
        await client.release_collection(name)
        await client.drop_index(name, "embedding")
        other = await open_milvus(server.url, lambda: None, environment)
        await other.upsert([entry(tenant, 1, [1, 0], version=2)])
        assert [h.version for h in await hits(other, tenant, [1, 0])] == [2]
        await client.drop_collection(name)
    await eventually_ok(lambda: store.upsert([entry(tenant, 1, [1, 0], version=3)]))
    assert [h.version for h in await hits(store, tenant, [1, 0])] == [3]
    for one in (store, other):
        await one.close()


@pytest.mark.real
async def test_a_collection_that_is_not_ours_is_left_alone(server: MilvusServer, tenant: str) -> None:
    environment = f"foreign_{uuid.uuid4().hex[:8]}"
    async with raw(server) as client:
        await client.create_collection(collection_name(environment, 2), 2, metric_type="L2")
    store = await open_milvus(server.url, lambda: None, environment)
    with pytest.raises(DependencyUnavailable, match=r"not the Memory Layer's.*another database"):
        await store.upsert([entry(tenant, 1, [1, 0])])
    await store.close()


@pytest.mark.real
async def test_databases_keep_apart(server: MilvusServer, tenant: str) -> None:
    async with raw(server) as client:
        await client.create_database("memory_test")
    one = await open_milvus(f"{server.url}/memory_test", lambda: None)
    other = await open_milvus(server.url, lambda: None)
    await one.upsert([entry(tenant, 1, [1, 0])])
    assert await found(one, tenant, [1, 0]) == [1]
    assert await found(other, tenant, [1, 0]) == []
    for opened in (one, other):
        await opened.close()
    nowhere = await open_milvus(f"{server.url}/nowhere", lambda: None)
    with pytest.raises(VectorStoreUnavailable):
        await nowhere.upsert([entry(tenant, 1, [1, 0])])
    await nowhere.close()


# --- the index


@pytest.mark.real
@pytest.mark.slow
async def test_what_the_interim_index_passes_over_is_found_all_the_same(
    caplog: pytest.LogCaptureFixture, tenant: str
) -> None:
    """On a server with Milvus's own setting, which searches unsealed vectors through an index that loses filtered matches."""
    numbers = np.random.default_rng(4)
    matrix = numbers.normal(size=(8000, 384)).astype(np.float32)
    matrix /= np.linalg.norm(matrix, axis=1, keepdims=True)
    with start(interim_index=True) as careless:
        store = await open_milvus(careless.url, lambda: None)
        await store.upsert(
            [VectorEntry(tenant, SPACE, node(n), 1, row, {"metadata": {"n": n}}) for n, row in enumerate(matrix)]
        )
        for most in (3, 40, 400):
            for query in matrix[numbers.integers(0, 8000, 5)]:
                answer = await store.search(tenant, SPACE, query, 10, parse({"metadata.n": {"$lt": most}}))
                right = np.argsort(-(matrix[:most] @ query))[:10]
                assert [h.node_id.int for h in answer.hits] == right.tolist(), most
                assert answer.exact
        assert "interimIndex" in caplog.text
        # Sealed and indexed, it needs no such care: the warning's cause is gone.
        await store.optimise(tenant, SPACE)
        async with raw(careless) as client:
            index = await client.describe_index(store._held.name(384), "embedding")
        assert index["total_rows"] == 8000
        await store.close()


# --- through the product


@pytest.mark.real
def test_the_product_searches_and_deletes_in_milvus(server: MilvusServer, data_folder: Path) -> None:
    environment = {"VECTOR_DB_PROVIDER": "milvus", "VECTOR_DB_ENDPOINT": server.url}
    with running_product(data=data_folder, environment=environment) as product, connect(product, "default") as http:
        cat = create_indexed(http, content="The cat sleeps on the warm sofa.", owner="ann")
        dog = create_indexed(http, content="A dog is running through the park.", owner="bob")
        assert found_ids(http, query="a kitten napping on the couch", mode="semantic") == [cat, dog]
        assert search(http, query="kitten", mode="semantic")["exact"] is True  # all there is was compared
        assert found_ids(http, query="kitten", mode="semantic", filter={"owner": {"$ne": "ann"}}) == [dog]
        assert http.delete(f"/v1/memory/nodes/{cat}").status_code in (200, 202, 204)
        assert found_ids(http, query="a kitten napping on the couch", mode="semantic") == [dog]
        with product.owner() as database:
            left = "SELECT count(*) FROM memory_vectors WHERE memory_node_id = %s AND status <> 'deleted'"
            gone = eventually(lambda: database.execute(left, [cat]).fetchone(), lambda row: row == (0,))
        assert gone == (0,)
        server.kill()
        answer = http.post("/v1/memory/search", json={"query": "kitten", "mode": "semantic"})
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "VECTOR_STORE_UNAVAILABLE")
        server.start()
        again = eventually(
            lambda: http.post("/v1/memory/search", json={"query": "a dog", "mode": "semantic"}),
            lambda answer: answer.status_code == 200,
            within=60,
        )
        assert [hit["memoryNodeId"] for hit in again.json()["results"]] == [dog]
