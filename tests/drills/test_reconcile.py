"""Every way in which an index can part from Postgres is named and healed; what is being written meanwhile is not."""

from __future__ import annotations

import asyncio
import uuid
from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from memory_layer.filters import parse
from memory_layer.model import Embedding
from memory_layer.ops.vectors import reconcile as ops
from memory_layer.ops.vectors import replay
from memory_layer.ops.vectors.desync import drill
from memory_layer.ops.vectors.digest import Digest, differing, total
from memory_layer.ops.vectors.findings import findings_of, unknown_finding
from memory_layer.ops.vectors.probe import probe
from memory_layer.ops.vectors.reconcile import compare, reconcile
from memory_layer.ops.vectors.restore import reindex
from memory_layer.ops.vectors.spaces import Scope, list_spaces, unknown_spaces
from memory_layer.stores.protocols import VectorEntry, VectorStore
from tests.drills.conftest import DIMENSION, NAMESPACE, TENANT, DrilledInstallation, embedding
from tests.support.service import create, delete, patch, rows, verify

NODE = st.builds(lambda n: uuid.UUID(int=n).bytes, st.integers(0, 2**128 - 1))


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A short moment between two looks: no store here lags by more."""
    monkeypatch.setattr(ops, "MOMENT", 0.05)


async def test_equal_sides_have_equal_digests(installation: DrilledInstallation) -> None:
    nodes = await installation.fill(40)
    await patch(installation.memory, nodes[3], TENANT, metadata={"a": 1})
    await delete(installation.memory, nodes[4], TENANT)
    await installation.settle()
    done = await compare(installation.sides, await installation.space(), vectors="all")
    assert (done.state, done.rows, done.index, done.compared) == ("equal", 39, 39, 39)
    assert done.row_digest == done.index_digest
    expected = Digest()
    for node in nodes:
        if node != nodes[4]:
            expected.add(node.bytes, 2 if node == nodes[3] else 1)
    assert done.row_digest == expected.text()


async def break_all(installation: DrilledInstallation, nodes: list[Any]) -> dict[str, set[uuid.UUID]]:
    """Some of each kind; who they are."""
    broken = installation.broken
    for node in nodes[:6]:
        await patch(installation.memory, node, TENANT, metadata={"a": 1})
    await delete(installation.memory, nodes[39], TENANT)
    await installation.settle()
    strangers = [uuid.uuid4(), uuid.uuid4()]
    wrong = (await installation.sides.vectors.fetch(TENANT, NAMESPACE, nodes[10:12]))[0].node_id
    broken.lose(TENANT, NAMESPACE, [nodes[0], nodes[20], nodes[21]])
    broken.put(TENANT, NAMESPACE, nodes[1], 1, [1] * DIMENSION)
    broken.put(TENANT, NAMESPACE, wrong, 1, [-1] * DIMENSION)
    for stranger in strangers:
        broken.put(TENANT, NAMESPACE, stranger, 3, [1] * DIMENSION)
    broken.put(TENANT, NAMESPACE, nodes[39], 1, [1] * DIMENSION)
    return {
        "missing": {nodes[0], nodes[20], nodes[21]},
        "stale": {nodes[1]},
        "wrong": {wrong},
        "extra": {*strangers, nodes[39]},
    }


async def test_each_kind_is_named_and_repaired(installation: DrilledInstallation) -> None:
    broken = await break_all(installation, await installation.fill(40))
    done = await compare(installation.sides, await installation.space(), vectors="all")
    assert done.state == "differs"
    assert {kind: {one.node for one in found} for kind, found in done.examples.items()} == broken
    assert done.counts == Counter({kind: len(nodes) for kind, nodes in broken.items()})
    (stale,) = done.examples["stale"]
    assert (stale.version, stale.held) == (2, 1)
    found = {finding.id: finding for finding in findings_of([done])}
    assert set(found) == {f"vectors.{kind}" for kind in broken}
    assert {one["node"] for one in found["vectors.missing"].evidence["examples"]} == set(map(str, broken["missing"]))
    # Looking alone changes nothing.
    assert (await compare(installation.sides, await installation.space(), vectors="all")).counts == done.counts
    before, after, sent = await reconcile(
        installation.sides, [await installation.space()], vectors="all", repair=True, within=30
    )
    assert before[0].counts == done.counts
    assert (sent.rows, sent.indexed, before[0].removed) == (5, 5, 3)
    assert (after[0].state, after[0].counts) == ("equal", Counter())
    assert [finding.id for finding in findings_of(after, repaired=True)] == ["vectors.equal"]
    assert verify(installation.dsn, installation.folder).findings == ()


async def test_a_sample_finds_wrong_vectors_too(installation: DrilledInstallation) -> None:
    nodes = await installation.fill(5)
    installation.broken.put(TENANT, NAMESPACE, nodes[2], 1, [1] * DIMENSION)
    assert (await compare(installation.sides, await installation.space(), vectors="none")).state == "equal"
    done = await compare(installation.sides, await installation.space())
    assert [one.node for one in done.examples["wrong"]] == [nodes[2]]


async def test_other_fields_beside_the_right_vector_are_found_and_repaired(installation: DrilledInstallation) -> None:
    nodes = await installation.fill(6)
    await patch(installation.memory, nodes[0], TENANT, metadata={"colour": "red"})
    await installation.settle()
    store, where = installation.sides.vectors, parse({"metadata.colour": "red"})
    (record,) = await store.fetch(TENANT, NAMESPACE, [nodes[0]])
    assert record.vector is not None
    installation.broken.put(TENANT, NAMESPACE, nodes[0], 2, record.vector.tolist())  # the same, with nothing beside it
    assert await found_by(store, record.vector, where) == []
    for vectors in ("sample", "all"):
        done = await compare(installation.sides, await installation.space(), vectors=vectors)
        assert (done.state, dict(done.counts)) == ("differs", {"fields": 1})
        assert [one.node for one in done.examples["fields"]] == [nodes[0]]
    (told,) = findings_of([done])
    assert (told.id, told.status) == ("vectors.fields", "fail")
    _, after, sent = await reconcile(installation.sides, [await installation.space()], repair=True, within=30)
    assert (after[0].state, sent.rows) == ("equal", 1)
    assert await found_by(store, record.vector, where) == [nodes[0]]


async def found_by(store: VectorStore, vector: Any, where: Any) -> list[uuid.UUID]:
    return [hit.node_id for hit in (await store.search(TENANT, NAMESPACE, vector, 10, where)).hits]


async def test_namespaces_of_the_index_that_no_row_knows_are_named(installation: DrilledInstallation) -> None:
    await installation.fill(3)
    assert await unknown_spaces(installation.sides) == []
    vector = np.eye(1, DIMENSION, dtype=np.float32)[0]
    store = installation.sides.vectors
    await store.upsert([VectorEntry("nobody", "lost", uuid.uuid4(), 1, vector, {})])
    (name,) = await unknown_spaces(installation.sides)
    told = unknown_finding([name])
    assert (told.id, told.level, told.status, told.evidence["names"]) == ("vectors.unknown", "warning", "fail", [name])
    await store.drop_unknown(name)
    assert await unknown_spaces(installation.sides) == []
    assert (await store.count("nobody", "lost"), await store.count(TENANT, NAMESPACE)) == (0, 3)


async def test_what_is_ahead_of_postgres_needs_a_rebuild(installation: DrilledInstallation) -> None:
    nodes = await installation.fill(6)
    installation.broken.put(TENANT, NAMESPACE, nodes[2], 7, [1] * DIMENSION)
    _, after, _ = await reconcile(installation.sides, [await installation.space()], repair=True, within=30)
    (finding,) = findings_of(after, repaired=True)
    assert (finding.id, after[0].counts) == ("vectors.ahead", Counter(ahead=1))
    assert "reindex --drop --tenant ann --namespace kernel-memory" in finding.hint
    done = await reindex(installation.sides, [await installation.space()], drop=True, within=30)
    assert (done.after[0].state, done.counts["sent"]) == ("equal", 6)
    assert done.after[0].index == 6


async def test_a_reindex_repairs_everything_and_hides_nothing(installation: DrilledInstallation) -> None:
    nodes = await installation.fill(40)
    broken = await break_all(installation, nodes)
    whole = set(nodes[:39]) - broken["missing"]
    seen: list[set[uuid.UUID]] = []
    work = installation.sides.work
    assert work is not None

    async def look_and_work() -> int:
        page = await installation.sides.vectors.scan(TENANT, NAMESPACE)
        seen.append({record.node_id for record in page.records})
        return await work()

    sides = installation.sides.with_parts(work=look_and_work)
    done = await reindex(sides, [await installation.space()], drop=False, within=30)
    assert (done.after[0].state, done.counts["sent"]) == ("equal", 39)
    assert seen
    assert all(whole <= held for held in seen)


async def test_a_lost_index_comes_back_by_the_drill(installation: DrilledInstallation) -> None:
    nodes = await installation.fill(60)
    await installation.sides.vectors.drop(TENANT, NAMESPACE)
    await patch(installation.memory, nodes[0], TENANT, metadata={"a": 1})  # is not settled when the drill begins
    found: dict[str, Any] = {}
    facts: dict[str, Any] = {}
    await drill(
        installation.sides,
        Scope(),
        lambda finding: found.__setitem__(finding.id, finding),
        facts.__setitem__,
        within=30,
    )
    assert {name: one.status for name, one in found.items()} == {
        "drill.replay": "pass", "drill.compare": "pass", "drill.repair": "pass", "drill.verify": "pass",
        "drill.recall": "pass",
    }  # fmt: skip
    assert "59 missing" in found["drill.compare"].finding
    assert facts["found"] == {"missing": 59}
    assert facts["recall"] == {"ann/kernel-memory": 1.0}
    assert (facts["expected"], facts["index"], facts["differences"]) == (60, 60, {})
    assert facts["rtoSeconds"] > 0


async def test_the_probe_sees_a_bad_index(installation: DrilledInstallation) -> None:
    nodes = await installation.fill(60)
    assert (await probe(installation.sides, await installation.space())).value == 1.0
    for node in nodes[::3]:
        installation.broken.put(TENANT, NAMESPACE, node, 1, [1] + [0] * (DIMENSION - 1))
    value = (await probe(installation.sides, await installation.space())).value
    assert value is not None
    assert value < 0.9


@pytest.mark.parametrize("installation", ["pgvector"], indirect=True)
async def test_replay_gives_every_row_new_attempts(installation: DrilledInstallation) -> None:
    nodes = await installation.fill(6)
    for node in nodes[:5]:
        await patch(installation.memory, node, TENANT, metadata={"a": 1})
    await delete(installation.memory, nodes[5], TENANT)
    changes = (
        "status = 'failed', error = 'e', error_class = 'permanent', attempts = 3",
        "status = 'dead', error = 'e', error_class = 'retryable', attempts = 8",
        "attempts = 5, next_attempt_at = now() + interval '1 hour'",
        "status = 'in_flight', lease_id = gen_random_uuid(), lease_until = now() - interval '1 second', attempts = 8",
        "status = 'in_flight', lease_id = gen_random_uuid(), lease_until = now() + interval '1 hour'",
        "attempts = 9, next_attempt_at = now() + interval '1 hour'",
    )
    for node, change in zip(nodes, changes, strict=True):
        rows(installation.dsn, f"UPDATE memory_vectors SET {change} WHERE memory_node_id = %s", [node])
    done = await replay.replay(installation.sides, Scope(TENANT), within=1.0)
    assert done.before == Counter(failed=1, dead=1, pending=1, in_flight=2, deleting=1)
    assert (done.rows, done.indexed, done.left.total()) == (6, 5, 1)  # the running lease is its worker's
    assert done.examples[0]["node"] == str(nodes[4])
    states = dict(rows(installation.dsn, "SELECT memory_node_id, status FROM memory_vectors"))
    assert states == {**dict.fromkeys(nodes[:4], "succeeded"), nodes[4]: "in_flight", nodes[5]: "deleted"}
    (finding,) = replay.findings_of(done, here=True)
    assert (finding.id, finding.status) == ("vectors.not-settled", "fail")


@pytest.mark.parametrize("installation", ["pgvector"], indirect=True)
async def test_a_cancelled_job_is_not_replayed(installation: DrilledInstallation) -> None:
    node, other = await installation.fill(2)
    rows(installation.dsn, "ALTER TABLE memory_vectors DROP CONSTRAINT IF EXISTS memory_vectors_error_class")
    change = "UPDATE memory_vectors SET status = 'failed', error = 'e', error_class = %s WHERE memory_node_id = %s"
    rows(installation.dsn, change, ["cancelled", node])
    rows(installation.dsn, change, ["permanent", other])
    done = await replay.replay(installation.sides, Scope(), within=30)
    assert (done.rows, done.indexed) == (1, 1)
    assert rows(installation.dsn, "SELECT status FROM memory_vectors WHERE memory_node_id = %s", [node]) == [
        ("failed",)
    ]


@pytest.mark.parametrize("installation", ["pinecone"], indirect=True)
async def test_replay_says_why_a_row_stays_failed(installation: DrilledInstallation) -> None:
    odd = await create(
        installation.memory, TENANT, namespace="other", embedding=embedding_of(3, [1, 2, 3]), content=None
    )
    done = await replay.replay(installation.sides, Scope(), within=30)
    (finding,) = replay.findings_of(done, here=True)
    assert (finding.id, finding.evidence["count"]) == ("vectors.failed", 1)
    assert "The Pinecone index holds 8 dimensions" in finding.finding
    assert finding.evidence["examples"][0]["node"] == str(odd)


def embedding_of(dimension: int, numbers: list[float]) -> Any:
    return Embedding("test-model", dimension, np.array(numbers, "<f4").tobytes())


async def test_writes_that_go_on_are_no_differences(installation: DrilledInstallation) -> None:
    """Comparisons, with repair, beside a worker and a writer that never rest: never a difference, and all is well in the end."""
    nodes = await installation.fill(30)
    stop = asyncio.Event()
    noise = np.random.default_rng(7)

    async def write() -> None:
        turn = 0
        while not stop.is_set():
            turn += 1
            kind = turn % 3
            if kind == 0 and len(nodes) > 15:
                await delete(installation.memory, nodes.pop(0), TENANT)
            elif kind == 1:
                row = noise.standard_normal(DIMENSION)
                nodes.append(await create(installation.memory, TENANT, embedding=embedding(row), content=None))
            else:
                await patch(installation.memory, nodes[turn % len(nodes)], TENANT, metadata={"turn": turn})

    async def work() -> None:
        assert installation.sides.work is not None
        while not stop.is_set():
            if not await installation.sides.work():
                await asyncio.sleep(0.001)

    tasks = [asyncio.create_task(write()), asyncio.create_task(work()), asyncio.create_task(work())]
    sides = installation.sides.with_parts(work=None)
    different = 0
    for _ in range(6):
        done = await compare(sides, await installation.space(), vectors="all", repair=True)
        assert (done.counts, done.removed, done.sent) == (Counter(), 0, [])
        different += done.buckets > 0
    stop.set()
    await asyncio.gather(*tasks)
    assert different  # else nothing was written meanwhile
    await installation.settle()
    assert (await compare(installation.sides, await installation.space(), vectors="all")).state == "equal"


class Meddled:
    """The real store, and what happens just before something is removed from it."""

    def __init__(self, store: VectorStore, before_delete: Any) -> None:
        self._store, self._before_delete = store, before_delete

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    async def delete(self, *words: Any) -> None:
        await self._before_delete()
        await self._store.delete(*words)


async def test_an_extra_entry_that_a_writer_makes_whole_meanwhile_stays(installation: DrilledInstallation) -> None:
    """Deleted in Postgres and still in the index; while it is removed there, the node is written again."""
    nodes = await installation.fill(3)
    node = nodes[0]
    await patch(installation.memory, node, TENANT, content=None, metadata={"v": 2})
    rows(installation.dsn, "UPDATE memory_vectors SET status = 'deleted' WHERE memory_node_id = %s", [node])
    installation.broken.put(TENANT, NAMESPACE, node, 1, [1] * DIMENSION)

    async def meanwhile() -> None:
        await patch(installation.memory, node, TENANT, embedding=embedding([2] * DIMENSION))
        await installation.settle()

    store: Any = Meddled(installation.sides.vectors, meanwhile)
    sides = installation.sides.with_parts(vectors=store)
    done = await compare(sides, await installation.space(), repair=True)
    assert done.counts == Counter(extra=1)
    assert (await compare(installation.sides, await installation.space(), vectors="all")).state == "equal"
    (record,) = await installation.sides.vectors.fetch(TENANT, NAMESPACE, [node])
    assert record.version == 3


async def test_buckets_are_compared_in_portions(
    installation: DrilledInstallation, monkeypatch: pytest.MonkeyPatch
) -> None:
    await installation.fill(50)
    await installation.sides.vectors.drop(TENANT, NAMESPACE)
    monkeypatch.setattr(ops, "AT_ONCE", 5)
    done = await compare(installation.sides, await installation.space(), vectors="none")
    assert done.counts == Counter(missing=50)
    assert len(done.examples["missing"]) == ops.EXAMPLES


async def test_scopes(installation: DrilledInstallation) -> None:
    await installation.fill(2)
    await create(installation.memory, "bob", namespace="b", embedding=embedding([1] * DIMENSION), content=None)
    names = [(space.tenant, space.namespace) for space in await list_spaces(installation.sides, Scope())]
    assert names == [("ann", NAMESPACE), ("bob", "b")]
    (bobs,) = await list_spaces(installation.sides, Scope("bob"))
    assert (bobs.rows["pending"], bobs.expected, bobs.outstanding, bobs.dimension) == (1, 0, 1, DIMENSION)
    assert bobs.oldest is not None
    assert (await compare(installation.sides, bobs)).state == "equal"  # nothing is settled, and nothing is there
    assert await list_spaces(installation.sides, Scope("bob", NAMESPACE)) == []


@given(st.dictionaries(NODE, st.integers(1, 2**31 - 1), max_size=30), st.randoms())
def test_the_digest_knows_no_order_and_every_change(held: dict[bytes, int], random: Any) -> None:
    entries = list(held.items())
    one, other = Digest(), Digest()
    for node, version in entries:
        one.add(node, version)
    random.shuffle(entries)
    for node, version in entries:
        other.add(node, version)
    assert one.buckets() == other.buckets()
    assert (one.text(), one.count) == (total(other.buckets()), len(held))
    if entries:
        changed = Digest()
        node, version = entries[0]
        for n, v in entries[1:]:
            changed.add(n, v)
        assert differing(one, changed) == [node[15]]
        changed.add(node, version - 1)
        assert differing(one, changed) == [node[15]]
