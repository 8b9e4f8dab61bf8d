"""What `memoryctl provision plan / apply` does the same way for the vector store and the queue: options, the table, the question."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Protocol

from cyclopts import Parameter

from memory_layer.cli import render
from memory_layer.cli.access import data_folder
from memory_layer.cli.reports import show

if TYPE_CHECKING:
    from memory_layer.config import Settings
    from memory_layer.ops.report import Finding
    from memory_layer.ops.runs import Run

Data = Annotated[Path | None, Parameter(help="Data folder of `memoryctl up`, whose log the run is entered in.")]
AsJson = Annotated[bool, Parameter(name="--json", help="Print JSON.")]
Yes = Annotated[bool, Parameter(help="Do not ask.")]


class Made(Protocol):
    """What applying came to."""

    @property
    def made(self) -> list[str]: ...

    @property
    def findings(self) -> list[Finding]: ...


def show_plan(findings: Sequence[Finding], facts: dict[str, Any], *, as_json: bool) -> None:
    """Each finding and how it stands; ``facts``: what else the JSON holds."""
    if as_json:
        render.data({"made": [], "findings": [finding.to_json() for finding in findings], **facts})
        return
    rows = [(f.id, f.evidence.get("state", f.status), f.finding, f.hint) for f in findings]
    render.table(("id", "status", "finding", "hint"), rows, wide="finding")


def agreed(missing: Sequence[Finding], *, yes: bool) -> bool:
    """Whether what is missing may be made; with nothing missing nobody is asked."""
    for found in missing:
        render.say(found.finding)
    if missing and not render.confirm("Make it?", yes=yes):
        render.say("nothing was made.")
        return False
    return True


def perform_apply(
    verb: str,
    arguments: dict[str, Any],
    settings: Settings,
    data: Path | None,
    work: Callable[[Run], Made],
    *,
    as_json: bool,
) -> int:
    """Apply as a run on record, and print its report. ``work`` puts its own facts on the run."""
    from memory_layer.ops.runs import Place, perform

    def in_frame(run: Run) -> None:
        outcome = work(run)
        for line in outcome.made:
            render.say(f"made: {line}")
        for finding in outcome.findings:
            run.find(finding)
        run.fact("made", outcome.made)

    place = Place(settings, data_folder(data), settings.database_url, render.say)
    return show(perform(place, verb, arguments, in_frame).to_json(), as_json=as_json)
