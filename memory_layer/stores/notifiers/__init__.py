"""Notifiers: one Protocol (``stores/protocols.py``), one contract suite (``tests/contract/test_notifiers.py``).

Why a broker only notifies, and why its messages are acknowledged before the work: ``docs/decisions/0016-queues.md``.
"""

from __future__ import annotations

from memory_layer.config import Settings
from memory_layer.errors import UsageError
from memory_layer.stores.protocols import Notifier


async def open_notifier(settings: Settings) -> Notifier:
    """The notifier that VECTOR_WRITE_QUEUE_URL names; unset: workers poll Postgres.

    A broker that does not answer is opened too. Raises UsageError, PolicyRefused.
    """
    url = settings.vector_write_queue_url
    if url is None:
        from memory_layer.stores.notifiers.postgres import PollingNotifier

        return PollingNotifier()
    if url.startswith("pubsub://"):
        from memory_layer.stores.notifiers.pubsub import open_pubsub

        return await open_pubsub(settings, url)
    if url.startswith(("https://", "http://")):
        from memory_layer.stores.notifiers.sqs import open_sqs

        return await open_sqs(settings, url)
    raise UsageError(
        "VECTOR_WRITE_QUEUE_URL is neither the URL of an SQS queue (https://sqs.REGION.amazonaws.com/ACCOUNT/NAME) nor "
        "pubsub://PROJECT/TOPIC/SUBSCRIPTION. `memoryctl provision apply queue` makes a queue and prints its URL; unset, workers "
        "poll Postgres."
    )
