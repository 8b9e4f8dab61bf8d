"""Small words that stand beside a time and say how far it goes. Folded; of all languages together, for they stand beside a time of one."""

from __future__ import annotations

from typing import Final


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
TO: Final = frozenset(
    [
        "-",
        "–",
        "—",
        "to",
        "through",
        "until",
        "till",
        "bis",
        "a",
        "al",
        "hasta",
        "au",
        "jusqu'a",
        "ate",
        "tot",
        "по",
        "до",
        "do",
        "till",
        "til",
        "~",
        "〜",
        "到",
        "至",
        "から",
        "到了",
        "부터",
    ]
)
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
