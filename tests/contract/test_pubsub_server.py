"""The stand-in for Pub/Sub, driven by Google's own clients: what the notifier's tests rest on is what those clients see."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import grpc
import pytest
from google.api_core import exceptions
from google.cloud import pubsub_v1

from tests.support.pubsub_server import PubsubServer, running_pubsub

TOPIC, SUBSCRIPTION = "projects/example-project/topics/rows", "projects/example-project/subscriptions/workers"


@dataclass
class Clock:
    now: float = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def server(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> Iterator[PubsubServer]:
    with running_pubsub(clock) as running:
        monkeypatch.setenv("PUBSUB_EMULATOR_HOST", running.address)
        yield running


@pytest.fixture
def publisher(server: PubsubServer) -> Iterator[Any]:
    client = pubsub_v1.PublisherClient()
    yield client
    client.stop()


@pytest.fixture
def subscriber(server: PubsubServer) -> Iterator[Any]:
    with pubsub_v1.SubscriberClient() as client:
        yield client


@pytest.fixture
def made(publisher: Any, subscriber: Any) -> None:
    publisher.create_topic(name=TOPIC)
    subscriber.create_subscription(name=SUBSCRIPTION, topic=TOPIC, ack_deadline_seconds=20)


def pull(subscriber: Any, many: int = 10) -> list[Any]:
    return list(subscriber.pull(subscription=SUBSCRIPTION, max_messages=many, timeout=10).received_messages)


def until(happened: Callable[[], bool]) -> None:
    end = time.monotonic() + 20
    while not happened():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_topics_and_subscriptions(publisher: Any, subscriber: Any) -> None:
    with pytest.raises(exceptions.NotFound):
        publisher.get_topic(topic=TOPIC)
    with pytest.raises(exceptions.NotFound):
        subscriber.create_subscription(name=SUBSCRIPTION, topic=TOPIC)
    publisher.create_topic(name=TOPIC)
    with pytest.raises(exceptions.AlreadyExists):
        publisher.create_topic(name=TOPIC)
    with pytest.raises(exceptions.InvalidArgument):
        subscriber.create_subscription(name=SUBSCRIPTION, topic=TOPIC, ack_deadline_seconds=5)
    made = subscriber.create_subscription(name=SUBSCRIPTION, topic=TOPIC)
    assert (made.ack_deadline_seconds, made.message_retention_duration.days) == (10, 7)
    assert subscriber.get_subscription(subscription=SUBSCRIPTION) == made
    made.ack_deadline_seconds = 60
    changed = {"subscription": made, "update_mask": {"paths": ["ack_deadline_seconds"]}}
    assert subscriber.update_subscription(request=changed).ack_deadline_seconds == 60


@pytest.mark.filterwarnings("ignore:The return_immediately flag")
def test_a_message_comes_again_after_its_deadline_until_it_is_acknowledged(
    made: None, publisher: Any, subscriber: Any, clock: Clock
) -> None:
    ids = {publisher.publish(TOPIC, f"m{n}".encode(), kind="test").result(10) for n in range(3)}
    first = pull(subscriber)
    assert {message.message.message_id for message in first} == ids
    assert dict(first[0].message.attributes) == {"kind": "test"}
    subscriber.acknowledge(subscription=SUBSCRIPTION, ack_ids=[first[0].ack_id])
    subscriber.modify_ack_deadline(subscription=SUBSCRIPTION, ack_ids=[first[1].ack_id], ack_deadline_seconds=100)
    clock.now += 21
    (again,) = pull(subscriber)
    assert again.message.message_id == first[2].message.message_id
    subscriber.acknowledge(subscription=SUBSCRIPTION, ack_ids=[first[2].ack_id])  # of the delivery before: too late
    clock.now += 80
    assert {m.message.data for m in pull(subscriber)} == {first[1].message.data, first[2].message.data}
    clock.now += 1
    empty = subscriber.pull(subscription=SUBSCRIPTION, max_messages=5, return_immediately=True)
    assert list(empty.received_messages) == []


def test_a_message_that_is_given_back_comes_at_once(made: None, publisher: Any, subscriber: Any) -> None:
    publisher.publish(TOPIC, b"m").result(10)
    (first,) = pull(subscriber)
    subscriber.modify_ack_deadline(subscription=SUBSCRIPTION, ack_ids=[first.ack_id], ack_deadline_seconds=0)
    assert pull(subscriber)[0].message == first.message


@pytest.mark.filterwarnings("ignore:The return_immediately flag")
def test_dead_letters(publisher: Any, subscriber: Any, server: PubsubServer, clock: Clock) -> None:
    dead = TOPIC + "-dead"
    for name in (TOPIC, dead):
        publisher.create_topic(name=name)
    subscriber.create_subscription(name=SUBSCRIPTION + "-dead", topic=dead)
    policy = {"dead_letter_topic": dead, "max_delivery_attempts": 5}
    subscriber.create_subscription(request={"name": SUBSCRIPTION, "topic": TOPIC, "dead_letter_policy": policy})
    publisher.publish(TOPIC, b"poison").result(10)
    for attempt in range(1, 6):
        assert [m.delivery_attempt for m in pull(subscriber)] == [attempt]
        clock.now += 11
    nothing = subscriber.pull(subscription=SUBSCRIPTION, max_messages=5, return_immediately=True)
    assert list(nothing.received_messages) == []
    assert server.held("workers-dead") == [b"poison"]


def test_streaming_pull_with_acknowledgements(
    made: None, publisher: Any, subscriber: Any, server: PubsubServer
) -> None:
    seen: list[bytes] = []
    refused = threading.Event()

    def take(message: Any) -> None:
        if message.data == b"m1" and not refused.is_set():
            refused.set()
            message.nack()
            return
        seen.append(message.data)
        message.ack()

    stream = subscriber.subscribe(SUBSCRIPTION, take)
    try:
        for n in range(4):
            publisher.publish(TOPIC, f"m{n}".encode()).result(10)
        until(lambda: sorted(seen) == [b"m0", b"m1", b"m2", b"m3"] and server.held("workers") == [])
    finally:
        stream.cancel()
        stream.result(10)
    assert refused.is_set()


def test_ordering_keys(subscriber: Any, server: PubsubServer) -> None:
    server.make("example-project", "rows", "workers", enable_message_ordering=True)
    publisher = pubsub_v1.PublisherClient(
        publisher_options=pubsub_v1.types.PublisherOptions(enable_message_ordering=True)
    )
    for n, key in enumerate("aab"):
        publisher.publish(TOPIC, f"{n}".encode(), ordering_key=key).result(10)
    publisher.stop()
    first = pull(subscriber)
    assert [m.message.data for m in first] == [b"0", b"2"]
    subscriber.acknowledge(subscription=SUBSCRIPTION, ack_ids=[first[0].ack_id])
    assert [m.message.data for m in pull(subscriber)] == [b"1"]


def test_faults(made: None, publisher: Any, subscriber: Any, server: PubsubServer) -> None:
    server.fail("Pull", grpc.StatusCode.PERMISSION_DENIED, 1)
    with pytest.raises(exceptions.PermissionDenied):
        pull(subscriber)
    server.fail("Pull", None)
    with pytest.raises(exceptions.DeadlineExceeded):
        subscriber.pull(subscription=SUBSCRIPTION, max_messages=1, timeout=0.2, retry=None)
    server.faults.clear()
    publisher.publish(TOPIC, b"m").result(10)
    assert len(pull(subscriber)) == 1
