"""The seams: each Protocol has at least two real implementations and one contract suite in ``tests/contract``."""

from __future__ import annotations

import datetime as dt
import uuid
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol

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


class IndexHit(NamedTuple):
    """What an index, of vectors or of words, says of a node: a candidate, never an answer before ``service/candidates.py`` has passed it."""

    node_id: uuid.UUID
    version: int
    score: float  # cosine similarity, -1..1; of words 0..1


@dataclass(frozen=True, slots=True)
class VectorHits:
    """``exact``: every entry that could have matched was compared, none was passed over by an approximate index. ``way``: which of its
    ways the store took, where it has several."""

    hits: list[IndexHit]
    exact: bool
    way: str | None = None


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

    async def stale_fields(self, tenant: str, namespace: str, entries: Sequence[VectorEntry]) -> list[uuid.UUID]:
        """Of these entries, those that it holds at their version with other fields than theirs. Vectors are not looked at, and may be
        empty; what it holds at another version, or not at all, is left out."""
        ...

    async def unknown_namespaces(self, known: Collection[tuple[str, str]]) -> list[str]:
        """Namespaces of this product that it holds entries of and that are none of these (tenant, namespace), by their names there."""
        ...

    async def drop_unknown(self, name: str) -> None:
        """Forget one of them whole. An unknown one is fine; what is none of this product's is left alone."""
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


@dataclass(frozen=True, slots=True)
class JoinedQuery:
    """What is read for each hit of an index in the same database, in the transaction and the round trip of the search itself.

    ``text``: a query over ``{candidates}`` (``stores/pipeline.py``, ``over``) with its ``values``. ``before`` and ``after`` are whole
    statements that run around it; parameters say their types.
    """

    text: str
    values: Mapping[str, Any]
    before: tuple[str, Mapping[str, Any]]
    after: tuple[str, Mapping[str, Any]]


class JoinedVectors(Protocol):
    """A vector store that lies in the canonical database."""

    async def search_joined(
        self,
        tenant: str,
        namespace: str,
        vector: NDArray[np.float32],
        limit: int,
        where: Filter | None,
        skip: int,
        query: JoinedQuery,
    ) -> tuple[VectorHits, tuple[list[dict[str, Any]], list[dict[str, Any]]] | None]:
        """``search``; and the rows of ``query``, one for each hit, and of ``after``. None in their place where the search took a way
        that cannot bring them along."""
        ...


class Notifier(Protocol):
    """Wakes workers when vector rows have changed. Postgres holds what is to be done, and a worker polls it anyway: a notification may
    be lost, repeated, delayed or out of order, and only the time until a row is searchable changes."""

    @property
    def poll_interval(self) -> float | None:
        """Seconds after which an idle worker polls without a notification; None: there are no notifications."""
        ...

    def notify(self, rows: Sequence[uuid.UUID], /) -> None:
        """Tell workers, soon, that these rows of ``memory_vectors`` were committed. Never waits and never raises."""
        ...

    async def wait(self, seconds: float) -> list[uuid.UUID]:
        """Rows that a notification named; empty after so long without one. Each wakes one waiter, seldom several. Never raises."""
        ...

    async def close(self) -> None:
        """Send what is still waiting, if that is a matter of a moment."""
        ...


@dataclass(frozen=True, slots=True)
class Damage:
    """What stood under an object's name and was not its bytes, when the same bytes came again."""

    version_id: str
    sha256: str  # lower hex, of what stood there
    size: int  # bytes
    replaced: bool  # the right bytes stand under that version now; else a new version has them, and the old one stays as it is


@dataclass(frozen=True, slots=True)
class StoredObject:
    """Bytes that the object store keeps for good. ``damage``: they were there before, damaged, and are right now."""

    key: str
    version_id: str
    sha256: str  # lower hex
    size: int  # bytes
    damage: Damage | None = None


LockMode = Literal["GOVERNANCE", "COMPLIANCE"]


@dataclass(frozen=True, slots=True)
class Lock:
    """Object Lock: the version cannot be deleted or replaced before ``until``; COMPLIANCE by nobody, GOVERNANCE by the privileged."""

    mode: LockMode
    until: dt.datetime  # UTC


@dataclass(frozen=True, slots=True)
class ObjectState:
    """What the store says of one version."""

    key: str
    version_id: str
    size: int
    sha256: str | None  # lower hex, where the store recorded a checksum of the whole
    lock: Lock | None
    hold: bool  # legal hold
    shadowed: bool  # a newer version, or a delete marker, stands over it
    storage_class: str  # S3's names; STANDARD where the store has none
    restoring: bool = False  # being brought back from a cold class
    readable: bool = True  # False: in a cold class, and not restored


@dataclass(frozen=True, slots=True)
class ObjectVersion:
    """A line of a listing. ``marker``: a delete marker, which has no bytes."""

    key: str
    version_id: str
    size: int
    latest: bool
    marker: bool
    modified: dt.datetime


@dataclass(frozen=True, slots=True)
class ObjectPage:
    """``cursor`` goes on after the last one; None: there are no more."""

    versions: list[ObjectVersion]
    cursor: str | None


