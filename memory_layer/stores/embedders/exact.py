"""The forward pass in NumPy and float32: the numbers of sentence-transformers to about 1e-6.

Where there is no ONNX Runtime for a platform the product computes with it, and the tests measure the pass of 8 bits by it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

import numpy as np

from memory_layer.stores.embedders.encoder import Encoder, Linear, Matrix, Norm, Pass

# Rows that go through the activation at a time, so that its dozen passes over memory stay inside the cache.
_GELU_ROWS: Final = 32


def open_pass(encoder: Encoder) -> Pass:
    """From then on this process's BLAS works with one thread: with threads of its own it is no faster on an idle machine, and half as
    fast where other work holds a core, for its threads wait for the slowest."""
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    threadpool_limits(1, "blas")

    def run(embedded: Matrix, lengths: Sequence[int]) -> Matrix:
        texts, length, dimension = embedded.shape
        hidden = np.where(np.arange(length) < np.asarray(lengths)[:, None], np.float32(0), np.float32(-1e9))
        x = _normalize(embedded.reshape(texts * length, dimension), encoder.norm)
        for layer in encoder.layers:
            attended = _attend(_linear(x, layer.qkv).reshape(texts, length, 3, encoder.heads, -1), hidden)
            x = _normalize(x + _linear(attended.reshape(x.shape), layer.attended), layer.attended_norm)
            inner = _linear(x, layer.up)
            for row in range(0, len(inner), _GELU_ROWS):
                _gelu(inner[row : row + _GELU_ROWS])
            x = _normalize(x + _linear(inner, layer.down), layer.down_norm)
        return x.reshape(embedded.shape)

    return run


def _attend(qkv: Matrix, hidden: Matrix) -> Matrix:
    """Multi-head self-attention: (texts, length, 3, heads, size) to (texts, length, heads, size). ``hidden`` is added to the weight of
    each token (texts, length)."""
    query, key, value = qkv.transpose(2, 0, 3, 1, 4)
    weights = query @ key.swapaxes(-1, -2)  # (texts, heads, length, length)
    weights *= np.float32(1 / math.sqrt(qkv.shape[-1]))
    weights += hidden[:, None, None, :]
    weights -= weights.max(axis=-1, keepdims=True)
    np.exp(weights, out=weights)
    weights /= weights.sum(axis=-1, keepdims=True)
    heads: Matrix = (weights @ value).transpose(0, 2, 1, 3)
    return heads


def _linear(x: Matrix, weights: Linear) -> Matrix:
    y: Matrix = x @ weights[0]
    y += weights[1]
    return y


def _normalize(x: Matrix, norm: Norm) -> Matrix:
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
