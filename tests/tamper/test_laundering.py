"""No write seals a row that was changed behind the product's back, in any order of tampering, writing, restoring and accepting."""

from __future__ import annotations

import asyncio
import datetime as dt
import tempfile
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from memory_layer.errors import Conflict, MemoryLayerError, PolicyRefused, Tampered
from memory_layer.ops.tamper import look, scan
from memory_layer.service import retention
from memory_layer.service.actions import nodes
from memory_layer.service.actions.artifacts import ExtendRetention
from memory_layer.service.actions.nodes import ExpireNode, SetHold
from memory_layer.service.actions.tampered import ResolveRow
from memory_layer.service.commit import Change
from memory_layer.service.commit.transaction import Transactor
from memory_layer.service.indexing import work_once
from memory_layer.service.installation import Installation
from tests.support.artifacts import upload
from tests.support.databases import new_database
from tests.support.service import caller, create, delete, hold, patch, rows, running_memory, unit, verify
from tests.support.tampering import CHANGES, Bench
from tests.tamper.catalogue import LINES

Database = Callable[[str], str]
NODES = 3


def columns_of(table: str) -> list[str]:
    """All whose change the verifier names. But for tenant and id: another one makes a row that no entry knows of one that is gone, and
    `test_catalogue.py` has that."""
    named = [name.partition(".") for name, line in LINES.items() if line.by == "verify"]
    return [column for of, _, column in named if of == table and column not in ("tenant", "id", "+", "-")]


COLUMNS = columns_of("memory_nodes")
# What the runtime role does to a row: by the column's type but for these, with what a CHECK of the table wants along.
VALUES = {
    "memory_nodes.embedding_id": "gen_random_uuid()::text",  # two nodes cannot have one
    "memory_nodes.legal_hold": "NOT legal_hold, legal_hold_reason = NULL",
    "memory_nodes.legal_hold_reason": "coalesce(legal_hold_reason, '') || 'x', legal_hold = true",
    "memory_nodes.ttl_seconds": "coalesce(ttl_seconds, 3600) + 1, expires_at = coalesce(expires_at, now())",
    "memory_nodes.expires_at": "coalesce(expires_at, now()) + interval '1 day', ttl_seconds = coalesce(ttl_seconds, 3600)",
    "memory_nodes.deleted_at": "CASE WHEN deleted_at IS NULL THEN now() END",
    "memory_nodes.position": "coalesce(position, 0) + 1, thread = coalesce(thread, 'x')",
    "memory_nodes.language": "CASE WHEN language = 'tlh' THEN 'en' ELSE 'tlh' END",
    "artifacts.memory_node_id": "NULL",
    "artifacts.fault": "'corrupt'",
    "artifacts.sha256": "repeat('0', 64)",
}


async def resolve(memory: Installation, verb: Any, node: uuid.UUID) -> None:
    """What `memoryctl tamper restore` and `accept` submit."""
    compared = await look(memory, node, None)
    spaces = {side["namespace"] for side in (compared.found, compared.story.recorded.row) if side is not None}
    action = ResolveRow(verb, "node", node, "case 7", compared.story.recorded, compared.nodes, tuple(spaces))
    await memory.committer.submit(Change(caller("ann"), action))


def tamper(dsn: str, node: uuid.UUID, change: str) -> None:
    with psycopg.connect(dsn, autocommit=True) as app:
        app.execute("SELECT set_config('memory.all_tenants', 'on', false)")
        if change == "gone":
            with app.transaction():
                app.execute("UPDATE memory_vectors SET status = 'deleted' WHERE memory_node_id = %s", [node])
                app.execute("DELETE FROM memory_nodes WHERE id = %s AND NOT legal_hold", [node])
            return
        app.execute(*edit(app, "memory_nodes", node, change))


def edit(app: psycopg.Connection[Any], table: str, row: uuid.UUID, column: str) -> tuple[str, list[Any]]:
    (type_,) = (one.type for one in Bench(app).columns() if (one.table, one.name) == (table, column))
    by_type = [value.format(c=f'"{column}"') for value in CHANGES[type_]]
    value = VALUES.get(f"{table}.{column}") or f"coalesce({', '.join(by_type)})".replace("%", "%%")
    return f'UPDATE {table} SET "{column}" = {value} WHERE id = %s', [row]


