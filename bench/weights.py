"""The weights of hybrid ranking, chosen on all conversations but one and measured on that one.

The ranking is done again here in NumPy, over every turn of a conversation: with the product's own words (its statement, asked of its
database) and vectors, and its weights as one row of the grid. So what `python -m bench recall` finds over HTTP checks it.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import json
import tempfile
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product as combinations
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from psycopg.rows import dict_row

from bench.report import Skipped, Table
from bench.running import running
from memory_layer.analyser import query_words
from memory_layer.analyser.dates import named_times
from memory_layer.client import MemoryClient
from memory_layer.service import fusion
from memory_layer.service.keywords import MAX_TEXTS, columns_of
from memory_layer.service.search import FUSE_DEPTH
from memory_layer.sql import queries
from memory_layer.stores.embedders.local import LocalEmbedder
from tests.support.own_text import Corpus, find_corpus
from tests.support.product import Product

TOP = 10
BULK = 500  # turns in one request
BEST_WORDS = 64  # hits by words that are ranked: the product reads no fewer
Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


class Weights(NamedTuple):
    """As in ``service/fusion.py``."""

    meaning: float
    neighbours: tuple[float, float, float]
    leaning: float
    thread: float
    date: float


OURS = Weights(fusion.MEANING, fusion.NEIGHBOURS, fusion.LEANING, fusion.THREAD, fusion.DATE)
GRID = [
    Weights(*chosen)
    for chosen in combinations(
        (0.35, 0.45, 0.55), ((0.4, 0.25, 0.1), (0.6, 0.4, 0.2), (0.8, 0.5, 0.3)), (200, 280, 400, np.inf), (0.1, 0.2, 0.4), (0.0, 0.1, 0.2)
    )
]  # fmt: skip
ALONE = Weights(fusion.MEANING, (0.0, 0.0, 0.0), np.inf, 0.0, 0.0)


@dataclass(frozen=True, slots=True)
class Conversation:
    """Its turns in their order. ``sizes`` in characters; ``beside``: who stands 1, 2, 3 before and after each, -1: nobody."""

    rows: Ints
    sessions: Ints
    sizes: Floats
    beside: Ints
    times: list[dt.datetime]


@dataclass(frozen=True, slots=True)
class Asked:
    """A question: what meaning and words say of each turn of its conversation, which are of the time that it names, which answer it."""

    conversation: str
    cosines: Floats
    words: Floats
    named: NDArray[np.bool_]
    evidence: set[int]
    wanted: int  # that includes evidence which names no turn


def measure() -> Table:
    with tempfile.TemporaryDirectory(prefix="memory-layer-bench-") as place:
        corpus = find_corpus(Path(place))
        if corpus.recall is None:
            raise Skipped("the conversations of LoCoMo are not here: set MEMORY_SHARED_DATA")
        records = [json.loads(line) for line in corpus.path.read_text("utf-8").splitlines()]
        turns = asyncio.run(_embed([turn.content for turn in corpus.turns], query=False))
        questions = asyncio.run(_embed([question.text for question in corpus.questions], query=True))
    talks = _conversations(corpus, records)
    with running() as product:
        words = _words(product, corpus, turns)
    asked = _asked(corpus, talks, turns @ questions.T, words)
    timeless = OURS._replace(date=0.0)
    found = _shares(asked, talks, [*GRID, OURS, timeless, ALONE])
    of = np.array([one.conversation for one in asked])
    rows, held_out = [], []
    for name in talks:
        best = max(GRID, key=lambda weights: float(found[weights][of != name].mean()))
        held_out.append(found[best][of == name])
        mine = {kind: float(found[weights][of == name].mean()) for kind, weights in (("alone", ALONE), ("ours", OURS))}
        what = f"conversation {name}, {(of == name).sum()} questions: by the weights that are best on the others"
        figure = f"{held_out[-1].mean():.4f} (each turn by itself {mine['alone']:.4f}, the product's weights {mine['ours']:.4f})"
        rows.append((what, f"{figure}; {_spelled(best)}"))
    top = max(GRID, key=lambda weights: float(found[weights].mean()))
    rows += [
        ("**held out: mean of the five**", f"{np.mean([shares.mean() for shares in held_out]):.4f} (goal 0.75)"),
        ("held out: mean of all questions", f"{np.concatenate(held_out).mean():.4f}"),
        ("the product's weights, all questions", f"{found[OURS].mean():.4f}; {_spelled(OURS)}"),
        ("the same without the time of a turn", f"{found[timeless].mean():.4f}"),
        ("finding the times that a question names", _cost([question.text for question in corpus.questions])),
        ("the best of the grid, all in view", f"{found[top].mean():.4f}; {_spelled(top)}"),
    ]
    return Table(
        "weights",
        rows,
        f"Evidence recall@{TOP} of {len(asked)} questions; {len(GRID)} settings of weights; a session is a thread and its date the time of its turns. "
        "In NumPy, with the product's words and vectors",
    )


def _spelled(weights: Weights) -> str:
    return (
        f"meaning {weights.meaning}, neighbours {weights.neighbours[0]}, up to {weights.leaning:g} characters, thread {weights.thread}, "
        f"date {weights.date}"
    )


def _cost(texts: Sequence[str]) -> str:
    """Processor time, once the words are read."""
    now = dt.datetime.now(dt.UTC)
    began = time.process_time()
    named = sum(bool(named_times(text, now)) for text in texts)
    return f"{(time.process_time() - began) / len(texts) * 1e6:.0f} µs a question; {named} of {len(texts)} name one"


async def _embed(texts: Sequence[str], *, query: bool) -> NDArray[np.float32]:
    embedder = LocalEmbedder()
    try:
        parts = [(await embedder.embed(texts[at : at + 64], query=query)).vectors for at in range(0, len(texts), 64)]
    finally:
        await embedder.close()
    return np.concatenate(parts)


def _conversations(corpus: Corpus, records: Sequence[dict[str, str]]) -> dict[str, Conversation]:
    rows: dict[str, list[int]] = defaultdict(list)
    for row, turn in enumerate(corpus.turns):
        rows[turn.conversation].append(row)
    talks = {}
    for name, members in rows.items():
        sessions = np.unique([records[row]["session"] for row in members], return_inverse=True)[1]
        beside = np.full((len(members), 6), -1)
        for session in range(sessions.max() + 1):
            order = np.flatnonzero(sessions == session)
            for distance in (1, 2, 3):
                beside[order[distance:], distance - 1] = order[:-distance]
                beside[order[:-distance], distance + 2] = order[distance:]
        talks[name] = Conversation(
            np.array(members),
            sessions,
            np.array([len(corpus.turns[row].content) for row in members], float),
            beside,
            [_time(records[row]["date"]) for row in members],
        )
    return talks


def _time(text: str) -> dt.datetime:
    """Of LoCoMo's "1:56 pm on 8 May, 2023"."""
    return dt.datetime.strptime(text.replace(",", ""), "%I:%M %p on %d %B %Y").replace(tzinfo=dt.UTC)


