"""This installation's log: the one that its trust root names, found by that name and not because it is the newest."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final, NamedTuple

import psycopg

from memory_layer.audit.origin import incarnation_of
from memory_layer.audit.trust_root import TrustRoot, load
from memory_layer.errors import LogNotOpen, NotYetPublished, UsageError, ValidationError
from memory_layer.sql import queries
from memory_layer.stores.postgres import ALL_TENANTS, Postgres, connect, translate_errors

TRUST_ROOT: Final = "trust-root.json"

_SQL, _LOG = queries("logs"), queries("log")


class HeldLog(NamedTuple):
    """A log that is written to in this database. ``key_id``: of the key that is to seal it now, as the database says."""

    log: int
    origin: str
    key_id: str


def read_trust_root(folder: Path) -> TrustRoot:
    """The data folder's own. Raises UsageError where there is none, or none that can be used."""
    path = folder / TRUST_ROOT
    try:
        return load(path.read_bytes())
    except OSError as error:
        raise UsageError(
            f"{path} cannot be read: {error.strerror}. It says which log is this installation's and whose seals count. Name the data "
            "folder that the log was started with (--data or MEMORY_DATA), or copy the file from there; `memoryctl up`, or `memoryctl "
            "migrate apply --open-log`, makes it for a database that has no log yet."
        ) from error
    except ValidationError as error:
        raise UsageError(f"{path} cannot be used: {error.message}") from error


def find_trust_root(folder: Path) -> TrustRoot | None:
    """The same; None where the folder has none yet."""
    return read_trust_root(folder) if (folder / TRUST_ROOT).exists() else None


async def find_log(postgres: Postgres, origin: str) -> int:
    """The number of the log of that name. Raises LogNotOpen where the database holds none."""
    (rows,) = await postgres.fetch(ALL_TENANTS, (_SQL["find"], {"origin": origin}))
    if not rows:
        raise no_such_log(origin)
    number: int = rows[0]["log"]
    return number


def no_such_log(origin: str) -> LogNotOpen:
    return LogNotOpen(
        f"This database does not hold the log {origin}, which {TRUST_ROOT} names, so there is nothing to write to. Give the process the "
        "database that the log is in (DATABASE_URL), or the data folder that belongs to this database (--data or MEMORY_DATA)."
    )


def log_ended(origin: str, by: str) -> LogNotOpen:
    return LogNotOpen(
        f"The log {origin}, which {TRUST_ROOT} names, was ended by an operator: {by} goes on from it, and nothing is written here any more. "
        f"Copy the new {TRUST_ROOT} to this data folder, and start again. Where it was not made yet, `memoryctl audit new-log` was cut off: "
        "run it again. See docs/runbooks/new-log.md."
    )


async def held_logs(dsn: str) -> list[HeldLog]:
    """The logs that are written to in this database, the oldest first; none where no log was opened."""
    with translate_errors():
        connection = await connect(dsn)
        try:
            return await _held(connection)
        finally:
            await connection.close()


async def newest_checkpoint(dsn: str, folder: Path) -> bytes:
    """The newest published note of the log that this data folder names; where it names none, of the only log in the database.

    Raises NotYetPublished, and UsageError where neither says which log.
    """
    logs = [] if (folder / TRUST_ROOT).exists() else await held_logs(dsn)
    origin = logs[0].origin if len(logs) == 1 else read_trust_root(folder).origin
    with translate_errors():
        connection = await connect(dsn)
        try:
            row = await (await connection.execute(_LOG["checkpoint"], {"origin": origin})).fetchone()
        finally:
            await connection.close()
    if row is None:
        raise NotYetPublished(
            "No checkpoint is published yet. A running worker makes one about a second after a write."
        )
    return bytes(row["note"].encode())


async def open_log(dsn: str, origin: str, key_id: str) -> list[HeldLog]:
    """Open the first log of a database that has none, as the role that owns the tables; what it holds then.

    Under the log lock: of two operators that meet on an empty database one opens the log, and the other sees whose it is.
    Raises LogNotOpen where this role may not.
    """
    with translate_errors():
        connection = await connect(dsn)
        try:
            async with connection.transaction():
                await connection.execute(_SQL["lock"])
                await connection.execute(_SQL["open"], {"origin": origin, "key_id": key_id})
                return await _held(connection)
        except psycopg.errors.InsufficientPrivilege as error:
            raise LogNotOpen(
                "No log was opened in this database yet, and the role of DATABASE_URL may not open one: that is an operator's act. Run "
                "`memoryctl migrate apply --open-log` with MIGRATION_DATABASE_URL (the role that owns the tables) and the data folder "
                "and signer of this service, then start again."
            ) from error
        finally:
            await connection.close()


async def open_next(dsn: str, origin: str, key_id: str) -> None:
    """Open a new incarnation of a log, as the role that owns the tables. Raises LogNotOpen where this role may not."""
    with translate_errors():
        connection = await connect(dsn)
        try:
            async with connection.transaction():
                await connection.execute("SELECT set_config('memory.all_tenants', 'on', true)")
                await connection.execute(_SQL["lock"])
                facts = {"origin": origin, "incarnation": incarnation_of(origin), "key_id": key_id}
                await connection.execute(_SQL["open_next"], facts)
                await connection.execute(_SQL["unbind_principals"])
        except psycopg.errors.InsufficientPrivilege as error:
            raise LogNotOpen(
                "The role of this connection may not open a log: that is an operator's act. Set MIGRATION_DATABASE_URL to the role that "
                "owns the tables, and run it again. Nothing was changed."
            ) from error
        finally:
            await connection.close()


async def _held(connection: Any) -> list[HeldLog]:
    rows = await (await connection.execute(_SQL["held"])).fetchall()
    return [HeldLog(row["log"], row["origin"], row["key_id"]) for row in rows]
