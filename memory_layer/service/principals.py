"""Who acts: each service of a tenant has an opaque id, bound to it by an entry in the transaction that makes its row.

A caller whose service has no row yet carries a *draft* id. The committer makes row and entry before the first entry that names it,
under the log lock, or finds that another process was first and puts that one's id in the caller's place. So no entry names an actor
whom the log does not know, and no door but the committer's makes one (``docs/decisions/0027-principals.md``).
"""

from __future__ import annotations

from typing import Final, Literal

from memory_layer.model import SYSTEM_TENANT, Caller, uuid7
from memory_layer.sql import queries
from memory_layer.stores.postgres import Postgres

# The installation's own service: from the entry that makes this principal on, the log knows every other one.
MARK: Final = "installation"

_SQL = queries("principals")


async def find_caller(
    postgres: Postgres,
    tenant: str,
    service: str,
    *,
    auth: Literal["jwt", "system"],
    scopes: frozenset[str] = frozenset(),
    request_id: str | None = None,
) -> Caller:
    """A service of a tenant as the log knows it: by the id of its row, or by a draft id where it has none yet."""
    (rows,) = await postgres.fetch(tenant, (_SQL["find"], {"tenant": tenant, "service": service}))
    return Caller(
        tenant=tenant,
        actor=rows[0]["id"] if rows else uuid7(),
        service=service,
        auth=auth,
        scopes=scopes,
        request_id=request_id or str(uuid7()),
        draft=not rows,
    )


async def known_caller(postgres: Postgres, service: str, request_id: str | None = None) -> Caller:
    """The installation itself as ``service`` (worker, memoryctl, ...)."""
    return await find_caller(postgres, SYSTEM_TENANT, service, auth="system", request_id=request_id)
