"""The forward pass in ONNX Runtime, with weights of 8 bits.

The graph is made from the weights when a model is loaded, in memory: the same weights give the same bytes. Each column of a weight has
a scale of its own, and so has each token of what is multiplied with it (``DynamicQuantizeLinear`` has one for the whole batch, so the
vector of a text would depend on its neighbours). The input of queries, keys and values has 16 bits, for rounding it moves a vector most. All else
is computed in float32.

The format: https://github.com/onnx/onnx/blob/main/onnx/onnx.proto; the operators of ``com.microsoft``: ContribOperators.md of ONNX Runtime.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from memory_layer.stores.embedders.encoder import Encoder, Linear, Matrix, Norm, Pass

_IR_VERSION: Final = 10
_OPSET: Final = 21
_CONTRIB: Final = "com.microsoft"
_EPSILON: Final = 1e-12  # of the layers' normalisation
_TYPES: Final = {"float32": 1, "uint8": 2, "int8": 3, "int32": 6, "int64": 7}
# The least scale of a token: zeros are not divided by zero.
_SMALLEST: Final = np.float32(1e-9)
# What stands for zero among the 8 bits of an activation: GELU is never below -0.17, so most steps are for what is above.
_LOW: Final = 32


def open_pass(encoder: Encoder) -> Pass:
    """Raises ImportError where ONNX Runtime is not installed."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    # Passes run beside each other, each in the thread that calls it.
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    if not _multiplies_bytes():
        # Sums of two products would overflow 16 bits. Where they cannot, this would double the time of a pass.
        options.add_session_config_entry("session.x64quantprecision", "1")
    session = onnxruntime.InferenceSession(graph_of(encoder), options, providers=["CPUExecutionProvider"])

    def run(embedded: Matrix, lengths: Sequence[int]) -> Matrix:
        mask = (np.arange(embedded.shape[1]) < np.asarray(lengths)[:, None]).astype(np.int32)
        [states] = session.run(None, {"embedded": embedded, "mask": mask})
        return np.asarray(states, np.float32)

    return run


def _multiplies_bytes() -> bool:
    """Whether this processor has VNNI, as far as the system says so: sums of products of bytes in 32 bits."""
    try:
        return "_vnni" in Path("/proc/cpuinfo").read_text("utf-8", "replace")
    except OSError:
        return False


def graph_of(encoder: Encoder) -> bytes:
    """The encoder as an ONNX model: ``embedded`` (texts, length, dimension) and ``mask`` (texts, length) to ``states``."""
    dimension = len(encoder.norm[0])
    graph = _Graph()
    graph.constants(  # by name, for they are used in many places
        last=np.array([1], np.int64),
        rest=np.array([-1], np.int64),
        rows=np.array([-1, dimension], np.int64),
        middle=np.uint8(128),
        one=np.float32(1),
        half=np.float32(0.5),
        finer=np.float32(1 / 254),
        steps=np.float32(1 / 127),
        smallest=_SMALLEST,
        low=np.uint8(_LOW),
        upper=np.float32(1 / (255 - _LOW)),
        lower=np.float32(0.17 / _LOW),
    )
    shape = graph.add("Concat", [graph.add("Shape", ["embedded"], start=0, end=2), "rest"], axis=0)
    gain, bias = graph.pair(encoder.norm)
    state = graph.add("LayerNormalization", ["embedded", gain, bias], axis=-1, epsilon=_EPSILON)
    state = graph.add("Reshape", [state, "rows"])
    tokens = graph.add("Shape", [state], start=0, end=1)
    middles, lows = graph.add("Expand", ["middle", tokens]), graph.add("Expand", ["low", tokens])

    def largest(x: str) -> str:
        return graph.add("ReduceMax", [x, "last"], keepdims=0)

    def linear(x: str, weights: Linear, kind: str, *, fine: bool = False) -> tuple[str, str]:
        """x @ weight without the bias, and the bias: what comes next adds it. ``kind``: how x lies around zero. ``fine``: in 16 bits."""
        columns, scales = _quantized(weights[0])
        steps, least, zero, zeros = "steps", "smallest", "middle", middles
        shift = None
        if kind == "activated":  # never below -0.17
            size, steps, least, zero, zeros = largest(x), "upper", "lower", "low", lows
        elif kind == "even":
            size = largest(graph.add("Abs", [x]))
        else:  # a few numbers of one sign are far larger than all others: the middle of the range is taken off, and added again
            top, bottom = largest(x), graph.add("ReduceMin", [x, "last"], keepdims=0)
            size = graph.add("Mul", [graph.add("Sub", [top, bottom]), "half"])
            centre = graph.add("Mul", [graph.add("Add", [top, bottom]), "half"])
            centre = graph.add("Unsqueeze", [centre, "last"])
            x = graph.add("Sub", [x, centre])
            sums = columns.sum(axis=0, dtype=np.int64).astype(np.float32) * scales
            shift = graph.add("Mul", [centre, graph.constant(sums)])
        scale = graph.add("Max", [graph.add("Mul", [size, steps]), least])
        bits = graph.add("QuantizeLinear", [x, scale, zeros], axis=0)
        inputs = [bits, graph.constant(columns), "one", graph.constant(scales), zero]
        product = graph.add("MatMulIntegerToFloat", inputs, domain=_CONTRIB)
        if fine:  # what rounding left over is multiplied too, by constants of its own: the optimiser replaces each once
            rest = graph.add("Sub", [x, graph.add("DequantizeLinear", [bits, scale, zeros], axis=0)])
            bits = graph.add("QuantizeLinear", [rest, graph.add("Mul", [scale, "finer"]), zeros], axis=0)
            inputs = [bits, graph.constant(columns), "finer", graph.constant(scales), zero]
            product = graph.add("Add", [product, graph.add("MatMulIntegerToFloat", inputs, domain=_CONTRIB)])
        product = graph.add("Mul", [product, graph.add("Unsqueeze", [scale, "last"])])
        if shift:
            product = graph.add("Add", [product, shift])
        return product, graph.constant(weights[1])

    def added(x: str, to: str, bias: str, norm: Norm) -> str:
        # Three passes over memory, and an eighth of the time of SkipLayerNormalization.
        total = graph.add("Add", [graph.add("Add", [x, bias]), to])
        return graph.add("LayerNormalization", [total, *graph.pair(norm)], axis=-1, epsilon=_EPSILON)

    for layer in encoder.layers:
        product, bias = linear(state, layer.qkv, "skewed", fine=True)
        parts = graph.split(graph.add("Reshape", [product, shape]), 3)
        heads = graph.add("MultiHeadAttention", [*parts, bias, "mask"], domain=_CONTRIB, num_heads=encoder.heads)
        product, bias = linear(graph.add("Reshape", [heads, "rows"]), layer.attended, "even")
        state = added(product, state, bias, layer.attended_norm)
        inner = graph.add("BiasGelu", [*linear(state, layer.up, "skewed")], domain=_CONTRIB)
        product, bias = linear(inner, layer.down, "activated")
        state = added(product, state, bias, layer.down_norm)
    graph.add("Reshape", [state, shape], to="states")
    return graph.model(dimension)


