"""`memoryctl rotate`: change the keys of an installation."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

from cyclopts import App, Parameter

from memory_layer.cli import command, render, reports
from memory_layer.cli.options import AsJson, Data, Yes
from memory_layer.errors import UsageError

if TYPE_CHECKING:
    from memory_layer.ops.operate import Run
    from memory_layer.ops.rotate import Plan

rotate = App(name="rotate", help="Change the keys of an installation.")


@rotate.command(name="signing-key")
async def signing_key(
    *,
    plan: Annotated[bool, Parameter(help="Show what would be done. Changes nothing.")] = False,
    yes: Yes = False,
    new_key: Annotated[
        str | None, Parameter(help="The key to change to, by name or id, where the settings name several.")
    ] = None,
    destroy_old: Annotated[bool, Parameter(help="Destroy the old key's file instead of keeping it aside.")] = False,
    data: Data = None,
    as_json: AsJson = False,
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
    from memory_layer.ops.operate import operate

    if plan and yes:
        raise UsageError("--plan changes nothing, and --yes says to change it: name one of them.")
    arguments = {"newKey": new_key, "destroyOld": destroy_old}

    async def work(run: Run) -> None:
        async for line in ops.steps(run.installation, new_key=new_key, destroy_old=destroy_old):
            run.installation.say(line)
        facts = await ops.result(run.installation)
        run.facts.update(facts)
        run.find(ops.finding_of(facts))

    async with command.installation_of(data) as installation:
        if plan or (not yes and sys.stdin.isatty()):
            planned = await ops.plan(installation, new_key=new_key, destroy_old=destroy_old)
            if plan:
                return _show(planned, as_json)
            if not _agreed(planned):
                return 1
        report = await operate(installation, "rotate-signing-key", arguments, work, lock=ops.LOCK)
    return reports.show(report.to_json(), as_json=as_json)


@rotate.command(name="api-keys")
async def api_keys(
    *,
    service: Annotated[str, Parameter(help="Whose keys.")],
    tenant: Annotated[str, Parameter(help="Its tenant.")] = "default",
    key: Annotated[str | None, Parameter(help="Only the key with this id; else each that counts.")] = None,
    overlap: Annotated[int, Parameter(help="Seconds for which the old keys go on beside the new ones.")] = 86_400,
    yes: Yes = False,
    data: Data = None,
    as_json: AsJson = False,
) -> int:
    """Put a new API key in the place of each that a service has, and print the new ones, once. Old and new work until the overlap is over;
    then the old ones are refused. Scopes and time to live stay. Keys that were replaced before are left to their end.

    For example:

      memoryctl rotate api-keys --service crawler --tenant acme --overlap 604800
      memoryctl rotate api-keys --service crawler --key 01a2293b-4f66-7538-8879-73060e84df2b --overlap 0
    """
    import datetime as dt
    from functools import partial

    from memory_layer.cli.api_key import run_and_show
    from memory_layer.ops import api_keys as ops

    wanted = (
        None if key is None else command.id_of(key, "is no id of an API key. `memoryctl api-key list` prints them.")
    )
    if overlap < 0:
        raise UsageError("--overlap takes a number of seconds from 0.")
    command.agree(f"Replace the API keys of service {service} of tenant {tenant}?", yes=yes)
    made: list[ops.Made] = []
    arguments = {"service": service, "tenant": tenant, "key": key, "overlap": overlap}
    work = partial(
        ops.rotate, made=made, tenant=tenant, service=service, key_id=wanted, overlap=dt.timedelta(seconds=overlap)
    )
    return await run_and_show("rotate-api-keys", arguments, work, made, data, as_json)


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
