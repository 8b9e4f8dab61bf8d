"""`memoryctl principal`: services that act here."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter

from memory_layer.cli import command, render
from memory_layer.cli.access import data_folder, database_of
from memory_layer.cli.options import AsJson, Data, Tenant, Yes

principal = App(name="principal", help="Services that act here: make one, list them, refuse one, let it in again.")

Service = Annotated[str, Parameter(help="The service: `sub` of its tokens.")]
Whose = Annotated[str, Parameter(name="--tenant", help="Its tenant.")]
Reason = Annotated[str, Parameter(help="One line, kept in the audit log.")]


@principal.command(name="list")
async def list_(*, tenant: Tenant = None, data: Data = None, as_json: AsJson = False) -> None:
    """List who ever wrote or was revoked, with the id under which the audit log knows it.

    A service that only reads is in no list: it gets its id with its first write, or by `memoryctl principal create`.

    For example:

      memoryctl principal list --tenant default
    """
    from memory_layer.ops.principals import list_principals

    with database_of(data_folder(data)) as dsn:
        found = await list_principals(dsn, tenant)
    if as_json:
        render.data({"principals": found})
        return
    columns = ("tenant", "service", "id", "since", "revoked")
    render.table(
        columns, [tuple("-" if value is None else value for value in one.values()) for one in found], wide="id"
    )


@principal.command
async def create(service: Service, /, *, tenant: Whose = "default", data: Data = None, as_json: AsJson = False) -> int:
    """Give a service its id in the audit log before its first write. Exit 1 where it has one.

    For example:

      memoryctl principal create crawler --tenant acme
    """
    from memory_layer.ops.principals import LOCK
    from memory_layer.ops.principals import create as work

    arguments = {"tenant": tenant, "service": service}
    made = partial(work, tenant=tenant, service=service)
    return await command.run("principal-create", arguments, made, data=data, as_json=as_json, lock=LOCK)


@principal.command
async def revoke(
    service: Service,
    /,
    *,
    tenant: Whose = "default",
    reason: Reason,
    yes: Yes = False,
    data: Data = None,
    as_json: AsJson = False,
) -> int:
    """Refuse every credential of a service (401 UNAUTHENTICATED), in each process within 5 s, until it is reinstated.

    Also of one that only ever read, or never came yet. What it wrote stays, and what is queued of it is indexed. It works during a
    freeze. Exit 1 where it is revoked already.

    For example:

      memoryctl principal revoke notebook --reason "its token was in a public repository, case 12"
    """
    return await _change("revoke", service, tenant, reason, yes, data, as_json)


@principal.command
async def reinstate(
    service: Service,
    /,
    *,
    tenant: Whose = "default",
    reason: Reason,
    yes: Yes = False,
    data: Data = None,
    as_json: AsJson = False,
) -> int:
    """Let a service in again, within 5 s. Tokens from before that have not expired count again: change the signing key where one
    was stolen. Exit 1 where it is not revoked.

    For example:

      memoryctl principal reinstate notebook --reason "new key since Monday, case 12"
    """
    return await _change("reinstate", service, tenant, reason, yes, data, as_json)


async def _change(
    verb: str, service: str, tenant: str, reason: str, yes: bool, data: Path | None, as_json: bool
) -> int:
    from memory_layer.ops.principals import LOCK
    from memory_layer.ops.principals import revoke as work

    question = {"revoke": "Refuse", "reinstate": "Let in"}
    command.agree(f"{question[verb]} service {service} of tenant {tenant}?", yes=yes)
    arguments = {"tenant": tenant, "service": service, "reason": reason}
    made = partial(work, tenant=tenant, service=service, reason=reason, revoked=verb == "revoke")
    return await command.run(f"principal-{verb}", arguments, made, data=data, as_json=as_json, lock=LOCK)
