"""What `memoryctl ingest` reads: paths into pieces, each with an identity that a second run finds again.

A piece is known by namespace, path, line and content, so two equal lines stay two nodes and an unchanged file is never
written twice. The path counts as it was named on the command line (``./docs``, ``docs/`` and ``docs`` are one), hence
the same command finds the same nodes from one run to the next, and a moved checkout too.
"""

from __future__ import annotations

import hashlib
import json
import mimetypes
import os
import string
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass, field
from io import BufferedReader
from pathlib import Path
from typing import IO, Any

from memory_layer.cli.chunks import chunk
from memory_layer.errors import UsageError

MARKDOWN, TEXT, JSON_LINES = (".md", ".markdown"), (".txt",), (".jsonl", ".ndjson")
LONGEST_LINE = 2 * 1024 * 1024  # no request body may be larger
_TEXT_LINE = 64 * 1024


@dataclass(frozen=True, slots=True)
class Input:
    """A file to read. ``name`` is its path in identities; ``named`` when the command line names this very file."""

    path: Path
    name: str
    named: bool


@dataclass(frozen=True, slots=True)
class Piece:
    """What becomes one node."""

    name: str
    line: int
    content: str | None
    metadata: dict[str, Any] = field(hash=False)
    embedding_id: str


@dataclass(frozen=True, slots=True)
class Bad:
    """What cannot become a node, and why."""

    name: str
    line: int
    problem: str


def embedding_id(namespace: str | None, name: str, line: int, content: str, part: int = 0) -> str:
    """``ingest:`` and the SHA-256 of the identity as a JSON array; ``part`` counts only when a line was split."""
    identity: list[str | int | None] = [namespace, name, line, content]
    if part:
        identity.append(part)
    return "ingest:" + hashlib.sha256(json.dumps(identity, separators=(",", ":")).encode("ascii")).hexdigest()


def find(arguments: list[Path]) -> Iterator[Input]:
    """The files that the arguments stand for, in a stable order; a missing path is a UsageError before any is read."""
    for argument in arguments:
        if not argument.exists():
            raise UsageError(f"{argument} does not exist.")
        if not (argument.is_dir() or argument.is_file()):
            raise UsageError(f"{argument} is neither a file nor a folder.")
    for argument in arguments:
        name = path_name(argument)
        if argument.is_file():
            yield Input(argument, name, named=True)
            continue
        for folder, folders, files in os.walk(argument):
            folders[:] = sorted(f for f in folders if not f.startswith(".") and f not in ("CVS", "_darcs"))
            for file in sorted(files):
                path = Path(folder) / file
                if not file.startswith(".") and path.suffix.lower() in MARKDOWN + TEXT and path.is_file():
                    inner = path.relative_to(argument).as_posix()
                    yield Input(path, _encodable(f"{name}/{inner}"), named=False)


def path_name(argument: Path) -> str:
    """The argument in its plainest spelling. The current folder goes by its name, as ``.`` could be any folder."""
    plain = Path(os.path.normpath(argument))
    return _encodable(Path.cwd().name if plain == Path() else plain.as_posix())


def parse_template(template: str) -> list[tuple[str, str | None]]:
    """``'{speaker}: {text}'`` as (text before, field) pairs; a UsageError says what is wrong with it."""
    try:
        parsed = list(string.Formatter().parse(template))
    except ValueError as error:
        raise UsageError(
            f"--content {template!r} is no template: {error}. Fields stand in braces: '{{text}}'."
        ) from None
    parts: list[tuple[str, str | None]] = []
    for before, name, spec, conversion in parsed:
        if name is not None and (not name.strip() or spec or conversion):
            raise UsageError(
                f"--content {template!r}: braces hold the name of a field and nothing else, as in '{{speaker}}: {{text}}'."
            )
        parts.append((before, name))
    if not any(name for _, name in parts):
        raise UsageError(f"--content {template!r} names no field; every node would have the same text.")
    return parts


def fill(template: list[tuple[str, str | None]], record: dict[str, Any]) -> str:
    """The template with a record's values; ``a.b`` reaches into nested objects. A missing field raises KeyError."""
    return "".join(before + ("" if name is None else _value(record, name)) for before, name in template)


