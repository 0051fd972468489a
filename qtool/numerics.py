"""The integer dialect's arithmetic, once, in numpy: every rounding and saturation of qtool.

Each formula is what ONNX Runtime 1.31 computes on x86-64 (measured on tie-heavy random data,
0 mismatches; see tests/test_numerics.py). All real arithmetic is float32; `rint` rounds half
to even; results saturate to the container, then to the b-bit window ``[lo, hi]``.

Sources: ONNX operator specification (QuantizeLinear, DequantizeLinear, QLinearConv,
QLinearMatMul) and ONNX Runtime's com.microsoft contrib operators.
"""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

F32 = np.float32
Codes = NDArray[np.uint8]
Floats = NDArray[np.float32]
Accumulators = NDArray[np.int32]


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
    return (q.astype(np.int32) - zero_point).astype(F32) * F32(scale)


def quantize_weight(w: Floats, scale: Floats, limit: int) -> NDArray[np.int8]:
    """Symmetric weight codes ``clip(rint(w / scale), -limit, limit)``.

    Args:
        w: (C, ...) float32.
        scale: (C,) float32, one step per output channel.
        limit: largest code, `qspec.weight_limit(bits)`.
    """
    steps = scale.reshape(-1, *[1] * (w.ndim - 1))
    codes: NDArray[np.int8] = np.clip(np.rint(w / steps), -limit, limit).astype(np.int8)
    return codes


def binary_weight(w: Floats) -> NDArray[np.int8]:
    """One-bit weight codes: 1 where ``w >= 0``, else -1 (BWN, Rastegari et al. 2016)."""
    return np.where(w >= 0, 1, -1).astype(np.int8)


def multiplier(x_scale: np.float32, w_scale: Floats, y_scale: np.float32) -> Floats:
    """QLinearConv, QLinearMatMul, QGemm: ``(xs * ws) / ys``, in this order, per channel."""
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
    return saturate(np.rint(acc.astype(F32) * shaped) + F32(zero_point), lo, hi)


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
    """Return the 256 answers of a change of grid, ``rint(dequantize(q) / ys) + zy``."""
    codes = np.arange(256, dtype=np.uint8)
    return quantize(dequantize(codes, x_scale, x_zero), y_scale, y_zero, lo, hi)


def clip_code(bound: float, scale: np.float32, zero_point: int) -> int:
    """Code of a float clipping bound: ``min(v, c)`` and rounding commute, so this is exact.

    Bounds beyond int32 codes, infinite ones too, come back as the nearest int32.
    """
    with np.errstate(over="ignore"):
        code = np.rint(F32(bound) / F32(scale))
    return int(np.clip(float(code), -(2**31), 2**31 - 1)) + zero_point
