"""The integer dialect's arithmetic, once, in numpy: every rounding and saturation of qtool.

Each formula is what ONNX Runtime 1.31 computes on x86-64 (measured on tie-heavy random data,
0 mismatches; see tests/test_numerics.py). All real arithmetic is float32; `rint` rounds half
to even; results saturate to the container, then to the b-bit window ``[lo, hi]``.

Sources: ONNX operator specification (QuantizeLinear, DequantizeLinear, QLinearConv,
QLinearMatMul) and ONNX Runtime's com.microsoft contrib operators.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

F32 = np.float32
Codes = NDArray[np.uint8]
Floats = NDArray[np.float32]
Accumulators = NDArray[np.int32]
Function = Callable[[NDArray[np.float64]], NDArray[np.float64]]

# QLinearMul: 255 * 255 * 2^15 + 255 is below 2^31. From a factor of 2^31 / 255^2 on ONNX
# Runtime's int32 overflows, and codes that should saturate at the top become 0.
MULTIPLY_FACTOR_MAX = 2**15


def saturate(values: NDArray[Any], lo: int, hi: int) -> Codes:
    """Clip already rounded `values` to the window [`lo`, `hi`] of a uint8 container."""
    clipped: Codes = np.clip(values, lo, hi).astype(np.uint8)
    return clipped


def quantize(
    x: Floats, scale: np.float32, zero_point: int, lo: int = 0, hi: int = 255
) -> Codes:
    """QuantizeLinear: ``rint(x / scale) + zero_point``; a true division, not a reciprocal.

    NaN has no code in the ONNX specification; it maps to `lo` here.
    """
    with np.errstate(over="ignore"):  # beyond float32 saturates like any other large value
        rounded = np.rint(np.asarray(x, F32) / F32(scale)) + F32(zero_point)
    return saturate(np.nan_to_num(rounded, nan=lo, posinf=hi, neginf=lo), lo, hi)


def dequantize(q: Codes, scale: np.float32, zero_point: int) -> Floats:
    """DequantizeLinear: ``f32(q - zero_point) * scale``."""
    with np.errstate(over="ignore"):  # inf, as in every runtime
        values: Floats = (q.astype(np.int32) - zero_point).astype(F32) * F32(scale)
    return values


def multiplier(x_scale: np.float32, w_scale: Floats, y_scale: np.float32) -> Floats:
    """QLinearConv, QLinearMatMul, QGemm: ``(xs * ws) / ys``, in this order, per channel.

    `requantize` is exact for finite factors; an infinite one has no answer for a sum of 0.
    """
    with np.errstate(over="ignore"):
        return (F32(x_scale) * w_scale.astype(F32)) / F32(y_scale)


def requantize(
    acc: Accumulators, factor: Floats, zero_point: int, lo: int = 0, hi: int = 255
) -> Codes:
    """Accumulators to codes: ``rint(f32(acc) * factor) + zero_point``.

    Args:
        acc: (N, C, ...) int32, bias included.
        factor: (C,) float32 of `multiplier`.
        zero_point: of the result.
        lo: smallest code of the window.
        hi: largest code of the window.
    """
    shaped = factor.reshape(1, -1, *[1] * (acc.ndim - 2))
    with np.errstate(over="ignore"):  # saturates like any other large value
        scaled = acc.astype(F32) * shaped
    return saturate(np.rint(scaled) + F32(zero_point), lo, hi)


def scale_accumulators(acc: Accumulators, factor: Floats) -> Floats:
    """QGemm without a grid of its result: ``f32(acc) * (xs * ws)``.

    Args:
        acc: (N, O) int32, bias included.
        factor: (O,) float32 of `bias_scale`.
    """
    with np.errstate(over="ignore"):  # inf, as in every runtime
        return acc.astype(F32) * factor.reshape(1, -1)


def quantize_bias(
    bias: NDArray[np.float64], x_scale: np.float32, w_scale: Floats
) -> NDArray[Any]:
    """Bias in accumulator units, ``rint(bias / (xs * ws))``, as float64 (may exceed int32)."""
    return np.rint(bias / bias_scale(x_scale, w_scale).astype(np.float64))


def bias_scale(x_scale: np.float32, w_scale: Floats) -> Floats:
    """Scale of the int32 bias, exactly the float32 product ``xs * ws``."""
    return F32(x_scale) * w_scale.astype(F32)


def fma(a: ArrayLike, b: ArrayLike, c: ArrayLike) -> Floats:
    """Fused multiply-add of float32 operands, rounded once to float32.

    The product of two float32 is exact in float64. The sum is rounded to odd there (Boldo and
    Melquiond 2008), so that the second rounding, to float32, cannot err.
    """
    product = np.asarray(np.multiply(a, b, dtype=np.float64))
    addend = np.asarray(c, np.float64)
    total = np.asarray(product + addend)
    # TwoSum (Knuth): product + addend == total + error, exactly.
    shadow = total - product
    error = (product - (total - shadow)) + (addend - shadow)
    even = (total.view(np.int64) & 1) == 0
    toward = np.where(error > 0, np.inf, -np.inf)
    odd = np.where((error != 0) & even, np.nextafter(total, toward), total)
    rounded: Floats = odd.astype(F32)
    return rounded


def add(
    a: Codes,
    a_scale: np.float32,
    a_zero: int,
    b: Codes,
    b_scale: np.float32,
    b_zero: int,
    y_scale: np.float32,
    y_zero: int,
    lo: int = 0,
    hi: int = 255,
) -> Codes:
    """QLinearAdd: ``rint(fma(a, ra, fma(b, rb, c)))`` on raw codes, see `add_coefficients`."""
    ra, rb, c = add_coefficients(a_scale, a_zero, b_scale, b_zero, y_scale, y_zero)
    inner = fma(b.astype(F32), rb, c)
    return saturate(np.rint(fma(a.astype(F32), ra, inner)), lo, hi)


def add_coefficients(
    a_scale: np.float32,
    a_zero: int,
    b_scale: np.float32,
    b_zero: int,
    y_scale: np.float32,
    y_zero: int,
) -> tuple[np.float32, np.float32, np.float32]:
    """QLinearAdd: ``ra = sa/sy``, ``rb = sb/sy``, ``c = zy - fma(ra, za, rb*zb)``."""
    ra = F32(a_scale) / F32(y_scale)
    rb = F32(b_scale) / F32(y_scale)
    offset = fma(ra, F32(a_zero), F32(rb * F32(b_zero)))
    return ra, rb, F32(F32(y_zero) - offset)


def add_swaps(a_shape: tuple[int, ...], b_shape: tuple[int, ...]) -> bool:
    """Return whether ONNX Runtime's QLinearAdd computes `add` of (b, a) instead of (a, b).

    Its kernel takes a scalar as second operand only, so it swaps them where the innermost
    axis that is not 1 in both shapes is 1 in `a_shape`: ``(N, C, 1, 1) + (N, C, H, W)``, a
    constant of one element in front, or two tensors of one element. The order matters, see
    `add_coefficients`. Found on every pair of broadcastable shapes over {1, 2, 3}^3.
    """
    rank = max(len(a_shape), len(b_shape))
    a, b = ((1,) * (rank - len(shape)) + shape for shape in (a_shape, b_shape))
    return next((n == 1 for n, m in zip(a[::-1], b[::-1], strict=True) if n * m != 1), True)


def multiply_factor(
    a_scale: np.float32, b_scale: np.float32, y_scale: np.float32
) -> np.float32:
    """QLinearMul's factor, ``(sa * sb) / sy``; exact below `MULTIPLY_FACTOR_MAX`."""
    with np.errstate(over="ignore"):
        return F32(F32(F32(a_scale) * F32(b_scale)) / F32(y_scale))


