"""A call of Postgres that is given up in the middle: the connection it ran on, and the calls after it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from memory_layer.stores.pipeline import statement
from memory_layer.stores.postgres import ALL_TENANTS, open_postgres

SLEEP = ("SELECT pg_sleep(%(seconds)s)", {"seconds": 30})
QUESTION = ("SELECT count(*) AS nodes FROM memory_nodes WHERE id = %(id)s::uuid", {"id": None})


async def test_a_fetch_that_is_given_up_leaves_nothing_behind(database: Callable[[str], str]) -> None:
    """psycopg prepares what is asked often. What stood behind the cancelled statement was never prepared."""
    postgres = await open_postgres(database("memory_app"), size=1)
    try:
        await postgres.fetch("ann", QUESTION)
        for _ in range(3):
            try:
                async with asyncio.timeout(0.3):
                    await postgres.run(ALL_TENANTS, SLEEP, QUESTION)
            except TimeoutError:
                pass
            for _ in range(3):
                assert await postgres.fetch("ann", QUESTION) == [[{"nodes": 0}]]
    finally:
        await postgres.close()


async def test_a_look_that_is_given_up_leaves_nothing_behind(database: Callable[[str], str]) -> None:
    postgres = await open_postgres(database("memory_app"), size=1)
    sleep = statement("sleep", "SELECT pg_sleep(%(seconds)s::float8)")
    one = statement("one", "SELECT %(number)s::int AS number")
    try:
        for turn in range(3):
            try:
                async with asyncio.timeout(0.3):
                    await postgres.look("ann", (sleep, {"seconds": 30.0}), (one, {"number": -1}))
            except TimeoutError:
                pass
            assert await postgres.look("ann", (one, {"number": turn})) == [[{"number": turn}]]
            assert await postgres.fetch("ann", QUESTION) == [[{"nodes": 0}]]
    finally:
        await postgres.close()


@pytest.mark.parametrize("end", ["try_write", "leading"])
async def test_a_look_after_a_rollback_on_the_same_connection(database: Callable[[str], str], end: str) -> None:
    """After a ROLLBACK psycopg has the server forget all prepared statements, also those that the pipeline prepared."""
    postgres = await open_postgres(database("memory_app"), size=1)
    one = statement("one", "SELECT %(number)s::int AS number")
    try:
        for turn in range(3):
            for _ in range(5):
                assert await postgres.fetch("ann", QUESTION) == [[{"nodes": 0}]]
                assert await postgres.look("ann", (one, {"number": turn})) == [[{"number": turn}]]
            if end == "try_write":
                await postgres.try_write("ann", QUESTION)
            else:
                with pytest.raises(RuntimeError):
                    async with postgres.leading(7):
                        raise RuntimeError
            assert await postgres.fetch("ann", QUESTION) == [[{"nodes": 0}]]
            assert await postgres.look("ann", (one, {"number": turn})) == [[{"number": turn}]]
    finally:
        await postgres.close()
