"""What ends with its node leaves the table and the object store; what is kept, shared, tampered with or frozen does not."""

from __future__ import annotations

import datetime as dt
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import psycopg
import pytest

from memory_layer.errors import Conflict, NotFound
from memory_layer.ops.artifacts import jobs
from memory_layer.ops.artifacts.manifest import export, read
from memory_layer.ops.artifacts.rebuild import compare, rebuild
from memory_layer.ops.manifests import manifest_key
from memory_layer.service import artifacts, freeze, holds, orphans
from memory_layer.service.artifact_ending import end_with_nodes
from memory_layer.service.installation import Installation
from memory_layer.service.system import system_caller
from memory_layer.stores.logs import find_trust_root
from tests.support.artifacts import eraser_of, key_of, register, upload, with_objects
from tests.support.service import caller, create, delete, hold, rows, running_memory, verify

Database = Callable[[str], str]


@pytest.fixture
async def memory(database: Database, tmp_path: Path) -> AsyncIterator[Installation]:
    async with running_memory(database("memory_app"), tmp_path) as opened:
        yield opened
    assert verify(database("postgres"), tmp_path).findings == ()


@pytest.fixture
def root(database: Database) -> Callable[..., list[tuple[Any, ...]]]:
    return lambda query, *params: rows(database("postgres"), query, params)


async def swept(memory: Installation, folder: Path) -> int:
    """Objects that a night deletes."""
    async with eraser_of(memory, folder) as eraser:
        return (await orphans.sweep(memory.postgres, memory.objects, eraser, age=dt.timedelta(0))).deleted


async def there(memory: Installation, key: str) -> bool:
    try:
        await memory.objects.stat(key)
    except NotFound:
        return False
    return True


async def test_rows_and_objects_of_a_deleted_node_go(
    memory: Installation, root: Callable[..., Any], tmp_path: Path
) -> None:
    gone, stays = await create(memory), await create(memory)
    ended = [await upload(memory, content, node=gone) for content in (b"one", b"shared")]
    other = [await upload(memory, b"shared", node=stays), await upload(memory, b"alone")]
    named = await register(memory, "ann/models/a", b"registered", node=gone)
    await holds.converge(memory)  # what was laid there may have been under a hold
    assert await end_with_nodes(memory) == 0
    await delete(memory, gone)
    assert await end_with_nodes(memory) == 3
    assert await end_with_nodes(memory) == 0
    assert {id_ for (id_,) in root("SELECT id FROM artifacts")} == set(other)
    told = root(
        "SELECT e.artifact_id, e.memory_node_id, convert_from(p.payload, 'UTF8')::json ->> 'reason' FROM audit_events e"
        " JOIN audit_payloads p USING (log, seq) WHERE event_type = 'memory.artifact.deleted'"
    )
    assert sorted(told) == sorted((id_, gone, "its node was deleted") for id_ in (*ended, named))
    assert await swept(memory, tmp_path) == 1
    assert [await there(memory, key_of(content)) for content in (b"one", b"shared", b"alone")] == [False, True, True]
    assert await there(memory, "ann/models/a")  # what somebody laid there is theirs
    # The same bytes can be stored anew.
    assert await upload(memory, b"one", node=stays) not in ended


async def test_what_is_kept_ends_when_that_is_over(memory: Installation, root: Callable[..., Any]) -> None:
    node, held = await create(memory), await create(memory)
    soon = dt.datetime.now(dt.UTC) + dt.timedelta(days=1)
    locked, plain = await upload(memory, b"locked", node=node, retain_until=soon), await upload(memory, b"x", node=held)
    await delete(memory, node)
    await delete(memory, held)
    await hold(memory, held)
    assert await end_with_nodes(memory) == 0
    await holds.converge(memory)
    await hold(memory, held, on=False)
    assert await end_with_nodes(memory) == 0  # the store still holds the object: nobody would tell it
    await holds.converge(memory)
    assert await end_with_nodes(memory) == 1
    assert root("SELECT id FROM artifacts WHERE id IN (%s, %s)", locked, plain) == [(locked,)]
    await artifacts.get(memory, caller(), locked)


