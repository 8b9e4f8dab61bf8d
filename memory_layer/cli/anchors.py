"""`memoryctl audit anchor`: checkpoints sent outside the installation, and what is kept there held to the log."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from cyclopts import App

from memory_layer import config
from memory_layer.cli import command, render
from memory_layer.cli.access import data_folder, database_of
from memory_layer.cli.options import AsJson, Data
from memory_layer.errors import UsageError

if TYPE_CHECKING:
    from memory_layer.ops.anchors import Source
    from memory_layer.ops.operate import Run
    from memory_layer.stores.protocols import AnchorPlace

T = TypeVar("T")

anchor = App(name="anchor", help="Keep checkpoints outside the installation.")


@anchor.command
async def push(*destination: str, data: Data = None, as_json: AsJson = False) -> int:
    """Send the newest published checkpoint to each DESTINATION, else to those of AUDIT_ANCHORS.

    A destination is a folder, s3://bucket/prefix, https://host/path, git:/repository, git+ssh://host/repository (or git+https://,
    git+file://). What a destination keeps already must be part of the log: else nothing is sent there and nothing overwritten, the
    finding is ROLLBACK_DETECTED, and the exit 4. Exit 3 where a destination does not answer. The worker does the same every five minutes.

    For example:

      memoryctl audit anchor push /media/usb/anchors
      memoryctl audit anchor push s3://auditor/anchors git+ssh://git@host/anchors.git
      memoryctl audit verify --anchor /media/usb/anchors
    """
    from memory_layer.ops import anchors
    from memory_layer.ops.report import Finding

    folder = data_folder(data)

    async def work(run: Run) -> None:
        outcomes = await _with_places(run.installation.dsn, folder, destination, anchors.push)
        run.fact("places", [outcome.to_json() for outcome in outcomes])
        for outcome in outcomes:
            name = "anchor.rollback-detected" if outcome.status == "rollback" else "anchor.push"
            if outcome.error is None:
                text = f"{outcome.place} keeps the checkpoint of {outcome.size} entries" + (
                    ", as before." if outcome.status == "current" else "."
                )
                run.find(Finding(name, "info", "pass", text))
            else:
                code = {4: "refused", 3: "unavailable"}.get(outcome.error.exit_code, "fail")
                text = f"{outcome.place}: {outcome.error.code}: {outcome.error.message}"
                run.find(Finding(name, "error", code, text))  # type: ignore[arg-type]

    arguments = {"places": [place.name for place in _places(folder, destination)]}
    return await command.run(anchors.VERB, arguments, work, data=data, as_json=as_json, lock=anchors.LOCK)


@anchor.command
async def check(*destination: str, data: Data = None, as_json: AsJson = False) -> int:
    """Show what each DESTINATION, else each of AUDIT_ANCHORS, keeps, and whether the log contains it. Changes nothing.

    Exit 0 the log contains all of it, 1 it does not, or a place lost what was sent there, 3 a place does not answer.

    For example:

      memoryctl audit anchor check
      memoryctl audit anchor check /media/usb/anchors --json
    """
    from memory_layer.ops import anchors

    folder = data_folder(data)
    with database_of(folder) as dsn:
        kept = await _with_places(dsn, folder, destination, anchors.check)
    if as_json:
        render.data({"places": [one.to_json() for one in kept]})
    else:
        for one in kept:
            what = "nothing is kept" if one.size is None else f"{one.size} entries, root {one.root}"
            render.line(f"{one.place}\t{what}\t{one.problem or 'part of the log' if one.size or one.problem else ''}")
    if any(one.problem is not None and one.answered for one in kept):
        return 1
    return 3 if any(not one.answered for one in kept) else 0


def _places(folder: Path, destination: tuple[str, ...]) -> tuple[AnchorPlace, ...]:
    from memory_layer.stores.anchors import open_anchor, open_anchors

    settings = config.load()
    if destination:
        return tuple(open_anchor(settings, folder, _absolute(one)) for one in dict.fromkeys(destination))
    places = open_anchors(settings, folder)
    if not places:
        raise UsageError("Name where to send the checkpoint, or set AUDIT_ANCHORS.")
    return places


def _absolute(destination: str) -> str:
    """A folder of this shell's, as the settings would name it."""
    return destination if ":" in destination.partition("/")[0] else str(Path(destination).expanduser().absolute())


async def _with_places(
    dsn: str,
    folder: Path,
    destination: tuple[str, ...],
    work: Callable[[Source, tuple[AnchorPlace, ...]], Awaitable[T]],
) -> T:
    from memory_layer.ops.anchors import Source
    from memory_layer.stores.logs import find_log, read_trust_root
    from memory_layer.stores.postgres import open_postgres

    trust_root = read_trust_root(folder)
    async with AsyncExitStack() as stack:
        places = _places(folder, destination)
        for place in places:
            stack.push_async_callback(place.close)
        postgres = await open_postgres(dsn, size=4, origin=trust_root.origin)
        stack.push_async_callback(postgres.close)
        source = Source(postgres, trust_root, await find_log(postgres, trust_root.origin), folder)
        return await work(source, places)