def _words(product: Product, corpus: Corpus, vectors: NDArray[np.float32]) -> Floats:
    """What the product's words say of each turn, for each question: questions x turns."""
    size = vectors.shape[1]
    with MemoryClient(product.url, product.token) as memory:
        for at in range(0, len(corpus.turns), BULK):
            memory.create_many(
                {
                    "owner": "bench",
                    "content": corpus.turns[row].content,
                    "metadata": {"row": row},
                    "embedding": {"model": "bench", "dimension": size, "vector": vectors[row].tolist()},
                }
                for row in range(at, min(at + BULK, len(corpus.turns)))
            )
    scores = np.zeros((len(corpus.questions), len(corpus.turns)))
    with product.owner() as connection, connection.cursor(row_factory=dict_row) as cursor:
        cursor.execute("SELECT id, tenant, namespace, metadata ->> 'row' AS row FROM memory_nodes")
        nodes = cursor.fetchall()
        place = {node["id"]: int(node["row"]) for node in nodes}
        where = {
            "tenant": nodes[0]["tenant"],
            "namespace": nodes[0]["namespace"],
            "all": True,
            "most": MAX_TEXTS,
            "limit": MAX_TEXTS,
        }
        for number, question in enumerate(corpus.questions):
            if found := query_words(question.text)[0]:
                cursor.execute(queries("search")["keyword"], where | columns_of(found))
                for row in cursor.fetchall():
                    scores[number, place[row["node_id"]]] = row["score"]
    return scores


