"""The keyword ranking on real rows: BM25 as the textbook has it, kept right by nothing but the rows, silent about what is hidden."""

from __future__ import annotations

import dataclasses
import math
import uuid
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from memory_layer.analyser import LANGUAGES
from memory_layer.errors import DimensionMismatch, VectorStoreUnavailable
from memory_layer.filters import parse
from memory_layer.model import SCOPES
from memory_layer.service import keywords
from memory_layer.service.actions.outbox import EmbeddingSpace
from memory_layer.service.indexing import work_once
from memory_layer.service.installation import Installation
from memory_layer.service.keywords import rank
from memory_layer.service.search import SearchRequest, search
from memory_layer.stores.protocols import IndexHit
from tests.support.service import caller, create, delete, patch, running_memory, unit

Database = Callable[[str], str]
SPACE = "kernel-memory"
K1, B = 0.645, 0.25
NO_PII = frozenset(SCOPES) - {"read:pii"}


@pytest.fixture
async def memory(database: Database, tmp_path: Path) -> AsyncIterator[Installation]:
    async with running_memory(database("memory_app"), tmp_path) as opened:
        yield opened


async def write(memory: Installation, *texts: str, **facts: Any) -> list[uuid.UUID]:
    ids = [await create(memory, content=text, **facts) for text in texts]
    await settle(memory)
    return ids


async def settle(memory: Installation) -> None:
    while await work_once(memory):
        pass


async def ranked(memory: Installation, query: str, namespace: str = SPACE, **who: Any) -> list[IndexHit]:
    return await rank(memory, caller(**who), namespace, query).page(1000, 0)


async def scores(memory: Installation, query: str, namespace: str = SPACE, **who: Any) -> dict[uuid.UUID, float]:
    return {candidate.node_id: candidate.score for candidate in await ranked(memory, query, namespace, **who)}


def bm25(query: list[str], texts: list[str]) -> dict[int, float]:
    """Scores of the texts that hold a word of the query, as a share of the best conceivable score.

    Words are told by spaces and are their own stems; the length of a text is the number of its different words, compared with
    the mean of those that hold a word of the query.
    """
    words = [text.split() for text in texts]
    holders = {word: sum(word in text for text in words) for word in query}
    rarity = {word: math.log(1 + (len(texts) - n + 0.5) / (n + 0.5)) for word, n in holders.items() if n}
    found = {i: text for i, text in enumerate(words) if any(word in text for word in query)}
    mean = sum(len(set(text)) for text in found.values()) / max(1, len(found))
    return {
        i: sum(
            weight * text.count(word) / (text.count(word) + K1 * (1 - B + B * len(set(text)) / mean))
            for word, weight in rarity.items()
        )
        / sum(rarity.values())
        for i, text in found.items()
    }


TEXTS = [
    "cat dog bird",
    "cat cat cat fish",
    "dog",
    "dog dog horn plum lamp desk",
    "dog bird " + "plum lamp desk horn coal salt milk corn",
    "fish",
    "dog bird bird",
    "lamp",
]


@pytest.mark.parametrize("query", ["cat", "dog", "cat dog", "bird fish dog", "dog dog dog", "fish nothing", "horn cat"])
async def test_it_is_bm25(memory: Installation, query: str) -> None:
    ids = await write(memory, *TEXTS)
    expected = bm25(sorted(set(query.split())), TEXTS)
    found = await ranked(memory, query)
    # ts_rank's curve and BM25's are the same within a hundredth.
    assert {c.node_id: c.score for c in found} == pytest.approx({ids[i]: s for i, s in expected.items()}, abs=0.01)
    assert found == sorted(found, key=lambda c: (-c.score, c.node_id))
    assert all(0 < c.score < 1 for c in found)


async def test_a_rare_word_beats_many_common_ones(memory: Installation) -> None:
    ids = await write(memory, *["meeting notes budget plan"] * 20, "the zebra escaped")
    found = await ranked(memory, "meeting notes about the zebra")
    assert found[0].node_id == ids[-1]
    assert len(found) == 21


async def test_it_follows_the_rows(memory: Installation) -> None:
    """Updates, deletes and texts of others leave no trace in anybody's statistics."""
    kept = await write(memory, "cat dog", "dog", "bird")
    before = await scores(memory, "cat dog")
    await write(memory, "cat", "cat dog", "cat", tenant="bob")
    await write(memory, "cat", "cat dog", "cat", namespace="elsewhere")
    assert await scores(memory, "cat dog") == before
    more = await write(memory, "cat", "cat cat", "salt")
    assert (await scores(memory, "cat dog"))[kept[0]] != before[kept[0]]
    await patch(memory, more[0], content="dog bird")
    await patch(memory, more[0], content=None)
    for node in more[1:]:
        await delete(memory, node)
    await settle(memory)
    assert await scores(memory, "cat dog") == before


