"""What `memoryctl provision plan / apply` does the same way for the vector store and the queue: options, the table, the question."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from memory_layer.cli import command, render

if TYPE_CHECKING:
    from memory_layer.config import Settings
    from memory_layer.ops.operate import Run
    from memory_layer.ops.report import Finding


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


async def perform_apply(
    verb: str,
    arguments: dict[str, Any],
    settings: Settings,
    data: Path | None,
    work: Callable[[Run], Awaitable[Made]],
    *,
    as_json: bool,
) -> int:
    """Apply as a run on record, and print its report. ``work`` puts its own facts on the run."""

    async def in_frame(run: Run) -> None:
        outcome = await work(run)
        for line in outcome.made:
            render.say(f"made: {line}")
        run.find(*outcome.findings)
        run.fact("made", outcome.made)

    return await command.run(verb, arguments, in_frame, data=data, as_json=as_json, settings=settings)
