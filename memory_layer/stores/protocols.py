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
class Capabilities:
    """Where vector stores may differ; everything else is the contract. The contract suite holds a store to what it declares."""

    mixed_dimensions: bool  # namespaces of different dimension side by side; else another one is a DimensionMismatch
    most_dimensions: int
    deepest: int | None  # limit + skip that a search can reach; None: no end
    exact: bool  # each search compares every vector of its namespace


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
    ) -> list[VectorHit]:
        """Nearest first, ties by node id. ``where`` may be widened (a superset) but never narrowed."""
        ...

    async def ping(self) -> None:
        """Raise VectorStoreUnavailable unless the store answers."""
        ...

    async def close(self) -> None: ...


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
