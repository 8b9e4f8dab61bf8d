"""A file into its passages, whatever its kind."""

from __future__ import annotations

import hashlib
import mimetypes
from collections.abc import Iterator
from dataclasses import dataclass, field
from io import BufferedReader
from itertools import chain, islice
from zoneinfo import ZoneInfo

from memory_layer.documents import chats
from memory_layer.documents.code import chunk_code
from memory_layer.documents.converter import Converter
from memory_layer.documents.folders import encodable
from memory_layer.documents.json_lines import Template, json_lines, parse_template
from memory_layer.documents.kinds import CODE, CONVERTED, JSON_LINES, MAIL, MARKDOWN, NOTEBOOKS, TABLES, TEXT
from memory_layer.documents.markup import BY_SUFFIX
from memory_layer.documents.notebook import notebook
from memory_layer.documents.passages import Bad, Passage, Source
from memory_layer.documents.rows import table
from memory_layer.documents.text import cleaned, headings_of, looks_like_text, numbered, text

MAX_BYTES = (
    256 * 1024 * 1024
)  # of a file whose passages are compared as a whole, which takes about four times as much memory
_READER = 4  # the next number when the same file gives other passages
_AS_TEXT = (*JSON_LINES, *MARKDOWN, *TEXT, *TABLES, *NOTEBOOKS, *CODE)


@dataclass(frozen=True, slots=True)
class Reading:
    """How files are read, as the command line says. ``encoding``: of those that are not UTF-8. ``thread``: of JSON lines. ``zone``:
    of times that are written without one, None: this machine's. ``noted``: names of files whose times were read as this machine's."""

    template: Template = field(default_factory=lambda: parse_template("{text}"))
    encoding: str | None = None
    thread: Template | None = None
    zone: ZoneInfo | None = None
    noted: set[str] = field(default_factory=set, compare=False)
    converter: Converter = field(default_factory=Converter, compare=False)

    @property
    def version(self) -> str:
        """What a file's passages depend on apart from its bytes."""
        said = repr((self.template, self.encoding, self.thread, self.zone and self.zone.key))
        return f"{_READER}:{hashlib.sha256(said.encode()).hexdigest()[:8]}"


def read(source: Source, file: BufferedReader, reading: Reading) -> Iterator[Passage | Bad]:
    """The passages of an open file in order; what cannot become one comes as ``Bad``, and the rest goes on."""
    suffix = source.path.suffix.lower()
    if suffix in CONVERTED or suffix in MAIL:
        yield from _converted(source, file, reading)
        return
    if not (suffix in _AS_TEXT or looks_like_text(file, reading.encoding)):
        yield _opaque(file, source)
        return
    size = file.seek(0, 2)
    file.seek(0)
    if size > MAX_BYTES:
        yield Bad(
            source.name, 0, f"larger than {MAX_BYTES >> 20} MB, which is the most that is compared as a whole; split it"
        )
    elif suffix in JSON_LINES:
        yield from json_lines(file, source.name, reading.template, reading.thread, reading.encoding)
    elif suffix in NOTEBOOKS:
        yield from notebook(file.read(), source.name)
    elif suffix == ".json" and chats.is_chat(source.path):
        yield from chats.conversations(file.read(), source.path, source.name)
    else:
        yield from _lines(source, file, reading)


def _lines(source: Source, file: BufferedReader, reading: Reading) -> Iterator[Passage | Bad]:
    """What is read line by line; lines that are no text come as ``Bad`` where they stand."""
    suffix = source.path.suffix.lower()
    bad: list[Bad] = []
    lines = numbered(file, source.name, bad, reading.encoding)
    found: Iterator[Passage | Bad]
    if suffix in TABLES:
        found = table(lines, source.name, "\t" if suffix == ".tsv" else None)
    elif suffix in CODE:
        found = _code(lines, CODE[suffix])
    else:
        first = list(islice(lines, 20)) if suffix == ".txt" else []
        lines = chain(first, lines)
        if chats.is_whatsapp(line for _, line in first):
            found = chats.whatsapp(lines, source.name, reading.zone, reading.noted)
        else:
            found = text(lines, BY_SUFFIX.get(suffix))
    for one in found:
        yield from bad
        bad.clear()
        yield one
    yield from bad


def _code(lines: Iterator[tuple[int, str]], language: str) -> Iterator[Passage]:
    for piece in chunk_code((number, cleaned(line)) for number, line in lines):
        yield Passage(piece.text, piece.line, {"code": language, **headings_of(piece)})


def _converted(source: Source, file: BufferedReader, reading: Reading) -> Iterator[Passage | Bad]:
    """A file of another format. One that is named itself and cannot be read is kept as an artifact, without a text."""
    found = reading.converter.convert(source.path, source.name)
    if source.named and len(found) == 1 and isinstance(found[0], Bad):
        opaque = _opaque(file, source)
        yield Passage(None, 1, opaque.metadata, {"unread": found[0].problem}, opaque.fields)
    else:
        yield from found


def _opaque(file: BufferedReader, source: Source) -> Passage:
    """A file that is no text: a node without content that carries the bytes as its artifact."""
    sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    metadata = {
        "file": {
            "name": encodable(source.path.name),
            "contentType": mimetypes.guess_type(source.path.name)[0] or "application/octet-stream",
            "sizeBytes": file.tell(),
            "sha256": sha256,
        },
    }
    return Passage(None, 1, metadata, fields=("file",))
