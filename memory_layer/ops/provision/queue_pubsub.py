"""The queue in Google Pub/Sub: a topic with the workers' subscription, and the same for its dead letters."""

from __future__ import annotations

import datetime as dt
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

from memory_layer.config import Settings
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
from memory_layer.stores.notifiers import pubsub
from memory_layer.stores.notifiers.pubsub import ASK_SECONDS, Clients, PubsubUrl, subscription_path, topic_path

_ASK: Final = {"retry": None, "timeout": ASK_SECONDS}


async def examine(survey: Survey, settings: Settings, at: Target, place: PubsubUrl) -> None:
    """As ``queue.examine``."""
    clients = await pubsub.connect(settings)
    try:
        await _examine(survey, clients, at, place)
    finally:
        await clients.close()


async def _examine(survey: Survey, clients: Clients, at: Target, place: PubsubUrl) -> None:
    topic, dead = topic_path(place.project, place.topic), topic_path(place.project, f"{place.topic}-dead")
    plain = {"expiration_policy": {}, "labels": dict(at.labels), "ack_deadline_seconds": LEASE}  # no policy: no expiry
    of_dead = plain | {
        "name": subscription_path(place.project, f"{place.topic}-dead-letters"),
        "topic": dead,
        "message_retention_duration": dt.timedelta(seconds=DEAD_RETENTION),
    }
    of_topic = plain | {
        "name": subscription_path(place.project, place.subscription),
        "topic": topic,
        "message_retention_duration": dt.timedelta(seconds=RETENTION),
        "dead_letter_policy": {"dead_letter_topic": dead, "max_delivery_attempts": MAX_RECEIPTS},
    }
    # The dead letters first: a message that is sent to a topic without a subscription is lost.
    complete = True
    for part, name, wanted in (("dead.", dead, of_dead), ("", topic, of_topic)):
        await _topic(survey, clients, f"queue.pubsub.{part}topic", name, at.labels)
        complete = await _subscription(survey, clients, f"queue.pubsub.{part}subscription", wanted) and complete
    _permission(survey, place, dead)
    if complete:
        survey.settings[URL] = place.url


async def _topic(survey: Survey, clients: Clients, id: str, name: str, labels: Mapping[str, str]) -> None:
    ask = clients.publisher

    async def make(_: Any) -> Made[Any]:
        create = ask.create_topic(request={"name": name, "labels": dict(labels)}, **_ASK)
        return Made(await pubsub.call("make the topic", create), (f"Pub/Sub topic {name}",))

    async def label(all_of_them: dict[str, str]) -> Any:
        request = {"topic": {"name": name, "labels": all_of_them}, "update_mask": {"paths": ["labels"]}}
        return await pubsub.call("label the topic", ask.update_topic(request=request, **_ASK))

    found = await survey.check(
        Check(
            id=f"{id}.exists",
            source=QUEUE,
            look=lambda: pubsub.found("describe the topic", ask.get_topic(request={"topic": name}, **_ASK)),
            fits=present,
            says=lambda topic: f"There is {'no' if topic is None else 'the'} topic {name}.",
            make=make,
            hint=MAKES,
        )
    )
    if found is not None:
        await survey.check(_labels(f"{id}.labels", name, labels, dict(found.labels), label))


