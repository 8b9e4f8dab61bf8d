"""`memoryctl tamper`: rows that were changed behind the Memory Layer's back."""

from __future__ import annotations

import uuid
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import App, Parameter

from memory_layer.cli import command, render, reports
from memory_layer.cli.options import AsJson, Data, Tenant, Yes

if TYPE_CHECKING:
    from memory_layer.ops.operate import Run
    from memory_layer.ops.tamper import Compared
    from memory_layer.service.verification import Problem

tamper = App(name="tamper", help="Rows that are not what the audit log says: find, compare, restore, accept.")

Row = Annotated[str, Parameter(help="The id of a node or an artifact.")]
Reason = Annotated[str, Parameter(help="One line, kept in the audit log and shown in the row's history.")]


@tamper.command(name="list")
async def list_(*, data: Data = None, as_json: AsJson = False) -> int:
    """List all rows that are not what their last sealed entry says, of all tenants. Exit 1 when there are any.

    It reads every node and artifact, in pages. What was changed and sealed in the past is found by `memoryctl audit verify`.

    For example:

      memoryctl tamper list --json
    """
    from memory_layer.ops.operate import operate
    from memory_layer.ops.tamper import list_problems

    found: list[Problem] = []

    async def work(run: Run) -> None:
        found.extend(await list_problems(run))

    async with command.installation_of(data) as installation:
        report = await operate(installation, "tamper-list", {}, work)
    if as_json:
        rows = [
            {"kind": p.kind, "tenant": p.tenant, "id": str(p.id), "lastSeq": p.seq, "reason": p.reason} for p in found
        ]
        render.data(report.to_json() | {"rows": rows})
        return report.exit
    if found:
        columns = ("kind", "tenant", "id", "last entry", "why")
        render.table(columns, [(p.kind, p.tenant, p.id, p.seq, p.reason) for p in found], wide="why")
    render.line(reports.verdict_line(report.to_json()))
    return report.exit


@tamper.command
async def show(
    row: Row,
    /,
    *,
    show_pii: Annotated[bool, Parameter(help="Print what piiFlags hide, too.")] = False,
    tenant: Tenant = None,
    data: Data = None,
    as_json: AsJson = False,
) -> int:
    """Show a row as the database has it and as its sealed entries say, side by side. Exit 1 when they differ.

    What the piiFlags of either version hide is marked as redacted. The record of this run names columns and no values.

    For example:

      memoryctl tamper show 0199f3c2-5b1e-7c41-9d0e-1f2a3b4c5d6e
    """
    from memory_layer.ops.operate import operate
    from memory_layer.ops.tamper import show as look

    id_ = _id(row)
    seen: list[Compared] = []

    async def work(run: Run) -> None:
        seen.append(await look(run, id_, tenant))

    async with command.installation_of(data) as installation:
        report = await operate(installation, "tamper-show", {"id": str(id_), "tenant": tenant}, work)
    both = seen[0].to_json(show_pii=show_pii)
    if as_json:
        render.data(report.to_json() | {"compared": both})
        return report.exit
    entry = both["lastEntry"] or {}
    last = [
        ("last entry", entry.get("seq")),
        ("at", entry.get("time")),
        ("type", entry.get("type")),
        ("actor", entry.get("actor")),
    ]
    render.pairs([(name, both[name]) for name in ("kind", "id", "tenant", "problem")] + last)
    names = list(dict.fromkeys([*(both["log"] or {}), *(both["row"] or {})]))
    if names:
        lines = [("*" if n in both["differs"] else "", n, _side(both["row"], n), _side(both["log"], n)) for n in names]
        render.table(("", "member", "in the database", "by the log"), lines, wide="by the log")
    return reports.show(report.to_json(), as_json=False)


@tamper.command
async def restore(
    row: Row, /, *, reason: Reason, tenant: Tenant = None, yes: Yes = False, data: Data = None, as_json: AsJson = False
) -> int:
    """Put a row back as its sealed entries say, with an entry of its own.

    A row that is gone is made again; one that no entry knows, or that is there after its purge, is removed. It works during a freeze.
    Exit 1 where the row is what the log says, or where a payload that is needed is gone: the message names it.

    For example:

      memoryctl tamper restore 0199f3c2-5b1e-7c41-9d0e-1f2a3b4c5d6e --reason "edited by hand, case 7"
    """
    return await _resolve("restore", row, reason, tenant, yes, data, as_json)


@tamper.command
async def accept(
    row: Row, /, *, reason: Reason, tenant: Tenant = None, yes: Yes = False, data: Data = None, as_json: AsJson = False
) -> int:
    """Take a row as it is found, with an entry that says so and why. What the log recorded before stays in its history.

    Refused (exit 4) where the row as found would lift a legal hold, end a retention early, or undo a purge: restore it then.

    For example:

      memoryctl tamper accept 0199f3c2-5b1e-7c41-9d0e-1f2a3b4c5d6e --reason "bulk correction of 2026-11-02, ticket 4711"
    """
    return await _resolve("accept", row, reason, tenant, yes, data, as_json)


async def _resolve(
    verb: Literal["restore", "accept"],
    row: str,
    reason: str,
    tenant: str | None,
    yes: bool,
    data: Path | None,
    as_json: bool,
) -> int:
    from memory_layer.ops.tamper import LOCK, check_reason, resolve

    id_ = _id(row)
    question = {
        "restore": f"Write {id_} back as the log says?",
        "accept": f"Take {id_} as it is found, against the log?",
    }
    command.agree(question[verb], yes=yes)
    check_reason(reason)
    arguments = {"id": str(id_), "tenant": tenant, "reason": reason}
    work = partial(resolve, verb=verb, id_=id_, tenant=tenant, reason=reason)
    return await command.run(f"tamper-{verb}", arguments, work, data=data, as_json=as_json, lock=LOCK)


def _side(row: dict[str, Any] | None, name: str) -> Any:
    return "-" if row is None or row.get(name) is None else row[name]


def _id(text: str) -> uuid.UUID:
    return command.id_of(text, "is no id of a node or an artifact. `memoryctl tamper list` finds those that fail.")
