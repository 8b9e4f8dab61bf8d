"""The queue in Amazon SQS: a standard queue, its dead-letter queue, and what ties them together."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from functools import partial
from typing import Any, Final

from memory_layer.config import Settings
from memory_layer.errors import DependencyUnavailable
from memory_layer.ops.provision.queue import (
    DEAD_RETENTION,
    LEASE,
    MOST_RECEIPTS,
    RETENTION,
    Queue,
    Target,
    compared,
    drift,
    missing,
    right,
)
from memory_layer.ops.report import Finding
from memory_layer.stores.doorbells import sqs

VISIBLE_TRIES, VISIBLE_PAUSE = 30, 0.3  # seconds: SQS shows a new queue everywhere a moment after it was made
_QUEUE: Final = {
    "VisibilityTimeout": str(LEASE),
    "MessageRetentionPeriod": str(RETENTION),
    "ReceiveMessageWaitTimeSeconds": "20",
    "MaximumMessageSize": "1024",  # ids of rows fit, a vector or a text does not
}
_DEAD: Final = {"MessageRetentionPeriod": str(DEAD_RETENTION)}
_ENCRYPTED: Final = {"SqsManagedSseEnabled": "true"}


async def run(settings: Settings, at: Target, *, make: bool) -> Queue:
    """As ``queue.plan`` and ``queue.apply``."""
    client = await asyncio.to_thread(sqs.connect, settings, at.url)
    try:
        return await _run(client, at, make)
    finally:
        client.close()


async def _run(client: Any, at: Target, make: bool) -> Queue:
    made: list[str] = []
    dead_name = f"{at.name}-dead"
    dead = await _look(client, dead_name, None)
    if dead is None and make:
        dead = await _make(client, dead_name, _DEAD | _ENCRYPTED, at.labels)
        made.append(f"SQS queue {dead['QueueArn']}")
    queue = await _look(client, at.name, at.url)
    if queue is None and make and dead is not None:
        redrive = {"RedrivePolicy": _redrive(dead)}
        queue = await _make(client, at.name, _QUEUE | _ENCRYPTED | redrive, at.labels)
        made.append(f"SQS queue {queue['QueueArn']}")
    if make and queue is not None and dead is not None:
        made += await _tie(client, queue, dead, at.labels)
    findings = _judge_dead(dead_name, dead, at.labels) + _judge(at, queue, dead)
    return Queue(findings, made, None if queue is None else str(queue["QueueUrl"]))


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


async def _tie(client: Any, queue: dict[str, Any], dead: dict[str, Any], labels: Mapping[str, str]) -> list[str]:
    """Set what is not set at all; what is set otherwise stays."""
    made = []
    if not queue.get("RedrivePolicy"):
        policy = {"RedrivePolicy": _redrive(dead)}
        change = partial(client.set_queue_attributes, QueueUrl=queue["QueueUrl"], Attributes=policy)
        await sqs.call("set RedrivePolicy", change)
        queue |= policy
        made.append(f"RedrivePolicy of {queue['QueueArn']}")
    for owner in (queue, dead):
        lacking = {tag: value for tag, value in labels.items() if tag not in owner["Tags"]}
        if lacking:
            await sqs.call("set its tags", partial(client.tag_queue, QueueUrl=owner["QueueUrl"], Tags=lacking))
            owner["Tags"] |= lacking
            made.append(f"tags of {owner['QueueArn']}: {', '.join(lacking)}")
    return made


def _redrive(dead: Mapping[str, Any]) -> str:
    return json.dumps({"deadLetterTargetArn": dead["QueueArn"], "maxReceiveCount": MOST_RECEIPTS})


def _judge(at: Target, queue: dict[str, Any] | None, dead: dict[str, Any] | None) -> list[Finding]:
    if queue is None:
        return [missing("queue.sqs.exists", f"There is no queue {at.name}.")]
    findings = [
        right("queue.sqs.exists", f"{at.name} is {queue['QueueArn']}."),
        compared("queue.sqs.settings", at.name, _QUEUE, queue, _command(queue["QueueUrl"], _QUEUE)),
        _encryption("queue.sqs.encryption", at.name, queue),
        _tags("queue.sqs.tags", at.name, queue, at.labels),
    ]
    if at.url is not None and queue["QueueUrl"] != at.url:
        hint = f"Set VECTOR_WRITE_QUEUE_URL={queue['QueueUrl']}, or use the credentials of the account that it names."
        findings.append(drift("queue.sqs.url", f"VECTOR_WRITE_QUEUE_URL names another queue than {at.name}.", hint))
    policy = json.loads(queue.get("RedrivePolicy") or "{}")
    if not policy:
        findings.append(missing("queue.sqs.redrive", f"{at.name} sends nothing to dead letters."))
    elif dead is not None:
        found = policy | {"maxReceiveCount": int(policy.get("maxReceiveCount", 0))}  # some answer with text
        hint = _command(queue["QueueUrl"], {"RedrivePolicy": _redrive(dead)})
        findings.append(compared("queue.sqs.redrive", at.name, json.loads(_redrive(dead)), found, hint))
    return findings


def _judge_dead(name: str, dead: dict[str, Any] | None, labels: Mapping[str, str]) -> list[Finding]:
    if dead is None:
        return [missing("queue.sqs.dead.exists", f"There is no queue {name}.")]
    findings = [
        right("queue.sqs.dead.exists", f"{name} is {dead['QueueArn']}."),
        compared("queue.sqs.dead.settings", name, _DEAD, dead, _command(dead["QueueUrl"], _DEAD)),
        _encryption("queue.sqs.dead.encryption", name, dead),
        _tags("queue.sqs.dead.tags", name, dead, labels),
    ]
    waiting = int(dead.get("ApproximateNumberOfMessages", 0))
    if waiting:
        findings.append(
            Finding(
                "queue.sqs.dead.empty",
                "warning",
                "fail",
                f"{name} holds {waiting} messages: workers received each {MOST_RECEIPTS} times and could not delete it.",
                "Look at the workers' logs and at their permission sqs:DeleteMessage, then purge it: no row depends on it.",
                {"state": "drift", "messages": waiting},
            )
        )
    else:
        findings.append(right("queue.sqs.dead.empty", f"{name} is empty."))
    return findings


def _encryption(id: str, name: str, queue: Mapping[str, Any]) -> Finding:
    if queue.get("KmsMasterKeyId") or queue.get("SqsManagedSseEnabled") == "true":
        return right(id, f"{name} is encrypted with a key of {'KMS' if queue.get('KmsMasterKeyId') else 'SQS'}.")
    return drift(id, f"{name} is not encrypted.", _command(queue["QueueUrl"], _ENCRYPTED))


def _tags(id: str, name: str, queue: Mapping[str, Any], labels: Mapping[str, str]) -> Finding:
    lacking = [tag for tag in labels if tag not in queue["Tags"]]
    if lacking:
        return missing(id, f"{name} lacks the tags {', '.join(lacking)}.", "apply adds them.")
    return compared(id, name, labels, queue["Tags"], "Correct its tags, if they are not meant to be so.")


def _command(url: str, attributes: Mapping[str, str]) -> str:
    said = json.dumps(dict(attributes), separators=(",", ":"))
    return f"If that is not on purpose, run: aws sqs set-queue-attributes --queue-url {url} --attributes '{said}'"
