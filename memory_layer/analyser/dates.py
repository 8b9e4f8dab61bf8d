"""Which times a question names: "in May 2023", "vor drei Tagen", "между мартом и июнем", "去年五月".

The words of the languages (months, days of the week, "last week", "ago") are dateparser's. They are looked for here by their stems, in a
grammar of a few lines: dateparser's own search takes 20 to 140 ms for a question and finds dates in "did" (docs/decisions/0048).
Everything is in UTC.
"""

from __future__ import annotations

import calendar
import datetime as dt
import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from importlib.util import find_spec
from typing import Any, Final, NamedTuple

import regex

from memory_layer.analyser.characters import UNSPACED, cleaned, folded
from memory_layer.analyser.date_words import (
    AND,
    BEFORE,
    BEFORE_BEHIND,
    BETWEEN,
    INTRODUCING,
    LAST,
    SINCE,
    SINCE_BEHIND,
    TO,
)
from memory_layer.analyser.stems import LANGUAGES, language_of, stem

MAX_TEXT: Final = 1_000  # characters of a question that are looked through
MAX_LANGUAGES: Final = 3  # that are tried on it
_UNSPACED: Final = ("zh", "ja", "ko")
_OTHERS: Final = ("ru", "uk", "ar", "hi", *_UNSPACED)
_MONTHS: Final = (
    "january", "february", "march", "april", "may", "june", "july", "august", "september", "october", "november", "december",
)  # fmt: skip
_DAYS: Final = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")
_UNITS: Final = ("day", "week", "month", "year")
_NAME: Final = 5  # letters of a name that is a month's or day's wherever it stands; a shorter one is many other things
_VERBS: Final = ("may", "march")

_TOKEN: Final = regex.compile(r"\p{Nd}+|\p{L}[\p{L}\p{M}]*|[^\s\w]")
_ANY: Final = regex.compile(rf"\b(?:19|20)\d\d\b|\b\d{{1,2}}[./]\d{{1,2}}[./]|[{UNSPACED}]")
# Of Han, Japanese has its other signs beside it, if not in a question of two words.
_SIGN: Final = regex.compile(
    rf"(?s).*?(?:(?P<Hangul>\p{{Hangul}})|(?P<Kana>[\p{{Hiragana}}\p{{Katakana}}]))|[{UNSPACED}]"
)
_YEAR: Final = r"(?P<year>(?:19|20)\d\d)"
_NUMERIC: Final = regex.compile(
    rf"(?<![\w.,/-])(?:{_YEAR}-(?P<month>0[1-9]|1[0-2])(?:-(?P<day>\d\d))?|(?P<day>\d{{1,2}})\.(?P<month>\d{{1,2}})\.{_YEAR}"
    rf"|(?P<month>\d{{1,2}})/(?P<day>\d{{1,2}})/{_YEAR})(?:T[\d:.]+Z?)?(?![\w/-]|\.\d)"
)
_YEAR_ALONE: Final = regex.compile(
    rf"(?<![\w.,/:#+]|(?<!\b(?:19|20)\d\d)-){_YEAR}(?!\w|[/:%]|[.,]\d|-(?!(?:19|20)\d\d\b))"
)
_AHEAD: Final = 5  # years: a number that is later is no year
_BESIDE: Final = regex.compile(r"\W*(?:of|in|de|del|do|des|von|di|van|года?|的|の)?\W*")


class Span(NamedTuple):
    """A time that a text names: from ``start`` until before ``end``; None: without a bound."""

    text: str
    start: dt.datetime | None
    end: dt.datetime | None

    def holds(self, at: dt.datetime) -> bool:
        return (self.start is None or self.start <= at) and (self.end is None or at < self.end)


@dataclass(frozen=True, slots=True)
class _Named:
    """``at`` and ``to`` in the text. ``unit``: what it is one of. ``dated``: its year is known; else it is the latest that has begun.
    ``sure``: False for a word that is a month only beside another time: "may"."""

    at: int
    to: int
    start: dt.datetime
    unit: str
    end: dt.datetime
    dated: bool = True
    sure: bool = True


class _Words(NamedTuple):
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


