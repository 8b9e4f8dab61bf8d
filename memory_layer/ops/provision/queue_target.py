"""How the queue that wakes the workers must be, in Amazon SQS and Google Pub/Sub alike."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final, Literal, NamedTuple

from memory_layer.config import Settings
from memory_layer.errors import UsageError
from memory_layer.ops.checks import Check, Made
from memory_layer.ops.provision.guide import QUEUE
from memory_layer.stores.notifiers import pubsub, sqs

Kind = Literal["sqs", "pubsub"]

URL: Final = "VECTOR_WRITE_QUEUE_URL"
MAKES: Final = "memoryctl provision apply queue makes it."
ADDS: Final = "apply adds them."

# A notification is of no use after the workers' own poll, 5 s later: what a dead worker held comes again soon, and messages that
# nobody fetches expire before they pile up. Pub/Sub keeps messages for ten minutes at least.
LEASE, RETENTION = 30, 600  # seconds
MAX_RECEIPTS = 5
DEAD_RETENTION = 14 * 86_400  # seconds


class Target(NamedTuple):
    """Where the queue is or will be. ``url``: VECTOR_WRITE_QUEUE_URL, if it is set."""

    kind: Kind
    name: str
    url: str | None
    place: pubsub.PubsubUrl | None  # for Pub/Sub
    labels: Mapping[str, str]


def target(settings: Settings, kind: Kind | None = None, project: str | None = None) -> Target:
    """What the settings and options name. Raises UsageError, PolicyRefused."""
    url = settings.vector_write_queue_url
    if url is not None:
        implied: Kind = "pubsub" if url.startswith("pubsub://") else "sqs"
        if kind not in (None, implied):
            raise UsageError(
                f"--broker {kind}: VECTOR_WRITE_QUEUE_URL names a queue of the other kind. Unset one of them."
            )
        kind = implied
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


def settings_check(
    id: str,
    name: str,
    wanted: Mapping[str, Any],
    found: Mapping[str, Any],
    hint: str,
    *,
    lacks: Callable[[Mapping[str, Any]], str] = lambda _: "",
    add: Callable[[Mapping[str, Any]], Awaitable[Made[Mapping[str, Any]]]] | None = None,
    adds: str = ADDS,
) -> Check[Mapping[str, Any]]:
    """Whether settings are what they should be; those that differ are in the evidence. ``lacks``: what is not set at all, in words, which
    ``add`` sets."""

    def wrong(found: Mapping[str, Any]) -> dict[str, Any]:
        return {key: found.get(key) for key, value in wanted.items() if found.get(key) != value}

    def says(found: Mapping[str, Any]) -> str:
        if words := lacks(found):
            return f"{name} {words}."
        if not (differs := wrong(found)):
            return f"{name} has its settings."
        words = ", ".join(
            f"{key} {value if value is not None else 'unset'} (not {wanted[key]})" for key, value in differs.items()
        )
        return f"{name} has {words}."

    def evidence(found: Mapping[str, Any]) -> dict[str, Any]:
        differs = {} if lacks(found) else wrong(found)
        return {"found": differs, "wanted": {key: wanted[key] for key in differs}} if differs else {}

    return Check(
        id=id,
        source=QUEUE,
        look=lambda: found,
        fits=lambda found: not wrong(found),
        says=says,
        hint=lambda found: adds if lacks(found) else hint,
        make=add,
        makes=lambda found: bool(lacks(found)),
        evidence=evidence,
    )


def lacking(wanted: Mapping[str, str], found: Mapping[str, Any]) -> dict[str, str]:
    """The labels that are not there at all, whatever their value should be."""
    return {label: value for label, value in wanted.items() if label not in found}
