"""Databases of the session's Postgres, each made as a copy."""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Callable, Iterator

import psycopg
from psycopg.conninfo import make_conninfo

from memory_layer.ops import embedded

Database = Callable[[str], str]


@contextlib.contextmanager
def new_database(cluster: embedded.Cluster, template: str = "memory") -> Iterator[Database]:
    """A database of the owner's for the length of the block: called with a role, its DSN.

    A copy of ``template``, which nobody may be connected to: "memory" is migrated, "template1" is empty.
    """
    with copied(cluster.dsn("postgres", "postgres"), template) as name:
        yield lambda role: cluster.dsn(role, name)


@contextlib.contextmanager
def copied(dsn: str, template: str) -> Iterator[str]:
    """The name of a copy of ``template``, there for the length of the block. ``dsn``: a superuser's, of any database of the server.

    It is copied as files, which costs less than copying it through the log.
    """
    name = f"t_{uuid.uuid4().hex[:12]}"
    with psycopg.connect(make_conninfo(dsn, dbname="postgres"), autocommit=True) as server:
        server.execute(f"CREATE DATABASE {name} TEMPLATE {template} OWNER memory_owner STRATEGY FILE_COPY")
        try:
            server.execute(f"GRANT CONNECT ON DATABASE {name} TO memory_app")
            yield name
        finally:
            server.execute(f"DROP DATABASE {name} WITH (FORCE)")
