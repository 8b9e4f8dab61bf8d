"""Text and Markdown: lines of bytes into passages, front matter into metadata."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from typing import IO, Any

from memory_layer.documents.chunks import chunk
from memory_layer.documents.passages import Bad, Passage

_TEXT_LINE = 64 * 1024


def text(file: IO[bytes], name: str, *, markdown: bool) -> Iterator[Passage | Bad]:
    """The passages of a text, with what its front matter says; lines that are no text come as ``Bad``."""
    bad: list[Bad] = []  # lines that were left out of what is read
    lines = _numbered(file, name, bad)
    about: dict[str, Any] = {}
    if markdown:
        about, lines = _front_matter(lines)
    for piece in chunk(lines, markdown=markdown):
        yield from bad
        bad.clear()
        metadata = dict(about)
        if piece.heading:
            metadata["heading"] = piece.heading
        yield Passage(piece.text, piece.line, metadata)
    yield from bad


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


def _numbered(file: IO[bytes], name: str, bad: list[Bad]) -> Iterator[tuple[int, str]]:
    """(line, text). Very long lines come in parts under one number, cut where a character ends. A line that is no text is left out, and
    noted in ``bad``; UTF-16 is known by its mark."""
    mark = file.read(2)
    file.seek(0)
    if mark in _UTF16:
        text = file.read().decode("utf-16", "replace").replace("\0", "\ufffd")
        yield from ((n, line.rstrip("\r")) for n, line in enumerate(text.removesuffix("\n").split("\n"), 1))
        return
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


def looks_like_text(file: IO[bytes]) -> bool:
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
        return error.reason == "unexpected end of data" and len(sample) - error.start < 4
    return True
