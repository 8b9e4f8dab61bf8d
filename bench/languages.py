"""Finding by words in eight languages, and names by what is almost them: questions of our own in a running product, in `mode=keyword`."""

from __future__ import annotations

import asyncio
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyphen

from bench.report import Table
from bench.running import running
from memory_layer import analyser
from memory_layer.client import MemoryClient
from memory_layer.stores.embedders.local import LocalEmbedder
from tests.support.product import Product

QUESTIONS = Path(__file__).with_name("questions")
LANGUAGES = {
    "en": "English",
    "de": "German",
    "ru": "Russian",
    "zh": "Chinese",
    "ja": "Japanese",
    "th": "Thai",
    "ar": "Arabic",
    "hi": "Hindi",
}
ROUNDS = 3
INDEXED_WITHIN = 60.0  # seconds


def measure() -> Table:
    asked = {language: _read(language) for language in LANGUAGES}
    texts = {language: one["notes"] + one["distractors"] for language, one in asked.items()}
    pairs = _read("identifiers")
    texts["identifiers"] = [pair["text"] for pair in pairs]
    rows = []
    with running() as product, MemoryClient(product.url, product.token) as memory:
        for namespace, notes in texts.items():
            memory.create_many(
                {"owner": "bench", "namespace": namespace, "content": note, "metadata": {"number": number}}
                for number, note in enumerate(notes)
            )
        _wait_for_words(product, sum(map(len, texts.values())))
        for language, name in LANGUAGES.items():
            places = [
                _place(memory, language, one["question"], one["note"], 10) for one in asked[language]["questions"]
            ]
            rows.append(
                (f"{name}: answered by one of the first ten", f"{_first(places, 10)}; first: {_first(places, 1)}")
            )
        places = [_place(memory, "identifiers", pair["query"], number, 100) for number, pair in enumerate(pairs)]
    rows.append(("identifiers: found by a neighbour", f"{_first(places, 100)}; first: {_first(places, 1)}"))
    passages = [note for language in LANGUAGES for note in texts[language]]
    rows += [*_costs("all languages", passages), *_costs("English", texts["en"])]
    return Table(
        "languages",
        rows,
        "20 questions a language about 20 of 60 notes; the goal is 19 among the first ten, and 65 of 67 identifiers found. Cost: "
        f"processor time of {len(passages)} notes, median of {ROUNDS}, from an analyser that has seen no word before; the goal is a factor of 20",
    )


def _read(name: str) -> Any:
    return json.loads((QUESTIONS / f"{name}.json").read_text("utf-8"))


def _wait_for_words(product: Product, texts: int) -> None:
    deadline = time.monotonic() + INDEXED_WITHIN
    with product.owner() as connection:
        while True:
            row = connection.execute("SELECT count(*) FROM memory_terms").fetchone()
            if row == (texts,):
                return
            assert time.monotonic() < deadline, row
            time.sleep(0.05)


def _place(memory: MemoryClient, namespace: str, query: str, wanted: int, most: int) -> int | None:
    """Where the wanted note stands among the hits, from 1; None where it does not."""
    found = memory.search(query, namespace=namespace, mode="keyword", top_k=most)["results"]
    numbers = [hit["metadata"]["number"] for hit in found]
    return numbers.index(wanted) + 1 if wanted in numbers else None


def _first(places: Sequence[int | None], most: int) -> str:
    return f"{sum(place is not None and place <= most for place in places)} of {len(places)}"


def _costs(name: str, passages: list[str]) -> list[tuple[str, str]]:
    for passage in passages:  # what is loaded on first use
        analyser.analyse(passage)
    analysing = _median(lambda: [analyser.analyse(passage) for passage in passages], _forget) / len(passages)
    embedding = asyncio.run(_embedding(passages)) / len(passages)
    return [
        (f"{name}: the analyser, a passage", f"{analysing * 1e6:.0f} µs"),
        (
            f"{name}: the local embedder, the same passages",
            f"{embedding * 1e3:.1f} ms a passage; {embedding / analysing:.0f} times as much",
        ),
    ]


async def _embedding(passages: list[str]) -> float:
    embedder = LocalEmbedder()
    try:
        await embedder.embed(passages[:1])
        seconds = []
        for _ in range(ROUNDS):
            began = time.process_time()
            await embedder.embed(passages)
            seconds.append(time.process_time() - began)
        return statistics.median(seconds)
    finally:
        await embedder.close()


def _median(work: Callable[[], object], before: Callable[[], None]) -> float:
    seconds = []
    for _ in range(ROUNDS):
        before()
        began = time.process_time()
        work()
        seconds.append(time.process_time() - began)
    return statistics.median(seconds)


def _forget() -> None:
    """The words that the analyser remembers, and those that its hyphenation does; not the patterns, which are loaded once."""
    for name in ("memory_layer.analyser", "memory_layer.analyser.characters", "memory_layer.analyser.stems"):
        for thing in vars(sys.modules[name]).values():
            if hasattr(thing, "cache_clear"):
                thing.cache_clear()
    for patterns in pyphen.hdcache.values():
        patterns.cache.clear()
