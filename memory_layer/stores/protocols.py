"""The seams: each Protocol has at least two real implementations and one contract suite in ``tests/contract``."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from memory_layer.filters import Filter


@dataclass(frozen=True, slots=True)
class VectorEntry:
    """One vector as the index holds it; ``fields`` is what filters may be evaluated on there."""

    tenant: str
    namespace: str
    node_id: uuid.UUID
    version: int
    vector: NDArray[np.float32]  # shape (dimension,), unit length
    fields: dict[str, Any]


@dataclass(frozen=True, slots=True)
class VectorHit:
    """A candidate: never an answer until Postgres vouches for (node_id, version)."""

    node_id: uuid.UUID
    version: int
    score: float  # cosine similarity, -1..1


@dataclass(frozen=True, slots=True)
class VectorHits:
    """``exact``: every entry that could have matched was compared, none was passed over by an approximate index."""

    hits: list[VectorHit]
    exact: bool


@dataclass(frozen=True, slots=True)
class VectorRecord:
    """What the index holds of a node that was not removed; ``vector`` where it was asked for."""

    node_id: uuid.UUID
    version: int
    vector: NDArray[np.float32] | None = None


@dataclass(frozen=True, slots=True)
class VectorPage:
    """``cursor`` goes on after the last record, also from another connection; None: there are no more."""

    records: list[VectorRecord]
    cursor: str | None


@dataclass(frozen=True, slots=True)
class Capabilities:
    """Where vector stores may differ; everything else is the contract. The contract suite holds a store to what it declares."""

    mixed_dimensions: bool  # namespaces of different dimension side by side; else another one is a DimensionMismatch
    most_dimensions: int
    deepest: int | None  # limit + skip that a search can reach; None: no end
    batch: int  # entries that suit one upsert
    replicas: bool  # it keeps copies of its own, whose number can be set
    orders_writes: bool = (
        False  # of two processes that write a node at once the newer version wins, whichever comes last
    )


class VectorStore(Protocol):
    """An index that can be rebuilt from Postgres at any time."""

    @property
    def provider(self) -> str: ...

    @property
    def capabilities(self) -> Capabilities: ...

    async def upsert(self, entries: Sequence[VectorEntry]) -> None:
        """Write entries, searchable on return; an older version never replaces a newer one.

        A vector that is empty, not finite or all zeros is a ValidationError, and then nothing was written.
        """
        ...

    async def delete(self, tenant: str, namespace: str, nodes: Sequence[tuple[uuid.UUID, int]]) -> None:
        """Remove nodes at the given version or older; unknown ones are fine."""
        ...

    async def search(
        self, tenant: str, namespace: str, vector: NDArray[np.float32], limit: int, where: Filter | None, skip: int = 0
    ) -> VectorHits:
        """Nearest first, ties by node id. ``where`` may be widened (a superset) but never narrowed.

        Fewer than ``limit`` hits means that there are no more: an approximate index that comes out short looks again exactly.
        """
        ...

    async def fetch(self, tenant: str, namespace: str, nodes: Sequence[uuid.UUID]) -> list[VectorRecord]:
        """What it holds of these nodes, vectors included, in no particular order; removed and unknown ones are left out."""
        ...

    async def count(self, tenant: str, namespace: str) -> int:
        """How many nodes it holds, exactly: marks of removals do not count, a write that returned does."""
        ...

    async def scan(
        self, tenant: str, namespace: str, cursor: str | None = None, limit: int = 1000, *, vectors: bool = False
    ) -> VectorPage:
        """A page of what it holds, in an order of its own; a node that stays meanwhile comes exactly once.

        A page may hold fewer than ``limit`` records, or none, and still have a cursor.
        """
        ...

    async def drop(self, tenant: str, namespace: str) -> None:
        """Forget the namespace whole, marks of removals included. An unknown one is fine."""
        ...

    async def optimise(self, tenant: str, namespace: str, /) -> None:
        """Build what is better built in one go than row by row, when it is due: after a bulk load, and now and then."""
        ...

    async def warm(self, tenant: str, namespace: str, /) -> None:
        """Bring the namespace into memory, so that the first search after a start or a restore does not pay for it."""
        ...

    async def ping(self) -> None:
        """Raise VectorStoreUnavailable unless the store answers."""
        ...

    async def close(self) -> None: ...


class Doorbell(Protocol):
    """Wakes workers when vector rows have changed. Postgres holds what is to be done, and a worker looks there by itself: a ring may
    be lost, repeated, delayed or overtaken, and nothing but the time until a row is searchable changes."""

    @property
    def patience(self) -> float | None:
        """Seconds after which an idle worker looks although nobody rang; None: nobody ever rings."""
        ...

    def ring(self, rows: Sequence[uuid.UUID], /) -> None:
        """Tell workers, soon, that these rows of ``memory_vectors`` were committed. Never waits and never raises."""
        ...

    async def wait(self, seconds: float) -> list[uuid.UUID]:
        """Rows that a ring named; empty when nobody rang for so long. Each ring wakes one waiter, seldom several. Never raises."""
        ...

    async def close(self) -> None:
        """Send what is still waiting, if that is a matter of a moment."""
        ...


@dataclass(frozen=True, slots=True)
class StoredObject:
    """Bytes that the object store keeps for good."""

    key: str
    version_id: str
    sha256: str  # lower hex
    size: int  # bytes


class ObjectStore(Protocol):
    """Write-once bytes by key."""

    @property
    def url_prefix(self) -> str:
        """What stands before a key in ``artifacts.url``."""
        ...

    async def put(
        self,
        prefix: str,
        chunks: AsyncIterator[bytes],
        *,
        expected_sha256: str | None = None,
        max_bytes: int | None = None,
    ) -> StoredObject:
        """Stream bytes in bounded memory; they are durable when this returns, and nothing is left when it raises.

        The key is ``prefix/`` and the SHA-256. Raises ChecksumMismatch, PayloadTooLarge, ObjectStoreUnavailable.
        """
        ...

    def read(self, key: str, version_id: str, start: int = 0, stop: int | None = None) -> AsyncIterator[bytes]:
        """Bytes ``start`` to ``stop`` (exclusive). Raises NotFound when the object is gone."""
        ...

    async def ping(self) -> None: ...

    async def close(self) -> None: ...


class Embedder(Protocol):
    """Text to unit vectors."""

    @property
    def model(self) -> str: ...

    @property
    def dimension(self) -> int: ...

    async def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Shape (len(texts), dimension), float32, unit length. Raises EmbedderUnavailable."""
        ...

    async def close(self) -> None: ...


class Signer(Protocol):
    """Signs seal texts. The key's identity is the SHA-256 of its DER SubjectPublicKeyInfo."""

    @property
    def algorithm(self) -> str:
        """``ed25519``, ``ecdsa-p256-sha256`` or ``rsa-pss-sha256``."""
        ...

    @property
    def public_key_der(self) -> bytes: ...

    @property
    def key_id(self) -> str: ...

    @property
    def local(self) -> bool:
        """Whether it signs at once, in this process, without waiting for anything."""
        ...

    async def sign(self, message: bytes) -> bytes:
        """The raw signature over ``message``. Raises SignerUnavailable."""
        ...

    async def close(self) -> None: ...
