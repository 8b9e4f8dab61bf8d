"""Worker, Postgres and the vector store are killed at random under writes, updates and deletes: afterwards the index holds
exactly what Postgres says, and nobody lent a hand."""

from __future__ import annotations

import asyncio
import os
import random
import time
import uuid
from collections.abc import Iterator
from typing import Final

import psycopg
import pytest

from memory_layer.errors import VectorStoreUnavailable
from memory_layer.stores.protocols import VectorStore
from tests.support import milvus_server
from tests.torture.checks import problems
from tests.torture.harness import Installation, Say, Storm, Victim, installed
from tests.torture.index_servers import IndexServer, MilvusIndex, PgvectorServer
from tests.torture.victims import kill_postgres, kill_process
from tests.torture.workload import NODES, Client, Ledger, Receipt, create, create_many, delete, make_counters, work

pytestmark = pytest.mark.torture

CLIENTS, TENANTS = 6, 3
PAUSE = 0.05  # seconds at most that a client thinks
CALM_WITHIN = 300.0  # seconds until nothing differs any more

Places = dict[tuple[str, str], dict[uuid.UUID, int]]  # versions by node, by (tenant, index namespace)


@pytest.fixture
def seconds() -> float:
    """TORTURE_SECONDS: how long the storm lasts; two minutes unless set."""
    return float(os.environ.get("TORTURE_SECONDS", "120"))


@pytest.fixture(params=["pgvector", "milvus"])
def index(request: pytest.FixtureRequest) -> Iterator[IndexServer]:
    if request.param == "milvus":
        if (reason := milvus_server.missing()) is not None:
            pytest.skip(reason)
        server: IndexServer = MilvusIndex()
    else:
        server = PgvectorServer()
    yield server
    server.close()


async def embed_anew(client: Client) -> None:
    """Replace the vector of a node that nobody else changes."""
    if not client.own:
        return
    node = client.random.choice(client.own)
    write = client.new("memory.node.updated", node=node)
    body = client.body(write.markers[0], vector=True)
    change = {"metadata": {write.markers[0]: True}, "embedding": body["embedding"]}
    await client.write(
        write, "PATCH", f"{NODES}/{node}", lambda a: [Receipt(node, a.json()["audit"]["seq"], a.json()["audit"]["hash"])],
        json=change,
    )  # fmt: skip


OPERATIONS: Final = ((create, 40), (create_many, 4), (embed_anew, 40), (delete, 16))


async def test_after_any_storm_the_index_is_what_postgres_says(
    index: IndexServer, seconds: float, seed: int, say: Say
) -> None:
    ledger, chance = Ledger(), random.Random(seed)
    async with installed(kms=False, say=say) as install:
        for name, *words in (("api-1", "serve"), ("worker-1", "worker"), ("worker-2", "worker")):
            await asyncio.to_thread(install.add, name, *words, **index.environment)
        clients = [Client(install, ledger, f"t{n % TENANTS}", chance.randrange(2**32)) for n in range(CLIENTS)]
        for client in clients[:TENANTS]:
            await make_counters(client)
        storm = Storm(install, chance, say, lambda: ledger.acknowledged)
        calm = asyncio.Event()
        async with asyncio.TaskGroup() as load:
            for client in clients:
                load.create_task(work(client, calm, PAUSE, OPERATIONS))
            end = time.monotonic() + seconds
            while time.monotonic() < end:
                await storm.rage(_victims(index), 1)
            calm.set()
        for client in clients:
            await client.close()
        store = await index.open()
        try:
            began = time.monotonic()
            left = await _until_nothing_differs(install, store, began + CALM_WITHIN)
            held = sum(map(len, _expected(install).values()))
            say(
                f"{storm.kills} kills, {len(ledger.writes)} requests, {held} entries; what differs after "
                f"{time.monotonic() - began:.1f} s: {left}"
            )
            assert held  # else there was nothing to lose
            assert left == [], f"TORTURE_SEED={seed}"
            found = await asyncio.to_thread(problems, install, ledger)
            assert not found, "\n".join([f"TORTURE_SEED={seed}", *found])
        finally:
            await store.close()
    for name, times in storm.struck.most_common():
        say(f"{times:5} {name}")
    say("")


def _victims(index: IndexServer) -> list[Victim]:
    async def kill_the_index(_: Storm) -> str:
        began = time.monotonic()
        await asyncio.to_thread(index.kill)
        return f"vector store killed, and started again after {time.monotonic() - began:.1f} s"

    return [
        Victim("worker killed", 50, kill_process("worker")),
        Victim("Postgres killed", 25, kill_postgres),
        Victim("vector store killed", 25, kill_the_index),
    ]


async def _until_nothing_differs(install: Installation, store: VectorStore, deadline: float) -> list[str]:
    while True:
        try:
            left = [*_unsettled(install), *await _differences(_expected(install), store)]
        except VectorStoreUnavailable as error:  # it is coming up again
            left = [error.message]
        if not left or time.monotonic() > deadline:
            return left[:20]
        await asyncio.sleep(1)


def _unsettled(install: Installation) -> list[str]:
    with psycopg.connect(install.cluster.dsn("postgres")) as connection:
        rows = connection.execute(
            "SELECT status, count(*), min(error) FROM memory_vectors WHERE status NOT IN ('succeeded', 'deleted') GROUP BY status"
        ).fetchall()
    return [f"{count} rows are {status}: {error}" for status, count, error in rows]


def _expected(install: Installation) -> Places:
    """What the index must hold: of each place that ever had a row the live nodes with a vector, at the version of their row."""
    places: Places = {}
    with psycopg.connect(install.cluster.dsn("postgres")) as connection:
        rows = connection.execute(
            "SELECT v.tenant, v.namespace, v.memory_node_id, v.version, n.deleted_at IS NULL AND v.vector_data IS NOT NULL"
            " FROM memory_vectors v JOIN memory_nodes n ON n.tenant = v.tenant AND n.id = v.memory_node_id"
        ).fetchall()
    for tenant, namespace, node, version, there in rows:
        place = places.setdefault((tenant, namespace), {})
        if there:
            place[node] = version
    return places


async def _differences(expected: Places, store: VectorStore) -> list[str]:
    found = []
    for (tenant, namespace), nodes in expected.items():
        held: dict[uuid.UUID, int] = {}
        cursor = None
        while True:
            page = await store.scan(tenant, namespace, cursor)
            held |= {record.node_id: record.version for record in page.records}
            if (cursor := page.cursor) is None:
                break
        if await store.count(tenant, namespace) != len(held):
            found.append(f"{tenant} {namespace}: the count is not {len(held)}")
        found += [f"{tenant} {namespace}: {node} is missing" for node in nodes.keys() - held.keys()]
        found += [f"{tenant} {namespace}: {node} should not be there" for node in held.keys() - nodes.keys()]
        found += [
            f"{tenant} {namespace}: {node} at version {held[node]} instead of {nodes[node]}"
            for node in nodes.keys() & held.keys()
            if held[node] != nodes[node]
        ]
    return found
