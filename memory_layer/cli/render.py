"""Everything that a command prints: data on stdout, talk on stderr.

Tables are drawn on a terminal and tab-separated (header first) in a pipe; JSON is indented on a terminal and one line
in a pipe. Stored text never reaches a terminal with its control characters, which could move the cursor or set titles.
"""

from __future__ import annotations

import contextlib
import json
import sys
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from memory_layer.progress import Progress, no_progress

if TYPE_CHECKING:
    from rich.progress import Progress as Bar
    from rich.progress import TaskID


def data(value: object) -> None:
    """A JSON document."""
    if sys.stdout.isatty():
        _out(_escaped(json.dumps(value, ensure_ascii=False, indent=2)))
    else:
        _out(json.dumps(value, ensure_ascii=False))


def line(text: str) -> None:
    """One line of data."""
    _out(clean(text) if sys.stdout.isatty() else text)


def say(text: str) -> None:
    """Talk: a line on stderr."""
    print(clean(text, keep="\n"), file=sys.stderr, flush=True)


def failure(text: str, code: int) -> int:
    """What went wrong, on one line; passes the exit code through."""
    say("memoryctl: " + " ".join(text.split()))
    return code


def table(columns: Sequence[str], rows: Sequence[Sequence[object]], *, wide: str | None = None) -> None:
    """Rows under headers. The column named ``wide`` takes what room is left; of the others only long ones are folded."""
    cells = [[clean(cell(value)) for value in row] for row in rows]
    if not sys.stdout.isatty():
        for row in [list(columns), *cells]:
            _out("\t".join(row))
        return
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(file=sys.stdout)
    drawn = Table(box=SIMPLE_HEAD, pad_edge=False)
    for index, column in enumerate(columns):
        longest = max((len(row[index]) for row in cells), default=0)
        foldable = column == wide or longest > 36  # an id fits
        most = max(20, console.width // 5) if foldable and column != wide else None
        drawn.add_column(
            column, no_wrap=not foldable, overflow="fold", max_width=most, ratio=1 if column == wide else None
        )
    for row in cells:
        drawn.add_row(*(Text(cell) for cell in row))
    console.print(drawn)


def pairs(items: Sequence[tuple[str, object]]) -> None:
    """A record: one ``name  value`` a line; what is empty is left out."""
    shown = [(name, cell(value)) for name, value in items if value not in (None, "", [], {})]
    width = max((len(name) for name, _ in shown), default=0)
    for name, value in shown:
        text = clean(value, keep="\n").replace("\n", "\n" + " " * (width + 2))
        _out(f"{name:<{width}}  {text}")


def progress(*, transfer: bool = False) -> Bar:
    """A progress bar on stderr; draws nothing when stderr is no terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, TaskProgressColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    counted = [DownloadColumn()] if transfer else [TextColumn("{task.fields[note]}")]
    console = Console(file=sys.stderr)
    return Bar(
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        *counted,
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )


@contextlib.contextmanager
def reporting() -> Iterator[tuple[Progress, Callable[[str], None]]]:
    """One bar for whatever is being done, drawn from the first report on; and ``say``, for talk while it is drawn."""
    if not sys.stderr.isatty():
        yield no_progress, say
        return
    with progress() as bar:
        tasks: list[TaskID] = []

        def report(what: str, done: int, total: int) -> None:
            if not tasks:
                tasks.append(bar.add_task(what, total=None, note=""))
            bar.update(tasks[0], description=what, completed=done, total=total or None, note=f"{done:,}")

        yield report, lambda text: say_above(bar, text)


def say_above(bar: Bar, text: str) -> None:
    """Talk while a progress bar is drawn."""
    if bar.disable:
        say(text)
    else:
        bar.console.print(clean(text), markup=False, highlight=False, soft_wrap=True)


def confirm(question: str, *, yes: bool) -> bool:
    """Ask on a terminal; without one, or with ``--yes``, go ahead."""
    if yes or not (sys.stdin.isatty() and sys.stderr.isatty()):
        return True
    print(f"{clean(question)} [y/N] ", end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def clean(text: str, keep: str = "") -> str:
    """Text without control and format-override characters; line breaks and tabs become blanks unless kept."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(_clean(char, keep) for char in text)


def _clean(char: str, keep: str) -> str:
    if char in keep:
        return char
    if char in "\n\r\t\v\f\u2028\u2029":
        return " "
    # Cc: escape sequences. Cs: cannot be encoded. The bidirectional overrides can make a line read as another.
    if unicodedata.category(char) in ("Cc", "Cs") or "\u202a" <= char <= "\u202e" or "\u2066" <= char <= "\u2069":
        return "\ufffd"
    return char


def _escaped(document: str) -> str:
    """A JSON document, which still says the same, without characters that a terminal acts upon."""
    if document.isascii() and "\x7f" not in document:
        return document
    return "".join(char if char == "\n" or _clean(char, "") == char else f"\\u{ord(char):04x}" for char in document)


def snippet(text: str, length: int = 160) -> str:
    """The beginning of a text on one line."""
    flat = " ".join(text[: 4 * length].split())
    return flat if len(flat) <= length else flat[: length - 1].rstrip() + "…"


def source(metadata: Any) -> str:
    """Where ingest found a node: ``path:line``."""
    found = metadata.get("source") if isinstance(metadata, dict) else None
    if not isinstance(found, dict) or "path" not in found:
        return ""
    return f"{found['path']}:{found['line']}" if found.get("line") else str(found["path"])


def words(value: object) -> object:
    """A dict or list as ``name value, name value``; what lies deeper is JSON. Anything else as it is."""
    if not isinstance(value, (dict, list)):
        return value
    parts = (
        [(f"{name} ", part) for name, part in value.items()] if isinstance(value, dict) else [("", v) for v in value]
    )
    return ", ".join(name + cell(part) for name, part in parts)


def cell(value: object) -> str:
    """A value as a table or a record shows it."""
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4f}"
    if isinstance(value, (dict, list)):
        return json.dumps(value, ensure_ascii=False)
    return str(value)


def _out(text: str) -> None:
    print(text.encode("utf-8", "replace").decode(), flush=False)
