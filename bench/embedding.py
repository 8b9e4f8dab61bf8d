"""What the local models cost, in ONNX Runtime and in NumPy: time of a query, texts a second, processor time; and what eight bits change."""

from __future__ import annotations

import asyncio
import json
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bench.languages import LANGUAGES, QUESTIONS
from bench.report import Table
from memory_layer.stores.embedders import local
from memory_layer.stores.embedders.local import LocalEmbedder, LocalModel
from tests.support.own_text import find_corpus

ROUNDS = 3
QUERIES = 40
PASSAGES = 120

Vectors = NDArray[np.float32]


def measure() -> Table:
    asked = {name: json.loads((QUESTIONS / f"{name}.json").read_text("utf-8")) for name in LANGUAGES}
    with tempfile.TemporaryDirectory(prefix="memory-layer-bench-") as place:
        corpus = find_corpus(Path(place))
    passages = [turn.content for turn in corpus.turns[:PASSAGES]]
    queries = [question.text for question in corpus.questions[:QUERIES]]
    rows: list[tuple[str, str]] = []
    for model in local.MODELS.values():
        if model.folder is None:
            rows.append((model.name, f"not measured, for its weights are not installed: {model.hint}"))
            continue
        rows += asyncio.run(_model(model, passages, queries))
        rows += asyncio.run(_across(model, asked))
    return Table(
        "embedding",
        rows,
        f"{len(queries)} queries one after the other, {len(passages)} passages in one call ({corpus.name}, {_length(passages)} characters on "
        f"average), the median of {ROUNDS} rounds that alternate. Goal: a query within 5 ms, 300 passages/s on two idle cores. Processor "
        "time is that of this process. By meaning: 20 questions about 20 of 60 notes (`bench/questions`), how many find theirs among the first ten",
    )


def _length(texts: Sequence[str]) -> int:
    return sum(map(len, texts)) // len(texts)


async def _model(model: LocalModel, notes: list[str], queries: list[str]) -> list[tuple[str, str]]:
    embedders = {"ONNX Runtime, 8 bits": LocalEmbedder(model), "NumPy": LocalEmbedder(model, in_numpy=True)}
    took: dict[str, list[tuple[float, float, float, float]]] = {name: [] for name in embedders}
    vectors: dict[str, Vectors] = {}
    for embedder in embedders.values():
        await embedder.embed(notes[:8])
    for _ in range(ROUNDS):
        for name, embedder in embedders.items():
            each = []
            began = time.process_time()
            for query in queries:
                start = time.perf_counter()
                await embedder.embed([query], query=True)
                each.append(time.perf_counter() - start)
            query_cpu = (time.process_time() - began) / len(queries)
            began, start = time.process_time(), time.perf_counter()
            vectors[name] = (await embedder.embed(notes)).vectors
            seconds, passage_cpu = time.perf_counter() - start, (time.process_time() - began) / len(notes)
            took[name].append((statistics.median(each), len(notes) / seconds, query_cpu, passage_cpu))
    for embedder in embedders.values():
        await embedder.close()
    rows = []
    middle = {
        name: [statistics.median(column) for column in zip(*rounds, strict=True)] for name, rounds in took.items()
    }
    for name, (p50, rate, query_cpu, passage_cpu) in middle.items():
        rows += [
            (f"{model.name}, {name}: a query", f"p50 {p50 * 1e3:.1f} ms; {query_cpu * 1e3:.1f} ms of processor time"),
            (f"{model.name}, {name}: passages", f"{rate:.0f}/s; {passage_cpu * 1e3:.2f} ms of processor time each"),
        ]
    bits, exact = middle.values()
    rows.append(
        (
            f"{model.name}: processor time, NumPy to 8 bits",
            f"{exact[2] / bits[2]:.1f} a query, {exact[3] / bits[3]:.1f} a passage",
        )
    )
    cosines = (vectors["ONNX Runtime, 8 bits"] * vectors["NumPy"]).sum(axis=1)
    rows.append((f"{model.name}: cosine of both", f"mean {cosines.mean():.4f}, least {cosines.min():.4f}"))
    return rows


async def _across(model: LocalModel, asked: dict[str, dict[str, list[dict[str, int | str]]]]) -> list[tuple[str, str]]:
    """By meaning alone: the question of the note's own language, and the English one."""
    embedder = LocalEmbedder(model)
    try:
        rows = []
        for name, language in LANGUAGES.items():
            one = asked[name]
            notes = (await embedder.embed([*map(str, one["notes"]), *map(str, one["distractors"])])).vectors
            found = []
            for questions in (one["questions"], asked["en"]["questions"]):
                made = await embedder.embed([str(question["question"]) for question in questions], query=True)
                scores = made.vectors @ notes.T
                scores[scores == 0] = -1  # the one or the other has no vector, for the model cannot read it
                wanted = [scores[row, int(q["note"])] for row, q in enumerate(questions)]
                found.append(sum(score > -1 and (scores[row] > score).sum() < 10 for row, score in enumerate(wanted)))
            rows.append(
                (
                    f"{model.name}, {language} notes by meaning: asked in {language}; in English",
                    f"{found[0]}; {found[1]} of 20",
                )
            )
        return rows
    finally:
        await embedder.close()
