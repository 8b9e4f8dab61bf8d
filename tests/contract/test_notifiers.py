"""What every notifier does. SQS is moto's, Pub/Sub a stand-in that Google's own clients check (test_pubsub_server.py)."""

from __future__ import annotations

import asyncio
import json
import logging
import sys
import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import grpc
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from hypothesis import given
from hypothesis import strategies as st

from memory_layer import config
from memory_layer.errors import PolicyRefused, UsageError
from memory_layer.stores.notifiers import broker, open_notifier
from memory_layer.stores.notifiers.broker import MAX_BYTES, MESSAGES, ROWS, decode, encode
from memory_layer.stores.notifiers.pubsub import PubsubBroker
from memory_layer.stores.notifiers.sqs import SqsBroker, place_of
from memory_layer.stores.protocols import Notifier
from memory_layer.telemetry import metrics
from tests.support import kms_server
from tests.support.pubsub_server import PubsubServer, running_pubsub
from tests.support.sqs_server import SqsServer, running_sqs

PROMPT = 4.0  # seconds on a busy machine; the safety poll comes after 5


class House(Protocol):
    """A queue with what a test does to it behind the notifier's back."""

    url: str | None

    def held(self) -> int:
        """Messages that nobody has acknowledged."""
        ...

    def put(self, body: str) -> None: ...
    def stop(self) -> None: ...
    def start(self) -> None: ...
    def refuse_acknowledgements(self, on: bool) -> None: ...


@dataclass
class Polled:
    url: str | None = None


@dataclass
class SqsHouse:
    server: SqsServer
    url: str
    patch: pytest.MonkeyPatch

    def held(self) -> int:
        return self.server.held(self.url)

    def put(self, body: str) -> None:
        self.server.put(self.url, body)

    def stop(self) -> None:
        self.server.stop()

    def start(self) -> None:
        self.server.start()

    def refuse_acknowledgements(self, on: bool) -> None:
        """moto has no faults: the receipts go wrong on the way to it instead."""
        real = SqsBroker.acknowledge
        if on:

            async def spoil(self: SqsBroker, receipts: list[str]) -> None:
                await real(self, ["no-such-receipt" for _ in receipts])

            self.patch.setattr(SqsBroker, "acknowledge", spoil)
        else:
            self.patch.undo()


@dataclass
class PubsubHouse:
    server: PubsubServer
    topic: str

    @property
    def url(self) -> str:
        return f"pubsub://example-project/{self.topic}/{self.topic}-workers"

    def held(self) -> int:
        return len(self.server.held(f"{self.topic}-workers"))

    def put(self, body: str) -> None:
        from google import pubsub_v1 as api

        topic = f"projects/example-project/topics/{self.topic}"
        self.server.publish(api.PublishRequest(topic=topic, messages=[api.PubsubMessage(data=body.encode())]))

    def stop(self) -> None:
        self.server.stop()

    def start(self) -> None:
        self.server.start()

    def refuse_acknowledgements(self, on: bool) -> None:
        if on:
            self.server.fail("Acknowledge", grpc.StatusCode.PERMISSION_DENIED)
        else:
            self.server.faults.clear()


@pytest.fixture(scope="module")
def sqs() -> Iterator[SqsServer]:
    with running_sqs() as server:
        yield server


@pytest.fixture(scope="module")
def pubsub() -> Iterator[PubsubServer]:
    with running_pubsub() as server:
        yield server


@pytest.fixture
def house(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, aws: None) -> Iterator[object]:
    """A queue of the test's own."""
    match request.param:
        case "postgres":
            yield Polled()
        case "sqs":
            server = request.getfixturevalue("sqs")
            with pytest.MonkeyPatch.context() as patch:
                yield SqsHouse(server, server.make(), patch)
            assert server.running
        case _:
            running = request.getfixturevalue("pubsub")
            monkeypatch.setenv("PUBSUB_EMULATOR_HOST", running.address)
            topic = f"rows-{uuid.uuid4().hex[:12]}"
            running.make("example-project", topic, f"{topic}-workers")
            yield PubsubHouse(running, topic)
            running.faults.clear()
            assert running.running


every = pytest.mark.parametrize("house", ["postgres", "sqs", "pubsub"], indirect=True)
ringing = pytest.mark.parametrize("house", ["sqs", "pubsub"], indirect=True)


