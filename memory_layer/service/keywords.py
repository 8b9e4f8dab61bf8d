"""The keyword half of a search: BM25 over the texts of one namespace, computed in Postgres (``sql/queries/search.sql``)."""

from __future__ import annotations

from dataclasses import dataclass

from memory_layer.model import Caller
from memory_layer.service.installation import Installation
from memory_layer.sql import queries
from memory_layer.stores.protocols import IndexHit
from memory_layer.telemetry import metrics

MAX_WORDS = 64  # of a query; the first ones
MAX_TEXTS = 5_000  # scored in one search, and counted for one word
_FIRST = 1_000  # read at first; a search that a filter leaves few of reads the rest

_SQL = queries("search")


@dataclass(slots=True)
class Ranking:
    """The hits of one query, best first, read as far as they are asked for.

    ``complete``: every text with one of the words was scored. A query of common words alone in a large namespace scores the
    newest ``MAX_TEXTS`` of them.
    """

    installation: Installation
    caller: Caller
    namespace: str
    query: str
    found: list[IndexHit]
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
            (rows,) = await self.installation.postgres.fetch(
                self.caller.tenant,
                (
                    _SQL["keyword"],
                    {
                        "tenant": self.caller.tenant,
                        "namespace": self.namespace,
                        "query": self.query,
                        "all": "read:pii" in self.caller.scopes,
                        "words": MAX_WORDS,
                        "most": MAX_TEXTS,
                        "limit": size,
                    },
                ),
            )
        self.found = [IndexHit(row["node_id"], row["version"], row["score"]) for row in rows]
        self.complete = all(row["complete"] for row in rows[:1])
        self.ended = len(rows) < size or size == MAX_TEXTS


def rank(installation: Installation, caller: Caller, namespace: str, query: str) -> Ranking:
    """The texts of a namespace that hold some word of the query; nothing is read yet.

    Scores are in 0..1 and the same for every reader who may read the same texts: what is hidden from the caller is neither
    found nor counted.
    """
    return Ranking(installation, caller, namespace, query, [])
