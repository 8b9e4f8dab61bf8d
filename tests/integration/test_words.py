"""The words of the text index against the texts that they are of."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from functools import partial
from pathlib import Path

import psycopg
import pytest

from memory_layer.ops.vectors import words
from memory_layer.ops.vectors.spaces import Scope
from memory_layer.service.indexing import work_once
from memory_layer.service.installation import Installation
from tests.support.service import create, delete, patch, running_memory

Database = Callable[[str], str]
AWKWARD = "one <!-- comment --> and " + "x-" * 400 + " gate"


@pytest.fixture
async def memory(database: Database, tmp_path: Path) -> AsyncIterator[Installation]:
    async with running_memory(database("memory_app"), tmp_path) as opened:
        for text in ("north gate", "south gate", AWKWARD, "patched", "gone", ""):
            node = await create(opened, content=text)
            if text == "patched":
                await patch(opened, node, content="another text")
            if text == "gone":
                await delete(opened, node)
        await indexed(opened)
        yield opened


async def indexed(memory: Installation) -> None:
    while await work_once(memory):
        pass


def sides(memory: Installation) -> Installation:
    return memory.with_parts(work=partial(work_once, memory))


async def test_all_is_well_as_the_worker_left_it(memory: Installation) -> None:
    done = await words.compare(sides(memory), Scope())
    assert (done.compared, done.found) == (4, [])
    assert words.finding_of(done).status == "pass"


NORTH = "node_id = (SELECT id FROM memory_nodes WHERE content = 'north gate')"


@pytest.mark.parametrize(
    ("statement", "kinds"),
    [
        (f"UPDATE memory_terms SET terms = to_tsvector('treasure') WHERE {NORTH}", {"wrong"}),
        (f"UPDATE memory_terms SET namespace = 'other' WHERE {NORTH}", {"wrong"}),
        (f"UPDATE memory_terms SET version = 7 WHERE {NORTH}", {"wrong"}),
        (f"UPDATE memory_terms SET node_id = gen_random_uuid() WHERE {NORTH}", {"missing", "stray"}),
        (f"UPDATE memory_terms SET tenant = 'bob' WHERE {NORTH}", {"missing", "stray"}),
        (f"DELETE FROM memory_terms WHERE {NORTH}", {"missing"}),
        ("UPDATE memory_terms SET terms = '' WHERE node_id = (SELECT id FROM memory_nodes WHERE content LIKE 'one <%')", {"wrong"}),
        ("INSERT INTO memory_terms SELECT 'ann', id, 'kernel-memory', 1, to_tsvector('x') FROM memory_nodes WHERE deleted_at IS NOT NULL",
         {"stray"}),
    ],
)  # fmt: skip
async def test_each_difference_is_named_and_repaired(
    memory: Installation, database: Database, statement: str, kinds: set[str]
) -> None:
    with psycopg.connect(database("postgres"), autocommit=True) as root:
        assert root.execute(statement).rowcount == 1  # type: ignore[call-overload]
    done = await words.compare(sides(memory), Scope())
    assert {one.kind for one in done.found} == kinds
    assert words.finding_of(done).status == "fail"
    await words.compare(sides(memory), Scope(), repair=True)
    await indexed(memory)
    assert (await words.compare(sides(memory), Scope())).found == []


async def test_what_is_on_its_way_is_not_judged(memory: Installation) -> None:
    await create(memory, content="not indexed yet")
    assert (await words.compare(sides(memory), Scope())).found == []
