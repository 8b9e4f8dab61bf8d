"""What every vector store does. ``exact`` is the oracle: the suite holds it to the contract, and the others to it.

``case`` names the numbers of the sixty cases that a test settles; the last test says that none is forgotten. What is one store's
own (its server, its limits) is in test_pgvector.py, test_pinecone.py and test_milvus.py, the stores are opened in conftest.py.
"""

from __future__ import annotations

import asyncio
import random
import re
import uuid
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest

from memory_layer.errors import DimensionMismatch, ValidationError
from memory_layer.filters import evaluate, parse
from memory_layer.stores.protocols import VectorEntry, VectorRecord, VectorStore
from tests.support.exact_vectors import ExactVectors
from tests.support.vector_entries import SPACE, entry, found, hits, node

CASES: dict[int, list[str]] = {}
PGVECTOR, PINECONE, MILVUS, WORKER = (
    "tests/contract/test_pgvector.py",
    "tests/contract/test_pinecone.py",
    "tests/contract/test_milvus.py",
    "tests/integration/test_worker.py",
)
#: Cases whose matter does not pass this seam, or is of one server: the tests that settle them, which must be there.
ELSEWHERE = {
    # The namespace's row in Postgres fixes the dimension, before there is anything to index; an index of Pinecone has one.
    14: [
        "tests/api/test_search.py::test_namespaces_keep_apart",
        f"{PINECONE}::test_another_dimension_never_leaves_the_process",
        f"{MILVUS}::test_another_dimension_is_refused_before_it_is_written",
    ],
    19: ["tests/api/test_filtered_search.py::test_external_ids_come_back_as_they_went_in"],  # beside every UUID, here
    21: ["tests/contract/test_vector_filters.py::test_pushed_down_filters_never_lose_a_match"],
    29: ["tests/api/test_filtered_search.py::test_a_score_that_is_the_threshold_counts"],  # it stands above the stores
    37: [
        "tests/contract/test_vector_filters.py::test_pushed_down_filters_never_lose_a_match",
        "tests/api/test_filtered_search.py::test_an_answer_is_what_the_exact_evaluator_says",
    ],
    # Whoever counts what a filter leaves counts rows in Postgres: this seam has no such call.
    44: ["tests/outside/test_haystack.py::TestHaystack"],
    49: [
        f"{PGVECTOR}::test_a_server_that_is_down_is_unavailable",
        f"{PINECONE}::test_silence_ends",
        f"{MILVUS}::test_a_server_that_is_killed_and_started_again_is_found_by_the_same_adapter",
    ],
    50: [
        f"{PGVECTOR}::test_a_server_that_is_down_is_unavailable",
        f"{PINECONE}::test_an_index_that_is_down_is_no_reason_not_to_start",
        f"{MILVUS}::test_a_server_that_is_killed_and_started_again_is_found_by_the_same_adapter",
    ],
    51: [
        f"{PGVECTOR}::test_a_server_that_goes_away_and_comes_back",
        f"{PINECONE}::test_a_server_that_restarts_is_found_again",
        f"{MILVUS}::test_a_server_that_is_killed_and_started_again_is_found_by_the_same_adapter",
    ],
    52: [
        f"{PINECONE}::test_silence_ends",
        f"{MILVUS}::test_silence_ends",
        f"{WORKER}::test_a_store_that_hangs_ends_the_round_in_time",
    ],
    53: [  # pgvector has no such answer
        f"{PINECONE}::test_a_long_pause_asked_for_is_handed_on",
        f"{MILVUS}::test_a_server_at_its_limits_is_given_a_pause",
    ],
    54: [
        f"{PINECONE}::test_a_refusal_for_good_is_not_tried_again",
        f"{MILVUS}::test_a_refusal_for_good_is_not_tried_again",
    ],
    55: [  # pgvector has the password of its DSN
        f"{PINECONE}::test_a_refused_key_is_asked_for_once_and_never_shown",
        f"{MILVUS}::test_a_refused_token_is_repaired_without_a_restart_and_never_shown",
    ],
    56: [f"{WORKER}::test_what_a_killed_worker_left_is_indexed_half_a_minute_later"],
    59: [
        f"{PGVECTOR}::test_a_server_without_the_table_says_what_to_do",
        f"{MILVUS}::test_older_servers_are_refused_with_what_to_do",
        f"{MILVUS}::test_a_collection_that_is_not_ours_is_left_alone",
        "tests/cli/test_provision_vectors.py::test_an_extension_that_is_too_old_is_reported_and_left_alone",
    ],
}

_Test = TypeVar("_Test", bound=Callable[..., Any])


def case(*numbers: int) -> Callable[[_Test], _Test]:
    def note(test: _Test) -> _Test:
        for number in numbers:
            CASES.setdefault(number, []).append(test.__name__)
        return test

    return note


