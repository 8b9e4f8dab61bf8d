"""The filter language of search and list: parser, abstract syntax and the exact evaluator.

``{"owner": "ann", "metadata.score": {"$gte": 3}, "$or": [{"metadata.tags": "x"}, {"legalHold": true}]}``

What a field holds
    A path names a bag of values. A scalar is a bag of one; an array is the bag of its elements; ``null`` and a missing
    key add nothing, so missing, ``null``, ``[]`` and ``[null]`` are one and the same: the empty bag. A path steps into
    objects by key; where it meets an array on its way it steps into each object of that array
    (``metadata.people.name``). Arrays directly inside arrays are not looked into, and digits in a path are keys and
    never positions. An object, or an array in an array, is a value that exists and equals nothing.

What a name is
    Keys joined by dots, ``metadata.people.name``; or, where a key has a dot in it or is empty, a JSON Pointer (RFC 6901)
    into the node: ``/metadata/a.b/name``, with ``~1`` for a slash in a key and ``~0`` for a tilde. A dotted name that
    may have been meant to quote a key (``metadata."a.b"``, ``metadata.[a.b]``, ``metadata.a\\.b``) is refused.

What an operator means
    ``$eq v``            some value of the bag equals v; ``$eq null`` (or ``[]``): the bag is empty
    ``$in [v, ...]``     some value equals some v; a ``null`` in the list: or the bag is empty; ``$in []`` is never true
    ``$all [v, ...]``    each v is in the bag; ``$all []`` is never true
    ``$contains v``      v is in the bag, of a field that may hold a list; as everywhere, one value counts as a list of one
    ``$startsWith s``    some string of the bag begins with s, by code point
    ``$gt $gte $lt $lte``  some value of the operand's type stands so to the operand; several on one field may be met by
                         different elements of an array
    ``$exists b``        the bag is not empty (true), is empty (false)
    ``$ne $nin $not``    the exact complement of ``$eq``, ``$in`` and of what ``$not`` holds. ``$not`` may stand for a
                         whole filter or, as in MongoDB, behind a field name
    A list in the place of a condition means ``$in``, any other plain value ``$eq``; conditions side by side are an and.

Types never coerce: ``1`` equals ``1.0`` but neither ``"1"`` nor ``true``. Strings are equal by code point and have no
order. ``createdAt``, ``updatedAt``, ``expiresAt`` and ``occurredAt`` compare as instants with RFC 3339 operands, to the
microsecond (further digits are cut off). There are two truth values and no unknown.

JSON has no dates, so a range on ``metadata`` takes a string that spells one, and meets the stored strings that do: an
RFC 3339 date-time with its offset (``2026-01-31T09:30:00+01:00``), or a date alone (``2026-01-31``), which stands for
its first instant in UTC. Any other string is no operand of a range, and as a stored value meets none. Equality remains
that of strings.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final, Literal, NoReturn, TypeAlias

from memory_layer.errors import Problem, ValidationError

MAX_DEPTH: Final = 8  # levels of $and, $or, $not; several conditions side by side count as an $and
MAX_LEAVES: Final = 64  # comparisons
MAX_VALUES: Final = 1000  # values in one list
MAX_PATH: Final = 16  # keys in one path
MAX_NAME: Final = 1000  # characters of a whole path
MAX_INTEGER: Final = 2**53 - 1  # beyond it JSON numbers stop being exact
MAX_STEPS: Final = 4_000_000  # values that one evaluation looks at, about a second's work

Kind: TypeAlias = Literal["string", "strings", "number", "boolean", "timestamp", "object"]

#: The roots of a path and what stands there; only ``object`` roots have (and need) keys below them.
FIELDS: Final[Mapping[str, Kind]] = {
    "memoryNodeId": "string",
    "embeddingId": "string",
    "owner": "string",
    "namespace": "string",
    "content": "string",
    "subjects": "strings",
    "version": "number",
    "ttlSeconds": "number",
    "legalHold": "boolean",
    "createdAt": "timestamp",
    "updatedAt": "timestamp",
    "expiresAt": "timestamp",
    "occurredAt": "timestamp",
    "thread": "string",
    "position": "number",
    "metadata": "object",
    "piiFlags": "object",
}

Path: TypeAlias = tuple[str, ...]
Scalar: TypeAlias = str | bool | int | float | datetime
Operator: TypeAlias = Literal["eq", "in", "all", "gt", "gte", "lt", "lte", "exists", "startsWith"]


@dataclass(frozen=True, slots=True)
class Compare:
    """One comparison.

    ``value`` is a scalar for eq and the ranges, a tuple of scalars for in (may be empty) and all (never empty), a str for
    startsWith, and True for exists; never None. On timestamp fields, and in a range by dates, scalars are aware datetimes
    in UTC, elsewhere str, bool, int, float.
    Python holds ``1 == True``, so two comparisons that are ``==`` may still differ: do not key a cache by them.
    ``keys``: the values of in and all as ``_key`` tells them apart, for rows are many and so are the values.
    """

    path: Path
    op: Operator
    value: Scalar | tuple[Scalar, ...]
    keys: frozenset[tuple[str, Any]] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        many = self.op in ("in", "all")
        object.__setattr__(self, "keys", frozenset(map(_key, _many(self.value))) if many else frozenset())

    @property
    def by_spelt_dates(self) -> bool:
        """Whether it is a range over strings that spell dates, each as its writer liked."""
        return self.op in _RANGES.values() and isinstance(self.value, datetime) and FIELDS[self.path[0]] == "object"


@dataclass(frozen=True, slots=True)
class And:
    items: tuple[Filter, ...]  # two or more


@dataclass(frozen=True, slots=True)
class Or:
    items: tuple[Filter, ...]  # two or more


@dataclass(frozen=True, slots=True)
class Not:
    item: Filter  # never a Not


Filter: TypeAlias = And | Or | Not | Compare

_RANGES: Final[Mapping[str, Operator]] = {"$gt": "gt", "$gte": "gte", "$lt": "lt", "$lte": "lte"}
_OPERATORS: Final = "$eq, $ne, $gt, $gte, $lt, $lte, $in, $nin, $all, $contains, $startsWith, $exists, $not"
_RFC3339: Final = re.compile(
    r"(\d{4}-\d\d-\d\d)[Tt ]([01]\d|2[0-3])(:[0-5]\d:[0-5]\d)(?:\.(\d+))?(?:([Zz])|([+-](?:[01]\d|2[0-3]):[0-5]\d))",
    re.ASCII,
)
_DATE: Final = re.compile(r"\d{4}-\d\d-\d\d", re.ASCII)
# Keys that were perhaps to be quoted: a dot behind such a sign may have been meant as a part of the key.
_QUOTING: Final = ('"', "'", "`", '["', "['")


def parse_timestamp(text: str) -> datetime:
    """The instant of an RFC 3339 text, in UTC, cut to microseconds. Raises ValueError."""
    match = _RFC3339.fullmatch(text)
    if match is None:
        raise ValueError("not an RFC 3339 timestamp such as 2026-01-31T09:30:00Z")
    date, hour, rest, fraction, zulu, offset = match.groups()
    micros = f"{(fraction or '0')[:6]:0<6}"
    try:
        moment = datetime.fromisoformat(f"{date}T{hour}{rest}.{micros}{'+00:00' if zulu else offset}")
        return moment.astimezone(UTC)
    except OverflowError:
        raise ValueError("outside the years 1 to 9999") from None


def parse_date(text: str) -> datetime:
    """The instant of an RFC 3339 date-time, or the first one in UTC of a date without time. Raises ValueError."""
    if _DATE.fullmatch(text):
        return datetime.fromisoformat(text).replace(tzinfo=UTC)
    return parse_timestamp(text)


def parse(obj: Any) -> Filter | None:
    """A filter from decoded JSON; None for ``None`` and ``{}``, which match everything.

    Raises ValidationError with the path and the problem; never anything else, whatever the JSON.
    """
    if obj is None or obj == {}:
        return None
    leaves = [0]
    return _parse_object(obj, "filter", 0, leaves)


def _refuse(where: str, problem: str) -> NoReturn:
    where = where if len(where) <= 200 else where[:200] + "..."
    # A lone surrogate could not be written back in the answer.
    where = where.encode("utf-8", "backslashreplace").decode()
    raise ValidationError(f"The filter is not valid: {problem} (at {where}).", details=[Problem(where, problem)])


def _parse_object(obj: Any, where: str, depth: int, leaves: list[int]) -> Filter:
    if not isinstance(obj, dict):
        _refuse(where, "must be an object of conditions")
    if not obj:
        _refuse(where, "is empty; leave it out, or say what must hold")
    depth = _deeper(where, depth) if _conditions(obj) > 1 else depth
    items: list[Filter] = []
    for key, value in obj.items():
        if not isinstance(key, str):
            _refuse(where, "names must be text")
        here = f"{where}.{key}"
        if key in ("$and", "$or"):
            if not isinstance(value, list) or not value:
                _refuse(here, "must be a list of at least one filter")
            # Each part of the list costs a leaf at least: a longer list is refused before it is walked.
            if len(value) > MAX_LEAVES:
                _refuse(here, f"has more than {MAX_LEAVES} parts")
            below = _deeper(here, depth)
            parts = tuple(_parse_object(part, f"{here}.{i}", below, leaves) for i, part in enumerate(value))
            items.append(parts[0] if len(parts) == 1 else And(parts) if key == "$and" else Or(parts))
        elif key == "$not":
            items.append(_complement(_parse_object(value, here, _deeper(here, depth), leaves)))
        elif key.startswith("$"):
            _refuse(here, "is not an operator of filters; $and, $or, $not or a field name stand here")
        else:
            items.extend(_parse_field(_parse_path(key, here), value, here, depth, leaves))
    return items[0] if len(items) == 1 else And(tuple(items))


def _conditions(obj: dict[Any, Any]) -> int:
    return sum(
        len(value) if isinstance(value, dict) and not str(key).startswith("$") else 1 for key, value in obj.items()
    )


def _deeper(where: str, depth: int) -> int:
    if depth >= MAX_DEPTH:
        _refuse(where, f"is nested deeper than {MAX_DEPTH} levels")
    return depth + 1


def _parse_path(name: str, where: str) -> Path:
    if len(name) > MAX_NAME:
        _refuse(where, f"is longer than {MAX_NAME} characters")
    pointer = name.startswith("/")
    path = _from_pointer(name, where) if pointer else tuple(name.split("."))
    kind = FIELDS.get(path[0])
    if kind is None:
        other = next((root for root in ("metadata", "piiFlags") if path[0].startswith(root) and not pointer), None)
        hint = "" if other is None else f"; a key with other signs in it is named as in /{other}/a.b"
        _refuse(where, f"is not a field; filters know {', '.join(FIELDS)}{hint}")
    if kind != "object" and len(path) > 1:
        _refuse(where, f"{path[0]} has no fields below it")
    if kind == "object" and (len(path) == 1 or ("" in path and not pointer)):
        _refuse(where, f"name a key, as in {path[0]}.key or /{path[0]}/key")
    if not pointer and any(map(_quotes, path[1:])):
        _refuse(where, f"is ambiguous: quotes do not join what a dot divides. Name such a key as in /{path[0]}/a.b")
    if len(path) > MAX_PATH:
        _refuse(where, f"has more than {MAX_PATH} keys")
    for key in path:
        _check_text(key, where)
    return path


def _quotes(key: str) -> bool:
    return key.startswith(_QUOTING) or key.endswith("\\") or (key.startswith("[") and not key.endswith("]"))


def _from_pointer(name: str, where: str) -> Path:
    """The keys of a JSON Pointer."""
    if re.search("~(?![01])", name):
        _refuse(where, "is no JSON Pointer: a tilde in a key is written ~0, a slash ~1")
    return tuple(key.replace("~1", "/").replace("~0", "~") for key in name[1:].split("/"))


def name_of(path: Path) -> str:
    """The name of a path, which ``parse`` reads again: dotted, or a JSON Pointer where that would be another path."""
    if len(path) == 1 or all(key and "." not in key and not _quotes(key) for key in path):
        return ".".join(path)
    return "".join("/" + key.replace("~", "~0").replace("/", "~1") for key in path)


def _parse_field(path: Path, value: Any, where: str, depth: int, leaves: list[int]) -> list[Filter]:
    """The conditions on one field; they hold together."""
    if isinstance(value, dict):
        if not value:
            _refuse(where, f"is empty; an operator must stand here: {_OPERATORS}")
        found: list[Filter] = []
        for op, operand in value.items():
            here = f"{where}.{op}"
            if op == "$not":
                if not isinstance(operand, dict) or not operand:
                    _refuse(here, 'must hold operators, as in {"$not": {"$gt": 1}}')
                below = _deeper(here, depth)
                below = _deeper(here, below) if len(operand) > 1 else below
                inner = _parse_field(path, operand, here, below, leaves)
                found.append(_complement(inner[0] if len(inner) == 1 else And(tuple(inner))))
            else:
                found.append(_parse_condition(path, op, operand, here, leaves))
        return found
    return [_parse_condition(path, "$in" if isinstance(value, list) else "$eq", value, where, leaves)]


def _parse_condition(path: Path, op: Any, operand: Any, where: str, leaves: list[int]) -> Filter:
    leaves[0] += 1
    if leaves[0] > MAX_LEAVES:
        _refuse(where, f"the filter has more than {MAX_LEAVES} comparisons")
    match op:
        case "$eq" | "$ne":
            if operand is None or operand == []:
                equal: Filter = Not(Compare(path, "exists", True))
            else:
                equal = Compare(path, "eq", _parse_scalar(path, operand, where))
            return equal if op == "$eq" else _complement(equal)
        case "$in" | "$nin":
            within = _parse_in(path, _check_list(operand, where), where)
            return within if op == "$in" else _complement(within)
        case "$all":
            values = tuple(_parse_scalar(path, v, f"{where}.{i}") for i, v in enumerate(_check_list(operand, where)))
            return Compare(path, "all", values) if values else Compare(path, "in", ())
        case "$contains":
            if FIELDS[path[0]] not in ("strings", "object"):
                _refuse(where, f"{path[0]} is no list")
            return Compare(path, "eq", _parse_scalar(path, operand, where))
        case "$startsWith":
            if FIELDS[path[0]] not in ("string", "strings", "object"):
                _refuse(where, f"{path[0]} is no text")
            if not isinstance(operand, str):
                _refuse(where, "must be text")
            _check_text(operand, where)
            return Compare(path, "startsWith", operand)
        case "$gt" | "$gte" | "$lt" | "$lte":
            return Compare(path, _RANGES[op], _parse_bound(path, operand, where))
        case "$exists":
            if not isinstance(operand, bool):
                _refuse(where, "must be true or false")
            exists = Compare(path, "exists", True)
            return exists if operand else Not(exists)
    if isinstance(op, str) and op.startswith("$"):
        _refuse(where, f"is not an operator of filters; known are {_OPERATORS}")
    _refuse(where, f"objects are not compared: write {name_of((*path, 'key'))}, or an operator: {_OPERATORS}")


def _parse_in(path: Path, operands: list[Any], where: str) -> Filter:
    empty = Not(Compare(path, "exists", True))
    values = tuple(
        _parse_scalar(path, operand, f"{where}.{i}") for i, operand in enumerate(operands) if operand is not None
    )
    if len(values) == len(operands):
        return Compare(path, "in", values)
    return Or((empty, Compare(path, "in", values))) if values else empty


def _check_list(operand: Any, where: str) -> list[Any]:
    if not isinstance(operand, list):
        _refuse(where, "must be a list")
    if len(operand) > MAX_VALUES:
        _refuse(where, f"has more than {MAX_VALUES} values")
    return operand


def _parse_bound(path: Path, operand: Any, where: str) -> Scalar:
    kind = FIELDS[path[0]]
    if kind in ("string", "strings", "boolean"):
        _refuse(where, f"{path[0]} has no order; ranges are for numbers and timestamps")
    if kind in ("timestamp", "object") and isinstance(operand, str):
        try:
            return parse_date(operand)
        except ValueError:
            if kind == "object":
                _refuse(
                    where,
                    "must be a number, or a date such as 2026-01-31 or 2026-01-31T09:30:00Z; other text has no order",
                )
    if kind != "timestamp" and (isinstance(operand, bool) or not isinstance(operand, int | float)):
        _refuse(where, "must be a number; other values have no order")
    return _parse_scalar(path, operand, where)


def _parse_scalar(path: Path, operand: Any, where: str) -> Scalar:
    if FIELDS[path[0]] == "timestamp":
        try:
            if isinstance(operand, str):
                return parse_timestamp(operand)
            problem = "must be an RFC 3339 timestamp such as 2026-01-31T09:30:00Z"
        except ValueError as error:
            problem = str(error)
        _refuse(where, problem)
    match operand:
        case bool():
            return operand
        case str():
            _check_text(operand, where)
            return operand
        case int() if not -MAX_INTEGER <= operand <= MAX_INTEGER:
            _refuse(where, "integers beyond 2^53 - 1 are not exact in JSON; use text")
        case float() if operand - operand != 0:
            _refuse(where, "must be a finite number")
        case int() | float():
            return operand
        case None:
            _refuse(where, 'null has no place here; ask {"$exists": false}')
    _refuse(where, "must be text, a number, true or false")


def _check_text(text: str, where: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        _refuse(where, "text must not hold lone surrogates; nothing stored does")
    if "\0" in text:
        _refuse(where, "text must not hold NUL; nothing stored does")


def _complement(item: Filter) -> Filter:
    return item.item if isinstance(item, Not) else Not(item)


@dataclass(slots=True)
class Steps:
    """How many values an evaluation, or several for one request, may still look at."""

    left: int = MAX_STEPS

    def take(self, steps: int) -> None:
        """Raises ValidationError when there are no more."""
        self.left -= steps
        if self.left < 0:
            raise ValidationError(
                "The filter is not valid here: it compares more values than one request may. Use fewer comparisons, or keep what is "
                "filtered by in short lists.",
                details=[Problem("filter", f"looks at more than {MAX_STEPS} values")],
            )


def evaluate(where: Filter, document: Mapping[str, Any], steps: Steps | None = None) -> bool:
    """Whether the filter holds, exactly, on a node in the shape of the API.

    ``document`` has the roots of ``FIELDS``; its timestamps are aware datetimes or RFC 3339 texts. The work is at most the filter's
    leaves times the document's values, and ends with ValidationError when ``steps`` (None: MAX_STEPS) are spent.
    """
    steps = Steps() if steps is None else steps
    match where:
        case And(items):
            return all(evaluate(item, document, steps) for item in items)
        case Or(items):
            return any(evaluate(item, document, steps) for item in items)
        case Not(item):
            return not evaluate(item, document, steps)
        case Compare(path, op, operand):
            values = _values(path, document, steps)
            match op:
                case "exists":
                    return bool(values)
                case "in":
                    keys = where.keys
                    return any(_key(value) in keys for value in values)
                case "all":
                    return where.keys.issubset(map(_key, values))
                case "eq":
                    return any(_equal(value, operand) for value in values)
                case "startsWith":
                    return any(isinstance(value, str) and value.startswith(str(operand)) for value in values)
                case _:
                    dates = isinstance(operand, datetime)
                    return any(_ordered(_instant(value) if dates else value, op, operand) for value in values)


def _values(path: Path, document: Mapping[str, Any], steps: Steps) -> list[Any]:
    """The bag of values at a path, without nulls."""
    found: list[Any] = [document]
    for key in path:
        owners = (owner for item in found for owner in _elements(item))
        below = [owner[key] for owner in owners if isinstance(owner, Mapping) and key in owner]
        steps.take(sum(len(item) if isinstance(item, list | tuple) else 1 for item in found))
        found = below
    values = [value for item in found for value in _elements(item) if value is not None]
    steps.take(len(found) + len(values))
    return [_timestamp(value) for value in values] if FIELDS.get(path[0]) == "timestamp" else values


def _elements(item: Any) -> Iterable[Any]:
    return item if isinstance(item, list | tuple) else (item,)


def _many(operand: Scalar | tuple[Scalar, ...]) -> tuple[Scalar, ...]:
    return operand if isinstance(operand, tuple) else (operand,)


def _timestamp(value: Any) -> Any:
    """Of a column, which may be spelled out: its instant."""
    if not isinstance(value, str):
        return value
    try:
        return parse_timestamp(value)
    except ValueError:
        return value


def _instant(value: Any) -> Any:
    """Of what metadata hold: the instant of a string that spells a date; of anything else, what has no order beside one."""
    if not isinstance(value, str):
        return value
    try:
        return parse_date(value)
    except ValueError:
        return value


def _rank(value: Any) -> str:
    """The type that a value is compared within; empty for what equals nothing."""
    match value:
        case bool():
            return "boolean"
        case int() | float():
            return "number"
        case str():
            return "string"
        case datetime():
            return "timestamp"
    return ""


def _key(value: Any) -> tuple[str, Any]:
    """Equal for two values if and only if ``_equal`` says so; for what equals nothing, one that no operand has."""
    rank = _rank(value)
    return (rank, value) if rank else _NOTHING


_NOTHING: Final = ("", None)


def _equal(value: Any, operand: Any) -> bool:
    rank = _rank(value)
    return rank != "" and rank == _rank(operand) and bool(value == operand)


def _ordered(value: Any, op: Operator, operand: Any) -> bool:
    rank = _rank(value)
    if rank not in ("number", "timestamp") or rank != _rank(operand):
        return False
    match op:
        case "gt":
            return bool(value > operand)
        case "gte":
            return bool(value >= operand)
        case "lt":
            return bool(value < operand)
    return bool(value <= operand)


def needs(where: Filter) -> frozenset[Path]:
    """Every path the filter looks at, as ``("metadata", "email")``: a reader must be allowed to see all of them."""
    match where:
        case Compare(path):
            return frozenset((path,))
        case Not(item):
            return needs(item)
        case And(items) | Or(items):
            return frozenset().union(*(needs(item) for item in items))


def widen(where: Filter, can: Callable[[Compare], bool]) -> Filter | None:
    """The narrowest filter that holds wherever ``where`` does and has only comparisons that ``can`` accepts.

    For stores that evaluate a part of the language: dropping a comparison under a ``Not`` would narrow the answer, so
    negations are pushed down to the comparisons first. None when nothing is left to restrict by.
    """
    return _widen(where, can, True)


def _widen(where: Filter, can: Callable[[Compare], bool], holds: bool) -> Filter | None:
    match where:
        case Compare():
            return None if not can(where) else where if holds else Not(where)
        case Not(item):
            return _widen(item, can, not holds)
        case And(items) | Or(items):
            wide = [_widen(item, can, holds) for item in items]
            kept = tuple(item for item in wide if item is not None)
            if isinstance(where, And) == holds:  # an and, or by De Morgan a negated or
                return None if not kept else kept[0] if len(kept) == 1 else And(kept)
            return Or(kept) if len(kept) == len(wide) else None


def to_json(where: Filter) -> dict[str, Any]:
    """A filter as decoded JSON, in one normal form: ``parse(to_json(x)) == x`` for every x that ``parse`` gave."""
    match where:
        case Compare(path, op, operand):
            return {name_of(path): {f"${op}": _plain(operand)}}
        case Not(Compare(path, "exists")):
            return {name_of(path): {"$exists": False}}
        case Not(Compare(path, "eq", operand)):
            return {name_of(path): {"$ne": _plain(operand)}}
        case Not(Compare(path, "in", operand)):
            return {name_of(path): {"$nin": _plain(operand)}}
        case Or((Not(Compare(path, "exists")), Compare(same, "in", operand))) if path == same and operand:
            return {name_of(path): {"$in": [None, *_plain(operand)]}}
        case Not(Or((Not(Compare(path, "exists")), Compare(same, "in", operand)))) if path == same and operand:
            return {name_of(path): {"$nin": [None, *_plain(operand)]}}
        case Not(item):
            return {"$not": to_json(item)}
        case And(items):
            return {"$and": [to_json(item) for item in items]}
        case Or(items):
            return {"$or": [to_json(item) for item in items]}


def _plain(operand: Scalar | tuple[Scalar, ...]) -> Any:
    if isinstance(operand, tuple):
        return [_plain(one) for one in operand]
    return operand.isoformat().replace("+00:00", "Z") if isinstance(operand, datetime) else operand
