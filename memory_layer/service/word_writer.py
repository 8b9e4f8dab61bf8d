"""The words of what was just committed, written into the text index at once: a text is found by its words long before it has a vector.

After each commit of this process its new texts are analysed and written, beside whatever the workers have in hand; tenths of a second
later at the most. What is lost here (a process that ends, a database that does not answer) a worker writes when it indexes the node.
"""

from __future__ import annotations

import asyncio
import uuid
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
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
LONG: Final = 64 * 1024  # characters of a text that others do not wait for: 2 MB take seconds
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


@dataclass(slots=True)
class _Waiting:
    """Texts whose words are to be written, and what is set when there are any."""

    texts: deque[_Text] = field(default_factory=deque)
    wake: asyncio.Event = field(default_factory=asyncio.Event)

    def batch(self) -> list[_Text]:
        nodes: list[_Text] = []
        size = 0
        while self.texts and len(nodes) < BATCH and size <= BATCH_CHARACTERS:
            nodes.append(self.texts.popleft())
            size += len(nodes[-1].content)
        return nodes


class WordWriter:
    """One per process that takes writes. ``run`` until cancelled."""

    def __init__(self, postgres: Postgres) -> None:
        self._postgres = postgres
        self._short, self._long = _Waiting(), _Waiting()

    def add(self, records: Iterable[object]) -> None:
        """Note the texts among the records of a committed batch."""
        texts = [
            _Text(one.tenant, one.id, one.version, one.namespace, one.content, one.language)
            for one in records
            if isinstance(one, Node) and one.content and one.deleted_at is None
        ]
        if len(self._short.texts) + len(self._long.texts) + len(texts) <= WAITING:
            for text in texts:
                waiting = self._long if len(text.content) > LONG else self._short
                waiting.texts.append(text)
                waiting.wake.set()

    async def run(self) -> None:
        await asyncio.gather(self._run(self._short), self._run(self._long))

    async def _run(self, waiting: _Waiting) -> None:
        while True:
            await waiting.wake.wait()
            waiting.wake.clear()
            while waiting.texts:
                await self._write(waiting.batch())

    async def _write(self, nodes: list[_Text]) -> None:
        try:
            spoken = await languages_of(self._postgres, [node.tenant for node in nodes], [node.id for node in nodes])
            declared = [node.language or spoken.get((node.tenant, node.id)) for node in nodes]
            words = await analysed([(node.content, said) for node, said in zip(nodes, declared, strict=True)])
            facts = {
                "tenants": [node.tenant for node in nodes],
                "nodes": [node.id for node in nodes],
                "versions": [node.version for node in nodes],
                "namespaces": [node.namespace for node in nodes],
                "languages": [one.language for one in words],
                "declared": declared,
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
