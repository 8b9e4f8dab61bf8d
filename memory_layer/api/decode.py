"""From bytes to checked values: bodies, query parameters, vectors, conditional headers. Every refusal names its place."""

from __future__ import annotations

import codecs
import json
import re
import secrets
import uuid
from collections.abc import Mapping, Sequence
from typing import Any, Final, TypeVar, cast

import msgspec
import numpy as np
from numpy.typing import NDArray
from starlette.datastructures import QueryParams
from starlette.requests import ClientDisconnect
from starlette.types import Receive

from memory_layer import aside, canonical
from memory_layer.api.admission import Room
from memory_layer.errors import (
    DimensionMismatch,
    MalformedJson,
    PayloadTooLarge,
    Problem,
    UnsupportedMediaType,
    ValidationError,
)
from memory_layer.filters import parse_timestamp
from memory_layer.model import Embedding

T = TypeVar("T")

MAX_BODY: Final = 2 * 1024 * 1024  # bytes
MAX_BULK: Final = 32 * 1024 * 1024  # bytes
MAX_ITEMS: Final = 1000
JSON: Final = ("application/json",)
NDJSON: Final = ("application/x-ndjson", "application/ndjson", "application/jsonl")
_AT: Final = re.compile(r"(?:\$|key in \$)?\.?(.*)", re.DOTALL)
_ETAG: Final = re.compile(r'(?:W/)?"?([1-9][0-9]{0,9})"?')


async def read_body(
    receive: Receive, headers: Mapping[str, str], room: Room, limit: int = MAX_BODY, kinds: Sequence[str] = JSON
) -> bytes:
    """The whole body; refuses what is no JSON by its type, and what is too large before it is all here. Raises Overloaded where
    there is no room for it beside others."""
    kind = _kind(headers)
    if kind not in kinds:
        raise UnsupportedMediaType(
            f"This call reads {' or '.join(kinds[:2])}, not {kind or 'a body without Content-Type'}."
        )
    announced = headers.get("content-length", "0")
    if announced.isdigit() and int(announced) > limit:
        raise _too_large(limit)
    parts, size, more = [], 0, True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        part, more = message.get("body", b""), message.get("more_body", False)
        size += len(part)
        if size > limit:
            raise _too_large(limit)
        room.grow(size)
        parts.append(part)
    raw = parts[0] if len(parts) == 1 else b"".join(parts)
    return raw.removeprefix(codecs.BOM_UTF8)  # which RFC 8259 lets a reader pass over, and some editors write


def require_plain(headers: Mapping[str, str]) -> None:
    """Raise UnsupportedMediaType for a body that is encoded for the way: bodies are taken as they come, and what is stored is what is
    served, hashed and proved."""
    coding = headers.get("content-encoding", "").strip()
    if coding.lower() not in ("", "identity"):
        raise UnsupportedMediaType(
            f"The body is encoded as {coding[:40]!r}, and bodies are taken as they come. Send it without Content-Encoding."
        )


def _too_large(limit: int) -> PayloadTooLarge:
    return PayloadTooLarge(f"The body is larger than {limit} bytes. Put large text or files into an artifact.")


def _kind(headers: Mapping[str, str]) -> str:
    return headers.get("content-type", "").partition(";")[0].strip().lower()


async def items(receive: Receive, headers: Mapping[str, str], room: Room) -> tuple[bytes, list[bytes]]:
    """A bulk body and its items, each still as JSON bytes.

    Raises for what no item can be blamed for: broken JSON, no array, nothing in it, more than MAX_ITEMS.
    """
    raw = await read_body(receive, headers, room, MAX_BULK, JSON + NDJSON)
    cut = _lines if _kind(headers) in NDJSON else _elements
    found = await aside.run(len(raw), cut, raw)
    if len(found) > MAX_ITEMS:
        raise _too_many()
    if not found:
        raise ValidationError("The body holds no items.", details=[Problem("body", "empty")])
    return raw, found


def item(found: bytes, shape: type[T]) -> T:
    """What one of ``items`` means. Raises its error."""
    if len(found) > MAX_BODY:
        raise PayloadTooLarge(f"The node is larger than {MAX_BODY} bytes. Put large text or files into an artifact.")
    return body(found, shape)


def _lines(raw: bytes) -> list[bytes]:
    if raw.count(b"\n") > 10 * MAX_ITEMS:  # even where most of them are empty
        raise _too_many()
    return [line for line in raw.split(b"\n") if line.strip()]