async def _subscription(survey: Survey, clients: Clients, id: str, wanted: dict[str, Any]) -> bool:
    """Whether it is there."""
    ask, name = clients.subscriber, wanted["name"]

    async def make(_: Any) -> Made[Any]:
        create = ask.create_subscription(request=wanted, **_ASK)
        return Made(await pubsub.call("make the subscription", create), (f"Pub/Sub subscription {name}",))

    async def change(setting: str, value: Any) -> Any:
        request = {"subscription": {"name": name, setting: value}, "update_mask": {"paths": [setting]}}
        return await pubsub.call("change the subscription", ask.update_subscription(request=request, **_ASK))

    found = await survey.check(
        Check(
            id=f"{id}.exists",
            source=QUEUE,
            look=lambda: pubsub.found(
                "describe the subscription", ask.get_subscription(request={"subscription": name}, **_ASK)
            ),
            fits=present,
            says=lambda found: f"There is {'no' if found is None else 'the'} subscription {name}.",
            make=make,
            hint=MAKES,
        )
    )
    if found is None:
        return False
    hint = "The topic of a subscription cannot be changed: delete it, and run apply again, or name another in VECTOR_WRITE_QUEUE_URL."
    text = f"{name} is one of {found.topic}."
    await survey.check(known(f"{id}.topic", found.topic == wanted["topic"], text, hint))
    await survey.check(_settings(f"{id}.settings", name, wanted, found))
    labels = _labels(f"{id}.labels", name, wanted["labels"], dict(found.labels), lambda all_: change("labels", all_))
    await survey.check(labels)
    if "dead_letter_policy" in wanted:
        policy = wanted["dead_letter_policy"]
        await survey.check(
            _dead_letters(f"{id}.dead-letters", name, policy, found, lambda: change("dead_letter_policy", policy))
        )
    return True


def _settings(id: str, name: str, wanted: dict[str, Any], found: Any) -> Check[Mapping[str, Any]]:
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
    return settings_check(id, name, right_ones, facts, hint)


def _labels(
    id: str,
    name: str,
    labels: Mapping[str, str],
    found: Mapping[str, str],
    put: Callable[[dict[str, str]], Awaitable[Any]],
) -> Check[Mapping[str, Any]]:
    def lacks(found: Mapping[str, Any]) -> str:
        missing = lacking(labels, found)
        return f"lacks the labels {', '.join(missing)}" if missing else ""

    async def add(found: Mapping[str, Any]) -> Made[Mapping[str, Any]]:
        missing = lacking(labels, found)
        changed = await put({**found, **missing})
        return Made(dict(changed.labels), (f"labels of {name}: {', '.join(missing)}",))

    hint = "Correct its labels, if they are not meant to be so."
    return settings_check(id, name, labels, found, hint, lacks=lacks, add=add)


def _dead_letters(
    id: str, name: str, wanted: Mapping[str, Any], found: Any, put: Callable[[], Awaitable[Any]]
) -> Check[Mapping[str, Any]]:
    def facts(subscription: Any) -> dict[str, Any]:
        policy = subscription.dead_letter_policy
        return {
            "dead_letter_topic": policy.dead_letter_topic,
            "max_delivery_attempts": policy.max_delivery_attempts,
        }

    async def add(_: Mapping[str, Any]) -> Made[Mapping[str, Any]]:
        return Made(facts(await put()), (f"dead_letter_policy of {name}",))

    hint = (
        f"If that is not on purpose, run: gcloud pubsub subscriptions update {name} "
        f"--dead-letter-topic={wanted['dead_letter_topic']} --max-delivery-attempts={wanted['max_delivery_attempts']}"
    )
    return settings_check(
        id,
        name,
        wanted,
        facts(found),
        hint,
        lacks=lambda found: "" if found["dead_letter_topic"] else "sends nothing to dead letters",
        add=add,
        adds=MAKES,
    )


def _permission(survey: Survey, place: PubsubUrl, dead: str) -> None:
    """Whose account that is cannot be asked of Pub/Sub, and the grant is an administrator's to make."""
    agent = f"service-PROJECT_NUMBER@gcp-sa-pubsub.iam.gserviceaccount.com (of {place.project})"
    subscription = subscription_path(place.project, place.subscription)
    survey.note(
        "queue.pubsub.dead.permission",
        f"Dead letters reach {dead} only where Pub/Sub's own account {agent} may publish there and acknowledge in {subscription}; it was "
        "not looked at.",
        f"gcloud pubsub topics add-iam-policy-binding {dead} --role=roles/pubsub.publisher --member=serviceAccount:... and gcloud pubsub "
        f"subscriptions add-iam-policy-binding {subscription} --role=roles/pubsub.subscriber --member=serviceAccount:...",
    )
