"""Convolutions and linear layers as one matrix product of int8 codes, requantized in place.

Rows are pixels of the result, columns are outputs, and the sum goes over kernel positions and
channels: an implicit GEMM, whose left operand is never written down. ``tl.dot`` is exact on
int8. Codes are shifted by 128, ``x = q - 128``, so the layer's ``sum((q - z) * w)`` is
``sum(x * w) + (128 - z) * sum(w)``; the second term is in the bias already, and padding is
the shifted zero point.

Tensor cores saturate sums at the ends of int32, and no sum gets there: of every layer 255
times the sum of a channel's absolute weights is an int32 (`qtool.core.accumulator`).
"""

import triton
import triton.language as tl

from runtimes.triton.kernels.rounding import to_codes
from runtimes.triton.kernels.windows import corners, load_codes


@triton.jit(do_not_specialize=["border"])
def contract(
    x, w, factor, bias, y, pixels, border, low, high, shift,
    IN: tl.constexpr, OUT: tl.constexpr, X_STRIDES: tl.constexpr, Y_PITCH: tl.constexpr,
    KERNEL: tl.constexpr, STRIDES: tl.constexpr, DILATIONS: tl.constexpr,
    CORNER: tl.constexpr, CHANNELS: tl.constexpr, OUTPUTS: tl.constexpr,
    W_PITCH: tl.constexpr, PADDED: tl.constexpr, FLOAT: tl.constexpr,
    PIXELS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """Compute PIXELS x COLUMNS results of one group, DEPTH products of each a step.

    W_PITCH codes of w are an output's: kernel row, column, channel, then zeros. Y_PITCH is
    the outputs of all groups. y is float32, ``f32(sum) * factor`` itself, where FLOAT.
    """
    group = tl.program_id(2)
    pixel = tl.program_id(0) * PIXELS + tl.arange(0, PIXELS)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    # Rows and columns beyond the end repeat the last one: nothing is masked but the store.
    output = group * OUTPUTS + tl.minimum(column, OUTPUTS - 1)
    image, row, line = corners(tl.minimum(pixel, pixels - 1), OUT, STRIDES, CORNER)
    first = image * X_STRIDES[0] + row * X_STRIDES[1] + line * X_STRIDES[2]
    first = x + first + group * CHANNELS * X_STRIDES[3]
    total = tl.full((PIXELS, COLUMNS), 0, tl.int32)
    for start in range(0, KERNEL[0] * KERNEL[1] * CHANNELS, DEPTH):
        place, channel = products(start, KERNEL[0] * KERNEL[1], CHANNELS, DEPTH)
        i = place // KERNEL[1] * DILATIONS[0]
        j = place % KERNEL[1] * DILATIONS[1]
        at = first[:, None] + (i * X_STRIDES[1] + j * X_STRIDES[2] + channel * X_STRIDES[3])
        codes = load_codes(at, row[:, None] + i, line[:, None] + j, border, IN, PADDED)
        step = start + tl.arange(0, DEPTH)
        weights = tl.load(w + output[None, :] * W_PITCH + step[:, None])
        total = tl.dot(codes, weights, total, out_dtype=tl.int32)
    total += tl.load(bias + output)[None, :]
    value = total.to(tl.float32) * tl.load(factor + output)[None, :]
    if not FLOAT:
        value = to_codes(value, low, high, shift)
    target = y + pixel[:, None] * Y_PITCH + group * OUTPUTS + column[None, :]
    tl.store(target, value, mask=(pixel < pixels)[:, None] & (column < OUTPUTS)[None, :])


@triton.jit
def products(
    start, PLACES: tl.constexpr, CHANNELS: tl.constexpr, DEPTH: tl.constexpr
):  # fmt: skip
    """Return kernel position and channel of DEPTH products from `start` on, (1, DEPTH).

    The position is one for all, which makes for wide loads, where steps end with a position's
    channels. Beyond the last position any code will do: its weight is 0.
    """
    if CHANNELS % DEPTH == 0:
        return start // CHANNELS, (start % CHANNELS + tl.arange(0, DEPTH))[None, :]
    else:
        step = (start + tl.arange(0, DEPTH))[None, :]
        return tl.minimum(step // CHANNELS, PLACES - 1), step % CHANNELS
