"""What every vector store does. ``exact`` is the oracle: the suite holds it to the contract, and the others to it."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from memory_layer.errors import DependencyUnavailable, DimensionMismatch, ValidationError, VectorStoreUnavailable
from memory_layer.filters import evaluate, parse
from memory_layer.ops import embedded, migrate
from memory_layer.stores.protocols import VectorEntry, VectorHit, VectorStore
from memory_layer.stores.vectors import pgvector
from memory_layer.stores.vectors.exact import ExactVectors
from memory_layer.stores.vectors.pgvector import PgVector, open_pgvector

SPACE = "kernel-memory"


@pytest.fixture(scope="module")
def vector_database(cluster: embedded.Cluster) -> Iterator[Callable[[str], str]]:
    """One database with the pgvector table for the whole suite; tests keep apart by tenants."""
    name = f"v_{uuid.uuid4().hex[:12]}"
    with psycopg.connect(cluster.dsn("postgres", "postgres"), autocommit=True) as server:
        server.execute(f"CREATE DATABASE {name} TEMPLATE memory OWNER memory_owner")
        server.execute(f"GRANT CONNECT ON DATABASE {name} TO memory_app")
    yield lambda role: cluster.dsn(role, name)
    with psycopg.connect(cluster.dsn("postgres", "postgres"), autocommit=True) as server:
        server.execute(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture(params=["exact", "pgvector"])
async def store(request: pytest.FixtureRequest, vector_database: Callable[[str], str]) -> AsyncIterator[VectorStore]:
    opened: VectorStore = (
        ExactVectors() if request.param == "exact" else await open_pgvector(vector_database("memory_app"), size=2)
    )
    yield opened
    await opened.close()


def node(number: int) -> uuid.UUID:
    return uuid.UUID(int=number)


def entry(
    tenant: str, number: int, vector: list[float], *, version: int = 1, space: str = SPACE, **fields: Any
) -> VectorEntry:
    values = np.array(vector, np.float32)
    return VectorEntry(tenant, space, node(number), version, values / np.linalg.norm(values), fields)


async def found(
    store: VectorStore, tenant: str, query: list[float], *, limit: int = 10, space: str = SPACE, skip: int = 0,
    where: Any = None,
) -> list[int]:  # fmt: skip
    return [
        hit.node_id.int for hit in await hits(store, tenant, query, limit=limit, space=space, skip=skip, where=where)
    ]


async def hits(
    store: VectorStore, tenant: str, query: list[float], *, limit: int = 10, space: str = SPACE, skip: int = 0,
    where: Any = None,
) -> list[VectorHit]:  # fmt: skip
    return await store.search(tenant, space, np.array(query, np.float32), limit, parse(where), skip)


async def test_nearest_first_with_version_and_cosine(store: VectorStore, tenant: str) -> None:
    await store.upsert([entry(tenant, 1, [1, 0]), entry(tenant, 2, [1, 1], version=7), entry(tenant, 3, [-1, 0])])
    answer = await hits(store, tenant, [5, 0])
    assert [(h.node_id, h.version) for h in answer] == [(node(1), 1), (node(2), 7), (node(3), 1)]
    assert [h.score for h in answer] == pytest.approx([1, 2**-0.5, -1], abs=1e-6)


async def test_nothing_there_is_nothing_found(store: VectorStore, tenant: str) -> None:
    assert await hits(store, tenant, [1, 0]) == []
    await store.upsert([])
    await store.delete(tenant, SPACE, [])
    await store.upsert([entry(tenant, 1, [1, 0])])
    assert await hits(store, tenant, [1, 0], limit=0) == []


async def test_a_newer_version_replaces_an_older_never(store: VectorStore, tenant: str) -> None:
    await store.upsert([entry(tenant, 1, [1, 0], version=3, owner="old")])
    await store.upsert([entry(tenant, 1, [0, 1], version=4, owner="new")])
    await store.upsert([entry(tenant, 1, [-1, 0], version=3, owner="late")])
    (hit,) = await hits(store, tenant, [0, 1])
    assert (hit.version, hit.score) == (4, pytest.approx(1))
    assert await found(store, tenant, [0, 1], where={"owner": "new"}) == [1]
    assert await found(store, tenant, [0, 1], where={"owner": "late"}) == []


async def test_the_same_version_again_changes_nothing_or_mends(store: VectorStore, tenant: str) -> None:
    for _ in range(3):
        await store.upsert([entry(tenant, 1, [1, 0], version=2)])
    assert [(h.node_id, h.version) for h in await hits(store, tenant, [1, 0])] == [(node(1), 2)]
    await store.upsert([entry(tenant, 1, [0, 1], version=2)])
    assert (await hits(store, tenant, [0, 1]))[0].score == pytest.approx(1)


async def test_of_one_node_twice_in_a_call_the_newest_counts(store: VectorStore, tenant: str) -> None:
    await store.upsert([entry(tenant, 1, [0, 1], version=2), entry(tenant, 1, [1, 0], version=1)])
    assert [(h.version, round(h.score)) for h in await hits(store, tenant, [0, 1])] == [(2, 1)]
    await store.delete(tenant, SPACE, [(node(1), 1), (node(1), 2)])
    assert await found(store, tenant, [0, 1]) == []


@pytest.mark.parametrize(("at", "left"), [(4, [1]), (5, []), (6, [])])
async def test_a_delete_takes_its_version_and_older_ones(
    store: VectorStore, tenant: str, at: int, left: list[int]
) -> None:
    await store.upsert([entry(tenant, 1, [1, 0], version=5)])
    for _ in range(2):
        await store.delete(tenant, SPACE, [(node(1), at), (node(99), 1)])
        assert await found(store, tenant, [1, 0]) == left


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


async def test_tenants_and_namespaces_keep_apart(store: VectorStore, tenant: str) -> None:
    places = [(tenant, SPACE), (tenant, "other"), (f"{tenant}x", SPACE), (tenant, "%"), (f"{tenant}'", 'a"b\\')]
    for number, (who, space) in enumerate(places):
        await store.upsert([entry(who, 1, [1, number], space=space, version=number + 1)])
    for number, (who, space) in enumerate(places):
        assert [h.version for h in await hits(store, who, [1, 0], space=space)] == [number + 1]
    await store.delete(tenant, SPACE, [(node(1), 99)])
    assert [len(await hits(store, who, [1, 0], space=space)) for who, space in places] == [0, 1, 1, 1, 1]


async def test_ties_go_by_node_id_and_pages_join(store: VectorStore, tenant: str) -> None:
    numbers = [5, 3, 2**127, 1, 2**64, 4, 2, 2**100]
    await store.upsert([entry(tenant, n, [1, 1]) for n in numbers] + [entry(tenant, 9, [1, 0])])
    whole = [9, *sorted(numbers)]
    assert await found(store, tenant, [1, 0], limit=20) == whole
    for size in (1, 3, 4):
        pages = [await found(store, tenant, [1, 0], limit=size, skip=skip) for skip in range(0, 12, size)]
        assert [n for page in pages for n in page] == whole
    assert await found(store, tenant, [1, 0], skip=100) == []


async def test_each_namespace_has_its_dimension(store: VectorStore, tenant: str) -> None:
    await store.upsert([entry(tenant, 1, [1, 0]), entry(tenant, 2, [1, 0, 0], space="three")])
    assert await found(store, tenant, [1, 0]) == [1]
    assert await found(store, tenant, [1, 0, 0], space="three") == [2]
    for query, space in (([1.0, 0, 0], SPACE), ([1.0, 0], "three")):
        with pytest.raises(DimensionMismatch):
            await hits(store, tenant, query, space=space)
    assert await found(store, tenant, [1, 0]) == [1]


async def test_long_vectors_are_kept_exactly(store: VectorStore, tenant: str) -> None:
    matrix = np.random.default_rng(7).normal(size=(40, 3072)).astype(np.float32)
    matrix /= np.linalg.norm(matrix, axis=1, keepdims=True)
    await store.upsert([VectorEntry(tenant, SPACE, node(n), 1, row, {}) for n, row in enumerate(matrix)])
    answer = await store.search(tenant, SPACE, matrix[11], 40, None)
    scores = matrix @ matrix[11]
    assert [h.node_id.int for h in answer] == list(np.argsort(-scores))
    assert [h.score for h in answer] == pytest.approx(sorted(scores, reverse=True), abs=1e-5)


KEYS = ["a", "a b", "ä", "日本", "😀", "a'b", 'a"b', "a\\b", "%", "%s", "%(tenant)s", "_", "$", "$eq", "{}", "[0]", "*", "@", "a\tb",
        "\x7f", "a/b", "--", ";", "null", "true"]  # fmt: skip


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
    assert await found(store, tenant, [1, 0], where=many) == [5, 7]
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
    assert store.provider in ("exact", "pgvector")


# --- filters: the adapter against the oracle

TEXTS = st.sampled_from(["a", "b", "", "1", "true", "ä", "a'%\"\\"])
SCALARS = st.one_of(
    TEXTS, st.booleans(), st.integers(-2, 3), st.sampled_from([0.5, 1.0, -0.0, 1e-7, 2.5, 123456789.123, 2**53 - 1])
)
STORED = st.recursive(
    st.none() | SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["a", "b"]), inner, max_size=2),
    max_leaves=6,
)
TIMES = st.sampled_from(
    [
        "2026-01-01T00:00:00.000000Z",
        "2026-01-01T00:00:00.000001Z",
        "2025-12-31T23:59:59.999999Z",
        "1970-01-01T00:00:00.000000Z",
        "0500-01-01T00:00:00.000000Z",
    ]
)
DOCUMENTS = st.fixed_dictionaries(
    {
        "owner": TEXTS,
        "version": st.integers(1, 3),
        "legalHold": st.booleans(),
        "subjects": st.lists(TEXTS, max_size=2),
        "ttlSeconds": st.none() | st.integers(3600, 3601),
        "createdAt": TIMES,
        "expiresAt": st.none() | TIMES,
        "metadata": st.dictionaries(st.sampled_from(["a", "b"]), STORED, max_size=2),
        "piiFlags": st.dictionaries(st.sampled_from(["a", "b"]), STORED, max_size=1),
    }
)
NUMBERS = st.integers(-2, 3) | st.sampled_from([0.5, 1.0, 1e-7, 3601])
PATHS = st.sampled_from(
    [
        "metadata.a",
        "metadata.b",
        "metadata.a.b",
        "metadata.a.a",
        "piiFlags.a",
        "owner",
        "subjects",
        "content",
        "version",
        "legalHold",
    ]
)
CONDITIONS = st.one_of(
    st.builds(lambda p, v: {p: v}, PATHS, SCALARS | st.none() | st.lists(SCALARS | st.none(), max_size=3)),
    st.builds(lambda p, op, v: {p: {op: v}}, PATHS, st.sampled_from(["$eq", "$ne"]), SCALARS | st.none()),
    st.builds(
        lambda p, op, v: {p: {op: v}}, PATHS, st.sampled_from(["$in", "$nin", "$all"]), st.lists(SCALARS, max_size=3)
    ),
    st.builds(lambda p, v: {p: {"$exists": v}}, PATHS, st.booleans()),
    st.builds(
        lambda p, op, v: {p: {op: v}},
        st.sampled_from(["metadata.a", "metadata.a.b", "version", "ttlSeconds"]),
        st.sampled_from(["$gt", "$gte", "$lt", "$lte"]),
        NUMBERS,
    ),
    st.builds(
        lambda p, op, v: {p: {op: v}},
        st.sampled_from(["createdAt", "expiresAt"]),
        st.sampled_from(["$gt", "$gte", "$lt", "$lte", "$eq", "$ne"]),
        TIMES | st.just("2026-01-01T01:00:00+01:00"),
    ),
)
FILTERS = st.recursive(
    CONDITIONS,
    lambda inner: (
        st.builds(
            lambda op, parts: {op: parts}, st.sampled_from(["$and", "$or"]), st.lists(inner, min_size=1, max_size=3)
        )
        | st.builds(lambda part: {"$not": part}, inner)
    ),
    max_leaves=5,
)


@pytest.fixture(scope="module")
def live(vector_database: Callable[[str], str]) -> Iterator[tuple[asyncio.Runner, PgVector]]:
    """pgvector on a loop of its own, so that Hypothesis may run many examples on one pool."""
    with asyncio.Runner() as runner:
        opened = runner.run(open_pgvector(vector_database("memory_app"), size=2))
        yield runner, opened
        runner.run(opened.close())


@settings(
    max_examples=250, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(documents=st.lists(DOCUMENTS, min_size=1, max_size=6), obj=FILTERS)
def test_pushed_down_filters_never_lose_a_match(
    live: tuple[asyncio.Runner, PgVector], documents: list[dict[str, Any]], obj: Any
) -> None:
    runner, pgvector = live
    try:
        where = parse(obj)
    except ValidationError:
        return  # a value that its field cannot be compared with
    assert where is not None
    tenant, query = uuid.uuid4().hex, np.array([1, 0], np.float32)
    # Long text stays out of the index; every node holds some, so that only the row can decide a filter on it.
    rows = [document | {"content": "a"} for document in documents]

    def entries(fields: list[dict[str, Any]]) -> list[VectorEntry]:
        return [VectorEntry(tenant, SPACE, node(n), 1, np.array([1, n], np.float32), f) for n, f in enumerate(fields)]

    async def both() -> tuple[list[int], list[int]]:
        oracle = ExactVectors()
        await oracle.upsert(entries(rows))
        await pgvector.upsert(entries(documents))
        exact = await oracle.search(tenant, SPACE, query, 10, where)
        wide = await pgvector.search(tenant, SPACE, query, 10, where)
        return [h.node_id.int for h in exact], [h.node_id.int for h in wide]

    exact, wide = runner.run(both())
    assert [n for n in wide if evaluate(where, rows[n])] == exact
    if "content" not in str(obj):
        assert wide == exact  # nothing but long text is left to the row


# --- pgvector: what can be wrong with its server


async def test_a_server_that_is_down_is_unavailable(tmp_path: Path, tenant: str) -> None:
    store = await open_pgvector(f"host={tmp_path} dbname=memory user=memory_app connect_timeout=1", size=1)
    try:
        with pytest.raises(VectorStoreUnavailable):
            await store.ping()
    finally:
        await store.close()


async def test_a_server_that_goes_away_and_comes_back(vector_database: Callable[[str], str], tenant: str) -> None:
    store = await open_pgvector(vector_database("memory_app"), size=1)
    try:
        await store.upsert([entry(tenant, 1, [1, 0])])
        with psycopg.connect(vector_database("postgres"), autocommit=True) as root:
            root.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE usename = 'memory_app' AND datname = current_database()"
            )
        assert await found(store, tenant, [1, 0]) == [1]  # the pool notices before it hands the connection out
    finally:
        await store.close()


async def test_a_server_without_the_table_says_what_to_do(cluster: embedded.Cluster, tenant: str) -> None:
    name = f"v_{uuid.uuid4().hex[:12]}"
    with psycopg.connect(cluster.dsn("postgres", "postgres"), autocommit=True) as server:
        server.execute(f"CREATE DATABASE {name}")
    dsn = cluster.dsn("postgres", name)
    try:
        with pytest.raises(DependencyUnavailable, match="needs the pgvector extension"):
            await open_pgvector(dsn)
        with psycopg.connect(dsn, autocommit=True) as connection:
            connection.execute("CREATE EXTENSION vector")
        store = await open_pgvector(dsn, size=1)
        for step in (store.ping(), store.upsert([entry(tenant, 1, [1, 0])]), hits(store, tenant, [1, 0])):
            with pytest.raises(VectorStoreUnavailable, match="memoryctl migrate apply"):
                await step
        migrate.apply_pgvector(dsn)
        await store.upsert([entry(tenant, 1, [1, 0])])
        assert await found(store, tenant, [1, 0]) == [1]
        await store.close()
    finally:
        with psycopg.connect(cluster.dsn("postgres", "postgres"), autocommit=True) as server:
            server.execute(f"DROP DATABASE {name} WITH (FORCE)")


async def test_a_vector_too_long_for_pgvector_is_refused_for_good(
    vector_database: Callable[[str], str], tenant: str
) -> None:
    store = await open_pgvector(vector_database("memory_app"), size=1)
    try:
        with pytest.raises(DimensionMismatch, match="16,000"):
            await store.upsert([entry(tenant, 1, [1.0] * 16_001)])
    finally:
        await store.close()


async def test_removals_are_forgotten_after_a_day(
    vector_database: Callable[[str], str], tenant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pgvector, "_SWEEP_ROWS", 2)  # fewer than there are: it goes on until all are gone
    store = await open_pgvector(vector_database("memory_app"), size=1)
    try:
        await store.upsert([entry(tenant, 9, [1, 0])])
        await store.delete(tenant, SPACE, [(node(n), 1) for n in range(1, 7)])
        with psycopg.connect(vector_database("postgres"), autocommit=True) as root:
            root.execute(
                "UPDATE vector_entries SET removed_at = now() - interval '25 hours' WHERE tenant = %s AND node_id < %s",
                [tenant, node(6)],
            )
            await store.sweep()
            left = root.execute("SELECT node_id FROM vector_entries WHERE tenant = %s ORDER BY 1", [tenant]).fetchall()
        assert left == [(node(6),), (node(9),)]
    finally:
        await store.close()
