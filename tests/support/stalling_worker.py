"""A worker that stops itself (SIGSTOP) right before its first write into Milvus or Pinecone, and dies (SIGKILL) right after it.

    python -m tests.support.stalling_worker worker --data FOLDER

The product's own process in every other way: what is added is two signals, at the one moment that no outsider can hit.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Awaitable, Callable
from typing import Any

from memory_layer.cli import main as memoryctl
from memory_layer.stores.vectors.milvus_collections import Collections
from memory_layer.stores.vectors.pinecone import Pinecone


def stalling(send: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
    async def stall(*arguments: Any) -> None:
        os.kill(os.getpid(), signal.SIGSTOP)
        await send(*arguments)
        os.kill(os.getpid(), signal.SIGKILL)

    return stall


def main() -> None:
    setattr(Collections, "send", stalling(Collections.send))  # noqa: B010 - mypy: a method is not to be assigned to
    setattr(Pinecone, "_send", stalling(Pinecone._send))  # noqa: B010 - as above
    memoryctl()


if __name__ == "__main__":
    main()
