"""What the Pinecone adapter keeps beside a vector, and filters over it.

Pinecone's metadata is flat: strings, numbers, booleans and lists of strings, at most 40 KB; no null, no nesting, no list of
numbers. ``$ne`` and ``$nin`` pass over records without the field, and ``$exists: false`` is not documented for all indexes
(https://docs.pinecone.io/guides/index-data/indexing-overview#metadata). So a node's fields are not copied but written as facts:

``_has``             one token for each "this path holds something", "this path holds a number" and "this path holds this
                     value": 16 characters of BLAKE2b, so that neither names nor values have to fit Pinecone's rules
``max_P``, ``min_P``  the largest and the smallest number of path P, which decide every range exactly
``sec_P``, ``mic_P``  a timestamp as seconds since 1970 and microseconds; float64 has no room for both in one
``_live``            false on the mark that a removal leaves; ``_version``, ``_removed`` (epoch seconds) are the contract's
``_whole``           false where not all facts were kept (too many, or a number that float64 cannot hold): such a record
                     passes every filter and the row decides

Every record has ``_has``, so a negation needs no word about missing fields. The tokens are no secret: who guesses a value can
check the guess.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import json
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import msgspec

from memory_layer.filters import FIELDS, MAX_PATH, And, Compare, Filter, Not, Or, Path, parse_timestamp, widen
from memory_layer.model import format_time

MAX_BYTES: Final = 8000  # of one record, some 70 numbers or 200 words; Pinecone takes 40 KB, but answers at most 4 MB
_MAX_OPERANDS: Final = 10_000  # in one filter; Pinecone's own bound for one list
_LONG_LIST: Final = 100  # what is left out first of a filter with more
_MAX_ALL: Final = 32  # values of one $all, which cost a condition each
_LONG_PATH: Final = 200  # characters of a path whose tokens are not kept: names are the caller's
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
# Long text is not kept beside the vector (service/indexing.py), so a filter on it is left to the row.
_ABSENT: Final = frozenset({"content"})
_SIDE: Final = {"gt": "max", "gte": "max", "lt": "min", "lte": "min"}
_OPPOSITE: Final = {"gt": "lte", "gte": "lt", "lt": "gte", "lte": "gt"}
_NOTHING: Final[dict[str, Any]] = {"_live": {"$eq": False}}
_LIVE: Final[dict[str, Any]] = {"_live": {"$eq": True}}


def live_metadata(version: int, fields: Mapping[str, Any]) -> bytes:
    """The metadata of an entry, as JSON of at most ``MAX_BYTES`` bytes."""
    head: dict[str, Any] = {"_live": True, "_version": version}
    facts = _facts(fields)
    if facts is not None:
        whole = msgspec.json.encode(head | {"_whole": True} | facts)
        if len(whole) <= MAX_BYTES:
            return whole
    return msgspec.json.encode(head | {"_whole": False, "_has": ["-"]})


def removed_metadata(version: int, seconds: int) -> bytes:
    """The metadata of the mark that a removal leaves: nothing of the node but its version."""
    return msgspec.json.encode({"_live": False, "_version": version, "_removed": seconds})


def _facts(fields: Mapping[str, Any]) -> dict[str, Any] | None:
    """None when float64 cannot tell some number from its neighbours."""
    has: set[str] = set()
    numbers: dict[str, float] = {}
    for path, values in _bags(fields).items():
        has.add(_path_token("exists", path))
        ranges: list[float] = []
        for value in values:
            if isinstance(value, bool | str | datetime):
                has.add(_value_token(path, value))
            elif isinstance(value, int | float):
                exact = _float64(value)
                if exact is None:
                    return None
                has.add(_value_token(path, value))
                ranges.append(exact)
        if ranges:
            has.add(_path_token("numbers", path))
            numbers[_key("max", path)], numbers[_key("min", path)] = max(ranges), min(ranges)
        moments = [value for value in values if isinstance(value, datetime)]
        if len(moments) > 1:
            return None
        if moments:
            has.add(_path_token("timestamps", path))
            numbers[_key("sec", path)], numbers[_key("mic", path)] = _seconds(moments[0])
    return {"_has": sorted(has) or ["-"], **numbers}


def _bags(fields: Mapping[str, Any]) -> dict[Path, list[Any]]:
    """Every path that a filter can name, with its bag of values (see filters.py), nulls left out."""
    bags: dict[Path, list[Any]] = {}

    def walk(path: Path, value: Any) -> None:
        for element in value if isinstance(value, list | tuple) else (value,):
            if element is None:
                continue
            bags.setdefault(path, []).append(element)
            if isinstance(element, Mapping) and len(path) < MAX_PATH:
                for key, below in element.items():
                    walk((*path, key), below)

    for root, value in fields.items():
        kind = FIELDS.get(root)
        if kind is not None and root not in _ABSENT:
            walk((root,), _moment(value) if kind == "timestamp" else value)
    return bags


def _moment(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return parse_timestamp(value)
    except ValueError:
        return value


def _float64(value: float) -> float | None:
    try:
        rounded = float(value)
    except OverflowError:
        return None
    return rounded if rounded == value else None


def _seconds(moment: datetime) -> tuple[int, int]:
    return (moment - _EPOCH) // timedelta(seconds=1), moment.microsecond


def _token(kind: str, path: Path, value: str | bool = "") -> str:
    text = json.dumps([kind, *path, value]).encode()
    return base64.urlsafe_b64encode(hashlib.blake2b(text, digest_size=12).digest()).decode()


def _path_token(kind: str, path: Path) -> str:
    """The facts that depend on the path alone: most of them, and the same for every node that has it."""
    return (_token if sum(map(len, path)) > _LONG_PATH else _kept_token)(kind, path)


_kept_token = functools.lru_cache(4096)(_token)


def _value_token(path: Path, value: Any) -> str:
    """Equal tokens exactly where the language says that values are equal: 1 and 1.0, but not 1 and true."""
    match value:
        case bool():
            return _token("boolean", path, value)
        case str():
            return _token("string", path, value)
        case datetime():
            return _token("timestamp", path, format_time(value.astimezone(UTC)))
        case float() if not value.is_integer():
            return _token("number", path, repr(value))
    return _token("number", path, hex(int(value)))


def _key(side: str, path: Path) -> str:
    return f"{side}_{_path_token('path', path)}"


def compile_filter(where: Filter | None) -> dict[str, Any]:
    """A Pinecone filter that holds on every live record on which ``where`` does; equal to it but for what is not kept."""
    if where is None:
        return _LIVE
    crowded = sum(_operands(where)) > _MAX_OPERANDS

    def can(compare: Compare) -> bool:
        count = len(compare.value) if isinstance(compare.value, tuple) else 1
        most = _MAX_ALL if compare.op == "all" else _LONG_LIST if crowded else _MAX_OPERANDS
        # No fact says how a string begins, or whether one spells an earlier date: the row decides.
        told = compare.op != "startsWith" and not compare.by_spelt_dates
        return told and compare.path[0] not in _ABSENT and count <= most

    wide = widen(where, can)
    if wide is None:
        return _LIVE
    return {"$and": [_LIVE, {"$or": [{"_whole": {"$eq": False}}, _condition(wide)]}]}


def _operands(where: Filter) -> Iterable[int]:
    match where:
        case And(items) | Or(items):
            for item in items:
                yield from _operands(item)
        case Not(item):
            yield from _operands(item)
        case Compare():
            yield len(where.value) if isinstance(where.value, tuple) else 1


def _condition(where: Filter) -> dict[str, Any]:
    match where:
        case And(items):
            return {"$and": [_condition(item) for item in items]}
        case Or(items):
            return {"$or": [_condition(item) for item in items]}
        case Not(Compare() as compare):  # widen leaves a negation nowhere else
            return _comparison(compare, holds=False)
        case Compare():
            return _comparison(where, holds=True)
    raise AssertionError(where)


def _comparison(compare: Compare, *, holds: bool) -> dict[str, Any]:
    if compare.op in ("gt", "gte", "lt", "lte"):
        return _range(compare, holds=holds)
    among = "$in" if holds else "$nin"
    if compare.op == "exists":
        return {"_has": {among: [_token("exists", compare.path)]}}
    values = compare.value if isinstance(compare.value, tuple) else (compare.value,)
    tokens = list(dict.fromkeys(_value_token(compare.path, value) for value in values))
    if not tokens:
        return _NOTHING if holds else _LIVE
    if compare.op == "all":
        parts = [{"_has": {among: [token]}} for token in tokens]
        return parts[0] if len(parts) == 1 else {"$and" if holds else "$or": parts}
    return {"_has": {among: tokens}}


def _range(compare: Compare, *, holds: bool) -> dict[str, Any]:
    """Some number of the bag stands so to the operand: its largest (or smallest) does. A negation holds too where there is none."""
    op, operand, path = compare.op, compare.value, compare.path
    shown = op if holds else _OPPOSITE[op]
    if isinstance(operand, datetime):
        seconds, micros = _seconds(operand)
        key = _key("sec", path)
        test: dict[str, Any] = {
            "$or": [
                {key: {f"${shown[:2]}": seconds}},
                {"$and": [{key: {"$eq": seconds}}, {_key("mic", path): {f"${shown}": micros}}]},
            ]
        }
        kind = "timestamps"
    else:
        test = {_key(_SIDE[op], path): {f"${shown}": operand}}
        kind = "numbers"
    return test if holds else {"$or": [{"_has": {"$nin": [_token(kind, path)]}}, test]}
