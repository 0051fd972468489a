"""The integer dialect in Relay operators, a function an operator: exact, and nothing hidden.

Each mirrors a formula of `qtool.core.numerics`. Layers multiply 16-bit integers, centred codes
and weights, into 32 bits: none of TVM's byte instructions, some of which saturate.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from passes.emit.relay.moves import MOVES, Adapter
from passes.emit.relay.rounding import centred, codes, rounded, scaled
from passes.emit.relay.text import Text, number
from qtool.core import numerics
from qtool.core.dialect import (
    Add,
    Average,
    Conv,
    FloatGemm,
    Gemm,
    Grid,
    Island,
    Lookup,
    Mul,
    Op,
    Quantize,
)
from qtool.core.errors import UnsupportedError


def dequantized(text: Text, x: str, grid: Grid) -> str:
    """``f32(x - zero_point) * scale``."""
    scale = text.parameter("output", "scale", one(grid.scale))
    return scaled(text, centred(text, x, grid.zero_point, "int32"), scale)


def one(value: Any, dtype: str = "float32") -> NDArray[Any]:
    """Return a vector of one element."""
    return np.array([value], dtype)


def _quantize(op: Quantize, text: Text, inputs: list[str]) -> str:
    scale = text.parameter(op.name, "scale", one(op.grid.scale))
    steps, zero = text.call("divide", *inputs, scale), op.grid.zero_point
    # Not `clip`, which makes NaN the largest code; in this order it is the smallest.
    above = text.call("maximum", steps, number(op.lo - zero))
    return rounded(text, text.call("minimum", above, number(op.hi - zero)), zero)


def _conv(op: Conv, text: Text, inputs: list[str]) -> str:
    return _requantized(op, text, conv_acc(op, text, inputs))


def conv_acc(op: Conv, text: Text, inputs: list[str]) -> str:
    """Return the int32 sums of a convolution, its bias included."""
    weight = text.call("cast", text.parameter(op.name, "weight", op.w_OIHW), dtype="int16")
    # Padding is 0 in real terms, and centred codes are 0 there.
    x = centred(text, inputs[0], op.x.zero_point, "int16")
    acc = text.call("nn.conv2d", x, weight, **conv_attributes(op))
    return text.call("add", acc, text.parameter(op.name, "bias", channels(op, op.bias)))


def conv_attributes(op: Conv) -> dict[str, Any]:
    """Return what ``nn.conv2d`` and ``qnn.conv2d`` are told of a convolution."""
    return {
        "strides": op.strides, "padding": op.pads, "dilation": op.dilations,
        "groups": op.groups, "channels": len(op.w_OIHW), "kernel_size": op.w_OIHW.shape[2:],
        "out_dtype": "int32",
    }  # fmt: skip


def _gemm(op: Gemm, text: Text, inputs: list[str]) -> str:
    return _requantized(op, text, gemm_acc(op, text, inputs))


def gemm_acc(op: Gemm, text: Text, inputs: list[str]) -> str:
    """Return the int32 sums of a linear layer, its bias included."""
    weight = text.call("cast", text.parameter(op.name, "weight", op.w_OI), dtype="int16")
    x = centred(text, inputs[0], op.x.zero_point, "int16")
    acc = text.call("nn.dense", x, weight, units=len(op.w_OI), out_dtype="int32")
    return text.call("add", acc, text.parameter(op.name, "bias", channels(op, op.bias)))


def channels(op: Conv | Gemm, values: NDArray[Any]) -> NDArray[Any]:
    """Return a value a channel, (C, 1, 1) behind a convolution."""
    shape = (op.shape[0], *[1] * (len(op.shape) - 1))
    return np.broadcast_to(values.reshape(-1, *shape[1:]), shape)


def _float_gemm(op: FloatGemm, text: Text, inputs: list[str]) -> str:
    return scaled(text, gemm_acc(op, text, inputs), _factor(op, text))


def _requantized(op: Conv | Gemm, text: Text, acc: str) -> str:
    return codes(text, scaled(text, acc, _factor(op, text)), op, op.grid.zero_point)


def _factor(op: Conv | Gemm, text: Text) -> str:
    factor = numerics.multiplier(op.x.scale, op.w_scale, op.grid.scale)
    return text.parameter(op.name, "factor", channels(op, factor))


def _add(op: Add, text: Text, inputs: list[str]) -> str:
    """``rint(fma(a, ra, fma(b, rb, c)))``, the sums in float64.

    Products are exact there. Their sums are rounded to float64 and then to float32, which is
    twice: it is tried for all 65,536 pairs of codes whether that ever matters, and if it does,
    their answers are a table.
    """
    a, b = inputs
    coefficients = numerics.add_coefficients(
        op.a.scale, op.a.zero_point, op.b.scale, op.b.zero_point, op.grid.scale,
        op.grid.zero_point,
    )  # fmt: skip
    answers = _answers(op)
    if not np.array_equal(answers, _rounded_twice(op, *coefficients)):
        return _pair_table(op, text, a, b, answers)
    ra, rb, c = (
        text.parameter(op.name, what, one(value, "float64"))
        for what, value in zip(("ra", "rb", "c"), coefficients, strict=True)
    )
    # Else TVM makes it part of the kernel that computes b, which would then write floats.
    inner = _multiply_add(text, text.call("annotation.stop_fusion", b), rb, c)
    outer = _multiply_add(text, a, ra, text.call("cast", inner, dtype="float64"))
    return codes(text, outer, op, 0)


def _multiply_add(text: Text, x: str, factor: str, addend: str) -> str:
    """``f32(f64(x) * factor + addend)``."""
    product = text.call("multiply", text.call("cast", x, dtype="float64"), factor)
    return text.call("cast", text.call("add", product, addend), dtype="float32")


def _answers(op: Add) -> NDArray[np.uint8]:
    """Return the sum of every pair of codes, (a, b)."""
    every = np.arange(256, dtype=np.uint8)
    return numerics.add(
        every[:, None], op.a.scale, op.a.zero_point, every, op.b.scale, op.b.zero_point,
        op.grid.scale, op.grid.zero_point, op.lo, op.hi,
    )  # fmt: skip


def _rounded_twice(op: Add, ra: Any, rb: Any, c: Any) -> NDArray[np.uint8]:
    """Return the same in float64, as Relay computes it."""
    every = np.arange(256, dtype=np.float64)
    inner = (every * np.float64(rb) + np.float64(c)).astype(np.float32)
    outer = (every[:, None] * np.float64(ra) + inner.astype(np.float64)).astype(np.float32)
    return numerics.saturate(np.rint(outer), op.lo, op.hi)


def _pair_table(op: Add, text: Text, a: str, b: str, answers: NDArray[np.uint8]) -> str:
    """Look up ``answers[256 * a + b]``."""
    high = text.call("multiply", text.call("cast", a, dtype="int32"), "256")
    index = text.call("add", high, text.call("cast", b, dtype="int32"))
    table = text.parameter(op.name, "answers", answers.reshape(-1))
    return text.call("take", table, index, axis=0, mode="fast")


def _mul(op: Mul, text: Text, inputs: list[str]) -> str:
    a, b = (
        centred(text, x, grid.zero_point, "int32")
        for x, grid in zip(inputs, (op.a, op.b), strict=True)
    )
    factor = numerics.multiply_factor(op.a.scale, op.b.scale, op.grid.scale)
    value = scaled(
        text, text.call("multiply", a, b), text.parameter(op.name, "factor", one(factor))
    )
    # A step beyond the window on either side; and LLVM cannot fuse product and sum.
    zero = op.grid.zero_point
    span = {"a_min": float(op.lo - zero - 1), "a_max": float(op.hi - zero + 1)}
    moved = text.call("add", text.call("clip", value, **span), number(zero))
    return codes(text, moved, op, 0)


def _average(op: Average, text: Text, inputs: list[str]) -> str:
    x = centred(text, inputs[0], op.x.zero_point, "int32")
    total = text.call("sum", x, axis=(2, 3), keepdims=True)
    factor = numerics.average_factor(op.x.scale, op.grid.scale, op.count)
    given = text.parameter(op.name, "factor", one(factor))
    return codes(text, scaled(text, total, given), op, op.grid.zero_point)


def _lookup(op: Lookup, text: Text, inputs: list[str]) -> str:
    index = text.call("cast", *inputs, dtype="int32")
    table = text.parameter(op.name, "table", op.table)
    return text.call("take", table, index, axis=0, mode="fast")


def _island(op: Island, text: Text, inputs: list[str]) -> str:
    """Refuse: floating point that only ONNX Runtime defines."""
    raise UnsupportedError(
        f"layer {op.name}: {', '.join(op.operators)} in floating point "
        "(--allow-float), which the Relay target does not hold; --target onnx can hold it"
    )


OPERATORS: dict[type[Op], Adapter] = {
    Quantize: _quantize, Conv: _conv, Gemm: _gemm, FloatGemm: _float_gemm, Add: _add,
    Mul: _mul, Average: _average, Lookup: _lookup, Island: _island, **MOVES,
}  # fmt: skip
