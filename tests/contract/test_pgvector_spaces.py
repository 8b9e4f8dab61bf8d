"""Large namespaces of pgvector: how they come to a table of their own while everybody goes on, and what their index finds."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import numpy as np
import psycopg
import pytest
from numpy.typing import NDArray

from memory_layer.errors import DimensionMismatch, VectorStoreUnavailable
from memory_layer.filters import parse
from memory_layer.ops import embedded, migrate
from memory_layer.service import indexing
from memory_layer.stores.protocols import VectorEntry
from memory_layer.stores.vectors.pgvector import PgVector, open_pgvector
from memory_layer.telemetry import metrics
from tests.support.databases import new_database
from tests.support.exact_vectors import ExactVectors
from tests.support.vector_entries import SPACE, entry, found, hits, node

Database = Callable[[str], str]


@pytest.fixture
async def store(vector_database: Database) -> AsyncIterator[PgVector]:
    """Namespaces count as large from 50 entries on."""
    async with opened(vector_database("memory_app")) as one:
        yield one


@contextlib.asynccontextmanager
async def opened(dsn: str, large: int = 50, size: int = 4) -> AsyncIterator[PgVector]:
    store = await open_pgvector(dsn, size=size, large=large)
    try:
        yield store
    finally:
        await store.close()


@pytest.fixture
def root(vector_database: Database) -> Iterator[psycopg.Connection[Any]]:
    with psycopg.connect(vector_database("postgres"), autocommit=True) as connection:
        yield connection


def registry(root: psycopg.Connection[Any], tenant: str, column: str) -> Any:
    """A column of the namespace's row; ``...`` without a row."""
    row = root.execute(
        f"SELECT {column} FROM vector_spaces.registry WHERE tenant = %s AND namespace = %s",
        [tenant, SPACE],
    ).fetchone()
    return ... if row is None else row[0]


