"""`memoryctl drill audit-restore`: bring a segment of the audit archive back, and prove it whole."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING, Annotated

from cyclopts import App, Parameter

from memory_layer import config
from memory_layer.cli import command, render, reports
from memory_layer.cli.access import data_folder, database_of
from memory_layer.cli.options import AsJson, Data
from memory_layer.model import format_time

if TYPE_CHECKING:
    from memory_layer.ops.operate import Run

audit_restore = App(
    name="audit-restore",
    help="Bring a segment of the audit archive back and replay it. From a cold storage class that takes hours: start, status, finish.",
)

Which = Annotated[str | None, Parameter(name="--drill", help="The run that started it; else the newest.")]


@audit_restore.command
async def start(
    *,
    entry: Annotated[int | None, Parameter(help="The segment that holds this entry; else one at random.")] = None,
    data: Data = None,
    as_json: AsJson = False,
) -> int:
    """Choose a segment of the archive and ask for its bytes.

    For example:

      memoryctl drill audit-restore start
    """
    from memory_layer.ops.archive import drill

    async def work(run: Run) -> None:
        installation = await run.installation.need("trust_root", "archive")
        await drill.start(run, installation.archive, installation.trust_root, entry, installation.dsn)

    return await command.run(drill.START, {"entry": entry}, work, data=data, as_json=as_json, lock=drill.LOCK)


@audit_restore.command
async def status(*, which: Which = None, data: Data = None, as_json: AsJson = False) -> int:
    """Say whether the bytes are back. Exit 0 when they are, 3 while they are not.

    For example:

      memoryctl drill audit-restore status
    """
    from memory_layer.ops.archive import drill
    from memory_layer.service.installation import open_installation

    folder, settings, chosen = data_folder(data), config.load(), _id(which)
    with database_of(folder) as dsn:
        found = drill.newest(dsn, chosen)
        async with open_installation(settings, folder, "archive") as installation:
            waiting = await drill.waiting(installation.archive, found)
    state = "finished" if found.finished else "restoring" if waiting else "ready"
    shape = {
        "drill": str(found.id), "segment": found.folder, "startedAt": format_time(found.started_at), "state": state,
        "objects": len(found.objects), "waiting": waiting, "finishedBy": found.finished,
    }  # fmt: skip
    if as_json:
        render.data(shape)
    else:
        render.pairs([(name, value or "none") for name, value in shape.items()])
    return 3 if state == "restoring" else 0


@audit_restore.command
async def finish(
    *,
    into: Annotated[
        str | None, Parameter(help="DSN of a scratch database to replay into; else one is made and thrown away.")
    ] = None,
    which: Which = None,
    data: Data = None,
    as_json: AsJson = False,
) -> int:
    """Check what came back, replay it and compare. Exit 1 when it is not what was archived: an incident.

    For example:

      memoryctl drill audit-restore finish
      memoryctl drill audit-restore finish --into postgresql://staging/scratch
    """
    from memory_layer.ops.archive import drill
    from memory_layer.ops.operate import operate

    chosen = _id(which)
    async with command.installation_of(data) as installation:
        found = drill.newest(installation.dsn, chosen)

        async def work(run: Run) -> None:
            await installation.need("trust_root", "archive")
            await drill.finish(run, installation.archive, installation.trust_root, found, into, installation.dsn)

        arguments = {"drill": str(found.id), "into": into is not None}
        report = await operate(installation, drill.FINISH, arguments, work, lock=drill.LOCK)
    return reports.show(report.to_json(), as_json=as_json)


def _id(text: str | None) -> uuid.UUID | None:
    problem = "is no run's id. `memoryctl runs list --verb drill-audit-restore-start` shows them."
    return None if text is None else command.id_of(text, problem)
