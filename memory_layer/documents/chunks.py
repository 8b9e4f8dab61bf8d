"""Text into pieces of a size that an embedding model reads whole: 1,000 characters at the most, and about 300 tokens.

A piece ends at a heading, else at a paragraph, else at a line, else at a blank, and only at last inside a word. No
character but whitespace is lost, so the pieces of a file joined are its text.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from memory_layer.documents.markup import Markup, Outline

LIMIT = 1_000  # characters
TOKENS = 300  # by the estimate below, which counts some prose a fifth too high; the model reads 254 in one window
_TOKEN = re.compile(r"[A-Za-z]+|[0-9]+|\S")
_NAME = 200  # characters of a heading that are kept


@dataclass(frozen=True, slots=True)
class Chunk:
    """``line`` counts from 1; ``part`` counts the pieces that begin on one line, from 0. ``headings``: those above it, the outermost first."""

    text: str
    line: int
    part: int = 0
    headings: tuple[str, ...] = ()


@dataclass(slots=True)
class _Lines:
    """A run of lines that wants to stay together: a paragraph, a fenced block, a heading."""

    line: int
    text: str
    headings: tuple[str, ...]
    is_heading: bool = False


def chunk(
    lines: Iterable[tuple[int, str]], *, markup: Markup | None, limit: int = LIMIT, most: int = TOKENS
) -> Iterator[Chunk]:
    """Pieces of at most ``limit`` characters, and about ``most`` tokens, from (line number, text of the line without its end)."""
    last = (0, -1)
    for piece in _readable(_pack(_blocks(lines, markup, limit), limit), most):
        part = last[1] + 1 if piece.line == last[0] else 0
        last = (piece.line, part)
        yield Chunk(piece.text, piece.line, part, piece.headings)


def is_long(text: str) -> bool:
    """Whether a text is more than one piece."""
    return len(text) > LIMIT or tokens(text) > TOKENS


def _blocks(lines: Iterable[tuple[int, str]], markup: Markup | None, limit: int) -> Iterator[_Lines]:
    """Paragraphs; inside a fenced block neither blank lines nor headings mean anything."""
    block: _Lines | None = None
    above: list[tuple[int, str]] = []  # level and text of the headings that are open
    headings: tuple[str, ...] = ()
    outline = Outline(markup)
    previous = 0
    for number, raw in lines:
        text = raw.rstrip()
        continued = number == previous  # more of a very long line: a block of its own, and never markup
        previous = number
        level, name, underlined = (0, "", False) if continued else outline.reads(block.text if block else None, text)
        if level or (not text and not outline.fence):
            begin = number
            if underlined and block:
                begin, text = block.line, f"{block.text}\n{text}"
            elif block:
                yield block
            block = None
            if level:
                above = [one for one in above if one[0] < level] + [(level, name.strip()[:_NAME])]
                headings = tuple(one for _, one in above if one)
                yield _Lines(begin, text.strip(), headings, is_heading=True)
        elif block is None:
            block = _Lines(number, text, headings) if text else None
        elif continued or len(block.text) > 8 * limit:  # an unclosed fence or no blank line at all: bound the memory
            yield block
            block = _Lines(number, text, headings) if text else None
        else:
            block.text += "\n" + text
    if block:
        yield block


def _pack(blocks: Iterable[_Lines], limit: int) -> Iterator[_Lines]:
    """Neighbours together while they fit. A heading opens a new piece unless there is only a heading so far."""
    held: _Lines | None = None
    for block in blocks:
        # Under a heading the first piece leaves room for it: a heading all alone says nothing.
        room = limit - len(held.text) - 2 if held is not None and held.is_heading else limit
        for piece in _split(block, limit, room if room > limit // 2 else limit):
            joined = held is not None and len(held.text) + 2 + len(piece.text) <= limit
            if held is not None and joined and (held.is_heading or not piece.is_heading):
                held.text += "\n\n" + piece.text
                held.is_heading = held.is_heading and piece.is_heading
                held.headings = piece.headings
            else:
                if held is not None:
                    yield held
                held = piece
    if held is not None:
        yield held


def tokens(text: str) -> int:
    """About as many as a WordPiece model with an English vocabulary makes of a text (bert-base-uncased's, which MiniLM has): a word of up to
    six letters is one, every four more are another, two digits are one, and so is each sign and each character of another script."""
    count = 0
    for found in _TOKEN.finditer(text):
        size = found.end() - found.start()
        count += (size + 1) // 2 if found[0][0].isdigit() else 1 + max(0, size - 6) // 4
    return count


def _readable(pieces: Iterable[_Lines], most: int) -> Iterator[_Lines]:
    """The pieces, those of too many tokens in parts of one length: a thousand characters of Chinese are a thousand tokens."""
    for piece in pieces:
        parts = -(-tokens(piece.text) // most)
        if parts < 2 or len(piece.text) < 2:
            yield piece
            continue
        room = -(-len(piece.text) // parts)
        yield from _readable(_split(_Lines(piece.line, piece.text, piece.headings), room, room), most)


def _split(block: _Lines, limit: int, room: int) -> Iterator[_Lines]:
    """A block as it is when it fits, else cut at its lines, then at blanks, then anywhere; ``room`` bounds the first."""
    if len(block.text) <= room or (block.is_heading and len(block.text) <= limit):
        yield block
        return
    line, rest = block.line, block.text
    while rest:
        if len(rest) <= room:
            cut = len(rest)
        else:
            window = rest[: room + 1]
            cut = window.rfind("\n")
            if cut <= 0:
                cut = max(window.rfind(" "), window.rfind("\t"))
            if cut <= 0:
                cut = room
        room = limit
        piece = rest[:cut].rstrip()
        if piece:
            yield _Lines(line, piece, block.headings)
        # After a line break the next line keeps its indentation.
        after = rest[cut:].lstrip("\n" if rest[cut : cut + 1] == "\n" else " \t")
        line += rest.count("\n", 0, len(rest) - len(after))
        rest = after
