"""The keyword half of a search: BM25 over the texts of one namespace, computed in Postgres (``sql/queries/search.sql``)."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from memory_layer import aside
from memory_layer.analyser import QueryWord, query_words, quoted
from memory_layer.model import Caller
from memory_layer.service.installation import Installation
from memory_layer.sql import queries
from memory_layer.stores.protocols import IndexHit
from memory_layer.telemetry import metrics

MAX_SHORT = 64  # words of a query that are looked up one by one in each text
MAX_TEXTS = 5_000  # scored in one search, and counted for one word
_FIRST = 1_000  # read at first; a search that a filter leaves few of reads the rest

_SQL = queries("search")


@dataclass(slots=True)
class Ranking:
    """The hits of one query, best first, read as far as they are asked for. ``whole``: no word of the query was left out. ``words``: None
    until it is first read.

    ``complete``: every text with one of the words was scored. A query of common words alone in a large namespace scores the
    newest ``MAX_TEXTS`` of them.
    """

    installation: Installation
    caller: Caller
    namespace: str
    query: str
    found: list[IndexHit]
    words: Sequence[QueryWord] | None = None
    whole: bool = True
    complete: bool = True
    ended: bool = False

    async def page(self, limit: int, skip: int) -> list[IndexHit]:
        """Hits ``skip`` to ``skip + limit``."""
        if len(self.found) < skip + limit and not self.ended:
            size = _FIRST if not self.found and skip + limit <= _FIRST else MAX_TEXTS
            await self._read(size)
        return self.found[skip : skip + limit]

    async def _read(self, size: int) -> None:
        with metrics.search_seconds.labels("keyword").time():
            if self.words is None:
                # Each word is stemmed in every language.
                self.words, self.whole = await aside.run(20 * len(self.query), query_words, self.query)
            if not self.words:
                self.ended = True
                return
            facts = {
                "tenant": self.caller.tenant,
                "namespace": self.namespace,
                "all": "read:pii" in self.caller.scopes,
                "most": MAX_TEXTS,
                "limit": size,
                "beginnings": MAX_SHORT,
                **columns_of(self.words),
            }
            statement = "keyword" if len(self.words) <= MAX_SHORT else "keyword_long"
            (rows,) = await self.installation.postgres.fetch(self.caller.tenant, (_SQL[statement], facts))
        self.found = [IndexHit(row["node_id"], row["version"], row["score"]) for row in rows]
        self.complete = self.whole and all(row["complete"] for row in rows[:1])
        self.ended = len(rows) < size or size == MAX_TEXTS

    async def weights(self, nodes: Sequence[uuid.UUID]) -> list[Weight]:
        """What the words of the query weigh that some text of the namespace has, the heaviest first, and which of the nodes have them."""
        if not self.words:
            return []
        facts = {
            "tenant": self.caller.tenant,
            "namespace": self.namespace,
            "all": "read:pii" in self.caller.scopes,
            "most": MAX_TEXTS,
            "nodes": list(nodes),
            **columns_of(self.words),
        }
        (rows,) = await self.installation.postgres.fetch(self.caller.tenant, (_SQL["explain_words"], facts))
        best = sum(row["rarity"] for row in rows)
        return [
            Weight(self.words[row["number"]].lexemes[0][1], row["rarity"] / best, frozenset(row["nodes"]))
            for row in rows
        ]


class Weight(NamedTuple):
    """``word`` as it is looked up, without its ending; ``weight``: its share of the best score, 0..1."""

    word: str
    weight: float
    nodes: frozenset[uuid.UUID]


def rank(installation: Installation, caller: Caller, namespace: str, query: str) -> Ranking:
    """The texts of a namespace that hold some word of the query; nothing is read yet.

    Scores are in 0..1 and the same for every reader who may read the same texts: what is hidden from the caller is neither
    found nor counted.
    """
    return Ranking(installation, caller, namespace, query, [])


def columns_of(words: Sequence[QueryWord]) -> dict[str, list[Any]]:
    """The lexemes of a query as columns: the number of its word, its language, itself, and as a tsquery."""
    rows = [
        (number, language, lexeme, quoted(lexeme) + (":*" if word.prefix else ""))
        for number, word in enumerate(words)
        for language, lexeme in word.lexemes
    ]
    names = ("numbers", "languages", "lexemes", "words")
    return dict(zip(names, map(list, zip(*rows, strict=True)), strict=True))