def named_times(text: str, now: dt.datetime) -> list[Span]:
    """In the order of the text. ``now``: aware; what the text says of "last week" counts from it, and a month without a year is the latest
    that has begun."""
    text = cleaned(text[:MAX_TEXT])
    words = {folded(word) for word in regex.findall(r"[\p{L}\p{M}]+", text)}
    told = _ANY.search(text) is not None
    counts = Counter(code for word in words for code in _languages_of(word))
    if not counts and not told:
        return []
    now = now.astimezone(dt.UTC)
    numeric = [one for found in _NUMERIC.finditer(text) if (one := _dated(found, found.span(), now)) is not None]
    taken = list(numeric)
    for code in _tried(words, counts, text):
        taken += [one for one in _in_language(text, code, now) if not _within(one, numeric)]
        if len(taken) > len(numeric):
            break
    for year in _YEAR_ALONE.finditer(text):
        one = _dated(year, year.span(), now)
        if one is not None and not _within(one, taken):
            taken.append(one)
    return list(_spans(text, _joined(text, sorted(taken, key=lambda one: one.at))))


@lru_cache(maxsize=1)
def is_installed() -> bool:
    return find_spec("dateparser") is not None


def load() -> None:
    """Read the words of all languages, a third of a second of work that is done once in a process: by the first question else."""
    _known()


def is_loaded() -> bool:
    return _known.cache_info().currsize > 0


def _tried(words: set[str], counts: Counter[str], text: str) -> list[str]:
    """The languages whose words for times stand in the text: its own first."""
    own, sure = language_of(words)
    order = [own, *(code for code in (*LANGUAGES, *_OTHERS) if code != own)]
    likely = sorted(counts, key=lambda code: (not (sure and code == own), -counts[code], order.index(code)))
    if (sign := _SIGN.search(text)) is None:
        unspaced: tuple[str, ...] = ()
    else:
        unspaced = {"Hangul": ("ko",), "Kana": ("ja",)}.get(sign.lastgroup or "", ("zh", "ja"))
    return [*unspaced, *likely[:MAX_LANGUAGES]]


def _within(one: _Named, others: list[_Named]) -> bool:
    return any(one.at < other.to and other.at < one.to for other in others)


# --- The words of a language -----------------------------------------------------------------------------------------------


@lru_cache(maxsize=1)
def _known() -> Mapping[str, tuple[str, ...]]:
    """Stem -> the languages in which it may belong to a time, where words are parted by spaces."""
    found: dict[str, list[str]] = {}
    for code in (*LANGUAGES, *_OTHERS):
        if code not in _UNSPACED:
            for word in _words(code).known:
                found.setdefault(word, []).append(code)
    return {word: tuple(codes) for word, codes in found.items()}


@lru_cache(maxsize=50_000)
def _languages_of(word: str) -> tuple[str, ...]:
    known = _known()
    return tuple(code for code in (*LANGUAGES, *_OTHERS) if code in known.get(_stem(word, code), ()))


@cache
def _words(code: str) -> _Words:
    # It takes 0.2 s, which a process that searches nothing does not need.
    from dateparser.languages.loader import default_loader

    info: Mapping[str, Any] = default_loader.get_locale({"no": "nb"}.get(code, code)).info
    spaced = code not in _UNSPACED
    months = {
        _stems(name, code): number
        for number, key in enumerate(_MONTHS, 1)
        for name in info.get(key, ())
        if len(name) > 1
    }
    least = _NAME if spaced and code != "hi" else 3
    days = {
        _stems(name, code): number
        for number, key in enumerate(_DAYS)
        for name in info.get(key, ())
        if len(name) >= least
    }
    units = {_stems(name, code): unit for unit in _UNITS for name in info.get(unit, ()) if len(name) > 1 or not spaced}
    relative: dict[str, tuple[str, int]] = {}
    for key, phrases in info.get("relative-type", {}).items():
        parts = key.removeprefix("in ").split()
        if parts[1] in _UNITS:
            count = int(parts[0]) * (1 if key.startswith("in ") else -1)
            for phrase in phrases:
                # "la semaine dernière", "в прошлом году": also without what it begins with.
                bare = regex.sub(r"^\p{L}{1,2}(?:['’]|\s+)(?=.*\s)", "", phrase) if spaced else phrase
                relative.update(dict.fromkeys((_stems(phrase, code), _stems(bare, code)), (parts[1], count)))
    ago = {_stems(one, code) for one in info.get("ago", ())}
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
            longest[_stems(name, code)] = max(len(name), longest.get(_stems(name, code), 0))
    amount = "|".join((r"\d{1,3}", *(f"(?:{pattern.pattern})" for pattern, _ in numbers)))
    grammar = (
        _spaced(months, days, units, relative, ago, amount) if spaced else _unspaced(months, days, units, relative, ago)
    )
    return _Words(grammar, months, days, units, relative, numbers, frozenset(known), longest)


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
        rf"|(?:{day}{of})?{month}(?:{of}{day}(?! [:/%]))?(?:{of}{_YEAR})?"
        rf"|(?P<weekday>{_any(days)}))(?!\S)"
    )


