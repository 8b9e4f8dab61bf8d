"""The probe of writes shares its connections with searches, and takes nothing from them."""

from __future__ import annotations

from collections.abc import Callable

from memory_layer.stores.pipeline import statements
from memory_layer.stores.postgres import open_postgres


async def test_a_search_behind_a_probe_finds_its_statements(database: Callable[[str], str]) -> None:
    postgres = await open_postgres(database("memory_app"), size=1)
    call = (statements("vouch")["namespace"], {"tenant": "t", "name": "n"})
    try:
        for _ in range(6):  # psycopg prepares what it sees again
            assert await postgres.look("t", call) == [[]]
            await postgres.try_write("t", ("SELECT 1", {}))
            await postgres.fetch("t", ("SELECT 2", {}))
            assert await postgres.look("t", call) == [[]]
    finally:
        await postgres.close()