def read(
    source: Input, file: BufferedReader, namespace: str | None, template: list[tuple[str, str | None]]
) -> Iterator[Piece | Bad]:
    """The pieces of an open file in order; what cannot become one comes as ``Bad``, and the rest goes on."""
    suffix = source.path.suffix.lower()
    if suffix in JSON_LINES:
        yield from _json_lines(file, source.name, namespace, template)
    elif suffix in MARKDOWN + TEXT or _looks_like_text(file):
        yield from _text(file, source.name, namespace, markdown=suffix in MARKDOWN)
    else:
        yield _opaque(file, source, namespace)


def _json_lines(
    file: IO[bytes], name: str, namespace: str | None, template: list[tuple[str, str | None]]
) -> Iterator[Piece | Bad]:
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
            record = _record(raw)
            content = fill(template, record)
            content.encode("utf-8")
            if not content.strip():
                raise ValueError("its text is empty")
        except KeyError as error:
            yield Bad(name, number, f"no field {error.args[0]!r}; it has {', '.join(map(repr, record)) or 'none'}")
        except UnicodeEncodeError:
            yield Bad(name, number, "holds a lone surrogate, which is no Unicode character")
        except (ValueError, RecursionError) as error:
            yield Bad(name, number, str(error) if isinstance(error, ValueError) else "nested too deeply")
        else:
            where: dict[str, Any] = {"path": name, "line": number}
            if "source" in record:  # every field is kept, also one of that name
                where["original"] = record["source"]
            ident = embedding_id(namespace, name, number, content)
            yield Piece(name, number, content, {**record, "source": where}, ident)


def _record(raw: bytes) -> dict[str, Any]:
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 ({error.reason} at byte {error.start})") from None
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


def _text(file: IO[bytes], name: str, namespace: str | None, *, markdown: bool) -> Iterator[Piece | Bad]:
    try:
        for piece in chunk(_numbered(file), markdown=markdown):
            metadata: dict[str, Any] = {"source": {"path": name, "line": piece.line}}
            if piece.heading:
                metadata["heading"] = piece.heading
            ident = embedding_id(namespace, name, piece.line, piece.text, piece.part)
            yield Piece(name, piece.line, piece.text, metadata, ident)
    except _BadLine as error:
        yield Bad(name, error.line, error.problem)


class _BadLine(Exception):
    def __init__(self, line: int, problem: str) -> None:
        self.line, self.problem = line, problem


def _numbered(file: IO[bytes]) -> Iterator[tuple[int, str]]:
    """(line, text). Very long lines come in parts under one number, cut where a character ends."""
    number, kept = 1, b""
    while raw := file.readline(_TEXT_LINE):
        whole = raw.endswith(b"\n")
        raw = kept + raw
        kept = b""
        if number == 1:
            raw = raw.removeprefix(b"\xef\xbb\xbf")
        try:
            text = raw.decode("utf-8")
        except UnicodeDecodeError as error:
            if not (not whole and error.reason == "unexpected end of data" and len(raw) - error.start < 4):
                raise _BadLine(number, f"not UTF-8 text ({error.reason})") from None
            text, kept = raw[: error.start].decode("utf-8"), raw[error.start :]
        if "\0" in text:
            raise _BadLine(number, "holds a NUL character: not text")
        yield number, text.rstrip("\r\n")
        number += whole
    if kept:
        raise _BadLine(number, "not UTF-8 text (unexpected end of data)")


def _looks_like_text(file: IO[bytes]) -> bool:
    sample = file.read(8192)
    file.seek(0)
    if b"\0" in sample:
        return False
    try:
        sample.decode("utf-8")
    except UnicodeDecodeError as error:
        return error.reason == "unexpected end of data" and len(sample) - error.start < 4
    return True


def _opaque(file: BufferedReader, source: Input, namespace: str | None) -> Piece:
    """A file that is no text: a node without content that carries the bytes as its artifact."""
    sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    metadata = {
        "source": {"path": source.name, "line": 1},
        "file": {
            "name": _encodable(source.path.name),
            "contentType": mimetypes.guess_type(source.path.name)[0] or "application/octet-stream",
            "sizeBytes": file.tell(),
            "sha256": sha256,
        },
    }
    return Piece(source.name, 1, None, metadata, embedding_id(namespace, source.name, 1, sha256))


def _encodable(name: str) -> str:
    """File names are bytes; those that are no UTF-8 show their odd bytes as ``\\udcXX``. NFC, as macOS stores NFD."""
    return unicodedata.normalize("NFC", name.encode("utf-8", "backslashreplace").decode("utf-8"))
