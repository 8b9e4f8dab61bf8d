"""Large JSON in a row is read off the event loop and means the same."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from memory_layer import aside
from memory_layer.errors import ValidationError
from memory_layer.service import nodes
from memory_layer.service.installation import Installation
from memory_layer.stores import large_json
from tests.support.service import caller, create, patch, running_memory

Database = Callable[[str], str]


@pytest.fixture
async def memory(database: Database, tmp_path: Path) -> AsyncIterator[Installation]:
    async with running_memory(database("memory_app"), tmp_path) as opened:
        yield opened


@pytest.mark.parametrize("size", [10, aside.HEAVY // 2, 4 * aside.HEAVY, 400_000])
async def test_what_is_stored_is_read(memory: Installation, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    aside_of: list[int] = []
    monkeypatch.setattr(large_json, "_read", lambda tables, real=large_json._read: (aside_of.append(1), real(tables)))
    given: dict[str, Any] = {"a": [[1, 2.5, "x, y]", None, True]] * (size // 27), "b": {"k": "é"}}
    node = await create(memory, metadata=given)
    assert (await nodes.get(memory, caller(), node))["metadata"] == given
    await patch(memory, node, metadata={"b": None})  # read under the log lock too
    assert (await nodes.get(memory, caller(), node))["metadata"] == {"a": given["a"]}
    page = await nodes.list_nodes(memory, caller(), None, None, 10)
    assert json.loads(bytes(page.items[0]))["metadata"] == {"a": given["a"]}
    assert bool(aside_of) == (size > aside.HEAVY)


async def test_a_patch_makes_no_larger_document_than_a_body_may_be(memory: Installation) -> None:
    many = [[]] * (aside.MAX_VALUES - 10)
    node = await create(memory, metadata={"a": many})
    with pytest.raises(ValidationError, match="100000 values"):
        await patch(memory, node, metadata={"b": many})
    assert (await nodes.get(memory, caller(), node))["metadata"] == {"a": many}
    await patch(memory, node, metadata={"a": None, "b": many})