def latent(count: int, dimension: int, seed: int, noise: float = 0.15) -> NDArray[np.float32]:
    """Unit vectors of 48 latent dimensions and noise, shape (count, dimension)."""
    mixing = np.random.default_rng(1).standard_normal((48, dimension)).astype(np.float32) / np.sqrt(48)
    numbers = np.random.default_rng(seed)
    vectors = numbers.standard_normal((count, 48)).astype(np.float32) @ mixing
    vectors += noise * numbers.standard_normal((count, dimension)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


async def fill(store: PgVector, tenant: str, matrix: NDArray[np.float32], **fields: Callable[[int], Any]) -> None:
    rows = [
        VectorEntry(tenant, SPACE, node(n + 1), 1, row, {name: make(n) for name, make in fields.items()})
        for n, row in enumerate(matrix)
    ]
    for start in range(0, len(rows), 250):
        await store.upsert(rows[start : start + 250])


async def until(condition: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.02)


def way(name: str) -> float:
    value = metrics.registry.get_sample_value("memory_index_searches_total", {"way": name})
    return value or 0.0


# --- moving


@pytest.mark.parametrize("turn", range(3))
async def test_nothing_is_lost_or_doubled_while_a_namespace_moves(
    vector_database: Database, root: psycopg.Connection[Any], tenant: str, turn: int
) -> None:
    """Writers, removers and readers in two processes' stores, while a third moves the namespace under them."""
    matrix = latent(400, 32, 5)
    truth: dict[int, int | None] = dict.fromkeys(range(1, 401), 1)  # version, None: removed
    still = range(1, 41)  # nobody touches these
    begun, moved, meanwhile = asyncio.Event(), asyncio.Event(), 0
    never = 10**9
    dsn = vector_database("memory_app")
    async with opened(dsn, never) as store, opened(dsn, never) as other, opened(dsn, 50, 1) as mover:
        await fill(store, tenant, matrix)
        # Writes are counted by samples: one in a hundred times there is no row yet.
        assert registry(root, tenant, "number") in (None, ...)

        async def write(seed: int) -> None:
            """Each writer has nodes of its own, so that what is right is known."""
            nonlocal meanwhile
            choose, version, after = random.Random(seed + 10 * turn), 1, 0
            mine = [n for n in range(41, 600) if n % 4 == seed]
            while after < 5:
                after += moved.is_set()
                version += 1
                some = choose.sample(mine, 12)
                writing = (store, other)[choose.random() < 0.5]
                if choose.random() < 0.3:
                    await writing.delete(tenant, SPACE, [(node(n), version) for n in some])
                    truth.update((n, None) for n in some)
                else:
                    await writing.upsert(
                        [VectorEntry(tenant, SPACE, node(n), version, matrix[n % 400], {"v": version}) for n in some]
                    )
                    truth.update((n, version) for n in some)
                if version == 5:
                    begun.set()
                meanwhile += begun.is_set() and not moved.is_set()

        async def read(seed: int) -> None:
            choose, after = random.Random(seed + 10 * turn), 0
            while after < 5:
                after += moved.is_set()
                n = choose.choice(still)
                reading = (store, other)[choose.random() < 0.5]
                answer = (await reading.search(tenant, SPACE, matrix[n - 1], 20, None)).hits
                ids = [hit.node_id for hit in answer]
                assert len(ids) == len(set(ids)) == 20
                assert node(n) in ids
                held = await reading.fetch(tenant, SPACE, [node(one) for one in still])
                assert {r.node_id.int for r in held} == set(still)
                page = await reading.scan(tenant, SPACE, None, 40)
                assert [r.node_id.int for r in page.records] == list(still)

        async def move() -> None:
            await begun.wait()
            await mover.optimise(tenant, SPACE)
            moved.set()

        await asyncio.gather(move(), *(write(seed) for seed in range(4)), *(read(seed) for seed in range(3)))
        assert registry(root, tenant, "number") is not None
        assert meanwhile > 20  # there was something to lose
        assert root.execute("SELECT count(*) FROM vector_entries WHERE tenant = %s", [tenant]).fetchone() == (0,)
        right = {n: version for n, version in truth.items() if version is not None}
        assert await store.count(tenant, SPACE) == len(right)
        page = await other.scan(tenant, SPACE, None, 1000, vectors=True)
        assert {r.node_id.int: r.version for r in page.records} == right
        for record in page.records:
            n = record.node_id.int
            assert record.vector == pytest.approx(matrix[n - 1 if right[n] == 1 else n % 400], abs=1e-6)
        for n, version in truth.items():  # the marks of removals moved too
            if version is None:
                await store.upsert([VectorEntry(tenant, SPACE, node(n), 1, matrix[0], {})])
        assert await store.count(tenant, SPACE) == len(right)


async def test_a_namespace_is_dropped_filled_and_moved_while_it_is_read(
    store: PgVector, vector_database: Database, root: psycopg.Connection[Any], tenant: str
) -> None:
    matrix = latent(60, 16, 6)
    numbers, done = set(), False
    async with opened(vector_database("memory_app")) as other:

        async def churn() -> None:
            nonlocal done
            for _ in range(6):
                await fill(store, tenant, matrix)
                await store.optimise(tenant, SPACE)
                numbers.add(registry(root, tenant, "number"))
                await store.drop(tenant, SPACE)
            done = True

        async def read() -> None:
            while not done:
                ids = [h.node_id.int for h in (await other.search(tenant, SPACE, matrix[0], 60, None)).hits]
                assert len(ids) == len(set(ids))
                assert set(ids) <= set(range(1, 61))
                assert await other.count(tenant, SPACE) in (0, 60)

        await asyncio.gather(churn(), read(), read())
    assert len(numbers) == 6  # no table's name is used twice
    assert root.execute(
        "SELECT count(*) FROM pg_class WHERE relname = ANY (%s)", [[f"space_{number}" for number in numbers]]
    ).fetchone() == (0,)
    assert registry(root, tenant, "number") is ...


async def test_two_at_once_make_one_table(
    store: PgVector, vector_database: Database, root: psycopg.Connection[Any], tenant: str
) -> None:
    await fill(store, tenant, latent(80, 16, 1))
    async with opened(vector_database("memory_app")) as other:
        await asyncio.gather(*(one.optimise(tenant, SPACE) for one in (store, other, other)))
    await store.optimise(tenant, SPACE)
    assert await store.count(tenant, SPACE) == 80
    assert root.execute(
        "SELECT count(*) FROM vector_spaces.registry WHERE tenant = %s AND number IS NOT NULL", [tenant]
    ).fetchone() == (1,)


async def test_what_an_older_version_wrote_beside_the_table_is_moved_too(
    store: PgVector, root: psycopg.Connection[Any], tenant: str
) -> None:
    """During a deployment the version before this one goes on writing to the shared table."""
    await store.upsert([entry(tenant, n, [n, 1], version=5) for n in range(1, 61)])
    await store.optimise(tenant, SPACE)
    for n, version, vector in ((1, 6, "[0,1]"), (2, 4, "[0,1]"), (99, 1, "[0,1]"), (3, 7, None)):
        root.execute(
            "INSERT INTO vector_entries VALUES (%s, %s, %s, %s, %s, '{}', %s)",
            [tenant, SPACE, node(n), version, vector, None if vector else "now"],
        )
    await store.maintain()
    held = {r.node_id.int: r.version for r in (await store.scan(tenant, SPACE)).records}
    assert held == dict.fromkeys(range(4, 61), 5) | {1: 6, 2: 5, 99: 1}
    assert root.execute("SELECT count(*) FROM vector_entries WHERE tenant = %s", [tenant]).fetchone() == (0,)


async def test_small_ones_and_mixed_ones_stay(store: PgVector, root: psycopg.Connection[Any], tenant: str) -> None:
    await store.optimise(tenant, "nothing here")
    await store.upsert([entry(tenant, n, [n, 1]) for n in range(1, 40)])
    await store.optimise(tenant, SPACE)
    assert registry(root, tenant, "number") in (None, ...)
    await store.upsert([entry(tenant, n, [n, 1, 0]) for n in range(40, 70)])
    await store.optimise(tenant, SPACE)
    assert registry(root, tenant, "number") is None
    assert "2 and of 3" in registry(root, tenant, "refused")
    assert (await store.count(tenant, SPACE)) == 69
    assert (tenant, SPACE) not in await due(store)


async def due(store: PgVector) -> list[tuple[str, str]]:
    from memory_layer.stores.vectors import pgvector_upkeep

    return await pgvector_upkeep.due(store._wire, store._large)


async def test_a_namespace_grows_out_of_the_shared_table_by_itself(
    vector_database: Database, root: psycopg.Connection[Any], tenant: str
) -> None:
    async with opened(vector_database("memory_app"), large=100) as store:
        matrix = latent(100, 16, 2)
        for n, row in enumerate(np.vstack([matrix] * 4)):
            await store.upsert([VectorEntry(tenant, SPACE, node(n), 1, row, {})])
        await until(lambda: isinstance(registry(root, tenant, "number"), int))
        assert await store.count(tenant, SPACE) == 400
        assert len((await store.search(tenant, SPACE, matrix[3], 1, None)).hits) == 1
        # And as it goes on growing, what its index finds is measured again.
        checked = registry(root, tenant, "checked")
        assert checked > 0
        await fill(store, tenant, latent(1200, 16, 3))
        await until(lambda: bool(registry(root, tenant, "checked") > checked))


async def test_the_schedule_finds_what_is_due(
    vector_database: Database, root: psycopg.Connection[Any], tenant: str
) -> None:
    """As after an upgrade, or when the writer was killed before it came to it."""
    async with opened(vector_database("memory_app"), large=10**6) as writer:
        await fill(writer, tenant, latent(300, 16, 2))
    async with opened(vector_database("memory_app"), large=100) as store:
        assert isinstance(store, indexing.Maintains)
        root.execute(
            "INSERT INTO vector_spaces.registry (tenant, namespace, written) VALUES (%s, %s, 300)"
            " ON CONFLICT (tenant, namespace) DO UPDATE SET written = 300",
            [tenant, SPACE],
        )
        await store.maintain()
        assert registry(root, tenant, "recall") >= 0.95
        assert (tenant, SPACE) not in await due(store)


async def test_removals_in_a_table_of_its_own_are_forgotten_after_a_day(
    store: PgVector, root: psycopg.Connection[Any], tenant: str
) -> None:
    await fill(store, tenant, latent(60, 16, 2))
    await store.optimise(tenant, SPACE)
    await store.delete(tenant, SPACE, [(node(n), 2) for n in (1, 2, 3)])
    relation = f"vector_spaces.space_{registry(root, tenant, 'number')}"
    root.execute(f"UPDATE {relation} SET removed_at = now() - interval '25 hours' WHERE node_id < %s", [node(3)])
    await store.sweep()
    left = root.execute(f"SELECT node_id FROM {relation} WHERE removed_at IS NOT NULL").fetchall()
    assert left == [(node(3),)]


async def test_a_vector_of_another_dimension_is_refused_and_changes_nothing(store: PgVector, tenant: str) -> None:
    await store.upsert([entry(tenant, n, [n, 1]) for n in range(1, 61)])
    await store.optimise(tenant, SPACE)
    with pytest.raises(DimensionMismatch):
        await store.upsert([entry(tenant, 99, [1, 0, 0])])
    for query in ([1.0, 0, 0], [1.0]):
        with pytest.raises(DimensionMismatch):
            await hits(store, tenant, query)
    assert await store.count(tenant, SPACE) == 60


# --- what its index finds


@pytest.mark.slow
@pytest.mark.parametrize("dimension", [96, 768])
async def test_recall_with_and_without_filters(vector_database: Database, tenant: str, dimension: int) -> None:
    """Selectivity 50 % to 0.1 %, with filters that a field's index answers and with ranges, also where filter and query are at odds."""
    size = 3000
    matrix = latent(size, dimension, 3)
    queries = latent(12, dimension, 4)
    order = np.argsort(np.argsort(-(matrix @ queries[0])))  # 0: nearest to the first query
    oracle, seen = ExactVectors(), {name: way(name) for name in ("near", "few", "scan")}
    async with opened(vector_database("memory_app"), large=1000) as store:
        rows = [
            VectorEntry(tenant, SPACE, node(n + 1), 1, row,
                        {"metadata": {"n": n, "rank": int(order[n]), "share": [s for s in (2, 10, 100, 1000) if n % s == 0],
                                      "far": [s for s in (2, 10, 100, 1000) if order[n] >= size - size // s]}})
            for n, row in enumerate(matrix)
        ]  # fmt: skip
        for start in range(0, size, 250):
            for one in (store, oracle):
                await one.upsert(rows[start : start + 250])
        await store.optimise(tenant, SPACE)
        filters: list[dict[str, Any]] = [{}]
        for share in (2, 10, 100, 1000):
            filters += [{"metadata.share": share}, {"metadata.n": {"$lt": size // share}}]
            filters += [{"metadata.far": share}, {"metadata.rank": {"$gte": size - size // share}}]
        for where in filters:
            right, same = 0, 0
            for query in queries:
                best = (await oracle.search(tenant, SPACE, query, 10, parse(where))).hits
                given = (await store.search(tenant, SPACE, query, 10, parse(where))).hits
                assert len(given) == len(best), where
                right += len(best)
                same += len({h.node_id for h in given} & {h.node_id for h in best})
            assert same >= 0.95 * right, (where, same / right)
    # Not all of it by comparing everything.
    assert way("near") - seen["near"] >= 20
    assert way("few") - seen["few"] >= 40
    assert way("scan") > seen["scan"]


async def test_pages_are_cut_from_one_list(vector_database: Database, tenant: str) -> None:
    matrix = latent(1500, 96, 3)
    async with opened(vector_database("memory_app"), large=1000) as store:
        await fill(store, tenant, matrix)
        await store.optimise(tenant, SPACE)
        whole = await store.search(tenant, SPACE, matrix[7], 25, None)
        assert not whole.exact
        pages = [(await store.search(tenant, SPACE, matrix[7], 5, None, skip)).hits for skip in range(0, 25, 5)]
        assert [hit for page in pages for hit in page] == whole.hits
        deep = await store.search(tenant, SPACE, matrix[7], 1000, None, 400)
        assert deep.exact
        assert len(deep.hits) == 1000


async def test_equals_beyond_what_the_index_brings(vector_database: Database, tenant: str) -> None:
    """Six hundred copies of one vector: the smallest ids come first, page after page."""
    async with opened(vector_database("memory_app"), large=100) as store:
        await store.upsert([entry(tenant, n, [1, 2]) for n in random.Random(1).sample(range(1, 601), 600)])
        await store.optimise(tenant, SPACE)
        assert await found(store, tenant, [1, 2], limit=10) == list(range(1, 11))
        assert await found(store, tenant, [1, 2], limit=10, skip=300) == list(range(301, 311))


async def test_searches_look_deeper_until_the_recall_suffices(
    vector_database: Database, root: psycopg.Connection[Any], tenant: str
) -> None:
    """Vectors without any structure: a hundred candidates by their signs are too few."""
    matrix = np.random.default_rng(8).standard_normal((2500, 768)).astype(np.float32)
    matrix /= np.linalg.norm(matrix, axis=1, keepdims=True)
    async with opened(vector_database("memory_app"), large=1000) as store:
        await fill(store, tenant, matrix)
        await store.optimise(tenant, SPACE)
        assert registry(root, tenant, "recall") >= 0.95
        assert registry(root, tenant, "rerank") > 100 or registry(root, tenant, "method") != "bit"
        same = 0
        for number in range(0, 2500, 125):
            best = np.argsort(-(matrix @ matrix[number]))[:10]
            answer = (await store.search(tenant, SPACE, matrix[number], 10, None)).hits
            same += len({h.node_id.int - 1 for h in answer} & set(best.tolist()))
        assert same / 200 >= 0.93


async def test_vectors_whose_signs_say_nothing_get_another_index(
    vector_database: Database, root: psycopg.Connection[Any], tenant: str
) -> None:
    matrix = np.abs(latent(1500, 768, 9)) + np.float32(0.01)
    matrix /= np.linalg.norm(matrix, axis=1, keepdims=True)
    async with (
        opened(vector_database("memory_app"), large=1000) as store,
        opened(vector_database("memory_app"), large=1000) as other,
    ):
        await fill(store, tenant, matrix)
        before = await other.search(tenant, SPACE, matrix[5], 10, None)
        await store.optimise(tenant, SPACE)
        assert registry(root, tenant, "method") in ("halfvec", "none")
        after = await other.search(tenant, SPACE, matrix[5], 10, None)
        assert len({h.node_id for h in before.hits} & {h.node_id for h in after.hits}) >= 9


# --- its surroundings


async def test_settings_of_a_search_end_with_it(vector_database: Database, tenant: str) -> None:
    usual = {"hnsw.ef_search": "40", "hnsw.iterative_scan": "off", "hnsw.max_scan_tuples": "20000", "statement_timeout": "0", "plan_cache_mode": "auto",
             "enable_seqscan": "on", "enable_indexscan": "on", "enable_bitmapscan": "on"}  # fmt: skip
    async with opened(vector_database("memory_app"), large=50, size=1) as store:
        await fill(store, tenant, latent(300, 32, 2), owner=lambda n: f"o{n % 3}")
        await store.optimise(tenant, SPACE)
        question = ", ".join(f"current_setting('{name}') AS \"{name}\"" for name in usual)
        for where in (None, {"owner": "o1"}, {"metadata.n": {"$gt": 5}}):
            await hits(store, tenant, [1.0] * 32, where=where)
            ((row,),) = await store._wire.run((f"SELECT {question}", {}))
            assert row == usual


async def test_the_runtime_role_writes_through_the_functions_alone(
    store: PgVector, vector_database: Database, root: psycopg.Connection[Any], tenant: str
) -> None:
    await fill(store, tenant, latent(60, 16, 2))
    await store.optimise(tenant, SPACE)
    relation = f"vector_spaces.space_{registry(root, tenant, 'number')}"
    with psycopg.connect(vector_database("memory_app"), autocommit=True) as app:
        for statement in (
            f"DELETE FROM {relation}",
            f"DROP TABLE {relation}",
            f"CREATE INDEX ON {relation} (version)",
            "UPDATE vector_spaces.registry SET number = 1",
            "SELECT vector_spaces.index(1, 2, 'bit')",
            "CREATE TABLE vector_spaces.mine (a int)",
            "SELECT nextval('vector_spaces.numbers')",
        ):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                app.execute(statement)
    loose = root.execute(
        "SELECT proname FROM pg_proc WHERE pronamespace = 'vector_spaces'::regnamespace AND prosecdef"
        " AND NOT EXISTS (SELECT FROM unnest(proconfig) c WHERE c = 'search_path=pg_catalog, pg_temp')"
    ).fetchall()
    assert loose == []
    assert (
        root.execute(
            "SELECT proname FROM pg_proc, aclexplode(proacl) a WHERE pronamespace = 'vector_spaces'::regnamespace AND a.grantee = 0"
        ).fetchall()
        == []
    )


async def test_the_runtime_role_cannot_make_searches_endless(
    store: PgVector, vector_database: Database, root: psycopg.Connection[Any], tenant: str
) -> None:
    await fill(store, tenant, latent(60, 16, 2))
    await store.optimise(tenant, SPACE)
    with psycopg.connect(vector_database("memory_app"), autocommit=True) as app:
        for rerank, kept in ((-5, 1), (0, 1), (2**31 - 1, 10_000)):
            app.execute("SELECT vector_spaces.note(%s, 1, %s)", [registry(root, tenant, "number"), rerank])
            assert registry(root, tenant, "rerank") == kept


async def test_a_role_that_came_later_may_read_what_is_there(
    store: PgVector, vector_database: Database, root: psycopg.Connection[Any], tenant: str
) -> None:
    """As after a restore on a server that had no memory_app yet: the files are applied again once it is there."""
    matrix = latent(60, 16, 2)
    await fill(store, tenant, matrix)
    await store.optimise(tenant, SPACE)
    relation = f"vector_spaces.space_{registry(root, tenant, 'number')}"
    root.execute(f"REVOKE ALL ON {relation} FROM memory_app")
    with pytest.raises(VectorStoreUnavailable, match="permission denied"):
        await store.search(tenant, SPACE, matrix[3], 1, None)
    migrate.apply_pgvector(vector_database("memory_owner"))
    assert (await store.search(tenant, SPACE, matrix[3], 1, None)).hits[0].node_id == node(4)


async def test_a_namespace_whose_table_is_gone_can_be_dropped_and_filled_anew(
    store: PgVector, root: psycopg.Connection[Any], tenant: str
) -> None:
    matrix = latent(60, 16, 2)
    await fill(store, tenant, matrix)
    await store.optimise(tenant, SPACE)
    root.execute(f"DROP TABLE vector_spaces.space_{registry(root, tenant, 'number')}")
    await store.drop(tenant, SPACE)
    await fill(store, tenant, matrix)
    assert (await store.search(tenant, SPACE, matrix[3], 1, None)).hits[0].node_id == node(4)


async def test_a_database_of_its_own(cluster: embedded.Cluster, tenant: str) -> None:
    """VECTOR_DB_ENDPOINT names another database than the canonical one: nothing but the vectors is there."""
    with new_database(cluster, "template1") as made:
        with psycopg.connect(made("postgres"), autocommit=True) as server:
            server.execute("CREATE EXTENSION vector")
        for _ in range(2):
            migrate.apply_pgvector(made("memory_owner"))
        async with opened(made("memory_app")) as store:
            matrix = latent(60, 16, 2)
            await fill(store, tenant, matrix)
            await store.optimise(tenant, SPACE)
            await store.warm(tenant, SPACE)
            migrate.apply_pgvector(made("memory_owner"))
            assert (await store.search(tenant, SPACE, matrix[3], 1, None)).hits[0].node_id == node(4)
            assert await store.count(tenant, SPACE) == 60


async def test_a_connection_keeps_few_statements(store: PgVector, tenant: str) -> None:
    """However many kinds of filters are asked: each kind is a statement of its own on each connection."""
    await fill(store, tenant, latent(60, 16, 2), owner=lambda n: f"o{n}")
    for count in range(1, 60):
        for more in range(5):
            where = {"$or": [{"owner": f"o{n}"} for n in range(count)] + [{"version": {"$lt": 0}}] * more}
            assert len(await found(store, tenant, [1.0] * 16, limit=100, where=where)) == count
    ((row,),) = await store._wire.run(("SELECT count(*) AS kept FROM pg_prepared_statements", {}))
    assert row["kept"] < 250


async def test_upkeep_may_take_longer_than_a_statement_may(vector_database: Database) -> None:
    """The role has a limit for statements; what forgets, sweeps or loads a namespace waits beyond it, what reads does not."""
    limited = psycopg.conninfo.make_conninfo(vector_database("memory_app"), options="-c statement_timeout=150ms")

    @contextlib.asynccontextmanager
    async def in_the_way(seconds: float) -> AsyncIterator[None]:
        async def hold() -> None:
            async with await psycopg.AsyncConnection.connect(vector_database("postgres")) as other:
                await other.execute("LOCK TABLE vector_entries IN ACCESS EXCLUSIVE MODE")
                taken.set()
                await asyncio.sleep(seconds)

        taken = asyncio.Event()
        holding = asyncio.create_task(hold())
        await taken.wait()
        yield
        await holding

    async with opened(limited) as store:
        await fill(store, "patient", latent(10, 8, 1))
        for upkeep in (store.sweep, lambda: store.warm("patient", SPACE), lambda: store.drop("patient", SPACE)):
            async with in_the_way(0.6):  # four times the limit
                await upkeep()
        async with in_the_way(0.6):
            with pytest.raises(VectorStoreUnavailable):
                await store.count("patient", SPACE)
        assert await store.count("patient", SPACE) == 0
