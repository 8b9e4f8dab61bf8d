"""What the server has of sources: looked up by ids, which it has an index of, a hundred at a time."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from memory_layer.documents.passages import slot_id
from memory_layer.documents.plan import Stored

if TYPE_CHECKING:
    from memory_layer.client import AsyncMemoryClient

PAGE: Final = 100  # nodes that one answer has at the most
_LOOKUPS: Final = 4  # at once
_MOST: Final = 10_000_000  # slots of a source: anybody who may write can have written the number
_HIDDEN: Final = "[redacted]"


@dataclass(frozen=True, slots=True)
class Head:
    """A source as it was last written: the node in its first slot, whose metadata say this of the whole.

    ``sha256``: of the file that all passages were made of; None while they are written, and where not all could be. ``is_touched``: somebody
    else changed the node since then, or a hold kept it from being changed, so what it says may be of an earlier time.
    """

    node: Stored
    name: str
    sha256: str | None
    reader: str | None
    slots: int
    passages: int
    is_touched: bool
    comes_from: str | None  # the path from which its passages are still being taken

    @property
    def is_open(self) -> bool:
        return self.sha256 is None or self.is_touched


class Unreadable(Exception):
    """The metadata of a passage are hidden from this token."""


def stored(node: Mapping[str, Any], slot: int | None) -> Stored:
    metadata = node["metadata"]
    if metadata == _HIDDEN or (isinstance(metadata, dict) and metadata.get("source") == _HIDDEN):
        raise Unreadable
    return Stored(
        id=node["memoryNodeId"],
        version=node["version"],
        embedding_id=node.get("embeddingId") or "",
        slot=slot,
        held=bool(node.get("legalHold")),
        text=node.get("content"),
        metadata=metadata,
        occurred_at=node.get("occurredAt"),
        flags=node.get("piiFlags") or {},
        thread=node.get("thread"),
        position=node.get("position"),
    )


def head(node: Mapping[str, Any]) -> Head | None:
    """None for a node that is a passage, but not of a whole source."""
    one = stored(node, 0)
    said = one.source
    slots = said.get("slots")
    if not isinstance(slots, int) or not 0 <= slots <= _MOST or not isinstance(said.get("path"), str):
        return None
    return Head(
        node=one,
        name=said["path"],
        sha256=_text(said.get("sha256")),
        reader=_text(said.get("reader")),
        slots=slots,
        passages=said["passages"] if isinstance(said.get("passages"), int) else 0,
        is_touched=said.get("version") != one.version,
        comes_from=_text(said.get("from")),
    )


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None


async def by_ids(memory: AsyncMemoryClient, ids: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Live nodes by their ``embeddingId``."""
    wanted = list(ids)
    found: dict[str, dict[str, Any]] = {}
    gate = asyncio.Semaphore(_LOOKUPS)

    async def look(some: Sequence[str]) -> None:
        async with gate:
            async for node in memory.list({"embeddingId": {"$in": list(some)}}, page_size=PAGE):
                found[node["embeddingId"]] = node

    await asyncio.gather(*(look(wanted[n : n + PAGE]) for n in range(0, len(wanted), PAGE)))
    return found


async def passages_of(
    memory: AsyncMemoryClient, namespace: str | None, name: str, slots: int, *, beyond: bool
) -> list[Stored]:
    """The stored passages of a source, by slot. ``beyond``: also those above ``slots``, until a hundred in a row are free."""
    found: list[Stored] = []
    start = 0
    while start < slots or beyond:
        numbers = range(start, max(start, min(start + 10 * PAGE, slots)) if start < slots else start + PAGE)
        ids = {slot_id(namespace, name, slot): slot for slot in numbers}
        nodes = await by_ids(memory, ids)
        found += [stored(node, ids[embedding_id]) for embedding_id, node in nodes.items()]
        start = numbers.stop
        if start > slots and not nodes:
            break
    return sorted(found, key=lambda one: one.slot or 0)


async def recorded(memory: AsyncMemoryClient, namespace: str | None, folders: Sequence[str]) -> dict[str, Head]:
    """The sources that are recorded below these folders, by name. The server looks at all nodes for it, 10,000 a request."""
    where: dict[str, Any] = {"metadata.source.folders": {"$in": list(folders)}}
    if namespace is not None:
        where["namespace"] = namespace
    found: dict[str, Head] = {}
    async for node in memory.list(where, page_size=PAGE):
        try:
            one = head(node)
        except Unreadable:
            continue
        # Of another namespace, or a copy that somebody made by hand: its id tells.
        if one is not None and one.node.embedding_id == slot_id(namespace, one.name, 0):
            found[one.name] = one
    return found


async def earlier(memory: AsyncMemoryClient, namespace: str | None, names: Sequence[str]) -> dict[str, list[Stored]]:
    """Passages of these files from before sources were known as a whole, by name; they have no slots."""
    found: dict[str, list[Stored]] = {}
    for start in range(0, len(names), 1000):
        where: dict[str, Any] = {"metadata.source.path": {"$in": list(names[start : start + 1000])}}
        if namespace is not None:
            where["namespace"] = namespace
        async for node in memory.list(where, page_size=PAGE):
            ident = node.get("embeddingId") or ""
            if ident.startswith("ingest:") and not ident.startswith("ingest:source:"):
                one = stored(node, None)
                found.setdefault(str(one.source.get("path")), []).append(one)
    return found
