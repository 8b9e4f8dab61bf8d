"""What operators' commands do the same way: open the installation, ask, run on record, print the report."""

from __future__ import annotations

import contextlib
import sys
import uuid
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from memory_layer import config
from memory_layer.cli import render, reports
from memory_layer.cli.access import data_folder, database_of, running_database
from memory_layer.errors import UsageError

if TYPE_CHECKING:
    from memory_layer.config import Settings
    from memory_layer.ops.operate import Work
    from memory_layer.service.installation import Installation


async def run(
    verb: str,
    arguments: Mapping[str, Any],
    work: Work,
    *,
    data: Path | None,
    as_json: bool,
    lock: str | None = None,
    settings: Settings | None = None,
) -> int:
    """Do an operator's work on record and print its report; the exit code. ``settings``: as of ``installation_of``."""
    from memory_layer.ops.operate import operate

    async with installation_of(data, settings) as installation:
        report = await operate(installation, verb, arguments, work, lock=lock)
    return reports.show(report.to_json(), as_json=as_json)


@contextlib.asynccontextmanager
async def installation_of(data: Path | None, settings: Settings | None = None) -> AsyncIterator[Installation]:
    """The installation of the data folder, with its database: DATABASE_URL, else that of a running `up`, else the embedded one, started
    for the occasion. With ``settings`` it is their database, else that of a running `up`, or none."""
    from msgspec.structs import replace

    from memory_layer.service.installation import Installation

    folder = data_folder(data)
    with contextlib.ExitStack() as stack:
        if settings is None:
            settings = config.load(database_url=stack.enter_context(database_of(folder)))
        # The settings of a shell that provisions are not those that the running `up` signs by.
        running = running_database(folder) if settings.database_url is None else None
        progress, say = stack.enter_context(render.reporting())
        if running is not None:
            settings = replace(settings, database_url=running)
        installation = Installation(settings, folder, pool=4, say=say, progress=progress, seals=running is None)
        try:
            yield installation
        finally:
            await installation.close()


def agree(question: str, *, yes: bool) -> None:
    """Ask before something dangerous. Raises UsageError unless the answer is yes, or ``yes`` is set."""
    if yes:
        return
    if not sys.stdin.isatty():
        raise UsageError(f"{question} Say --yes if so.")
    if not render.confirm(question, yes=False):
        raise UsageError("nothing was changed.")


def id_of(text: str, problem: str) -> uuid.UUID:
    """Raises UsageError, which says the text and ``problem``."""
    try:
        return uuid.UUID(text)
    except ValueError:
        raise UsageError(f"{text} {problem}") from None


def check_limit(limit: int) -> None:
    """Raises UsageError."""
    if not 1 <= limit <= 10_000:
        raise UsageError("--limit takes a number from 1 to 10000.")
