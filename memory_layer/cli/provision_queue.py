"""`memoryctl provision plan / apply queue`: the queue that wakes the workers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from memory_layer import config
from memory_layer.cli import render
from memory_layer.cli.options import AsJson, Data, Yes
from memory_layer.cli.provision_frame import Made, agreed, perform_apply, show_plan

if TYPE_CHECKING:
    from memory_layer.ops.operate import Run

Broker = Annotated[
    Literal["sqs", "pubsub"] | None, Parameter(help="Whose queue; default: what VECTOR_WRITE_QUEUE_URL says.")
]
Project = Annotated[str | None, Parameter(help="Google Cloud project, for Pub/Sub.")]


async def plan_queue(*, broker: Broker = None, project: Project = None, as_json: AsJson = False) -> int:
    """Show how the queue that wakes the workers stands, in SQS or Pub/Sub. Exit 1 when something is missing or differs.

    Without VECTOR_WRITE_QUEUE_URL it is `kernel-memory-vectors-${SERVICE_ENV}`.

    For example:

      memoryctl provision plan queue --broker sqs
      memoryctl provision plan queue --broker pubsub --project example-project
    """
    from memory_layer.ops.provision import queue

    found = await queue.plan(config.load(), broker, project)
    show_plan(found.findings, {"VECTOR_WRITE_QUEUE_URL": found.url}, as_json=as_json)
    if not as_json and found.url is not None:
        render.say(f"VECTOR_WRITE_QUEUE_URL={found.url}")
    return 0 if all(finding.status in ("pass", "skip") for finding in found.findings) else 1


async def apply_queue(
    *, broker: Broker = None, project: Project = None, yes: Yes = False, data: Data = None, as_json: AsJson = False
) -> int:
    """Make the queue and its dead letters, where there are none, and print VECTOR_WRITE_QUEUE_URL.

    What differs is told, not changed: exit 1.

    For example:

      memoryctl provision apply queue --broker sqs
      memoryctl provision apply queue --broker pubsub --project example-project --yes
    """
    from memory_layer.ops.provision import queue

    settings = config.load()
    at = queue.target(settings, broker, project)
    planned = await queue.plan(settings, broker, project)
    if not agreed([found for found in planned.findings if found.evidence.get("state") == "missing"], yes=yes):
        return 1

    async def work(run: Run) -> Made:
        outcome = await queue.apply(settings, broker, project)
        run.fact("VECTOR_WRITE_QUEUE_URL", outcome.url)
        return outcome

    arguments = {"broker": at.kind, "name": at.name}
    return await perform_apply("provision-apply-queue", arguments, settings, data, work, as_json=as_json)