def multiply(
    a: Codes,
    a_scale: np.float32,
    a_zero: int,
    b: Codes,
    b_scale: np.float32,
    b_zero: int,
    y_scale: np.float32,
    y_zero: int,
    lo: int = 0,
    hi: int = 255,
) -> Codes:
    """QLinearMul: ``rint(f32((a - za) * (b - zb)) * ((sa * sb) / sy) + zy)``, not fused.

    The shapes broadcast as in ONNX, and the operands' order does not matter. The zero point
    is added before rounding, so that ties go to an even code. Source: ONNX Runtime's
    MlasQLinearMul. Exact where `multiply_factor` is below `MULTIPLY_FACTOR_MAX`.
    """
    product = (a.astype(np.int32) - a_zero) * (b.astype(np.int32) - b_zero)
    scaled = product.astype(F32) * multiply_factor(a_scale, b_scale, y_scale)
    return saturate(np.rint(scaled + F32(y_zero)), lo, hi)


def average_factor(x_scale: np.float32, y_scale: np.float32, count: int) -> np.float32:
    """QLinearGlobalAveragePool's factor, ``xs / (ys * n)``."""
    return F32(F32(x_scale) / F32(F32(y_scale) * F32(count)))


def average(
    total: Accumulators,
    x_scale: np.float32,
    y_scale: np.float32,
    count: int,
    zero_point: int,
    lo: int = 0,
    hi: int = 255,
) -> Codes:
    """QLinearGlobalAveragePool: ``rint(f32(S) * (xs / (ys * n))) + zero_point``.

    Args:
        total: int32 sums of ``q - x_zero_point``.
        x_scale: scale of the summed codes.
        y_scale: scale of the result.
        count: positions summed.
        zero_point: of the result.
        lo: smallest code of the window.
        hi: largest code of the window.
    """
    factor = average_factor(x_scale, y_scale, count)
    return saturate(np.rint(total.astype(F32) * factor) + F32(zero_point), lo, hi)