@case(1, 25, 26)
async def test_nearest_first_with_version_and_cosine(store: VectorStore, tenant: str) -> None:
    await store.upsert([entry(tenant, 1, [1, 0]), entry(tenant, 2, [1, 1], version=7), entry(tenant, 3, [-1, 0])])
    answer = await hits(store, tenant, [5, 0])
    assert [(h.node_id, h.version) for h in answer] == [(node(1), 1), (node(2), 7), (node(3), 1)]
    assert [h.score for h in answer] == pytest.approx([1, 2**-0.5, -1], abs=1e-6)


@case(8, 12, 31, 33)
async def test_nothing_there_is_nothing_found(store: VectorStore, tenant: str) -> None:
    assert await hits(store, tenant, [1, 0]) == []
    await store.upsert([])
    await store.delete(tenant, SPACE, [])
    await store.upsert([entry(tenant, 1, [1, 0])])
    assert await hits(store, tenant, [1, 0], limit=0) == []


@case(3, 4, 5)
async def test_a_newer_version_replaces_an_older_never(store: VectorStore, tenant: str) -> None:
    await store.upsert([entry(tenant, 1, [1, 0], version=3, owner="old")])
    await store.upsert([entry(tenant, 1, [0, 1], version=4, owner="new")])
    await store.upsert([entry(tenant, 1, [-1, 0], version=3, owner="late")])
    (hit,) = await hits(store, tenant, [0, 1])
    assert (hit.version, hit.score) == (4, pytest.approx(1))
    assert await found(store, tenant, [0, 1], where={"owner": "new"}) == [1]
    assert await found(store, tenant, [0, 1], where={"owner": "late"}) == []
    await store.upsert([entry(tenant, 1, [0, 1], version=5, metadata={"a": 1})])
    assert await found(store, tenant, [0, 1], where={"owner": {"$exists": True}}) == []  # replaced, not merged


@case(2, 6)
async def test_the_same_version_again_changes_nothing_or_repairs(store: VectorStore, tenant: str) -> None:
    for _ in range(3):
        await store.upsert([entry(tenant, 1, [1, 0], version=2)])
        assert await store.count(tenant, SPACE) == 1
    assert [(h.node_id, h.version) for h in await hits(store, tenant, [1, 0])] == [(node(1), 2)]
    await store.upsert([entry(tenant, 1, [0, 1], version=2)])
    assert (await hits(store, tenant, [0, 1]))[0].score == pytest.approx(1)


@case(13)
async def test_of_one_node_twice_in_a_call_the_newest_counts(store: VectorStore, tenant: str) -> None:
    await store.upsert([entry(tenant, 1, [0, 1], version=2), entry(tenant, 1, [1, 0], version=1)])
    assert [(h.version, round(h.score)) for h in await hits(store, tenant, [0, 1])] == [(2, 1)]
    await store.delete(tenant, SPACE, [(node(1), 1), (node(1), 2)])
    assert await found(store, tenant, [0, 1]) == []


@case(8, 9, 40)
@pytest.mark.parametrize(("at", "left"), [(4, [1]), (5, []), (6, [])])
async def test_a_delete_takes_its_version_and_older_ones(
    store: VectorStore, tenant: str, at: int, left: list[int]
) -> None:
    await store.upsert([entry(tenant, 1, [1, 0], version=5)])
    for _ in range(2):
        await store.delete(tenant, SPACE, [(node(1), at), (node(99), 1)])
        assert await found(store, tenant, [1, 0]) == left


@case(7)
async def test_a_late_writer_brings_nothing_back(store: VectorStore, tenant: str) -> None:
    await store.upsert([entry(tenant, 1, [1, 0], version=1)])
    await store.delete(tenant, SPACE, [(node(1), 3), (node(2), 3)])
    await store.delete(tenant, SPACE, [(node(1), 2), (node(2), 2)])  # a late delete lowers no barrier
    for version in (1, 2, 3):
        await store.upsert([entry(tenant, n, [1, 0], version=version) for n in (1, 2)])
        assert await found(store, tenant, [1, 0]) == []
    await store.upsert([entry(tenant, n, [1, 0], version=4) for n in (1, 2)])
    assert await found(store, tenant, [1, 0]) == [1, 2]
    await store.delete(tenant, SPACE, [(node(1), 3)])
    assert await found(store, tenant, [1, 0]) == [1, 2]


@case(23, 34)
async def test_tenants_and_namespaces_keep_apart(store: VectorStore, tenant: str) -> None:
    places = [(tenant, SPACE), (tenant, "other"), (f"{tenant}x", SPACE), (tenant, "%"), (f"{tenant}'", 'a"b\\'),
              (tenant, "日" * 255), (tenant, "日" * 254 + "月"), (f"{tenant}_", "_"), (tenant, "___"), (f"{tenant}__", "")]  # fmt: skip
    for number, (who, space) in enumerate(places):
        await store.upsert([entry(who, 1, [1, number], space=space, version=number + 1)])
    for number, (who, space) in enumerate(places):
        assert [h.version for h in await hits(store, who, [1, 0], space=space)] == [number + 1]
    await store.delete(tenant, SPACE, [(node(1), 99)])
    assert [len(await hits(store, who, [1, 0], space=space)) for who, space in places] == [0] + [1] * (len(places) - 1)