@pytest.fixture
async def bell(house: House) -> AsyncIterator[Notifier]:
    opened = await opened_at(house.url)
    yield opened
    await opened.close()


async def opened_at(url: str | None) -> Notifier:
    return await open_notifier(config.load({}, vector_write_queue_url=url))


def some(many: int) -> list[uuid.UUID]:
    return [uuid.uuid4() for _ in range(many)]


async def heard(bell: Notifier, many: int, seconds: float = 60) -> list[uuid.UUID]:
    """What is heard until so many rows were named."""
    rows: list[uuid.UUID] = []
    end = time.monotonic() + seconds
    while len(rows) < many:
        assert time.monotonic() < end, f"heard {len(rows)} of {many} rows"
        rows += await bell.wait(1)
    return rows


async def until(happened: Callable[[], bool], what: str, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not await asyncio.to_thread(happened):
        assert time.monotonic() < end, f"not within {seconds} s: {what}"
        await asyncio.sleep(0.02)


def count(outcome: str) -> float:
    return metrics.registry.get_sample_value("memory_queue_messages_total", {"outcome": outcome}) or 0.0


# --- every notifier


@every
async def test_nobody_rings(bell: Notifier) -> None:
    for seconds in (0.0, 0.3):
        started = time.monotonic()
        assert await bell.wait(seconds) == []
        assert seconds - 0.01 <= time.monotonic() - started < seconds + PROMPT


@every
async def test_ringing_takes_no_time_whatever_it_is_given(bell: Notifier) -> None:
    rows = some(1000)
    took = []
    for _ in range(100):
        started = time.perf_counter()
        bell.notify(rows)
        took.append(time.perf_counter() - started)
    bell.notify([])
    assert sorted(took)[50] < 0.01  # what waited for the broker would do so each time


@every
async def test_a_wait_can_be_cut_short(bell: Notifier) -> None:
    waiting = asyncio.create_task(bell.wait(60))
    await asyncio.sleep(0.05)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert await bell.wait(0) == []


@every
async def test_closing_is_quick_while_somebody_waits(house: House) -> None:
    bell = await opened_at(house.url)
    waiting = asyncio.create_task(bell.wait(60))
    await asyncio.sleep(0.2)
    started = time.monotonic()
    await bell.close()
    assert time.monotonic() - started < PROMPT
    assert not waiting.done() or waiting.result() == []
    waiting.cancel()
    await bell.close()
    bell.notify(some(1))


@every
async def test_patience(house: House, bell: Notifier) -> None:
    assert (bell.poll_interval is None) == (house.url is None)
    assert bell.poll_interval is None or 1 <= bell.poll_interval <= 10


# --- those with a broker


@ringing
async def test_a_ring_wakes_one_who_waits_elsewhere(house: House, bell: Notifier) -> None:
    worker = await opened_at(house.url)
    rows = some(3)
    waiting = asyncio.create_task(worker.wait(20))
    await asyncio.sleep(0.3)
    started = time.monotonic()
    bell.notify(rows)
    assert await waiting == rows
    assert time.monotonic() - started < PROMPT
    await until(lambda: house.held() == 0, "acknowledged")
    await worker.close()


@ringing
async def test_a_ring_waits_for_a_worker_that_starts_later(house: House) -> None:
    writer = await opened_at(house.url)
    rows = some(1)
    writer.notify(rows)
    await writer.close()  # what was waiting is sent first
    worker = await opened_at(house.url)
    assert await heard(worker, 1) == rows
    await worker.close()


@ringing
async def test_messages_hold_ids_and_nothing_else(house: House, bell: Notifier) -> None:
    seen: list[bytes] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(broker, "decode", lambda body: seen.append(body) or decode(body))
        rows = some(100)
        bell.notify(rows)
        assert sorted(await heard(bell, 100)) == sorted(rows)
    assert len(seen) == 5
    for body in seen:
        assert len(body) < MAX_BYTES
        message = json.loads(body)
        assert message.keys() == {"v", "rows"}
        assert all(uuid.UUID(row) in rows for row in message["rows"])


@ringing
async def test_what_comes_at_once_goes_together_and_the_oldest_is_dropped(house: House, bell: Notifier) -> None:
    unnamed = metrics.queue_rows_unnamed._value.get()
    rows = some(1000)
    for row in rows:
        bell.notify([row])
    before = count("sent")
    assert set(await heard(bell, ROWS * MESSAGES)) == set(rows[-ROWS * MESSAGES :])
    await until(lambda: count("sent") - before == MESSAGES, "counted")
    assert metrics.queue_rows_unnamed._value.get() - unnamed == 1000 - ROWS * MESSAGES


@ringing
async def test_a_waiter_gets_what_came_while_nobody_waited(house: House, bell: Notifier) -> None:
    assert await bell.wait(0.01) == []  # the long poll goes on
    rows = some(2)
    bell.notify(rows)
    await asyncio.sleep(0.5)
    started = time.monotonic()
    assert await bell.wait(5) == rows
    assert time.monotonic() - started < PROMPT


@ringing
async def test_each_ring_wakes_one_of_several_workers(
    house: House, bell: Notifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(broker, "GAP", 0.05)
    workers = [await opened_at(house.url) for _ in range(2)]
    rows = some(40 * ROWS)
    got: list[list[uuid.UUID]] = [[], []]

    async def listen(place: int) -> None:
        while sum(map(len, got)) < len(rows):
            got[place] += await workers[place].wait(0.5)

    listening = [asyncio.create_task(listen(place)) for place in range(2)]
    for start in range(0, len(rows), 4 * ROWS):
        bell.notify(rows[start : start + 4 * ROWS])
        await asyncio.sleep(2 * broker.GAP)
    await asyncio.wait_for(asyncio.gather(*listening), 30)
    assert sorted(got[0] + got[1]) == sorted(rows)
    assert got[0]
    assert got[1]
    for worker in workers:
        await worker.close()


GARBAGE = [
    "x", "{}", "[]", "null", "1", '{"v":1}', '{"v":1,"rows":[]}', '{"v":1,"rows":[7]}', '{"v":1,"rows":["7"]}', '{"v":1,"rows":{}}',
    f'{{"v":2,"rows":["{uuid.uuid4()}"]}}', "[" * 900, json.dumps({"v": 1, "rows": [str(uuid.uuid4())] * 40}), "\u2603",
    '{"v":1,"rows":[null]}', '{"Type":"Notification","Message":"hello"}',
]  # fmt: skip


@ringing
async def test_foreign_messages_are_ignored_and_deleted(house: House, bell: Notifier) -> None:
    before = count("ignored")
    for body in GARBAGE:
        await asyncio.to_thread(house.put, body)
    rows = some(1)
    bell.notify(rows)
    assert await heard(bell, 1) == rows
    waiting = asyncio.create_task(bell.wait(20))
    await until(lambda: count("ignored") - before == len(GARBAGE), "all read")
    await until(lambda: house.held() == 0, "all deleted")
    waiting.cancel()


@ringing
async def test_a_repeated_message_is_heard_again(house: House, bell: Notifier) -> None:
    rows = some(2)
    for _ in range(3):
        await asyncio.to_thread(house.put, encode(rows)[0].decode())
    assert await heard(bell, 6) == rows * 3


@ringing
async def test_what_cannot_be_acknowledged_does_no_harm(
    house: House, bell: Notifier, caplog: pytest.LogCaptureFixture
) -> None:
    house.refuse_acknowledgements(True)
    with caplog.at_level(logging.WARNING, "memory_layer.notifier"):
        for _ in range(3):
            rows = some(1)
            bell.notify(rows)
            assert await heard(bell, 1) == rows
        await until(lambda: len(caplog.records) > 0, "a complaint")
    assert len([r for r in caplog.records if r.levelno >= logging.WARNING]) == 1
    assert house.held() > 0
    house.refuse_acknowledgements(False)


@ringing
async def test_a_broker_that_is_down_costs_nothing_and_is_found_again(
    house: House, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(broker, "LONGEST_PAUSE", 0.2)
    house.stop()
    bell = await opened_at(house.url)  # down from the start
    with caplog.at_level(logging.INFO, "memory_layer.notifier"):
        lost = count("lost")
        bell.notify(some(1))
        started = time.monotonic()
        assert await bell.wait(1.0) == []
        assert 0.9 < time.monotonic() - started < 1.0 + PROMPT
        await until(lambda: count("lost") > lost, "counted as lost")
        for _ in range(20):
            bell.notify(some(50))
            await asyncio.sleep(0.02)
        house.start()
        await _rings_again(bell)
        house.stop()  # in flight
        bell.notify(some(1))
        assert await bell.wait(0.5) == []
        house.start()
        await _rings_again(bell)
    warnings = [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]
    assert 1 <= len(warnings) <= 3  # one for each kind of call, though there were two outages
    assert all("Nothing is lost" in text for text in warnings)
    assert any("works again" in r.getMessage() for r in caplog.records)
    await bell.close()


async def _rings_again(bell: Notifier) -> None:
    row = uuid.uuid4()
    end = time.monotonic() + 30
    while True:
        assert time.monotonic() < end, "it does not ring again"
        bell.notify([row])
        if row in await bell.wait(1):
            return


@pytest.mark.parametrize("house", ["pubsub"], indirect=True)
@pytest.mark.parametrize("code", [None, *(c for c in grpc.StatusCode if c is not grpc.StatusCode.OK)])
async def test_whatever_pubsub_answers_nothing_is_raised(
    house: PubsubHouse, bell: Notifier, code: grpc.StatusCode | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(broker, "LONGEST_PAUSE", 0.1)
    monkeypatch.setattr(broker, "SEND_SECONDS", 0.3)
    monkeypatch.setattr(broker, "LONG_POLL", 0.5)
    lost = count("lost")
    for method in ("Publish", "Pull"):
        house.server.fail(method, code)
    bell.notify(some(1))
    assert await bell.wait(0.3) == []
    await until(lambda: count("lost") > lost, "counted as lost")
    house.server.faults.clear()
    await _rings_again(bell)


@pytest.mark.parametrize("house", ["sqs"], indirect=True)
async def test_messages_that_sqs_takes_in_part_are_counted(
    house: SqsHouse, bell: Notifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    """moto takes a batch whole or not at all, so its true answer is changed on the way back."""
    real = house.server.client().send_message_batch
    assert isinstance(bell, broker.BrokerNotifier)
    assert isinstance(bell._broker, SqsBroker)

    def in_part(**asked: object) -> dict[str, object]:
        answer = real(**asked)
        return answer | {"Successful": answer["Successful"][1:], "Failed": [{"Id": "0", "SenderFault": False}]}

    monkeypatch.setattr(bell._broker._client, "send_message_batch", in_part)
    sent, lost = count("sent"), count("lost")
    bell.notify(some(3 * ROWS))
    await until(lambda: (count("sent"), count("lost")) == (sent + 2, lost + 1), "counted")


@ringing
async def test_of_two_who_wait_at_one_door_one_hears(house: House, bell: Notifier) -> None:
    waiting = [asyncio.create_task(bell.wait(3)) for _ in range(2)]
    await asyncio.sleep(0.1)
    rows = some(1)
    bell.notify(rows)
    assert sorted(await asyncio.gather(*waiting)) == [[], rows]


@pytest.mark.parametrize(
    ("library", "url", "extra"),
    [
        ("boto3", "https://sqs.eu-west-1.amazonaws.com/1/rows", "sqs"),
        ("grpc", "pubsub://example-project/rows/workers", "pubsub"),
    ],
)
async def test_a_library_that_is_not_installed(
    library: str, url: str, extra: str, monkeypatch: pytest.MonkeyPatch, aws: None
) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(UsageError, match=rf"pip install .*\[server,{extra}\]"):
        await opened_at(url)


# --- the URL


@pytest.mark.parametrize(
    "url",
    [
        "redis://localhost", "sqs", "https://", "https://sqs.eu-west-1.amazonaws.com/", "https://sqs.eu-west-1.amazonaws.com/1/a?b=c",
        "https://user:hunter2@sqs.eu-west-1.amazonaws.com/1/a", "https://sqs.eu-west-1.amazonaws.com/1/a.fifo", "https://[/1/a",
        "pubsub://", "pubsub://project", "pubsub://example-project/topic", "pubsub://example-project/topic/s/x",
        "pubsub://example-project/goog-topic/workers", "pubsub://user:hunter2@example-project/topic/workers",
    ],
)  # fmt: skip
async def test_a_url_that_names_no_queue(url: str, aws: None) -> None:
    with pytest.raises(UsageError) as refused:
        await opened_at(url)
    assert "VECTOR_WRITE_QUEUE_URL" in refused.value.message
    assert "hunter2" not in refused.value.message


@pytest.mark.parametrize(
    ("host", "region"),
    [
        ("sqs.eu-west-1.amazonaws.com", "eu-west-1"),
        ("sqs-fips.us-gov-west-1.amazonaws.com", "us-gov-west-1"),
        ("sqs.cn-north-1.amazonaws.com.cn", "cn-north-1"),
        ("sqs.ap-southeast-2.api.aws", "ap-southeast-2"),
        ("eu-central-1.queue.amazonaws.com", "eu-central-1"),
        ("vpce-0a1b-2c3d.sqs.eu-west-3.vpce.amazonaws.com", "eu-west-3"),
        ("queue.example.org", None),
    ],
)
def test_the_region_stands_in_the_url(host: str, region: str | None) -> None:
    assert place_of(config.load({}), f"https://{host}/123456789012/rows") == (f"https://{host}", region)


async def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch, aws: None) -> None:
    monkeypatch.delenv("AWS_DEFAULT_REGION")
    with pytest.raises(UsageError, match="AWS_REGION"):
        await opened_at("https://queue.example.org/123456789012/rows")
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", "/nowhere/key.json")
    monkeypatch.delenv("PUBSUB_EMULATOR_HOST", raising=False)
    with pytest.raises(UsageError, match="GOOGLE_APPLICATION_CREDENTIALS"):
        await opened_at("pubsub://example-project/rows/workers")


async def test_google_credentials_are_found_as_google_finds_them(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("PUBSUB_EMULATOR_HOST", raising=False)
    key = rsa.generate_private_key(65537, 2048).private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    account = {"type": "service_account", "client_email": "worker@example-project.iam.gserviceaccount.com",
               "token_uri": "https://oauth2.googleapis.com/token", "private_key": key.decode(), "private_key_id": "1"}  # fmt: skip
    (tmp_path / "key.json").write_text(json.dumps(account))
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "key.json"))
    bell = await opened_at("pubsub://example-project/rows/workers")
    assert isinstance(bell, broker.BrokerNotifier)
    assert isinstance(bell._broker, PubsubBroker)
    for client in bell._broker._clients:
        assert client.transport.host == "pubsub.googleapis.com:443"
    await bell.close()


async def test_production_wants_tls(monkeypatch: pytest.MonkeyPatch, aws: None) -> None:
    monkeypatch.setenv("PUBSUB_EMULATOR_HOST", "127.0.0.1:1")
    for url in ("http://sqs.example.org/1/rows", "pubsub://example-project/rows/workers"):
        with pytest.raises(PolicyRefused, match="SERVICE_ENV=prod"):
            await open_notifier(config.load({}, vector_write_queue_url=url, service_env="prod"))


@pytest.mark.parametrize("house", ["sqs"], indirect=True)
async def test_errors_name_what_to_do_and_no_secret(
    house: SqsHouse, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    bell = await opened_at(house.url + "-that-is-not-there")
    with caplog.at_level(logging.WARNING, "memory_layer.notifier"):
        bell.notify(some(1))
        await until(lambda: len(caplog.records) > 0, "a complaint")
    assert "provision apply queue" in caplog.text
    await bell.close()
    caplog.clear()
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    bell = await opened_at(house.url)
    with caplog.at_level(logging.WARNING, "memory_layer.notifier"):
        bell.notify(some(1))
        await until(lambda: len(caplog.records) > 0, "a complaint")
    assert "there are no AWS credentials" in caplog.text
    assert kms_server.SECRET_KEY not in caplog.text
    await bell.close()


# --- the messages


@given(st.lists(st.uuids(), max_size=200))
def test_what_is_encoded_is_decoded(rows: list[uuid.UUID]) -> None:
    bodies = encode(rows)
    assert [row for body in bodies for row in decode(body) or ()] == rows
    assert all(len(body) <= MAX_BYTES for body in bodies)


@given(st.binary(max_size=2000) | st.text().map(str.encode))
def test_no_message_is_too_strange(body: bytes) -> None:
    found = decode(body)
    assert found is None or all(isinstance(row, uuid.UUID) for row in found)


def test_the_brokers_share_nothing_of_their_vendors() -> None:
    assert {name for name in vars(PubsubBroker) if not name.startswith("_")} == {
        name for name in vars(SqsBroker) if not name.startswith("_")
    }
