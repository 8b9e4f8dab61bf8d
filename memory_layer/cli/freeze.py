"""`memoryctl freeze`: stop all writes for a while."""

from __future__ import annotations

import re
from functools import partial
from typing import Annotated, Final

from cyclopts import App, Parameter

from memory_layer.cli import command, render
from memory_layer.cli.access import data_folder, database_of
from memory_layer.cli.options import AsJson, Data
from memory_layer.errors import UsageError

freeze = App(name="freeze", help="Stop all writes for a while; reads go on.")

_UNITS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86_400}


@freeze.command
async def on(
    *,
    reason: Annotated[str, Parameter(help="One line, shown to every caller whose write is refused.")],
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
    from memory_layer.ops.freeze import LOCK, turn_on

    seconds = None if lasting is None else _seconds(lasting)
    arguments = {"reason": reason, "seconds": seconds}
    work = partial(turn_on, reason=reason, seconds=seconds)
    return await command.run("freeze-on", arguments, work, data=data, as_json=as_json, lock=LOCK)


@freeze.command
async def off(*, data: Data = None, as_json: AsJson = False) -> int:
    """Let writes go on. Where they are not frozen, it says so.

    For example:

      memoryctl freeze off
    """
    from memory_layer.ops.freeze import LOCK, turn_off

    return await command.run("freeze-off", {}, turn_off, data=data, as_json=as_json, lock=LOCK)


@freeze.command
async def status(*, data: Data = None, as_json: AsJson = False) -> int:
    """Tell whether writes are frozen, since when, and why.

    For example:

      memoryctl freeze status --json
    """
    from memory_layer.ops.freeze import status as look

    with database_of(data_folder(data)) as dsn:
        found = await look(dsn)
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
