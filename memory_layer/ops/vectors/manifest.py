"""The manifest of a vector snapshot, its signature, and the files that it lists.

A snapshot is a folder: ``manifest.json``, ``manifest.sig``, and for each index namespace a folder of its number with shards: vectors as
``.npy`` (float32, shape (rows, dimension)) and beside each a ``.jsonl`` with a line ``{"id": ..., "version": ...}`` for each row. It can
be read with NumPy and a JSON parser alone. The manifest is signed by the installation's manifest key, the one that signs
evidence bundles; the first line of what is signed keeps the two apart.
"""

from __future__ import annotations

import hashlib
import io
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from memory_layer.audit.trust_root import TrustRoot
from memory_layer.errors import ChecksumMismatch, NotFound
from memory_layer.ops import manifests
from memory_layer.ops.manifests import MANIFEST, MAX_SIGNATURE, SIGNATURE, Kind, Position, Signed

FORMAT: Final = "memory-layer/vector-snapshot/v1"
MAX_SHARD: Final = 2**30  # bytes of one file


class File(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="camel"):
    """A file by its path in the snapshot's folder."""

    path: str
    bytes: int
    sha256: str


class Shard(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="camel"):
    """Rows of one dimension."""

    rows: int
    dimension: int
    vectors: File
    ids: File


class SpaceRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="camel"):
    """An index namespace. ``buckets``: what the index held, as in ops/vectors/digest.py; ``digest``: all of them in one.

    ``differences``: in what the index differed from Postgres when it was read, by kind; ``examples``: some by name.
    """

    tenant: str
    namespace: str
    model: str | None
    dimension: int | None
    metric: Literal["cosine"]
    count: int
    digest: str
    buckets: list[str]
    differences: dict[str, int]
    examples: dict[str, list[dict[str, Any]]]
    shards: list[Shard]


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="camel"):
    """The content of ``manifest.json``. ``dirty``: the index was not what Postgres required."""

    format: Literal["memory-layer/vector-snapshot/v1"]
    origin: str | None
    log: Position | None
    provider: str
    created_at: str
    tool: str
    dirty: bool
    spaces: list[SpaceRecord]

    @property
    def rows(self) -> int:
        return sum(space.count for space in self.spaces)


KIND: Final = Kind(FORMAT, Manifest, "manifest of a snapshot", max_bytes=256 * 2**20)


def paths(space: int, shard: int) -> tuple[str, str]:
    """Where a shard's vectors and its ids lie."""
    return f"{space:05d}/vectors-{shard:05d}.npy", f"{space:05d}/rows-{shard:05d}.jsonl"


def read_manifest(folder: Path, root: TrustRoot | None, *, unsigned: bool = False) -> Signed[Manifest]:
    """The manifest, if it is signed by a manifest key that the trust root names (``unsigned``: or not signed at all).

    Raises NotFound where there is no snapshot, ChecksumMismatch with the file's name where it is not as it was written.
    """
    try:
        data = _read(folder / MANIFEST, KIND.max_bytes)
    except FileNotFoundError:
        raise NotFound(f"{folder} is no snapshot: it has no {MANIFEST}.") from None
    try:
        signature = _read(folder / SIGNATURE, MAX_SIGNATURE)
    except FileNotFoundError:
        signature = None
    if signature is None and not unsigned:
        raise ChecksumMismatch(
            f"{folder / SIGNATURE} is missing, so nothing tells who wrote this snapshot. If you know that it is yours, say --unsigned."
        )
    found = manifests.read(KIND, data, signature, root, place=str(folder / MANIFEST), names=(MANIFEST, SIGNATURE))
    placed = all(
        (shard.vectors.path, shard.ids.path) == paths(number, place)
        for number, space in enumerate(found.manifest.spaces)
        for place, shard in enumerate(space.shards)
    )
    if not placed:
        raise ChecksumMismatch(f"{folder / MANIFEST} is not in the one form that a snapshot's manifest has.")
    return found


def read_file(folder: Path, file: File) -> bytes:
    """The bytes of a file as the manifest has them. Raises ChecksumMismatch with its name."""
    path = folder / file.path
    try:
        size = path.stat().st_size
        data = _read(path, MAX_SHARD) if size == file.bytes else b""
    except OSError as error:
        raise ChecksumMismatch(f"{path} cannot be read: {error.strerror}.") from None
    if size != file.bytes:
        raise ChecksumMismatch(f"{path} was changed: it has {size} bytes, and the manifest says {file.bytes}.")
    if (found := hashlib.sha256(data).hexdigest()) != file.sha256:
        raise ChecksumMismatch(f"{path} was changed: its SHA-256 is {found}, and the manifest says {file.sha256}.")
    return data


def read_shard(folder: Path, shard: Shard) -> tuple[list[tuple[str, int]], NDArray[np.float32]]:
    """(id, version) of each row, and the vectors, shape (rows, dimension). Raises ChecksumMismatch.

    Anybody may have written the manifest of an unsigned snapshot, so nothing in it is trusted.
    """
    data = io.BytesIO(read_file(folder, shard.vectors))
    lines = read_file(folder, shard.ids).splitlines()
    try:
        # The header first: an array is allocated as large as its header says.
        if np.lib.format.read_magic(data) != (1, 0):
            raise ValueError("not version 1.0 of NumPy's format")
        shape, fortran, dtype = np.lib.format.read_array_header_1_0(data)
        vectors = np.frombuffer(data.getbuffer()[data.tell() :], "<f4")
        fits = (shape, fortran, dtype) == ((shard.rows, shard.dimension), False, np.dtype("<f4"))
        if not fits or vectors.size != shard.rows * shard.dimension or len(lines) != shard.rows:
            raise ValueError("they do not fit the manifest")
        rows = [msgspec.json.decode(line, type=_Row) for line in lines]
    except (ValueError, msgspec.MsgspecError) as error:
        raise ChecksumMismatch(
            f"{folder / shard.vectors.path} and {shard.ids.path} are not {shard.rows} rows together: {error}."
        ) from None
    return [(str(row.id), row.version) for row in rows], vectors.reshape(shape).astype(np.float32)


class _Row(msgspec.Struct, forbid_unknown_fields=True):
    id: uuid.UUID
    version: Annotated[int, msgspec.Meta(ge=0, lt=2**31)]


def check_files(folder: Path, manifest: Manifest) -> Iterator[int]:
    """Read every file and compare it with the manifest; how many rows they held so far. Raises ChecksumMismatch."""
    for space in manifest.spaces:
        for shard in space.shards:
            read_file(folder, shard.ids)
            read_file(folder, shard.vectors)
            yield shard.rows


def _read(path: Path, most: int) -> bytes:
    with path.open("rb") as file:
        data = file.read(most + 1)
    if len(data) > most:
        raise ChecksumMismatch(f"{path} has more than {most} bytes.")
    return data
