"""The words of texts and queries: the same on every server, because no database has a part in it."""

from __future__ import annotations

import re
import sys
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memory_layer import analyser
from memory_layer.analyser import QueryWord, analyse, query_words


def lexemes(text: str, language: str | None = None) -> set[str]:
    made = re.findall(r"'((?:[^'\\]|''|\\\\)*)':", analyse(text, language).tsvector)
    return {lexeme.replace("''", "'").replace("\\\\", "\\") for lexeme in made}


def finds(text: str, query: str) -> bool:
    """Whether some word of the query is one of the text, as the search statement decides it."""
    language, stored = analyse(text).language, lexemes(text)
    for word in query_words(query)[0]:
        for of, lexeme in word.lexemes:
            if of in ("", "en", language) and (
                lexeme in stored or (word.prefix and any(one.startswith(lexeme) for one in stored))
            ):
                return True
    return False


SIGNS = [chr(n) for n in range(sys.maxunicode + 1) if unicodedata.category(chr(n))[0] in "PSZ"]


def test_a_word_is_found_whatever_sign_stands_beside_it() -> None:
    """Every mark of Unicode's punctuation, symbols and spaces, in the text and in the query."""
    assert len(SIGNS) > 8000
    words = [f"zanzi{n}bar" for n in range(len(SIGNS))]
    stored = lexemes(" ".join(f"about {sign}{word}{sign}" for sign, word in zip(SIGNS, words, strict=True)))
    assert set(words) <= stored
    zanzibar = query_words("zanzibar")
    other = [sign for sign in SIGNS if zanzibar[0][0] not in query_words(f"{sign}zanzibar{sign}")[0]]
    assert [f"U+{ord(sign):04X}" for sign in other] == []


@pytest.mark.parametrize("invisible", ["\u00ad", "\u200b", "\u200c", "\u200d", "\u2060", "\ufeff", "\ufe0f"])
def test_what_cannot_be_seen_stands_in_no_way(invisible: str) -> None:
    assert finds(f"about {invisible}zanzibar{invisible} today", "zanzibar")


@pytest.mark.parametrize(
    ("text", "query"),
    [
        ("see ticket OPS-4521 for the outage", "4521"),
        ("see ticket OPS-4521 for the outage", "ops-4521"),
        ("see ticket OPS\u20114521 for the outage", "OPS 4521"),
        ("fixed in CVE-2026-2332", "2332"),
        ("COVID-19 rules", "19"),
        ("call (123) 456-7890", "7890"),
        ("the client/serverword split", "serverword"),
        ("and/orword", "orword"),
        ("docs at https://wiki.example.org/runbooks/failover?x=1#part", "failover"),
        ("docs at https://wiki.example.org/runbooks/failover?x=1#part", "wiki.example.org"),
        ("mail anna.k@example.org about it", "anna"),
        ("mail anna.k@example.org about it", "anna.k@example.org"),
        ("edit /etc/nginx/sites-enabled/default", "nginx"),
        (r"in C:\Users\anna\report.docx", "report"),
        ("report_final_v2.pdf is signed", "report"),
        ("we moved to node.js", "node"),
        ("self.attrword = 1", "attrword"),
        ("key=value&colour=red", "colour"),
        ("we use Vec<Strangelet> here", "strangelet"),
        ("set <PLACEHOLDERNAME> in the config", "placeholdername"),
        ("if alpha<beta and gamma>delta then", "gamma"),
        ("<!-- hidden --> <b>bold</b>", "hidden"),
        ("invoice from AT&T arrived", "AT&T"),
        ("written in C++ and C#", "c++"),
        ("written in C++ and C#", "C#"),
        ("version 10.4.2 is out", "10.4"),
        ("getUserName fails", "user name"),
        ("XMLHttpRequest was blocked", "http"),
        ("sha256 of the file", "256"),
        ("don't panic", "panic"),
        ("O\u2019Brien called", "O'Brien"),
        ("#release @anna $PATH", "release"),
        ("call 555-0147", "5550147"),
        ("call 5550147", "555-0147"),
        ("the GPT-4o model", "gpt4o"),
        ("the Wi-Fi is down", "wifi"),
        ("paid 1,250.00 for it", "1250"),
        ("paid 1250 for it", "1.250,00"),
        ("in 1,250,000 rows", "1250000"),
        ("commit 0a1b2c3d4e5f60718293a4b5c6d7e8f901234567", "0a1b2c3"),
        ("a tank of H\u2082SO\u2084", "h2so4"),
        ("as was said\u00b9", "said"),
    ],
)
def test_names_are_found_whole_and_in_parts(text: str, query: str) -> None:
    assert finds(text, query), (lexemes(text), query_words(query))


