"""The findings about tables, in bounded memory, and how a row's values are compared with what entries say."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Final, LiteralString, NamedTuple

from psycopg import Connection

from memory_layer import canonical
from memory_layer.audit.entry import is_payload
from memory_layer.audit.trust_root import TrustRoot
from memory_layer.audit.verdict import Finding
from memory_layer.errors import ValidationError
from memory_layer.sql import queries

SQL: Final = queries("tables")
LOG_TABLE: Final = "LOG_TABLE_MISMATCH"
STATE: Final = "STATE_RECONCILE_MISMATCH"
_PAGE: Final = 1000  # rows held at a time
_MAX_FINDINGS: Final = 100  # findings of each code; the rest are counted
_PAYLOAD: Final = b',"payload":"'


@dataclass(slots=True)
class Found:
    """Findings and what was not checked. Texts name tables, columns and opaque ids, never values: those may be personal data."""

    findings: list[Finding] = field(default_factory=list)
    unlisted: int = 0
    not_checked: list[str] = field(default_factory=list)
    _counts: dict[str, int] = field(default_factory=dict)

    def add(self, code: str, expected: str, found: str, *, seq: int | None = None, batch: int | None = None) -> None:
        count = self._counts[code] = self._counts.get(code, 0) + 1
        if count > _MAX_FINDINGS:
            self.unlisted += 1
        else:
            self.findings.append(Finding(code, expected, found, seq=seq, batch=batch))

    def differ(
        self, code: str, what: str, as_: str, columns: list[str], *, seq: int | None = None, batch: int | None = None
    ) -> None:
        """A finding about the columns of one row, where there are any."""
        if columns:
            self.add(code, f"{what} as {as_}", f"other: {', '.join(columns)}", seq=seq, batch=batch)


class Look(NamedTuple):
    """What every check is given. ``intact``: nothing is wrong with the log itself, so what is derived from it can be made again."""

    connection: Connection[Any]
    log: int
    root: TrustRoot
    found: Found
    intact: bool

    @property
    def imported(self) -> bool:
        """Whether the log is a copy that was brought back from an archive."""
        return self.log < 0

    def rows(self, name: str, **facts: Any) -> list[tuple[Any, ...]]:
        """All rows of a query of ``tables.sql`` whose number is bounded by something small."""
        return self.connection.execute(_query(name), {"log": self.log, **facts}, binary=True).fetchall()

    def stream(self, name: str) -> Iterator[tuple[Any, ...]]:
        """The same, a page at a time."""
        with self.connection.cursor(f"tables_{name}") as cursor:
            cursor.itersize = _PAGE
            cursor.execute(_query(name), {"log": self.log}, binary=True)
            yield from cursor


def _query(name: str) -> LiteralString:
    return SQL[name]


def differing_columns(stored: Mapping[str, Any], expected: Mapping[str, Any]) -> list[str]:
    """Names of the columns whose value is another than the expected one."""
    return [name for name, value in expected.items() if stored[name] != value]


@lru_cache(maxsize=256)
def moment(text: str | None) -> str | None:
    """A time as entries spell it, of one as Postgres does in UTC; what no entry can name (infinity, 44 BC) stays as it is."""
    if text is None:
        return None
    clock, _, zone = text.partition("+")
    if zone != "00":
        return text
    whole, _, fraction = clock.partition(".")
    return f"{whole.replace(' ', 'T')}.{fraction:0<6}Z"


def later(one: str | None, other: str | None) -> bool:
    """Whether the first of two moments comes after the second; what is no moment at all comes after every one."""
    if one is None or other is None:
        return False
    return not one.endswith("Z") or one > other


def plain(value: Any) -> str:
    """JSON in one spelling, to be compared: that of entries, in which 300.0 is 300."""
    try:
        return canonical.dumps(value).decode()
    except ValidationError:  # what no entry can hold
        return json.dumps(value, sort_keys=True, separators=(",", ":"))


def payload_of(entry: bytes, salt: bytes | None, payload: bytes | None) -> dict[str, Any] | None:
    """The payload that an entry commits to; None where there is none, it is another, or no object. Those are findings elsewhere."""
    place = entry.find(_PAYLOAD) + len(_PAYLOAD)
    if payload is None or place < len(_PAYLOAD):
        return None
    if not is_payload(entry[place : place + 64].decode("ascii", "replace"), salt, payload):
        return None
    try:
        value = json.loads(payload)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None
