"""The queue in Amazon SQS: a standard queue, its dead-letter queue, and what ties them together."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from functools import partial
from typing import Any, Final

from memory_layer.config import Settings
from memory_layer.errors import DependencyUnavailable
from memory_layer.ops.checks import Check, Made, Survey, known, present
from memory_layer.ops.provision.guide import QUEUE
from memory_layer.ops.provision.queue_target import (
    DEAD_RETENTION,
    LEASE,
    MAKES,
    MAX_RECEIPTS,
    RETENTION,
    URL,
    Target,
    lacking,
    settings_check,
)
from memory_layer.stores.notifiers import sqs

VISIBLE_TRIES, VISIBLE_PAUSE = 30, 0.3  # seconds: SQS shows a new queue everywhere a moment after it was made
_QUEUE: Final = {
    "VisibilityTimeout": str(LEASE),
    "MessageRetentionPeriod": str(RETENTION),
    "ReceiveMessageWaitTimeSeconds": "20",
    "MaximumMessageSize": "1024",  # ids of rows fit, a vector or a text does not
}
_DEAD: Final = {"MessageRetentionPeriod": str(DEAD_RETENTION)}
_ENCRYPTED: Final = {"SqsManagedSseEnabled": "true"}


async def examine(survey: Survey, settings: Settings, at: Target) -> None:
    """As ``queue.examine``."""
    client = await asyncio.to_thread(sqs.connect, settings, at.url)
    try:
        await _examine(survey, client, at)
    finally:
        client.close()


async def _examine(survey: Survey, client: Any, at: Target) -> None:
    dead_name = f"{at.name}-dead"
    dead = await survey.check(_exists("queue.sqs.dead.exists", client, dead_name, None, _DEAD | _ENCRYPTED, at.labels))
    if dead is not None:
        hint = _command(dead["QueueUrl"], _DEAD)
        await survey.check(settings_check("queue.sqs.dead.settings", dead_name, _DEAD, dead, hint))
        await survey.check(_encryption("queue.sqs.dead.encryption", dead_name, dead))
        await survey.check(_tags("queue.sqs.dead.tags", client, dead_name, dead, at.labels))
        await survey.check(_empty(dead_name, dead))
    redrive = {} if dead is None else {"RedrivePolicy": _redrive(dead)}
    queue = await survey.check(
        _exists("queue.sqs.exists", client, at.name, at.url, _QUEUE | _ENCRYPTED | redrive, at.labels)
    )
    if queue is None:
        return
    survey.settings[URL] = str(queue["QueueUrl"])
    hint = _command(queue["QueueUrl"], _QUEUE)
    await survey.check(settings_check("queue.sqs.settings", at.name, _QUEUE, queue, hint))
    await survey.check(_encryption("queue.sqs.encryption", at.name, queue))
    await survey.check(_tags("queue.sqs.tags", client, at.name, queue, at.labels))
    if at.url is not None:
        await survey.check(_named(at, queue))
    if dead is not None or not queue.get("RedrivePolicy"):
        await survey.check(_dead_letters(client, at.name, queue, dead))


async def _look(client: Any, name: str, url: str | None) -> dict[str, Any] | None:
    """A queue's attributes with its QueueUrl and Tags; None when there is no such queue."""

    def ask() -> dict[str, Any] | None:
        try:
            found = url or client.get_queue_url(QueueName=name)["QueueUrl"]
            attributes = dict(client.get_queue_attributes(QueueUrl=found, AttributeNames=["All"])["Attributes"])
            tags = dict(client.list_queue_tags(QueueUrl=found).get("Tags", {}))
        except client.exceptions.QueueDoesNotExist:
            return None
        return attributes | {"QueueUrl": found, "Tags": tags}

    return await sqs.call(f"describe {name}", ask)


async def _make(client: Any, name: str, attributes: Mapping[str, str], tags: Mapping[str, str]) -> dict[str, Any]:
    create = partial(client.create_queue, QueueName=name, Attributes=dict(attributes), tags=dict(tags))
    url = str((await sqs.call(f"make {name}", create))["QueueUrl"])
    for _ in range(VISIBLE_TRIES):
        if (made := await _look(client, name, url)) is not None:
            return made
        await asyncio.sleep(VISIBLE_PAUSE)
    raise DependencyUnavailable(f"SQS has made {name} and does not show it. Repeat the command.")


def _redrive(dead: Mapping[str, Any]) -> str:
    return json.dumps({"deadLetterTargetArn": dead["QueueArn"], "maxReceiveCount": MAX_RECEIPTS})


