"""Rows whose entries are in the log before this one: held to what the first entry of this log says of them as a whole."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from typing import Any

from memory_layer.ops.tables.found import LOG_TABLE, Look, plain
from memory_layer.ops.tables.statements import Statements


def digest_of(rows: Iterable[Sequence[Any]]) -> dict[str, Any]:
    """How many rows, and the SHA-256 of all of them in the order of their ids, which stand first."""
    digest, count = hashlib.sha256(), 0
    for row in sorted(rows, key=lambda row: str(row[0])):
        digest.update(plain(list(row)).encode() + b"\n")
        count += 1
    return {"rows": count, "sha256": digest.hexdigest()}


def check_carried(look: Look, stated: Statements, table: str, rows: Sequence[Sequence[Any]]) -> None:
    """A finding where these rows, which no entry of this log is about, are not those that were there when it was opened."""
    opened = stated.opening
    statement = {} if opened is None or opened.payload is None else opened.payload.get("tables", {})
    expected, found = statement.get(table), digest_of(rows)
    if opened is not None and expected != found:
        rows_ = "none" if not isinstance(expected, dict) else f"{expected.get('rows')} rows"
        text = f"{table}: the {rows_} from before this log, as its first entry says"
        look.found.add(LOG_TABLE, text, f"{found['rows']} rows, or others", seq=opened.seq)
