"""The role that the service connects as, judged at the start: one with too many rights reads other tenants' rows, one with too few fails
at the first request."""

from __future__ import annotations

import re
from typing import Final

from memory_layer.errors import DatabaseUnavailable, PolicyRefused
from memory_layer.sql import grants, queries
from memory_layer.stores.postgres import ALL_TENANTS, Postgres
from memory_layer.telemetry.logs import get_logger

_RIGHT = re.compile(
    r"\b(SELECT|INSERT|UPDATE|DELETE)\b(?! \()"
)  # on the whole table; those on columns are not looked at

NAMED: Final = 5  # tables that an error names

log = get_logger(__name__)
_SQL = queries("service_role")


def needed() -> list[tuple[str, str]]:
    """Table and right, as ``sql/grants.sql`` gives them to memory_app."""
    given = re.findall(r"\('(\w+)', '([A-Z][^']*)'", grants())
    return [(table, right) for table, rights in given for right in _RIGHT.findall(rights)]


async def check_role(postgres: Postgres, *, prod: bool) -> None:
    """Warn of a role that is above the rules of the database; in production refuse it.

    Raises PolicyRefused (production, too many rights) and DatabaseUnavailable (rights that are missing, by name).
    """
    tables, rights = zip(*needed(), strict=True)
    powers, missing = await postgres.fetch(
        ALL_TENANTS, (_SQL["powers"], {}), (_SQL["missing"], {"tables": list(tables), "rights": list(rights)})
    )
    role = powers[0]
    if missing:
        names = ", ".join(f"{row['rights']} on {row['name']}" for row in missing[:NAMED])
        more = f" and more on {len(missing) - NAMED} other tables" if len(missing) > NAMED else ""
        raise DatabaseUnavailable(
            f"The role {role['name']} of DATABASE_URL lacks rights that the service needs: {names}{more}. Run `memoryctl migrate apply` as the tables' owner "
            f"(MIGRATION_DATABASE_URL): it grants what the role memory_app needs. Connect as memory_app, or as a role that is a member "
            "of it and inherits its rights."
        )
    if (why := _too_much(role["superuser"], role["bypasses"], role["owns"])) is None:
        return
    message = (
        f"The role {role['name']} of DATABASE_URL {why}. Give DATABASE_URL the role memory_app, which `memoryctl migrate apply` "
        "grants what the service needs, and keep the owner for MIGRATION_DATABASE_URL."
    )
    if prod:
        raise PolicyRefused(f"SERVICE_ENV is prod. {message}")
    log.warning(
        "the database role has other rights than it needs; with SERVICE_ENV=prod the service does not start",
        reason=message,
    )


def _too_much(superuser: bool, bypasses: bool, owns: bool) -> str | None:
    if superuser:
        return "is a superuser or may become one: row security, which keeps tenants apart, does not bind it, and it can change the audit log"
    if bypasses:
        return "has BYPASSRLS or may become a role that has: row security, which keeps tenants apart, does not bind it"
    if owns:
        return "owns the tables or may become their owner: it can switch off row security and the triggers that keep the audit log append-only"
    return None
