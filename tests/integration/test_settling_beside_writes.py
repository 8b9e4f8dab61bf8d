"""Writes to nodes whose rows a worker settles at the same moments."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path

import psycopg

from memory_layer.service.actions.outbox import EmbeddingSpace
from memory_layer.sql import queries
from tests.support.service import create, rows, running_memory

SECONDS = 12.0


async def test_a_write_finds_its_row_however_busy_workers_are_with_it(
    database: Callable[[str], str], tmp_path: Path
) -> None:
    """INSERT ... ON CONFLICT overlooks, once in some thousands, a row that others change meanwhile: the caller was told of a conflict
    that there was not. The committer's own statement, as often as the time allows."""
    async with running_memory(database("memory_app"), tmp_path) as memory:
        nodes = [
            await create(memory, content="text", space=EmbeddingSpace("pgvector", "test-model", 2)) for _ in range(3)
        ]
    until = time.monotonic() + SECONDS

    def settle() -> None:
        with psycopg.connect(database("postgres"), autocommit=True) as connection:
            while time.monotonic() < until:
                for node in nodes:
                    connection.execute(
                        "UPDATE memory_vectors SET lease_id = gen_random_uuid(), lease_until = clock_timestamp(),"
                        " updated_at = clock_timestamp() WHERE memory_node_id = %s",
                        [node],
                    )

    workers = [threading.Thread(target=settle) for _ in range(2)]
    for worker in workers:
        worker.start()
    try:
        with psycopg.connect(database("postgres"), autocommit=True) as connection:
            (now,) = connection.execute("SELECT now()").fetchone() or ()
            ids: dict[uuid.UUID, uuid.UUID] = dict(
                connection.execute("SELECT memory_node_id, id FROM memory_vectors").fetchall()
            )
            version = 1
            while time.monotonic() < until:
                version += 1
                for node in nodes:
                    row = {
                        "tenant": ["ann"], "id": [ids[node]], "node": [node], "namespace": ["kernel-memory"],
                        "provider": ["pgvector"], "model": ["test-model"], "dimension": [2], "status": ["pending"],
                        "version": [version], "source": ["embedder"], "since": [1], "sha256": [None], "vector": [None],
                        "bulk": [False], "read": [None], "now": now,
                    }  # fmt: skip
                    connection.execute(queries("commit")["put_vectors"], row)
    finally:
        for worker in workers:
            worker.join()
    assert rows(database("postgres"), "SELECT count(*), min(version) FROM memory_vectors") == [(3, version)]
