"""A broker only rings: whatever becomes of its messages, every row is indexed, and only the time that it takes differs."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import subprocess
import sys
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import psycopg
import pytest

from memory_layer.config import Settings
from memory_layer.errors import Conflict, DependencyUnavailable, SignerUnavailable, VectorStoreUnavailable
from memory_layer.service import jobs, retention
from memory_layer.service.actions import nodes
from memory_layer.service.installation import Installation
from memory_layer.stores import notifiers
from memory_layer.stores.log_writer import BatchTx
from memory_layer.stores.notifiers import broker
from memory_layer.stores.notifiers.broker import MESSAGES, BrokerNotifier, Received, decode
from memory_layer.stores.notifiers.postgres import PollingNotifier
from memory_layer.stores.protocols import Notifier, VectorStore
from memory_layer.worker import pool
from tests.api.door import connect, create_indexed, found_ids
from tests.api.door import create as create_over_http
from tests.support import kms_server
from tests.support.product import clean_environment, start_product
from tests.support.pubsub_server import running_pubsub
from tests.support.service import caller, create, delete, patch, rows, running_memory, unit, verify
from tests.support.sqs_server import SqsServer, running_sqs

Database = Callable[[str], str]
NEVER = 600.0  # seconds: a worker that looks by itself only then was woken if it works now


async def until(happened: Callable[[], Awaitable[bool]], what: str, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not await happened():
        assert time.monotonic() < end, f"not within {seconds} s: {what}"
        await asyncio.sleep(0.02)


@contextlib.asynccontextmanager
async def working(memory: Installation, *bells: Notifier) -> AsyncIterator[None]:
    """A worker for each notifier; none given: one with the memory's own."""
    stop = asyncio.Event()
    each = [memory.with_parts(notifier=bell) for bell in bells] or [memory]
    running = [asyncio.create_task(pool.run(one, stop)) for one in each]
    try:
        yield
        assert not any(task.done() for task in running)
    finally:
        stop.set()
        await asyncio.wait_for(asyncio.gather(*running), 60)


def open_with(monkeypatch: pytest.MonkeyPatch, bell: Notifier) -> None:
    """The next Memory rings this notifier."""

    async def opened(_: Settings) -> Notifier:
        return bell

    monkeypatch.setattr(notifiers, "open_notifier", opened)


def settled(root: str) -> list[tuple[Any, ...]]:
    return rows(
        root, "SELECT memory_node_id, version, status FROM memory_vectors WHERE status NOT IN ('succeeded', 'deleted')"
    )


# --- messages that are lost, repeated, reordered, delayed, foreign


class Chaos(BrokerNotifier):
    """The real notifier over a broker that treats its messages as a seed says."""

    poll_interval = 0.5  # the safety poll; short, so that a test of lost messages takes no minutes

    def __init__(self, wire: Wire) -> None:
        super().__init__("chaos", wire)


class Wire:
    """A broker of any bad quality, shared by whoever has it."""

    def __init__(self, seed: int, lost: float) -> None:
        self.random = random.Random(seed)
        self.lost = lost
        self.messages: list[tuple[float, bytes]] = []  # (when it shows, body)
        self.received = self.ignored = 0

    def _fail(self) -> None:
        if self.random.random() < 0.1:
            raise DependencyUnavailable("The test cuts the wire.")

    async def send(self, bodies: Sequence[bytes]) -> int:
        self._fail()
        for body in bodies:
            if self.random.random() < self.lost:
                continue
            copies = self.random.choice((1, 1, 1, 2, 5))
            for _ in range(copies):
                self.messages.append((time.monotonic() + self.random.choice((0, 0, 0.05, 0.5, 3)), body))
            if self.random.random() < 0.2:
                foreign = self.random.choice(
                    (b"x", b'{"v":1,"rows":["%s"]}' % str(uuid.uuid4()).encode(), b"\xff" * 3000)
                )
                self.messages.append((time.monotonic(), foreign))
        self._fail()  # after it has taken them
        return len(bodies)

    async def receive(self, seconds: int) -> list[Received]:
        self._fail()
        end = time.monotonic() + min(seconds, 0.3)
        while time.monotonic() < end:
            self.random.shuffle(self.messages)
            shown = [m for m in self.messages if m[0] <= time.monotonic()][: self.random.randint(1, MESSAGES)]
            if shown:
                for message in shown:
                    if self.random.random() < 0.9:  # else it comes again
                        self.messages.remove(message)
                self.received += len(shown)
                self.ignored += sum(decode(body) is None for _, body in shown)
                return [Received(str(uuid.uuid4()), body) for _, body in shown]
            await asyncio.sleep(0.01)
        return []

    async def acknowledge(self, receipts: Sequence[str]) -> None:
        self._fail()

    async def close(self) -> None: ...