def _unspaced(months: Any, days: Any, units: Any, relative: Any, ago: Any) -> regex.Pattern[str]:
    return regex.compile(
        rf"(?P<relative>{_any(relative)})|(?P<ago>(?:\d{{1,3}}|[一二三四五六七八九十两]+)\s*(?P<unit>{_any(units)})\s*(?:{_any(ago)}))"
        rf"|(?:{_YEAR}\s*[年년]\s*)?(?<![\d十])(?P<month>{_any(months)})(?:\s*(?P<day>\d{{1,2}})\s*[日号號일])?"
        rf"|{_YEAR}\s*[年년]|(?P<weekday>{_any(days)})"
    )


@lru_cache(maxsize=50_000)
def _stem(word: str, code: str) -> str:
    return stem(word, code if code in LANGUAGES else "en").partition("|")[0]


def _stems(phrase: str, code: str) -> str:
    if code in _UNSPACED:
        return phrase
    return " ".join(_stem(folded(token), code) for token in _TOKEN.findall(cleaned(phrase)))


# --- Times in a text -------------------------------------------------------------------------------------------------------


def _in_language(text: str, code: str, now: dt.datetime) -> Iterator[_Named]:
    words = _words(code)
    if code in _UNSPACED:
        for found in words.grammar.finditer(text):
            if (one := _read(found, found.span(), words, now)) is not None:
                yield one
        return
    tokens = list(_TOKEN.finditer(text))
    stems = [_stem(folded(token[0]), code) for token in tokens]
    starts = [0]
    for one_stem in stems:
        starts.append(starts[-1] + len(one_stem) + 1)
    place = {start: number for number, start in enumerate(starts)}
    for found in words.grammar.finditer(" ".join(stems)):
        first, last = place[found.start()], place[found.end() + 1] - 1
        one = _read(found, (tokens[first].start(), tokens[last].end()), words, now)
        if one is None or not _is_name(found, tokens[first : last + 1], words):
            continue
        before = folded(tokens[first - 1][0]) if first else ""
        yield replace(one, sure=found["month"] is None or _is_month(found, tokens[first : last + 1], before))


def _is_name(found: regex.Match[str], tokens: list[Any], words: _Words) -> bool:
    """Whether a month's or day's word is one of its names with an ending, and not a longer word of that stem."""
    name = found["month"] or found["weekday"]
    if name is None:
        return True
    longest = words.longest.get(name, 0)
    return any(len(token[0]) <= longest + (4 if longest >= _NAME else 1) for token in tokens if token[0].isalpha())


def _is_month(found: regex.Match[str], tokens: list[Any], before: str) -> bool:
    """Whether a month's name is one here: "in May", "7 May", "May 2023", "September", but not "we may" or "step 7 may"."""
    if found["year"]:
        return True
    name = next(token[0] for token in tokens if token[0][0].isalpha())
    if found["day"]:
        return name not in _VERBS
    return before in INTRODUCING or (len(name) >= _NAME and folded(name) not in _VERBS)


def _read(found: regex.Match[str], place: tuple[int, int], words: _Words, now: dt.datetime) -> _Named | None:
    today = now.replace(hour=0, minute=0, second=0, microsecond=0)
    if found["relative"]:
        unit, count = words.relative[found["relative"]]
        return _whole(place, _moved(today, unit, count), unit)
    if found["ago"]:
        amount = _amount(found["ago"], words)
        unit = words.units[found["unit"]]
        return None if amount is None else _whole(place, _moved(today, unit, -amount), unit)
    if found["weekday"]:
        back = (today.weekday() - words.days[found["weekday"]]) % 7 or 7
        return _whole(place, today - dt.timedelta(back), "day")
    if found.re.groupindex.get("last") and found["last"]:
        amount = _amount(found["last"], words)
        unit = words.units[found["unit"]]
        if amount is None:
            return None
        return _Named(*place, _moved(today, unit, -amount), unit, today + dt.timedelta(1))
    return _dated(found, place, now, words.months.get(found["month"] or ""))


