"""`memoryctl freeze`: stop all writes for a while."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Final

from cyclopts import App, Parameter

from memory_layer import config
from memory_layer.cli import render, reports
from memory_layer.cli.access import data_folder, database_of
from memory_layer.errors import UsageError

freeze = App(name="freeze", help="Stop all writes for a while; reads go on.")

Data = Annotated[Path | None, Parameter(help="Data folder of `memoryctl up`.")]
AsJson = Annotated[bool, Parameter(name="--json", help="Print JSON.")]

_UNITS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86_400}


@freeze.command
def on(
    *,
    reason: Annotated[str, Parameter(help="One line, told to every caller whose write is refused.")],
    lasting: Annotated[
        str | None, Parameter(name="--for", help="How long, such as 90s, 30m, 2h; else until it is lifted.")
    ] = None,
    data: Data = None,
    as_json: AsJson = False,
) -> int:
    """Refuse all writes (503 FROZEN) in every process, from the moment that this returns; searches and reads go on.

    Indexing of what is written already goes on too; nodes that expire meanwhile are deleted afterwards. Saying it again changes the
    reason and the end. It holds across restarts, and needs the log's signer as the service does.

    For example:

      memoryctl freeze on --reason "restoring the vector index" --for 30m
    """
    from memory_layer.ops.freeze import turn_on
    from memory_layer.ops.runs import Place

    seconds = None if lasting is None else _seconds(lasting)
    folder = data_folder(data)
    with database_of(folder) as dsn:
        report = turn_on(Place(config.load(), folder, dsn, render.say), reason, seconds)
    return reports.show(report.to_json(), as_json=as_json)


@freeze.command
def off(*, data: Data = None, as_json: AsJson = False) -> int:
    """Let writes go on. Where they are not frozen, it says so.

    For example:

      memoryctl freeze off
    """
    from memory_layer.ops.freeze import turn_off
    from memory_layer.ops.runs import Place

    folder = data_folder(data)
    with database_of(folder) as dsn:
        report = turn_off(Place(config.load(), folder, dsn, render.say))
    return reports.show(report.to_json(), as_json=as_json)


@freeze.command
def status(*, data: Data = None, as_json: AsJson = False) -> int:
    """Tell whether writes are frozen, since when, and why.

    For example:

      memoryctl freeze status --json
    """
    from memory_layer.ops.freeze import status as look

    with database_of(data_folder(data)) as dsn:
        found = look(dsn)
    if as_json:
        render.data(found)
    else:
        render.pairs(list(found.items()))
    return 0


def _seconds(text: str) -> int:
    match = re.fullmatch(r"([0-9]{1,8})([smhd]?)", text.strip())
    if match is None:
        raise UsageError(f"--for {text} is no time: give a number with s, m, h or d, such as 30m.")
    return int(match[1]) * _UNITS[match[2] or "s"]