_BETWEEN: Final = re.compile(r"[ \t\r\n]*([,\]])[ \t\r\n]*")
_BEGIN: Final = re.compile(r"[ \t\r\n]*\[[ \t\r\n]*")
# Characters in which an element's end is looked for: each twice as many, so that one with too many values is met before all of it is read.
_WINDOWS: Final = tuple(64 * 1024 << n for n in range(6))
# Where a value ends is all that is asked: to make numbers out of digits costs more, and holds the interpreter meanwhile.
_SCAN: Final = json.JSONDecoder(parse_float=len, parse_int=len).raw_decode


def _elements(raw: bytes) -> list[bytes]:
    """The elements of an array as JSON bytes, each parsed strictly later.

    Stops at the first element too many or too large: what one request can make the server do stays bounded.
    """
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise MalformedJson(f"The body is not UTF-8: byte {error.start}.") from None
    begin = _BEGIN.match(text)
    if begin is None:
        canonical.loads(raw[:MAX_BODY])  # says what is wrong with it, unless it is a JSON document of another kind
        raise ValidationError("The body must be a JSON array.", details=[Problem("body", "not an array")])
    place, found = begin.end(), []
    if text.startswith("]", place):
        _end(text, place + 1)
        return []
    while True:
        end = _end_of_element(text, place)
        found.append(text[place:end].encode("utf-8"))
        if len(found) > MAX_ITEMS:
            raise _too_many()
        match = _BETWEEN.match(text, end)
        if match is None:
            raise MalformedJson(f"The body is not JSON: ',' or ']' expected at character {end}.")
        place = match.end()
        if match[1] == "]":
            _end(text, place)
            return found


def _end_of_element(text: str, place: int) -> int:
    problem = ValueError("no value")
    for window in _WINDOWS:
        try:
            _, length = _SCAN(text[place : place + window])
        except RecursionError:
            raise ValidationError("An element is nested too deeply.", details=[Problem("body", "too deep")]) from None
        except ValueError as error:  # broken, or longer than the window
            problem = error
            _require_few_values(text[place : place + window].encode())
            continue
        if length < window or place + length == len(text):
            return place + length
    if len(text) - place > MAX_BODY:
        raise PayloadTooLarge(
            f"An element of the array is broken, or larger than {MAX_BODY} bytes: its end was not found."
        )
    message = problem.msg if isinstance(problem, json.JSONDecodeError) else str(problem)
    raise MalformedJson(f"The body is not JSON: {message} in the element at character {place}.")


def _end(text: str, place: int) -> None:
    if text[place:].strip(" \t\r\n"):
        raise MalformedJson(f"The body is not JSON: extra data at character {place}.")


def _too_many() -> ValidationError:
    problem = f"more than {MAX_ITEMS} items"
    return ValidationError(
        f"The body holds {problem}; one request brings 1 to {MAX_ITEMS}.", details=[Problem("body", problem)]
    )


def body(data: bytes, shape: type[T]) -> T:
    """Strict JSON, then the shape. Raises MalformedJson or ValidationError."""
    if len(data) >= _LARGE and (cut := _cut_vector(data)) is not None:
        rest, found = cut
        value = _parsed(rest)
        embedding_ = value.get("embedding")
        checked: Any
        if isinstance(embedding_, dict) and embedding_.get("vector") == _PLACEHOLDER:
            checked = convert(value, shape)
            checked.embedding.vector = found
            return cast(T, checked)
        if value.get("queryEmbedding") == _PLACEHOLDER:
            checked = convert(value, shape)
            checked.query_embedding = found
            return cast(T, checked)
    return convert(_parsed(data), shape)


def _parsed(data: bytes) -> dict[str, Any]:
    _require_few_values(data)
    value = canonical.loads(data)
    if not isinstance(value, dict):
        raise ValidationError("The body must be a JSON object.", details=[Problem("body", "not an object")])
    return value


def _require_few_values(data: bytes) -> None:
    """Raise PayloadTooLarge before a body is read that holds more than MAX_VALUES values, as its commas and brackets tell."""
    if len(data) <= 2 * aside.MAX_VALUES or _values(data) <= aside.MAX_VALUES:
        return
    # Most such bodies hold a long text, whose commas count for nothing. Each value has at the most a text and a name.
    bare = data.replace(b"\\\\", b"").replace(b'\\"', b"")
    if bare.count(b'"') > 4 * aside.MAX_VALUES or _values(b"".join(bare.split(b'"')[::2])) > aside.MAX_VALUES:
        raise PayloadTooLarge(
            f"The body holds more than {aside.MAX_VALUES} JSON values. Split it into several nodes, or put large data into an artifact."
        )


