"""JSON out of rows: at once where it is small, else in a thread, once the rows are here.

A driver decodes a column when it makes the row, on the event loop: a page of large documents kept everybody waiting for 160 ms.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from memory_layer import aside

_FAST: Final = msgspec.json.Decoder()


@dataclass(frozen=True, slots=True)
class Unread:
    """Stands in a row for JSON that is still to be read."""

    data: bytes


_met: ContextVar[list[Unread] | None] = ContextVar("large_json", default=None)


def load(data: str | bytes) -> Any:
    """For the driver. JSONB at a fifth of the standard library's time; what is too large for a machine number keeps its value all the
    same. Within ``unread`` large JSON is only noted."""
    if len(data) > aside.HEAVY and (met := _met.get()) is not None:
        met.append(Unread(data.encode() if isinstance(data, str) else data))
        return met[-1]
    try:
        return _FAST.decode(data)
    except msgspec.DecodeError:
        return json.loads(data)


@contextlib.contextmanager
def unread() -> Iterator[list[Unread]]:
    """Rows that are made within hold ``Unread`` for what is large; ``read`` must follow where the list is not empty."""
    token = _met.set([])
    try:
        met = _met.get()
        assert met is not None  # noqa: S101 - narrows the type
        yield met
    finally:
        _met.reset(token)


async def read(tables: Sequence[Sequence[dict[str, Any]]], met: Sequence[Unread]) -> None:
    """Put values in the place of ``Unread``."""
    await aside.run(sum(len(one.data) for one in met), _read, tables)


def _read(tables: Sequence[Sequence[dict[str, Any]]]) -> None:
    for rows in tables:
        for row in rows:
            for name, value in row.items():
                if type(value) is Unread:
                    row[name] = load(value.data)
