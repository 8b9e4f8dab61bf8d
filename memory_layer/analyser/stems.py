"""Stems: Snowball's algorithms (https://snowballstem.org/algorithms/), by script and, in Latin script, by language."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from functools import lru_cache
from typing import Final

import pyphen
import regex
import Stemmer

from memory_layer.analyser.characters import CACHE
from memory_layer.analyser.function_words import FUNCTION_WORDS

# In Latin script. The first is taken where nothing tells.
LANGUAGES: Final[Mapping[str, str]] = {
    "en": "english", "de": "german", "fr": "french", "es": "spanish", "it": "italian", "pt": "portuguese", "nl": "dutch",
    "sv": "swedish", "da": "danish", "no": "norwegian", "fi": "finnish", "pl": "polish", "cs": "czech", "tr": "turkish",
    "ro": "romanian", "hu": "hungarian",
}  # fmt: skip
DEFAULT: Final = "en"

# The language of a script is the one that most write in it; others of that script are stemmed alike, in texts and in queries.
_SCRIPTS: Final = {
    "Cyrillic": "russian", "Arabic": "arabic", "Devanagari": "hindi", "Greek": "greek", "Armenian": "armenian", "Tamil": "tamil",
    "Hebrew": None,
}  # fmt: skip
_SCRIPT: Final = regex.compile("|".join(rf"(?P<{name}>\p{{{name}}})" for name in (*_SCRIPTS, "Latin")))

# Languages that write compounds as one word, with the patterns that say where it may be divided.
COMPOUNDING: Final = {"de": "de_DE", "nl": "nl_NL", "sv": "sv_SE", "da": "da_DK", "no": "nb_NO"}
_LONG: Final = 9  # letters that a compound has at the least
_VERY_LONG: Final = 13  # and where the language is not known
_PART: Final = 4  # and each part of it

# A language is that of a text when two of its words and one of twelve are function words of it, and perhaps when one is. Single letters are
# of too many languages.
_VOTERS: Final = 2
_SHARE: Final = 12
_VOTES: Final[Mapping[str, tuple[str, ...]]] = {
    word: tuple(language for language in LANGUAGES if word in FUNCTION_WORDS[language])
    for word in frozenset().union(*FUNCTION_WORDS.values())
    if len(word) > 1
}


@lru_cache(maxsize=64)
def _stemmer(algorithm: str) -> Stemmer.Stemmer:
    return Stemmer.Stemmer(algorithm, 0)  # without a cache of its own: ours keeps the whole answer


@lru_cache(maxsize=8)
def _hyphens(language: str) -> pyphen.Pyphen:
    return pyphen.Pyphen(lang=COMPOUNDING[language])


def script_of(word: str) -> str:
    """The script of a word's first letter: a name of Unicode's where it matters here, "" for any other."""
    found = _SCRIPT.search(word)
    return found.lastgroup or "" if found else ""


def _has_digits(word: str) -> bool:
    """Whether a folded word of Latin letters holds digits: it is a name then, of no language, with no endings."""
    return word.isascii() and not word.isalpha()


@lru_cache(maxsize=CACHE)
def stem(word: str, language: str) -> str:
    """The lexeme of a folded word. A stem of another language than English names it, so that stems of two languages that happen to be
    spelled alike are two lexemes."""
    if _has_digits(word):
        return word
    script = script_of(word)
    if script == "Latin":
        found: str = _stemmer(LANGUAGES[language]).stemWord(word)
        return found if language == DEFAULT else f"{found}|{language}"
    algorithm = _SCRIPTS.get(script)
    return word if algorithm is None else str(_stemmer(algorithm).stemWord(word))


@lru_cache(maxsize=CACHE)
def stems(word: str) -> tuple[tuple[str, str], ...]:
    """The lexemes that texts may hold a folded word as, each with the language of the texts that do; "" for those of any: a text's language
    is known, that of a query of two words is not."""
    if script_of(word) != "Latin" or _has_digits(word):
        return (("", stem(word, DEFAULT)),)
    return tuple((language, stem(word, language)) for language in LANGUAGES)


@lru_cache(maxsize=CACHE)
def parts_of_compound(word: str, language: str | None) -> tuple[str, ...]:
    """What a long word begins and ends with, at each place where its language may divide it. ``word``: with its accents, as the language
    divides by them. None: not known, so as the language with the longest words does."""
    if len(word) < (_VERY_LONG if language is None else _LONG) or not word.isalpha():
        return ()
    language = language or "de"
    if language not in COMPOUNDING:
        return ()
    places = [at for at in _hyphens(language).positions(word) if _PART <= at <= len(word) - _PART]
    return tuple(dict.fromkeys(part for at in places for part in (word[:at], word[at:])))


def language_of(words: Collection[str]) -> tuple[str, bool]:
    """The language of Latin script that more of a text's function words are of than of any other, and whether enough of them tell it.
    ``words``: folded, each once. A mistake costs little, as a query asks for the stems of all languages that there are."""
    votes: Counter[str] = Counter()
    for languages in map(_VOTES.get, words):
        if languages is not None:
            for language in languages:
                votes[language] += 1
    most = max(votes.values(), default=0)
    if not most or most * _SHARE < len(words):
        return DEFAULT, False
    best = [language for language in LANGUAGES if votes[language] == most]
    return best[0], len(best) == 1 and most >= _VOTERS
