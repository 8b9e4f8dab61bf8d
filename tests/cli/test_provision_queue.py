"""`memoryctl provision plan / apply queue` on moto and on the stand-in for Pub/Sub: what is missing is made once, what differs is
told, and the queue that was made rings."""

from __future__ import annotations

import asyncio
import json
import sys
import uuid
from collections.abc import Callable, Iterator

import grpc
import pytest
from google import pubsub_v1 as api

from memory_layer import config
from memory_layer.cli import main
from memory_layer.stores.notifiers import open_notifier
from tests.support.key_services import assert_no_secrets
from tests.support.product import Product
from tests.support.pubsub_server import PubsubServer, running_pubsub
from tests.support.service import rows
from tests.support.sqs_server import SqsServer, running_sqs

Run = Callable[..., tuple[int, str, str]]
NAME = "kernel-memory-vectors-staging"
SQS, PUBSUB = ("--broker", "sqs"), ("--broker", "pubsub", "--project", "example-project")


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, aws: None) -> Run:
    monkeypatch.setenv("SERVICE_ENV", "staging")
    for name in ("DATABASE_URL", "VECTOR_WRITE_QUEUE_URL"):
        monkeypatch.delenv(name, raising=False)

    def call(*words: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            main(["provision", *words])
        out, err = capsys.readouterr()
        assert_no_secrets(out + err)
        return int(ended.value.code or 0), out, err

    return call


@pytest.fixture
def sqs(aws: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[SqsServer]:
    with running_sqs() as server:
        monkeypatch.setenv("AWS_ENDPOINT_URL_SQS", server.endpoint)
        for url in (
            server.client().list_queues().get("QueueUrls", ())
        ):  # of another test: moto keeps them in this process
            server.client().delete_queue(QueueUrl=url)
        yield server


@pytest.fixture
def pubsub(monkeypatch: pytest.MonkeyPatch) -> Iterator[PubsubServer]:
    with running_pubsub() as server:
        monkeypatch.setenv("PUBSUB_EMULATOR_HOST", server.address)
        yield server


def statuses(out: str) -> dict[str, str]:
    """What each finding says: pass, missing, drift or skip."""
    findings = json.loads(out)["findings"]
    return {found["id"]: found["evidence"].get("state", found["status"]) for found in findings}


def made(out: str) -> list[str]:
    return list(json.loads(out)["facts"]["made"])


async def rings(url: str) -> bool:
    """Whether a ring through this queue is heard."""
    bell = await open_notifier(config.load({}, vector_write_queue_url=url))
    try:
        row = uuid.uuid4()
        bell.notify([row])
        return await bell.wait(20) == [row]
    finally:
        await bell.close()


# --- SQS


def test_a_queue_in_sqs_is_planned_made_and_then_there(run: Run, sqs: SqsServer) -> None:
    code, out, _ = run("plan", "queue", *SQS, "--json")
    assert code == 1
    assert statuses(out) == {"queue.sqs.dead.exists": "missing", "queue.sqs.exists": "missing"}
    assert json.loads(out)["VECTOR_WRITE_QUEUE_URL"] is None
    assert sqs.client().list_queues().get("QueueUrls") is None

    code, out, _ = run("apply", "queue", *SQS, "--yes", "--json")
    assert code == 0
    url = json.loads(out)["facts"]["VECTOR_WRITE_QUEUE_URL"]
    assert url.endswith(f"/{NAME}")
    assert [line.rpartition(":")[2] for line in made(out)][:2] == [f"{NAME}-dead", NAME]
    client = sqs.client()
    attributes = client.get_queue_attributes(QueueUrl=url, AttributeNames=["All"])["Attributes"]
    redrive = json.loads(attributes["RedrivePolicy"])
    assert (redrive["deadLetterTargetArn"].rpartition(":")[2], int(redrive["maxReceiveCount"])) == (f"{NAME}-dead", 5)
    assert (attributes["VisibilityTimeout"], attributes["SqsManagedSseEnabled"]) == ("30", "true")
    tags = {"application": "memory-layer", "purpose": "vector-queue", "service-env": "staging"}
    assert client.list_queue_tags(QueueUrl=url)["Tags"] == tags

    code, out, _ = run("plan", "queue", *SQS, "--json")
    assert (code, set(statuses(out).values())) == (0, {"pass"})
    code, out, _ = run("apply", "queue", *SQS, "--json")
    assert (code, made(out)) == (0, [])
    assert asyncio.run(rings(url))


def test_with_the_url_set_the_queue_that_it_names_is_meant(
    run: Run, sqs: SqsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AWS_ENDPOINT_URL_SQS")
    monkeypatch.setenv("VECTOR_WRITE_QUEUE_URL", f"{sqs.endpoint}/123456789012/rows")
    code, out, _ = run("apply", "queue", "--yes", "--json")
    assert (code, json.loads(out)["facts"]["VECTOR_WRITE_QUEUE_URL"]) == (0, f"{sqs.endpoint}/123456789012/rows")
    code, out, _ = run("plan", "queue", "--json")
    assert (code, set(statuses(out).values())) == (0, {"pass"})
    code, _, err = run("plan", "queue", "--broker", "pubsub")
    assert (code, "other kind" in err) == (2, True)


def test_what_differs_in_sqs_is_reported_and_left(run: Run, sqs: SqsServer) -> None:
    _, out, _ = run("apply", "queue", *SQS, "--yes", "--json")
    url = json.loads(out)["facts"]["VECTOR_WRITE_QUEUE_URL"]
    client = sqs.client()
    client.set_queue_attributes(
        QueueUrl=url,
        Attributes={
            "VisibilityTimeout": "5",
            "SqsManagedSseEnabled": "false",
            "RedrivePolicy": json.dumps(
                {
                    "deadLetterTargetArn": json.loads(
                        client.get_queue_attributes(QueueUrl=url, AttributeNames=["All"])["Attributes"]["RedrivePolicy"]
                    )["deadLetterTargetArn"],
                    "maxReceiveCount": 100,
                }
            ),
        },
    )
    client.tag_queue(QueueUrl=url, Tags={"service-env": "prod", "cost-centre": "7"})
    client.send_message(QueueUrl=f"{url}-dead", MessageBody="x")
    code, out, _ = run("plan", "queue", *SQS, "--json")
    drifted = {name for name, status in statuses(out).items() if status == "drift"}
    assert (code, drifted) == (
        1,
        {"queue.sqs.settings", "queue.sqs.encryption", "queue.sqs.redrive", "queue.sqs.tags", "queue.sqs.dead.empty"},
    )
    assert "aws sqs set-queue-attributes" in out
    code, out, _ = run("apply", "queue", *SQS, "--json")
    assert (code, made(out)) == (1, [])
    assert client.get_queue_attributes(QueueUrl=url, AttributeNames=["VisibilityTimeout"])["Attributes"] == {
        "VisibilityTimeout": "5"
    }


def test_a_queue_that_somebody_made_by_hand_gets_what_it_lacks(run: Run, sqs: SqsServer) -> None:
    client = sqs.client()
    url = client.create_queue(
        QueueName=NAME,
        Attributes={
            "VisibilityTimeout": "30",
            "MessageRetentionPeriod": "600",
            "ReceiveMessageWaitTimeSeconds": "20",
            "MaximumMessageSize": "1024",
        },
    )["QueueUrl"]
    code, out, _ = run("plan", "queue", *SQS, "--json")
    found = statuses(out)
    assert (code, found["queue.sqs.redrive"], found["queue.sqs.tags"]) == (1, "missing", "missing")
    code, out, _ = run("apply", "queue", *SQS, "--yes", "--json")
    assert (code, json.loads(out)["facts"]["VECTOR_WRITE_QUEUE_URL"]) == (0, url)
    assert any(line.startswith("RedrivePolicy") for line in made(out))
    assert run("plan", "queue", *SQS)[0] == 0


def test_a_poison_message_ends_among_the_dead_letters(run: Run, sqs: SqsServer) -> None:
    """One whose receivers die before they delete it, five times."""
    _, out, _ = run("apply", "queue", *SQS, "--yes", "--json")
    url = json.loads(out)["facts"]["VECTOR_WRITE_QUEUE_URL"]
    sqs.put(url, "poison")
    for _ in range(5):
        assert sqs.client().receive_message(QueueUrl=url, VisibilityTimeout=0, WaitTimeSeconds=0).get("Messages")
    assert sqs.client().receive_message(QueueUrl=url, WaitTimeSeconds=0).get("Messages") is None
    code, out, _ = run("plan", "queue", *SQS, "--json")
    assert (code, statuses(out)["queue.sqs.dead.empty"]) == (1, "drift")
    assert asyncio.run(rings(url))


def test_sqs_that_does_not_answer(run: Run, sqs: SqsServer) -> None:
    sqs.stop()
    code, _, err = run("plan", "queue", *SQS)
    assert code == 3
    assert "SQS did not describe" in err


def test_which_broker_must_be_named(run: Run) -> None:
    code, _, err = run("plan", "queue")
    assert (code, "--broker sqs" in err) == (2, True)
    code, _, err = run("apply", "queue", "--broker", "pubsub")
    assert (code, "--project" in err) == (2, True)
    code, _, err = run("apply", "queue", "--broker", "pubsub", "--project", "No Such Project")
    assert code == 2


# --- Pub/Sub


def test_a_queue_in_pubsub_is_planned_made_and_then_there(run: Run, pubsub: PubsubServer) -> None:
    code, out, _ = run("plan", "queue", *PUBSUB, "--json")
    assert code == 1
    assert {status for name, status in statuses(out).items() if name.endswith("exists")} == {"missing"}
    assert pubsub.topics == {}

    code, out, _ = run("apply", "queue", *PUBSUB, "--yes", "--json")
    assert code == 0
    url = json.loads(out)["facts"]["VECTOR_WRITE_QUEUE_URL"]
    assert url == f"pubsub://example-project/{NAME}/{NAME}-workers"
    assert set(pubsub.topics) == {f"projects/example-project/topics/{name}" for name in (NAME, f"{NAME}-dead")}
    settings = pubsub.subscriptions[f"projects/example-project/subscriptions/{NAME}-workers"].settings
    assert settings.dead_letter_policy.dead_letter_topic == f"projects/example-project/topics/{NAME}-dead"
    assert (settings.dead_letter_policy.max_delivery_attempts, settings.ack_deadline_seconds) == (5, 30)
    assert not settings.expiration_policy.ttl

    calls = len(pubsub.calls)
    code, out, _ = run("plan", "queue", *PUBSUB, "--json")
    assert (code, set(statuses(out).values())) == (0, {"pass", "skip"})
    code, out, _ = run("apply", "queue", *PUBSUB, "--json")
    assert (code, made(out)) == (0, [])
    assert {call[:3] for call in pubsub.calls[calls:]} == {"Get"}
    assert asyncio.run(rings(url))


def test_what_differs_in_pubsub_is_reported_and_left(run: Run, pubsub: PubsubServer) -> None:
    run("apply", "queue", *PUBSUB, "--yes")
    settings = pubsub.subscriptions[f"projects/example-project/subscriptions/{NAME}-workers"].settings
    settings.ack_deadline_seconds = 300
    settings.dead_letter_policy.max_delivery_attempts = 50
    pubsub.topics[f"projects/example-project/topics/{NAME}"].labels["service-env"] = "prod"
    calls = len(pubsub.calls)
    code, out, _ = run("plan", "queue", *PUBSUB, "--json")
    drifted = {name for name, status in statuses(out).items() if status == "drift"}
    assert (code, drifted) == (
        1,
        {
            "queue.pubsub.subscription.settings",
            "queue.pubsub.subscription.dead-letters",
            "queue.pubsub.topic.labels",
        },
    )
    code, out, _ = run("apply", "queue", *PUBSUB, "--json")
    assert (code, made(out)) == (1, [])
    assert {call[:3] for call in pubsub.calls[calls:]} == {"Get"}


def test_a_subscription_that_somebody_made_by_hand_gets_what_it_lacks(
    run: Run, pubsub: PubsubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    pubsub.make("example-project", "rows", "workers", ack_deadline_seconds=30)
    monkeypatch.setenv("VECTOR_WRITE_QUEUE_URL", "pubsub://example-project/rows/workers")
    code, out, _ = run("plan", "queue", "--json")
    found = statuses(out)
    assert (code, found["queue.pubsub.subscription.dead-letters"]) == (1, "missing")
    assert found["queue.pubsub.subscription.settings"] == "drift"  # kept for seven days, and it would expire
    code, out, _ = run("apply", "queue", "--yes", "--json")
    assert code == 1
    found = statuses(out)
    assert (found["queue.pubsub.subscription.dead-letters"], found["queue.pubsub.subscription.labels"]) == ("pass",) * 2
    other = api.Subscription(pubsub.subscriptions["projects/example-project/subscriptions/workers"].settings)
    other.topic = "projects/example-project/topics/rows-dead"
    pubsub.subscriptions["projects/example-project/subscriptions/workers"].settings = other
    _, out, _ = run("plan", "queue", "--json")
    assert statuses(out)["queue.pubsub.subscription.topic"] == "drift"


@pytest.mark.parametrize(
    ("answer", "code", "said"),
    [
        (grpc.StatusCode.PERMISSION_DENIED, 2, "roles/pubsub.editor"),
        (grpc.StatusCode.UNAVAILABLE, 3, "cannot be reached"),
        (grpc.StatusCode.UNAUTHENTICATED, 2, "credentials"),
    ],
)
def test_pubsub_that_refuses(run: Run, pubsub: PubsubServer, answer: grpc.StatusCode, code: int, said: str) -> None:
    pubsub.fail("GetTopic", answer)
    got, _, err = run("plan", "queue", *PUBSUB)
    assert (got, said in err) == (code, True)


def test_what_was_made_is_written_down(
    run: Run, pubsub: PubsubServer, database: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATABASE_URL", database("memory_app"))
    assert run("plan", "queue", *PUBSUB)[0] == 1
    assert run("apply", "queue", *PUBSUB, "--yes")[0] == 0
    found = rows(database("postgres"), "SELECT verb, exit_code, report FROM ops_runs ORDER BY started_at")
    assert [row[:2] for row in found] == [("provision-apply-queue", 0)]  # a plan only reads
    assert found[0][2]["facts"]["VECTOR_WRITE_QUEUE_URL"].startswith("pubsub://example-project/")
    assert len(found[0][2]["facts"]["made"]) == 4


def test_no_is_an_answer(run: Run, pubsub: PubsubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    for stream in (sys.stdin, sys.stderr):
        monkeypatch.setattr(stream, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(sys.stdin, "readline", lambda: "n\n", raising=False)
    code, _, err = run("apply", "queue", *PUBSUB)
    assert (code, "nothing was made" in err) == (1, True)
    assert pubsub.topics == {}


def test_a_person_reads_the_url(run: Run, pubsub: PubsubServer) -> None:
    code, out, _ = run("apply", "queue", *PUBSUB, "--yes")
    assert (code, f"pubsub://example-project/{NAME}/{NAME}-workers" in out) == (0, True)
    _, _, err = run("plan", "queue", *PUBSUB)
    assert "VECTOR_WRITE_QUEUE_URL=pubsub://" in err


def test_a_run_beside_a_running_up_is_on_its_record(
    run: Run, sqs: SqsServer, product: Product, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its settings are not those that the running service signs by: the worker writes the entry."""
    monkeypatch.setenv("MEMORY_DATA", str(product.data))
    code, out, err = run("apply", "queue", *SQS, "--yes", "--json")
    assert code == 0
    assert "the worker writes its entry into the audit log" in err
    with product.owner() as root:
        found = root.execute("SELECT verb FROM ops_runs WHERE id = %s", (json.loads(out)["runId"],)).fetchone()
    assert found == ("provision-apply-queue",)
