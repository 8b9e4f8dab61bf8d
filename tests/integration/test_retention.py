"""What ends by itself: nodes whose time to live is over, and answers kept for repeated requests."""

from __future__ import annotations

import asyncio
import datetime as dt
import json
import uuid
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from memory_layer.errors import LegalHold, NotFound, PreconditionFailed, SignerUnavailable
from memory_layer.service import retention
from memory_layer.service.actions import nodes
from memory_layer.service.actions.nodes import CreateNodes, ExpireNode
from memory_layer.service.actions.replacing import PutNode
from memory_layer.service.commit import Change
from memory_layer.service.indexing import work_once
from memory_layer.service.installation import Installation
from memory_layer.service.replacing import put
from tests.support.service import caller, create, delete, hold, new_node, patch, rows, running_memory, unit, verify

Database = Callable[[str], str]
Root = Callable[..., list[tuple[Any, ...]]]


@pytest.fixture
async def memory(database: Database, tmp_path: Path) -> AsyncIterator[Installation]:
    async with running_memory(database("memory_app"), tmp_path) as opened:
        yield opened
    verdict = verify(database("postgres"), tmp_path)
    assert verdict.findings == ()  # whatever the sweep did, rows and log agree


@pytest.fixture
def root(database: Database) -> Root:
    return lambda query, *params: rows(database("postgres"), query, params)


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """The shortest TTL that a caller can ask for, an hour, is over at once; beyond it a second counts a microsecond."""

    def expiry(ttl_seconds: int | None, now: dt.datetime) -> dt.datetime | None:
        return None if ttl_seconds is None else now + dt.timedelta(microseconds=ttl_seconds - 3600)

    monkeypatch.setattr(nodes, "expiry", expiry)


TTL = {"ttl_seconds": 3600}  # over at once under the fixture ``short``
LATER = 3600 + 3_600_000_000  # an hour later under it


def live(root: Root) -> set[uuid.UUID]:
    return {id_ for (id_,) in root("SELECT id FROM memory_nodes WHERE deleted_at IS NULL")}


def told(root: Root) -> list[tuple[str, str, dict[str, Any], dict[str, Any]]]:
    """(tenant, node, entry, payload) of each deletion."""
    found = root(
        "SELECT e.tenant, e.memory_node_id::text, convert_from(e.entry, 'UTF8'), convert_from(p.payload, 'UTF8')"
        " FROM audit_events e JOIN audit_payloads p USING (log, seq) WHERE e.event_type = 'memory.node.deleted' ORDER BY seq"
    )
    return [(tenant, node, json.loads(entry), json.loads(payload)) for tenant, node, entry, payload in found]


@pytest.mark.usefixtures("short")
async def test_an_id_of_what_has_expired_is_given_away_after_its_entry(memory: Installation, root: Root) -> None:
    old = await create(memory, embedding_id="e", content="old", **TTL)
    new = new_node(embedding_id="e", content="new")
    outcome = await put(memory, caller(), PutNode(new, namespaced=False, exists=False, expected_version=None))
    assert (outcome.answer["memoryNodeId"], outcome.answer["version"]) == (str(new.id), 1)
    assert live(root) == {new.id}
    ((_, node, _, payload),) = told(root)
    assert (node, payload["reason"]) == (str(old), "expired")
    # One that is held has not expired, and is not replaced; one that is replaced counts from then on.
    held = await create(memory, embedding_id="h", legal_hold=True, **TTL)
    with pytest.raises(LegalHold):
        await put(memory, caller(), PutNode(new_node(embedding_id="h"), False, False, None))
    again = new_node(embedding_id="e", ttl_seconds=LATER)
    assert (await put(memory, caller(), PutNode(again, False, False, 1))).answer["version"] == 2
    assert live(root) == {new.id, held}
    demand = PutNode(new_node(embedding_id="gone"), namespaced=False, exists=True, expected_version=None)
    await create(memory, embedding_id="gone", **TTL)
    with pytest.raises(PreconditionFailed):
        await put(memory, caller(), demand)


