"""A stand-in for Google Pub/Sub: its gRPC interface on loopback, in memory, with a clock that a test can turn.

Calls and limits: https://cloud.google.com/pubsub/docs/reference/rpc/google.pubsub.v1. Google's own clients drive it
(``tests/contract/test_pubsub_server.py``). It knows topics, subscriptions, Publish, Pull, StreamingPull, Acknowledge,
ModifyAckDeadline, redelivery after the deadline, ordering keys and dead letters. It knows no permissions, no filters, no push, no
exactly-once delivery, and hands messages out in order, which Pub/Sub does not promise: tests that need disorder make it.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import itertools
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import grpc
from google import pubsub_v1 as api
from google.protobuf import empty_pb2

LOOK_EVERY = 0.02  # seconds of the real clock, at which a waiting call looks whether the test has turned the other one
POLL_SECONDS = 3.0  # that Pull waits for a message
RETENTION = (600, 31 * 86400)  # seconds


@dataclass
class Message:
    """One message in one subscription; ``ack_id`` and ``deadline`` of its newest delivery."""

    content: api.PubsubMessage
    attempts: int = 0
    ack_id: str | None = None
    deadline: float = 0.0


@dataclass
class Subscription:
    settings: api.Subscription
    messages: list[Message] = field(default_factory=list)


class Fault(NamedTuple):
    """What strikes a call: a status, or (None) no answer at all."""

    code: grpc.StatusCode | None
    times: int | None  # None: until it is cleared


class Refused(Exception):
    def __init__(self, code: grpc.StatusCode, text: str) -> None:
        super().__init__(text)
        self.code = code


class PubsubServer:
    """One service for any number of projects."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self.topics: dict[str, api.Topic] = {}
        self.subscriptions: dict[str, Subscription] = {}
        self.faults: dict[str, Fault] = {}
        self.calls: list[str] = []
        self.port = 0
        self._changed = threading.Condition()
        self._ids = itertools.count(1)
        self._server: grpc.Server | None = None

    # --- running

    def start(self) -> None:
        """At the port that it had before, if it ran before."""
        self._server = grpc.server(ThreadPoolExecutor(32, thread_name_prefix="pubsub"))
        self._server.add_generic_rpc_handlers(_handlers(self))
        self.port = self._server.add_insecure_port(f"127.0.0.1:{self.port}")
        self._server.start()

    def stop(self) -> None:
        """Cut every connection; what it holds stays."""
        if self._server is not None:
            server, self._server = self._server, None
            server.stop(None).wait()

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def running(self) -> bool:
        return self._server is not None

    # --- for tests

    def fail(self, method: str, code: grpc.StatusCode | None, times: int | None = None) -> None:
        self.faults[method] = Fault(code, times)

    def make(self, project: str, topic: str, subscription: str, **settings: Any) -> None:
        """A topic with one subscription."""
        name = f"projects/{project}/topics/{topic}"
        self.create_topic(api.Topic(name=name))
        path = f"projects/{project}/subscriptions/{subscription}"
        self.create_subscription(api.Subscription(name=path, topic=name, **settings))

    def held(self, subscription: str) -> list[bytes]:
        """The messages that nobody has acknowledged."""
        with self._changed:
            return [bytes(m.content.data) for name, s in self.subscriptions.items() if name.endswith(f"/{subscription}")
                    for m in s.messages]  # fmt: skip

    # --- the calls

    def create_topic(self, topic: api.Topic) -> api.Topic:
        with self._changed:
            if topic.name in self.topics:
                raise Refused(grpc.StatusCode.ALREADY_EXISTS, "the topic exists")
            self.topics[topic.name] = topic
        return topic

    def get_topic(self, request: api.GetTopicRequest) -> api.Topic:
        return _found(self.topics, request.topic)

    def update_topic(self, request: api.UpdateTopicRequest) -> api.Topic:
        topic = _found(self.topics, request.topic.name)
        for path in request.update_mask.paths:
            setattr(topic, path, getattr(request.topic, path))
        return topic

    def create_subscription(self, settings: api.Subscription) -> api.Subscription:
        with self._changed:
            if settings.name in self.subscriptions:
                raise Refused(grpc.StatusCode.ALREADY_EXISTS, "the subscription exists")
            _found(self.topics, settings.topic)
            settings.ack_deadline_seconds = settings.ack_deadline_seconds or 10
            settings.message_retention_duration = settings.message_retention_duration or dt.timedelta(days=7)
            if "expiration_policy" not in settings:
                settings.expiration_policy = api.ExpirationPolicy(ttl=dt.timedelta(days=31))
            _check(settings)
            self.subscriptions[settings.name] = Subscription(settings)
        return settings

    def get_subscription(self, request: api.GetSubscriptionRequest) -> api.Subscription:
        return _found(self.subscriptions, request.subscription).settings

    def update_subscription(self, request: api.UpdateSubscriptionRequest) -> api.Subscription:
        kept = _found(self.subscriptions, request.subscription.name)
        changed = api.Subscription(kept.settings)
        for path in request.update_mask.paths:
            setattr(changed, path, getattr(request.subscription, path))
        _check(changed)
        kept.settings = changed
        return changed

    def publish(self, request: api.PublishRequest) -> api.PublishResponse:
        _found(self.topics, request.topic)
        if not request.messages or len(request.messages) > 1000:
            raise Refused(grpc.StatusCode.INVALID_ARGUMENT, "1 to 1000 messages")
        with self._changed:
            ids = [self._publish(request.topic, message) for message in request.messages]
            self._changed.notify_all()
        return api.PublishResponse(message_ids=ids)

    def pull(self, request: api.PullRequest, context: grpc.ServicerContext) -> api.PullResponse:
        _found(self.subscriptions, request.subscription)
        if request.max_messages < 1:
            raise Refused(grpc.StatusCode.INVALID_ARGUMENT, "max_messages")
        until = time.monotonic() + (0 if request.return_immediately else POLL_SECONDS)
        with self._changed:
            while context.is_active():
                if received := self._take(request.subscription, request.max_messages):
                    return api.PullResponse(received_messages=received)
                if time.monotonic() >= until:
                    break
                self._changed.wait(LOOK_EVERY)
        return api.PullResponse()

    def streaming_pull(
        self, requests: Iterator[api.StreamingPullRequest], context: grpc.ServicerContext
    ) -> Iterator[api.StreamingPullResponse]:
        first = next(requests)
        _found(self.subscriptions, first.subscription)
        seconds = first.stream_ack_deadline_seconds
        threading.Thread(target=self._listen, args=(first.subscription, requests), daemon=True).start()
        while context.is_active() and self.running:
            with self._changed:
                received = self._take(first.subscription, first.max_outstanding_messages or 1000, seconds)
                if not received:
                    self._changed.wait(LOOK_EVERY)
            if received:
                yield api.StreamingPullResponse(received_messages=received)

    def acknowledge(self, request: api.AcknowledgeRequest) -> empty_pb2.Empty:
        self._acknowledge(request.subscription, list(request.ack_ids))
        return empty_pb2.Empty()

    def modify_ack_deadline(self, request: api.ModifyAckDeadlineRequest) -> empty_pb2.Empty:
        self._extend(request.subscription, list(request.ack_ids), request.ack_deadline_seconds)
        return empty_pb2.Empty()

    # --- beneath

    def _listen(self, subscription: str, requests: Iterator[api.StreamingPullRequest]) -> None:
        with contextlib.suppress(grpc.RpcError, Exception):  # the stream is cut, in whatever way
            for request in requests:
                self._acknowledge(subscription, list(request.ack_ids))
                pairs = zip(request.modify_deadline_ack_ids, request.modify_deadline_seconds, strict=True)
                for ack_id, seconds in pairs:
                    self._extend(subscription, [ack_id], seconds)

    def _publish(self, topic: str, message: api.PubsubMessage) -> str:
        stamped = api.PubsubMessage(message)
        stamped.message_id = str(next(self._ids))
        stamped.publish_time = dt.datetime.now(dt.UTC)
        for subscription in self.subscriptions.values():
            if subscription.settings.topic == topic:
                subscription.messages.append(Message(stamped))
        return stamped.message_id

    def _take(self, name: str, limit: int, seconds: int = 0) -> list[api.ReceivedMessage]:
        """Lease what is free; what was delivered too often goes to the dead letters."""
        subscription = self.subscriptions[name]
        policy, ordered = subscription.settings.dead_letter_policy, subscription.settings.enable_message_ordering
        received, blocked = [], set()
        for message in list(subscription.messages):
            key = message.content.ordering_key
            if ordered and key and key in blocked:
                continue
            free = message.ack_id is None or self.clock() >= message.deadline
            if free and policy.dead_letter_topic and message.attempts >= policy.max_delivery_attempts:
                subscription.messages.remove(message)
                self._publish(policy.dead_letter_topic, message.content)
                continue
            blocked.add(key)
            if not free or len(received) >= limit:
                continue
            message.attempts += 1
            message.ack_id = f"{name}#{message.content.message_id}#{message.attempts}"
            message.deadline = self.clock() + (seconds or subscription.settings.ack_deadline_seconds)
            received.append(
                api.ReceivedMessage(
                    ack_id=message.ack_id,
                    message=message.content,
                    delivery_attempt=message.attempts if policy.dead_letter_topic else 0,
                )
            )
        return received

    def _acknowledge(self, name: str, ack_ids: list[str]) -> None:
        """Only of the newest delivery, late ones included; others are taken in silence, as Pub/Sub does."""
        with self._changed:
            subscription = _found(self.subscriptions, name)
            subscription.messages = [m for m in subscription.messages if m.ack_id is None or m.ack_id not in ack_ids]

    def _extend(self, name: str, ack_ids: list[str], seconds: int) -> None:
        """Zero gives it back at once."""
        if not 0 <= seconds <= 600:
            raise Refused(grpc.StatusCode.INVALID_ARGUMENT, "ack_deadline_seconds")
        with self._changed:
            for message in _found(self.subscriptions, name).messages:
                if message.ack_id in ack_ids:
                    message.deadline = self.clock() + seconds
            self._changed.notify_all()