def _values(data: bytes) -> int:
    empty = data.count(b"[]") + data.count(b"{}")
    return 1 + data.count(b",") + data.count(b"[") + data.count(b"{") - empty


_LARGE: Final = 2048  # bytes; in a smaller body the vector costs nothing
_KEY: Final = re.compile(rb'"(?:vector|queryEmbedding)"[ \t\r\n]*:[ \t\r\n]*(["\[])')
_FLOATS: Final = msgspec.json.Decoder(list[float])
_BYTES: Final = msgspec.json.Decoder(bytes)
# What nobody outside can have put into a body, so that where it is found afterwards is where the vector was.
_PLACEHOLDER: Final = secrets.token_hex(16)


def _cut_vector(data: bytes) -> tuple[bytes, NDArray[Any]] | None:
    """The body with a placeholder where its vector stood, and the vector; None where that cannot be done safely.

    Nine tenths of a body are its vector, which a plain decoder reads five times as fast as the strict one. What is left is parsed
    strictly, repeated keys included: a whole JSON value was replaced by another, so it is valid if and only if the body is. Any
    doubt leaves the whole to the strict parser, whose errors say what is wrong.
    """
    key = _KEY.search(data)
    if key is None:
        return None
    start = key.start(1)
    end = data.find(b'"' if key[1] == b'"' else b"]", start + 1) + 1
    if end == 0:
        return None
    raw = data[start:end]
    try:
        vector = np.frombuffer(_BYTES.decode(raw), "<f4") if key[1] == b'"' else _numbers(raw)
    except (msgspec.MsgspecError, ValueError):
        return None
    if vector is None:
        return None
    return b'%b"%b"%b' % (data[:start], _PLACEHOLDER.encode(), data[end:]), vector


def _numbers(raw: bytes) -> NDArray[Any] | None:
    """A JSON array of numbers as float64; None where the strict parser might refuse one of them."""
    vector = np.fromiter(_FLOATS.decode(raw), np.float64)
    if not vector.size:
        return None
    magnitudes = np.abs(vector)
    least = float(magnitudes.min())
    if least < canonical.MIN_MAGNITUDE and canonical.may_underflow(
        raw
    ):  # a zero may have been something else in the text
        return None
    return vector if float(magnitudes.max()) <= canonical.MAX_NUMBER else None


def convert(value: Any, shape: type[T], *, strict: bool = True, at: str = "") -> T:
    """A checked value of ``shape``; ``strict=False`` reads numbers out of text, for query parameters."""
    try:
        return msgspec.convert(value, shape, strict=strict)
    except msgspec.ValidationError as error:
        # The last one: names out of the request may stand before it. Found without a pattern, which would try each.
        problem, found, place = str(error).rpartition(" - at `")
        match = _AT.fullmatch(place.removesuffix("`")) if found else None
        problem, path = (problem, match[1]) if match is not None else (str(error), "")
        where = ".".join(part for part in (at, path) if part) or "body"
        if problem.startswith("Invalid enum value") and (choices := _choices(shape, path.rpartition(".")[2])):
            problem = f"{problem.removeprefix('Invalid enum value ')} is not {choices}"
        raise ValidationError(f"{where}: {problem}.", details=[Problem(where, problem)]) from None


def _choices(shape: Any, name: str) -> str:
    """The words that a member of a shape takes, or one of a shape within it; "" where they are not known."""
    waiting: list[Any] = [msgspec.inspect.type_info(shape)]
    seen = set()
    while waiting:
        kind = waiting.pop()
        if isinstance(kind, msgspec.inspect.StructType):
            if kind.cls in seen:
                continue
            seen.add(kind.cls)
            for field in kind.fields:
                if field.encode_name == name and (words := _words(field.type)):
                    return f"{', '.join(words[:-1])} or {words[-1]}" if len(words) > 1 else words[0]
                waiting.append(field.type)
        else:
            waiting += _inside(kind)
    return ""


def _inside(kind: Any) -> list[Any]:
    """The types that a union, an array or an annotated type is made of."""
    types = list(getattr(kind, "types", ()))
    return types + [getattr(kind, name) for name in ("type", "item_type", "value_type") if hasattr(kind, name)]


