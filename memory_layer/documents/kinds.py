"""What is read, by its suffix."""

from __future__ import annotations

from pathlib import Path
from typing import Final

MARKDOWN: Final = (".md", ".markdown", ".mdx")
TEXT: Final = (".txt", ".text", ".rst", ".org", ".adoc", ".asciidoc")
JSON_LINES: Final = (".jsonl", ".ndjson")


def is_read_in_folders(path: Path) -> bool:
    """Whether a file is taken in with its folder; one that is named itself always is."""
    return path.suffix.lower() in MARKDOWN + TEXT
