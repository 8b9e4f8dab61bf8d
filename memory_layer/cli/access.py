"""`memoryctl env` and `memoryctl token issue`: how a shell gets at a local Memory Layer."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit

from cyclopts import App, Parameter

from memory_layer import config
from memory_layer.cli import render
from memory_layer.cli.options import AsJson, Data, Yes
from memory_layer.errors import DependencyUnavailable, PolicyRefused, UsageError

token = App(name="token", help="Make development tokens; refuse a token.")

_UP_FILE_TIMEOUT = 5.0  # seconds


def env(*, data: Data = None, as_json: AsJson = False) -> None:
    """Print the address and token of a running `up` for the shell.

    For example:

      eval "$(memoryctl env)"
      eval "$(memoryctl env --data /srv/memory)"
    """
    folder = data_folder(data)
    running = read_up(folder)
    values = {"MEMORY_URL": str(running["url"]), "MEMORY_TOKEN": str(running["token"]), "MEMORY_DATA": str(folder)}
    values = {name: value for name, value in values.items() if value}
    if as_json:
        render.data(values)
    else:
        render.line("export " + " ".join(f"{name}={shlex.quote(value)}" for name, value in values.items()))


@token.command
def issue(
    *,
    service: Annotated[str, Parameter(help="The service that the token is for (its subject).")],
    tenant: Annotated[str, Parameter(help="Tenant that it belongs to.")] = "default",
    scope: Annotated[str, Parameter(help="Scopes, separated by commas.")] = "memory:read,memory:write,memory:delete",
    ttl: Annotated[int, Parameter(help="Lifetime in seconds.")] = 3600,
    data: Data = None,
    as_json: AsJson = False,
) -> None:
    """Make a token, signed with the data folder's own key. Refused where SERVICE_ENV is prod.

    Scopes: memory:read memory:write memory:delete read:pii memory:legal_hold memory:erase audit:read audit:all admin.

    For example:

      memoryctl token issue --service notebook
      memoryctl token issue --service auditor --scope audit:read --ttl 900
    """
    settings = config.load()
    if settings.service_env == "prod":
        raise PolicyRefused("tokens are not issued where SERVICE_ENV is prod: ask the identity provider there.")
    from memory_layer.ops import tokens

    scopes = [part for part in scope.replace(",", " ").split() if part]
    names = {"issuer": settings.jwt_issuer, "audience": settings.jwt_audience}
    made = tokens.issue(data_folder(data) / "keys" / "jwt.pem", service, tenant, scopes, ttl, **names)
    if as_json:
        render.data({"token": made, "service": service, "tenant": tenant, "scopes": scopes, "expiresIn": ttl})
    else:
        render.line(made)


@token.command
async def revoke(
    jti: Annotated[str, Parameter(help="The token's claim `jti`.")],
    /,
    *,
    tenant: Annotated[str, Parameter(help="Its tenant.")] = "default",
    reason: Annotated[str, Parameter(help="One line, kept in the audit log.")],
    yes: Yes = False,
    data: Data = None,
    as_json: AsJson = False,
) -> int:
    """Refuse one token (401 UNAUTHENTICATED), in each process within 5 s, for as long as it would have lived.

    Of a token without a `jti` revoke the service (`memoryctl principal revoke`). It works during a freeze. Exit 1 where it is revoked
    already.

    For example:

      memoryctl token revoke 5d0f1c86-93a4-4a31-9c3e-4b1a3a1f7c55 --reason "in a log file, case 12"
    """
    from functools import partial

    from memory_layer.cli import command
    from memory_layer.ops.principals import LOCK, revoke_token

    command.agree(f"Refuse the token {jti} of tenant {tenant}?", yes=yes)
    arguments = {"tenant": tenant, "jti": jti, "reason": reason}
    made = partial(revoke_token, tenant=tenant, jti=jti, reason=reason)
    return await command.run("token-revoke", arguments, made, data=data, as_json=as_json, lock=LOCK)


def data_folder(given: Path | None) -> Path:
    """``--data``, else MEMORY_DATA, else where `up` keeps its data by default."""
    chosen = given or config.load().memory_data
    if chosen:
        return Path(chosen).expanduser()
    from memory_layer.ops.data_folder import default_data_folder

    return default_data_folder()


def read_up(folder: Path) -> dict[str, Any]:
    """``up.json`` of the `up` that runs on this data folder; DependencyUnavailable when none does."""
    hint = f"Start it with: memoryctl up --data {shlex.quote(str(folder))}"
    # `up` says that it is there as soon as it answers, which somebody who watches /readyz may see a moment before.
    deadline = time.monotonic() + _UP_FILE_TIMEOUT
    while _starting(folder) not in (None, _pid_in_up_file(folder)) and time.monotonic() < deadline:
        time.sleep(0.02)
    try:
        found = json.loads((folder / "up.json").read_text("utf-8"))
        pid, url = int(found["pid"]), urlsplit(str(found["url"]))
        found["token"]
    except FileNotFoundError:
        raise DependencyUnavailable(f"no `memoryctl up` runs on {folder}. {hint}") from None
    except PermissionError:
        raise DependencyUnavailable(f"{folder / 'up.json'} belongs to another user. Ask them for a token.") from None
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise DependencyUnavailable(f"{folder / 'up.json'} cannot be understood ({error}). {hint}") from None
    # A killed `up` leaves its file behind, and its process id may belong to another program by now: ask both.
    if not (_alive(pid) and _listens(url.hostname or "127.0.0.1", url.port or 80)):
        raise DependencyUnavailable(f"the `memoryctl up` that ran on {folder} has stopped. {hint}")
    return dict(found)


def running_database(folder: Path) -> str | None:
    """The database of the `up` that runs on this data folder; None where none does."""
    try:
        return str(read_up(folder)["database"])
    except DependencyUnavailable:
        return None


@contextlib.contextmanager
def database_of(folder: Path) -> Iterator[str]:
    """DATABASE_URL, else the database of a running `up`, else the embedded one, started for the occasion."""
    dsn = config.load().database_url
    if dsn is not None:
        from memory_layer.stores.postgres import refuse_malformed

        refuse_malformed(dsn)
        yield dsn
        return
    try:
        dsn = str(read_up(folder)["database"])
    except DependencyUnavailable:
        if not (folder / "postgres").is_dir():
            raise
    # Outside the try: what fails in the caller's block is no sign that `up` does not run.
    if dsn is not None:
        yield dsn
        return
    from memory_layer.ops import embedded

    with embedded.start(folder, on_step=render.say) as cluster:
        yield cluster.dsn("memory_app")


@contextlib.contextmanager
def owner_database_of(folder: Path) -> Iterator[str]:
    """The database as the role that owns its tables: MIGRATION_DATABASE_URL, else DATABASE_URL, else the embedded one, started for the
    occasion. Raises PolicyRefused while an `up` runs on it."""
    settings = config.load()
    if settings.migrate_url is not None:
        yield settings.migrate_url
        return
    if running_database(folder) is not None:
        raise PolicyRefused(
            f"`memoryctl up` runs on {folder}. Stop it first: it would go on by the trust root that it has."
        )
    if not (folder / "postgres").is_dir():
        raise UsageError(
            "MIGRATION_DATABASE_URL or DATABASE_URL must name the database. `memoryctl up` brings its own; name its data folder with --data."
        )
    from memory_layer.ops import embedded

    with embedded.start(folder, on_step=render.say) as cluster:
        yield cluster.dsn(embedded.OWNER_ROLE)


def _starting(folder: Path) -> int | None:
    """The process of an ``up`` that has the data folder, and writes ``up.json`` sooner or later; None where there is none."""
    try:
        pid = int((folder / "lock").read_text("ascii"))
        command = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except (OSError, ValueError):
        return None
    return pid if b"up" in command else None


def _pid_in_up_file(folder: Path) -> int | None:
    try:
        return int(json.loads((folder / "up.json").read_text("utf-8"))["pid"])
    except PermissionError:
        return _starting(folder)  # nothing to wait for
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except PermissionError:
        return True
    except (ProcessLookupError, OverflowError):
        return False
    return True


def _listens(host: str, port: int) -> bool:
    try:
        socket.create_connection((host, port), timeout=2).close()
    except OSError:
        return False
    return True