@pytest.mark.parametrize(
    ("text", "query"),
    [
        ("我们公司的数据库密码每九十天更换一次，由运维团队负责。", "密码"),
        ("東京オフィスの会議室予約は総務部が管理しています。", "会議室"),
        ("東京オフィスの会議室予約は総務部が管理しています。", "ｵﾌｨｽ"),
        ("猫が好き", "猫"),
        ("東京", "京"),
        ("서울 사무실의 출입 카드는 인사팀에서 발급합니다.", "카드"),
        (unicodedata.normalize("NFD", "서울 사무실의 출입 카드"), "카드"),
        ("พนักงานต้องส่งใบเบิกค่าเดินทางภายในสิ้นเดือน", "ค่าเดินทาง"),
        ("ພະນັກງານຕ້ອງສົ່ງໃບລາຍງານ", "ໃບລາຍງານ"),
        ("ខ្ញុំចង់ទៅភ្នំពេញ", "ភ្នំពេញ"),
        ("ကျွန်တော် ရန်ကုန်မှာ နေတယ်", "ရန်ကုန်"),
        ("我用docker部署了watchdog服务", "watchdog"),
        ("Die Datenbankreplikation läuft jede Nacht", "Replikation"),
        ("Die Datenbankreplikation läuft jede Nacht", "Datenbank"),
        ("Vorstandssitzung am Montag", "Sitzung"),
        ("Die Häuser stehen leer und wir sehen die Flugzeugübung", "Übung"),
        ("Die Häuser stehen leer", "Haus"),
        ("Les serveurs sont redémarrés", "serveur"),
        ("Los servidores fueron reiniciados", "servidor"),
        ("книги лежат на столе", "книга"),
        ("ёлка", "елка"),
        ("كِتَابٌ", "كتاب"),
        ("हिन्दी में किताबें", "किताब"),
        ("वह ख़रीद मंज़ूर है", "खरीद"),
        ("मूँगफली का तेल", "मूंगफली"),
        ("नई प्रतियाँ", "प्रति"),
        ("İstanbul'da", "istanbul"),
        ("ΑΘΉΝΑ", "αθήνα"),
    ],
)
def test_words_of_any_language(text: str, query: str) -> None:
    assert finds(text, query), (lexemes(text), query_words(query))


def test_function_words_are_not_asked_for() -> None:
    assert query_words("what did they do to us")[0] == []
    asked = [dict(word.lexemes)["en"] for word in query_words("What did Caroline research?")[0]]
    assert asked == ["carolin", "research"]
    assert [dict(word.lexemes)["de"] for word in query_words("Wo ist der Schlüssel?")[0]] == ["schlussel|de"]


def test_a_text_keeps_the_words_that_another_language_leaves_out() -> None:
    """A text of a few words does not tell its language: "cat" is a function word in Romanian, "die" in German."""
    for text in ("cat dog bird", "cat cat cat fish", "die cast"):
        assert set(text.split()) <= lexemes(text)


def test_a_declared_language_counts() -> None:
    assert "haus|de" in lexemes("Häuser", "de")
    assert analyse("Häuser", "de").language == "de"
    assert analyse("Häuser", "tlh").language == "en"


def test_stems_of_two_languages_are_two_words() -> None:
    """ "News" is no "new" because French cuts its plural so."""
    assert not finds("the new car and the old one", "news")