@case(28, 30)
async def test_ties_go_by_node_id_and_pages_join(store: VectorStore, tenant: str) -> None:
    numbers = [5, 3, 2**127, 1, 2**64, 4, 2, 2**100]
    await store.upsert([entry(tenant, n, [1, 1]) for n in numbers] + [entry(tenant, 9, [1, 0])])
    whole = [9, *sorted(numbers)]
    assert await found(store, tenant, [1, 0], limit=20) == whole
    for size in (1, 3, 4):
        pages = [await found(store, tenant, [1, 0], limit=size, skip=skip) for skip in range(0, 12, size)]
        assert [n for page in pages for n in page] == whole
    assert await found(store, tenant, [1, 0], skip=100) == []
    assert [await found(store, tenant, [1, 0], limit=4) for _ in range(5)] == [whole[:4]] * 5


@case(28)
async def test_a_page_in_the_midst_of_many_ties(store: VectorStore, tenant: str) -> None:
    await store.upsert([entry(tenant, n, [1, 1]) for n in range(100)])
    pages = [await found(store, tenant, [1, 0], limit=7, skip=skip) for skip in range(0, 105, 7)]
    assert [n for page in pages for n in page] == list(range(100))


@case(24)
async def test_each_namespace_has_its_dimension(store: VectorStore, tenant: str) -> None:
    await store.upsert([entry(tenant, 1, [1, 0])])
    if not store.capabilities.mixed_dimensions:
        for step in (store.upsert([entry(tenant, 2, [1, 0, 0])]), hits(store, tenant, [1, 0, 0])):
            with pytest.raises(DimensionMismatch):
                await step
        return
    await store.upsert([entry(tenant, 2, [1, 0, 0], space="three")])
    assert await found(store, tenant, [1, 0]) == [1]
    assert await found(store, tenant, [1, 0, 0], space="three") == [2]
    for query, space in (([1.0, 0, 0], SPACE), ([1.0, 0], "three")):
        with pytest.raises(DimensionMismatch):
            await hits(store, tenant, query, space=space)
    assert await found(store, tenant, [1, 0]) == [1]


@case(27)
async def test_long_vectors_are_kept_exactly(make: Callable[[int], Awaitable[VectorStore]], tenant: str) -> None:
    store = await make(3072)
    matrix = np.random.default_rng(7).normal(size=(40, 3072)).astype(np.float32)
    matrix /= np.linalg.norm(matrix, axis=1, keepdims=True)
    await store.upsert([VectorEntry(tenant, SPACE, node(n), 1, row, {}) for n, row in enumerate(matrix)])
    answer = (await store.search(tenant, SPACE, matrix[11], 40, None)).hits
    scores = matrix @ matrix[11]
    assert [h.node_id.int for h in answer] == list(np.argsort(-scores))
    assert [h.score for h in answer] == pytest.approx(sorted(scores, reverse=True), abs=1e-5)


KEYS = ["a", "a b", "ä", "日本", "😀", "a'b", 'a"b', "a\\b", "%", "%s", "%(tenant)s", "_", "$", "$eq", "{}", "[0]", "*", "@", "a\tb",
        "\x7f", "a/b", "--", ";", "null", "true"]  # fmt: skip


@case(38)
@pytest.mark.parametrize("key", KEYS)
async def test_keys_and_values_are_data(store: VectorStore, tenant: str, key: str) -> None:
    await store.upsert(
        [
            entry(tenant, 1, [1, 0], metadata={key: key, "n": {key: [1, {key: "deep"}]}}),
            entry(tenant, 2, [1, 0], metadata={"other": key}),
        ]
    )
    for where in (
        {f"metadata.{key}": key},
        {f"metadata.{key}": {"$in": ["x", key]}},
        {f"metadata.{key}": {"$exists": True}},
        {f"metadata.n.{key}": {"$gte": 1}},
        {f"metadata.n.{key}.{key}": "deep"},
        {f"metadata.n.{key}.{key}": {"$all": ["deep"]}},
    ):
        assert await found(store, tenant, [1, 0], where=where) == [1], where
    assert await found(store, tenant, [1, 0], where={f"metadata.{key}": {"$ne": key}}) == [2]


async def test_long_lists_in_filters(store: VectorStore, tenant: str) -> None:
    await store.upsert([entry(tenant, n, [1, 0], metadata={"n": n, "tags": [n, n + 1]}) for n in range(20)])
    long = [5, 7, *range(1000, 1998)]
    assert await found(store, tenant, [1, 0], where={"metadata.n": {"$in": long}}) == [5, 7]
    many = {"$or": [{"metadata.n": {"$in": long}} for _ in range(64)]}
    assert set(await found(store, tenant, [1, 0], limit=20, where=many)) >= {5, 7}  # some lists may be left to the row
    wide = await found(store, tenant, [1, 0], limit=20, where={"metadata.tags": {"$all": long}})
    assert wide in ([], list(range(20)))  # may be left to the row, may not lose one
    assert await found(store, tenant, [1, 0], limit=20, where={"metadata.n": {"$nin": list(range(5, 1000))}}) == [
        0,
        1,
        2,
        3,
        4,
    ]