@pytest.mark.usefixtures("short")
async def test_what_has_expired_is_deleted_with_an_entry_that_says_so(memory: Installation, root: Root) -> None:
    gone = [await create(memory, tenant, embedding=unit(1, 0), embedding_id="e", **TTL) for tenant in ("ann", "bob")]
    stays = [await create(memory), await create(memory, ttl_seconds=LATER)]
    while await work_once(memory):
        pass
    assert await retention.expire(memory) == 2
    assert live(root) == set(stays)
    entries = told(root)
    assert {(tenant, node) for tenant, node, _, _ in entries} == {("ann", str(gone[0])), ("bob", str(gone[1]))}
    worker = str(root("SELECT id FROM principals WHERE tenant = '_system' AND service = 'worker'")[0][0])
    for tenant, _, entry, payload in entries:
        assert (entry["tenant"], entry["auth"], entry["actor"], entry["version"]) == (tenant, "system", worker, 2)
        assert (payload["reason"], sorted(payload)) == ("expired", ["deletedAt", "expiresAt", "reason"])
        assert payload["deletedAt"] == entry["ts"]
    assert root("SELECT DISTINCT status FROM memory_vectors WHERE memory_node_id = ANY (%s)", gone) == [("deleting",)]
    while await work_once(memory):
        pass
    assert root("SELECT count(*) FROM vector_entries WHERE removed_at IS NULL") == [(0,)]
    await create(memory, embedding_id="e")  # its embeddingId is free again
    assert await retention.expire(memory) == 0
    assert len(told(root)) == 2


@pytest.mark.usefixtures("short")
async def test_a_thousand_go_in_pieces_of_a_hundred(
    memory: Installation, root: Root, monkeypatch: pytest.MonkeyPatch
) -> None:
    for tenant in ("ann", "bob"):
        nodes: list[Any] = [new_node(**TTL) for _ in range(500)]
        await memory.committer.submit(Change(caller(tenant), CreateNodes(nodes)))
    held = await create(memory, legal_hold=True, **TTL)
    before = root("SELECT count(*) FROM audit_seals")[0][0]
    most = 0
    submit = memory.committer.submit

    async def watched(change: Change) -> Any:
        nonlocal most
        most = max(most, memory.committer.waiting + 1)
        return await submit(change)

    monkeypatch.setattr(memory.committer, "submit", watched)
    assert await retention.expire(memory) == 1000
    assert most <= retention.BATCH_SIZE
    assert live(root) == {held}
    assert len(told(root)) == 1000
    assert root("SELECT count(*) FROM audit_seals")[0][0] - before >= 10


@pytest.mark.usefixtures("short")
async def test_holds_keep_what_has_expired_until_they_are_released(memory: Installation, root: Root) -> None:
    node, born_held = await create(memory, **TTL), await create(memory, legal_hold=True, **TTL)
    await hold(memory, node)
    assert await retention.expire(memory) == 0
    assert live(root) == {node, born_held}
    await hold(memory, node, on=False)
    assert await retention.expire(memory) == 1
    assert live(root) == {born_held}


@pytest.mark.usefixtures("short")
@pytest.mark.parametrize("meanwhile", ["held", "extended", "freed", "deleted"])
async def test_what_changed_since_it_was_read_is_decided_as_it_is(
    memory: Installation, root: Root, monkeypatch: pytest.MonkeyPatch, meanwhile: str
) -> None:
    nodes = [await create(memory, ttl_seconds=3600 + 700_000) for _ in range(3)]  # 0.7 s
    bound = await create(memory)
    idle = retention._until_idle

    async def between(committer: Any) -> None:
        """After the sweep has read what has expired, and before it submits anything."""
        if meanwhile == "held":
            await hold(memory, nodes[0])
        elif meanwhile == "deleted":
            await delete(memory, nodes[0])
        await idle(committer)

    if meanwhile in ("extended", "freed"):
        # An expired node answers no patch, so the race is the other way round: the sweep's list is older than the patch.
        await patch(memory, nodes[0], ttl_seconds=LATER if meanwhile == "extended" else None)
        with pytest.raises(NotFound, match="has not expired"):
            await memory.committer.submit(Change(caller(), ExpireNode(nodes[0])))
    await until_expired(root, 2)
    monkeypatch.setattr(retention, "_until_idle", between)
    deleted = await retention.expire(memory)
    assert deleted == 2
    survivors = {nodes[0], bound} if meanwhile != "deleted" else {bound}
    assert live(root) == survivors
    assert root(
        "SELECT count(*) FROM audit_events WHERE memory_node_id = %s AND event_type = 'memory.node.deleted'", nodes[0]
    ) == [(1 if meanwhile == "deleted" else 0,)]


