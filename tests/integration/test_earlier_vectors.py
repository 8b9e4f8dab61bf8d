"""Vectors that an earlier version made of the beginning of a text, or of what the model cannot read, are made anew in the background."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg

from memory_layer.service import renewed_vectors
from memory_layer.service.indexing import work_once
from memory_layer.service.renewed_vectors import earlier, renew
from tests.support.service import create, rows, running_memory, verify

FILL = "The committee reviewed the quarterly figures and agreed to postpone the vote. "
TEXTS = {"short": "a short note", "long": FILL * 25, "unread": "แมวของฉันชื่อโม", "short and odd": "café in März"}


async def test_they_are_made_anew_once(database: Callable[[str], str], tmp_path: Path) -> None:
    stored = "SELECT metadata ->> 'read', vector_data ->> 'data' FROM memory_vectors WHERE memory_node_id = %s"

    def now() -> dict[str, tuple[Any, ...]]:
        return {name: rows(database("postgres"), stored, (node,))[0] for name, node in nodes.items()}

    async with running_memory(database("memory_app"), tmp_path, embeddings_provider="local") as memory:
        nodes = {name: await create(memory, content=text, space=memory.space) for name, text in TEXTS.items()}
        while await work_once(memory):
            pass
        right = now()
        assert {name: read for name, (read, _) in right.items()} == {
            "short": "whole", "long": "whole", "unread": "none", "short and odd": "whole",
        }  # fmt: skip
        assert (await earlier(memory), await renew(memory)) == ({}, 0)
        with psycopg.connect(database("postgres"), autocommit=True) as root:
            root.execute("UPDATE memory_vectors SET metadata = metadata - 'read'")
            # As an earlier version left them: of another text, as it were.
            root.execute(
                "UPDATE memory_vectors SET vector_data = (SELECT vector_data FROM memory_vectors WHERE memory_node_id = %s)"
                " WHERE memory_node_id = ANY (%s)",
                (nodes["short"], [nodes["long"], nodes["unread"]]),
            )
        assert await earlier(memory) == {("ann", "kernel-memory"): 4}

        async def worker() -> None:
            while True:
                await work_once(memory)
                await asyncio.sleep(0.01)

        working = asyncio.create_task(worker())
        try:
            assert await renew(memory) == 3
        finally:
            working.cancel()
            await asyncio.wait([working])
        assert now() == right
        assert (await earlier(memory), await renew(memory)) == ({}, 0)
    assert verify(database("postgres"), tmp_path).findings == ()


async def test_without_a_worker_it_ends_and_the_next_run_goes_on(
    database: Callable[[str], str], tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setattr(renewed_vectors, "STALLED", 0.0)
    async with running_memory(database("memory_app"), tmp_path, embeddings_provider="local") as memory:
        await create(memory, content=FILL * 5, space=memory.space)
        await work_once(memory)
        with psycopg.connect(database("postgres"), autocommit=True) as root:
            root.execute("UPDATE memory_vectors SET metadata = metadata - 'read'")
        assert await renew(memory) == 1
        assert (await earlier(memory), await renew(memory)) == ({}, 0)  # it waits in the queue
        await work_once(memory)
        read = rows(database("postgres"), "SELECT status, metadata ->> 'read', bulk FROM memory_vectors")
        assert read == [("succeeded", "whole", True)]