def _quantized(weight: Matrix) -> tuple[NDArray[np.int8], Matrix]:
    """Eight bits and the scale of each column: weight is about bits * scale."""
    scale = np.maximum(np.abs(weight).max(axis=0) / np.float32(127), _SMALLEST)
    return np.rint(weight / scale).astype(np.int8), scale


@dataclass(slots=True)
class _Graph:
    """Nodes and constants of a graph, as they are written."""

    nodes: list[bytes] = field(default_factory=list)
    tensors: list[bytes] = field(default_factory=list)

    def add(self, operator: str, inputs: Sequence[str], *, to: str = "", domain: str = "", **attributes: float) -> str:
        """A node with one output; its name."""
        to = to or f"n{len(self.nodes)}"
        self._node(operator, inputs, [to], domain, attributes)
        return to

    def split(self, x: str, parts: int) -> list[str]:
        """x cut into parts along its last axis."""
        outputs = [f"n{len(self.nodes)}.{part}" for part in range(parts)]
        self._node("Split", [x], outputs, "", {"axis": -1, "num_outputs": parts})
        return outputs

    def constant(self, value: NDArray[np.generic] | np.generic, name: str = "") -> str:
        name = name or f"c{len(self.tensors)}"
        dims = b"".join(_number(1, size) for size in value.shape)
        kind = _number(2, _TYPES[value.dtype.name])
        raw = np.ascontiguousarray(value).astype(value.dtype.newbyteorder("<"), copy=False).tobytes()
        self.tensors.append(_message(5, dims, kind, _text(8, name), _bytes(9, raw)))
        return name

    def constants(self, **values: NDArray[np.generic] | np.generic) -> None:
        for name, value in values.items():
            self.constant(value, name)

    def pair(self, values: tuple[Matrix, Matrix]) -> tuple[str, str]:
        return self.constant(values[0]), self.constant(values[1])

    def model(self, dimension: int) -> bytes:
        graph = [
            *self.nodes,
            _text(2, "encoder"),
            *self.tensors,
            _tensor_of(11, "embedded", "float32", "texts", "length", dimension),
            _tensor_of(11, "mask", "int32", "texts", "length"),
            _tensor_of(12, "states", "float32", "texts", "length", dimension),
        ]
        opsets = [
            _message(8, _text(1, domain), _number(2, version)) for domain, version in (("", _OPSET), (_CONTRIB, 1))
        ]
        return b"".join([_number(1, _IR_VERSION), _message(7, *graph), *opsets])

    def _node(
        self, operator: str, inputs: Sequence[str], outputs: Sequence[str], domain: str, attributes: dict[str, float]
    ) -> None:
        self.nodes.append(
            _message(
                1,
                *(_text(1, name) for name in inputs),
                *(_text(2, name) for name in outputs),
                _text(4, operator),
                *(_attribute(name, value) for name, value in attributes.items()),
                _text(7, domain),
            )
        )


# --- Protocol buffers ----------------------------------------------------------------------------------------------


def _varint(value: int) -> bytes:
    value &= (1 << 64) - 1  # negative numbers take ten bytes
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def _number(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(value)


def _bytes(field: int, value: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(value)) + value


def _text(field: int, value: str) -> bytes:
    return _bytes(field, value.encode())


def _message(field: int, *parts: bytes) -> bytes:
    return _bytes(field, b"".join(parts))


def _attribute(name: str, value: float) -> bytes:
    if isinstance(value, int):
        return _message(5, _text(1, name), _number(3, value), _number(20, 2))
    real = _varint(2 << 3 | 5) + np.array(value, "<f4").tobytes()
    return _message(5, _text(1, name), real, _number(20, 1))


def _tensor_of(field: int, name: str, kind: str, *dims: str | int) -> bytes:
    """An input or output: its sizes, or the names of those that vary."""
    sizes = [_message(1, _number(1, dim) if isinstance(dim, int) else _text(2, dim)) for dim in dims]
    tensor = _message(1, _number(1, _TYPES[kind]), _message(2, *sizes))
    return _message(field, _text(1, name), _message(2, tensor))