async def test_hidden_texts_are_not_counted(memory: Installation) -> None:
    """What a reader may not see changes no score that they get, whatever it says."""
    await write(memory, "cat dog", "dog bird", "bird")
    secret = await create(memory, content="salt milk", pii_flags={"containsPii": True})
    half = await create(memory, content="milk", pii_flags={"containsPii": True, "paths": ["metadata.x", "content"]})
    await settle(memory)
    query = "cat dog bird"
    before = await scores(memory, query, scopes=NO_PII)
    everything = await scores(memory, query)
    for node in (secret, half):
        await patch(memory, node, content="cat cat dog")
    await settle(memory)
    assert await scores(memory, query, scopes=NO_PII) == before
    assert {secret, half} & before.keys() == set()
    assert await scores(memory, query) != everything
    # Flags that leave the text open leave it found and counted.
    shown = await create(memory, content="cat", pii_flags={"containsPii": True, "paths": ["metadata.x"]})
    await settle(memory)
    assert shown in await scores(memory, query, scopes=NO_PII)


@pytest.mark.parametrize(
    ("text", "query"),
    [
        ("Die Straße nach Köln ist gesperrt", "Köln Straße"),
        ("Réunion à l'école demain", "école"),
        ("встреча в понедельник", "понедельник"),
        ("see https://example.org/a?b=c&d='e' and C:\\temp\\x.txt", "https://example.org/a?b=c&d='e' C:\\temp\\x.txt"),
        ("state-of-the-art café", "state-of-the-art"),
        ("mail to o'neil@example.org, 3.14 or -5e7", "o'neil@example.org -5e7"),
        ("東京 で 会議", "会議"),
    ],
)
async def test_any_language_and_any_character(memory: Installation, text: str, query: str) -> None:
    ids = await write(memory, text, "nothing of the kind")
    assert [c.node_id for c in await ranked(memory, query)] == ids[:1]


async def test_the_work_is_bounded(memory: Installation, monkeypatch: pytest.MonkeyPatch) -> None:
    """Too common a word is not followed beside a rarer one; alone it is followed into the newest texts. The answer says so."""
    ids = await write(memory, *["dog"] * 6, "cat dog", "cat")
    monkeypatch.setattr(keywords, "MAX_TEXTS", 4)
    both = rank(memory, caller(), SPACE, "cat dog")
    assert {c.node_id for c in await both.page(10, 0)} == set(ids[6:])
    assert not both.complete
    alone = rank(memory, caller(), SPACE, "dog")
    assert {c.node_id for c in await alone.page(10, 0)} == set(ids[3:7])
    assert not alone.complete
    rare = rank(memory, caller(), SPACE, "cat")
    assert {c.node_id for c in await rare.page(10, 0)} == set(ids[6:])
    assert rare.complete
    monkeypatch.setattr("memory_layer.analyser.MAX_QUERY_WORDS", len(LANGUAGES))
    cut = rank(memory, caller(), SPACE, "cat dog")
    assert {c.node_id for c in await cut.page(10, 0)} == set(ids[6:])
    assert not cut.complete


@pytest.mark.parametrize("mode", ["keyword", "hybrid"])
async def test_a_filter_is_met_however_far_down(
    memory: Installation, monkeypatch: pytest.MonkeyPatch, mode: Any
) -> None:
    monkeypatch.setattr(keywords, "_FIRST", 2)
    monkeypatch.setattr("memory_layer.service.search._PAGE", 1)
    await write(memory, *["cat dog"] * 9)
    far = await write(memory, "dog", "dog salt", metadata={"kind": "far"})
    where = parse({"metadata.kind": "far"})
    answer = await search(memory, caller(), SearchRequest("cat dog", None, 2, where, SPACE, None, mode))
    assert [hit["memoryNodeId"] for hit in answer["results"]] == [str(node) for node in far]
    assert answer["exact"]


async def test_words_answer_when_the_index_is_down(memory: Installation, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = await write(memory, "cat dog", "cat", embedding=unit(1, 0), space=EmbeddingSpace("pgvector", "test-model", 2))

    async def down(*_: Any) -> None:
        raise VectorStoreUnavailable("the index does not answer")

    request = SearchRequest("cat dog", np.array([1, 0], np.float32), 2, None, SPACE, None, "hybrid")
    whole = await search(memory, caller(), request)
    assert not whole["degraded"]
    assert [sorted(hit["scores"]) for hit in whole["results"]] == [["keyword", "semantic"]] * 2
    monkeypatch.setattr(memory.vectors, "search", down)
    monkeypatch.setattr(memory.vectors, "search_joined", down)
    answer = await search(memory, caller(), request)
    assert answer["degraded"]
    assert [hit["memoryNodeId"] for hit in answer["results"]] == [str(node) for node in ids]
    assert [list(hit["scores"]) for hit in answer["results"]] == [["keyword"]] * 2
    for change in ({"mode": "semantic"}, {"vector": np.array([1, 0, 0], np.float32)}):
        with pytest.raises((VectorStoreUnavailable, DimensionMismatch)):
            await search(memory, caller(), dataclasses.replace(request, **change))