def _asked(corpus: Corpus, talks: dict[str, Conversation], cosines: NDArray[np.float32], words: Floats) -> list[Asked]:
    asked = []
    for number, question in enumerate(corpus.questions):
        if not question.evidence:
            continue
        talk = talks[question.conversation]
        place = {corpus.turns[row].id: at for at, row in enumerate(talk.rows)}
        # Asked when the conversation was over.
        times = named_times(question.text, max(talk.times))
        asked.append(
            Asked(
                question.conversation,
                cosines[talk.rows, number].astype(float),
                words[number, talk.rows],
                np.array([any(one.holds(at) for one in times) for at in talk.times]),
                {place[turn] for turn in question.evidence if turn in place},
                len(set(question.evidence)),
            )
        )
    return asked


def _shares(
    asked: Sequence[Asked], talks: dict[str, Conversation], weights: Sequence[Weights]
) -> dict[Weights, Floats]:
    """Of each question the share of its evidence among the first ten. Weights that differ in that of the date alone are ranked once."""
    found = {}
    for plain in dict.fromkeys(one._replace(date=0.0) for one in weights):
        totals = [rank(one, talks[one.conversation], plain) for one in asked]
        for date in {one.date for one in weights if one._replace(date=0.0) == plain}:
            firsts = [first(one, total, date) for one, total in zip(asked, totals, strict=True)]
            found[plain._replace(date=date)] = np.array(
                [len(one.evidence & set(top.tolist())) / one.wanted for one, top in zip(asked, firsts, strict=True)]
            )
    return found


def rank(one: Asked, talk: Conversation, weights: Weights) -> Floats:
    """What the product adds up for each turn, but for its date: decisions 0009, 0042 and 0048. -1: not found."""
    near = np.argsort(-one.cosines, kind="stable")[:FUSE_DEPTH]
    floor = one.cosines[near[-1]]
    said = np.argsort(-one.words, kind="stable")[:BEST_WORDS]
    known = np.zeros(len(one.cosines), bool)
    known[near] = known[said[one.words[said] > 0]] = True
    gain = np.where(
        known, weights.meaning * (np.maximum(one.cosines, floor) - floor) + (1 - weights.meaning) * one.words, 0.0
    )
    seeds = np.argsort(-gain, kind="stable")[: fusion.SEEDS]
    given = np.zeros(len(gain))
    if (best := gain[seeds[0]]) > 0:
        shares = gain[seeds] * np.sqrt(gain[seeds] / best)
        for column in range(6):
            others = talk.beside[seeds, column]
            np.maximum.at(given, others[others >= 0], weights.neighbours[column % 3] * shares[others >= 0])
    known |= given > 0
    total = gain + given * np.minimum(1.0, (weights.leaning / talk.sizes) ** 2)
    if weights.thread:
        means = np.array(
            [
                np.sort(total[(talk.sessions == s) & known])[-fusion.THREAD_BEST :].sum()
                for s in range(talk.sessions.max() + 1)
            ]
        )
        total += weights.thread * means[talk.sessions] / fusion.THREAD_BEST
    total[~known] = -1.0
    return total


def first(one: Asked, total: Floats, date: float) -> Ints:
    """The first ten turns, with what a turn gets whose time the question names."""
    boosted = np.argsort(-total, kind="stable")[: fusion.BOOSTED]
    total = total.copy()
    total[boosted] += date * one.named[boosted]
    return np.argsort(-total, kind="stable")[:TOP]
