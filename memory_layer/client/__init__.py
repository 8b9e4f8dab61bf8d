"""Python SDK of the Memory Layer: ``MemoryClient`` and ``AsyncMemoryClient``, which have the same methods.

Stands alone: needs httpx2 and the standard library, so the base install without extras (``pip install .`` in a checkout) is enough.

    from memory_layer.client import MemoryClient

    with MemoryClient() as memory:  # MEMORY_URL and MEMORY_TOKEN from the environment
        memory.remember("Caroline adopted a puppy called Oliver.", owner="caroline")
        for hit in memory.search("pets").results:
            print(hit.score, hit.content)

Answers are dicts whose members are typed attributes too, see ``results.py``.
"""

from __future__ import annotations

from memory_layer.client.aio import AsyncMemoryClient
from memory_layer.client.calls import UNSET
from memory_layer.client.errors import MemoryLayerClientError
from memory_layer.client.sync import MemoryClient

__all__ = ["UNSET", "AsyncMemoryClient", "MemoryClient", "MemoryLayerClientError"]
