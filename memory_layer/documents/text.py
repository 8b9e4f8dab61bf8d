"""Text and Markdown: lines of bytes into passages, front matter into metadata."""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterator
from itertools import chain
from typing import IO, Any
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from memory_layer.documents.chunks import Chunk, chunk
from memory_layer.documents.markup import MARKDOWN, Markup
from memory_layer.documents.passages import Bad, Passage
from memory_layer.errors import UsageError

_TEXT_LINE = 64 * 1024


def text(lines: Iterator[tuple[int, str]], markup: Markup | None) -> Iterator[Passage]:
    """The passages of a text, with what its front matter says."""
    about: dict[str, Any] = {}
    if markup is MARKDOWN:
        about, lines = _front_matter(lines)
        lines = ((number, cleaned(line)) for number, line in lines)
    for piece in chunk(lines, markup=markup):
        yield Passage(piece.text, piece.line, {**about, **headings_of(piece)})


_DATA_URL = re.compile(r"data:[\w.+-]+/[\w.+-]+(?:;[\w.+=-]+)*;base64,[A-Za-z0-9+/=%]*")


def cleaned(line: str) -> str:
    """A line without the bytes of pictures that are written into it."""
    return _DATA_URL.sub("", line) if "base64," in line else line


def headings_of(piece: Chunk) -> dict[str, Any]:
    """The headings above a passage, and the nearest one."""
    return {"heading": piece.headings[-1], "headings": list(piece.headings)} if piece.headings else {}


_UTF16 = (b"\xff\xfe", b"\xfe\xff")
_FENCE = "---"
_FRONT = 200  # lines that front matter may have


def _front_matter(lines: Iterator[tuple[int, str]]) -> tuple[dict[str, Any], Iterator[tuple[int, str]]]:
    """The YAML front matter of a note as metadata (``frontMatter``), and the lines after it. What is none stays text."""
    first = next(lines, None)
    if first is None or first[1].rstrip() != _FENCE:
        return {}, lines if first is None else chain([first], lines)
    taken = [first]
    for line in lines:
        taken.append(line)
        if line[1].rstrip() in (_FENCE, "..."):
            about = _yaml("\n".join(text for _, text in taken[1:-1]))
            return ({"frontMatter": about}, lines) if about is not None else ({}, chain(taken, lines))
        if len(taken) > _FRONT:
            break
    return {}, chain(taken, lines)


def _yaml(text: str) -> dict[str, Any] | None:
    """A mapping, with dates as text; None for anything else."""
    import yaml

    try:
        if any(isinstance(token, yaml.AliasToken) for token in yaml.scan(text)):
            return None  # a few lines can stand for gigabytes
        found = yaml.load(text, Loader=yaml.BaseLoader)  # noqa: S506  # nosec B506 - text, lists and mappings alone
    except (yaml.YAMLError, RecursionError):
        return None
    return found if isinstance(found, dict) and all(isinstance(key, str) for key in found) else None


def numbered(file: IO[bytes], name: str, bad: list[Bad], encoding: str | None = None) -> Iterator[tuple[int, str]]:
    """(line, text). Very long lines come in parts under one number, cut where a character ends. A line that is no text is left out, and
    noted in ``bad``. UTF-16 is known by its mark; ``encoding`` is that of files that are not UTF-8."""
    mark = file.read(2)
    file.seek(0)
    if mark in _UTF16 or (encoding is not None and not _keeps_lines(encoding) and not is_utf8(file)):
        text = (
            file.read().decode("utf-16" if mark in _UTF16 else encoding or "utf-8", "replace").replace("\0", "\ufffd")
        )
        yield from ((n, line.rstrip("\r")) for n, line in enumerate(text.removesuffix("\n").split("\n"), 1))
        return
    if encoding is not None and not is_utf8(file):
        yield from _decoded(file, name, bad, encoding)
        return
    yield from _utf8(file, name, bad)


