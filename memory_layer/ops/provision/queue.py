"""`memoryctl provision plan / apply queue`: the queue that wakes the workers, in Amazon SQS or Google Pub/Sub, with its dead letters.

What is missing is made; what is there and differs is a finding for a person, as it may be like that on purpose.
"""

from __future__ import annotations

from memory_layer.config import Settings
from memory_layer.ops.checks import Survey
from memory_layer.ops.provision import queue_pubsub, queue_sqs
from memory_layer.ops.provision.queue_target import Target


async def examine(survey: Survey, settings: Settings, at: Target) -> None:
    """The queue; once all of it is there, ``survey.settings`` says what VECTOR_WRITE_QUEUE_URL is to be.

    Raises UsageError, PolicyRefused, and DependencyUnavailable where the broker does not answer.
    """
    if at.place is None:
        await queue_sqs.examine(survey, settings, at)
    else:
        await queue_pubsub.examine(survey, settings, at, at.place)
