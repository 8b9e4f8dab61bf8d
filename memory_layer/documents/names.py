"""Folders and files that were taken in under another name, as from another current folder, keep that name."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from itertools import islice
from typing import TYPE_CHECKING, Final

from memory_layer.documents import stored as lookup
from memory_layer.documents.folders import LeftOut, Root, find, inner_name
from memory_layer.documents.load import sha256_of
from memory_layer.documents.passages import Source, slot_id
from memory_layer.documents.stored import Head, Unreadable

if TYPE_CHECKING:
    from memory_layer.client import AsyncMemoryClient

_SAMPLE: Final = 16  # files by which a folder is recognised
_FILES: Final = 32  # files named themselves that are looked for under other names


async def as_recorded(memory: AsyncMemoryClient, namespace: str | None, roots: Sequence[Root]) -> list[Root]:
    """The roots by the names that they have in the record: the end of the path under which most of their files, as they are now, are
    recorded; else their own."""
    found = []
    files = 0
    for root in roots:
        files += not root.is_folder
        looked_for = root.is_folder or files <= _FILES
        found.append(replace(root, name=await _name(memory, namespace, root)) if looked_for else root)
    taken = [root.name for root in found]
    return [root if taken.count(now.name) > 1 else now for root, now in zip(roots, found, strict=True)]


async def _name(memory: AsyncMemoryClient, namespace: str | None, root: Root) -> str:
    sample = await asyncio.to_thread(lambda: list(islice(find([root], LeftOut()), _SAMPLE)))
    names = [root.name, *(name for name in root.suffixes() if name != root.name)]
    ids = {slot_id(namespace, _renamed(source, root, name), 0): (name, source) for name in names for source in sample}
    found = await lookup.by_ids(memory, ids)
    hits: dict[str, list[tuple[Head, Source]]] = {}
    for embedding_id, node in found.items():
        try:
            head = lookup.head(node)
        except Unreadable:
            continue
        if head is not None:
            name, source = ids[embedding_id]
            hits.setdefault(name, []).append((head, source))
    if root.name in hits:
        return root.name
    same = {name: await asyncio.to_thread(_same, pairs) for name, pairs in hits.items()}
    best = max(names, key=lambda name: same.get(name, 0))
    return best if 2 * same.get(best, 0) >= len(sample) > 0 else root.name


def _renamed(source: Source, root: Root, name: str) -> str:
    return inner_name(name, source.path.relative_to(root.path)) if root.is_folder else name


def _same(pairs: Sequence[tuple[Head, Source]]) -> int:
    return sum(head.sha256 is not None and head.sha256 == sha256_of(source) for head, source in pairs)
