"""A file as a source of passages, and the ids under which its passages are stored.

A source is known by its namespace and its path: that of the folder that was named and, within it, that of the file. Its passages have
numbers (slots), which say nothing of their place: a passage keeps its slot while its neighbours come and go. Both together give a
passage its ``embeddingId``, so the passages of a source are found by their ids alone, however much else is stored.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

SOURCE: Final = ""  # a passage's thread is its source
LONGEST_THREAD: Final = 512  # characters


@dataclass(frozen=True, slots=True)
class Source:
    """A file to read. ``name`` is its path in identities; ``named`` when the command line names this very file."""

    path: Path
    name: str
    named: bool


@dataclass(frozen=True, slots=True)
class Passage:
    """What becomes one node.

    ``where``: members of ``metadata.source`` other than path and line. ``fields``: names of the metadata that tell this passage from another
    of the same text, as the fields of a record do; what a document says about its passages (headings, front matter) does not. ``thread``: what
    it is a part of, the source itself unless it says another; None for no thread. ``by_time``: its place there is its time, as other sources
    have parts of the thread too.
    """

    text: str | None
    line: int
    metadata: dict[str, Any] = field(default_factory=dict, hash=False)
    where: dict[str, Any] = field(default_factory=dict, hash=False)
    fields: tuple[str, ...] = ()
    occurred_at: str | None = None
    thread: str | None = SOURCE
    by_time: bool = False


@dataclass(frozen=True, slots=True)
class Bad:
    """What cannot become a node, and why. ``line`` 0: the file as a whole."""

    name: str
    line: int
    problem: str


def slot_id(namespace: str | None, name: str, slot: int) -> str:
    """``ingest:source:`` and the SHA-256 of the identity as a JSON array."""
    return "ingest:source:" + _sha256([namespace, name, slot])


def earlier_id(namespace: str | None, name: str, line: int, text: str) -> str:
    """The id that the passage which begins on this line had while each passage stood alone."""
    return "ingest:" + _sha256([namespace, name, line, text])


def thread_of(name: str, passage: Passage) -> str | None:
    """The thread of a passage of the source of that name; a name that is too long for one goes by its hash."""
    thread = name if passage.thread == SOURCE else passage.thread
    return thread if thread is None or len(thread) <= LONGEST_THREAD else "sha256:" + _sha256([thread])


def key_of(text: str | None, metadata: dict[str, Any], fields: tuple[str, ...]) -> bytes:
    """What makes two passages the same: the text and, of these fields, the values. 16 bytes."""
    identity = [text, {name: metadata[name] for name in fields if name in metadata}]
    # A lone surrogate is written as an escape, so anything that JSON can hold has a key.
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode("ascii")).digest()[:16]


def _sha256(identity: list[str | int | None]) -> str:
    return hashlib.sha256(json.dumps(identity, separators=(",", ":")).encode("ascii")).hexdigest()
