"""The one JSON: a strict parser and the canonical bytes of RFC 8785.

What comes in is JSON that every implementation reads alike and that Postgres gives back as it came: no repeated keys,
no numbers that a double or ``jsonb`` would change, no text that is not Unicode. What goes out is RFC 8785 (JCS).
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator
from itertools import compress
from json import encoder as _encoder
from typing import Any, Final, NoReturn

from memory_layer.errors import MalformedJson, Problem, ValidationError

MAX_NUMBER: Final = 2**53 - 1
MIN_MAGNITUDE: Final = 1e-300
MAX_DEPTH: Final = 64

_TOO_BIG: Final = "a number beyond +-(2^53-1)"
_TOO_SMALL: Final = "a non-zero number closer to zero than 1e-300"
_TOO_DEEP: Final = f"nested deeper than {MAX_DEPTH} levels"
_LONG_LIST: Final = 16  # from here on one pass over a list of numbers beats a look at each


class _Refused:
    """Stands in a parsed document where the scanner met something that is valid for it and not for us."""

    __slots__ = ("problem",)

    def __init__(self, problem: str) -> None:
        self.problem = problem


def loads(data: bytes) -> Any:
    """Parse one JSON document.

    Raises MalformedJson when the bytes are not UTF-8 JSON (RFC 8259, no byte order mark), and ValidationError when they
    are, but hold repeated keys, NaN or an infinity, a number beyond +-(2^53-1) or a non-zero one below 1e-300 in any
    spelling, a lone surrogate, U+0000, or more than 64 levels.
    """
    value, checker = _parse(data)
    checker.check(value, "", 1)
    return value


def _parse(data: bytes) -> tuple[Any, _Checker]:
    """The document, not yet held to the rules, and what will do that."""
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise MalformedJson(f"The body is not UTF-8: byte {error.start}.") from None
    tiny = may_underflow(data)
    decoder = _EXACT if tiny else _PLAIN
    try:
        try:
            value = decoder.decode(text)
        except json.JSONDecodeError as error:
            raise MalformedJson(
                f"The body is not JSON: {error.msg} at line {error.lineno} column {error.colno}."
            ) from None
        except ValueError:  # CPython converts no integer of more than 4,300 digits; the other decoder never asks it to
            value = _EXACT.decode(text)
    except RecursionError:
        _refuse("", _TOO_DEEP)
    # Without a \u escape no string can hold a surrogate or U+0000: UTF-8 cannot spell the one, JSON forbids the other raw.
    return value, _Checker(strings="\\u" in text, trusted=not tiny)


def check(value: Any, path: str = "") -> None:
    """Hold a parsed value to the rules of ``loads``; ``path`` is what its place is called in the ValidationError."""
    _Checker(strings=True, trusted=False).check(value, path, 1)


def dumps(value: Any, short: Callable[[Any], bytes] | None = None) -> bytes:
    """The RFC 8785 bytes of a value made of dict (string keys), list, tuple, str, int, float, bool and None.

    ``short``: writes what is plain (``_plain_members``) and has few members, where the caller has something faster than the standard
    library. Raises ValidationError for whatever has no such bytes: other types, integers beyond +-(2^53-1), NaN, infinities, lone
    surrogates, more than 64 levels.
    """
    try:
        members = _plain_members(value, 0)
        if members < 0:
            return _encode(value, 0).encode("utf-8")
        if members > _CHUNK:
            return "".join(_pieces(value)).encode("utf-8")
        return "".join(_plain(value, 0)).encode("utf-8") if short is None else short(value)
    except UnicodeEncodeError:
        _refuse("", "a lone surrogate in text")


def _refuse(path: str, problem: str) -> NoReturn:
    raise ValidationError(f"Not a value that is kept unchanged: {problem}.", details=[Problem(path or "body", problem)])


def _object(pairs: list[tuple[str, Any]]) -> Any:
    found = dict(pairs)
    if len(found) == len(pairs):
        return found
    seen: set[str] = set()
    for key, _ in pairs:
        if key in seen:
            break
        seen.add(key)
    return _Refused(f"the key {key!a} more than once")


def _constant(name: str) -> Any:
    return _Refused(f"{name} is no JSON number")


def _exact_float(text: str) -> Any:
    value = float(text)
    if value == 0.0 and re.search(r"[1-9]", re.split(r"[eE]", text)[0]):
        return _Refused(_TOO_SMALL)
    return value


def _exact_int(text: str) -> Any:
    return int(text) if len(text) <= 17 else _Refused(_TOO_BIG)


_PLAIN: Final = json.JSONDecoder(object_pairs_hook=_object, parse_constant=_constant)
_EXACT: Final = json.JSONDecoder(
    object_pairs_hook=_object, parse_constant=_constant, parse_float=_exact_float, parse_int=_exact_int
)
_LONG_EXPONENT: Final = (re.compile(rb"e-[0-9]{3}"), re.compile(rb"E-[0-9]{3}"))
_ZEROS: Final = b"0" * 200


def may_underflow(data: bytes) -> bool:
    """Whether a non-zero number below 1e-300 can be in here: that takes an exponent of three digits or 200 zeros in a row."""
    small, capital = _LONG_EXPONENT  # two patterns with a fixed beginning are searched far faster than one with [eE]
    return _ZEROS in data or small.search(data) is not None or capital.search(data) is not None


class _Checker:
    """One walk over a value. ``trusted``: every float is known not to be tiny, and every type to be the scanner's."""

    __slots__ = ("strings", "trusted")

    def __init__(self, *, strings: bool, trusted: bool) -> None:
        self.strings = strings
        self.trusted = trusted

    def check(self, value: Any, path: str, depth: int) -> None:
        kind = type(value)
        if kind is dict:
            self._check_object(value, path, depth)
        elif kind is list or kind is tuple:
            self._check_array(value, path, depth)
        elif kind is str:
            if self.strings:
                _check_text(value, path)
        elif kind is int or kind is float:
            _check_number(value, path)
        elif kind is _Refused:
            _refuse(path, value.problem)
        elif value is not None and kind is not bool:
            _refuse(path, f"{kind.__name__} is no JSON type")

    def _check_object(self, value: dict[Any, Any], path: str, depth: int) -> None:
        if depth > MAX_DEPTH:
            _refuse(path, _TOO_DEEP)
        for key, item in value.items():
            if self.strings:
                if type(key) is not str:
                    _refuse(path, f"the key {key!r} is not text")
                _check_text(key, path)
            elif item is None or type(item) is str or type(item) is bool:
                continue
            self.check(item, f"{path}.{key}" if path else key, depth + 1)

    def _check_array(self, value: list[Any] | tuple[Any, ...], path: str, depth: int) -> None:
        if depth > MAX_DEPTH:
            _refuse(path, _TOO_DEEP)
        if len(value) >= _LONG_LIST and self._plain_numbers(value):
            return
        for position, item in enumerate(value):
            self.check(item, f"{path}.{position}" if path else str(position), depth + 1)

    def _plain_numbers(self, values: list[Any] | tuple[Any, ...]) -> bool:
        """True only when all are numbers within the rules; False says nothing."""
        if type(values[0]) is not float and type(values[0]) is not int:
            return False
        try:
            # The Euclidean norm is at least the largest magnitude and NaN when one element is: two bounds in one C pass.
            if not math.hypot(*values) <= MAX_NUMBER:
                return False
        except (TypeError, ValueError, OverflowError):
            return False
        if self.trusted:
            return True
        return set(map(type, values)) <= {float, int} and min(map(abs, values)) >= MIN_MAGNITUDE


