"""What goes to Pinecone and comes back: the shapes of its answers, names of namespaces, records and batches of them."""

from __future__ import annotations

import hashlib
import re
import uuid
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray

from memory_layer.errors import VectorStoreUnavailable
from memory_layer.stores.protocols import VectorEntry, VectorRecord
from memory_layer.stores.vectors.pinecone_records import live_metadata

MAX_RECORDS: Final = 1000  # in one upsert (https://docs.pinecone.io/reference/api/database-limits)

_Shape = TypeVar("_Shape")
_NULL: Final = msgspec.Raw(b"null")


class Metadata(msgspec.Struct):
    version: float = msgspec.field(name="_version", default=-1.0)
    live: bool = msgspec.field(name="_live", default=True)


class Match(msgspec.Struct):
    id: str
    score: float
    metadata: Metadata | None = None


class Matches(msgspec.Struct):
    matches: list[Match] = []


class Fetched(msgspec.Struct):
    """``raw_metadata``: all of the metadata, decoded only on demand (``all_fields``)."""

    raw_metadata: msgspec.Raw = msgspec.field(name="metadata", default=_NULL)
    values: msgspec.Raw = msgspec.Raw(b"[]")  # read only by who wants them

    @property
    def metadata(self) -> Metadata | None:
        return None if self.raw_metadata == _NULL else decode(bytes(self.raw_metadata), Metadata)

    @property
    def all_fields(self) -> dict[str, Any]:
        return {} if self.raw_metadata == _NULL else decode(bytes(self.raw_metadata), dict[str, Any])


def alike(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Metadata to be compared: a list of strings is a set to Pinecone."""
    return {name: sorted(value) if isinstance(value, list) else value for name, value in metadata.items()}


class Vectors(msgspec.Struct):
    vectors: dict[str, Fetched] = {}


class Id(msgspec.Struct):
    id: str


class Next(msgspec.Struct):
    next: str = ""


class Listed(msgspec.Struct):
    vectors: list[Id] = []
    pagination: Next | None = None


class Stats(msgspec.Struct):
    dimension: int | None = None
    metric: str | None = None
    namespaces: dict[str, Any] = {}


# Letters, digits, dots and hyphens stand for themselves, any other byte of UTF-8 is _ and two hex digits, and two _ part the
# two names, which no escape can bring forth: so it can be read back. Names that get too long become their digest.
_PLAIN: Final = re.compile(rb"[^A-Za-z0-9.-]")
_LONGEST: Final = 400  # Pinecone takes 512 characters
OURS: Final = re.compile(r"([A-Za-z0-9.-]|_[0-9a-f]{2})*__([A-Za-z0-9.-]|_[0-9a-f]{2})*|_h[0-9a-f]{64}")


def encode_namespace(tenant: str, namespace: str) -> str:
    """The Pinecone namespace of a (tenant, namespace); no two have the same."""
    parts = [
        _PLAIN.sub(lambda found: b"_%02x" % found[0][0], name.encode("utf-8", "surrogatepass"))
        for name in (tenant, namespace)
    ]
    name = b"__".join(parts)
    return name.decode() if len(name) <= _LONGEST else "_h" + hashlib.sha256(name).hexdigest()


def batches(records: Sequence[bytes], most_bytes: int) -> Iterator[list[bytes]]:
    """Records in portions that one upsert takes, by count and by bytes. One that is too large goes alone, to be refused alone."""
    batch: list[bytes] = []
    size = 0
    for record in records:
        if batch and (len(batch) == MAX_RECORDS or size + len(record) + 1 > most_bytes):
            yield batch
            batch, size = [], 0
        batch.append(record)
        size += len(record) + 1
    if batch:
        yield batch


def record(entry: VectorEntry) -> bytes:
    return b'{"id":"%b","values":%b,"metadata":%b}' % (
        str(entry.node_id).encode(),
        numbers(entry.vector),
        live_metadata(entry.version, entry.fields),
    )


def numbers(vector: NDArray[np.float32]) -> bytes:
    """As JSON with nine digits, which is what a float32 needs: shorter by a third than the same float64."""
    return ("[" + ",".join([f"{number:.9g}" for number in vector.tolist()]) + "]").encode()


def node_of(name: str) -> uuid.UUID | None:
    """None for an id that is none of ours: somebody else wrote into the namespace."""
    try:
        return uuid.UUID(name)
    except ValueError:
        return None


def live_records(found: Mapping[str, Fetched], *, vectors: bool) -> list[VectorRecord]:
    """What was not removed; ``vectors``: with its values."""
    records = []
    for name, one in found.items():
        metadata = one.metadata or Metadata()
        node = node_of(name)
        if metadata.live and node is not None:
            vector = np.array(decode(bytes(one.values), list[float]), np.float32) if vectors else None
            records.append(VectorRecord(node, int(metadata.version), vector))
    return records


def decode(body: bytes, shape: type[_Shape]) -> _Shape:
    try:
        return msgspec.json.decode(body, type=shape)
    except msgspec.MsgspecError:
        raise VectorStoreUnavailable("Pinecone's endpoint answered something that is not Pinecone's.") from None
