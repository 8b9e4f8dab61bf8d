"""A node's legal hold reaches its files, in Postgres with the hold itself and in the object store soon after, whatever breaks between."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import psycopg
import pytest

from memory_layer.errors import LegalHold, ObjectStoreUnavailable
from memory_layer.ops.artifacts.checking import check
from memory_layer.ops.artifacts.scan import scan
from memory_layer.service import holds
from memory_layer.service.installation import Installation
from memory_layer.service.system import system_caller
from tests.support.artifacts import eraser_of, key_of, register, upload, with_objects
from tests.support.service import create, delete, hold, rows, running_memory, verify

Database = Callable[[str], str]
STATE = "SELECT legal_hold, hold_due FROM artifacts WHERE id = %s"


class Died(Exception):
    """A process that ends here."""


class Faulty:
    """An object store whose ``set_hold`` does something first; everything else is the store's own."""

    def __init__(
        self, store: Any, before: Callable[[], Any] | None = None, after: Callable[[], Any] | None = None
    ) -> None:
        self._store, self._before, self._after = store, before, after

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    async def set_hold(self, key: str, version_id: str, held: bool) -> None:
        if self._before is not None:
            await self._before()
        await self._store.set_hold(key, version_id, held)
        if self._after is not None:
            await self._after()


@pytest.fixture
async def memory(database: Database, tmp_path: Path) -> AsyncIterator[Installation]:
    async with running_memory(database("memory_app"), tmp_path) as opened:
        yield opened


async def held(memory: Installation, content: bytes) -> bool:
    return (await memory.objects.stat(key_of(content))).hold


async def test_set_and_released(memory: Installation, database: Database, tmp_path: Path) -> None:
    node = await create(memory)
    artifact = await upload(memory, b"evidence", node=node)
    dsn = database("postgres")
    assert rows(dsn, STATE, [artifact]) == [(False, False)]
    await hold(memory, node)
    assert rows(dsn, STATE, [artifact]) == [(True, True)]  # with the hold itself, before any worker
    assert await holds.converge(memory) == 1
    assert rows(dsn, STATE, [artifact]) == [(True, False)]
    assert await held(memory, b"evidence")
    async with eraser_of(memory, tmp_path) as eraser:
        state = await eraser.stat(key_of(b"evidence"))
        with pytest.raises(LegalHold):
            await eraser.delete(state.key, state.version_id)
    assert await holds.converge(memory) == 0
    await hold(memory, node, on=False)
    assert await holds.converge(memory) == 1
    assert rows(dsn, STATE, [artifact]) == [(False, False)]
    assert not await held(memory, b"evidence")
    assert verify(dsn, tmp_path).findings == ()


async def test_an_upload_to_a_held_node_is_held_from_its_first_moment(memory: Installation) -> None:
    node = await create(memory, legal_hold=True)
    await upload(memory, b"later", node=node)
    assert await held(memory, b"later")  # on the PUT itself
    await register(memory, "ann/registered", b"there", node=node)
    assert not (await memory.objects.stat("ann/registered")).hold
    assert await holds.converge(memory) == 2
    assert (await memory.objects.stat("ann/registered")).hold


async def test_a_node_that_is_held_between_the_bytes_and_the_row(memory: Installation, database: Database) -> None:
    node = await create(memory)

    class Slow(Faulty):
        async def put(self, *args: Any, **facts: Any) -> Any:
            assert facts["hold"] is False
            stored = await self._store.put(*args, **facts)
            await hold(memory, node)
            return stored

    artifact = await upload(with_objects(memory, Slow(memory.objects)), b"raced", node=node)
    assert rows(database("postgres"), STATE, [artifact]) == [(True, True)]
    await holds.converge(memory)
    assert await held(memory, b"raced")


