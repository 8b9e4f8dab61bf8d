"""A failure that nobody foresaw costs its own request, and neither the committer nor anybody else's."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest

from memory_layer.errors import MemoryLayerError
from memory_layer.service.actions.nodes import CreateNodes
from memory_layer.service.commit import Change, Outcome
from memory_layer.service.commit.transaction import Transactor
from tests.support.service import caller, new_node, running_memory


async def test_a_bulk_request_that_fails_for_no_node_of_its_own_is_refused_once(
    database: Callable[[str], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each of its nodes can be stored, so the search for the one that cannot finds none."""
    tried = 0

    async def fails(*_: object) -> bool:
        nonlocal tried
        tried += 1
        raise AttributeError("nobody foresaw this")

    async with running_memory(database("memory_app"), tmp_path) as memory:
        with monkeypatch.context() as broken:
            broken.setattr(Transactor, "_seal", fails)
            bulk = memory.committer.submit(Change(caller(), CreateNodes([new_node(), new_node()])))
            with pytest.raises(MemoryLayerError, match="nothing was changed"):
                await asyncio.wait_for(bulk, 60)
        assert tried <= 2
        written = await asyncio.wait_for(memory.committer.submit(Change(caller(), new_node())), 60)
        assert isinstance(written, Outcome)
