"""JSON lines: a record a line, its text from a template."""

from __future__ import annotations

import json
import string
from collections.abc import Iterator
from typing import IO, Any, TypeAlias

from memory_layer.documents.chunks import chunk, is_long
from memory_layer.documents.passages import LONGEST_THREAD, Bad, Passage
from memory_layer.documents.rows import short
from memory_layer.documents.text import is_utf8
from memory_layer.errors import UsageError

LONGEST_LINE = 2 * 1024 * 1024  # no request body may be larger

Template: TypeAlias = list[tuple[str, str | None]]  # (text before, field)


def parse_template(template: str, option: str = "--content") -> Template:
    """``'{speaker}: {text}'`` as (text before, field) pairs; a UsageError says what is wrong with it."""
    try:
        parsed = list(string.Formatter().parse(template))
    except ValueError as error:
        raise UsageError(
            f"{option} {template!r} is no template: {error}. Fields stand in braces: '{{text}}'."
        ) from None
    parts: Template = []
    for before, name, spec, conversion in parsed:
        if name is not None and (not name.strip() or spec or conversion):
            raise UsageError(
                f"{option} {template!r}: braces hold the name of a field and nothing else, as in '{{speaker}}: {{text}}'."
            )
        parts.append((before, name))
    if not any(name for _, name in parts):
        raise UsageError(f"{option} {template!r} names no field; it would be the same for every line.")
    return parts


def fill(template: Template, record: dict[str, Any]) -> str:
    """The template with a record's values; ``a.b`` reaches into nested objects. A missing field raises KeyError."""
    return "".join(before + ("" if name is None else _value(record, name)) for before, name in template)


def json_lines(
    file: IO[bytes], name: str, template: Template, thread: Template | None = None, encoding: str | None = None
) -> Iterator[Passage | Bad]:
    """A passage a line, several of a long one, with its fields as metadata; a line that cannot be one comes as ``Bad``. ``encoding``: of a file that is not
    UTF-8."""
    codec = encoding if encoding is not None and not is_utf8(file) else "utf-8"
    number = 0
    while raw := file.readline(LONGEST_LINE + 1):
        number += 1
        if len(raw) > LONGEST_LINE and not raw.endswith(b"\n"):
            while raw and not raw.endswith(b"\n"):
                raw = file.readline(LONGEST_LINE)
            yield Bad(name, number, f"longer than {LONGEST_LINE:,} bytes, the most that one node may have")
            continue
        if number == 1:
            raw = raw.removeprefix(b"\xef\xbb\xbf")
        if not raw.strip():
            continue
        record: dict[str, Any] = {}
        try:
            record = _record(raw, codec)
            content = fill(template, record)
            content.encode("utf-8")
            place = None if thread is None else fill(thread, record)
            if not content.strip():
                raise ValueError("its text is empty")
        except KeyError as error:
            yield Bad(name, number, f"no field {error.args[0]!r}; it has {', '.join(map(repr, record)) or 'none'}")
        except UnicodeEncodeError:
            yield Bad(name, number, "holds a lone surrogate, which is no Unicode character")
        except (ValueError, RecursionError) as error:
            yield Bad(name, number, str(error) if isinstance(error, ValueError) else "nested too deeply")
        else:
            if place is not None and not 0 < len(place) <= LONGEST_THREAD:
                yield Bad(name, number, f"its thread would have {len(place)} characters; 1 to {LONGEST_THREAD} can be")
                continue
            # Every field is kept, also one of that name.
            where = {"original": record.pop("source")} if "source" in record else {}
            yield from _passages(content, number, record, where, place, name)


def _passages(
    content: str, number: int, record: dict[str, Any], where: dict[str, Any], thread: str | None, name: str
) -> Iterator[Passage]:
    """One; several where it would be more than a model reads whole: they are a thread of their own where the record is in none."""
    texts = [content]
    if is_long(content):
        texts = [piece.text for piece in chunk(enumerate(content.splitlines(), 1), markup=None)]
        thread = f"{name}#{number}" if thread is None else thread
    for text in texts:
        fields = tuple(sorted(record))
        yield Passage(text, number, record, {**where, "fields": list(fields)}, fields, thread=thread)
        record = short(record)


def _record(raw: bytes, codec: str) -> dict[str, Any]:
    try:
        text = raw.decode(codec)
    except UnicodeDecodeError as error:
        raise ValueError(f"not {codec.upper()} ({error.reason} at byte {error.start})") from None
    try:
        record = json.loads(text, parse_constant=_no_constant, object_pairs_hook=_no_duplicates)
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON ({error.msg} at column {error.colno})") from None
    if not isinstance(record, dict):
        raise ValueError(f"a JSON object is expected, not {type(record).__name__}")
    return record


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is no JSON number")


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    record = dict(pairs)
    if len(record) != len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"field {next(n for n in names if names.count(n) > 1)!r} comes twice")
    return record


def _value(record: dict[str, Any], name: str) -> str:
    found: Any = record
    if name in record:
        found = record[name]
    else:
        for step in name.split("."):
            if not isinstance(found, dict) or step not in found:
                raise KeyError(name)
            found = found[step]
    if found is None:
        raise KeyError(name)
    return found if isinstance(found, str) else json.dumps(found, ensure_ascii=False)
