"""Parts of an installation that several tasks ask for at once."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest

from memory_layer import config
from memory_layer.errors import UsageError
from memory_layer.service import installation as module
from memory_layer.service.installation import Installation
from memory_layer.stores.postgres import Postgres
from tests.support.service import rows


async def test_a_part_that_two_tasks_need_is_opened_once(database: Callable[[str], str], tmp_path: Path) -> None:
    settings = config.load({}, database_url=database("memory_app"), embeddings_provider="none")
    installation = Installation(settings, tmp_path, pool=1)
    seen: list[tuple[Postgres, object]] = []

    async def use(*parts: str) -> None:
        found = await installation.need(*parts)
        seen.append((found.postgres, found.vectors))

    await asyncio.gather(use("postgres", "vectors"), use("joined", "postgres"), use("vectors", "postgres"))
    assert len({(id(postgres), id(vectors)) for postgres, vectors in seen}) == 1
    # No pool was opened that nobody closes.
    await installation.close()
    there = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND usename = 'memory_app'"
    async with asyncio.timeout(60):
        while await asyncio.to_thread(rows, database("postgres"), there) != [(0,)]:  # noqa: ASYNC110 - connections end
            await asyncio.sleep(0.02)


async def test_a_part_that_cannot_be_opened_fails_for_all_and_is_tried_anew(
    database: Callable[[str], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = config.load({}, database_url=database("memory_app"), embeddings_provider="none")
    installation = Installation(settings, tmp_path, pool=1)
    opening, tries = module._OPENERS["vectors"], 0

    async def fail_twice(self: Installation) -> object:
        nonlocal tries
        tries += 1
        await asyncio.sleep(0)
        if tries <= 2:
            raise UsageError("not yet")
        return await opening(self)

    monkeypatch.setitem(module._OPENERS, "vectors", fail_twice)
    found = await asyncio.gather(*(installation.need("vectors") for _ in range(4)), return_exceptions=True)
    assert [isinstance(one, UsageError) for one in found] == [True, True, False, False]
    assert tries == 3
    cancelled = asyncio.ensure_future(installation.need("postgres"))
    await asyncio.sleep(0)
    cancelled.cancel()
    assert (await installation.need("postgres")).is_open("postgres")
    await installation.close()
