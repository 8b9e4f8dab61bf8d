"""Tables: a passage a row, in which each value stands with the name of its column."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final

from memory_layer.documents.chunks import LIMIT, TOKENS, chunk, tokens
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
    """The passage of a row; several, where one would be more than a model reads whole. Empty cells say nothing."""
    named = {
        (columns[place] if place < len(columns) else f"column {place + 1}"): cell.strip()
        for place, cell in enumerate(cells)
        if cell.strip()
    }
    passages: list[list[str]] = [[]]
    size = count = 0
    for name, cell in named.items():
        said = tokens(name) + 1
        taken, spent = (len(name) + 2 + size, said + count) if size < LIMIT // 4 else (len(name) + 2, said)
        room, most = max(LIMIT - taken, LIMIT // 2), max(TOKENS - spent, TOKENS // 2)
        for piece in chunk(enumerate(cell.splitlines(), 1), markup=None, limit=room, most=most):
            told = f"{name}: {piece.text}"
            if passages[-1] and (size + len(told) > LIMIT or count + tokens(told) > TOKENS):
                passages.append([])
                size = count = 0
            passages[-1].append(told)
            size, count = size + len(told) + 1, count + tokens(told)
    for number, text in enumerate(passages):
        if text:
            yield Passage("\n".join(text), line, {"row": named if not number else short(named)}, where, ("row",))


def short(record: dict[str, Any]) -> dict[str, Any]:
    """What the later passages of one record say of all of it: its fields but for long texts, which the first passage has."""
    return {name: value for name, value in record.items() if not isinstance(value, str) or len(value) <= LIMIT // 4}
