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
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from io import BufferedReader
from itertools import chain
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


@dataclass(slots=True)
class LeftOut:
    """What of the folders is not read. ``kinds``: files by their suffix. Hidden ones are not counted."""

    kinds: Counter[str] = field(default_factory=Counter)
    links: list[str] = field(default_factory=list)  # to folders, and to nothing
    folders: list[str] = field(default_factory=list)  # of libraries and built files

    def __str__(self) -> str:
        parts = []
        if self.kinds:
            named = ", ".join(f"{count} {kind or 'without a suffix'}" for kind, count in self.kinds.most_common(12))
            parts.append(
                f"{sum(self.kinds.values())} files of a kind that is not read ({named}); a file that is named itself is"
            )
        for what, names in (("links", self.links), ("folders of libraries or built files", self.folders)):
            if names:
                more = "" if len(names) <= 5 else f" and {len(names) - 5} more"
                parts.append(f"{len(names)} {what} ({', '.join(names[:5])}{more})")
        return "; ".join(parts)


_FOREIGN = ("CVS", "_darcs", "node_modules", "__pycache__", "venv", "site-packages", "bower_components")


def find(arguments: list[Path], left_out: LeftOut | None = None) -> Iterator[Input]:
    """The files that the arguments stand for, in a stable order; a missing path is a UsageError before any is read. What of a folder is not
    read is noted in ``left_out``."""
    left = LeftOut() if left_out is None else left_out
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
            shown = sorted(f for f in folders if not f.startswith("."))
            left.links += [_encodable(f"{folder}/{f}") for f in shown if (Path(folder) / f).is_symlink()]
            left.folders += [_encodable(f"{folder}/{f}") for f in shown if f in _FOREIGN]
            folders[:] = [f for f in shown if f not in _FOREIGN]
            for file in sorted(f for f in files if not f.startswith(".")):
                path = Path(folder) / file
                inner = _encodable(f"{name}/{path.relative_to(argument).as_posix()}")
                if not path.is_file():
                    left.links.append(inner)
                elif path.suffix.lower() in MARKDOWN + TEXT:
                    yield Input(path, inner, named=False)
                else:
                    left.kinds[path.suffix.lower()] += 1


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
    bad: list[Bad] = []  # lines that were left out of what is read
    lines = _numbered(file, name, bad)
    about: dict[str, Any] = {}
    if markdown:
        about, lines = _front_matter(lines)
    for piece in chunk(lines, markdown=markdown):
        yield from bad
        bad.clear()
        metadata: dict[str, Any] = {**about, "source": {"path": name, "line": piece.line}}
        if piece.heading:
            metadata["heading"] = piece.heading
        ident = embedding_id(namespace, name, piece.line, piece.text, piece.part)
        yield Piece(name, piece.line, piece.text, metadata, ident)
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


def _looks_like_text(file: IO[bytes]) -> bool:
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
