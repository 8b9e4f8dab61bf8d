"""Filters as conditions on the jsonb column ``fields``: wherever a filter holds, so does its condition."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from memory_layer.filters import And, Compare, Filter, Not, Or, widen
from memory_layer.model import format_time

_COMPARISON = {
    "eq": "==",
    "in": "==",
    "all": "==",
    "gt": ">",
    "gte": ">=",
    "lt": "<",
    "lte": "<=",
    "startsWith": "starts with",
}
# Long text is not kept beside the vector (service/indexing.py), so a filter on it is left to the row.
_ABSENT = frozenset({"content"})
_MAX_ALL = 32  # values of one $all, which cost a parameter each; a statement takes 65,535 of them
_MAX_LOOKED_UP = 100  # values of one comparison that are looked up in an index
_FIRST, _LAST = datetime(1, 1, 3, tzinfo=UTC), datetime(9999, 12, 29, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Condition:
    """SQL that holds wherever a filter does, with its parameters. ``lookup``: one that GIN (jsonb_path_ops) can answer and that
    holds wherever ``text`` does; None where there is none."""

    text: str
    params: dict[str, str]
    lookup: str | None


EVERYTHING = Condition("true", {}, None)


def compile_filter(where: Filter | None) -> Condition:
    wide = None if where is None else widen(where, _can)
    if wide is None:
        return EVERYTHING
    params: dict[str, str] = {}
    names = (f"f{n}" for n in range(100_000))
    text = _condition(wide, params, names)
    return Condition(text, params, _lookup(wide, params, names))


def _can(compare: Compare) -> bool:
    return compare.path[0] not in _ABSENT and not (
        compare.op == "all" and isinstance(compare.value, tuple) and len(compare.value) > _MAX_ALL
    )


def _condition(where: Filter, params: dict[str, str], names: Iterator[str]) -> str:
    match where:
        case And(items):
            return f"({' AND '.join(_condition(item, params, names) for item in items)})"
        case Or(items):
            return f"({' OR '.join(_condition(item, params, names) for item in items)})"
        case Not(Compare() as compare) if compare.by_spelt_dates:
            return "true"  # what is wider than a comparison is narrower than its complement
        case Not(item):
            return f"NOT {_condition(item, params, names)}"
        case Compare():
            return _near_date(where, params, names) if where.by_spelt_dates else _comparison(where, params, names)


def _comparison(compare: Compare, params: dict[str, str], names: Iterator[str]) -> str:
    """jsonpath in lax mode steps into the objects of an array and unwraps one array before ``?``, as the language does."""
    path = _path(compare)
    if compare.op == "exists":
        name = next(names)
        params[name] = f'{path} ? (@.type() != "null")'
        return f"jsonb_path_exists(fields, %({name})s::jsonpath, silent => true)"
    operands = _operands(compare)
    # One list of all values for "some value equals some operand"; one test per value where each must be met.
    tests = [[operand] for operand in operands] if compare.op == "all" else [operands]
    parts = []
    for values in tests:
        name_path, name_values = next(names), next(names)
        # What a string begins with is one string to jsonpath, no list.
        one = compare.op == "startsWith"
        params[name_path] = f'{path} ? (@.type() != "array" && @ {_COMPARISON[compare.op]} {"$v" if one else "$v[*]"})'
        params[name_values] = json.dumps({"v": values[0] if one else values})
        parts.append(f"jsonb_path_exists(fields, %({name_path})s::jsonpath, %({name_values})s::jsonb, true)")
    return f"({' AND '.join(parts)})"


def _near_date(compare: Compare, params: dict[str, str], names: Iterator[str]) -> str:
    """Strings that begin with a digit and stand in the order of text where a date near enough would: offsets move it by less than a day.
    The row decides. Looking at their form as well (``like_regex``) costs more than the rows that it would leave out."""
    moment = compare.value
    assert isinstance(moment, datetime)  # noqa: S101 - narrows the type
    name_path, name_values = next(names), next(names)
    if compare.op in ("gt", "gte"):
        first, last = (moment - timedelta(days=1)).date().isoformat() if moment > _FIRST else "0", ":"
    else:
        first, last = "0", (moment + timedelta(days=2)).date().isoformat() if moment < _LAST else ":"
    params[name_path] = f"{_path(compare)} ? (@ >= $first && @ < $last)"
    params[name_values] = json.dumps({"first": first, "last": last})
    return f"jsonb_path_exists(fields, %({name_path})s::jsonpath, %({name_values})s::jsonb, true)"


def _lookup(where: Filter, params: dict[str, str], names: Iterator[str]) -> str | None:
    """The part of a filter that is about equality."""
    match where:
        case And(items):
            found = [part for item in items if (part := _lookup(item, params, names)) is not None]
            return f"({' AND '.join(found)})" if found else None
        case Or(items):
            parts = [_lookup(item, params, names) for item in items]
            return None if None in parts else f"({' OR '.join(part for part in parts if part)})"
        case Compare(_, "eq" | "in" | "all"):
            operands = _operands(where)
            # A minus is an operator to jsonpath, and what an index is asked for is a constant.
            if not 0 < len(operands) <= _MAX_LOOKED_UP or any(_negative(operand) for operand in operands):
                return None
            tests = [[operand] for operand in operands] if where.op == "all" else [operands]
            texts = []
            for values in tests:
                name = next(names)
                equal = " || ".join(f"@ == {json.dumps(value)}" for value in values)
                params[name] = f"{_path(where)} ? ({equal})"
                texts.append(f"fields @? %({name})s::jsonpath")
            return f"({' AND '.join(texts)})"
    return None


def _path(compare: Compare) -> str:
    return "$" + "".join("." + json.dumps(key) for key in compare.path)


def _operands(compare: Compare) -> list[Any]:
    """Stored timestamps have one spelling (model.format_time), so they compare as text."""
    values = compare.value if isinstance(compare.value, tuple) else (compare.value,)
    return [format_time(value) if isinstance(value, datetime) else value for value in values]


def _negative(operand: Any) -> bool:
    return isinstance(operand, int | float) and json.dumps(operand).startswith("-")
