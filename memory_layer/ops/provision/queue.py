"""`memoryctl provision plan / apply queue`: the queue that wakes the workers, in Amazon SQS or Google Pub/Sub, with its dead letters.

A plan reads only. What is missing is made; what is there and differs is a finding for a person, as it may be like that on purpose.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

from memory_layer.config import Settings
from memory_layer.errors import UsageError
from memory_layer.ops.report import Finding
from memory_layer.stores.doorbells import pubsub, sqs

Kind = Literal["sqs", "pubsub"]

# A ring is worth nothing after the workers' own look, 5 s later: what a dead worker held comes again soon, and what nobody
# fetches is gone before it piles up. Pub/Sub keeps messages for ten minutes at least.
LEASE, RETENTION = 30, 600  # seconds
MOST_RECEIPTS = 5
DEAD_RETENTION = 14 * 86_400  # seconds


class Queue(NamedTuple):
    """How things stand, what was made to get there, a line each, and what VECTOR_WRITE_QUEUE_URL is to be once all is there.

    A finding that fails has the evidence ``state``: ``missing`` is what apply makes, ``drift`` what it leaves to a person.
    """

    findings: list[Finding]
    made: list[str]
    url: str | None


class Target(NamedTuple):
    """Where the queue is or will be. ``url``: VECTOR_WRITE_QUEUE_URL, if it is set."""

    kind: Kind
    name: str
    url: str | None
    place: pubsub.Place | None  # for Pub/Sub
    labels: Mapping[str, str]


def target(settings: Settings, kind: Kind | None = None, project: str | None = None) -> Target:
    """What the settings and options name. Raises UsageError, PolicyRefused."""
    url = settings.vector_write_queue_url
    if url is not None:
        said: Kind = "pubsub" if url.startswith("pubsub://") else "sqs"
        if kind not in (None, said):
            raise UsageError(
                f"--broker {kind}: VECTOR_WRITE_QUEUE_URL names a queue of the other kind. Unset one of them."
            )
        kind = said
    if kind is None:
        raise UsageError(
            "VECTOR_WRITE_QUEUE_URL is not set, and without a queue workers poll Postgres. For a queue say --broker sqs or --broker "
            "pubsub."
        )
    name = f"kernel-memory-vectors-{settings.service_env}"
    labels = {"application": "memory-layer", "purpose": "vector-queue", "service-env": settings.service_env}
    if kind == "sqs":
        if url is not None:
            sqs.place_of(settings, url)
            name = url.rpartition("/")[2]
        return Target(kind, name, url, None, labels)
    if url is None and project is None:
        raise UsageError("--broker pubsub needs --project, the Google Cloud project.")
    place = pubsub.parse(url or f"pubsub://{project}/{name}/{name}-workers")
    if project not in (None, place.project):
        raise UsageError(f"--project {project}: VECTOR_WRITE_QUEUE_URL names the project {place.project}.")
    return Target(kind, place.topic, url, place, labels)


async def plan(settings: Settings, kind: Kind | None = None, project: str | None = None) -> Queue:
    """How the queue stands. Raises UsageError, PolicyRefused, and DependencyUnavailable where the broker does not answer."""
    return await _run(settings, kind, project, make=False)


async def apply(settings: Settings, kind: Kind | None = None, project: str | None = None) -> Queue:
    """Make what is missing. Repeating it makes nothing."""
    return await _run(settings, kind, project, make=True)


async def _run(settings: Settings, kind: Kind | None, project: str | None, *, make: bool) -> Queue:
    at = target(settings, kind, project)
    if at.place is None:
        from memory_layer.ops.provision import queue_sqs

        return await queue_sqs.run(settings, at, make=make)
    from memory_layer.ops.provision import queue_pubsub

    return await queue_pubsub.run(settings, at, at.place, make=make)


def right(id: str, finding: str) -> Finding:
    """It is as it should be."""
    return Finding(id, "error", "pass", finding)


def missing(id: str, finding: str, hint: str = "memoryctl provision apply queue makes it.") -> Finding:
    """apply makes it."""
    return Finding(id, "error", "fail", finding, hint, {"state": "missing"})


def drift(id: str, finding: str, hint: str, **evidence: Any) -> Finding:
    """It differs, and is left to a person."""
    return Finding(id, "error", "fail", finding, hint, {"state": "drift", **evidence})


def compared(id: str, name: str, wanted: Mapping[str, Any], found: Mapping[str, Any], hint: str) -> Finding:
    """Whether settings are what they should be; those that differ are in the evidence."""
    wrong = {key: found.get(key) for key, value in wanted.items() if found.get(key) != value}
    if not wrong:
        return right(id, f"{name} has its settings.")
    told = ", ".join(
        f"{key} {value if value is not None else 'unset'} (not {wanted[key]})" for key, value in wrong.items()
    )
    return drift(id, f"{name} has {told}.", hint, found=wrong, wanted={key: wanted[key] for key in wrong})