def _check_number(value: float, path: str) -> None:
    if not -MAX_NUMBER <= value <= MAX_NUMBER:
        _refuse(path, "NaN is no JSON number" if isinstance(value, float) and math.isnan(value) else _TOO_BIG)
    if -MIN_MAGNITUDE < value < MIN_MAGNITUDE and value != 0:
        _refuse(path, _TOO_SMALL)


def _check_text(text: str, path: str) -> None:
    if "\0" in text:
        _refuse(path, "U+0000 in text")
    if not text.isascii():
        try:
            text.encode("utf-8")
        except UnicodeEncodeError:
            _refuse(path, "a lone surrogate in text")


# The C string escaper writes exactly what RFC 8785 section 3.2.2.2 asks for: the seven short escapes, \u00xx in lower case
# for the other controls, everything else as it is.
_quote: Final[Callable[[str], str]] = _encoder.encode_basestring
_DIGITS: Final = re.compile(r"(-?)([0-9]+)(?:\.([0-9]+))?(?:e([+-][0-9]+))?")


# The C encoder spells all of RFC 8785 but floats, sorts by code point, and asks for no bounds.
_plain: Final[Any] = (_encoder.c_make_encoder or _encoder._make_iterencode)(  # type: ignore[attr-defined]
    None, None, _quote, None, ":", ",", True, False, False
)
_SIMPLE: Final = frozenset({str, bool, type(None)})
_LOOKED_INTO: Final = frozenset({int, dict, list})
_NESTED: Final = _SIMPLE | _LOOKED_INTO


