"""pgvector's own: what can be wrong with its server, and its limits. What every store does is in test_vectors.py."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import psycopg
import pytest

from memory_layer.errors import DependencyUnavailable, DimensionMismatch, VectorStoreUnavailable
from memory_layer.ops import embedded, migrate
from memory_layer.stores.vectors import pgvector
from memory_layer.stores.vectors.pgvector import open_pgvector
from tests.support.databases import new_database
from tests.support.vector_entries import SPACE, entry, found, hits, node


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
    with new_database(cluster, "template1") as made:
        dsn = made("postgres")
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
