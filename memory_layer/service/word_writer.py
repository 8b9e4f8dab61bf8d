"""The words of what was just committed, written into the text index at once: a text is found by its words long before it has a vector.

After each commit of this process its new texts are analysed and written, beside whatever the workers have in hand; tenths of a second
later at the most. What is lost here (a process that ends, a database that does not answer) a worker writes when it indexes the node.
"""

from __future__ import annotations

import asyncio
import uuid
from collections import deque
from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

from memory_layer import aside
from memory_layer.analyser import VERSION, Words, analyse
from memory_layer.errors import MemoryLayerError
from memory_layer.model import Node
from memory_layer.service.languages import languages_of
from memory_layer.sql import queries
from memory_layer.stores.postgres import ALL_TENANTS, Postgres
from memory_layer.telemetry.logs import get_logger

BATCH: Final = 128  # texts of one statement
BATCH_CHARACTERS: Final = 256 * 1024  # and what they come to
WAITING: Final = 20_000  # texts; of more than that the workers write the words

_SQL = queries("indexing")
log = get_logger("memory_layer.indexing")


class _Text(NamedTuple):
    """What is kept of a node until its words are written: its metadata, which may be large, are not."""

    tenant: str
    id: uuid.UUID
    version: int
    namespace: str
    content: str
    language: str | None


class WordWriter:
    """One per process that takes writes. ``run`` until cancelled."""

    def __init__(self, postgres: Postgres) -> None:
        self._postgres = postgres
        self._waiting: deque[_Text] = deque()
        self._wake = asyncio.Event()

    def add(self, records: Iterable[object]) -> None:
        """Note the texts among the records of a committed batch."""
        texts = [
            _Text(one.tenant, one.id, one.version, one.namespace, one.content, one.language)
            for one in records
            if isinstance(one, Node) and one.content and one.deleted_at is None
        ]
        if texts and len(self._waiting) + len(texts) <= WAITING:
            self._waiting.extend(texts)
            self._wake.set()

    async def run(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._waiting:
                await self._write(self._next())

    def _next(self) -> list[_Text]:
        nodes: list[_Text] = []
        size = 0
        while self._waiting and len(nodes) < BATCH and size <= BATCH_CHARACTERS:
            nodes.append(self._waiting.popleft())
            size += len(nodes[-1].content)
        return nodes

    async def _write(self, nodes: list[_Text]) -> None:
        try:
            spoken = await languages_of(self._postgres, [node.tenant for node in nodes], [node.id for node in nodes])
            words = await analysed(
                [(node.content, node.language or spoken.get((node.tenant, node.id))) for node in nodes]
            )
            facts = {
                "tenants": [node.tenant for node in nodes],
                "nodes": [node.id for node in nodes],
                "versions": [node.version for node in nodes],
                "namespaces": [node.namespace for node in nodes],
                "languages": [one.language for one in words],
                "terms": [one.tsvector for one in words],
                "analyser": VERSION,
            }
            await self._postgres.run(ALL_TENANTS, (_SQL["write_new_words"], facts))
        except MemoryLayerError as error:
            log.warning("the words of new texts wait for a worker", texts=len(nodes), error=error.message)
        except Exception:
            log.exception("the words of new texts wait for a worker", texts=len(nodes))


async def analysed(texts: Sequence[tuple[str, str | None]]) -> list[Words]:
    """The words of texts, each with its declared language."""
    # A text takes longer to analyse than to parse as JSON.
    return await aside.run(8 * sum(len(text) for text, _ in texts), _analysed, texts)


def _analysed(texts: Sequence[tuple[str, str | None]]) -> list[Words]:
    return [analyse(text, language) for text, language in texts]
