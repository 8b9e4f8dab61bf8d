"""What the verbs of the vector index share (`memoryctl vectors`, `memoryctl drill vector-desync`): options, the question, the frame."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from memory_layer import config
from memory_layer.cli import render, reports
from memory_layer.cli.access import data_folder, database_of
from memory_layer.errors import UsageError

if TYPE_CHECKING:
    from memory_layer.ops.runs import Run
    from memory_layer.ops.vectors.spaces import Sides, Tell

LOCK = "vectors"  # of the verbs that change an index as a whole; the worker's nightly job takes it too

Data = Annotated[Path | None, Parameter(help="Data folder of `memoryctl up`.")]
AsJson = Annotated[bool, Parameter(name="--json", help="Print JSON.")]
Tenant = Annotated[str | None, Parameter(help="Only this tenant's namespaces; else all tenants'.")]
Name = Annotated[str | None, Parameter(help="Only this index namespace.")]
Timeout = Annotated[float, Parameter(help="Seconds to wait until rows are settled.")]
Here = Annotated[bool, Parameter(help="Index in this process: for when no worker runs.")]
Compared = Annotated[
    Literal["none", "sample", "all"],
    Parameter(name="--vectors", help="Which vectors are compared too: 1000 of each namespace, all, or none."),
]
Yes = Annotated[bool, Parameter(help="Do not ask.")]


def agree(dangerous: bool, yes: bool, question: str) -> None:
    """Ask before something dangerous. Raises UsageError unless the answer is yes, or ``yes`` said it before."""
    if not dangerous or yes:
        return
    if not sys.stdin.isatty():
        raise UsageError(f"{question} Say --yes if so.")
    if not render.confirm(question, yes=False):
        raise UsageError("nothing was changed.")


def perform_verb(
    verb: str,
    arguments: dict[str, Any],
    work: Callable[[Run, Sides, Tell], Awaitable[None]],
    data: Path | None,
    as_json: bool,
    *,
    here: bool = False,
    lock: str | None,
) -> int:
    """Run a verb in the operator's frame on both sides of the index, with a progress bar."""
    from memory_layer.ops.runs import Place, perform
    from memory_layer.ops.vectors.spaces import open_sides

    folder = data_folder(data)
    with database_of(folder) as dsn:
        settings = config.load(database_url=dsn)

        async def go(run: Run) -> None:
            async with open_sides(settings, folder, here=here) as sides:
                with progress() as tell:
                    await work(run, sides, tell)

        place = Place(settings, folder, dsn, render.say)
        report = perform(place, verb, arguments, lambda run: asyncio.run(go(run)), lock=lock)
    return reports.show(report.to_json(), as_json=as_json)


@contextlib.contextmanager
def progress() -> Iterator[Tell]:
    """One bar, for whatever is being done."""
    with render.progress() as bar:
        task = bar.add_task("", total=None, note="")

        def tell(what: str, done: int, total: int) -> None:
            bar.update(task, description=what, completed=done, total=total or None, note=str(done))

        yield tell