@pytest.mark.parametrize(("seed", "lost"), [(1, 0.0), (2, 0.3), (3, 0.7), (4, 1.0)])
async def test_whatever_becomes_of_messages_every_row_is_indexed(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int, lost: float
) -> None:
    monkeypatch.setattr(broker, "LONGEST_PAUSE", 0.05)
    monkeypatch.setattr(broker, "GAP", 0.02)
    wire = Wire(seed, lost)
    open_with(monkeypatch, Chaos(wire))
    chance = random.Random(seed)
    alive: dict[uuid.UUID, int] = {}
    async with running_memory(database("memory_app"), tmp_path) as memory, working(memory, Chaos(wire), Chaos(wire)):

        async def write() -> None:
            for _ in range(25):
                mine = chance.choice(sorted(alive)) if alive and chance.random() < 0.5 else None
                if mine is None:
                    alive[await create(memory, embedding=unit(1, chance.random()))] = 1
                    continue
                version = alive.pop(mine)  # one writer of a node at a time
                if chance.random() < 0.4:
                    await delete(memory, mine)
                else:
                    await patch(memory, mine, embedding=unit(chance.random(), 1))
                    alive[mine] = version + 1
                await asyncio.sleep(chance.choice((0, 0, 0.01, 0.1)))

        await asyncio.gather(*(write() for _ in range(4)))

        async def all_settled() -> bool:
            return not await asyncio.to_thread(settled, database("postgres"))

        await until(all_settled, "every row settled")
        page = await memory.vectors.scan("ann", "kernel-memory", limit=1000)
        assert {record.node_id: record.version for record in page.records} == alive
    if lost < 1:
        assert wire.received > wire.ignored  # it was not all left to the safety poll
    assert verify(database("postgres"), tmp_path).findings == ()


# --- real brokers


@pytest.fixture(params=["sqs", "pubsub"])
def queue_url(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, aws: None) -> Iterator[str]:
    if request.param == "sqs":
        with running_sqs() as server:
            yield server.make()
    else:
        with running_pubsub() as running:
            monkeypatch.setenv("PUBSUB_EMULATOR_HOST", running.address)
            running.make("example-project", "rows", "workers")
            yield "pubsub://example-project/rows/workers"


async def succeeded(root: str, node: uuid.UUID) -> bool:
    found = await asyncio.to_thread(rows, root, "SELECT status FROM memory_vectors WHERE memory_node_id = %s", (node,))
    return found == [("succeeded",)]


async def test_a_ring_wakes_a_worker_that_would_not_have_looked(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, queue_url: str
) -> None:
    monkeypatch.setattr(pool, "SHORTEST", NEVER)
    monkeypatch.setattr(BrokerNotifier, "poll_interval", NEVER)
    asked = 0
    begin = pool.begin

    async def counted(stores: Any, **more: Any) -> Any:
        nonlocal asked
        asked += 1
        return await begin(stores, **more)

    monkeypatch.setattr(pool, "begin", counted)
    dsn, root = database("memory_app"), database("postgres")
    async with (
        running_memory(dsn, tmp_path, vector_write_queue_url=queue_url) as api,
        running_memory(dsn, tmp_path, vector_write_queue_url=queue_url) as worker,
        working(worker),
    ):

        async def looked() -> bool:
            return asked > 0

        await until(looked, "the first look")
        delays = []
        for n in range(5):
            started = time.monotonic()
            node = await create(api, embedding=unit(1, n))
            await until(lambda node=node: succeeded(root, node), "searchable", 20)
            delays.append(time.monotonic() - started)
        # A ring takes milliseconds, on a busy machine seconds; nobody would have looked for ten minutes.
        assert sorted(delays)[2] < 10
        await patch(api, node, embedding=unit(0, 1))
        await delete(api, node)

        async def gone() -> bool:
            return not await asyncio.to_thread(settled, root)

        await until(gone, "the removal")


async def test_two_workers_share_the_rows(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, queue_url: str
) -> None:
    monkeypatch.setattr(pool, "SHORTEST", NEVER)
    monkeypatch.setattr(BrokerNotifier, "poll_interval", NEVER)
    dsn, root = database("memory_app"), database("postgres")
    async with contextlib.AsyncExitStack() as stack:
        api, *workers = [
            await stack.enter_async_context(running_memory(dsn, tmp_path, vector_write_queue_url=queue_url))
            for _ in range(3)
        ]
        for worker in workers:
            await stack.enter_async_context(working(worker))
        await asyncio.gather(*(create(api, embedding=unit(1, n)) for n in range(300)))

        async def all_settled() -> bool:
            return not await asyncio.to_thread(settled, root)

        await until(all_settled, "every row settled")
    assert rows(root, "SELECT count(*), max(attempts) FROM memory_vectors") == [(300, 1)]  # no row was worked on twice


