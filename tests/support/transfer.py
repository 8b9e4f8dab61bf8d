"""One upload and one download in a process of its own, which says how long they took and how much memory it held at most.

``python -m tests.support.transfer MEGABYTES FOLDER [announced]`` takes the settings of the object store from the environment and prints
one line of JSON. ``announced``: the store is told the hash beforehand.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import re
import resource
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path

from memory_layer import config
from memory_layer.stores.objects import open_objects

BLOCK = 64 * 1024  # what a server reads from a socket at once


async def body(megabytes: int, block: bytes) -> AsyncIterator[bytes]:
    """Bytes that differ from block to block, without taking longer to make than to store."""
    for number in range(megabytes * (2**20 // BLOCK)):
        yield number.to_bytes(8, "big") + block[8:]


def peak() -> int:
    """Most bytes of memory that this program held. Not ru_maxrss, which on Linux begins with what its parent held."""
    status = Path("/proc/self/status")
    if status.exists():
        return int(re.search(r"VmHWM:\s+(\d+) kB", status.read_text())[1]) * 1024  # type: ignore[index]  # always there
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # macOS: bytes, and its own


async def transfer(megabytes: int, folder: Path, *, announced: bool) -> dict[str, object]:
    store = open_objects(config.load(), folder)
    block, known = os.urandom(BLOCK), None
    if announced:
        known = hashlib.sha256()
        async for part in body(megabytes, block):
            known.update(part)
    sha256 = None if known is None else known.hexdigest()
    began = await asyncio.to_thread(peak)
    start = time.monotonic()
    stored = await store.put("transfer", body(megabytes, block), expected_sha256=sha256)
    up = time.monotonic() - start
    start = time.monotonic()
    digest = hashlib.sha256()
    async for block in store.read(stored.key, stored.version_id):
        digest.update(block)
    down = time.monotonic() - start
    await store.close()
    return {
        "size": stored.size,
        "right": digest.hexdigest() == stored.sha256,
        "up": up,
        "down": down,
        "rss_before": began,
        "rss": await asyncio.to_thread(peak),
    }


if __name__ == "__main__":
    print(json.dumps(asyncio.run(transfer(int(sys.argv[1]), Path(sys.argv[2]), announced="announced" in sys.argv))))
