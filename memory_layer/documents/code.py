"""Code into passages that are whole definitions where they fit, each with the names of those it is in.

The structure is taken from the lines: a definition begins with a word that languages use for it, and ends before the next line that is
indented no deeper. That holds for most languages, also in files that no parser would accept.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise

from memory_layer.documents.chunks import LIMIT, Chunk, chunk

_TAB = 4
_LOOKED_AT = 300  # characters of a line
_DEEP = 40  # definitions inside one another
_MODIFIERS = (
    r"(?:(?:pub(?:\([\w: ]+\))?|public|private|protected|internal|static|final|abstract|async|export|default|override|virtual|unsafe|extern"
    r"|inline|open|sealed|data|partial|readonly|declare|local|const)\s+)*"
)
_DEFINITION = re.compile(
    rf"\s*{_MODIFIERS}(?:class|def|defp|defmodule|func|function\*?|fun|fn|interface|struct|enum|trait|impl(?:<[^>]*>)?|module|namespace|object"
    r"|protocol|extension|record|type|macro_rules!|sub|package)\s+(?:\([^)]*\)\s*)?(?P<name>[\w$.:]+(?:<[^>]*>)?(?:\s+for\s+[\w$.:]+)?)",
)
_SQL = re.compile(
    r"\s*create\s+(?:or\s+replace\s+)?(?:unique\s+|temp(?:orary)?\s+|materialized\s+)*"
    r"(?:table|view|function|procedure|trigger|index|type|policy|schema)\s+(?:if\s+not\s+exists\s+)?(?P<name>[\w.\"]+)",
    re.IGNORECASE,
)
_BOUND = re.compile(
    r"\s*(?:export\s+)?(?:const|let|var)\s+(?P<name>[\w$]+)\s*(?::[^=]+)?=\s*(?:async\s*)?(?:function\b|\(|[\w$]+\s*=>)"
)
# int main(void) {   public static void run(String[] args) {   run() {
_METHOD = re.compile(
    rf"\s*{_MODIFIERS}(?:[\w$<>\[\],.&*:]+\s+)*[&*]*(?P<name>~?[\w$:]+)\s*\([^;]*\)[^;={{]*\{{\s*(?:\}}|//.*)?$"
)
_NOT_A_NAME = frozenset(
    (
        "if",
        "for",
        "while",
        "switch",
        "catch",
        "return",
        "else",
        "do",
        "try",
        "with",
        "match",
        "foreach",
        "until",
        "elif",
    )
)
_LEADS = re.compile(
    r"\s*(?:@|#(?!include|define|if|endif|else)|//|/\*|\*|--(?!\[)|\"\"\"|///|;|\[[\w(])"
)  # comments and decorators
_CLOSES = re.compile(r"\s*(?:[)\]}]|end\b|fi\b|done\b|esac\b)")


@dataclass(slots=True)
class _Unit:
    """Lines that belong together, and the names of the definitions they are in."""

    lines: list[tuple[int, str]]
    names: tuple[str, ...] = ()

    @property
    def size(self) -> int:
        return sum(len(text) + 1 for _, text in self.lines)


def chunk_code(lines: Iterable[tuple[int, str]], *, limit: int = LIMIT) -> Iterator[Chunk]:
    """Passages of at most ``limit`` characters; ``headings`` are the names of the definitions that a passage is in. A definition that is longer
    is cut at those inside it, then as text is."""
    last = (0, -1)
    for unit in _packed(_units(list(lines), (), limit, 0), limit):
        for piece in chunk(unit.lines, markup=None, limit=limit):
            part = last[1] + 1 if piece.line == last[0] else 0
            last = (piece.line, part)
            yield Chunk(piece.text, piece.line, part, unit.names)


def _units(lines: list[tuple[int, str]], names: tuple[str, ...], limit: int, depth: int) -> Iterator[_Unit]:
    """The definitions of a stretch, and what stands between them, in order."""
    shown = [_indent(text) for _, text in lines if text.strip()]
    if not shown:
        return
    least = min(shown)
    begins = [place for place, (_, text) in enumerate(lines) if _indent(text) == least and text.strip()]
    starts: list[tuple[int, str]] = []
    for place in begins:
        name = _name(lines[place][1])
        if name:
            first = place
            while (
                first > 0
                and lines[first - 1][1].strip()
                and _LEADS.match(lines[first - 1][1])
                and (not starts or first - 1 > starts[-1][0])
            ):
                first -= 1
            starts.append((first, name))
    if not starts:
        inner = [(place, "") for place in begins if place and not _CLOSES.match(lines[place][1])]
        starts = inner
    edges = [0, *(first for first, _ in starts if first > 0), len(lines)]
    named = dict(starts)
    for begin, end in pairwise(edges):
        part, name = lines[begin:end], named.get(begin, "")
        end_of = _end(part, least) if name else len(part)
        yield from _cut(_Unit(part[:end_of], (*names, name) if name else names), least, limit, depth)
        if end_of < len(part):
            yield from _cut(_Unit(part[end_of:], names), least, limit, depth)


def _cut(unit: _Unit, least: int, limit: int, depth: int) -> Iterator[_Unit]:
    """A unit as it is when it fits, else its first lines and what is inside it."""
    inside = next((place for place, (_, text) in enumerate(unit.lines) if text.strip() and _indent(text) > least), None)
    if unit.size <= limit or inside is None or depth >= _DEEP:
        yield unit
        return
    end = len(unit.lines)
    while end > inside and (not unit.lines[end - 1][1].strip() or _indent(unit.lines[end - 1][1]) <= least):
        end -= 1
    yield _Unit(unit.lines[:inside], unit.names)
    yield from _units(unit.lines[inside:end], unit.names, limit, depth + 1)
    yield _Unit(unit.lines[end:], unit.names)


def _end(lines: list[tuple[int, str]], least: int) -> int:
    """Where the definition that begins a stretch ends: what follows at its own depth and closes nothing is no part of it."""
    inside = False
    for place, (_, text) in enumerate(lines):
        if not text.strip():
            continue
        if _indent(text) > least:
            inside = True
        elif (
            inside and not _CLOSES.match(text) and not text.lstrip().startswith(("{", ")", "else", "catch", "finally"))
        ):
            return place
    return len(lines)


def _packed(units: Iterable[_Unit], limit: int) -> Iterator[_Unit]:
    """Neighbours together while they fit: small ones of one definition, and a definition's first lines with what follows."""
    held: _Unit | None = None
    for unit in units:
        if not any(text.strip() for _, text in unit.lines):
            continue
        if held is None:
            held = unit
        elif held.size + unit.size <= limit and _together(held.names, unit.names):
            held = _Unit(held.lines + unit.lines, held.names if len(held.names) >= len(unit.names) else unit.names)
        else:
            yield held
            held = unit
    if held is not None:
        yield held


def _together(one: tuple[str, ...], other: tuple[str, ...]) -> bool:
    return one[: len(other)] == other or other[: len(one)] == one


def _name(text: str) -> str:
    for form in (_DEFINITION, _BOUND, _SQL, _METHOD):
        found = form.match(text[:_LOOKED_AT])
        if found and found["name"] not in _NOT_A_NAME:
            return found["name"].strip('":')[:200]
    return ""


def _indent(text: str) -> int:
    bare = text.lstrip(" \t")
    return len(text[: len(text) - len(bare)].expandtabs(_TAB))
