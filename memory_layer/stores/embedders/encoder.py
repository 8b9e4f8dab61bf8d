"""A BERT encoder as data: what a model's package gives, and what both ways of computing with it read.

Architecture: Devlin et al., "BERT" (2018). ``networks.py`` reads the packages, ``onnx.py`` and ``exact.py`` compute.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from tokenizers import Tokenizer

Matrix = NDArray[np.float32]
Linear = tuple[Matrix, Matrix]  # weight of shape (in, out), and bias
Norm = tuple[Matrix, Matrix]  # gain and bias


@dataclass(frozen=True, slots=True)
class Layer:
    qkv: Linear  # query, key and value side by side
    attended: Linear
    attended_norm: Norm
    up: Linear
    down: Linear
    down_norm: Norm


@dataclass(frozen=True, slots=True)
class Reader:
    """Text to the tokens of one pass, and tokens to what the encoder is given."""

    tokenizer: Tokenizer
    prepared: Callable[[str], str]  # the text as the tokenizer wants it
    begin: int  # the mark before the tokens of a pass
    end: int  # the mark behind them
    unknown: int
    query: Sequence[int]  # tokens that stand before those of a query
    passage: Sequence[int]  # and of a text that is searched
    max_tokens: int  # of one pass, with all of those
    words: Callable[[NDArray[np.intp]], Matrix]  # token ids of any shape to (*shape, dimension)
    positions: Matrix  # (at least max_tokens, dimension), the type of a single text already added


@dataclass(frozen=True, slots=True)
class Encoder:
    reader: Reader
    heads: int
    norm: Norm
    layers: Sequence[Layer]


class Pass(Protocol):
    """A forward pass: (texts, length, dimension) of embedded tokens, and how many tokens each text has, to the states of the last
    layer in the same shape. What stands behind a text's own tokens has no effect on them, and no meaning in the answer."""

    def __call__(self, embedded: Matrix, lengths: Sequence[int]) -> Matrix: ...
