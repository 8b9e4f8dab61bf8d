"""Which times a question names, in several languages, and what is none."""

from __future__ import annotations

import datetime as dt

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("dateparser", reason="it belongs to the server's libraries: make install")

from memory_layer.analyser.dates import named_times

NOW = dt.datetime(2026, 11, 29, 12, tzinfo=dt.UTC)  # a Sunday
NAMED = {
    "What did Caroline do in May 2023?": ("2023-05-01", "2023-06-01"),
    "what happened last week": ("2026-11-16", "2026-11-23"),
    "the meeting on 7 May": ("2026-05-07", "2026-05-08"),
    "the party on 7 December": ("2025-12-07", "2025-12-08"),
    "what May 7, 2023 brought": ("2023-05-07", "2023-05-08"),
    "notes of 2023-05-07": ("2023-05-07", "2023-05-08"),
    "2023-05-07T10:00:00Z error": ("2023-05-07", "2023-05-08"),
    "7.5.2023": ("2023-05-07", "2023-05-08"),
    "5/7/2023": ("2023-05-07", "2023-05-08"),
    "May last year": ("2025-05-01", "2025-06-01"),
    "the day before yesterday": ("2026-11-27", "2026-11-28"),
    "two weeks ago": ("2026-11-09", "2026-11-16"),
    "a year ago": ("2025-01-01", "2026-01-01"),
    "in the last three weeks": ("2026-11-08", "2026-11-30"),
    "last Monday": ("2026-11-23", "2026-11-24"),
    "September report": ("2026-09-01", "2026-10-01"),
    "in 2023": ("2023-01-01", "2024-01-01"),
    "between March and June 2024": ("2024-03-01", "2024-07-01"),
    "March–June 2024": ("2024-03-01", "2024-07-01"),
    "from 3 May to 7 June 2021": ("2021-05-03", "2021-06-08"),
    "from November to February 2024": ("2023-11-01", "2024-03-01"),
    "from 31 January to 31 March": ("2026-01-31", "2026-04-01"),
    "2021-2023": ("2021-01-01", "2024-01-01"),
    "since March 2024": ("2024-03-01", None),
    "before 2023": (None, "2024-01-01"),
    "was war vor drei Tagen": ("2026-11-26", "2026-11-27"),
    "in der letzten Woche": ("2026-11-16", "2026-11-23"),
    "im Mai letzten Jahres": ("2025-05-01", "2025-06-01"),
    "März 2024 Rechnung": ("2024-03-01", "2024-04-01"),
    "zwischen März und Juni 2022": ("2022-03-01", "2022-07-01"),
    "vorgestern": ("2026-11-27", "2026-11-28"),
    "seit Montag": ("2026-11-23", None),
    "le 14 juillet 2022": ("2022-07-14", "2022-07-15"),
    "il y a trois jours": ("2026-11-26", "2026-11-27"),
    "la semana pasada": ("2026-11-16", "2026-11-23"),
    "7 de mayo de 2023": ("2023-05-07", "2023-05-08"),
    "la settimana scorsa": ("2026-11-16", "2026-11-23"),
    "vorige week": ("2026-11-16", "2026-11-23"),
    "ontem": ("2026-11-28", "2026-11-29"),
    "w maju 2023": ("2023-05-01", "2023-06-01"),
    "toukokuussa 2023": ("2023-05-01", "2023-06-01"),
    "что было в мае 2023": ("2023-05-01", "2023-06-01"),
    "на прошлой неделе": ("2026-11-16", "2026-11-23"),
    "5 дней назад": ("2026-11-24", "2026-11-25"),
    "между мартом и июнем 2022": ("2022-03-01", "2022-07-01"),
    "去年五月 我们 讨论": ("2025-05-01", "2025-06-01"),
    "2023年5月7日": ("2023-05-07", "2023-05-08"),
    "2023年11月": ("2023-11-01", "2023-12-01"),
    "三天前": ("2026-11-26", "2026-11-27"),
    "上个月的会议": ("2026-10-01", "2026-11-01"),
    "2020年到2022年": ("2020-01-01", "2023-01-01"),
    "2023年5月以来": ("2023-05-01", None),
    "先週の会議": ("2026-11-16", "2026-11-23"),
    "2023년 5월": ("2023-05-01", "2023-06-01"),
    "지난주 회의": ("2026-11-16", "2026-11-23"),
    "أمس": ("2026-11-28", "2026-11-29"),
    "मई 2023": ("2023-05-01", "2023-06-01"),
}
NONE = (
    "When did Melanie paint a sunrise?", "May I go?", "we may ask what step 7 may be", "how does march go on", "version 1.2.3",
    "the second floor", "OPS-2023 rollout", "port 2049", "error 404 at 10:23", "what did we decide about the sun on sat", "Mars landing",
    "mai bine", "", "???", "13/45/2023 x", "31.2.2023",
)  # fmt: skip


@pytest.mark.parametrize("text", NAMED)
def test_a_time_is_found(text: str) -> None:
    (span,) = named_times(text, NOW)
    bounds = tuple(at and at.isoformat()[:10] for at in (span.start, span.end))
    assert bounds == NAMED[text]
    assert span.text
    assert span.text in text


@pytest.mark.parametrize("text", NONE)
def test_what_is_no_time_names_none(text: str) -> None:
    assert named_times(text, NOW) == []


def test_times_count_in_utc() -> None:
    tokyo = dt.datetime(2026, 11, 30, 8, tzinfo=dt.timezone(dt.timedelta(hours=9)))  # 23:00 of the day before
    (span,) = named_times("yesterday", tokyo)
    assert span.start == dt.datetime(2026, 11, 28, tzinfo=dt.UTC)
    assert span.holds(dt.datetime(2026, 11, 28, tzinfo=dt.UTC))
    assert not span.holds(dt.datetime(2026, 11, 29, tzinfo=dt.UTC))


def test_several_are_named_in_their_order() -> None:
    found = named_times("what changed in May 2023 or on 7 June 2024?", NOW)
    assert [span.text for span in found] == ["May 2023", "7 June 2024"]


@settings(deadline=None, max_examples=200)
@given(
    st.lists(
        st.one_of(
            st.sampled_from(sorted(" ".join((*NAMED, *NONE)).split())),
            st.integers(0, 10**9).map(str),
            st.text(max_size=8),
        ),
        max_size=12,
    ).map(" ".join)
)
def test_whatever_is_asked_each_time_has_an_order_and_stands_in_the_text(text: str) -> None:
    for span in named_times(text, NOW):
        assert span.start is None or span.end is None or span.start < span.end


def test_a_range_that_ends_before_it_begins_is_two_times() -> None:
    assert [span.text for span in named_times("from 2024 to 2021", NOW)] == ["2024", "2021"]


def test_a_sign_that_stands_for_several_words_is_passed_over() -> None:
    assert len(named_times("\ufdfa in May 2023 \ufdfa", NOW)) == 1


def test_a_long_question_costs_no_more_than_its_beginning() -> None:
    assert named_times("x " * 9_000 + "in May 2023", NOW) == []
    assert len(named_times("May 7, 2023 " * 2_000, NOW)) < 100
