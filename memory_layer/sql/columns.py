"""Lists of columns in SQL files, made from the records of ``model.py``: a column stands there once, and nowhere in the SQL.

==========================  ===========================================================================================
``{{Node}}``                ``tenant, id, owner, ...``
``{{Node n}}``              ``n.tenant, n.id, n.owner, ...``
``{{Node n text}}``         the same as they are read by what trusts no value: ids, JSON and times as text
``{{Node arrays}}``         ``%(tenant)b::text[], %(id)b::uuid[], ...``: the parameters of a statement for many rows
``{{Node u values}}``       ``u.tenant, ..., u.metadata::jsonb``: such a row as the table stores it
``{{Node u set}}``          ``owner = u.owner, ...``: all of it but the key
==========================  ===========================================================================================

``- content metadata`` behind any of them leaves columns out.
"""

from __future__ import annotations

import datetime as dt
import re
import types
import typing
import uuid
from dataclasses import dataclass, fields
from functools import cache
from typing import Any, Final

from memory_layer.model import Artifact, Node, Principal

RECORDS: Final[dict[str, type]] = {"Node": Node, "Artifact": Artifact, "Principal": Principal}
KEY: Final = ("tenant", "id")

# Python's type of a field -> (type of its parameter, what Postgres makes of it, whether ``text`` casts it).
_TYPES: Final[dict[Any, tuple[str, str, bool]]] = {
    str: ("text", "", False),
    uuid.UUID: ("uuid", "", True),
    bool: ("bool", "", False),
    int: ("bigint", "", False),
    dt.datetime: ("timestamptz", "", True),
    dict: ("text", "::jsonb", True),
    list: ("text", "::text[]", False),
}

_MACRO: Final = re.compile(r"\{\{([A-Z]\w*)(?: ([a-z]|excluded))?(?: (text|arrays|values|set))?(?: - ([a-z_ ]+))?\}\}")


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a record's table. ``array``: the type of one element of its parameter; ``cast``: to what the table stores."""

    name: str
    array: str
    cast: str
    as_text: bool


@cache
def columns(record: type) -> tuple[Column, ...]:
    """In the order of the record's fields. Raises TypeError for a field of a type that no column has."""
    hints = typing.get_type_hints(record)
    return tuple(Column(field.name, *_TYPES[_plain(hints[field.name])]) for field in fields(record))


def expand(text: str) -> str:
    """A query with its lists of columns. Raises ValueError for a column to leave out that there is not."""
    return _MACRO.sub(_list, text)


def _list(found: re.Match[str]) -> str:
    record, alias, form, left_out = found.groups()
    without = set((left_out or "").split())
    chosen = [column for column in columns(RECORDS[record]) if column.name not in without]
    if unknown := without - {column.name for column in columns(RECORDS[record])}:
        raise ValueError(f"{found[0]}: {record} has no {', '.join(sorted(unknown))}")
    of = f"{alias}." if alias else ""
    match form:
        case "arrays":
            return ", ".join(f"%({column.name})b::{column.array}[]" for column in chosen)
        case "values":
            return ", ".join(f"{of}{column.name}{column.cast}" for column in chosen)
        case "set":
            return ", ".join(f"{c.name} = {of}{c.name}{c.cast}" for c in chosen if c.name not in KEY)
        case "text":
            return ", ".join(f"{of}{column.name}{'::text' if column.as_text else ''}" for column in chosen)
    return ", ".join(f"{of}{column.name}" for column in chosen)


def _plain(hint: Any) -> Any:
    """The type of a field without its null and its parameters."""
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        (hint,) = (one for one in typing.get_args(hint) if one is not types.NoneType)
        return _plain(hint)
    plain = origin or hint
    if plain not in _TYPES:
        raise TypeError(f"no column has the type {hint}")
    return plain
