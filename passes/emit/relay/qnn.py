"""Operators that Relay's ``qnn`` dialect has, as ``--relay-qnn`` writes them.

What TVM makes of them is its own: ``qnn.requantize`` and its kin round ties away from zero and
form the quotient of scales in another order than ONNX Runtime and the reference. Their results
differ in some codes (docs/relay.md).
"""

from typing import Any

import numpy as np

from passes.emit.relay.moves import Adapter
from passes.emit.relay.operators import OPERATORS, conv_attributes
from passes.emit.relay.text import Text
from qtool.core.dialect import Add, Conv, Gemm, Grid, Mul, Op, Quantize
from qtool.core.numerics import bias_scale

# Of what there is the nearest to the dialect's arithmetic.
_ROUNDING = {"rounding": "TONEAREST", "compute_dtype": "float32"}


def dequantized(text: Text, x: str, grid: Grid) -> str:
    """``qnn.dequantize``."""
    operands = _grid(text, "output", "y", grid)
    return text.call("qnn.dequantize", x, *operands, out_dtype="float32")


def _grid(text: Text, owner: str, what: str, grid: Grid) -> tuple[str, str]:
    """Return scale, a parameter, and zero point of a grid, as operands."""
    scale = np.array(grid.scale, np.float32)
    return text.parameter(owner, f"{what}_scale", scale), str(grid.zero_point)


def _quantize(op: Quantize, text: Text, inputs: list[str]) -> str:
    grid = _grid(text, op.name, "y", op.grid)
    return _window(op, text, text.call("qnn.quantize", *inputs, *grid, out_dtype="uint8"))


def _conv(op: Conv, text: Text, inputs: list[str]) -> str:
    return _layer(op, text, inputs, "qnn.conv2d", op.w_OIHW, conv_attributes(op))


def _gemm(op: Gemm, text: Text, inputs: list[str]) -> str:
    attributes = {"units": len(op.w_OI), "out_dtype": "int32"}
    return _layer(op, text, inputs, "qnn.dense", op.w_OI, attributes)


def _layer(
    op: Conv | Gemm, text: Text, inputs: list[str], operator: str, weight: Any,
    attributes: dict[str, Any],
) -> str:  # fmt: skip
    """Layer, bias, ``qnn.requantize``, window."""
    x_scale, x_zero = _grid(text, op.name, "x", op.x)
    scales = np.broadcast_to(op.w_scale, op.shape[:1])
    acc = text.call(
        operator, *inputs, text.parameter(op.name, "weight", weight), x_zero, "0", x_scale,
        text.parameter(op.name, "weight_scale", scales), **attributes,
    )  # fmt: skip
    bias = np.broadcast_to(op.bias, op.shape[:1])
    acc = text.call("nn.bias_add", acc, text.parameter(op.name, "bias", bias), axis=1)
    unit = text.parameter(op.name, "bias_scale", bias_scale(op.x.scale, scales))
    grid = _grid(text, op.name, "y", op.grid)
    result = text.call(
        "qnn.requantize", acc, unit, "0", *grid, axis=1, **_ROUNDING, out_dtype="uint8"
    )
    return _window(op, text, result)


def _add(op: Add, text: Text, inputs: list[str]) -> str:
    return _binary(op, text, inputs, "qnn.add")


def _mul(op: Mul, text: Text, inputs: list[str]) -> str:
    return _binary(op, text, inputs, "qnn.mul")


def _binary(op: Add | Mul, text: Text, inputs: list[str], operator: str) -> str:
    grids = [
        part
        for what, grid in (("a", op.a), ("b", op.b), ("y", op.grid))
        for part in _grid(text, op.name, what, grid)
    ]
    return _window(op, text, text.call(operator, *inputs, *grids))


def _window(op: Op, text: Text, x: str) -> str:
    """Clip codes where the window is not all of a byte."""
    if (op.lo, op.hi) == (0, 255):
        return x
    return text.call("clip", x, a_min=float(op.lo), a_max=float(op.hi))


QNN: dict[type[Op], Adapter] = OPERATORS | {
    Quantize: _quantize, Conv: _conv, Gemm: _gemm, Add: _add, Mul: _mul,
}  # fmt: skip
