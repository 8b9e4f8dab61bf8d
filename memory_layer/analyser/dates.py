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
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Final, NamedTuple

import regex

from memory_layer.analyser.characters import UNSPACED, cleaned, folded
from memory_layer.analyser.date_words import (
    AND,
    BEFORE,
    BEFORE_BEHIND,
    BETWEEN,
    INTRODUCING,
    NAME,
    OTHER_LANGUAGES,
    SINCE,
    SINCE_BEHIND,
    TO,
    TOKEN,
    UNSPACED_LANGUAGES,
    YEAR,
    DateWords,
    languages_of,
    stem_of,
    words_of,
)
from memory_layer.analyser.stems import LANGUAGES, language_of

MAX_TEXT: Final = 1_000  # characters of a question that are looked through
MAX_LANGUAGES: Final = 3  # that are tried on it
_VERBS: Final = ("may", "march")

_ANY: Final = regex.compile(rf"\b(?:19|20)\d\d\b|\b\d{{1,2}}[./]\d{{1,2}}[./]|[{UNSPACED}]")
# Of Han, Japanese has its other signs beside it, if not in a question of two words.
_SIGN: Final = regex.compile(
    rf"(?s).*?(?:(?P<Hangul>\p{{Hangul}})|(?P<Kana>[\p{{Hiragana}}\p{{Katakana}}]))|[{UNSPACED}]"
)
_NUMERIC: Final = regex.compile(
    rf"(?<![\w.,/-])(?:{YEAR}-(?P<month>0[1-9]|1[0-2])(?:-(?P<day>\d\d))?|(?P<day>\d{{1,2}})\.(?P<month>\d{{1,2}})\.{YEAR}"
    rf"|(?P<month>\d{{1,2}})/(?P<day>\d{{1,2}})/{YEAR})(?:T[\d:.]+Z?)?(?![\w/-]|\.\d)"
)
_YEAR_ALONE: Final = regex.compile(
    rf"(?<![\w.,/:#+]|(?<!\b(?:19|20)\d\d)-){YEAR}(?!\w|[/:%]|[.,]\d|-(?!(?:19|20)\d\d\b))"
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


def named_times(text: str, now: dt.datetime) -> list[Span]:
    """In the order of the text. ``now``: aware; what the text says of "last week" counts from it, and a month without a year is the latest
    that has begun."""
    text = cleaned(text[:MAX_TEXT])
    words = {folded(word) for word in regex.findall(r"[\p{L}\p{M}]+", text)}
    told = _ANY.search(text) is not None
    counts = Counter(code for word in words for code in languages_of(word))
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


def _tried(words: set[str], counts: Counter[str], text: str) -> list[str]:
    """The languages whose words for times stand in the text: its own first."""
    own, sure = language_of(words)
    order = [own, *(code for code in (*LANGUAGES, *OTHER_LANGUAGES) if code != own)]
    likely = sorted(counts, key=lambda code: (not (sure and code == own), -counts[code], order.index(code)))
    if (sign := _SIGN.search(text)) is None:
        unspaced: tuple[str, ...] = ()
    else:
        unspaced = {"Hangul": ("ko",), "Kana": ("ja",)}.get(sign.lastgroup or "", ("zh", "ja"))
    return [*unspaced, *likely[:MAX_LANGUAGES]]


def _within(one: _Named, others: list[_Named]) -> bool:
    return any(one.at < other.to and other.at < one.to for other in others)


# --- Times in a text -------------------------------------------------------------------------------------------------------


def _in_language(text: str, code: str, now: dt.datetime) -> Iterator[_Named]:
    words = words_of(code)
    if code in UNSPACED_LANGUAGES:
        for found in words.grammar.finditer(text):
            if (one := _read(found, found.span(), words, now)) is not None:
                yield one
        return
    tokens = list(TOKEN.finditer(text))
    stems = [stem_of(folded(token[0]), code) for token in tokens]
    starts = [0]
    for one_stem in stems:
        starts.append(starts[-1] + len(one_stem) + 1)
    place = {start: number for number, start in enumerate(starts)}
    for found in words.grammar.finditer(" ".join(stems)):
        first, behind = place.get(found.start()), place.get(found.end() + 1)
        if first is None or behind is None:
            continue  # within a sign that stands for several words
        last = behind - 1
        one = _read(found, (tokens[first].start(), tokens[last].end()), words, now)
        if one is None or not _is_name(found, tokens[first : last + 1], words):
            continue
        before = folded(tokens[first - 1][0]) if first else ""
        yield replace(one, sure=found["month"] is None or _is_month(found, tokens[first : last + 1], before))


def _is_name(found: regex.Match[str], tokens: list[Any], words: DateWords) -> bool:
    """Whether a month's or day's word is one of its names with an ending, and not a longer word of that stem."""
    name = found["month"] or found["weekday"]
    if name is None:
        return True
    longest = words.longest.get(name, 0)
    return any(len(token[0]) <= longest + (4 if longest >= NAME else 1) for token in tokens if token[0].isalpha())


def _is_month(found: regex.Match[str], tokens: list[Any], before: str) -> bool:
    """Whether a month's name is one here: "in May", "7 May", "May 2023", "September", but not "we may" or "step 7 may"."""
    if found["year"]:
        return True
    name = next(token[0] for token in tokens if token[0][0].isalpha())
    if found["day"]:
        return name not in _VERBS
    return before in INTRODUCING or (len(name) >= NAME and folded(name) not in _VERBS)


def _read(found: regex.Match[str], place: tuple[int, int], words: DateWords, now: dt.datetime) -> _Named | None:
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


def _amount(phrase: str, words: DateWords) -> int | None:
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
                start = one.start
                if not one.dated:
                    start = _in_year(start, other.start.year if other.dated else start.year)
                    start = _in_year(start, start.year - 1) if start > other.start else start
                if start < other.end:
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
