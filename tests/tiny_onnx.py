"""An ONNX file written byte by byte: mean colours through one linear layer. The package `onnx` is not needed for that.

Field numbers are those of onnx.proto (IR version 8, opset 13).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_FLOAT, _INT_ATTRIBUTE = 1, 2


def mean_colours(weight: NDArray[np.float32], bias: NDArray[np.float32], batch: int | str = "batch") -> bytes:
    """Return a network from (batch, 3, any, any) to (batch, outputs): weight (outputs, 3), bias (outputs)."""
    transposed = _text(1, "transB") + _number(3, 1) + _number(20, _INT_ATTRIBUTE)
    nodes = [
        _node("GlobalAveragePool", ["pixels"], "means"),
        _node("Flatten", ["means"], "flat"),
        _node("Gemm", ["flat", "weight", "bias"], "outputs", transposed),
    ]
    graph = b"".join(_bytes(1, node) for node in nodes) + _text(2, "mean colours")
    graph += _bytes(5, _tensor("weight", weight)) + _bytes(5, _tensor("bias", bias))
    graph += _bytes(11, _value("pixels", (batch, 3, "height", "width")))
    graph += _bytes(12, _value("outputs", (batch, len(bias))))
    return _number(1, 8) + _bytes(7, graph) + _bytes(8, _text(1, "") + _number(2, 13))


def _node(operator: str, inputs: list[str], output: str, attribute: bytes = b"") -> bytes:
    names = b"".join(_text(1, name) for name in inputs) + _text(2, output) + _text(4, operator)
    return names + (_bytes(5, attribute) if attribute else b"")


def _tensor(name: str, values: NDArray[np.float32]) -> bytes:
    sides = b"".join(_number(1, side) for side in values.shape)
    return sides + _number(2, _FLOAT) + _text(8, name) + _bytes(9, values.astype("<f4").tobytes())


def _value(name: str, shape: tuple[int | str, ...]) -> bytes:
    sides = b"".join(_bytes(1, _number(1, side) if isinstance(side, int) else _text(2, side)) for side in shape)
    return _text(1, name) + _bytes(2, _bytes(1, _number(1, _FLOAT) + _bytes(2, sides)))


def _number(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(value)


def _text(field: int, value: str) -> bytes:
    return _bytes(field, value.encode())


def _bytes(field: int, value: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(value)) + value


def _varint(value: int) -> bytes:
    found = bytearray()
    while value > 0x7F:
        found.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*found, value])
