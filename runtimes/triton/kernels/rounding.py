"""Floats to codes: the one place where kernels round and saturate."""

import triton
import triton.language as tl

# 1.5 * 2^23: float32 has only integers near it, so that adding it rounds half to even.
ROUNDER = tl.constexpr(12582912.0)


@triton.jit
def to_codes(value, low, high, shift):
    """``clip(rint(value), low, high) + shift`` as int8.

    Clipping at integers and rounding commute, and a clipped value is small enough for
    `ROUNDER`. The clip also stands between a product before it and the sum after it, which
    no compiler can contract then.

    Args:
        value: float32. Of NaN and `low` the maximum is `low`, as in the reference.
        low: the window's ends without the zero point, where `shift` adds that.
        high: as `low`.
        shift: what is added to the rounded value.
    """
    clipped = tl.minimum(tl.maximum(value, low), high)
    return ((clipped + ROUNDER) - ROUNDER + shift).to(tl.int8)
