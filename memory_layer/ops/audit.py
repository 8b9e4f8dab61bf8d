"""Verify the log in a live database, and the rows against the log."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
from psycopg import Connection

from memory_layer import canonical
from memory_layer.audit.entry import state_hash
from memory_layer.audit.seal_chain import SealRow
from memory_layer.audit.trust_root import TrustRoot
from memory_layer.audit.verdict import Finding, Verdict
from memory_layer.audit.verify import STATE_NOT_CHECKED, Row, verify
from memory_layer.errors import DependencyUnavailable
from memory_layer.model import Node
from memory_layer.service.changes import state_of
from memory_layer.sql import queries

_SQL = queries("audit")
_PAGE = 2000
_MOST_FINDINGS = 100

Progress = Callable[[int], None]


def verify_live(
    dsn: str, root: TrustRoot, *, pinned: bool, payloads: bool = True, progress: Progress | None = None
) -> Verdict:
    """Judge the log that the trust root speaks for, as one snapshot of the database shows it, then the rows against it.

    Streams: memory does not grow with the log but for 16 bytes an entry. ``progress`` is told how many entries were read.
    Raises DependencyUnavailable when the database does not answer.
    """
    try:
        with psycopg.connect(dsn, connect_timeout=5, application_name="memoryctl audit verify") as connection:
            connection.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
            connection.read_only = True
            connection.execute("SELECT set_config('memory.all_tenants', 'on', false)")
            logs = connection.execute(_SQL["logs"]).fetchall()
            number, origin = next(((n, o) for n, o in logs if o == root.origin), logs[0] if logs else (0, root.origin))
            verdict = verify(
                root,
                _rows(connection, number, progress),
                _seals(connection, number),
                expected_origin=origin,
                pinned=pinned,
                payloads=payloads,
            )
            findings = list(_reconcile(connection))
            return verdict.extended(findings, checked=[STATE_NOT_CHECKED])
    except psycopg.OperationalError as error:
        raise DependencyUnavailable(f"Postgres does not answer: {' '.join(str(error).split())}") from error


def entries(dsn: str) -> int:
    """How many entries there are about to be read, for a progress bar."""
    with psycopg.connect(dsn, connect_timeout=5) as connection:
        row = connection.execute("SELECT coalesce(max(last_seq) + 1, 0) FROM audit_seals").fetchone()
        return int(row[0]) if row else 0


def _rows(connection: Connection[Any], log: int, progress: Progress | None) -> Iterator[Row]:
    with connection.cursor("audit_rows") as cursor:
        cursor.itersize = _PAGE
        cursor.execute(_SQL["rows"], {"log": log})
        for count, row in enumerate(cursor, start=1):
            if progress is not None and count % _PAGE == 0:
                progress(count)
            yield Row(*row)


def _seals(connection: Connection[Any], log: int) -> Iterator[SealRow]:
    with connection.cursor("audit_seals") as cursor:
        cursor.itersize = _PAGE
        cursor.execute(_SQL["seals"], {"log": log})
        for batch, text, signature in cursor:
            yield SealRow(batch, text.encode(), signature)


def _reconcile(connection: Connection[Any]) -> Iterator[Finding]:
    """STATE_RECONCILE_MISMATCH for each row that is not what its latest entry committed to, or is not there."""
    found = 0
    with connection.cursor("node_states", row_factory=psycopg.rows.dict_row) as cursor:
        cursor.itersize = _PAGE
        cursor.execute(_SQL["states"])
        for row in cursor:
            vector, seq, entry, salt = row.pop("vector"), row.pop("seq"), row.pop("entry"), row.pop("salt")
            node = Node(**row)
            if entry is None:
                yield _mismatch(None, "an entry for every row", f"node {node.id} has none")
                found += 1
            elif salt is not None:  # else its payload was erased, and the state with it
                given = None if vector is None else hashlib.sha256(base64.b64decode(vector)).hexdigest()
                state = state_of(node, None) | {"vector": given}
                committed = json.loads(bytes(entry)).get("state")
                actual = state_hash(bytes(salt), canonical.dumps(state))
                if committed != actual:
                    yield _mismatch(
                        seq, f"node {node.id} as entry {seq} left it", "another row, changed without an entry"
                    )
                    found += 1
            if found >= _MOST_FINDINGS:
                return
    for seq, node_id in connection.execute(_SQL["lost_nodes"]).fetchall():
        yield _mismatch(seq, f"node {node_id}, created by entry {seq}", "no such row")


def _mismatch(seq: int | None, expected: str, found: str) -> Finding:
    return Finding("STATE_RECONCILE_MISMATCH", expected, found, seq=seq)
