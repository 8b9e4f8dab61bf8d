"""What the words of a text are, for finding it by them: the same on every server, whatever its database's locale, without I/O.

A text becomes a ``tsvector``, a query a list of ``QueryWord``. A word is spelled without case, width and accents and cut to its stem; text in
scripts without spaces becomes pairs of characters; a name such as OPS-4521, client/server or getUserName is there whole, closed up (ops4521) and in parts. The
stems of the text's own language are stored, and a query asks for those of every language: a query of two words does not tell its language.

``VERSION`` is stored beside each text's words. Whatever changes what a text becomes raises it: the worker then writes the words of older
versions again.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import Final, NamedTuple

from memory_layer.analyser.characters import (
    CACHE,
    CACHED,
    CASED,
    CLOSED_UP,
    NAME,
    PIECE,
    THOUSANDS,
    UNSPACED_START,
    WORD,
    cleaned,
    folded,
)
from memory_layer.analyser.function_words import FUNCTION_WORDS
from memory_layer.analyser.stems import COMPOUNDING, DEFAULT, LANGUAGES, language_of, parts_of_compound, stem, stems

__all__ = ["LANGUAGES", "MAX_QUERY_WORDS", "VERSION", "QueryWord", "Words", "analyse", "query_words"]

VERSION: Final = 1
MAX_NAME: Final = 100  # characters of a name that is also kept whole
MAX_CLOSED_UP: Final = 40  # and of one that is also kept without what joins it
LEAST_BEGINNING: Final = 7  # characters of a hash or number that stand for all of it
MAX_WORD: Final = 250  # characters of a word; what is longer is no word, and is cut
MAX_BYTES: Final = 900_000  # of a tsvector, which holds less than 1 MiB
MAX_QUERY_WORDS: Final = 4_000  # lexemes that a query asks for
_POSITIONS: Final = 255  # of one lexeme: a tsvector keeps no more
_LAST: Final = 16_383  # position: what stands further on counts as if there


class Words(NamedTuple):
    """``tsvector``: its text form, as Postgres reads it. ``complete``: False where the text has more words than one can hold."""

    tsvector: str
    language: str
    complete: bool


class QueryWord(NamedTuple):
    """``lexemes``: any of them is this word, in texts of the language that stands before it ("": of any). ``prefix``: so is each lexeme that
    begins with it."""

    lexemes: tuple[tuple[str, str], ...]
    prefix: bool = False


class _Name(NamedTuple):
    """A run of words that are joined: ``whole`` is None for a single word."""

    whole: str | None
    words: tuple[str, ...]  # folded, of scripts with spaces, with their parts
    spelled: tuple[str, ...]  # the same with their accents
    runs: tuple[str, ...]  # folded, of scripts without


def analyse(text: str, language: str | None = None) -> Words:
    """The words of a text. ``language``: ISO 639-1, as its writer says; else the text tells."""
    names = list(_names(text))
    spoken, sure = language or "", True
    if spoken not in LANGUAGES:
        spoken, sure = language_of({word for name in names for word in name.words})
    # Of a guess nothing is left out but what is no word in English either.
    functions = FUNCTION_WORDS[spoken if sure else DEFAULT]
    found: dict[str, list[int]] = {}
    for position, name in enumerate(names, 1):
        at = min(position, _LAST)
        if name.whole is not None:
            found.setdefault(name.whole, []).append(at)
        for word, spelled in zip(name.words, name.spelled, strict=True):
            if word in functions:
                continue
            for lexeme in _lexemes(word, spelled, spoken, sure):
                found.setdefault(lexeme, []).append(at)
        for run in name.runs:
            for lexeme in _pairs(run):
                found.setdefault(lexeme, []).append(at)
    return _tsvector(found, spoken)


def query_words(text: str) -> tuple[list[QueryWord], bool]:
    """The words that a query asks for, each once, and whether those are all of it. Function words are left out."""
    names = list(_names(text))
    language, sure = language_of({word for name in names for word in name.words})
    functions = FUNCTION_WORDS[language if sure else DEFAULT]
    found: dict[QueryWord, None] = {}
    for name in names:
        if name.whole is not None:
            found[QueryWord((("", name.whole),))] = None
        for word, spelled in zip(name.words, name.spelled, strict=True):
            if word not in functions and (lexemes := stems(word)):
                found[QueryWord(lexemes, prefix=_is_beginning(word))] = None
                # In texts of those languages alone: "responsibilities" are no ties.
                for part in parts_of_compound(spelled, language if sure else None):
                    if parts := tuple(one for one in stems(folded(part)) if one[0] in COMPOUNDING):
                        found[QueryWord(parts)] = None
        for run in name.runs:
            if len(run) == 1:
                found[QueryWord((("", run),), prefix=True)] = None
            else:
                found.update(dict.fromkeys(QueryWord((("", pair),)) for pair in _pairs(run)[:-1]))
    kept: list[QueryWord] = []
    left = MAX_QUERY_WORDS
    for asked in found:
        left -= len(asked.lexemes)
        if left < 0:
            return kept, False
        kept.append(asked)
    return kept, True


def _names(text: str) -> Iterator[_Name]:
    for found in NAME.finditer(cleaned(text)):
        raw = found[0]
        yield _name(raw) if len(raw) <= CACHED else _name.__wrapped__(raw)


@lru_cache(maxsize=CACHE)
def _name(raw: str) -> _Name:
    words: list[tuple[str, str]] = []
    runs: list[str] = []
    single = True
    for number, word in enumerate(WORD.findall(raw)):
        single = number == 0
        for whole_piece in PIECE.findall(word):
            if UNSPACED_START.match(whole_piece):
                runs.append(folded(whole_piece))
                continue
            piece = whole_piece[:MAX_WORD]
            plain = folded(piece)
            # A few letters stand for more than letters: an apostrophe and an n, words of Arabic.
            words += ((plain, piece),) if plain.isalnum() else ((one, one) for one in WORD.findall(plain))
            parts = [(folded(part), part) for part in CASED.findall(piece)]
            if len(parts) > 1:
                words += [part for part in parts if len(part[0]) > 1 and part[0] != plain]
    joined = not single or raw[-1] in "+#"
    whole = folded(raw) if joined and not runs and len(raw) <= MAX_NAME else None
    if not single and not runs:
        words += ((closed, "") for closed in _closed_up(raw))
    return _Name(whole, tuple(word for word, _ in words), tuple(spelled for _, spelled in words), tuple(runs))


def _closed_up(raw: str) -> dict[str, None]:
    """How a name is also written: without what joins its words, and numbers without the signs between thousands."""
    found = dict.fromkeys(folded(number.replace(",", "").replace(".", "")) for number in THOUSANDS.findall(raw))
    if len(raw) <= MAX_CLOSED_UP and CLOSED_UP.fullmatch(raw):
        found[folded("".join(WORD.findall(raw)))] = None
    return found


def _is_beginning(word: str) -> bool:
    """Whether a word of a query may be the beginning of a longer one, as a hash is mostly cited."""
    return len(word) >= LEAST_BEGINNING and word.isascii() and not word.isalpha() and not word.isdigit()


@lru_cache(maxsize=CACHE)
def _lexemes(word: str, spelled: str, language: str, sure: bool) -> tuple[str, ...]:
    parts = (word, *map(folded, parts_of_compound(spelled, language if sure else None)))
    if sure or language == DEFAULT:
        return tuple(dict.fromkeys(stem(part, language) for part in parts))
    # English ones, which every query asks for, and of the language that was guessed those that are spelled otherwise.
    found = [stem(part, DEFAULT) for part in parts]
    other = [stem(part, language) for part in parts]
    found += [new for old, new in zip(found, other, strict=True) if new.partition("|")[0] != old]
    return tuple(dict.fromkeys(found))


def _pairs(run: str) -> list[str]:
    """Each two characters that stand together, and the last one alone, so that a single character is found as a prefix."""
    return [*(run[at : at + 2] for at in range(len(run) - 1)), run[-1]]


def _tsvector(found: dict[str, list[int]], language: str) -> Words:
    size = 0
    parts: list[str] = []
    for lexeme, positions in found.items():
        places = str(positions[0]) if len(positions) == 1 else ",".join(map(str, dict.fromkeys(positions[:_POSITIONS])))
        size += (len(lexeme) if lexeme.isascii() else 4 * len(lexeme)) + 8 + 2 * len(positions)  # no less than it takes
        if size > MAX_BYTES:
            return Words(" ".join(parts), language, False)
        parts.append(f"{quoted(lexeme)}:{places}")
    return Words(" ".join(parts), language, True)


def quoted(lexeme: str) -> str:
    """As Postgres reads a lexeme in the text form of a tsvector or tsquery."""
    if lexeme.isalnum():
        return f"'{lexeme}'"
    return "'" + lexeme.replace("\\", "\\\\").replace("'", "''") + "'"