async def test_ping_answers(store: VectorStore) -> None:
    await store.ping()


@case(39, 40)
async def test_what_returned_is_seen_from_another_connection(
    make: Callable[[int], Awaitable[VectorStore]], tenant: str
) -> None:
    """A write is searchable for everybody when it returns: there is no token to pass on, and nothing to wait for."""
    store = await make(2)
    other = store if store.provider == "exact" else await make(2)
    for version in range(1, 6):
        await store.upsert([entry(tenant, n, [1, n], version=version) for n in range(3)])
        answer = await hits(other, tenant, [1, 0])
        assert [(h.node_id.int, h.version) for h in answer] == [(0, version), (1, version), (2, version)]
        assert await other.count(tenant, SPACE) == 3
        await other.delete(tenant, SPACE, [(node(1), version)])
        assert await found(store, tenant, [1, 0]) == [0, 2]
        assert [r.node_id.int for r in await store.fetch(tenant, SPACE, [node(1)])] == []


# --- a store is held to what it declares


async def test_a_vector_as_long_as_declared_and_one_longer(
    make: Callable[[int], Awaitable[VectorStore]], tenant: str
) -> None:
    most = (await make(2)).capabilities.most_dimensions
    assert most >= 4096  # as long as any model's
    if most > 50_000:
        pytest.skip(f"{most} dimensions: as many as memory holds")
    store = await make(most)
    row = np.random.default_rng(1).normal(size=most)
    await store.upsert([entry(tenant, 1, row.tolist())])
    (hit,) = (await store.search(tenant, SPACE, row.astype(np.float32), 5, None)).hits
    assert hit.score == pytest.approx(1, abs=1e-5)
    (record,) = await store.fetch(tenant, SPACE, [node(1)])
    assert record.vector == pytest.approx(row / np.linalg.norm(row), abs=1e-6)
    with pytest.raises(DimensionMismatch):
        await store.upsert([entry(tenant, 2, [*row.tolist(), 1.0], space="longer")])
    assert await store.count(tenant, "longer") == 0


async def test_pages_go_as_deep_as_declared(store: VectorStore, tenant: str) -> None:
    deepest = store.capabilities.deepest
    assert deepest is None or deepest >= 10_000
    await store.upsert([entry(tenant, n, [1, n]) for n in range(5)])
    if deepest is not None:
        assert await found(store, tenant, [1, 0], skip=deepest) == []
        assert await found(store, tenant, [1, 0], skip=deepest - 1) == []
        assert await found(store, tenant, [1, 0], limit=deepest) == list(range(5))
        return
    many = 10_500
    for start in range(5, many, 1000):
        await store.upsert([entry(tenant, n, [1, n]) for n in range(start, min(start + 1000, many))])
    assert await found(store, tenant, [1, 0], limit=20, skip=many - 10) == list(range(many - 10, many))


async def test_a_batch_as_declared_goes_in_at_once(make: Callable[[int], Awaitable[VectorStore]], tenant: str) -> None:
    store = await make(384)
    size = store.capabilities.batch
    assert 1 <= size <= 10_000
    matrix = np.random.default_rng(2).normal(size=(size, 384))
    await store.upsert([entry(tenant, n, row.tolist(), metadata={"n": n}) for n, row in enumerate(matrix)])
    assert await store.count(tenant, SPACE) == size


async def test_replicas_are_declared_where_provisioning_sets_them(store: VectorStore) -> None:
    """Their number is what `memoryctl provision` looks at: tests/cli/test_provision_milvus.py, test_provision_vectors.py."""
    assert store.capabilities.replicas == (store.provider == "milvus")


async def test_who_orders_writes_says_so(store: VectorStore) -> None:
    """One process's writes every store orders; two processes' only one whose server compares versions as it writes."""
    assert store.capabilities.orders_writes == (store.provider in ("exact", "pgvector"))


# --- the rest of the sixty cases


@case(10, 15, 16, 18)
@pytest.mark.parametrize("bad", [[0.0, 0.0], [float("nan"), 1.0], [1.0, float("inf")], [float("-inf"), 0.0], []])
async def test_a_vector_without_a_direction_refuses_its_call(store: VectorStore, tenant: str, bad: list[float]) -> None:
    wrong = VectorEntry(tenant, SPACE, node(2), 1, np.array(bad, np.float32), {})
    with pytest.raises(ValidationError, match="entry 1") as refused:
        await store.upsert([entry(tenant, 1, [1, 0]), wrong])
    assert not refused.value.retryable
    assert await found(store, tenant, [1, 0]) == []
    await store.upsert([entry(tenant, 1, [1, 0])])
    assert await found(store, tenant, [1, 0]) == [1]


