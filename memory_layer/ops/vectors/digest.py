"""What an index holds, as 256 sums over (node id, version): in no order, so that each side adds up its rows as they come.

A node belongs to the bucket of its id's last byte, which is random in every kind of UUID that the product makes. A bucket is its
number of entries and two sums modulo 2^64, of the first and the second eight bytes of SHA-256(id, 16 bytes; version, 4 bytes,
big-endian) read as signed integers. ``sql/queries/vectors.sql: bucket_sums`` computes the same in Postgres.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from struct import Struct
from typing import Any, Final

BUCKETS: Final = 256
_MODULUS: Final = 2**64
_HALVES: Final = Struct(">qq")


@dataclass(slots=True)
class Digest:
    """``entries``, ``first``, ``second``: one number for each bucket."""

    entries: list[int] = field(default_factory=lambda: [0] * BUCKETS)
    first: list[int] = field(default_factory=lambda: [0] * BUCKETS)
    second: list[int] = field(default_factory=lambda: [0] * BUCKETS)

    def add(self, node: bytes, version: int) -> None:
        """One entry; ``node``: the 16 bytes of its id."""
        first, second = _HALVES.unpack_from(hashlib.sha256(node + version.to_bytes(4, "big", signed=True)).digest())
        bucket = node[15]
        self.entries[bucket] += 1
        self.first[bucket] += first
        self.second[bucket] += second

    @property
    def count(self) -> int:
        return sum(self.entries)

    def buckets(self) -> list[str]:
        """Each bucket as text: its entries, and its sums in 32 hex digits."""
        return [
            f"{entries}:{first % _MODULUS:016x}{second % _MODULUS:016x}"
            for entries, first, second in zip(self.entries, self.first, self.second, strict=True)
        ]

    def text(self) -> str:
        """All of it in 64 hex digits."""
        return total(self.buckets())


def total(buckets: Sequence[str]) -> str:
    """SHA-256 over the buckets' texts, a line each."""
    return hashlib.sha256("".join(f"{bucket}\n" for bucket in buckets).encode("ascii")).hexdigest()


def of_sums(rows: Iterable[Any]) -> Digest:
    """What Postgres summed up (``bucket_sums``)."""
    digest = Digest()
    for row in rows:
        bucket = row["bucket"]
        digest.entries[bucket] = int(row["entries"])
        digest.first[bucket], digest.second[bucket] = int(row["first"]), int(row["second"])
    return digest


def differing(one: Digest, other: Digest) -> list[int]:
    """The buckets in which they differ."""
    pairs = zip(one.buckets(), other.buckets(), strict=True)
    return [bucket for bucket, (left, right) in enumerate(pairs) if left != right]
