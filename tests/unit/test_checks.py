"""A check finds, makes and says what it did; what it may not make it leaves to a person."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from memory_layer.ops.checks import Check, Made, Survey, known, present
from memory_layer.ops.report import Finding


class Shelf:
    """What is looked at and made."""

    def __init__(self, **there: str) -> None:
        self.there: dict[str, str] = there
        self.puts = 0

    def put(self, name: str, value: str) -> None:
        self.puts += 1
        self.there[name] = value


def check(shelf: Shelf, **more: Any) -> Check[str | None]:
    """That there is a blue book."""

    async def make(found: str | None) -> Made[str | None]:
        shelf.put("book", "blue")
        return Made(shelf.there["book"], (f"a book for {found or 'nothing'}",))

    async def look() -> str | None:
        return shelf.there.get("book")

    return Check(
        **{
            "id": "shelf.book",
            "source": "1: There is a blue book.",
            "look": look,
            "fits": lambda found: found == "blue",
            "says": lambda found: f"The book is {found}.",
            "hint": "apply makes it.",
            "make": make,
        }
        | more
    )


async def state(shelf: Shelf, *, make: bool = False, **more: Any) -> tuple[str, list[str]]:
    survey = Survey(make)
    await survey.check(check(shelf, **more))
    (finding,) = survey.findings
    return str(finding.evidence.get("state", finding.status)), survey.made


async def test_a_plan_makes_nothing_and_apply_makes_what_is_missing_once() -> None:
    shelf = Shelf()
    assert await state(shelf) == ("missing", [])
    assert shelf.puts == 0
    assert await state(shelf, make=True) == ("pass", ["a book for nothing"])
    assert await state(shelf, make=True) == ("pass", [])
    assert shelf.puts == 1


async def test_what_only_a_person_may_change_is_drift_and_stays() -> None:
    shelf = Shelf(book="red")
    for unmakeable in ({"make": None}, {"makes": lambda found: found is None}):
        survey = Survey(make=True)
        await survey.check(check(shelf, **unmakeable))
        assert survey.findings[0].evidence["state"] == "drift"
    assert shelf.puts == 0


async def test_what_somebody_changed_is_told_apart_from_what_is_missing() -> None:
    assert await state(Shelf(book="red"), restores=True) == ("changed", [])
    assert await state(Shelf(), restores=True) == ("missing", [])
    assert await state(Shelf(book="red")) == ("missing", [])


async def test_what_was_made_and_does_not_show_is_unsupported() -> None:
    def forget(found: str | None) -> Made[str | None]:
        return Made(found, ("tried",))

    survey = Survey(make=True)
    await survey.check(check(Shelf(), make=forget))
    assert (survey.findings[0].evidence["state"], survey.made) == ("unsupported", ["tried"])


async def test_an_error_is_a_finding_where_the_check_says_so_and_else_is_raised() -> None:
    def fails() -> str | None:
        raise ValueError("the shelf is locked")

    def failed(error: Exception) -> Finding | None:
        return Finding("shelf.book", "error", "unavailable", str(error)) if isinstance(error, ValueError) else None

    survey = Survey()
    assert await survey.check(check(Shelf(), look=fails, failed=failed)) is None
    assert [(f.status, f.finding) for f in survey.findings] == [("unavailable", "the shelf is locked")]
    with pytest.raises(ValueError, match="locked"):
        await survey.check(check(Shelf(), look=fails))


async def test_a_finding_has_its_evidence_and_a_hint_only_when_it_fails() -> None:
    def evidence(found: str | None) -> Mapping[str, Any]:
        return {"colour": found}

    survey = Survey()
    await survey.check(check(Shelf(book="blue"), evidence=evidence))
    await survey.check(check(Shelf(book="red"), evidence=evidence, hint=lambda found: f"It was {found}."))
    right, wrong = survey.findings
    assert (right.hint, right.evidence) == ("", {"colour": "blue"})
    assert (wrong.hint, wrong.evidence) == ("It was red.", {"state": "missing", "colour": "red"})
    assert [finding.evidence["colour"] for finding in survey.repairable] == ["red"]


async def test_only_errors_make_a_survey_wrong() -> None:
    survey = Survey()
    await survey.check(known("a", True, "It is so."))
    await survey.check(known("b", False, "It is not so.", level="warning"))
    survey.note("c", "It may be so.")
    assert survey.right
    assert survey.repairable == []
    await survey.check(known("d", False, "It is not so."))
    assert not survey.right
    assert present(0)
    assert not present(None)
