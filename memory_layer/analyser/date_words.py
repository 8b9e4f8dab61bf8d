"""The words for times: of each language from dateparser, and small ones that say how far a time goes."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache, lru_cache
from importlib.util import find_spec
from typing import Any, Final, NamedTuple

import regex

from memory_layer.analyser.characters import cleaned, folded
from memory_layer.analyser.stems import LANGUAGES, stem

UNSPACED_LANGUAGES: Final = ("zh", "ja", "ko")
OTHER_LANGUAGES: Final = ("ru", "uk", "ar", "hi", *UNSPACED_LANGUAGES)
_MONTHS: Final = (
    "january", "february", "march", "april", "may", "june", "july", "august", "september", "october", "november", "december",
)  # fmt: skip
_DAYS: Final = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")
_UNITS: Final = ("day", "week", "month", "year")
NAME: Final = 5  # letters of a name that is a month's or day's wherever it stands; a shorter one is many other things
TOKEN: Final = regex.compile(r"\p{Nd}+|\p{L}[\p{L}\p{M}]*|[^\s\w]")
YEAR: Final = r"(?P<year>(?:19|20)\d\d)"


# Small words that stand beside a time, folded; of all languages together, for they stand beside a time of one.


def _of(words: str) -> frozenset[str]:
    return frozenset(words.split())


SINCE: Final = _of(
    "since after seit nach ab depuis apres desde despues dal dopo depois sinds na с после od po since från sedan efter siden"
)
BEFORE: Final = _of(
    "until till before vor bis avant jusque antes hasta prima fino ate voor tot до перед przed do före innan før til"
)
BETWEEN: Final = _of(
    "between from zwischen von vom entre de du del desde tra fra dal da tussen van между с od mellan från mellem"
)
AND: Final = _of("and und et y e en и i och og")
TO: Final = _of("- – — ~ 〜 to through until till bis a al hasta au jusqu'a ate tot по до do til 到 至 から 到了 부터")
LAST: Final = _of("last past previous") | {
    "letzt",
    "vergang",
    "ultim",
    "dernier",
    "последн",
    "vorig",
    "laatst",
}  # stems: the last three weeks

# A short name of a month is one behind these: in May, am 7., last May.
INTRODUCING: Final = SINCE | BEFORE | BETWEEN | AND | _of(
    "in on of at during by last this next im am den letzten diesen nachsten le dernier en el w v в на во во прошлом этом nel del em no em i"
)  # fmt: skip

# What is written behind the time.
SINCE_BEHIND: Final = ("以来", "以后", "之后", "以降", "から", "이후", "부터")
BEFORE_BEHIND: Final = ("以前", "之前", "まで", "까지")


class DateWords(NamedTuple):
    """``grammar`` reads texts of stems. ``relative``: phrase -> unit and how many of it from now. ``known``: words that may belong to a time.
    ``longest``: of a month's or day's stem, the letters of its longest name."""

    grammar: regex.Pattern[str]
    months: Mapping[str, int]
    days: Mapping[str, int]
    units: Mapping[str, str]
    relative: Mapping[str, tuple[str, int]]
    numbers: tuple[tuple[regex.Pattern[str], str], ...]
    known: frozenset[str]
    longest: Mapping[str, int]


@lru_cache(maxsize=1)
def is_installed() -> bool:
    return find_spec("dateparser") is not None


def load() -> None:
    """Read the words of all languages, a third of a second of work that is done once in a process: by the first question else."""
    _known()


def is_loaded() -> bool:
    return _known.cache_info().currsize > 0


@lru_cache(maxsize=1)
def _known() -> Mapping[str, tuple[str, ...]]:
    """Stem -> the languages in which it may belong to a time, where words are parted by spaces."""
    found: dict[str, list[str]] = {}
    for code in (*LANGUAGES, *OTHER_LANGUAGES):
        if code not in UNSPACED_LANGUAGES:
            for word in words_of(code).known:
                found.setdefault(word, []).append(code)
    return {word: tuple(codes) for word, codes in found.items()}


@lru_cache(maxsize=50_000)
def languages_of(word: str) -> tuple[str, ...]:
    known = _known()
    return tuple(code for code in (*LANGUAGES, *OTHER_LANGUAGES) if code in known.get(stem_of(word, code), ()))


@cache
def words_of(code: str) -> DateWords:
    # It takes 0.2 s, which a process that searches nothing does not need.
    from dateparser.languages.loader import default_loader

    info: Mapping[str, Any] = default_loader.get_locale({"no": "nb"}.get(code, code)).info
    spaced = code not in UNSPACED_LANGUAGES
    months = {
        stems_of(name, code): number
        for number, key in enumerate(_MONTHS, 1)
        for name in info.get(key, ())
        if len(name) > 1
    }
    least = NAME if spaced and code != "hi" else 3
    days = {
        stems_of(name, code): number
        for number, key in enumerate(_DAYS)
        for name in info.get(key, ())
        if len(name) >= least
    }
    units = {
        stems_of(name, code): unit for unit in _UNITS for name in info.get(unit, ()) if len(name) > 1 or not spaced
    }
    relative: dict[str, tuple[str, int]] = {}
    for key, phrases in info.get("relative-type", {}).items():
        parts = key.removeprefix("in ").split()
        if parts[1] in _UNITS:
            count = int(parts[0]) * (1 if key.startswith("in ") else -1)
            for phrase in phrases:
                # "la semaine dernière", "в прошлом году": also without what it begins with.
                bare = regex.sub(r"^\p{L}{1,2}(?:['’]|\s+)(?=.*\s)", "", phrase) if spaced else phrase
                relative.update(dict.fromkeys((stems_of(phrase, code), stems_of(bare, code)), (parts[1], count)))
    ago = {stems_of(one, code) for one in info.get("ago", ())}
    numbers = tuple(
        (regex.compile(rf"\b(?:{pattern})\b", regex.I), number)
        for entry in info.get("simplifications", ())
        for pattern, number in entry.items()
        if number.isdigit() and "(?" not in pattern
    )
    known = {*months, *days, *(word for word in units if len(word) > 2), *(one.rpartition(" ")[2] for one in relative)}
    longest: dict[str, int] = {}
    for key in (*_MONTHS, *_DAYS):
        for name in info.get(key, ()):
            longest[stems_of(name, code)] = max(len(name), longest.get(stems_of(name, code), 0))
    amount = "|".join((r"\d{1,3}", *(f"(?:{pattern.pattern})" for pattern, _ in numbers)))
    grammar = (
        _spaced(months, days, units, relative, ago, amount) if spaced else _unspaced(months, days, units, relative, ago)
    )
    return DateWords(grammar, months, days, units, relative, numbers, frozenset(known), longest)


def _any(names: Any) -> str:
    return "|".join(sorted(map(regex.escape, names), key=len, reverse=True)) or r"(?!)"


def _spaced(months: Any, days: Any, units: Any, relative: Any, ago: Any, amount: str) -> regex.Pattern[str]:
    month = rf"(?P<month>{_any(months)})(?: \.)?"
    day = r"(?P<day>\d{1,2})(?: (?:\.|st|nd|rd|th|er|º|ª))?"
    of = r"(?: (?:,|'|of|the|de|del|di|d)){0,2} "
    amount = f"(?:{amount})"
    return regex.compile(
        rf"(?<!\S)(?:(?P<relative>{_any(relative)})"
        rf"|(?P<ago>(?:{_any(ago)}) {amount} (?P<unit>{_any(units)})|{amount} (?P<unit>{_any(units)}) (?:{_any(ago)}))"
        rf"|(?P<last>(?:{_any(LAST)}) {amount} (?P<unit>{_any(units)}))"
        rf"|(?:{day}{of})?{month}(?:{of}{day}(?! [:/%]))?(?:{of}{YEAR})?"
        rf"|(?P<weekday>{_any(days)}))(?!\S)"
    )


def _unspaced(months: Any, days: Any, units: Any, relative: Any, ago: Any) -> regex.Pattern[str]:
    return regex.compile(
        rf"(?P<relative>{_any(relative)})|(?P<ago>(?:\d{{1,3}}|[一二三四五六七八九十两]+)\s*(?P<unit>{_any(units)})\s*(?:{_any(ago)}))"
        rf"|(?:{YEAR}\s*[年년]\s*)?(?<![\d十])(?P<month>{_any(months)})(?:\s*(?P<day>\d{{1,2}})\s*[日号號일])?"
        rf"|{YEAR}\s*[年년]|(?P<weekday>{_any(days)})"
    )


@lru_cache(maxsize=50_000)
def stem_of(word: str, code: str) -> str:
    return stem(word, code if code in LANGUAGES else "en").partition("|")[0]


def stems_of(phrase: str, code: str) -> str:
    if code in UNSPACED_LANGUAGES:
        return phrase
    return " ".join(stem_of(folded(token), code) for token in TOKEN.findall(cleaned(phrase)))
