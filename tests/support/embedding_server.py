"""An OpenAI-compatible embedding endpoint with models of its own: ``words-N`` gives a text N numbers by the words that it holds.

It is deterministic, texts with the same words are alike, and each model spreads the words in its own way. What it does not prove is
anything about a real model's vectors.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator, Sequence
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

from memory_layer.stores.protocols import Embedded
from tests.support.stand_in import Handler, StandIn, running


def vector(model: str, text: str) -> NDArray[np.float32]:
    """Shape (N,), unit length."""
    size = int(model.rpartition("-")[2])
    made = np.full(size, 1e-3)
    for word in re.findall(r"\w+", text.lower()):
        seed = int.from_bytes(blake2b(f"{model} {word}".encode(), digest_size=8).digest(), "big")
        made += np.random.default_rng(seed).standard_normal(size)
    return np.asarray(made / np.linalg.norm(made), np.float32)


class Words:
    """The same as an ``Embedder`` in the process."""

    def __init__(self, model: str) -> None:
        self.model, self.dimension = model, int(model.rpartition("-")[2])

    async def embed(self, texts: Sequence[str], *, query: bool = False) -> Embedded:
        return Embedded(np.stack([vector(self.model, text) for text in texts]), ["whole"] * len(texts))

    async def close(self) -> None: ...


class _Embeddings(Handler):
    def handle_call(self, method: str) -> None:
        asked = json.loads(self.body())
        model = asked["model"]
        self.server.calls.append(model)
        if self.fail_on_the_wire(self.server.take_fault()):
            return
        data = [
            {"object": "embedding", "index": place, "embedding": vector(model, text).tolist()}
            for place, text in enumerate(asked["input"])
        ]
        self.answer(200, {"object": "list", "model": model, "data": data})


@contextlib.contextmanager
def running_embeddings() -> Iterator[StandIn]:
    with running(StandIn(_Embeddings)) as server:
        yield server