async def test_a_broker_that_is_down_delays_nothing_but_the_worker(
    database: Database, tmp_path: Path, aws: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(BrokerNotifier, "poll_interval", 1.0)
    server = SqsServer()
    server.start()
    url = server.make()
    server.stop()
    root = database("postgres")
    try:
        async with running_memory(database("memory_app"), tmp_path, vector_write_queue_url=url) as memory:
            async with working(memory):
                node = await create(memory, embedding=unit(1, 0))
                await until(lambda: succeeded(root, node), "indexed without a ring")
                server.start()
                other = await create(memory, embedding=unit(1, 1))
                await until(lambda: succeeded(root, other), "indexed")
                server.stop()
                started = time.monotonic()
                nodes = await asyncio.gather(*(create(memory, embedding=unit(1, n)) for n in range(200)))
                assert time.monotonic() - started < 10  # not one time-out of the broker among them
                for node in nodes:
                    await until(lambda node=node: succeeded(root, node), "indexed without a ring")
            started = time.monotonic()
        assert time.monotonic() - started < 20
    finally:
        server.stop()


class Down:
    """The real index, unless it is down."""

    def __init__(self, store: VectorStore) -> None:
        self.store = store
        self.down = True

    def __getattr__(self, name: str) -> Any:
        if self.down and name in ("upsert", "ping"):
            raise VectorStoreUnavailable("the store does not answer")
        return getattr(self.store, name)


class Silent(PollingNotifier):
    """A broker that loses everything."""

    poll_interval = NEVER


async def test_rows_that_wait_for_a_service_need_no_ring(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_with(monkeypatch, Silent())
    root = database("postgres")
    async with running_memory(database("memory_app"), tmp_path) as memory:
        index = Down(memory.vectors)
        node = await create(memory, embedding=unit(1, 0))
        monkeypatch.setattr(pool, "SHORTEST", NEVER)
        stores = memory.with_parts(vectors=index)
        stop = asyncio.Event()
        running = asyncio.create_task(pool.run(stores, stop))

        async def noticed() -> bool:
            return bool(stores.breakers.not_closed())

        try:
            await until(noticed, "the outage is noticed")
            index.down = False
            await until(lambda: succeeded(root, node), "indexed after the outage")
        finally:
            stop.set()
            await asyncio.wait_for(running, 60)


# --- where the ring comes from


class Listening(PollingNotifier):
    """Writes down what is rung for, and what stood in the database at that moment."""

    poll_interval = 1.0

    def __init__(self, root: str) -> None:
        self.root = root
        self.rung: list[uuid.UUID] = []
        self.there: list[bool] = []

    def notify(self, named: Sequence[uuid.UUID], /) -> None:
        self.rung += named
        found = rows(self.root, "SELECT count(*) FROM memory_vectors WHERE id = ANY(%s)", (list(named),))
        self.there.append(found == [(len(named),)])


@pytest.fixture
async def listening(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[tuple[Installation, Listening]]:
    bell = Listening(database("postgres"))
    open_with(monkeypatch, bell)
    async with running_memory(database("memory_app"), tmp_path) as memory:
        yield memory, bell


async def test_each_change_of_the_index_rings_after_its_commit(
    listening: tuple[Installation, Listening], database: Database
) -> None:
    memory, bell = listening
    root = database("postgres")

    def row_of(node: uuid.UUID) -> uuid.UUID:
        ((found,),) = rows(root, "SELECT id FROM memory_vectors WHERE memory_node_id = %s", (node,))
        assert isinstance(found, uuid.UUID)
        return found

    def rung() -> list[uuid.UUID]:
        heard, bell.rung = bell.rung, []
        return heard

    node = await create(memory, embedding=unit(1, 0))
    assert rung() == [row_of(node)]
    await patch(memory, node, embedding=unit(0, 1))
    assert rung() == [row_of(node)]
    await delete(memory, node)
    assert rung() == [row_of(node)]
    with mock.patch.object(nodes, "expiry", lambda _ttl, now: now):  # the shortest time to live is an hour
        mortal = await create(memory, embedding=unit(1, 0), ttl_seconds=3600)
    rung()
    assert await retention.expire(memory) == 1
    assert rung() == [row_of(mortal)]
    given_up = await create(memory, embedding=unit(1, 0))
    job = row_of(given_up)
    rung()
    rows(root, "UPDATE memory_vectors SET status = 'dead' WHERE id = %s", (job,))
    await jobs.cancel_or_retry(memory.postgres, memory.committer, caller(), job, "cancel")
    assert rung() == []  # there is nothing to do
    await jobs.cancel_or_retry(memory.postgres, memory.committer, caller(), job, "retry")
    assert rung() == [job]
    many = await asyncio.gather(*(create(memory, embedding=unit(1, n)) for n in range(50)))
    assert sorted(rung()) == sorted(row_of(one) for one in many)
    assert all(bell.there)


async def test_what_is_not_committed_does_not_ring(
    listening: tuple[Installation, Listening], monkeypatch: pytest.MonkeyPatch
) -> None:
    memory, bell = listening
    await create(memory, embedding_id="taken", embedding=unit(1, 0))
    bell.rung.clear()
    with pytest.raises(Conflict):
        await create(memory, embedding_id="taken", embedding=unit(1, 0))

    async def refuses(_: bytes) -> bytes:
        raise SignerUnavailable("no key today")

    monkeypatch.setattr(memory.keys.newest, "sign", refuses)
    with pytest.raises(SignerUnavailable):
        await create(memory, embedding=unit(1, 0))
    assert bell.rung == []


async def test_a_commit_whose_answer_is_lost_notifies_once_it_is_resolved(
    listening: tuple[Installation, Listening], database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory, bell = listening
    commit = BatchTx.commit

    async def torn(self: BatchTx, *sent: Any, **named: Any) -> None:
        monkeypatch.setattr(BatchTx, "commit", commit)
        await commit(self, *sent, **named)
        raise psycopg.OperationalError("server closed the connection unexpectedly")

    monkeypatch.setattr(BatchTx, "commit", torn)
    node = await create(memory, embedding=unit(1, 0))
    found = rows(database("postgres"), "SELECT id FROM memory_vectors WHERE memory_node_id = %s", (node,))
    assert found == [(row,) for row in bell.rung]


async def test_without_a_broker_nothing_is_asked_of_the_write_path(database: Database, tmp_path: Path) -> None:
    async with running_memory(database("memory_app"), tmp_path) as memory:
        assert memory.notifier.poll_interval is None
        with mock.patch.object(memory.notifier, "notify") as notify:
            await create(memory, content="x")
        notify.assert_not_called()


async def test_the_command_that_tries_a_job_again_rings_too(database: Database, tmp_path: Path, aws: None) -> None:
    root = database("postgres")
    with running_sqs() as sqs:
        url = sqs.make()
        async with running_memory(
            database("memory_app"), tmp_path
        ) as memory:  # without the queue: nothing is in it yet
            await create(memory, embedding=unit(1, 0))
        ((job,),) = rows(root, "UPDATE memory_vectors SET status = 'dead' RETURNING id::text")
        environment = {name: value for name, value in os.environ.items() if name.startswith("AWS_")}
        environment |= {"DATABASE_URL": database("memory_app"), "VECTOR_WRITE_QUEUE_URL": url}
        told = await asyncio.to_thread(
            subprocess.run,
            [sys.executable, "-m", "memory_layer.cli", "jobs", "retry", job, "--data", str(tmp_path)],
            env=clean_environment() | environment,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert told.returncode == 0, told.stderr
        assert rows(root, "SELECT status FROM memory_vectors") == [("pending",)]
        assert sqs.held(url) == 1


# --- the product


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["sqs", "pubsub"])
def test_the_product_with_a_queue(kind: str, data_folder: Path, aws: None) -> None:
    with contextlib.ExitStack() as stack:
        environment = {}
        if kind == "sqs":
            sqs = stack.enter_context(running_sqs())
            url = sqs.make()
        else:
            pubsub = stack.enter_context(running_pubsub())
            pubsub.make("example-project", "rows", "workers")
            environment["PUBSUB_EMULATOR_HOST"] = pubsub.address
            url = "pubsub://example-project/rows/workers"

        def held() -> int:
            return sqs.held(url) if kind == "sqs" else len(pubsub.held("workers"))

        product = start_product(data_folder, environment=environment | {"VECTOR_WRITE_QUEUE_URL": url})
        try:
            with connect(product, "default") as http:
                create_indexed(http, content="the first one warms everything up")
                delays = []
                for n in range(3):
                    time.sleep(4)  # an idle worker looks ever less often by itself: every two seconds or so by now
                    node = create_over_http(http, content=f"a note about otters, number {n}")
                    started = time.monotonic()
                    while node not in found_ids(http, query="otters", topK=10):
                        assert time.monotonic() - started < 60
                    delays.append(time.monotonic() - started)
                print(f"{kind}: searchable after {', '.join(f'{delay * 1000:.0f}' for delay in delays)} ms")
                assert sorted(delays)[1] < 1.0
            while held():
                assert time.monotonic() - started < 60
        finally:
            started = time.monotonic()
            code = product.stop()
        assert (code, time.monotonic() - started < 40) == (0, True)
        text = "".join((data_folder / "log" / f"{name}.log").read_text() for name in ("api", "worker"))
        assert "memory_layer.notifier" not in text  # it has nothing to tell
        assert kms_server.SECRET_KEY not in text
