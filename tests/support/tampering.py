"""A database in the hands of a superuser: any column changed, any row removed or put in, and all of it back as it was."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, LiteralString, NamedTuple

import psycopg
from psycopg import sql

# What a value is changed to, by its type; the first that the table's own constraints let through is taken.
CHANGES: dict[str, tuple[str, ...]] = {
    "text": ("{c} || 'x'", "overlay({c} placing CASE WHEN {c} LIKE '0%' THEN '1' ELSE '0' END from 1 for 1)", "'x'"),
    "int2": ("{c} + 1", "1"),
    "int4": ("{c} + 1", "{c} - 1", "1"),
    "int8": ("{c} + 1", "{c} - 1", "5000"),
    "bool": ("NOT {c}",),
    "timestamptz": ("{c} - interval '1 day'", "{c} + interval '1 day'", "now() - interval '1 day'"),
    "uuid": ("gen_random_uuid()",),
    "jsonb": ("{c} || '{{\"x\": 1}}'", "'{{\"x\": 1}}'"),
    "bytea": ("set_byte({c}, 0, get_byte({c}, 0) # 1)", "'x'"),
    "tsvector": ("to_tsvector('tampered')",),
    "_text": ("array_append({c}, 'x')",),
    "_uuid": ("array_append({c}, gen_random_uuid())",),
    "_int4": ("array_append({c}, 7)",),
    "_int8": ("array_append({c}, 7)",),
    "_bytea": ("array_append({c}, 'x')",),
}


# Nothing takes a row of a table that has no partition yet.
_PARTITIONS: dict[str, tuple[LiteralString, LiteralString]] = {
    "access_log": ("CREATE TABLE access_log_now PARTITION OF access_log DEFAULT", "DROP TABLE access_log_now")
}


class Column(NamedTuple):
    table: str
    name: str
    type: str

    def __str__(self) -> str:
        return f"{self.table}.{self.name}"


@dataclass
class Bench:
    """``connection`` is a superuser's, in autocommit."""

    connection: psycopg.Connection[Any]
    _kept: dict[str, bytes] = field(default_factory=dict)

    def columns(self) -> list[Column]:
        """Every column of every table of the schema ``public``, as the catalogue has them."""
        return [
            Column(*row)
            for row in self.connection.execute(
                "SELECT c.relname, a.attname, t.typname FROM pg_attribute a"
                " JOIN pg_class c ON c.oid = a.attrelid JOIN pg_type t ON t.oid = a.atttypid"
                " WHERE c.relnamespace = 'public'::regnamespace AND c.relkind IN ('r', 'p') AND NOT c.relispartition"
                " AND a.attnum > 0 AND NOT a.attisdropped ORDER BY c.relname, a.attnum"
            )
        ]

    def count(self, table: str) -> int:
        query = sql.SQL("SELECT count(*) FROM {}").format(sql.Identifier(table))
        ((count,),) = self.connection.execute(query).fetchall()
        return int(count)

    @contextmanager
    def tampered(self, table: str, statement: str, *, prepare: str | None = None) -> Iterator[int]:
        """One statement on one table, whatever forbids it but the table's own constraints; how many rows it touched.

        ``prepare``: a statement before it, where the table is empty.
        """
        kept = self._keep(table)
        with self._unguarded(table):
            if table in _PARTITIONS:
                self.connection.execute(_PARTITIONS[table][0])
            if prepare is not None and prepare != statement:
                self.connection.execute(prepare)  # type: ignore[call-overload]
            touched = self.connection.execute(statement).rowcount  # type: ignore[call-overload]
        try:
            yield touched
        finally:
            with self._unguarded(table):
                self.connection.execute(sql.SQL("DELETE FROM {}").format(sql.Identifier(table)))
                copy = sql.SQL("COPY {} FROM STDIN (FORMAT binary)").format(sql.Identifier(table))
                with self.connection.cursor().copy(copy) as into:
                    into.write(kept)
                if table in _PARTITIONS:
                    self.connection.execute(_PARTITIONS[table][1])

    def _keep(self, table: str) -> bytes:
        if table not in self._kept:
            copy = sql.SQL("COPY (SELECT * FROM {}) TO STDOUT (FORMAT binary)").format(sql.Identifier(table))
            with self.connection.cursor().copy(copy) as out:
                self._kept[table] = b"".join(bytes(piece) for piece in out)
        return self._kept[table]

    @contextmanager
    def _unguarded(self, table: str) -> Iterator[None]:
        """In one transaction, with every trigger off and each as it was at its end: the schema is another matter."""
        name = sql.Identifier(table)
        with self.connection.transaction():
            self.connection.execute("SET LOCAL session_replication_role = replica")
            self.connection.execute("SET LOCAL lock_timeout = '20s'")
            always = self.connection.execute(
                "SELECT tgname FROM pg_trigger WHERE tgrelid = %s::regclass AND tgenabled = 'A'", [table]
            ).fetchall()
            for (trigger,) in always:
                self.connection.execute(
                    sql.SQL("ALTER TABLE {} DISABLE TRIGGER {}").format(name, sql.Identifier(trigger))
                )
            yield
            for (trigger,) in always:
                self.connection.execute(
                    sql.SQL("ALTER TABLE {} ENABLE ALWAYS TRIGGER {}").format(name, sql.Identifier(trigger))
                )
