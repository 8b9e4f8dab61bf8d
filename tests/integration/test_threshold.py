"""scoreThreshold: in every mode it removes hits and moves none."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from memory_layer.service.indexing import work_once
from memory_layer.service.installation import Installation
from memory_layer.service.search import SearchRequest, search
from tests.support.databases import Database
from tests.support.service import caller, create, running_memory

TEXTS = (
    "apple pie recipe with cinnamon",
    "apple reported quarterly earnings",
    "baking a fruit tart in the oven at home",
    "how to make pastry dough and sweet filling",
    "dessert ideas for autumn evenings",
    "apple",
    "apple apple apple stock ticker",
)


@pytest.fixture
async def memory(database: Database, tmp_path: Path) -> AsyncIterator[Installation]:
    async with running_memory(database("memory_app"), tmp_path, embeddings_provider="local") as opened:
        for text in TEXTS:
            await create(opened, content=text, space=opened.space)
        while await work_once(opened):
            pass
        yield opened


async def found(memory: Installation, mode: Any, threshold: float | None, top_k: int = 10) -> list[tuple[str, float]]:
    request = SearchRequest("homemade apple dessert recipe", None, top_k, None, "kernel-memory", threshold, mode)
    return [(hit["content"], hit["score"]) for hit in (await search(memory, caller(), request))["results"]]


@pytest.mark.parametrize("mode", ["semantic", "hybrid", "keyword"])
async def test_raising_it_removes_hits_and_moves_none(memory: Installation, mode: Any) -> None:
    before = await found(memory, mode, None)
    assert len(before) >= 3
    counts = []
    for threshold in (-1.0, 0.0, 0.3, 0.4, 0.5, 0.6, 0.8, 1.0):
        hits = await found(memory, mode, threshold)
        assert [hit for hit in before if hit in hits] == hits
        before = hits
        counts.append(len(hits))
    assert counts == sorted(counts, reverse=True)
    assert (counts[-1] == 0) == (mode != "keyword")  # a search by words has no cosine


async def test_what_fails_it_makes_room(memory: Installation) -> None:
    """Hits that pass come among the topK in place of those that do not."""
    whole = await found(memory, "hybrid", 0.4)
    assert await found(memory, "hybrid", 0.4, top_k=2) == whole[:2]
