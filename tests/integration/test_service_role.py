"""The role of DATABASE_URL at the start: with too many rights it is warned of, in production refused; missing rights are named."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator

import psycopg
import pytest

from memory_layer.errors import DatabaseUnavailable, PolicyRefused
from memory_layer.stores.postgres import open_postgres
from memory_layer.stores.service_role import check_role

Database = Callable[[str], str]


async def _check(dsn: str, *, prod: bool) -> None:
    postgres = await open_postgres(dsn, size=1)
    try:
        await check_role(postgres, prod=prod)
    finally:
        await postgres.close()


@pytest.fixture
def role(database: Database) -> Iterator[Callable[[str], str]]:
    """A login made of the words that follow CREATE ROLE; its DSN."""
    made = []

    def make(words: str) -> str:
        name = f"r_{len(made)}_{database('memory_app').rpartition('/')[2].partition('?')[0]}"
        with psycopg.connect(database("postgres"), autocommit=True) as root:
            root.execute(f"CREATE ROLE {name} LOGIN {words}")  # type: ignore[arg-type]
            root.execute(f"GRANT memory_app TO {name}")  # type: ignore[arg-type]
        made.append(name)
        return database(name)

    yield make
    with psycopg.connect(database("postgres"), autocommit=True) as root:
        for name in made:
            root.execute(f"DROP OWNED BY {name}")  # type: ignore[arg-type]
            root.execute(f"DROP ROLE {name}")  # type: ignore[arg-type]


async def test_the_runtime_role_is_in_order(database: Database, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        await _check(database("memory_app"), prod=True)
    assert caplog.text == ""


async def test_so_is_a_member_of_it(role: Callable[[str], str]) -> None:
    await _check(role(""), prod=True)


@pytest.mark.parametrize(("words", "why"), [("SUPERUSER", "superuser"), ("BYPASSRLS", "BYPASSRLS")])
async def test_one_above_row_security_is_warned_of_and_refused_in_production(
    role: Callable[[str], str], caplog: pytest.LogCaptureFixture, words: str, why: str
) -> None:
    dsn = role(words)
    with caplog.at_level(logging.WARNING):
        await _check(dsn, prod=False)
    assert why in caplog.text
    assert "memory_app" in caplog.text
    with pytest.raises(PolicyRefused, match=why) as refused:
        await _check(dsn, prod=True)
    assert refused.value.exit_code == 4


async def test_the_owner_and_who_may_become_it(database: Database, role: Callable[[str], str]) -> None:
    with pytest.raises(PolicyRefused, match="owns the tables"):
        await _check(database("memory_owner"), prod=True)
    member = role("NOINHERIT IN ROLE memory_owner")  # by SET ROLE alone
    with psycopg.connect(database("postgres"), autocommit=True) as root:
        for (table,) in root.execute(
            "SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r','p')"
        ).fetchall():
            root.execute(
                f"GRANT SELECT, INSERT, UPDATE, DELETE ON {table} TO {psycopg.conninfo.conninfo_to_dict(member)['user']}"
            )  # type: ignore[arg-type]
    with pytest.raises(PolicyRefused, match="owns the tables"):
        await _check(member, prod=True)


@pytest.mark.parametrize("right", ["SELECT", "INSERT"])
async def test_a_missing_right_is_named(database: Database, right: str) -> None:
    with psycopg.connect(database("memory_owner"), autocommit=True) as owner:
        owner.execute(f"REVOKE {right} ON audit_events FROM memory_app")  # type: ignore[arg-type]
    with pytest.raises(DatabaseUnavailable, match=f"{right} on audit_events.*migrate apply"):
        await _check(database("memory_app"), prod=False)
