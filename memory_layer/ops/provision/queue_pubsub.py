"""The queue in Google Pub/Sub: a topic with the workers' subscription, and the same for its dead letters."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from typing import Any

from memory_layer.config import Settings
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
from memory_layer.stores.doorbells import pubsub
from memory_layer.stores.doorbells.pubsub import ASK_SECONDS, Clients, Place, subscription_path, topic_path

_ASK = {"retry": None, "timeout": ASK_SECONDS}


async def run(settings: Settings, at: Target, place: Place, *, make: bool) -> Queue:
    """As ``queue.plan`` and ``queue.apply``."""
    clients = await pubsub.connect(settings)
    try:
        return await _run(clients, at, place, make)
    finally:
        await clients.close()


async def _run(clients: Clients, at: Target, place: Place, make: bool) -> Queue:
    made: list[str] = []
    findings: list[Finding] = []
    topic, dead = topic_path(place.project, place.topic), topic_path(place.project, f"{place.topic}-dead")
    plain = {"expiration_policy": {}, "labels": dict(at.labels)}  # an empty policy: it never expires
    # The dead letters first: a message that is sent to a topic without a subscription is lost.
    wanted: list[tuple[str, str, dict[str, Any]]] = [
        (
            "dead.",
            dead,
            plain
            | {
                "name": subscription_path(place.project, f"{place.topic}-dead-letters"),
                "topic": dead,
                "ack_deadline_seconds": LEASE,
                "message_retention_duration": dt.timedelta(seconds=DEAD_RETENTION),
            },
        ),
        (
            "",
            topic,
            plain
            | {
                "name": subscription_path(place.project, place.subscription),
                "topic": topic,
                "ack_deadline_seconds": LEASE,
                "message_retention_duration": dt.timedelta(seconds=RETENTION),
                "dead_letter_policy": {"dead_letter_topic": dead, "max_delivery_attempts": MOST_RECEIPTS},
            },
        ),
    ]
    complete = True
    for part, name, subscription in wanted:
        findings += await _topic(clients, f"queue.pubsub.{part}topic", name, at.labels, made, make)
        found = await _subscription(clients, subscription, made, make)
        complete = complete and found is not None
        findings += _judge(f"queue.pubsub.{part}subscription", subscription, found)
    findings.append(_permission(place, dead))
    return Queue(findings, made, place.url if complete else None)


async def _topic(
    clients: Clients, id: str, name: str, labels: Mapping[str, str], made: list[str], make: bool
) -> list[Finding]:
    ask = clients.publisher
    found = await pubsub.found("describe the topic", ask.get_topic(request={"topic": name}, **_ASK))
    if found is None and make:
        create = ask.create_topic(request={"name": name, "labels": dict(labels)}, **_ASK)
        found = await pubsub.call("make the topic", create)
        made.append(f"Pub/Sub topic {name}")
    if found is None:
        return [missing(f"{id}.exists", f"There is no topic {name}.")]
    lacking = [label for label in labels if label not in found.labels]
    if lacking and make:
        changed = {"name": name, "labels": dict(found.labels) | {label: labels[label] for label in lacking}}
        request = {"topic": changed, "update_mask": {"paths": ["labels"]}}
        found = await pubsub.call("label the topic", ask.update_topic(request=request, **_ASK))
        made.append(f"labels of {name}: {', '.join(lacking)}")
    return [right(f"{id}.exists", f"There is the topic {name}."), _labels(f"{id}.labels", name, labels, found)]


async def _subscription(clients: Clients, wanted: dict[str, Any], made: list[str], make: bool) -> Any:
    ask, name = clients.subscriber, wanted["name"]
    describe = ask.get_subscription(request={"subscription": name}, **_ASK)
    found: Any = await pubsub.found("describe the subscription", describe)
    if not make:
        return found
    if found is None:
        found = await pubsub.call("make the subscription", ask.create_subscription(request=wanted, **_ASK))
        made.append(f"Pub/Sub subscription {name}")
    lacking = [label for label in wanted["labels"] if label not in found.labels]
    changed: dict[str, Any] = {}
    if lacking:
        changed["labels"] = dict(found.labels) | {label: wanted["labels"][label] for label in lacking}
    if "dead_letter_policy" in wanted and not found.dead_letter_policy.dead_letter_topic:
        changed["dead_letter_policy"] = wanted["dead_letter_policy"]
    if changed:
        request = {"subscription": {"name": name, **changed}, "update_mask": {"paths": list(changed)}}
        found = await pubsub.call("change the subscription", ask.update_subscription(request=request, **_ASK))
        made.append(f"{' and '.join(changed)} of {name}")
    return found


def _judge(id: str, wanted: dict[str, Any], found: Any) -> list[Finding]:
    name = wanted["name"]
    if found is None:
        return [missing(f"{id}.exists", f"There is no subscription {name}.")]
    findings = [right(f"{id}.exists", f"There is the subscription {name}.")]
    if found.topic != wanted["topic"]:
        hint = "The topic of a subscription cannot be changed: delete it, and run apply again, or name another in VECTOR_WRITE_QUEUE_URL."
        findings.append(drift(f"{id}.topic", f"{name} is one of {found.topic}.", hint))
    seconds = int(wanted["message_retention_duration"].total_seconds())
    never, pull = "expiration never", "delivery by pull"
    facts = {
        "ack deadline": found.ack_deadline_seconds,
        "retention": int(found.message_retention_duration.total_seconds()),
        never: not (found.expiration_policy and found.expiration_policy.ttl),
        pull: not (found.push_config.push_endpoint or found.bigquery_config.table or found.cloud_storage_config.bucket),
        "filter": found.filter,
        "ordering": found.enable_message_ordering,
    }
    right_ones = {"ack deadline": LEASE, "retention": seconds, never: True, pull: True, "filter": "", "ordering": False}
    hint = (
        f"If that is not on purpose, run: gcloud pubsub subscriptions update {name} --ack-deadline={LEASE} "
        f"--message-retention-duration={seconds}s --expiration-period=never. Filter and ordering cannot be changed: delete it, and run "
        "apply again."
    )
    findings += [
        compared(f"{id}.settings", name, right_ones, facts, hint),
        _labels(f"{id}.labels", name, wanted["labels"], found),
    ]
    if "dead_letter_policy" in wanted:
        policy = found.dead_letter_policy
        if not policy.dead_letter_topic:
            findings.append(missing(f"{id}.dead-letters", f"{name} sends nothing to dead letters."))
        else:
            facts = {
                "dead_letter_topic": policy.dead_letter_topic,
                "max_delivery_attempts": policy.max_delivery_attempts,
            }
            told = wanted["dead_letter_policy"]
            hint = (
                f"If that is not on purpose, run: gcloud pubsub subscriptions update {name} "
                f"--dead-letter-topic={told['dead_letter_topic']} --max-delivery-attempts={told['max_delivery_attempts']}"
            )
            findings.append(compared(f"{id}.dead-letters", name, told, facts, hint))
    return findings


def _labels(id: str, name: str, labels: Mapping[str, str], found: Any) -> Finding:
    lacking = [label for label in labels if label not in found.labels]
    if lacking:
        return missing(id, f"{name} lacks the labels {', '.join(lacking)}.", "apply adds them.")
    return compared(id, name, labels, dict(found.labels), "Correct its labels, if they are not meant to be so.")


def _permission(place: Place, dead: str) -> Finding:
    """Whose account that is cannot be asked of Pub/Sub, and the grant is an administrator's to make."""
    agent = f"service-PROJECT_NUMBER@gcp-sa-pubsub.iam.gserviceaccount.com (of {place.project})"
    subscription = subscription_path(place.project, place.subscription)
    return Finding(
        "queue.pubsub.dead.permission",
        "info",
        "skip",
        f"Dead letters reach {dead} only where Pub/Sub's own account {agent} may publish there and acknowledge in {subscription}; it was "
        "not looked at.",
        f"gcloud pubsub topics add-iam-policy-binding {dead} --role=roles/pubsub.publisher --member=serviceAccount:... and gcloud pubsub "
        f"subscriptions add-iam-policy-binding {subscription} --role=roles/pubsub.subscriber --member=serviceAccount:...",
    )
