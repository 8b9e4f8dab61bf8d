"""`memoryctl api-key` and `memoryctl bootstrap`: credentials of services. A key goes to stdout, once; all else is said on stderr."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import App, Parameter

from memory_layer.cli import command, render
from memory_layer.cli.access import data_folder, database_of
from memory_layer.cli.options import AsJson, Data, Limit, Tenant, Yes
from memory_layer.errors import UsageError

if TYPE_CHECKING:
    from memory_layer.ops.api_keys import Made
    from memory_layer.ops.operate import Work

api_key = App(
    name="api-key", help="API keys of services: make, list, refuse. `memoryctl rotate api-keys` replaces them."
)

Service = Annotated[str, Parameter(help="The service that the key is for.")]
Whose = Annotated[str, Parameter(name="--tenant", help="Its tenant.")]
Days = Annotated[int, Parameter(help="Days until it expires; 0: never.")]


@api_key.command
async def create(
    service: Service,
    /,
    *,
    tenant: Whose = "default",
    scope: Annotated[str, Parameter(help="Scopes, separated by commas.")] = "memory:read,memory:write",
    name: Annotated[str | None, Parameter(help="What it is for, one line.")] = None,
    days: Days = 365,
    data: Data = None,
    as_json: AsJson = False,
) -> int:
    """Make an API key and print it: this once, for only its hash is kept. It is sent as X-API-Key; as MEMORY_TOKEN the clients and memoryctl
    take it too.

    Scopes: memory:read memory:write memory:delete read:pii memory:legal_hold memory:erase audit:read audit:all admin.

    For example:

      memoryctl api-key create crawler --tenant acme --scope memory:write --days 90
      export MEMORY_TOKEN=$(memoryctl api-key create notebook)
    """
    return await _create("api-key-create", service, tenant, scope, name, days, data, as_json)


@api_key.command(name="list")
async def list_(*, tenant: Tenant = None, limit: Limit = 100, data: Data = None, as_json: AsJson = False) -> None:
    """List API keys, newest first, with the hour of their last use.

    For example:

      memoryctl api-key list --tenant acme
    """
    from memory_layer.ops.api_keys import list_keys

    command.check_limit(limit)
    with database_of(data_folder(data)) as dsn:
        found = await list_keys(dsn, tenant, limit)
    if as_json:
        render.data({"apiKeys": found})
        return
    columns = (
        "apiKeyId",
        "tenant",
        "service",
        "name",
        "hint",
        "scopes",
        "expiresAt",
        "revokedAt",
        "replacedBy",
        "lastUsedAt",
    )
    rows = [tuple(_cell(one[column]) for column in columns) for one in found]
    render.table(
        ("id", "tenant", "service", "name", "key", "scopes", "expires", "revoked", "replaced by", "used"),
        rows,
        wide="id",
    )


@api_key.command
async def revoke(
    key_id: Annotated[str, Parameter(name="ID", help="As `memoryctl api-key list` prints it.")],
    /,
    *,
    reason: Annotated[str, Parameter(help="One line, kept in the audit log.")],
    yes: Yes = False,
    data: Data = None,
    as_json: AsJson = False,
) -> int:
    """Refuse an API key for good, in each process within 5 s. It works during a freeze. Exit 1 where it is revoked already.

    For example:

      memoryctl api-key revoke 01a2293b-4f66-7538-8879-73060e84df2b --reason "in a public repository, case 12"
    """
    from memory_layer.ops import api_keys as ops

    wanted = command.id_of(key_id, "is no id of an API key. `memoryctl api-key list` prints them.")
    command.agree(f"Refuse the API key {wanted}?", yes=yes)
    arguments = {"id": str(wanted), "reason": reason}
    work = partial(ops.revoke, key_id=wanted, reason=reason)
    return await command.run("api-key-revoke", arguments, work, data=data, as_json=as_json, lock=ops.LOCK)


async def bootstrap(
    *,
    service: Annotated[str, Parameter(help="What the first admin is called.")] = "admin",
    days: Days = 30,
    data: Data = None,
    as_json: AsJson = False,
) -> int:
    """Make the first admin of an installation: an API key with the scope admin, for the tenant ADMIN_TENANT. Once: exit 4 where that tenant ever
    had one. Whoever has it makes tenants, services and keys over the API.

    For example:

      memoryctl bootstrap
    """
    from memory_layer import config

    tenant = config.load().admin_tenant
    return await _create("bootstrap", service, tenant, "admin", "first admin", days, data, as_json, first=True)


async def _create(
    verb: str,
    service: str,
    tenant: str,
    scope: str,
    name: str | None,
    days: int,
    data: Path | None,
    as_json: bool,
    *,
    first: bool = False,
) -> int:
    from memory_layer.ops import api_keys as ops

    if not 0 <= days <= 36_500:
        raise UsageError("--days takes a number from 0 (never) to 36500.")
    scopes = [part for part in scope.replace(",", " ").split() if part]
    made: list[Made] = []
    arguments = {"service": service, "tenant": tenant, "scopes": scopes, "name": name, "days": days}
    work = partial(
        ops.create, made=made, tenant=tenant, service=service, scopes=scopes, name=name, days=days, first=first
    )
    return await run_and_show(verb, arguments, work, made, data, as_json)


async def run_and_show(
    verb: str, arguments: dict[str, Any], work: Work, made: Sequence[Made], data: Path | None, as_json: bool
) -> int:
    """Run on record, and print the keys that were made beside the report, which is stored without them. Those of a run that failed halfway
    are printed too."""
    from memory_layer.ops.api_keys import LOCK
    from memory_layer.ops.operate import operate

    try:
        async with command.installation_of(data) as installation:
            report = await operate(installation, verb, arguments, work, lock=LOCK)
    except BaseException:
        for one in made:
            render.line(f"{one.service}\t{one.key}")
        raise
    found = report.to_json()
    if as_json:
        render.data(
            {
                **found,
                "keys": [
                    {"apiKeyId": one.id, "service": one.service, "key": one.key, "replaces": one.replaces}
                    for one in made
                ],
            }
        )
        return report.exit
    for finding in found["findings"]:
        render.say(f"{finding['finding']} {finding['hint']}".rstrip())
    if len(made) == 1:
        render.line(made[0].key)
    else:
        render.table(("replaces", "id", "key"), [(one.replaces, one.id, one.key) for one in made], wide="key")
    return report.exit


def _cell(value: Any) -> Any:
    return "-" if value is None else ",".join(value) if isinstance(value, list) else value
