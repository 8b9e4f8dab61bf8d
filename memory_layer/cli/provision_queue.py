"""`memoryctl provision plan / apply queue`: the queue that wakes the workers."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from memory_layer import config
from memory_layer.cli import render
from memory_layer.cli.access import data_folder
from memory_layer.cli.reports import show

if TYPE_CHECKING:
    from memory_layer.ops.runs import Run

Data = Annotated[Path | None, Parameter(help="Data folder of `memoryctl up`, whose log the run is entered in.")]
AsJson = Annotated[bool, Parameter(name="--json", help="Print JSON.")]
Yes = Annotated[bool, Parameter(help="Do not ask.")]
Broker = Annotated[
    Literal["sqs", "pubsub"] | None, Parameter(help="Whose queue; default: what VECTOR_WRITE_QUEUE_URL says.")
]
Project = Annotated[str | None, Parameter(help="Google Cloud project, for Pub/Sub.")]


def plan_queue(*, broker: Broker = None, project: Project = None, as_json: AsJson = False) -> int:
    """Show how the queue that wakes the workers stands, in SQS or Pub/Sub. Exit 1 when something is missing or differs.

    Without VECTOR_WRITE_QUEUE_URL it is `kernel-memory-vectors-${SERVICE_ENV}`.

    For example:

      memoryctl provision plan queue --broker sqs
      memoryctl provision plan queue --broker pubsub --project example-project
    """
    from memory_layer.ops.provision import queue

    found = asyncio.run(queue.plan(config.load(), broker, project))
    if as_json:
        findings = [finding.to_json() for finding in found.findings]
        render.data({"made": [], "findings": findings, "VECTOR_WRITE_QUEUE_URL": found.url})
    else:
        rows = [(f.id, f.evidence.get("state", f.status), f.finding, f.hint) for f in found.findings]
        render.table(("id", "status", "finding", "hint"), rows, wide="finding")
        if found.url is not None:
            render.say(f"VECTOR_WRITE_QUEUE_URL={found.url}")
    return 0 if all(finding.status in ("pass", "skip") for finding in found.findings) else 1


def apply_queue(
    *, broker: Broker = None, project: Project = None, yes: Yes = False, data: Data = None, as_json: AsJson = False
) -> int:
    """Make the queue and its dead letters, where there are none, and print VECTOR_WRITE_QUEUE_URL.

    What differs is told, not changed: exit 1.

    For example:

      memoryctl provision apply queue --broker sqs
      memoryctl provision apply queue --broker pubsub --project example-project --yes
    """
    from memory_layer.ops.provision import queue
    from memory_layer.ops.runs import Place, perform

    settings = config.load()
    at = queue.target(settings, broker, project)
    planned = asyncio.run(queue.plan(settings, broker, project))
    missing = [found for found in planned.findings if found.evidence.get("state") == "missing"]
    for found in missing:
        render.say(found.finding)
    if missing and not render.confirm("Make it?", yes=yes):
        render.say("nothing was made.")
        return 1

    def work(run: Run) -> None:
        made = asyncio.run(queue.apply(settings, broker, project))
        for line in made.made:
            render.say(f"made: {line}")
        for finding in made.findings:
            run.find(finding)
        run.fact("made", made.made)
        run.fact("VECTOR_WRITE_QUEUE_URL", made.url)

    place = Place(settings, data_folder(data), settings.database_url, render.say)
    report = perform(place, "provision-apply-queue", {"broker": at.kind, "name": at.name}, work)
    return show(report.to_json(), as_json=as_json)