@case(17)
async def test_tiny_and_signed_zeros(store: VectorStore, tenant: str) -> None:
    rows = [[1.0, -0.0], [1.0, 1e-40], [-1e-40, 1.0], [-0.0, -1.0], [0.999999, 1e-12]]
    await store.upsert([entry(tenant, n, row) for n, row in enumerate(rows)])
    scores = {hit.node_id.int: hit.score for hit in await hits(store, tenant, [1, 0])}
    assert [scores[n] for n in range(5)] == pytest.approx([1, 1, 0, 0, 1], abs=1e-6)


@case(11, 32)
async def test_a_thousand_hits_of_a_call_larger_than_any_limit(store: VectorStore, tenant: str) -> None:
    angles = np.linspace(0, 3, 1100)
    await store.upsert([entry(tenant, n + 1, [np.cos(a), np.sin(a)], owner="o" * 100) for n, a in enumerate(angles)])
    assert await found(store, tenant, [1, 0], limit=1000) == list(range(1, 1001))
    assert await found(store, tenant, [1, 0], limit=1000, skip=1000) == list(range(1001, 1101))


@case(11)
async def test_a_call_of_many_bytes(make: Callable[[int], Awaitable[VectorStore]], tenant: str) -> None:
    store = await make(3072)
    matrix = np.random.default_rng(3).normal(size=(150, 3072)).astype(np.float32)
    matrix /= np.linalg.norm(matrix, axis=1, keepdims=True)
    await store.upsert([VectorEntry(tenant, SPACE, node(n), 1, row, {}) for n, row in enumerate(matrix)])
    assert len((await store.search(tenant, SPACE, matrix[0], 1000, None)).hits) == 150
    await store.delete(tenant, SPACE, [(node(n), 1) for n in range(149)])
    assert [h.node_id for h in (await store.search(tenant, SPACE, matrix[0], 1000, None)).hits] == [node(149)]


@case(19)
async def test_every_uuid_is_an_id(store: VectorStore, tenant: str) -> None:
    numbers = [0, 1, 2**128 - 1, 2**127, uuid.uuid4().int]
    await store.upsert([entry(tenant, n, [1, 0]) for n in numbers])
    assert await found(store, tenant, [1, 0]) == sorted(numbers)