async def test_a_node_that_is_released_between_the_bytes_and_the_row(memory: Installation, database: Database) -> None:
    node = await create(memory, legal_hold=True)

    class Slow(Faulty):
        async def put(self, *args: Any, **facts: Any) -> Any:
            assert facts["hold"] is True
            stored = await self._store.put(*args, **facts)
            await hold(memory, node, on=False)
            return stored

    artifact = await upload(with_objects(memory, Slow(memory.objects)), b"raced", node=node)
    assert await held(memory, b"raced")
    assert await holds.converge(memory) == 1
    assert rows(database("postgres"), STATE, [artifact]) == [(False, False)]
    assert not await held(memory, b"raced")


async def test_one_object_is_held_while_any_artifact_of_it_is(memory: Installation) -> None:
    nodes = [await create(memory) for _ in range(3)]
    for node in nodes:
        await upload(memory, b"shared", node=node)
    await hold(memory, nodes[0])
    await hold(memory, nodes[1])
    await holds.converge(memory)
    await hold(memory, nodes[0], on=False)
    assert await holds.converge(memory) == 1
    assert await held(memory, b"shared")
    await hold(memory, nodes[1], on=False)
    assert await holds.converge(memory) == 1
    assert not await held(memory, b"shared")


@pytest.mark.parametrize("on", [True, False], ids=["set", "released"])
@pytest.mark.parametrize("moment", ["before", "after"])
async def test_a_crash_beside_the_store_is_repaired_by_itself(
    memory: Installation, database: Database, moment: str, on: bool
) -> None:
    node = await create(memory, legal_hold=not on)
    artifact = await upload(memory, b"evidence", node=node)
    await holds.converge(memory)
    await hold(memory, node, on=on)

    async def die() -> None:
        raise Died

    broken = Faulty(memory.objects, **{moment: die})
    with pytest.raises(Died):
        await holds.converge(with_objects(memory, broken))
    assert rows(database("postgres"), STATE, [artifact]) == [(on, True)]
    assert await holds.converge(memory) == 1
    assert await held(memory, b"evidence") is on


async def test_a_hold_that_is_released_before_any_worker_looked(memory: Installation) -> None:
    node = await create(memory, legal_hold=True)
    await upload(memory, b"evidence", node=node)
    await hold(memory, node, on=False)
    assert await held(memory, b"evidence")
    assert await holds.converge(memory) == 1
    assert not await held(memory, b"evidence")


async def test_a_hold_that_is_released_after_a_worker_died_over_it(memory: Installation) -> None:
    node = await create(memory)
    await upload(memory, b"evidence", node=node)
    await hold(memory, node)

    async def die() -> None:
        raise Died

    with pytest.raises(Died):
        await holds.converge(with_objects(memory, Faulty(memory.objects, after=die)))
    await hold(memory, node, on=False)
    assert await holds.converge(memory) == 1
    assert not await held(memory, b"evidence")


async def test_a_hold_that_changes_while_it_is_sent(memory: Installation, database: Database) -> None:
    """Between the worker's look and its mark: the mark must not cover what the store was not told."""
    node, other = await create(memory), await create(memory)
    first = await upload(memory, b"shared", node=node)
    second = await upload(memory, b"shared", node=other)
    await hold(memory, node)
    await holds.converge(memory)
    await hold(memory, node, on=False)
    turns: list[int] = []

    async def meanwhile() -> None:
        turns.append(1)
        if len(turns) == 1:
            await hold(memory, other)

    await holds.converge(with_objects(memory, Faulty(memory.objects, before=meanwhile)))
    await holds.converge(memory)
    assert await held(memory, b"shared")
    for artifact, on in ((first, False), (second, True)):
        assert rows(database("postgres"), STATE, [artifact]) == [(on, False)]


async def test_an_object_that_is_gone_keeps_no_other_from_its_hold(memory: Installation, tmp_path: Path) -> None:
    node = await create(memory)
    await upload(memory, b"lost", node=node)
    await upload(memory, b"there", node=node)
    await hold(memory, node)
    (path,) = (p for p in (tmp_path / "objects" / "ann").rglob(key_of(b"lost").partition("/")[2]))
    path.unlink()
    with pytest.raises(ObjectStoreUnavailable, match="1 artifacts"):
        await holds.converge(memory)
    assert await held(memory, b"there")