@pytest.mark.usefixtures("short")
async def test_patches_that_extend_race_with_the_sweep_and_nothing_is_lost(memory: Installation, root: Root) -> None:
    nodes = [await create(memory, ttl_seconds=3600 + 150_000) for _ in range(60)]

    async def extend(node: uuid.UUID, wait: float) -> bool:
        await asyncio.sleep(wait)
        try:
            await patch(memory, node, ttl_seconds=LATER)
        except NotFound:
            return False
        return True

    async def sweep() -> int:
        deleted = 0
        for _ in range(20):
            deleted += await retention.expire(memory)
            await asyncio.sleep(0.02)
        return deleted

    *extended, deleted = await asyncio.gather(*(extend(node, n * 0.004) for n, node in enumerate(nodes)), sweep())
    await until_expired(root, None)
    deleted += await retention.expire(memory)
    kept = {node for node, saved in zip(nodes, extended, strict=True) if saved}
    assert live(root) == kept
    assert deleted == len(nodes) - len(kept)


@pytest.mark.usefixtures("short")
async def test_two_sweeps_at_once_delete_each_node_once(
    memory: Installation, database: Database, tmp_path: Path, root: Root
) -> None:
    nodes: list[Any] = [new_node(**TTL) for _ in range(250)]
    await memory.committer.submit(Change(caller(), CreateNodes(nodes)))
    async with running_memory(database("memory_app"), tmp_path) as second:
        counts = await asyncio.gather(retention.expire(memory), retention.expire(second))
    assert sum(counts) == 250
    assert len(told(root)) == 250


@pytest.mark.usefixtures("short")
async def test_other_writes_go_first(memory: Installation, root: Root, monkeypatch: pytest.MonkeyPatch) -> None:
    await create(memory, **TTL)
    waiting = [3, 2, 1, 0]
    asked: list[int] = []

    class Busy:
        submit = memory.committer.submit

        @property
        def waiting(self) -> int:
            asked.append(waiting.pop(0))
            return asked[-1]

    busy = memory.with_parts(committer=Busy())
    assert await retention.expire(busy) == 1
    assert asked == [3, 2, 1, 0]


@pytest.mark.usefixtures("short")
async def test_a_signer_that_fails_leaves_them_for_the_next_sweep(
    memory: Installation, root: Root, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = await create(memory, **TTL)
    signer = memory.keys.newest

    async def fail(text: bytes) -> bytes:
        raise SignerUnavailable("not now")

    with monkeypatch.context() as patched:
        patched.setattr(signer, "sign", fail)
        with pytest.raises(SignerUnavailable):
            await retention.expire(memory)
    assert live(root) == {node}
    assert await retention.expire(memory) == 1


async def test_answers_of_yesterday_are_forgotten_in_pieces(
    memory: Installation, root: Root, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retention, "REQUEST_ROWS", 2)
    for tenant, age in (("ann", 25), ("bob", 25), ("eva", 24.1), ("eva", 26), ("ann", 23)):
        root(
            "INSERT INTO idempotency_keys VALUES (%s, gen_random_uuid(), %s, sha256('x'), 200, '{}',"
            " now() - make_interval(mins => %s))",
            tenant, f"{age} hours", round(age * 60),
        )  # fmt: skip
    assert await retention.forget_requests(memory) == 4
    assert root("SELECT key FROM idempotency_keys") == [("23 hours",)]
    root("DELETE FROM idempotency_keys")  # which no entry speaks of


async def until_expired(root: Root, count: int | None) -> None:
    """Until so many have expired (None: all that will within a second)."""
    async with asyncio.timeout(60):
        while True:
            expired = "SELECT count(*) FROM memory_nodes WHERE deleted_at IS NULL AND expires_at <= clock_timestamp()"
            soon = "SELECT count(*) FROM memory_nodes WHERE deleted_at IS NULL AND expires_at <= clock_timestamp() + interval '1 s'"
            now, all_of_them = root(expired)[0][0], root(soon)[0][0]
            if now == all_of_them and (count is None or now >= count):
                return
            await asyncio.sleep(0.02)