WRITES: dict[str, Callable[[Installation, uuid.UUID], Any]] = {
    "patch": lambda memory, node: patch(memory, node, content="new"),
    "metadata": lambda memory, node: patch(memory, node, metadata={"k": 1}),
    "ttl": lambda memory, node: patch(memory, node, ttl_seconds=7200),
    "hold": hold,
    "release": lambda memory, node: memory.committer.submit(Change(caller("ann"), SetHold(node, False, "over", None))),
    "delete": delete,
    "expire": lambda memory, node: memory.committer.submit(Change(caller("ann"), ExpireNode(node))),
}
STEP = st.tuples(
    st.integers(0, NODES - 1),
    st.sampled_from(["tamper", "write", "write", "restore", "accept", "verify"]),
    st.sampled_from([*COLUMNS, "gone"]),
    st.sampled_from(sorted(WRITES)),
)


def image(dsn: str, node: uuid.UUID) -> Any:
    """The row as it is, all columns."""
    found = rows(dsn, "SELECT n::text FROM memory_nodes n WHERE id = %s", [node])
    return found[0][0] if found else None


def findings(dsn: str, data: Path, nodes: list[uuid.UUID]) -> set[uuid.UUID]:
    """The nodes that `audit verify` names."""
    verdict = verify(dsn, data)
    return {node for node in nodes for f in verdict.findings if str(node) in f.expected + f.found}


async def play(database: Database, data: Path, steps: list[tuple[int, str, str, str]]) -> None:
    root = database("postgres")
    async with running_memory(database("memory_app"), data) as memory:
        nodes = [await create(memory, content=f"node {n}") for n in range(NODES)]
        model = {node: image(root, node) for node in nodes}  # as the log has each row
        for place, kind, change, write in steps:
            node = nodes[place]
            if kind == "tamper":
                tamper(database("memory_app"), node, change)
                continue
            found = image(root, node)
            wrong = found != model[node]
            refused = None
            try:
                if kind == "write":
                    await WRITES[write](memory, node)
                elif kind in ("restore", "accept"):
                    await resolve(memory, kind, node)
            except MemoryLayerError as error:
                refused = error
            if refused is not None:
                assert image(root, node) == found
                if kind == "write":
                    assert isinstance(refused, Tampered) == wrong, (write, refused)
                else:  # what is right is neither restored nor accepted; what is wrong is accepted unless it lifts a hold
                    assert isinstance(refused, PolicyRefused if wrong else Conflict), (kind, refused)
                    assert not (wrong and kind == "restore"), refused
                continue
            if kind == "write":
                assert not wrong, write
            if kind in ("restore", "accept"):
                assert wrong, kind
            if kind != "verify":
                model[node] = image(root, node)
            differ = {one for one in nodes if image(root, one) != model[one]}
            assert {problem.id for problem in await scan(memory)} == differ
            if kind == "verify":
                assert findings(root, data, nodes) == differ
        differ = {one for one in nodes if image(root, one) != model[one]}
    assert findings(root, data, nodes) == differ


async def test_every_way_of_tampering_is_one(database: Database, tmp_path: Path) -> None:
    root = database("postgres")
    async with running_memory(database("memory_app"), tmp_path) as memory:
        edited = {change: await create(memory) for change in [*COLUMNS, "gone"]}
        for change, node in edited.items():
            before = image(root, node)
            tamper(database("memory_app"), node, change)
            assert image(root, node) != before, change
        assert {problem.id for problem in await scan(memory)} == set(edited.values())
    assert findings(root, tmp_path, [*edited.values()]) == set(edited.values())


@pytest.mark.slow
@settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
@given(steps=st.lists(STEP, min_size=1, max_size=12))
def test_any_sequence(cluster: Any, steps: list[tuple[int, str, str, str]]) -> None:
    with new_database(cluster) as made, tempfile.TemporaryDirectory() as data:
        asyncio.run(play(made, Path(data), steps))


@pytest.mark.parametrize("write", [name for name in WRITES if name != "expire"])
async def test_what_was_sealed_as_it_stood_is_named_and_can_be_accepted(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: str
) -> None:
    """An older release looked at no row before it wrote upon one."""

    async def blind(*_: Any) -> dict[Any, Any]:
        return {}

    root = database("postgres")
    async with running_memory(database("memory_app"), tmp_path) as memory:
        node = await create(memory, content="true")
        tamper(database("memory_app"), node, "owner")
        with monkeypatch.context() as older:
            older.setattr(Transactor, "_tampered", blind)
            await WRITES[write](memory, node)
        ((seq,),) = rows(root, "SELECT max(seq) FROM audit_events WHERE memory_node_id = %s", [node])
        verdict = verify(root, tmp_path)
        (finding,) = [f for f in verdict.findings if f.code == "STATE_UNEXPLAINED"]
        assert (finding.seq, str(node) in finding.expected) == (seq, True)
        with pytest.raises(Conflict):
            await resolve(memory, "restore", node)
        await resolve(memory, "accept", node)
    assert verify(root, tmp_path).findings == ()


