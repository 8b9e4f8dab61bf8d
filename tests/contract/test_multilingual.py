"""multilingual-e5-small with its real weights: a question in one language finds the note in another.

The questions are those of `bench languages`: the same twenty facts in eight languages, each among forty other notes of its language.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from memory_layer.stores.embedders import local, open_embedder
from memory_layer.stores.protocols import Embedder

pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(
        local.E5.folder is None, reason=f"the weights of {local.E5.name} are not installed: {local.E5.hint}"
    ),
]

QUESTIONS = Path(__file__).resolve().parents[2] / "bench" / "questions"


@pytest.fixture(scope="module")
def model() -> Iterator[Embedder]:
    opened = open_embedder("local", "multilingual-e5-small", 384, None, None)
    assert opened is not None
    yield opened
    asyncio.run(opened.close())


def read(language: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((QUESTIONS / f"{language}.json").read_text("utf-8"))
    return found


async def embedded(model: Embedder, texts: list[str], *, query: bool = False) -> NDArray[np.float32]:
    made = await model.embed(texts, query=query)
    assert set(made.read) == {"whole"}
    return made.vectors


@pytest.mark.parametrize("language", ["th", "zh", "ja", "ar", "hi", "ru", "de"])
async def test_a_question_finds_the_note_in_another_language(model: Embedder, language: str) -> None:
    english, other = read("en"), read(language)
    for asked, answered in ((english, other), (other, english)):
        notes = await embedded(model, answered["notes"] + answered["distractors"])
        questions = await embedded(model, [one["question"] for one in asked["questions"]], query=True)
        first = np.argsort(-(questions @ notes.T), axis=1)[:, :10]
        found = sum(one["note"] in places for one, places in zip(asked["questions"], first.tolist(), strict=True))
        assert found >= 16, f"{found} of {len(first)}"


async def test_a_query_and_a_passage_begin_as_the_model_was_trained(model: Embedder) -> None:
    """Their words are tokens of every window, so the same text has two vectors."""
    text = ["The spare key lies under the blue flowerpot."]
    query, passage = await embedded(model, text, query=True), await embedded(model, text)
    assert 0.8 < float(query[0] @ passage[0]) < 0.999


async def test_eight_bits_keep_what_the_four_bits_of_the_package_say(model: Embedder) -> None:
    exact = local.LocalEmbedder(local.E5, in_numpy=True)
    texts = [read(language)["notes"][0] for language in ("en", "th", "zh", "ar")]
    assert ((await embedded(model, texts)) * (await embedded(exact, texts))).sum(axis=1).min() > 0.995
    await exact.close()


@pytest.mark.parametrize(
    ("text", "read"), [("", "none"), (" \n", "none"), ("แมวของฉันชื่อโม", "whole"), ("word " * 9000, "part")]
)
async def test_what_was_read_is_said(model: Embedder, text: str, read: str) -> None:
    assert list((await model.embed([text])).read) == [read]