def _words(kind: Any) -> list[str]:
    if isinstance(kind, msgspec.inspect.LiteralType):
        return [str(value) for value in kind.values]
    return next((words for inner in _inside(kind) if (words := _words(inner))), [])


def query(text: bytes, shape: type[T]) -> T:
    """Query parameters; unknown or repeated ones are refused."""
    if not text:
        return shape()
    pairs = QueryParams(text).multi_items()
    if len({name for name, _ in pairs}) != len(pairs):
        raise ValidationError("A query parameter is given twice.", details=[Problem("query", "repeated parameter")])
    for name, value in pairs:
        canonical.check(value, f"query.{name}")
    return convert(dict(pairs), shape, strict=False, at="query")


def identifier(text: str, name: str) -> uuid.UUID:
    """A UUID in its usual spelling."""
    try:
        value = uuid.UUID(text)
    except ValueError:
        value = None
    if value is None or str(value) != text.lower():
        raise ValidationError(f"{name} is not a UUID.", details=[Problem(name, "not a UUID")])
    return value


def embedding_id(text: str) -> str:
    """A caller's own id in a path, its escapes undone."""
    problem = None
    if not 1 <= len(text) <= 512:
        problem = "must have 1 to 512 characters"
    elif "\0" in text or "\ufffd" in text:  # the latter stands where escapes were no UTF-8
        problem = "must be UTF-8 without NUL"
    if problem is not None:
        raise ValidationError(f"embeddingId {problem}.", details=[Problem("embeddingId", problem)])
    return text


def vector(value: list[float] | str | NDArray[Any], dimension: int | None, path: str) -> NDArray[np.float32]:
    """float32, shape (dimension,). Refused: another length, NaN, infinity (also after rounding to float32), all zeros."""
    if isinstance(value, np.ndarray) and value.dtype == np.float32:
        array = value
    elif isinstance(value, str):
        try:
            data = msgspec.convert(value, bytes)
        except msgspec.ValidationError:
            raise _bad_vector(path, "not base64 of little-endian float32") from None
        if len(data) % 4:
            raise _bad_vector(path, f"{len(data)} bytes are no whole number of float32")
        array = np.frombuffer(data, "<f4")
    else:
        with np.errstate(over="ignore"):
            array = np.asarray(value, dtype=np.float64).astype("<f4")
    if array.shape[0] == 0:
        raise _bad_vector(path, "empty")
    if dimension is not None and array.shape[0] != dimension:
        raise DimensionMismatch(
            f"{path} has {array.shape[0]} numbers, but dimension says {dimension}.",
            details=[Problem(path, f"{array.shape[0]} numbers instead of {dimension}")],
        )
    exact = array.astype(np.float64)
    square = float(
        exact @ exact
    )  # of finite float32 it neither overflows nor vanishes; NaN and infinity stay what they are
    if not square < np.inf:
        raise _bad_vector(path, "holds NaN or infinity")
    if square == 0.0:
        raise _bad_vector(path, "all zeros: it has no direction, so no cosine")
    return array


def embedding(model: str, dimension: int, value: list[float] | str | NDArray[Any]) -> Embedding:
    """The caller's vector as the bytes that are stored and hashed."""
    return Embedding(model, dimension, vector(value, dimension, "embedding.vector").tobytes())


def timestamp(text: str | None, path: str) -> Any:
    """An aware datetime, or None."""
    if text is None:
        return None
    try:
        return parse_timestamp(text)
    except ValueError as error:
        raise ValidationError(f"{path} is {error}.", details=[Problem(path, str(error))]) from None


def json_parameter(text: str | None, path: str) -> Any:
    """JSON inside a query parameter."""
    if text is None:
        return None
    try:
        return canonical.loads(text.encode("utf-8", "surrogatepass"))
    except MalformedJson as error:
        raise ValidationError(f"{path} is not JSON: {error.message}", details=[Problem(path, "not JSON")]) from None


def expected_version(headers: Mapping[str, str]) -> int | None:
    """The version that If-Match demands; None for ``*`` or no header."""
    header = headers.get("if-match")
    if header is None or header.strip() == "*":
        return None
    match = _ETAG.fullmatch(header.strip())
    if match is None or int(match.group(1)) > 2**31 - 1:
        raise ValidationError(
            'If-Match must be the node\'s ETag, such as "3".',
            details=[Problem("header.if-match", "not an ETag of this API")],
        )
    return int(match.group(1))


def _bad_vector(path: str, problem: str) -> ValidationError:
    return ValidationError(f"{path}: {problem}.", details=[Problem(path, problem)])