def _plain_members(value: Any, depth: int) -> int:
    """How many members a value has, those of its members included, where it is plain: any encoder that sorts keys writes it as RFC 8785
    does. Below 0 it may not be. Looks at types by the container, not by the item."""
    if depth >= MAX_DEPTH:
        return -1
    kind = type(value)
    if kind is dict:
        try:
            if not all(map(str.isascii, value)):
                return -1
        except TypeError:  # a key that is not text
            return -1
        items = value.values()
    elif kind is list:
        items = value
    else:
        return 0 if kind in _SIMPLE else -1
    members = len(items)
    kinds = set(map(type, items))
    if kinds <= _SIMPLE:
        return members
    if not kinds <= _NESTED:
        return -1
    for item in compress(items, map(_LOOKED_INTO.__contains__, map(type, items))):
        if type(item) is int:
            if not -MAX_NUMBER <= item <= MAX_NUMBER:
                return -1
        elif item or depth + 1 >= MAX_DEPTH:
            within = _plain_members(item, depth + 1)
            if within < 0:
                return -1
            members += within
    return members


def _pieces(value: Any) -> Iterator[str]:
    """What the C encoder writes, in pieces: in one go it would keep the interpreter from all other threads for as long as it takes."""
    kind = type(value)
    if kind is list and len(value) > _CHUNK:
        yield "["
        for start in range(0, len(value), _CHUNK):
            yield "," if start else ""
            yield "".join(_plain(value[start : start + _CHUNK], 0))[1:-1]
        yield "]"
    elif kind is dict and len(value) > _CHUNK:
        keys = sorted(value)
        yield "{"
        for start in range(0, len(keys), _CHUNK):
            yield "," if start else ""
            yield "".join(_plain({key: value[key] for key in keys[start : start + _CHUNK]}, 0))[1:-1]
        yield "}"
    elif (
        kind is dict and len(value) <= _FEW and any(type(item) is list or type(item) is dict for item in value.values())
    ):
        yield "{"
        for place, key in enumerate(sorted(value)):
            yield f"{',' if place else ''}{_quote(key)}:"
            yield from _pieces(value[key])
        yield "}"
    else:
        yield from _plain(value, 0)


_CHUNK: Final = 512  # members
_FEW: Final = 32


def _utf16(key: str) -> bytes:
    return key.encode("utf-16-be", "surrogatepass")


def _encode(value: Any, depth: int) -> str:
    kind = type(value)
    if kind is str:
        return _quote(value)
    if kind is int:
        if not -MAX_NUMBER <= value <= MAX_NUMBER:
            _refuse("", _TOO_BIG)
        return int.__repr__(value)
    if value is None:
        return "null"
    if kind is bool:
        return "true" if value else "false"
    if kind is float:
        return _number(value)
    if kind is dict:
        return _encode_dict(value, depth)
    if kind is list or kind is tuple:
        if depth >= MAX_DEPTH:
            _refuse("", _TOO_DEEP)
        return "[" + ",".join([_encode(item, depth + 1) for item in value]) + "]"
    _refuse("", f"{kind.__name__} is no JSON type")


def _encode_dict(value: dict[str, Any], depth: int) -> str:
    if depth >= MAX_DEPTH:
        _refuse("", _TOO_DEEP)
    parts = []
    try:
        names = "".join(value)
        # Code points sort as UTF-16 units do unless some key leaves the basic plane.
        keys = sorted(value) if names.isascii() or max(names) <= "\uffff" else sorted(value, key=_utf16)
    except TypeError:
        _refuse("", "a key that is not text")
    for key in keys:
        item = value[key]
        # Strings are most of what is encoded; the call for them is saved.
        parts.append(_quote(key) + ":" + (_quote(item) if type(item) is str else _encode(item, depth + 1)))
    return "{" + ",".join(parts) + "}"


def _number(value: float) -> str:
    """ECMAScript's Number::toString; ``repr`` gives the same shortest digits in another layout."""
    if not math.isfinite(value):
        _refuse("", "NaN and infinities are no JSON numbers")
    if value == 0.0:
        return "0"
    shown = repr(value)
    if "e" not in shown:
        return shown.removesuffix(".0")
    match = _DIGITS.fullmatch(shown)
    assert match is not None  # noqa: S101 - the shape of repr(float)
    sign, whole, fraction, power = match.groups(default="")
    digits = (whole + fraction).rstrip("0")
    point = len(whole) + int(power)  # the decimal point stands after this many digits
    if len(digits) <= point <= 21:
        return sign + digits + "0" * (point - len(digits))
    if -6 < point <= 0:
        return sign + "0." + "0" * -point + digits
    exponent = point - 1
    mantissa = digits[0] + ("." + digits[1:] if len(digits) > 1 else "")
    return f"{sign}{mantissa}e{'+' if exponent > 0 else '-'}{abs(exponent)}"