@dataclass(frozen=True, slots=True)
class ObjectCapabilities:
    """Where object stores may differ; everything else is the contract."""

    enforces_locks: bool  # the store itself refuses everybody; else only this code does
    links: bool  # it can hand out time-limited URLs
    cold: bool  # it has storage classes that bytes must be restored from


class ObjectStore(Protocol):
    """Write-once bytes in versions, by key. One bucket, or one directory."""

    @property
    def url_prefix(self) -> str:
        """What stands before a key in ``artifacts.url``."""
        ...

    @property
    def capabilities(self) -> ObjectCapabilities: ...

    async def put(
        self,
        prefix: str,
        chunks: AsyncIterator[bytes],
        *,
        expected_sha256: str | None = None,
        expected_size: int | None = None,
        max_bytes: int | None = None,
        lock: Lock | None = None,
        hold: bool = False,
    ) -> StoredObject:
        """Stream bytes in bounded memory; they are durable when this returns, and nothing is left when it raises.

        The key is ``prefix/`` and the SHA-256. Bytes that are there already are read again: where they are right they are not stored
        twice, and their lock is extended to ``lock``; where they are damaged those at hand replace them, or become a new version.
        Raises ChecksumMismatch (also for a wrong size), PayloadTooLarge, ObjectStoreUnavailable.
        """
        ...

    async def put_named(
        self, key: str, chunks: AsyncIterator[bytes], *, lock: Lock | None = None, hold: bool = False
    ) -> StoredObject:
        """The same under a name of ours (archives, manifests, snapshots), once: where the name is taken by the same bytes, what is
        there is returned, once it was read again; by other bytes, Conflict is raised and nothing written."""
        ...

    def read(self, key: str, version_id: str, start: int = 0, stop: int | None = None) -> AsyncIterator[bytes]:
        """Bytes ``start`` to ``stop`` (exclusive). Raises NotFound when the object is gone."""
        ...

    async def stat(self, key: str, version_id: str | None = None) -> ObjectState:
        """One version, or the newest. Raises NotFound; where a delete marker is the newest, NotFound without ``version_id``."""
        ...

    async def versions(self, prefix: str, cursor: str | None = None, limit: int = 1000) -> ObjectPage:
        """Every version and delete marker whose key begins with ``prefix``, by key, newest first within one."""
        ...

    async def set_hold(self, key: str, version_id: str, held: bool) -> None:
        """S3's legal hold and the tag ``legal_hold``, which lifecycle rules filter on. Raises NotFound."""
        ...

    async def extend_lock(self, key: str, version_id: str, lock: Lock) -> None:
        """Lock it, or longer. Raises Conflict where that would shorten or weaken what there is, NotFound."""
        ...

    async def delete(self, key: str, version_id: str) -> None:
        """Remove one version for good. Needs the eraser's credentials. Raises LegalHold, Conflict (locked), NotFound, Forbidden."""
        ...

    async def restore(self, key: str, version_id: str, days: int) -> None:
        """Ask for bytes in a cold class to be brought back for so many days; ``stat`` says when they are. Raises NotFound."""
        ...

    def link(self, key: str, version_id: str, seconds: int, *, name: str | None, content_type: str) -> str | None:
        """A URL that gives the bytes for so long, as an attachment; None where the store has no such thing."""
        ...

    def locate(self, url: str) -> tuple[str, str | None] | None:
        """Key and version that a URL of this store names (``s3://bucket/key?versionId=``); None when it is not of this store."""
        ...

    async def ping(self) -> None: ...

    async def close(self) -> None: ...


class AnchorPlace(Protocol):
    """Where checkpoints are kept outside the installation, by the log's name and the checkpoint's size."""

    @property
    def name(self) -> str:
        """As the settings write it, without credentials."""
        ...

    async def newest(self, origin: str) -> bytes | None:
        """The note of the largest size that it keeps of a log; None: it keeps none, or is no place to ask. Raises AnchorUnavailable."""
        ...

    async def keep(self, origin: str, size: int, note: bytes) -> None:
        """Keep a note, durable on return; the same one again is fine. Raises Conflict where another is kept under that size,
        AnchorUnavailable."""
        ...

    async def close(self) -> None: ...


# How much of a text its vector stands for. part: of a very long one, evenly spread parts; none: the model cannot read it, or it is blank.
Read = Literal["whole", "part", "none"]


@dataclass(frozen=True, slots=True)
class Embedded:
    """``vectors``: shape (texts, dimension), float32, unit length; zeros for a text that the model cannot read. ``read``: how much of
    each text; None where that is not known."""

    vectors: NDArray[np.float32]
    read: Sequence[Read | None]


class Embedder(Protocol):
    """Text to unit vectors."""

    @property
    def model(self) -> str: ...

    @property
    def dimension(self) -> int: ...

    async def embed(self, texts: Sequence[str], *, query: bool = False) -> Embedded:
        """``query``: texts to search by, which some models read in another way than those to be found. Raises EmbedderUnavailable."""
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
