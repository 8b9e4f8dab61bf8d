"""What a claimed row becomes: decoded, normalised, with the fields and the words that the indexes see."""

from __future__ import annotations

import base64
import datetime as dt
import uuid
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from memory_layer.analyser import VERSION
from memory_layer.model import Node
from memory_layer.service.actions.outbox import LONG
from memory_layer.service.installation import Installation
from memory_layer.service.nodes import document
from memory_layer.service.word_writer import analysed
from memory_layer.sql import queries
from memory_layer.stores.postgres import ALL_TENANTS
from memory_layer.stores.protocols import Read, VectorEntry

EMBED_ROWS = 64  # texts that are embedded before what they became is written
EMBED_CHARACTERS = 16 * 1024, 64 * 1024  # of them, while the embedder is slow and while it is quick

_SQL = queries("indexing")
_TEXT = queries("text_index")


@dataclass(slots=True, eq=False)
class Job:
    """A claimed row with the node it belongs to."""

    tenant: str
    id: uuid.UUID
    node_id: uuid.UUID
    namespace: str
    model: str | None
    dimension: int | None
    status: str
    version: int
    attempts: int
    created_at: dt.datetime
    bulk: bool
    stored: str | None  # the vector in base64
    vector: NDArray[np.float32] | None = None
    node: Node | None = None
    embedded: bool = False
    read: Read | None = None  # how much of the text was embedded; none: the node is to have no vector
    worded: bool = False  # the text index holds its words
    language: str | None = None  # of its text, as the node or its namespace says

    @property
    def leaves(self) -> bool:
        """Whether the node is to be removed from the index."""
        return self.status == "deleting" or self.node is None or self.node.deleted_at is not None


async def read(installation: Installation, jobs: Sequence[Job]) -> None:
    """Give each job its node, where there still is one, and its vector."""
    facts = {"tenants": [job.tenant for job in jobs], "ids": [job.node_id for job in jobs]}
    about = facts | {"versions": [job.version for job in jobs], "analyser": VERSION}
    rows, there, spoken = await installation.postgres.fetch(
        ALL_TENANTS, (_SQL["claimed_nodes"], facts), (_SQL["worded"], about), (_TEXT["languages"], facts)
    )
    languages = {(row["tenant"], row["id"]): row["language"] for row in spoken}
    worded = {(row["tenant"], row["node_id"]) for row in there}
    nodes = {(row["tenant"], row["id"]): Node(**row) for row in rows}
    for job in jobs:
        job.node = nodes.get((job.tenant, job.node_id))
        job.language = (job.node and job.node.language) or languages.get((job.tenant, job.node_id))
        job.worded = not job.leaves and bool(job.node and job.node.content) and (job.tenant, job.node_id) in worded
        job.vector = None if job.stored is None else np.frombuffer(base64.b64decode(job.stored), "<f4")


def _characters(job: Job) -> int:
    return len((job.node.content if job.node else None) or "")


def in_turns(jobs: Sequence[Job]) -> deque[Job]:
    """In the order in which their texts are embedded: single writes before bulk loads, the tenants in turns, and of each the shortest
    first, so that a note which came with long texts does not wait for them."""
    taken: Counter[tuple[str, bool]] = Counter()
    turns = {}
    for job in sorted(jobs, key=_characters):
        taken[job.tenant, job.bulk] += 1
        turns[job] = (job.bulk, taken[job.tenant, job.bulk], _characters(job))
    return deque(sorted(jobs, key=turns.__getitem__))


def next_piece(waiting: deque[Job], characters: int) -> list[Job]:
    """Take from ``waiting``, which is not empty, what is embedded together: texts of up to so many characters, or a long one alone."""
    piece = [waiting.popleft()]
    characters -= _characters(piece[0])
    while waiting and len(piece) < EMBED_ROWS and _characters(waiting[0]) <= min(LONG, characters):
        characters -= _characters(waiting[0])
        piece.append(waiting.popleft())
    return piece


def encode(vector: NDArray[np.float32]) -> str:
    """A vector as its row stores it."""
    return base64.b64encode(vector.astype("<f4").tobytes()).decode("ascii")


def entries(jobs: Sequence[Job]) -> list[VectorEntry]:
    """Entries for the jobs that have a vector; those of one length are normalised as one matrix."""
    by_length: dict[int, list[tuple[Job, Node, NDArray[np.float32]]]] = {}
    for job in jobs:
        if job.vector is not None and job.node is not None:
            by_length.setdefault(job.vector.shape[0], []).append((job, job.node, job.vector))
    return [
        _entry(job.tenant, job.namespace, node, job.version, unit)
        for group in by_length.values()
        for (job, node, _), unit in zip(group, _units([vector for _, _, vector in group]), strict=True)
    ]


def entry(tenant: str, namespace: str, node: Node, version: int, vector: NDArray[np.float32]) -> VectorEntry:
    """The same for a node and a vector that no job brings."""
    return _entry(tenant, namespace, node, version, _units([vector])[0])


def bare_entry(tenant: str, namespace: str, node: Node) -> VectorEntry:
    """The entry of a node at its own version, without a vector: what filters are evaluated on."""
    return _entry(tenant, namespace, node, node.version, np.zeros(0, np.float32))


def namespaces(jobs: Sequence[Job]) -> list[str]:
    """Whose words they are: words belong to the node's namespace, whichever generation of its index the row is for."""
    return [job.node.namespace if job.node else job.namespace for job in jobs]


async def words(jobs: Sequence[Job]) -> dict[str, Any]:
    """The columns of the jobs' texts in the text index: language and terms. No language: words that are there stay, where there are no
    terms either; else there are to be none."""
    texts = [
        (job.node.content or "", job.language) if job.node is not None and not job.worded else ("", None)
        for job in jobs
    ]
    found = await analysed(texts)
    return {
        "namespaces": namespaces(jobs),
        "languages": [one.language if text else None for (text, _), one in zip(texts, found, strict=True)],
        "declared": [job.language for job in jobs],
        "terms": [None if job.worded else one.tsvector for job, one in zip(jobs, found, strict=True)],
        "analyser": VERSION,
    }


def keys(jobs: Sequence[Job]) -> dict[str, Any]:
    """The columns by which a statement that writes results finds its rows."""
    return {
        "tenants": [job.tenant for job in jobs],
        "ids": [job.id for job in jobs],
        "versions": [job.version for job in jobs],
    }


def _units(vectors: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
    """Shape (n, dimension), of unit length; what has no direction becomes NaN, which every store refuses."""
    exact = np.array(vectors, np.float64)  # the squares of large and small float32 leave float32
    lengths = np.sqrt(np.einsum("ij,ij->i", exact, exact))
    with np.errstate(divide="ignore", invalid="ignore"):
        exact /= lengths[:, np.newaxis]
    return exact.astype(np.float32)


def _entry(tenant: str, namespace: str, node: Node, version: int, unit: NDArray[np.float32]) -> VectorEntry:
    fields = document(node)
    # Long text has no place beside the vector: a filter on it is decided on the row.
    del fields["content"]
    return VectorEntry(tenant, namespace, node.id, version, unit, fields)