def rescale_table(
    x_scale: np.float32,
    x_zero: int,
    y_scale: np.float32,
    y_zero: int,
    lo: int = 0,
    hi: int = 255,
) -> Codes:
    """Return the 256 answers of a change of grid, ``rint(dequantize(q) / ys) + zy``.

    Source: com.microsoft QLinearLeakyRelu with alpha 1, and each input of QLinearConcat.
    """
    return leaky_table(1.0, x_scale, x_zero, y_scale, y_zero, lo, hi)


def leaky_table(
    alpha: float,
    x_scale: np.float32,
    x_zero: int,
    y_scale: np.float32,
    y_zero: int,
    lo: int = 0,
    hi: int = 255,
) -> Codes:
    """Return the 256 answers of QLinearLeakyRelu: ``v = dequantize(q)``, times alpha below 0.

    All in float32: ``rint((v if v >= 0 else v * f32(alpha)) / ys) + zy``. Source: ONNX
    Runtime's com.microsoft QLinearLeakyRelu, which computes this table too.
    """
    values = dequantize(np.arange(256, dtype=np.uint8), x_scale, x_zero)
    with np.errstate(over="ignore"):
        leaked = np.where(values >= 0, values, values * F32(alpha))
    return quantize(leaked, y_scale, y_zero, lo, hi)


def lookup_table(
    function: Function,
    x_scale: np.float32,
    x_zero: int,
    y_scale: np.float32,
    y_zero: int,
    lo: int = 0,
    hi: int = 255,
) -> Codes:
    """Return the 256 answers of `function` from grid to grid, ``rint(f((q - zx) * xs) / ys)``.

    qtool's own definition: float64 throughout and rounded once, half to even, before the zero
    point is added. Artifacts carry the table itself, so every runtime reads the same answers;
    operators such as QLinearSigmoid depend on a runtime's own approximation of exp.

    Args:
        function: elementwise, from float64 to float64, such as `sigmoid`.
        x_scale: scale of the table's index.
        x_zero: zero point of the table's index.
        y_scale: scale of the table's entries.
        y_zero: zero point of the table's entries.
        lo: smallest code of the window.
        hi: largest code of the window.
    """
    values = function((np.arange(256) - float(x_zero)) * np.float64(x_scale))
    with np.errstate(over="ignore"):
        rounded = np.rint(values / np.float64(y_scale)) + y_zero
    return saturate(np.nan_to_num(rounded, nan=lo, posinf=hi, neginf=lo), lo, hi)


def sigmoid(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """``1 / (1 + exp(-x))``, ONNX Sigmoid."""
    with np.errstate(over="ignore"):  # exp(800) is inf, and its reciprocal 0
        result: NDArray[np.float64] = 1 / (1 + np.exp(-x))
    return result


def hard_sigmoid(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """``max(0, min(1, x / 6 + 1 / 2))``, torch's Hardsigmoid."""
    result: NDArray[np.float64] = np.clip(x / 6 + 0.5, 0, 1)
    return result


def hard_sigmoid_table(
    single: bool,
    x_scale: np.float32,
    x_zero: int,
    y_scale: np.float32,
    y_zero: int,
    lo: int = 0,
    hi: int = 255,
) -> Codes:
    """Return the 256 answers of Hardsigmoid, ``relu6(x + 3) / 6``.

    A QLinearAdd of the constant 3 (scale 3, code 1) onto the grid (6 ys, 0), whose codes are
    those of (ys, 0). Where the zero point is another, or the tensor has a `single` element,
    which ONNX Runtime adds in another order, a table of its own (`lookup_table`).
    """
    if single or y_zero != 0:
        sixth = np.float64(F32(1 / 6))  # what ONNX keeps of it
        return lookup_table(
            lambda x: np.clip(sixth * x + 0.5, 0.0, 1.0), x_scale, x_zero, y_scale, y_zero,
            lo, hi,
        )  # fmt: skip
    codes, top = np.arange(256, dtype=np.uint8), clip_code(1.0, y_scale, 0)
    ones, six = np.ones_like(codes), F32(6) * F32(y_scale)
    return add(codes, x_scale, x_zero, ones, F32(3), 0, six, 0, lo, min(hi, top))


def silu(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """``x * sigmoid(x)``, torch's SiLU (Swish)."""
    result: NDArray[np.float64] = x * sigmoid(x)
    return result


def clip_code(bound: float, scale: np.float32, zero_point: int) -> int:
    """Code of a float clipping bound: ``min(v, c)`` and rounding commute, so this is exact.

    Bounds beyond int32 codes, infinite ones too, come back as the nearest int32.
    """
    with np.errstate(over="ignore"):
        code = np.rint(F32(bound) / F32(scale))
    return int(np.clip(float(code), -(2**31), 2**31 - 1)) + zero_point