def test_a_name_with_an_apostrophe_is_no_other_word() -> None:
    assert not finds("she'll be there", "shell")


def test_a_name_with_digits_is_of_no_language() -> None:
    """It is asked for once, and not by sixteen stems; a few characters of it, or digits alone, are not taken for its beginning."""
    assert query_words("gpt4o")[0][0] == QueryWord((("", "gpt4o"),))
    assert query_words("0a1b2c3")[0][0] == QueryWord((("", "0a1b2c3"),), prefix=True)
    assert query_words("4521000")[0] == [QueryWord((("", "4521000"),))]
    assert "mp3s" in lexemes("Häuser mp3s", "de")


def test_a_compound_is_divided_as_it_is_spelled() -> None:
    """Without its accents a word would be divided elsewhere."""
    assert lexemes("Übung", "de") <= lexemes("Brandschutzübung", "de")
    assert lexemes("möte", "sv") <= lexemes("trädgårdsmöte", "sv")


def test_a_compound_of_a_query_asks_for_its_parts_in_the_languages_that_write_so() -> None:
    asked = {lexeme for word in query_words("Datenbankverbindung")[0] for lexeme in word.lexemes}
    assert {("de", "datenbank|de"), ("de", "verbind|de")} <= asked
    assert {one for word in query_words("responsibilities")[0][1:] for one, _ in word.lexemes} <= {
        "de",
        "nl",
        "sv",
        "da",
        "no",
    }
    assert len(query_words("what are the responsibilities of those who sign")[0]) == 2  # English, without doubt


def test_what_is_too_much_is_cut_and_said(monkeypatch: pytest.MonkeyPatch) -> None:
    letters = "abcdefghijklmnopqrst"
    words, whole = query_words(" ".join(f"word{one}{other}" for one in letters for other in letters))
    assert len(words) > 200
    assert not whole
    assert query_words("aardvark")[1]
    monkeypatch.setattr(analyser, "MAX_BYTES", 10_000)
    made = analyse(" ".join(f"{n:06}abcdefghij" for n in range(1_000)))
    assert not made.complete
    assert 5_000 < len(made.tsvector) < 10_000


def test_nothing_of_a_long_text_without_spaces_is_lost() -> None:
    """Thai and Chinese have whole paragraphs in one run, and a list of paths may be one name."""
    for before, word in (
        ("\u0e01\u0e32\u0e23\u0e17\u0e33\u0e07\u0e32\u0e19" * 1_000, "\u0e44\u0e1f\u0e1f\u0e49\u0e32"),
        ("\u6570\u636e" * 3_000, "\u5bc6\u7801"),
        ("some/path/" * 500, "zanzibar"),
    ):
        assert not finds(before, word)
        assert finds(before + word, word)


def test_positions_are_those_that_a_tsvector_keeps() -> None:
    assert analyse("word " * 20_000).tsvector.count(",") == 254
    assert max(int(n) for n in re.findall(r"\d+", analyse("x " * 20_000 + "end").tsvector.split("'end':")[1])) == 16_383


LETTERS = st.text(st.characters(categories=["Ll", "Lu", "Lo", "Nd"]), min_size=1, max_size=12)


@given(st.lists(LETTERS, min_size=1, max_size=6), st.sampled_from(["NFC", "NFD", "NFKC", "NFKD"]))
def test_every_word_of_a_text_finds_it_whatever_its_form(words: list[str], form: str) -> None:
    """In another Unicode form, in capitals and beside other signs; whichever language the text was taken for."""
    text = " ".join(words)
    for word in words:
        if lexemes(word) & lexemes(text):  # else it is a function word, which is nowhere
            for other in (
                word,
                unicodedata.normalize(form, word),
                f"\u201c{word}\u2014",
                unicodedata.normalize(form, text),
            ):
                assert finds(text, other) or not query_words(other)[0], (word, other)


@given(st.text(max_size=300))
def test_any_text_becomes_words(text: str) -> None:
    analyse(text)
    query_words(text)
