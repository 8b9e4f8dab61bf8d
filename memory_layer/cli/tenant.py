"""`memoryctl tenant`: whom the installation serves."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter

from memory_layer.cli import command, render
from memory_layer.cli.access import data_folder, database_of
from memory_layer.cli.options import AsJson, Data, Limit, Yes

tenant = App(name="tenant", help="Tenants: make, list, refuse one as a whole, let it in again.")

Name = Annotated[str, Parameter(name="TENANT", help="Its name.")]
Reason = Annotated[str, Parameter(help="One line, kept in the audit log.")]


@tenant.command
async def create(name: Name, /, *, data: Data = None, as_json: AsJson = False) -> int:
    """Make a tenant. One is made too by the first write of a service of it. Exit 1 where it is there.

    For example:

      memoryctl tenant create acme
    """
    from memory_layer.ops import tenants as ops

    work = partial(ops.create, tenant=name)
    return await command.run("tenant-create", {"tenant": name}, work, data=data, as_json=as_json, lock=ops.LOCK)


@tenant.command(name="list")
async def list_(*, limit: Limit = 100, data: Data = None, as_json: AsJson = False) -> None:
    """List tenants by name, and since when they are refused.

    For example:

      memoryctl tenant list
    """
    from memory_layer.ops.tenants import list_tenants

    command.check_limit(limit)
    with database_of(data_folder(data)) as dsn:
        found = await list_tenants(dsn, limit)
    if as_json:
        render.data({"tenants": found})
        return
    rows = [tuple("-" if value is None else value for value in one.values()) for one in found]
    render.table(("tenant", "since", "revoked"), rows)


@tenant.command
async def revoke(name: Name, /, *, reason: Reason, yes: Yes = False, data: Data = None, as_json: AsJson = False) -> int:
    """Refuse every credential of a tenant (403 FORBIDDEN), in each process within 5 s, until it is reinstated. What it wrote stays, and what is
    queued of it is indexed. It works during a freeze. Exit 1 where it is revoked already, and for ADMIN_TENANT.

    For example:

      memoryctl tenant revoke acme --reason "contract ended, case 12"
    """
    return await _change("revoke", name, reason, yes, data, as_json)


@tenant.command
async def reinstate(
    name: Name, /, *, reason: Reason, yes: Yes = False, data: Data = None, as_json: AsJson = False
) -> int:
    """Let a tenant in again, within 5 s. Exit 1 where it is not revoked.

    For example:

      memoryctl tenant reinstate acme --reason "contract renewed, case 12"
    """
    return await _change("reinstate", name, reason, yes, data, as_json)


async def _change(verb: str, name: str, reason: str, yes: bool, data: Path | None, as_json: bool) -> int:
    from memory_layer.ops import tenants as ops

    question = {"revoke": "Refuse", "reinstate": "Let in"}
    command.agree(f"{question[verb]} tenant {name}?", yes=yes)
    work = partial(ops.revoke, tenant=name, reason=reason, revoked=verb == "revoke")
    arguments = {"tenant": name, "reason": reason}
    return await command.run(f"tenant-{verb}", arguments, work, data=data, as_json=as_json, lock=ops.LOCK)
