"""`memoryctl rotate`: change the keys of an installation."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import App, Parameter

from memory_layer import config
from memory_layer.cli import render, reports
from memory_layer.cli.access import data_folder, database_of
from memory_layer.errors import UsageError

if TYPE_CHECKING:
    from memory_layer.ops.rotate import Plan
    from memory_layer.ops.runs import Run

rotate = App(name="rotate", help="Change the keys of an installation.")


@rotate.command(name="signing-key")
def signing_key(
    *,
    plan: Annotated[bool, Parameter(help="Show what would be done. Changes nothing.")] = False,
    yes: Annotated[bool, Parameter(help="Do not ask.")] = False,
    new_key: Annotated[
        str | None, Parameter(help="The key to change to, by name or id, where the settings name several.")
    ] = None,
    destroy_old: Annotated[bool, Parameter(help="Destroy the old key's file instead of keeping it aside.")] = False,
    data: Annotated[Path | None, Parameter(help="Data folder of `memoryctl up`.")] = None,
    as_json: Annotated[bool, Parameter(name="--json", help="Print JSON.")] = False,
) -> int:
    """Let another key seal the log from now on. What was sealed before stays verifiable; nothing has to be stopped.

    A run that was cut off is finished by the next. Afterwards give trust-root.json, whose SHA-256 is printed, to everybody who
    verifies the log with a copy of their own. The old key's file goes to keys/retired: a backup restored from before needs it.

    KMS: name the old and the new key in AUDIT_KMS_KEY_ID for every server and worker first. Vault: make a new version of the key
    first. To another kind of signer: run this with the new AUDIT_SIGNER and what both need, then start the servers with it.

    For example:

      memoryctl rotate signing-key --plan
      memoryctl rotate signing-key --yes
      AUDIT_KMS_KEY_ID=alias/old,alias/new memoryctl rotate signing-key --new-key alias/new
    """
    from memory_layer.ops import rotate as ops
    from memory_layer.ops.runs import Place, perform

    if plan and yes:
        raise UsageError("--plan changes nothing, and --yes says to change it: name one of them.")
    settings, folder = config.load(), data_folder(data)
    arguments = {"newKey": new_key, "destroyOld": destroy_old}

    def planned() -> Plan:
        return asyncio.run(ops.plan(settings, folder, dsn, new_key=new_key, destroy_old=destroy_old))

    def change(run: Run) -> None:
        async def go() -> None:
            async for line in ops.steps(settings, folder, dsn, new_key=new_key, destroy_old=destroy_old):
                render.say(line)

        asyncio.run(go())
        facts = asyncio.run(ops.result(folder, dsn))
        for name, value in facts.items():
            run.fact(name, value)
        run.find(ops.tell(facts))

    with database_of(folder) as dsn:
        if plan:
            return _show(planned(), as_json)
        if not yes and sys.stdin.isatty() and not _agreed(planned()):
            return 1
        place = Place(settings, folder, dsn, render.say)
        report = perform(place, "rotate-signing-key", arguments, change, lock=ops.LOCK)
    return reports.show(report.to_json(), as_json=as_json)


def _show(found: Plan, as_json: bool) -> int:
    if as_json:
        render.data({**_facts(found), "finishes": found.activated, "steps": list(found.todo)})
    else:
        render.pairs([*_facts(found).items(), ("steps", "\n".join(found.todo))])
    return 0


def _facts(found: Plan) -> dict[str, str]:
    new = f"{found.new.key_id} ({found.new.name})" if found.new is not None else "one that is made"
    old = found.old if found.old_held is None else f"{found.old} ({found.old_held.name})"
    return {"origin": found.origin, "oldKey": old, "newKey": new}


def _agreed(found: Plan) -> bool:
    for name, value in _facts(found).items():
        render.say(f"{name}  {value}")
    for line in found.todo:
        render.say(f"  {line}")
    if render.confirm("Change the key?", yes=False):
        return True
    render.say("nothing was changed.")
    return False
