"""A file into its passages, whatever its kind."""

from __future__ import annotations

import hashlib
import mimetypes
from collections.abc import Iterator
from dataclasses import dataclass, field
from io import BufferedReader

from memory_layer.documents.folders import encodable
from memory_layer.documents.json_lines import Template, json_lines, parse_template
from memory_layer.documents.kinds import JSON_LINES, MARKDOWN, TEXT
from memory_layer.documents.passages import Bad, Passage, Source
from memory_layer.documents.text import looks_like_text, text

MAX_BYTES = (
    256 * 1024 * 1024
)  # of a file whose passages are compared as a whole, which takes about four times as much memory
_READER = 1  # the next number when the same file gives other passages


@dataclass(frozen=True, slots=True)
class Reading:
    """How files are read, as the command line says."""

    template: Template = field(default_factory=lambda: parse_template("{text}"))

    @property
    def version(self) -> str:
        """What a file's passages depend upon besides its bytes."""
        return f"{_READER}:{hashlib.sha256(repr(self.template).encode()).hexdigest()[:8]}"


def read(source: Source, file: BufferedReader, reading: Reading) -> Iterator[Passage | Bad]:
    """The passages of an open file in order; what cannot become one comes as ``Bad``, and the rest goes on."""
    suffix = source.path.suffix.lower()
    is_text = suffix in JSON_LINES + MARKDOWN + TEXT or looks_like_text(file)
    if not is_text:
        yield _opaque(file, source)
        return
    size = file.seek(0, 2)
    file.seek(0)
    if size > MAX_BYTES:
        yield Bad(
            source.name, 0, f"larger than {MAX_BYTES >> 20} MB, which is the most that is compared as a whole; split it"
        )
    elif suffix in JSON_LINES:
        yield from json_lines(file, source.name, reading.template)
    else:
        yield from text(file, source.name, markdown=suffix in MARKDOWN)


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