async def test_the_sweep_of_what_expired_passes_over_what_was_edited(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, app = database("postgres"), database("memory_app")
    async with running_memory(app, tmp_path) as memory:
        edited, moved, bound = [await create(memory, ttl_seconds=3600) for _ in range(3)]
        unbound = await create(memory)
        with monkeypatch.context() as short:
            short.setattr(nodes, "expiry", lambda _, now: now)
            due = await create(memory, ttl_seconds=3600)
        with psycopg.connect(app, autocommit=True) as connection:
            connection.execute("SELECT set_config('memory.all_tenants', 'on', false)")
            past = "expires_at = now() - interval '1 second'"
            connection.execute(f"UPDATE memory_nodes SET content = 'forged', {past} WHERE id = %s", [edited])
            connection.execute(f"UPDATE memory_nodes SET {past} WHERE id = %s", [moved])
            connection.execute(f"UPDATE memory_nodes SET ttl_seconds = 3600, {past} WHERE id = %s", [unbound])
        before = image(root, edited)
        assert await retention.expire(memory) == 1
        assert await retention.expire(memory) == 0  # and none is tried again at once: a refusal is an entry of the log
        assert image(root, edited) == before
        assert rows(root, "SELECT id FROM memory_nodes WHERE deleted_at IS NOT NULL") == [(due,)]
        about = (
            "SELECT memory_node_id, event_type FROM audit_events WHERE memory_node_id IS NOT NULL ORDER BY seq OFFSET 5"
        )
        denied = {(node, "ops.tampered-write.failed") for node in (edited, moved, unbound)}
        assert sorted(rows(root, about)) == sorted({*denied, (due, "memory.node.deleted")})
        assert findings(root, tmp_path, [edited, moved, bound, unbound, due]) == {edited, moved, unbound}


async def test_no_write_seals_an_edited_artifact(database: Database, tmp_path: Path) -> None:
    """Each column edited, a genuine write tried, and another edit: what was edited is refused, or stays named."""
    root, later = database("postgres"), dt.datetime.now(dt.UTC).replace(microsecond=0)
    async with running_memory(database("memory_app"), tmp_path) as memory:
        node = await create(memory)
        columns = columns_of("artifacts")
        edited = {column: await upload(memory, column.encode(), node=node) for column in columns}
        for days, again in ((1, ""), (2, "name")):
            written = set()
            for column, artifact in edited.items():
                with psycopg.connect(database("memory_app"), autocommit=True) as app:
                    app.execute("SELECT set_config('memory.all_tenants', 'on', false)")
                    if again != column:
                        app.execute(*edit(app, "artifacts", artifact, again or column))
                try:
                    extend = ExtendRetention(artifact, later + dt.timedelta(days=days), {"mode": "none"})
                    await memory.committer.submit(Change(caller(), extend))
                    written.add(column)
                except Tampered:
                    pass
            assert written == (set() if again else {"verified_at"})  # a note of when the worker looked: it stays named
            named = findings(root, tmp_path, [*edited.values()])
            assert {column for column, artifact in edited.items() if artifact not in named} == set()


@pytest.mark.parametrize("namespace", ["namespace", "'elsewhere'"])
@pytest.mark.parametrize("status", ["deleting", "deleted"])
async def test_no_node_that_is_a_vector_alone_can_be_hidden(
    database: Database, tmp_path: Path, status: str, namespace: str
) -> None:
    """A row on its way out of the index, in whichever namespace, stands for no vector that the log speaks of."""
    root = database("postgres")
    async with running_memory(database("memory_app"), tmp_path) as memory:
        node = await create(memory, content=None, metadata={"a": 1}, embedding=unit(1, 0))
        while await work_once(memory):
            pass
        assert verify(root, tmp_path).findings == ()
        with psycopg.connect(root, autocommit=True) as connection:
            connection.execute(
                f"UPDATE memory_vectors SET status = '{status}', namespace = {namespace} WHERE memory_node_id = %s",
                [node],
            )
    (finding,) = verify(root, tmp_path).findings
    assert finding.code == "STATE_RECONCILE_MISMATCH"
    assert str(node) in finding.expected