async def test_a_hold_that_somebody_took_off_the_object_is_found_and_set_again(
    memory: Installation, tmp_path: Path
) -> None:
    node = await create(memory, legal_hold=True)
    await upload(memory, b"evidence", node=node)
    await upload(memory, b"free")
    await holds.converge(memory)
    await memory.objects.set_hold(key_of(b"evidence"), "1", False)
    await memory.objects.set_hold(key_of(b"free"), "1", True)
    done = await scan(memory, await system_caller(memory, "worker"), sample=None, rate=None, resume=False)
    assert (done.holds_sent_again, done.right) == (2, 2)
    await holds.converge(memory)
    assert await held(memory, b"evidence")
    assert not await held(memory, b"free")


async def test_rows_that_came_from_elsewhere_follow_their_node(memory: Installation, database: Database) -> None:
    node = await create(memory, legal_hold=True)
    artifact = await upload(memory, b"evidence", node=node)
    await holds.converge(memory)
    rows(database("postgres"), "UPDATE artifacts SET legal_hold = false, hold_due = false WHERE id = %s", [artifact])
    assert await holds.follow_nodes(memory) == 1
    await holds.converge(memory)
    assert rows(database("postgres"), STATE, [artifact]) == [(True, False)]


async def test_a_held_node_and_its_files_stay(memory: Installation, tmp_path: Path) -> None:
    node = await create(memory, legal_hold=True)
    artifact = await upload(memory, b"evidence", node=node)
    await holds.converge(memory)
    with pytest.raises(LegalHold):
        await delete(memory, node)
    await hold(memory, node, on=False)
    await holds.converge(memory)
    await delete(memory, node)
    # An artifact outlives its node's soft deletion, free to be deleted by then.
    place = memory
    checked = await check(place.objects, await _row(memory, artifact), _no_pace(), "COMPLIANCE")
    assert (checked.fault, checked.hold) == (None, False)


async def test_a_deleted_node_can_be_held_with_its_files_until_it_is_purged(
    memory: Installation, database: Database, tmp_path: Path
) -> None:
    """That somebody deleted it is often why a hold is set."""
    node = await create(memory)
    artifact, dsn = await upload(memory, b"evidence", node=node), database("postgres")
    await delete(memory, node)
    await hold(memory, node)
    await holds.converge(memory)
    assert rows(dsn, STATE, [artifact]) == [(True, False)]
    assert await held(memory, b"evidence")
    purge = "DELETE FROM memory_nodes WHERE id = %s"
    with pytest.raises(psycopg.errors.RestrictViolation, match="under legal hold"):
        rows(dsn, purge, [node])
    assert await holds.follow_nodes(memory) == 0
    await hold(memory, node, on=False)
    await holds.converge(memory)
    assert not await held(memory, b"evidence")
    assert verify(dsn, tmp_path).findings == ()
    assert rows(dsn, "SELECT deleted_at IS NOT NULL, legal_hold FROM memory_nodes WHERE id = %s", [node]) == [
        (True, False)
    ]
    with pytest.raises(
        psycopg.errors.RestrictViolation, match="still has vectors"
    ):  # the hold is not what keeps it now
        rows(dsn, purge, [node])


async def _row(memory: Installation, artifact: uuid.UUID) -> Any:
    from memory_layer.ops.artifacts.places import SQL
    from memory_layer.stores.postgres import ALL_TENANTS, artifact_row

    ((row,),) = await memory.postgres.fetch(ALL_TENANTS, (SQL["one"], {"id": artifact}))
    row.pop("held")
    return artifact_row(row)


def _no_pace() -> Any:
    from memory_layer.ops.artifacts.checking import Pace

    return Pace(None)
