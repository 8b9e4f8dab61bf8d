"""Tables: a passage a row, in which each value stands with the name of its column."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final

from memory_layer.documents.chunks import LIMIT, chunk
from memory_layer.documents.passages import Bad, Passage

_MOST_COLUMNS: Final = 1000
_SAMPLE: Final = 20  # lines by which the separator is found


def table(lines: Iterable[tuple[int, str]], name: str, separator: str | None) -> Iterator[Passage | Bad]:
    """The rows of a CSV file. ``separator`` None: found from its first lines. The first row names the columns."""
    ahead = iter(lines)
    first = [line for line, _ in zip(ahead, range(_SAMPLE), strict=False)]
    mark = separator or _separator([text for _, text in first])
    numbers: list[int] = [0]

    def fed() -> Iterator[str]:
        for part in (first, ahead):
            for number, text in part:
                numbers[0] = number
                yield text + "\n"

    reader = csv.reader(fed(), delimiter=mark)
    columns: list[str] | None = None
    begin = first[0][0] if first else 1
    while True:
        try:
            cells = next(reader, None)
        except csv.Error as error:
            yield Bad(name, numbers[0], f"left out: no row of a table ({error})")
            begin = numbers[0] + 1
            continue
        if cells is None:
            return
        if any(cell.strip() for cell in cells):
            if len(cells) > _MOST_COLUMNS:
                yield Bad(name, begin, f"left out: a row of {len(cells):,} columns; {_MOST_COLUMNS:,} are the most")
            elif columns is None:
                columns = names_of(cells)
            else:
                yield from row(columns, cells, begin, {})
        begin = numbers[0] + 1


def _separator(sample: Sequence[str]) -> str:
    text = "\n".join(sample)
    try:
        return csv.Sniffer().sniff(text, delimiters=",;\t|").delimiter
    except csv.Error:
        return max(",;\t|", key=text.count)


def names_of(cells: Sequence[str]) -> list[str]:
    """Names of columns, each once."""
    found: list[str] = []
    for place, cell in enumerate(cells, 1):
        name = " ".join(cell.split())[:200] or f"column {place}"
        found.append(name if name not in found else f"{name} ({place})")
    return found


def row(columns: Sequence[str], cells: Sequence[str], line: int, where: dict[str, Any]) -> Iterator[Passage]:
    """The passage of a row; several, where one would be too long. Empty cells say nothing."""
    named = {
        (columns[place] if place < len(columns) else f"column {place + 1}"): cell.strip()
        for place, cell in enumerate(cells)
        if cell.strip()
    }
    text: list[str] = []
    size = 0
    for name, cell in named.items():
        taken = len(name) + 2 + (size if size < LIMIT // 4 else 0)
        room = max(LIMIT - taken, LIMIT // 2)
        for piece in chunk(enumerate(cell.splitlines(), 1), markdown=False, limit=room):
            said = f"{name}: {piece.text}"
            if text and size + len(said) > LIMIT:
                yield Passage("\n".join(text), line, {"row": named}, where, ("row",))
                text, size = [], 0
            text.append(said)
            size += len(said) + 1
    if text:
        yield Passage("\n".join(text), line, {"row": named}, where, ("row",))
