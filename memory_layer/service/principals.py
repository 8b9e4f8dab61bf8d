"""Who acts: each service of a tenant has an opaque id, bound to it by an entry in the transaction that makes its row.

A caller whose service has no row yet carries a *draft* id. The committer makes row and entry before the first entry that names it,
under the log lock, or finds that another process was first and puts that one's id in the caller's place. So no entry names an actor
whom the log does not know, and no door but the committer's makes one (``docs/decisions/0027-principals.md``).
"""

from __future__ import annotations

from typing import Any, Final

from memory_layer.model import uuid7
from memory_layer.sql import queries
from memory_layer.stores.postgres import Postgres

# The installation's own service: from the entry that makes this principal on, the log knows every other one.
MARK: Final = "installation"

_SQL = queries("nodes")


async def find(postgres: Postgres, tenant: str, service: str) -> tuple[Any, bool]:
    """The id that stands for a service in the log, and whether it is a draft: none is there, and this one is not written yet."""
    (rows,) = await postgres.fetch(tenant, (_SQL["find_principal"], {"tenant": tenant, "service": service}))
    return (rows[0]["id"], False) if rows else (uuid7(), True)
