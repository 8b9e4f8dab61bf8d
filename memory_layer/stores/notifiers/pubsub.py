"""Google Pub/Sub. Calls: https://cloud.google.com/pubsub/docs/reference/rpc/google.pubsub.v1 (Publish, Pull, Acknowledge).

Credentials come from Google's own chain. Who writes needs roles/pubsub.publisher on the topic, workers roles/pubsub.subscriber on
the subscription. PUBSUB_EMULATOR_HOST is honoured as by Google's own clients: then neither TLS nor credentials are used.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Sequence
from functools import partial
from typing import Any, Final, NamedTuple, TypeVar

from memory_layer.config import Settings, environment
from memory_layer.errors import DependencyUnavailable, PolicyRefused, UsageError
from memory_layer.installing import install
from memory_layer.stores.notifiers.broker import ACK_SECONDS, MESSAGES, SEND_SECONDS, BrokerNotifier, Received
from memory_layer.stores.remote.faults import Fault, translated

T = TypeVar("T")

ASK_SECONDS: Final = 15.0  # for a call of `memoryctl provision`
_PROJECT: Final = r"(?:[a-z][a-z0-9.-]*:)?[a-z][a-z0-9-]{4,28}[a-z0-9]"
_NAME: Final = r"(?!goog)[A-Za-z][A-Za-z0-9._~+%-]{2,254}"
_URL: Final = re.compile(rf"pubsub://({_PROJECT})/({_NAME})/({_NAME})")


class PubsubUrl(NamedTuple):
    """What a pubsub:// URL names."""

    project: str
    topic: str
    subscription: str

    @property
    def url(self) -> str:
        return f"pubsub://{self.project}/{self.topic}/{self.subscription}"


class Clients(NamedTuple):
    """Google's own asynchronous clients; both must be closed."""

    publisher: Any
    subscriber: Any

    async def close(self) -> None:
        await self.publisher.transport.close()
        await self.subscriber.transport.close()


class PubsubBroker:
    """One topic and one of its subscriptions."""

    def __init__(self, clients: Clients, place: PubsubUrl) -> None:
        self._clients = clients
        self._topic = topic_path(place.project, place.topic)
        self._subscription = subscription_path(place.project, place.subscription)

    async def send(self, bodies: Sequence[bytes]) -> int:
        request = {"topic": self._topic, "messages": [{"data": body} for body in bodies]}
        publish = self._clients.publisher.publish(request=request, retry=None, timeout=SEND_SECONDS)
        return len((await call("take a message", publish)).message_ids)

    async def receive(self, seconds: int) -> list[Received]:
        from google.api_core import exceptions

        request = {"subscription": self._subscription, "max_messages": MESSAGES}

        async def pull() -> Any:
            try:
                return await self._clients.subscriber.pull(request=request, retry=None, timeout=float(seconds))
            except exceptions.DeadlineExceeded:
                return None

        answer = await call("give its messages", pull())
        messages = () if answer is None else answer.received_messages
        return [Received(got.ack_id, bytes(got.message.data)) for got in messages]

    async def acknowledge(self, receipts: Sequence[str]) -> None:
        request = {"subscription": self._subscription, "ack_ids": list(receipts)}
        subscriber = self._clients.subscriber
        await call("take an acknowledgement", subscriber.acknowledge(request=request, retry=None, timeout=ACK_SECONDS))

    async def close(self) -> None:
        await self._clients.close()


async def open_pubsub(settings: Settings, url: str) -> BrokerNotifier:
    """The notifier on a topic and a subscription. Raises UsageError, PolicyRefused."""
    place = parse(url)
    return BrokerNotifier("Pub/Sub", PubsubBroker(await connect(settings), place))


def parse(url: str) -> PubsubUrl:
    """Raises UsageError when it is no pubsub:// URL."""
    found = _URL.fullmatch(url)
    if found is None:
        raise UsageError(
            "VECTOR_WRITE_QUEUE_URL is not pubsub://PROJECT/TOPIC/SUBSCRIPTION with names as Google Cloud has them."
        )
    return PubsubUrl(found[1], found[2], found[3])


def topic_path(project: str, topic: str) -> str:
    return f"projects/{project}/topics/{topic}"


def subscription_path(project: str, subscription: str) -> str:
    return f"projects/{project}/subscriptions/{subscription}"


