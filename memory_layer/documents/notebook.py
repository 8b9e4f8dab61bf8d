"""Jupyter notebooks: their text and code, and what their code wrote as text; never pictures or markup that it made."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, Final

from memory_layer.documents.chunks import chunk
from memory_layer.documents.markup import MARKDOWN
from memory_layer.documents.passages import Bad, Passage
from memory_layer.documents.text import cleaned, headings_of

_OUTPUT: Final = 1000  # characters of what a cell wrote


def notebook(data: bytes, name: str) -> Iterator[Passage | Bad]:
    """The passages of a notebook. ``where`` names the cell, from 1; the lines are those of its text as Markdown."""
    try:
        book = json.loads(data)
        cells = book["cells"] if "cells" in book else [cell for sheet in book["worksheets"] for cell in sheet["cells"]]
        language = str(book.get("metadata", {}).get("kernelspec", {}).get("language") or "")
        texts = [(number, _cell(cell, language)) for number, cell in enumerate(cells, 1)]
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        yield Bad(name, 0, f"is no notebook ({type(error).__name__})")
        return
    line, lines, cell_of = 1, [], {}
    for number, text in texts:
        for part in [*text.split("\n"), ""] if text.strip() else []:
            lines.append((line, cleaned(part)))
            cell_of[line] = number
            line += 1
    for piece in chunk(lines, markup=MARKDOWN):
        yield Passage(piece.text, piece.line, headings_of(piece), {"cell": cell_of[piece.line]})


def _cell(cell: dict[str, Any], language: str) -> str:
    source = _joined(cell.get("source", cell.get("input")))
    if cell["cell_type"] != "code":
        return source
    said = "\n".join(text for output in cell.get("outputs", []) if (text := _output(output)))
    code = f"```{language}\n{source}\n```" if source.strip() else ""
    return f"{code}\n\n```\n{said[:_OUTPUT]}\n```" if said.strip() else code


def _output(output: dict[str, Any]) -> str:
    if output.get("output_type") == "stream":
        return _joined(output.get("text"))
    data = output.get("data", output)
    return _joined(data.get("text/plain", data.get("text"))) if isinstance(data, dict) else ""


def _joined(source: object) -> str:
    if isinstance(source, str):
        return source
    return "".join(str(part) for part in source) if isinstance(source, list) else ""