async def test_a_hold_that_the_store_has_yet_to_take_off_comes_first(memory: Installation) -> None:
    node = await create(memory)
    artifact = await upload(memory, b"y", node=node)
    await hold(memory, node)
    await holds.converge(memory)
    await hold(memory, node, on=False)
    with pytest.raises(Conflict, match="was not told yet"):
        await artifacts.delete(memory, caller(), artifact)
    await holds.converge(memory)
    await artifacts.delete(memory, caller(), artifact)
    assert not (await memory.objects.stat(key_of(b"y"))).hold


async def test_tampered_rows_and_frozen_writes_stay(
    memory: Installation, root: Callable[..., Any], database: Database
) -> None:
    node = await create(memory)
    edited, plain = await upload(memory, b"one", node=node), await upload(memory, b"two", node=node)
    live = await create(memory)
    of_live = await upload(memory, b"three", node=live)
    await delete(memory, node)
    operator = await system_caller(memory, "memoryctl")
    await freeze.put(memory.committer, operator, "a drill")
    assert await end_with_nodes(memory) == 0
    await freeze.lift(memory.committer, operator)
    with psycopg.connect(database("postgres"), autocommit=True) as owner:
        owner.execute("UPDATE artifacts SET name = 'x' WHERE id = %s", [edited])
        owner.execute("UPDATE memory_nodes SET deleted_at = now() WHERE id = %s", [live])
        assert await end_with_nodes(memory) == 1
        owner.execute("UPDATE artifacts SET name = NULL WHERE id = %s", [edited])
        owner.execute("UPDATE memory_nodes SET deleted_at = NULL WHERE id = %s", [live])
    assert {id_ for (id_,) in root("SELECT id FROM artifacts")} == {edited, of_live}
    assert await end_with_nodes(memory) == 1
    assert plain != edited


async def test_a_scan_passes_over_what_is_deleted_meanwhile(memory: Installation, root: Callable[..., Any]) -> None:
    gone, fine = await upload(memory, b"gone"), await upload(memory, b"fine")

    class Losing:
        """An object store whose object goes while it is looked at; everything else is the store's own."""

        def __getattr__(self, name: str) -> Any:
            return getattr(memory.objects, name)

        async def stat(self, key: str, version: str | None = None) -> Any:
            if key == key_of(b"gone"):
                await artifacts.delete(memory, caller(), gone)
                raise NotFound("no such object")
            return await memory.objects.stat(key, version)

    await jobs.weekly_scan(with_objects(memory, Losing()))
    ((verdict, report),) = root("SELECT verdict, report FROM ops_runs WHERE verb = 'artifacts-scan'")
    assert (verdict, report["facts"]["right"], report["facts"]["faults"]) == ("ok", 1, {})
    assert root("SELECT count(*) FROM audit_events WHERE event_type = 'memory.artifact.corrupt'") == [(0,)]
    assert (await artifacts.get(memory, caller(), fine))["fault"] is None


async def test_manifests_know_what_was_deleted_since(
    memory: Installation, root: Callable[..., Any], database: Database, tmp_path: Path
) -> None:
    node = await create(memory)
    ended, direct, stays = [await upload(memory, content, node=at) for content, at in
                            ((b"one", node), (b"two", None), (b"three", None))]  # fmt: skip
    await export(memory, manifest_key(tmp_path))
    await delete(memory, node)
    assert await end_with_nodes(memory) == 1
    await artifacts.delete(memory, caller(), direct)
    later = await upload(memory, b"four")
    await artifacts.delete(memory, caller(), later)
    manifest = await read(memory, None, find_trust_root(tmp_path))
    compared = await compare(memory, manifest)
    assert (compared.artifacts, compared.missing, compared.differs) == (3, [], [])
    table = root("SELECT to_jsonb(a) - 'hold_due' - 'verified_at' FROM artifacts a")
    with psycopg.connect(database("postgres"), autocommit=True) as owner:
        owner.execute("DELETE FROM artifacts")
    assert (await compare(memory, manifest)).missing == [str(stays)]
    done = await rebuild(memory, manifest)
    assert (done.restored, done.from_log, done.missing) == (1, 0, 0)
    assert root("SELECT to_jsonb(a) - 'hold_due' - 'verified_at' FROM artifacts a") == table
    assert ended not in (stays, later)