async def connect(settings: Settings) -> Clients:
    """Clients with Google's own chain of credentials, which may ask the machine's metadata server. Raises UsageError, PolicyRefused."""
    try:
        from google import pubsub_v1
        from google.auth import default, exceptions
        from google.pubsub_v1.services.publisher.transports import PublisherGrpcAsyncIOTransport
        from google.pubsub_v1.services.subscriber.transports import SubscriberGrpcAsyncIOTransport
        from grpc import aio
    except ImportError:
        raise UsageError(
            "A queue in Pub/Sub needs google-cloud-pubsub, which is not installed. Run: " + install("server", "pubsub")
        ) from None
    emulator = environment().get("PUBSUB_EMULATOR_HOST")
    if emulator:
        if settings.guarded:
            raise PolicyRefused(
                f"PUBSUB_EMULATOR_HOST is set, which means no TLS and no credentials, and {settings.guarded} forbids that. Unset it."
            )
        return Clients(
            pubsub_v1.PublisherAsyncClient(
                transport=PublisherGrpcAsyncIOTransport(channel=aio.insecure_channel(emulator))
            ),
            pubsub_v1.SubscriberAsyncClient(
                transport=SubscriberGrpcAsyncIOTransport(channel=aio.insecure_channel(emulator))
            ),
        )

    def refused(error: Exception) -> UsageError:
        return UsageError(f"Pub/Sub cannot be used: {explain(error).text}.")

    find = partial(default, scopes=["https://www.googleapis.com/auth/pubsub"])
    credentials, _ = await asyncio.to_thread(translated, find, exceptions.GoogleAuthError, refused)
    return Clients(
        pubsub_v1.PublisherAsyncClient(credentials=credentials),
        pubsub_v1.SubscriberAsyncClient(credentials=credentials),
    )


async def call(what: str, answer: Awaitable[T]) -> T:
    """Raises DependencyUnavailable where it may pass by itself, else UsageError."""
    from google.api_core.exceptions import GoogleAPIError
    from google.auth.exceptions import GoogleAuthError

    try:
        return await answer
    except (GoogleAPIError, GoogleAuthError) as error:
        fault = explain(error)
    # As ``translated`` has it: outside the handler.
    raise (DependencyUnavailable if fault.passing else UsageError)(f"Pub/Sub did not {what}: {fault.text}.")


async def found(what: str, answer: Awaitable[T]) -> T | None:
    """The same; None where there is no such thing."""
    from google.api_core.exceptions import NotFound

    async def look() -> T | None:
        try:
            return await answer
        except NotFound:
            return None

    return await call(what, look())


def explain(error: Exception) -> Fault:
    """What a failed call means, in words that repeat nothing of what was sent."""
    from google.api_core import exceptions as api
    from google.auth import exceptions as auth

    if isinstance(error, auth.DefaultCredentialsError):
        return Fault(
            "there are no Google credentials. Give this process a service account, or name its key file in "
            "GOOGLE_APPLICATION_CREDENTIALS",
            False,
        )
    if isinstance(error, auth.GoogleAuthError):
        return Fault(f"Google credentials could not be fetched ({type(error).__name__})", True)
    if isinstance(error, api.NotFound):
        return Fault(
            "there is no such topic or subscription. Check VECTOR_WRITE_QUEUE_URL, or make them with `memoryctl provision apply queue`",
            False,
        )
    if isinstance(error, api.Forbidden):
        return Fault(
            "the Google credentials may not. Writing needs roles/pubsub.publisher on the topic, the worker roles/pubsub.subscriber on "
            "the subscription, `memoryctl provision` roles/pubsub.editor",
            False,
        )
    if isinstance(error, api.Unauthorized):
        return Fault("Google does not accept the credentials", False)
    if isinstance(error, api.AlreadyExists):
        return Fault("another run has made it at this moment. Repeat the command", True)
    if isinstance(error, api.InvalidArgument):
        return Fault("it takes VECTOR_WRITE_QUEUE_URL, or what was asked of it, for wrong", False)
    if isinstance(error, api.DeadlineExceeded):
        return Fault("it did not answer in time", True)
    if isinstance(error, api.ServiceUnavailable):
        return Fault("it cannot be reached", True)
    if isinstance(error, api.TooManyRequests):
        return Fault("Google throttles the calls, or a quota is used up", True)
    return Fault(f"the call failed ({type(error).__name__})", True)
