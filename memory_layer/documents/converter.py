"""The process that reads files of other formats, from this side: started when it is needed, ended when it takes too long."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, Final

from memory_layer.documents.chunks import chunk
from memory_layer.documents.kinds import how_to_read
from memory_layer.documents.markup import MARKDOWN
from memory_layer.documents.passages import SOURCE, Bad, Passage
from memory_layer.documents.rows import names_of, row
from memory_layer.documents.text import cleaned, headings_of

_WITHIN: Final = 180.0  # seconds for one file, however busy the machine is
MAX_BYTES: Final = 128 * 1024 * 1024  # of a file


class Converter:
    """Converts one file at a time. ``close`` ends the process."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[str] | None = None

    def convert(self, path: Path, name: str) -> list[Passage | Bad]:
        """The passages of a file. What cannot be read comes as ``Bad``."""
        if path.stat().st_size > MAX_BYTES:
            return [Bad(name, 0, f"is larger than {MAX_BYTES >> 20} MB, the most that is converted; split it")]
        with self._lock:
            parts = self._ask(path)
        if "error" in parts[-1]:
            more = f"; {how_to_read()}" if parts[-1].get("lacks") else ""
            return [Bad(name, 0, f"cannot be read: {parts[-1]['error']}{more}")]
        return list(_passages(parts[:-1])) or [
            Bad(name, 0, "holds no text (a scan? a picture?), so there is nothing to remember")
        ]

    def close(self) -> None:
        with self._lock:
            self._end()

    def _ask(self, path: Path) -> list[dict[str, Any]]:
        """All parts of the answer; the last one says how it ended."""
        process = self._started()
        assert process.stdin is not None  # noqa: S101 - narrows the type
        assert process.stdout is not None  # noqa: S101
        clock = threading.Timer(_WITHIN, process.kill)
        clock.start()
        try:
            process.stdin.write(json.dumps([path.suffix.lower(), str(path.absolute())]) + "\n")
            process.stdin.flush()
            parts = list(_until_end(process.stdout))
        except (OSError, ValueError):
            parts = []
        finally:
            clock.cancel()
        if not parts or not ("end" in parts[-1] or "error" in parts[-1]):
            self._end()
            parts = [{"error": "its reader took more time or memory than one file may take, or broke"}]
        return parts

    def _started(self) -> subprocess.Popen[str]:
        if self._process is None or self._process.poll() is not None:
            command = [sys.executable, "-m", "memory_layer.documents.convert"]
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                encoding="utf-8",
                start_new_session=True,  # Ctrl-C is for us
            )
        return self._process

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.communicate()


def _until_end(lines: IO[str]) -> Iterator[dict[str, Any]]:
    for line in lines:
        part: dict[str, Any] = json.loads(line)
        yield part
        if "end" in part or "error" in part:
            return


def _passages(parts: list[dict[str, Any]]) -> Iterator[Passage]:
    """Lines are those of the text that came out, but of a table's sheet, which has its own."""
    line = 1
    columns: dict[str, list[str]] = {}
    for part in parts:
        if "cells" in part:
            sheet, number = part["sheet"], part["line"]
            if sheet not in columns:
                columns[sheet] = names_of(part["cells"])
            else:
                yield from row(columns[sheet], part["cells"], number, {"sheet": sheet})
            continue
        markdown = "markdown" in part
        text = str(part["markdown"] if markdown else part["text"]).replace("\0", "\ufffd")
        lines = [(number, cleaned(one)) for number, one in enumerate(text.splitlines(), line)]
        where: dict[str, Any] = {key: part[key] for key in ("page", "slide") if key in part}
        about = {"mail": part["mail"]} if "mail" in part else {}
        for piece in chunk(lines, markup=MARKDOWN if markdown else None):
            yield Passage(
                piece.text,
                piece.line,
                {**about, **headings_of(piece)},
                where,
                occurred_at=part.get("at"),
                thread=part.get("thread") or SOURCE,
                by_time="mail" in part and bool(part.get("thread")),
            )
        line += len(lines)
