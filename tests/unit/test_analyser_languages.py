"""Each language finds its notes and each identifier its neighbours, by the analyser and a plain BM25; `bench/languages.py` asks a product."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from pathlib import Path

import pytest

from memory_layer.analyser import analyse, query_words

QUESTIONS = Path(__file__).resolve().parents[2] / "bench" / "questions"
LEXEME = re.compile(r"'((?:[^'\\]|''|\\\\)*)':([\d,]+)")


def ranked(texts: Sequence[str], query: str) -> list[int]:
    """The texts that hold a word of the query, best first."""
    made = [analyse(text) for text in texts]
    stored = [{found[1]: found[2].count(",") + 1 for found in LEXEME.finditer(one.tsvector)} for one in made]
    mean = sum(map(len, stored)) / len(stored)
    scores = dict.fromkeys(range(len(texts)), 0.0)
    for word in query_words(query)[0]:
        counts = [
            sum(
                count
                for lexeme, count in counted.items()
                if any(
                    of in ("", "en", one.language) and (lexeme.startswith(asked) if word.prefix else lexeme == asked)
                    for of, asked in word.lexemes
                )
            )
            for one, counted in zip(made, stored, strict=True)
        ]
        holding = sum(map(bool, counts))
        rarity = math.log(1 + (len(texts) - holding + 0.5) / (holding + 0.5))
        for number, count in enumerate(counts):
            scores[number] += rarity * count / (count + 0.645 * (0.75 + 0.25 * len(stored[number]) / mean))
    return sorted((number for number in scores if scores[number]), key=lambda number: -scores[number])


@pytest.mark.parametrize("language", ["en", "de", "ru", "zh", "ja", "th", "ar", "hi"])
def test_a_language_finds_its_notes(language: str) -> None:
    asked = json.loads((QUESTIONS / f"{language}.json").read_text("utf-8"))
    texts = asked["notes"] + asked["distractors"]
    missed = [one["question"] for one in asked["questions"] if one["note"] not in ranked(texts, one["question"])[:10]]
    assert len(asked["questions"]) == 20
    assert len(missed) <= 1, missed


def test_identifiers_are_found_by_their_neighbours() -> None:
    pairs = json.loads((QUESTIONS / "identifiers.json").read_text("utf-8"))
    texts = [pair["text"] for pair in pairs]
    missed = [pair for number, pair in enumerate(pairs) if number not in ranked(texts, pair["query"])]
    assert len(pairs) == 67
    assert len(missed) <= 2, missed