@case(20)
@pytest.mark.parametrize("size", [50, 2_000, 60_000])
async def test_whatever_the_size_of_its_fields_a_node_is_found(store: VectorStore, tenant: str, size: int) -> None:
    text = "a'\"\\ä日😀\n" * (size // 10)
    crowd = {f"k{n}": [text[:20], n, {"deep": n}] for n in range(size // 50)}
    await store.upsert(
        [
            entry(tenant, 1, [1, 0], owner="ann", metadata={"t": text, "tags": crowd}),
            entry(tenant, 2, [0, 1], owner="bob"),
        ]
    )
    for where in ({"owner": "ann"}, {"metadata.t": text}, {"metadata.tags.k0.deep": 0}, {"owner": {"$ne": "bob"}},
                  {"metadata.t": {"$nin": ["x"]}}, {"metadata.nothing": None}):  # fmt: skip
        assert 1 in await found(store, tenant, [1, 0], where=where), where


@case(22)
async def test_numbers_that_no_float_holds_are_never_lost(store: VectorStore, tenant: str) -> None:
    numbers = [2**53 + 1, -(2**53) - 1, 10**30 + 1]
    await store.upsert([entry(tenant, n, [1, 0], metadata={"n": v}) for n, v in enumerate(numbers)])
    for where in (
        {"metadata.n": {"$gt": 2.0**53}},
        {"metadata.n": {"$lte": -(2.0**53)}},
        {"metadata.n": {"$ne": 2.0**53}},
    ):
        right = [n for n, v in enumerate(numbers) if evaluate(parse(where), {"metadata": {"n": v}})]  # type: ignore[arg-type]
        assert set(await found(store, tenant, [1, 0], where=where)) >= set(right), where


@case(35, 41, 42)
async def test_recall_with_filters_of_every_selectivity(
    make: Callable[[int], Awaitable[VectorStore]], tenant: str
) -> None:
    """Also where query and filter disagree, and again after a third of the rows left and a third changed."""
    store, oracle, numbers = await make(16), ExactVectors(), np.random.default_rng(5)
    matrix = numbers.normal(size=(2000, 16)).astype(np.float32)
    order = np.argsort(-matrix[:, 0])  # the first axis is what the correlated filter goes by

    def rows(which: Any, version: int) -> list[VectorEntry]:
        return [
            VectorEntry(tenant, SPACE, node(int(n) + 1), version, matrix[n] / np.linalg.norm(matrix[n]),
                        {"metadata": {"n": int(n), "rank": int(np.flatnonzero(order == n)[0])}})
            for n in which
        ]  # fmt: skip

    async def measure() -> None:
        query = np.eye(16, dtype=np.float32)[0]
        for most in (2000, 1000, 200, 20, 2):  # all, 50 %, 10 %, 1 %, 0.1 %
            for where in ({"metadata.n": {"$lt": most}}, {"metadata.rank": {"$gte": 2000 - most}}):
                right = (await oracle.search(tenant, SPACE, query, 10, parse(where))).hits
                given = (await store.search(tenant, SPACE, query, 10, parse(where))).hits
                assert len(given) == len(right), where
                common = {h.node_id for h in given} & {h.node_id for h in right}
                assert len(common) >= 0.95 * len(right), where

    for one in (store, oracle):
        await one.upsert(rows(range(2000), 1))
    await measure()
    matrix[600:1200] = numbers.normal(size=(600, 16))
    for one in (store, oracle):
        await one.delete(tenant, SPACE, [(node(n + 1), 2) for n in range(600)])
        await one.upsert(rows(range(600, 1200), 2))
    await measure()


@case(36)
async def test_a_filter_that_nothing_meets(store: VectorStore, tenant: str) -> None:
    await store.upsert([entry(tenant, n, [1, n], owner="ann", metadata={"n": n}) for n in range(30)])
    for where in ({"owner": "bob"}, {"metadata.n": {"$gt": 99}}, {"metadata.n": {"$in": []}}, {"metadata.none": {"$exists": True}},
                  {"$and": [{"metadata.n": 1}, {"metadata.n": 2}]}, {"$not": {"owner": "ann"}}):  # fmt: skip
        assert await hits(store, tenant, [1, 0], where=where) == [], where


@pytest.mark.slow
@case(42)
async def test_recall_on_twenty_thousand(
    request: pytest.FixtureRequest, make: Callable[[int], Awaitable[VectorStore]], tenant: str
) -> None:
    if request.node.callspec.params["make"] == "milvus-lite":
        pytest.skip("milvus-lite is a second dialect of the same adapter, far slower than the server that proves it")
    store = await make(128)
    if store.provider in ("exact", "pinecone"):
        pytest.skip(
            f"{store.provider} compares every vector here: the oracle does so by nature, and Pinecone is emulated"
        )
    numbers = np.random.default_rng(11)
    latent = numbers.normal(size=(24, 128))
    matrix = (numbers.normal(size=(20_000, 24)) @ latent + 0.2 * numbers.normal(size=(20_000, 128))).astype(np.float32)
    matrix /= np.linalg.norm(matrix, axis=1, keepdims=True)
    for start in range(0, len(matrix), 1000):
        rows = enumerate(matrix[start : start + 1000], start)
        await store.upsert([VectorEntry(tenant, SPACE, node(n), 1, row, {}) for n, row in rows])
    await store.optimise(tenant, SPACE)
    right = found_ = 0
    for query in matrix[numbers.choice(len(matrix), 40)] + 0.05 * numbers.normal(size=(40, 128)).astype(np.float32):
        nearest = set(np.argsort(-(matrix @ query))[:10].tolist())
        answer = (await store.search(tenant, SPACE, query / np.linalg.norm(query), 10, None)).hits
        assert len(answer) == 10
        right, found_ = right + 10, found_ + len(nearest & {hit.node_id.int for hit in answer})
    assert found_ >= 0.95 * right


@case(57)
async def test_of_shuffled_writers_at_once_the_newest_stays(store: VectorStore, tenant: str) -> None:
    versions = list(range(1, 11))
    random.Random(4).shuffle(versions)
    await asyncio.gather(*(store.upsert([entry(tenant, 1, [v, 1], version=v, owner=f"v{v}")]) for v in versions))
    assert [(h.version, h.node_id.int) for h in await hits(store, tenant, [1, 0])] == [(10, 1)]
    assert await found(store, tenant, [1, 0], where={"owner": "v10"}) == [1]
    await asyncio.gather(
        store.delete(tenant, SPACE, [(node(1), 12)]),
        *(store.upsert([entry(tenant, 1, [1, 0], version=v)]) for v in (11, 12)),
    )
    assert await found(store, tenant, [1, 0]) == []


@case(58)
async def test_a_cancelled_call_leaves_the_store_usable(store: VectorStore, tenant: str) -> None:
    await store.upsert([entry(tenant, 1, [1, 0])])
    for pause in (0, 0.001, 0.003):
        tasks = [asyncio.ensure_future(hits(store, tenant, [1, 0])) for _ in range(8)]
        tasks += [asyncio.ensure_future(store.upsert([entry(tenant, 2, [0, 1], version=n)])) for n in range(1, 9)]  # type: ignore[list-item]
        await asyncio.sleep(pause)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    await store.upsert([entry(tenant, 2, [0, 1], version=9)])
    assert await found(store, tenant, [1, 0]) == [1, 2]


@case(60)
async def test_closing_twice_is_closing(make: Callable[[int], Awaitable[VectorStore]], tenant: str) -> None:
    store = await make(2)
    await store.close()
    await store.close()


# --- what the drill and the repair read


async def held(store: VectorStore, tenant: str, space: str = SPACE, **how: Any) -> dict[int, VectorRecord]:
    """All that a scan brings; each node once."""
    records: dict[int, VectorRecord] = {}
    cursor = None
    while True:
        page = await store.scan(tenant, space, cursor, **how)
        for record in page.records:
            assert record.node_id.int not in records
            records[record.node_id.int] = record
        cursor = page.cursor
        if cursor is None:
            return records


@case(1, 3, 43)
async def test_what_is_held_can_be_fetched_and_counted(store: VectorStore, tenant: str) -> None:
    assert await store.count(tenant, SPACE) == 0
    assert await store.fetch(tenant, SPACE, [node(1)]) == []
    await store.upsert([entry(tenant, n, [n, 1], version=n) for n in range(1, 6)])
    await store.upsert([entry(tenant, 2, [-1, 0], version=7)])
    await store.upsert([entry(tenant, 3, [-1, 0], version=1)])  # late: changes nothing
    await store.delete(tenant, SPACE, [(node(4), 4), (node(9), 1)])
    assert await store.count(tenant, SPACE) == 4
    assert await store.count(tenant, "other") == 0
    got = {r.node_id.int: r for r in await store.fetch(tenant, SPACE, [node(n) for n in (2, 3, 4, 9, 77, 2)])}
    assert {n: r.version for n, r in got.items()} == {2: 7, 3: 3}
    assert got[2].vector == pytest.approx([-1, 0])
    assert got[3].vector == pytest.approx(np.array([3, 1]) / 10**0.5, abs=1e-6)


@case(45)
@pytest.mark.parametrize("size", [1, 3, 100, 5000])
async def test_a_scan_brings_each_node_once(
    make: Callable[[int], Awaitable[VectorStore]], tenant: str, size: int
) -> None:
    """While others write, change and remove, and when it goes on from another connection after each page."""
    store = await make(2)
    stay = {10 * n for n in range(1, 26)}
    go = {10 * n + 5 for n in range(1, 26)}
    await store.upsert([entry(tenant, n, [1, n], version=3) for n in sorted(stay | go)])
    await store.delete(tenant, SPACE, [(node(30), 99), (node(7), 1)])
    stay.discard(30)
    over = asyncio.Event()

    async def write() -> None:
        for turn in range(1, 60):  # an end, or a scan in the order of ids would never catch up with new ones
            await store.upsert([entry(tenant, 1000 * turn + 1, [1, 0]), entry(tenant, 10 * (turn % 25) + 3, [1, 0])])
            changed = sorted(stay)[turn % len(stay)]
            await store.upsert([entry(tenant, changed, [0, 1], version=3 + turn)])
            await store.delete(tenant, SPACE, [(node(n), 99) for n in sorted(go)[turn : turn + 1]])
            await asyncio.sleep(0)
            if over.is_set():
                return

    writer = asyncio.ensure_future(write())
    seen: list[int] = []
    cursor, turn = None, 0
    while turn < 500:
        reader = store if store.provider == "exact" or turn % 5 else await make(2)
        page = await reader.scan(tenant, SPACE, cursor, size)
        assert len(page.records) <= size
        assert all(record.vector is None for record in page.records)
        seen += [record.node_id.int for record in page.records]
        cursor, turn = page.cursor, turn + 1
        await asyncio.sleep(0)
        if cursor is None:
            break
    over.set()
    await writer
    assert cursor is None
    assert len(seen) == len(set(seen))
    assert stay <= set(seen)
    assert 30 not in seen


@case(46, 47)
async def test_what_a_scan_brought_makes_the_namespace_again(store: VectorStore, tenant: str) -> None:
    vectors = np.random.default_rng(3).normal(size=(40, 2)).tolist()
    await store.upsert([entry(tenant, n, vector, version=n + 1) for n, vector in enumerate(vectors)])
    first = await held(store, tenant, vectors=True, limit=7)
    await store.upsert(
        [
            VectorEntry(tenant, "again", r.node_id, r.version, r.vector, {})
            for r in first.values()
            if r.vector is not None
        ]
    )
    second = await held(store, tenant, "again", vectors=True)
    assert {n: r.version for n, r in second.items()} == {n: r.version for n, r in first.items()}
    for n, record in second.items():
        assert record.vector == pytest.approx(first[n].vector, abs=1e-6)
    # One vector changed, the count and the versions did not: the vectors tell.
    await store.upsert([entry(tenant, 7, [-9, 1], version=8, space="again")])
    third = await held(store, tenant, "again", vectors=True)
    assert [n for n, r in third.items() if r.vector != pytest.approx(first[n].vector, abs=1e-3)] == [7]


@case(48)
async def test_dropping_a_namespace_leaves_the_others(store: VectorStore, tenant: str) -> None:
    for who, space in ((tenant, SPACE), (tenant, "other"), (f"{tenant}x", SPACE)):
        await store.upsert([entry(who, n, [1, n], space=space) for n in range(5)])
    await store.delete(tenant, SPACE, [(node(3), 8)])
    for _ in range(2):
        await store.drop(tenant, SPACE)
        assert [await store.count(*place) for place in ((tenant, SPACE), (tenant, "other"), (f"{tenant}x", SPACE))] == [0, 5, 5]  # fmt: skip
        assert await found(store, tenant, [1, 0]) == []
    await store.upsert([entry(tenant, 3, [1, 0], version=2)])  # the mark of its removal went too
    assert await found(store, tenant, [1, 0]) == [3]


@case(48)
async def test_older_versions_come_back_after_another_connection_dropped_them(
    make: Callable[[int], Awaitable[VectorStore]], tenant: str
) -> None:
    """As a restore does: that a connection wrote newer versions once is no reason to leave out what it writes now."""
    store = await make(2)
    other = store if store.provider == "exact" else await make(2)
    await other.upsert([entry(tenant, n, [1, n], version=9) for n in range(3)])
    await other.delete(tenant, SPACE, [(node(2), 12)])
    await store.drop(tenant, SPACE)
    for one in (other, store):
        await one.upsert([entry(tenant, n, [1, n], version=4) for n in range(3)])
        assert {n: record.version for n, record in (await held(one, tenant)).items()} == {0: 4, 1: 4, 2: 4}


async def test_other_fields_beside_a_vector_are_reported(store: VectorStore, tenant: str) -> None:
    document = {
        "metadata": {"n": 1, "half": 0.5, "tags": ["b", "a"], "deep": {"on": True, "none": None}, "large": 2**53},
        "owner": "ann", "createdAt": "2026-11-24T12:00:00.000001Z",
    }  # fmt: skip

    def told(number: int, version: int = 1, **changed: Any) -> VectorEntry:
        fields = document | {"metadata": document["metadata"] | changed}  # type: ignore[operator]
        return VectorEntry(tenant, SPACE, node(number), version, np.zeros(0, np.float32), fields)

    await store.upsert([entry(tenant, n, [1, n], **document) for n in range(6)])
    await store.delete(tenant, SPACE, [(node(5), 1)])
    assert await store.stale_fields(tenant, SPACE, [told(n) for n in range(7)]) == []
    assert await store.stale_fields(tenant, SPACE, []) == []
    assert await store.stale_fields(tenant, "nothing here", [told(0)]) == []
    changed = [
        told(0, n=2), told(1, tags=["a", "c"]), told(2, deep={"on": False, "none": None}), told(3, more="x"),
        told(4, version=2, n=2), told(5, n=2), told(6, n=2),
    ]  # fmt: skip
    assert sorted(one.int for one in await store.stale_fields(tenant, SPACE, changed)) == [
        0,
        1,
        2,
        3,
    ]  # the others are not there so
    await store.upsert([entry(tenant, 0, [1, 0], **changed[0].fields)])
    assert await store.stale_fields(tenant, SPACE, changed[:1]) == []


async def test_namespaces_that_nobody_knows_are_named_and_forgotten(store: VectorStore, tenant: str) -> None:
    ours = [(tenant, SPACE), (tenant, 'a/b "c" __ ü'), (tenant, "x" * 500), (f"{tenant}x", SPACE)]
    before = set(await store.unknown_namespaces([]))  # of other tests
    for who, space in ours:
        await store.upsert([entry(who, n, [1, n], space=space) for n in range(3)])
    assert set(await store.unknown_namespaces(ours)) == before
    names = [(set(await store.unknown_namespaces(ours[:at] + ours[at + 1 :])) - before) for at in range(4)]
    assert [len(one) for one in names] == [1, 1, 1, 1]  # each is missed alone
    assert set(await store.unknown_namespaces([])) - before == set().union(*names)
    (name,) = names[1]
    for _ in range(2):
        await store.drop_unknown(name)
    assert [await store.count(*place) for place in ours] == [3, 0, 3, 3]
    assert set(await store.unknown_namespaces(ours)) == before
    await store.drop_unknown("no name of ours")


async def test_maintenance_changes_no_answer(store: VectorStore, tenant: str) -> None:
    for space in (SPACE, "nothing here"):
        await store.optimise(tenant, space)
        await store.warm(tenant, space)
    await store.upsert([entry(tenant, n, [1, n]) for n in range(30)])
    before = await hits(store, tenant, [1, 3], limit=30)
    await store.optimise(tenant, SPACE)
    await store.warm(tenant, SPACE)
    assert await hits(store, tenant, [1, 3], limit=30) == before


# --- none is forgotten


def test_each_of_the_sixty_cases_has_its_place() -> None:
    assert sorted(set(range(1, 61)) - set(CASES) - set(ELSEWHERE)) == []
    root = Path(__file__).parents[2]
    for number, places in ELSEWHERE.items():
        for place in places:
            file, name = place.split("::")
            assert re.search(rf"^(async )?(def|class) {name}\b", (root / file).read_text("utf-8"), re.MULTILINE), (
                number,
                place,
            )