def _exists(
    id: str, client: Any, name: str, url: str | None, attributes: Mapping[str, str], labels: Mapping[str, str]
) -> Check[dict[str, Any] | None]:
    async def make(_: Any) -> Made[dict[str, Any] | None]:
        made = await _make(client, name, attributes, labels)
        return Made(made, (f"SQS queue {made['QueueArn']}",))

    return Check(
        id=id,
        source=QUEUE,
        look=lambda: _look(client, name, url),
        fits=present,
        says=lambda queue: f"{name} is {queue['QueueArn']}." if queue else f"There is no queue {name}.",
        make=make,
        hint=MAKES,
    )


def _encryption(id: str, name: str, queue: Mapping[str, Any]) -> Check[bool]:
    whose = "KMS" if queue.get("KmsMasterKeyId") else "SQS" if queue.get("SqsManagedSseEnabled") == "true" else None
    text = f"{name} is encrypted with a key of {whose}." if whose else f"{name} is not encrypted."
    return known(id, whose is not None, text, _command(queue["QueueUrl"], _ENCRYPTED))


def _tags(
    id: str, client: Any, name: str, queue: Mapping[str, Any], labels: Mapping[str, str]
) -> Check[Mapping[str, Any]]:
    async def add(found: Mapping[str, Any]) -> Made[Mapping[str, Any]]:
        tags = lacking(labels, found)
        await sqs.call("set its tags", partial(client.tag_queue, QueueUrl=queue["QueueUrl"], Tags=tags))
        return Made({**found, **tags}, (f"tags of {queue['QueueArn']}: {', '.join(tags)}",))

    def lacks(found: Mapping[str, Any]) -> str:
        tags = lacking(labels, found)
        return f"lacks the tags {', '.join(tags)}" if tags else ""

    hint = "Correct its tags, if they are not meant to be so."
    return settings_check(id, name, labels, queue["Tags"], hint, lacks=lacks, add=add)


def _empty(name: str, dead: Mapping[str, Any]) -> Check[bool]:
    waiting = int(dead.get("ApproximateNumberOfMessages", 0))
    text = f"{name} holds {waiting} messages: workers received each {MAX_RECEIPTS} times and could not delete it."
    hint = "Look at the workers' logs and at their permission sqs:DeleteMessage, then purge it: no row depends on it."
    evidence = {"messages": waiting} if waiting else {}
    empty = f"{name} is empty."
    return known(
        "queue.sqs.dead.empty", not waiting, text if waiting else empty, hint, level="warning", evidence=evidence
    )


def _named(at: Target, queue: Mapping[str, Any]) -> Check[bool]:
    url = str(queue["QueueUrl"])
    text = f"{URL} names {'' if url == at.url else 'another queue than '}{at.name}."
    hint = f"Set {URL}={url}, or use the credentials of the account that it names."
    return known("queue.sqs.url", url == at.url, text, hint, source=QUEUE)


def _dead_letters(
    client: Any, name: str, queue: Mapping[str, Any], dead: Mapping[str, Any] | None
) -> Check[Mapping[str, Any]]:
    wanted = {} if dead is None else json.loads(_redrive(dead))
    found = json.loads(queue.get("RedrivePolicy") or "{}")
    if found:
        found["maxReceiveCount"] = int(found.get("maxReceiveCount", 0))  # some answer with text

    async def add(_: Mapping[str, Any]) -> Made[Mapping[str, Any]]:
        policy = {"RedrivePolicy": json.dumps(wanted)}
        change = partial(client.set_queue_attributes, QueueUrl=queue["QueueUrl"], Attributes=policy)
        await sqs.call("set RedrivePolicy", change)
        return Made(wanted, (f"RedrivePolicy of {queue['QueueArn']}",))

    hint = "" if dead is None else _command(queue["QueueUrl"], {"RedrivePolicy": _redrive(dead)})
    return settings_check(
        "queue.sqs.redrive",
        name,
        wanted or {"deadLetterTargetArn": f"{name}-dead"},
        found,
        hint,
        lacks=lambda found: "" if found else "sends nothing to dead letters",
        add=add,
        adds=MAKES,
    )


def _command(url: str, attributes: Mapping[str, str]) -> str:
    as_json = json.dumps(dict(attributes), separators=(",", ":"))
    return f"If that is not on purpose, run: aws sqs set-queue-attributes --queue-url {url} --attributes '{as_json}'"
