"""`memoryctl jobs`: what the worker has to do for the index, and what it gave up on."""

from __future__ import annotations

import uuid
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import App, Parameter

from memory_layer.cli import command, render
from memory_layer.cli.access import data_folder, database_of
from memory_layer.cli.options import AsJson, Data, Limit, Namespace, Tenant
from memory_layer.errors import UsageError

jobs = App(name="jobs", help="Indexing jobs: what the worker has to do, and what it gave up on.")

Ids = Annotated[list[str], Parameter(help="The ids of jobs.", negative=())]


@jobs.command(name="list")
async def list_(
    *,
    status: Annotated[
        str | None, Parameter(help="Statuses, separated by commas; default: all that are not done.")
    ] = None,
    namespace: Namespace = None,
    tenant: Tenant = None,
    limit: Limit = 50,
    data: Data = None,
    as_json: AsJson = False,
) -> int:
    """List indexing jobs, those that something happened to last first.

    pending and in_flight are on their way; failed will not be tried again, dead has spent its attempts; deleting leaves the index;
    succeeded and deleted are done.

    For example:

      memoryctl jobs list --status failed,dead --namespace kernel-memory
    """
    from memory_layer.ops.jobs import listed
    from memory_layer.service.jobs import STATUSES, UNSETTLED, Wanted

    command.check_limit(limit)
    statuses = UNSETTLED if status is None else tuple(part for part in status.replace(",", " ").split() if part)
    unknown = [name for name in statuses if name not in STATUSES]
    if unknown or not statuses:
        raise UsageError(f"--status takes {', '.join(STATUSES)}; not {', '.join(unknown) or 'nothing'}.")
    with database_of(data_folder(data)) as dsn:
        found = await listed(dsn, Wanted(tenant, namespace, statuses, limit))
    if as_json:
        render.data(found)
        return 0
    columns = ("job", "tenant", "namespace", "status", "attempts", "updated", "next", "error")
    rows = [
        (
            job["jobId"],
            job["tenant"],
            job["namespace"],
            _status(job),
            job["attempts"],
            _time(job["updatedAt"]),
            _time(job["nextAttemptAt"]),
            job["error"],
        )
        for job in found
    ]
    render.table(columns, rows, wide="error")
    return 0


@jobs.command
async def show(
    job: Annotated[str, Parameter(help="The id of a job: embeddingJobId of a write, vector.jobId of a node.")],
    /,
    *,
    data: Data = None,
    as_json: AsJson = False,
) -> int:
    """Print one job.

    For example:

      memoryctl jobs show 0199f3c2-5b1e-7c41-9d0e-1f2a3b4c5d6e
    """
    from memory_layer.ops.jobs import shown

    with database_of(data_folder(data)) as dsn:
        found = await shown(dsn, _id(job))
    if as_json:
        render.data(found)
        return 0
    items = [
        ("job", found["jobId"]),
        ("tenant", found["tenant"]),
        ("node", found["memoryNodeId"]),
        ("version", found["version"]),
        ("namespace", found["namespace"]),
        ("provider", found["provider"]),
        ("model", found["model"]),
        ("dimension", found["dimension"]),
        ("status", _status(found)),
        ("text read", found["textRead"]),
        ("attempts", found["attempts"]),
        ("error", found["error"]),
        ("next attempt", _time(found["nextAttemptAt"])),
        ("leased until", _time(found["leasedUntil"])),
        ("created", _time(found["createdAt"])),
        ("updated", _time(found["updatedAt"])),
    ]
    render.pairs(items)
    return 0


@jobs.command
async def cancel(ids: Ids, /, *, data: Data = None, as_json: AsJson = False) -> int:
    """Stop the indexing of versions that wait, failed or are dead. A newer version of the node is a new job.

    A removal from the index is never cancelled. Exit 1 when one of them could not be.

    For example:

      memoryctl jobs cancel 0199f3c2-5b1e-7c41-9d0e-1f2a3b4c5d6e
    """
    return await _retry_or_cancel("cancel", ids, data, as_json)


@jobs.command
async def retry(ids: Ids, /, *, data: Data = None, as_json: AsJson = False) -> int:
    """Make jobs that wait, failed, are dead or were cancelled due at once, with all their attempts before them.

    Exit 1 when one of them could not be.

    For example:

      memoryctl jobs retry 0199f3c2-5b1e-7c41-9d0e-1f2a3b4c5d6e
    """
    return await _retry_or_cancel("retry", ids, data, as_json)


async def _retry_or_cancel(verb: Literal["cancel", "retry"], ids: list[str], data: Path | None, as_json: bool) -> int:
    from memory_layer.ops.jobs import retry_or_cancel

    which = list(dict.fromkeys(_id(text) for text in ids))
    if not which:
        raise UsageError("name at least one job. `memoryctl jobs list` shows them.")
    arguments, work = {"jobs": [str(job) for job in which]}, partial(retry_or_cancel, verb=verb, which=which)
    return await command.run(f"jobs-{verb}", arguments, work, data=data, as_json=as_json)


def _id(text: str) -> uuid.UUID:
    return command.id_of(text, "is no job's id. `memoryctl jobs list` shows them.")


def _status(job: dict[str, Any]) -> str:
    return "cancelled" if job["errorClass"] == "cancelled" else str(job["status"])


def _time(text: str | None) -> str:
    """A time to the second, in UTC."""
    return "" if text is None else text[:19].replace("T", " ")
