"""float32 -> codes in Relay operators: clipped, rounded half to even, as a byte.

Relay's own ``round`` rounds half away from zero. Between 2^23 and 2^24 floats are the
integers: a sum with 1e7 there is rounded half to even, and its bits, read as an integer, count
on from those of 1e7.

    %1 = clip(%0, a_min=-3f, a_max=252f);
    %2 = add(%1, 1e+07f);
    %3 = reinterpret(%2, dtype="int32");
    %4 = subtract(%3, 1259902589);            // the bits of 1e7, less the zero point

The subtraction is one of integers, because TVM rewrites ``(x + c) - c`` to ``x``, in floats
too. Clipping to whole numbers and rounding commute, so the clip may come first; it also stands
between a product and the sum, which LLVM would otherwise compute as one, rounded once.
"""

import numpy as np

from passes.emit.relay.text import Text, number, small
from qtool.core.dialect import Op

# Even, and exact in the six digits that Relay prints.
_SHIFT = 1e7
_SHIFT_BITS = int(np.float32(_SHIFT).view(np.int32))


def scaled(text: Text, acc: str, factor: str) -> str:
    """``f32(acc) * factor``: int32 accumulators to floats on the grid of the result."""
    return text.call("multiply", text.call("cast", acc, dtype="float32"), factor)


def codes(text: Text, value: str, op: Op, zero_point: int) -> str:
    """``clip(rint(value) + zero_point)`` as uint8, the window that of `op`.

    Args:
        text: where it is added.
        value: float32, of any size; NaN becomes the window's end.
        op: whose result it is.
        zero_point: 0 where it is part of `value`.
    """
    lo, hi = float(op.lo - zero_point), float(op.hi - zero_point)
    return rounded(text, text.call("clip", value, a_min=lo, a_max=hi), zero_point)


def rounded(text: Text, value: str, zero_point: int) -> str:
    """``rint(value) + zero_point`` as uint8, of values that are in the window already."""
    bits = text.call("reinterpret", text.call("add", value, number(_SHIFT)), dtype="int32")
    code = text.call("subtract", bits, small(_SHIFT_BITS - zero_point, "int32"))
    return text.call("cast", code, dtype="uint8")


def centred(text: Text, x: str, zero_point: int, dtype: str) -> str:
    """``x - zero_point`` in a type that holds it."""
    wide = text.call("cast", x, dtype=dtype)
    return text.call("subtract", wide, small(zero_point, dtype)) if zero_point else wide