def encoding_of(name: str | None) -> str | None:
    """The codec of that name. Raises UsageError for one that is none of texts."""
    if name is None:
        return None
    try:
        "a".encode(name)
        return codecs.lookup(name).name
    except (LookupError, UnicodeError, ValueError):
        raise UsageError(
            f"--encoding {name!r} is no encoding of texts; such are utf-8, windows-1252, shift_jis."
        ) from None


def zone_of(name: str | None) -> ZoneInfo | None:
    """The time zone of that name. Raises UsageError where there is none."""
    try:
        return None if name is None else ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise UsageError(
            f"--time-zone {name!r} is no time zone that is known here; such are Europe/Amsterdam, America/New_York, UTC."
        ) from None


def _keeps_lines(encoding: str) -> bool:
    """Whether a line ends where a byte says so, whatever stands before it."""
    try:
        return "\r\n".encode(encoding) == b"\r\n" and not encoding.startswith(("utf-7", "iso2022", "hz"))
    except UnicodeError:
        return False


def is_utf8(file: IO[bytes]) -> bool:
    """Whether all of a file is UTF-8 without NUL."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    try:
        while data := file.read(1024 * 1024):
            if b"\0" in data:
                return False
            decoder.decode(data)
        decoder.decode(b"", final=True)
    except UnicodeDecodeError:
        return False
    finally:
        file.seek(0)
    return True


def _decoded(file: IO[bytes], name: str, bad: list[Bad], encoding: str) -> Iterator[tuple[int, str]]:
    for number, raw in enumerate(file, 1):
        try:
            text = raw.decode(encoding)
        except UnicodeDecodeError as error:
            bad.append(Bad(name, number, f"left out: not {encoding} text ({error.reason} at byte {error.start})"))
            continue
        if "\0" in text:
            bad.append(Bad(name, number, "left out: holds a NUL character, which no text has"))
        else:
            yield number, text.rstrip("\r\n")


def _utf8(file: IO[bytes], name: str, bad: list[Bad]) -> Iterator[tuple[int, str]]:
    number, kept, broken = 1, b"", False
    while raw := file.readline(_TEXT_LINE):
        whole = raw.endswith(b"\n")
        raw = kept + raw
        kept = b""
        if number == 1:
            raw = raw.removeprefix(b"\xef\xbb\xbf")
        text, problem = "", ""
        try:
            text = raw.decode("utf-8")
        except UnicodeDecodeError as error:
            if not whole and error.reason == "unexpected end of data" and len(raw) - error.start < 4:
                text, kept = raw[: error.start].decode("utf-8"), raw[error.start :]
            else:
                problem = f"left out: not UTF-8 text ({error.reason} at byte {error.start})"
        if "\0" in text:
            problem = "left out: holds a NUL character, which no text has"
        if problem and not broken:
            bad.append(Bad(name, number, problem))
        if not problem and not broken:
            yield number, text.rstrip("\r\n")
        broken = bool(problem or broken) and not whole
        number += whole
    if kept:
        bad.append(Bad(name, number, "left out: not UTF-8 text (unexpected end of data)"))


def looks_like_text(file: IO[bytes], encoding: str | None = None) -> bool:
    """Whether a file that is of no known kind is text, by its beginning."""
    sample = file.read(8192)
    file.seek(0)
    if sample[:2] in _UTF16:
        return True
    if b"\0" in sample:
        return False
    try:
        sample.decode("utf-8")
    except UnicodeDecodeError as error:
        cut = error.reason == "unexpected end of data" and len(sample) - error.start < 4
        return cut or (encoding is not None and _mostly_text(sample, encoding))
    return True


def _mostly_text(sample: bytes, encoding: str) -> bool:
    """Whether bytes are text in an encoding that takes almost all bytes: pictures and programs are full of control characters."""
    decoded = sample.decode(encoding, "replace")
    odd = sum(char == "\ufffd" or (char < " " and char not in "\t\n\r\f\x1b") for char in decoded)
    return odd * 100 < len(decoded)