def _found(among: dict[str, Any], name: str) -> Any:
    if name not in among:
        raise Refused(grpc.StatusCode.NOT_FOUND, f"Resource not found (resource={name.rpartition('/')[2]}).")
    return among[name]


def _check(settings: api.Subscription) -> None:
    retention = settings.message_retention_duration.total_seconds()
    attempts = settings.dead_letter_policy.max_delivery_attempts
    if not (10 <= settings.ack_deadline_seconds <= 600 and RETENTION[0] <= retention <= RETENTION[1]):
        raise Refused(grpc.StatusCode.INVALID_ARGUMENT, "ack deadline or retention")
    if settings.dead_letter_policy.dead_letter_topic and not 5 <= attempts <= 100:
        raise Refused(grpc.StatusCode.INVALID_ARGUMENT, "max_delivery_attempts")


def _handlers(server: PubsubServer) -> tuple[grpc.GenericRpcHandler, ...]:
    def unary(name: str, method: Callable[..., Any], request: Any, *, answer: Any = None, waits: bool = False) -> Any:
        def handle(asked: Any, context: grpc.ServicerContext) -> Any:
            _strike(server, name, context)
            try:
                return method(asked, context) if waits else method(asked)
            except Refused as error:
                return context.abort(error.code, str(error))

        serialize = empty_pb2.Empty.SerializeToString if answer is None else answer.serialize
        return grpc.unary_unary_rpc_method_handler(handle, request.deserialize, serialize)

    def stream(asked: Iterator[Any], context: grpc.ServicerContext) -> Iterator[Any]:
        _strike(server, "StreamingPull", context)
        try:
            yield from server.streaming_pull(asked, context)
        except Refused as error:
            context.abort(error.code, str(error))

    publisher = {
        "CreateTopic": unary("CreateTopic", server.create_topic, api.Topic, answer=api.Topic),
        "GetTopic": unary("GetTopic", server.get_topic, api.GetTopicRequest, answer=api.Topic),
        "UpdateTopic": unary("UpdateTopic", server.update_topic, api.UpdateTopicRequest, answer=api.Topic),
        "Publish": unary("Publish", server.publish, api.PublishRequest, answer=api.PublishResponse),
    }
    subscriber = {
        "CreateSubscription": unary(
            "CreateSubscription", server.create_subscription, api.Subscription, answer=api.Subscription
        ),
        "GetSubscription": unary(
            "GetSubscription", server.get_subscription, api.GetSubscriptionRequest, answer=api.Subscription
        ),
        "UpdateSubscription": unary(
            "UpdateSubscription", server.update_subscription, api.UpdateSubscriptionRequest, answer=api.Subscription
        ),
        "Pull": unary("Pull", server.pull, api.PullRequest, answer=api.PullResponse, waits=True),
        "StreamingPull": grpc.stream_stream_rpc_method_handler(
            stream, api.StreamingPullRequest.deserialize, api.StreamingPullResponse.serialize
        ),
        "Acknowledge": unary("Acknowledge", server.acknowledge, api.AcknowledgeRequest),
        "ModifyAckDeadline": unary("ModifyAckDeadline", server.modify_ack_deadline, api.ModifyAckDeadlineRequest),
    }
    return (
        grpc.method_handlers_generic_handler("google.pubsub.v1.Publisher", publisher),
        grpc.method_handlers_generic_handler("google.pubsub.v1.Subscriber", subscriber),
    )


def _strike(server: PubsubServer, name: str, context: grpc.ServicerContext) -> None:
    server.calls.append(name)
    fault = server.faults.get(name)
    if fault is None:
        return
    if fault.times is not None:
        if fault.times <= 1:
            del server.faults[name]
        else:
            server.faults[name] = Fault(fault.code, fault.times - 1)
    if fault.code is None:
        while context.is_active() and server.running and name in server.faults:
            time.sleep(LOOK_EVERY)
    context.abort(fault.code or grpc.StatusCode.DEADLINE_EXCEEDED, "a fault that the test wanted")


@contextlib.contextmanager
def running_pubsub(clock: Callable[[], float] = time.monotonic) -> Iterator[PubsubServer]:
    server = PubsubServer(clock)
    server.start()
    try:
        yield server
    finally:
        server.stop()