def _amount(phrase: str, words: _Words) -> int | None:
    for pattern, number in words.numbers:
        phrase = pattern.sub(number, phrase)
    if (digits := regex.search(r"\d+", phrase)) is not None:
        return int(digits[0])
    signs = [int(unicodedata.numeric(sign)) for sign in phrase.replace("两", "二") if sign.isnumeric()]
    return signs[0] if len(signs) == 1 else None


def _dated(
    found: regex.Match[str], place: tuple[int, int], now: dt.datetime, month: int | None = None
) -> _Named | None:
    groups = found.groupdict()
    if month is None and groups.get("month"):
        month = int(groups["month"])
    year, day = groups.get("year"), groups.get("day")
    unit = "day" if day else "month" if month else "year"
    if int(year or 0) > now.year + _AHEAD:
        return None
    try:
        start = dt.datetime(int(year or now.year), month or 1, int(day or 1), tzinfo=dt.UTC)
        if not year and start > now:
            start = start.replace(year=now.year - 1)
    except ValueError:
        return None
    return _whole(place, start, unit, dated=year is not None)


def _moved(at: dt.datetime, unit: str, count: int) -> dt.datetime:
    if unit in ("day", "week"):
        return at + dt.timedelta(**{f"{unit}s": count})
    months = at.year * 12 + at.month - 1 + count * (12 if unit == "year" else 1)
    year, month = divmod(months, 12)
    return at.replace(year=year, month=month + 1, day=min(at.day, calendar.monthrange(year, month + 1)[1]))


def _whole(place: tuple[int, int], at: dt.datetime, unit: str, *, dated: bool = True) -> _Named:
    """The whole day, week, month or year that this instant is in."""
    match unit:
        case "week":
            at -= dt.timedelta(at.weekday())
        case "month":
            at = at.replace(day=1)
        case "year":
            at = at.replace(month=1, day=1)
    return _Named(*place, at, unit, _moved(at, unit, 1), dated)


# --- What stands around them -----------------------------------------------------------------------------------------------


def _joined(text: str, found: list[_Named]) -> list[_Named]:
    """ "May last year" and "去年五月" are one time."""
    joined: list[_Named] = []
    for one in found:
        last = joined[-1] if joined else None
        if last is not None and _BESIDE.fullmatch(text[last.to : one.at]):
            year, other = (one, last) if one.unit == "year" else (last, one)
            if year.unit == "year" and year.dated and other.unit in ("day", "month") and not other.dated:
                joined[-1] = _whole((last.at, one.to), _in_year(other.start, year.start.year), other.unit)
                continue
        joined.append(one)
    return joined


def _in_year(at: dt.datetime, year: int) -> dt.datetime:
    return at.replace(year=year, day=min(at.day, 28 if at.month == 2 else at.day))


def _spans(text: str, found: list[_Named]) -> Iterator[Span]:
    """With "between ... and ...", "since" and "until" read."""
    number = 0
    while number < len(found):
        one = found[number]
        number += 1
        before, at = _word_before(text, one.at)
        if number < len(found):
            other = found[number]
            between = folded(text[one.to : other.at].strip())
            if between in TO or (between in AND and before in BETWEEN):
                start = _in_year(one.start, other.start.year) if other.dated and not one.dated else one.start
                if start > other.start:
                    start = start.replace(year=start.year - 1, day=min(start.day, 28))
                number += 1
                yield Span(text[at if before in BETWEEN else one.at : other.to], start, other.end)
                continue
        if not one.sure:
            continue
        after = text[one.to : one.to + 4].lstrip()
        if before in SINCE or after.startswith(SINCE_BEHIND):
            yield Span(text[at : one.to], one.start, None)
        elif before in BEFORE or after.startswith(BEFORE_BEHIND):
            yield Span(text[at : one.to], None, one.end)
        else:
            yield Span(text[one.at : one.to], one.start, one.end)


def _word_before(text: str, at: int) -> tuple[str, int]:
    found = regex.search(r"(?P<word>[\p{L}\p{M}]+)\s+$", text[:at])
    return (folded(found["word"]), found.start()) if found else ("", at)
