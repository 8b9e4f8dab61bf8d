"""A text as windows of what a model reads at once, and their vectors as the one vector of the text.

What the model cannot read is counted in characters: a run of an unknown script is one unknown token, however long. The figures
behind the numbers are in ``docs/decisions/0045-vectors-of-the-whole-text.md``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

from memory_layer.stores.protocols import Read

if TYPE_CHECKING:
    from tokenizers import Encoding, Tokenizer

MAX_WINDOWS: Final = 64  # of one text, 8,000 tokens; what one text costs is bounded by it
WINDOW: Final = 126  # tokens of one. A larger one hears its beginning better than its end
# Tokens that a window shares with the next at the least: a sentence that one cuts off is whole in the other.
OVERLAP: Final = 32
UNREADABLE: Final = 0.5  # share of a text's characters that the model does not know, above which it has no vector
# A text of more characters is not tokenized as a whole: its windows would hardly reach further, and 2 MB would take a second.
MAX_CHARACTERS: Final = 65_536
_PIECE: Final = MAX_CHARACTERS // MAX_WINDOWS


@dataclass(frozen=True, slots=True)
class Windows:
    """The token ids of each window, without the model's marks. ``read``: ``none`` has no windows."""

    ids: Sequence[Sequence[int]]
    read: Read


def windows_of(text: str, tokenizer: Tokenizer, unknown: int, size: int) -> Windows:
    """What a model reads of a text: all of it at once where that is no more than ``size`` tokens, else in windows. ``unknown``: the id
    of what it does not know."""
    encodings = [tokenizer.encode(piece, add_special_tokens=False) for piece in _pieces(text)]
    if _unknown(encodings, unknown) > UNREADABLE:
        return Windows((), "none")
    if len(encodings) > 1:  # one window of each: the pieces lie as far apart as the windows may
        return Windows([encoding.ids[:WINDOW] for encoding in encodings if encoding.ids], "part")
    ids: list[int] = encodings[0].ids
    spans = list(_spans(len(ids), size))
    whole = all(begin <= end for (_, end), (begin, _) in pairwise(spans))
    return Windows([ids[begin:end] for begin, end in spans], "whole" if whole else "part")


def pooled(vectors: NDArray[np.float32], lengths: Sequence[int]) -> NDArray[np.float32]:
    """One unit vector, shape (dimension,), of those of a text's windows (n, dimension), each as heavy as it has tokens."""
    mean = np.asarray(lengths, np.float32) @ vectors
    size = float(np.linalg.norm(mean))
    unit: NDArray[np.float32] = mean / np.float32(size) if size > 0 else vectors[0]
    return unit


def _pieces(text: str) -> list[str]:
    """The text, or of a very long one as many pieces as there may be windows, evenly spread from its first character to its last."""
    if len(text) <= MAX_CHARACTERS:
        return [text]
    last = len(text) - _PIECE
    return [text[at : at + _PIECE] for at in (last * place // (MAX_WINDOWS - 1) for place in range(MAX_WINDOWS))]


def _spans(tokens: int, size: int) -> Iterator[tuple[int, int]]:
    """Where the windows begin and end: evenly spread, the first at the first token and the last at the last."""
    if tokens <= size:
        yield 0, tokens
        return
    count = min(MAX_WINDOWS, -(-(tokens - OVERLAP) // (WINDOW - OVERLAP)))
    for place in range(count):
        begin = (tokens - WINDOW) * place // (count - 1)
        yield begin, begin + WINDOW


def _unknown(encodings: Sequence[Encoding], unknown: int) -> float:
    """The share of the characters of words that belong to tokens the model does not know; 1 where there are no words at all."""
    characters = missed = 0
    for encoding in encodings:
        ids = encoding.ids
        if unknown not in ids:
            characters += sum(end - begin for begin, end in encoding.offsets) if ids else 0
            continue
        for token, (begin, end) in zip(ids, encoding.offsets, strict=True):
            characters += end - begin
            missed += (end - begin) * (token == unknown)
    return missed / characters if characters else 1.0
