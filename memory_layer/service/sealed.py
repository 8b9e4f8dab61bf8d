"""Which entries are sealed: batches whose signature this process has checked, kept as the hashes of their entries.

A row is believed only if its last entry says the same, and an entry only if the seal of its batch covers it. The signature and the
chain of a batch are checked once for each process; after that an entry costs one hash.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from typing import Final

from memory_layer.audit.entry import leaf_hash
from memory_layer.audit.seal import decode_signature, parse_seal, verify_signature
from memory_layer.errors import MemoryLayerError
from memory_layer.stores.log_guard import LogGuard
from memory_layer.telemetry.logs import get_logger

MAX_BYTES: Final = 64 * 2**20  # of hashes: two million entries
RELOAD_EVERY: Final = 1.0  # seconds, at the most often
_BATCH_OVERHEAD: Final = 200  # bytes that a batch takes besides its hashes
_PREV: Final = b'","request_id":'  # what follows the hash of the entry before; no value holds a quote

log = get_logger("memory_layer.evidence")


class SealedBatches:
    """``guard``: knows the trust root and which keys have sealed the log, and reads them again when another one is met."""

    def __init__(self, guard: LogGuard, max_bytes: int = MAX_BYTES) -> None:
        self._guard = guard
        self._root_read = time.monotonic()
        self._max_bytes = max_bytes
        self._bytes = 0
        self._batches: OrderedDict[int, tuple[int, bytes]] = OrderedDict()

    @property
    def origin(self) -> str:
        """The log that the trust root names."""
        return self._guard.origin

    def missing(self, batches: Iterable[int]) -> list[int]:
        """Those of these batches that were not checked yet."""
        return sorted({batch for batch in batches if batch not in self._batches})

    def covers(self, batch: int, seq: int, entry: bytes) -> bool:
        """Whether the seal of a checked batch covers exactly these bytes as entry ``seq``."""
        held = self._batches.get(batch)
        if held is None:
            return False
        self._batches.move_to_end(batch)
        first, hashes = held
        place = (seq - first) * 32
        return place >= 0 and hashes[place : place + 32] == bytes.fromhex(leaf_hash(entry))

    def add(self, batch: int, first: int, hashes: bytes) -> None:
        """Keep a batch that this process sealed itself, or has checked: the hashes of its entries, 32 bytes each."""
        if batch in self._batches:
            return
        self._batches[batch] = (first, hashes)
        self._bytes += len(hashes) + _BATCH_OVERHEAD
        while self._bytes > self._max_bytes and len(self._batches) > 1:
            _, (_, old) = self._batches.popitem(last=False)
            self._bytes -= len(old) + _BATCH_OVERHEAD

    def check(self, batch: int, entries: Sequence[bytes], text: str, signature: str) -> None:
        """Keep a batch if its seal is right. A batch that is not is left out, so that it covers nothing, and its reason is logged."""
        try:
            problem = self._problem(batch, entries, text.encode(), signature)
        except (MemoryLayerError, UnicodeError) as error:
            problem = str(error)
        if problem is not None:
            log.error("a batch of the audit log does not prove its entries", batch=batch, error=problem)

    def _problem(self, batch: int, entries: Sequence[bytes], text: bytes, signature: str) -> str | None:
        seal = parse_seal(text)
        if (seal.log, seal.batch) != (self.origin, batch):
            return f"its seal is that of batch {seal.batch} of {seal.log}"
        if seal.last - seal.first + 1 != len(entries):
            return f"its seal covers {seal.last - seal.first + 1} entries, and there are {len(entries)}"
        hashes: list[str] = []
        for entry in entries:
            end = entry.find(_PREV)
            if hashes and entry[end - 64 : end] != hashes[-1].encode():
                return f"entry {seal.first + len(hashes)} does not follow the one before"
            hashes.append(leaf_hash(entry))
        if hashes[-1] != seal.head:
            return "its last entry is not the one that was sealed"
        raw = decode_signature(signature)
        keys = self._keys(seal.key, seal.alg, seal.first, seal.last)
        if not keys:
            return f"it is sealed by the key {seal.key[:16]}..., which the trust root does not have for these entries"
        if raw is None or not any(verify_signature(seal.alg, key, text, raw) for key in keys):
            return "the signature of its seal is not right"
        self.add(batch, seal.first, b"".join(map(bytes.fromhex, hashes)))
        return None

    def _keys(self, key_id: str, algorithm: str, first: int, last: int) -> list[bytes]:
        """Public keys that may have sealed these entries."""
        found = self._guard.keys_of(key_id, algorithm, first, last)
        if not found and time.monotonic() - self._root_read > RELOAD_EVERY:
            self._root_read = time.monotonic()
            try:
                self._guard.read_root()
            except (MemoryLayerError, OSError):
                log.exception("the trust root could not be read again")
            found = self._guard.keys_of(key_id, algorithm, first, last)
        return found
