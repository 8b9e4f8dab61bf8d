"""A file as it is at this moment."""

from __future__ import annotations

import hashlib

from memory_layer.documents.passages import Bad, Passage, Source
from memory_layer.documents.read import read
from memory_layer.documents.run import Document, Run


def load(run: Run, source: Source) -> Document | None:
    """The file as it is now; None, and reported, when it cannot be read as a whole: then what is stored of it stays."""
    passages: list[Passage] = []
    whole = True
    try:
        with source.path.open("rb") as file:
            # Before it is read: what changes from here on is seen by the next run.
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
            file.seek(0)
            for found in read(source, file, run.reading):
                if isinstance(found, Bad):
                    run.bad(found)
                    if not found.line:
                        return None
                    whole = False
                else:
                    passages.append(found)
    except OSError as error:
        run.bad(Bad(source.name, 0, f"cannot be read: {error.strerror or error}"))
        return None
    if whole and not passages:
        run.empty.add(source.name)
    return Document(source.name, passages, source, sha256, run.reading.version, whole)


def sha256_of(source: Source) -> str | None:
    """None when the file cannot be read."""
    try:
        with source.path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return None
