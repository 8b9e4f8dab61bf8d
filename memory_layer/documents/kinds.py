"""What is read, by its suffix."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Final

from memory_layer.errors import UsageError
from memory_layer.installing import install

MARKDOWN: Final = (".md", ".markdown", ".mdx")
TEXT: Final = (".txt", ".text", ".rst", ".org", ".adoc", ".asciidoc")
JSON_LINES: Final = (".jsonl", ".ndjson")
TABLES: Final = (".csv", ".tsv")
NOTEBOOKS: Final = (".ipynb",)
MAIL: Final = (".eml",)
# What another library reads, by the module that it is imported as.
CONVERTED: Final = {
    ".docx": "mammoth",
    ".htm": "bs4",
    ".html": "bs4",
    ".pdf": "pypdf",
    ".pptx": "pptx",
    ".xhtml": "bs4",
    ".xlsx": "openpyxl",
    ".xlsm": "openpyxl",
}
# Languages whose structure shows in their lines.
CODE: Final = {
    ".bash": "shell",
    ".c": "c",
    ".cc": "c++",
    ".clj": "clojure",
    ".cpp": "c++",
    ".cs": "c#",
    ".cxx": "c++",
    ".dart": "dart",
    ".ex": "elixir",
    ".exs": "elixir",
    ".go": "go",
    ".h": "c",
    ".hpp": "c++",
    ".hs": "haskell",
    ".java": "java",
    ".jl": "julia",
    ".js": "javascript",
    ".jsx": "javascript",
    ".kt": "kotlin",
    ".lua": "lua",
    ".m": "objective-c",
    ".mjs": "javascript",
    ".php": "php",
    ".pl": "perl",
    ".ps1": "powershell",
    ".py": "python",
    ".pyi": "python",
    ".r": "r",
    ".rb": "ruby",
    ".rs": "rust",
    ".scala": "scala",
    ".sh": "shell",
    ".sql": "sql",
    ".swift": "swift",
    ".ts": "typescript",
    ".tsx": "typescript",
    ".vue": "vue",
    ".zig": "zig",
}
_IN_FOLDERS: Final = frozenset((*MARKDOWN, *TEXT, *TABLES, *NOTEBOOKS, *MAIL, *CODE))


def is_read_in_folders(path: Path) -> bool:
    """Whether a file is taken in with its folder; one that is named itself always is."""
    suffix = path.suffix.lower()
    if suffix == ".json":
        from memory_layer.documents.chats import is_chat

        return is_chat(path)
    return suffix in _IN_FOLDERS or (suffix in CONVERTED and not lacks(suffix))


def lacks(suffix: str) -> bool:
    """Whether files of this kind are read by a library that is not installed."""
    return suffix in CONVERTED and find_spec(CONVERTED[suffix]) is None


def how_to_read() -> str:
    """What to do about that."""
    return f"the extra `documents` reads them: {install('server', 'documents')}"


def require(path: Path) -> None:
    """Raises UsageError when a file that is named itself cannot be read for want of a library."""
    if lacks(path.suffix.lower()):
        raise UsageError(f"{path} needs a library that is not installed; {how_to_read()}")
