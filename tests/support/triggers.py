"""Forgers who own the database switch triggers off; afterwards they switch them on again, for a schema that differs is found by itself."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import psycopg


def switch_off(connection: psycopg.Connection[Any], *tables: str) -> None:
    """All of them, those behind foreign keys too; as a superuser."""
    for table in tables:
        connection.execute(f"ALTER TABLE {table} DISABLE TRIGGER ALL")


def switch_on(connection: psycopg.Connection[Any], *tables: str) -> None:
    """As the migrations leave them: every trigger of the product's own fires always."""
    for table in tables:
        connection.execute(f"ALTER TABLE {table} ENABLE TRIGGER ALL")
        names = connection.execute(
            "SELECT tgname FROM pg_trigger WHERE tgrelid = %s::regclass AND NOT tgisinternal", [table]
        ).fetchall()
        for (name,) in names:
            connection.execute(f"ALTER TABLE {table} ENABLE ALWAYS TRIGGER {name}")


@contextlib.contextmanager
def switched_off(connection: psycopg.Connection[Any], *tables: str) -> Iterator[None]:
    switch_off(connection, *tables)
    yield
    switch_on(connection, *tables)


@contextlib.contextmanager
def switched_on(connection: psycopg.Connection[Any], *tables: str) -> Iterator[None]:
    """For a look at the database meanwhile."""
    switch_on(connection, *tables)
    yield
    switch_off(connection, *tables)
