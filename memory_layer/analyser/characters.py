"""Characters: where words begin and end in a text of any script, and how a word is spelled to be matched.

Words are runs of letters, marks and digits (Unicode's general categories L, Mn, Mc, Nd, Nl), so that no sign that stands beside a word
belongs to it. Compatibility forms are taken apart after that (NFKC makes letters of the sign for "trade mark").
"""

from __future__ import annotations

import unicodedata
from functools import lru_cache
from typing import Final

import regex

CACHE: Final = 50_000  # words kept with what became of them
CACHED: Final = 64  # characters of a word that is kept; few longer ones come twice

# Written without spaces: cut into pairs of characters. Hangul has spaces, but its particles are written to the word.
UNSPACED: Final = (
    r"\p{Han}\p{Hiragana}\p{Katakana}\p{Bopomofo}\p{Hangul}\p{Yi}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}\p{Tai_Tham}\p{Tai_Viet}\p{Javanese}"
    r"\u30fc\uff70\uff9e\uff9f"
)
_FIRST: Final = r"[\p{L}\p{Nd}\p{Nl}]"
# The digits of H₂O belong to it; the raised ones mark a footnote more often than a power.
_WORD: Final = rf"{_FIRST}[\p{{L}}\p{{Mn}}\p{{Mc}}\p{{Nd}}\p{{Nl}}\u2080-\u2089]*"
# What joins words to one name: OPS-4521, client/server, anna.k@example.org, AT&T, key=value, C:\temp, don't.
_JOINT: Final = r"(?:[-\u2010\u2011_./@&+#:\\~%=']{1,3}|(?<=\p{Nd}),(?=\p{Nd}{3}(?!\p{Nd})))"
# What is also written in one: GPT-4o, 212-555-0147, dry-run. With an apostrophe it would be another word: she'll.
CLOSED_UP: Final = regex.compile(rf"{_WORD}(?:[-\u2010\u2011_./:]{_WORD})+")
# 1,250.00 and 1.250.000 without the signs between thousands.
THOUSANDS: Final = regex.compile(r"(?<!\p{Nd}[.,])\b\p{Nd}{1,3}(?:(?:,\p{Nd}{3})+|(?:\.\p{Nd}{3})+)(?!\p{Nd})")
NAME: Final = regex.compile(rf"{_WORD}(?:{_JOINT}{_WORD})*(?:\+\+|\#(?!\w))?")
WORD: Final = regex.compile(_WORD)
UNSPACED_START: Final = regex.compile(rf"[{UNSPACED}]")
PIECE: Final = regex.compile(rf"[{UNSPACED}]+|[^{UNSPACED}]+")
# getUserName, XMLHttpRequest, sha256
CASED: Final = regex.compile(r"\p{Lu}+(?=\p{Lu}\p{Ll})|\p{Lu}?[\p{Ll}\p{Mn}]+|\p{Lu}+|\p{Nd}+|\p{Lo}+")

_APOSTROPHES: Final = "\u2018\u2019\u02bc\u02b9\uff07\u201b\u2032"
# Invisible: within a word they are not there, and between words they part them.
_INVISIBLE: Final = (
    "\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180e\u200c\u200d\u2060\u2061\u2062\u2063\u2064"
    + "".join(map(chr, (*range(0xFE00, 0xFE10), *range(0xE0100, 0xE01F0))))
)
_PLAIN: Final = (
    dict.fromkeys(map(ord, _APOSTROPHES), "'")
    | dict.fromkeys(map(ord, _INVISIBLE))
    | dict.fromkeys((0x200B, 0xFEFF), " ")
)

# Marks that a reader may leave out: accents of Latin and Greek, vowel signs of Arabic and Hebrew, the dots of the Russian yo, and the dot
# (nukta) and the moon (candrabindu) of Devanagari, which many write as they write plain letters and the other nasal sign.
_ACCENT: Final = regex.compile(r"(?<=[\p{Latin}\p{Greek}\p{Arabic}\p{Hebrew}]\p{Mn}*)\p{Mn}|\u093c")
_LETTERS: Final = str.maketrans({"ё": "е", "ı": "i", "ø": "o", "ł": "l", "đ": "d", "ð": "d", "þ": "th", "æ": "ae", "œ": "oe", "ß": "ss", "ـ": "", "\u0901": "\u0902"})  # fmt: skip


def cleaned(text: str) -> str:
    """A text whose names can be looked for: NFC, one apostrophe, nothing invisible."""
    return unicodedata.normalize("NFC", text).translate(_PLAIN)


def folded(word: str) -> str:
    """A word without case, width, ligatures and accents."""
    if word.isascii():
        return word.lower()
    return _folded(word) if len(word) <= CACHED else _folded.__wrapped__(word)


@lru_cache(maxsize=CACHE)
def _folded(word: str) -> str:
    plain = unicodedata.normalize("NFKC", word).translate(_PLAIN).casefold().translate(_LETTERS)
    bare = _ACCENT.sub("", unicodedata.normalize("NFD", plain))
    return unicodedata.normalize("NFKC", bare).casefold()
