"""Amazon SQS. Calls: https://docs.aws.amazon.com/AWSSimpleQueueService/latest/APIReference/API_SendMessageBatch.html,
API_ReceiveMessage.html, API_DeleteMessageBatch.html.

Region and endpoint come from the queue's URL, credentials from AWS's own chain. Who writes needs sqs:SendMessage on the queue,
workers sqs:ReceiveMessage and sqs:DeleteMessage.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import threading
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final, TypeVar
from urllib.parse import urlsplit

from memory_layer.config import Settings
from memory_layer.errors import DependencyUnavailable, UsageError
from memory_layer.stores.notifiers.broker import LONG_POLL, MESSAGES, BrokerNotifier, Received
from memory_layer.stores.remote import aws
from memory_layer.stores.remote.faults import Fault
from memory_layer.stores.remote.urls import service_url

T = TypeVar("T")

CONNECT, READ = 2.0, 3.0  # seconds that one try may take; a long poll takes its own time besides
# https://sqs.REGION.amazonaws.com, sqs-fips, REGION.queue.amazonaws.com (old), vpce-...sqs.REGION.vpce..., sqs.REGION.api.aws
_REGION: Final = re.compile(
    r"(?:^|\.)sqs(?:-fips)?\.([a-z]{2,4}(?:-[a-z]+)+-\d)\.|^([a-z]{2,4}(?:-[a-z]+)+-\d)\.queue\."
)
_ABSENT: Final = Fault(
    "there is no such queue. Check VECTOR_WRITE_QUEUE_URL, or make the queue with `memoryctl provision apply queue`",
    False,
)
_DENIED: Final = Fault(
    "the AWS credentials may not. Writing needs sqs:SendMessage on the queue, the worker sqs:ReceiveMessage and sqs:DeleteMessage, "
    "`memoryctl provision` sqs:CreateQueue, sqs:GetQueueUrl, sqs:GetQueueAttributes, sqs:SetQueueAttributes, sqs:ListQueueTags and "
    "sqs:TagQueue",
    False,
)
_FAULTS: Final = {
    "QueueDoesNotExist": _ABSENT,
    "NonExistentQueue": _ABSENT,
    "AccessDenied": _DENIED,
    "AccessDeniedException": _DENIED,
    "InvalidAddress": Fault("VECTOR_WRITE_QUEUE_URL is no queue's URL", False),
    "UnsupportedOperation": Fault("the queue does not do that; name a standard queue, not a FIFO one", False),
    "OverLimit": Fault("too many messages are in flight", True),
    "RequestThrottled": Fault("AWS throttles the calls", True),
    "QueueDeletedRecently": Fault("a queue of this name was deleted less than 60 s ago. Wait, and repeat", True),
    "QueueNameExists": Fault("another run has made the queue at this moment. Repeat the command", True),
}


SQS: Final = aws.Service(
    "sqs",
    "SQS",
    needs="A queue in SQS",
    region="The AWS region of the queue is not known. Set AWS_REGION, or use the queue's own URL.",
    place="AWS_REGION is wrong",
    certificate="the host in VECTOR_WRITE_QUEUE_URL",
    reach="VECTOR_WRITE_QUEUE_URL, or the region (AWS_REGION) and AWS_ENDPOINT_URL_SQS where that is not set",
    malformed="VECTOR_WRITE_QUEUE_URL is no queue's URL",
    faults=_FAULTS,
)


class SqsBroker:
    """One queue."""

    def __init__(self, client: Any, url: str) -> None:
        self._client = client
        self._url = url

    async def send(self, bodies: Sequence[bytes]) -> int:
        entries = [{"Id": str(place), "MessageBody": body.decode()} for place, body in enumerate(bodies[:MESSAGES])]
        answer = await call(
            "take a message", partial(self._client.send_message_batch, QueueUrl=self._url, Entries=entries)
        )
        return len(answer.get("Successful", ()))

    async def receive(self, seconds: int) -> list[Received]:
        ask = partial(
            self._client.receive_message, QueueUrl=self._url, MaxNumberOfMessages=MESSAGES, WaitTimeSeconds=seconds
        )
        answer = await call("give its messages", ask)
        return [Received(message["ReceiptHandle"], message["Body"].encode()) for message in answer.get("Messages", ())]

    async def acknowledge(self, receipts: Sequence[str]) -> None:
        entries = [{"Id": str(place), "ReceiptHandle": receipt} for place, receipt in enumerate(receipts)]
        answer = await call(
            "delete a message", partial(self._client.delete_message_batch, QueueUrl=self._url, Entries=entries)
        )
        if failed := answer.get("Failed"):
            raise DependencyUnavailable(f"SQS did not delete {len(failed)} of {len(entries)} messages.")

    async def close(self) -> None:
        self._client.close()


async def open_sqs(settings: Settings, url: str) -> BrokerNotifier:
    """The notifier on a queue. Raises UsageError, PolicyRefused."""
    client = await asyncio.to_thread(connect, settings, url)
    return BrokerNotifier("SQS", SqsBroker(client, url))


def connect(settings: Settings, url: str | None = None) -> Any:
    """A boto3 client of SQS for this queue, or for AWS's own region and endpoint; with AWS's own chain of credentials.

    Reads files. Raises UsageError and PolicyRefused.
    """
    endpoint, region = (None, None) if url is None else place_of(settings, url)
    return aws.open_client(
        SQS,
        endpoint=endpoint,
        region=region,
        connect_timeout=CONNECT,
        read_timeout=LONG_POLL + READ,
        retries={"total_max_attempts": 2, "mode": "standard"},
    )


def place_of(settings: Settings, url: str) -> tuple[str, str | None]:
    """(endpoint, region) of a queue's URL, the region where the URL names one. Raises UsageError, PolicyRefused."""
    service_url("VECTOR_WRITE_QUEUE_URL", url, settings)
    parts = urlsplit(url)
    name = parts.path.rpartition("/")[2]
    if not re.fullmatch(r"[A-Za-z0-9_-]{1,80}(\.fifo)?", name):
        raise UsageError("VECTOR_WRITE_QUEUE_URL names no queue: it is https://sqs.REGION.amazonaws.com/ACCOUNT/NAME.")
    if name.endswith(".fifo"):
        raise UsageError(
            "VECTOR_WRITE_QUEUE_URL is a FIFO queue. The order of its messages is of no use here and makes them slow: name a standard "
            "queue; `memoryctl provision apply queue` makes one."
        )
    found = _REGION.search(parts.hostname or "")
    return f"{parts.scheme}://{parts.netloc}", (found[1] or found[2]) if found else None


async def call(what: str, function: Callable[[], T]) -> T:
    """What ``function`` returns, from a thread that nobody waits for at the end: a long poll must not hold a process up.

    Raises DependencyUnavailable where it may pass by itself, else UsageError.
    """

    def refused(fault: Fault) -> Exception:
        return (DependencyUnavailable if fault.passing else UsageError)(f"SQS did not {what}: {fault.text}.")

    return await _in_daemon(lambda: aws.called(SQS, function, refused))


async def _in_daemon(function: Callable[[], T]) -> T:
    loop = asyncio.get_running_loop()
    done: asyncio.Future[T] = loop.create_future()

    def resolve(result: T | None, error: BaseException | None) -> None:
        if done.done():  # cancelled: nobody waits any more
            return
        if error is not None:
            done.set_exception(error)
        else:
            done.set_result(result)  # type: ignore[arg-type]  # None where that is what T is

    def work() -> None:
        result, error = None, None
        try:
            result = function()
        except Exception as caught:  # noqa: BLE001 - handed on to the waiter
            error = caught
        with contextlib.suppress(RuntimeError):  # the loop is closed: the process ends
            loop.call_soon_threadsafe(resolve, result, error)

    threading.Thread(target=work, name="sqs", daemon=True).start()
    return await done
