"""Which services are down for each worker, in the table ``worker_breakers``: the API is another process than the workers."""

from __future__ import annotations

from memory_layer.service.installation import Installation
from memory_layer.sql import queries
from memory_layer.stores.postgres import ALL_TENANTS

_SQL = queries("indexing")


async def breakers(installation: Installation) -> dict[str, str]:
    """Service to state, of those that some worker does without."""
    (rows,) = await installation.postgres.fetch(ALL_TENANTS, (_SQL["breakers"], {}))
    return {row["service"]: "open" if row["open"] else "half_open" for row in rows}


async def write_breakers(installation: Installation, worker: str) -> None:
    """Write down which services this worker does without now."""
    rows = [
        {"worker": worker, "service": b.service, "state": b.state, "reason": b.reason[:1000], "since": b.since}
        for b in installation.breakers.not_closed()
    ]
    await installation.postgres.run(
        ALL_TENANTS,
        *((_SQL["put_breaker"], row) for row in rows),
        (_SQL["drop_breakers"], {"worker": worker, "open": [row["service"] for row in rows]}),
    )


async def forget_breakers(installation: Installation, worker: str) -> None:
    """A worker that ends does without nothing any more."""
    await installation.postgres.run(ALL_TENANTS, (_SQL["drop_breakers"], {"worker": worker, "open": []}))
