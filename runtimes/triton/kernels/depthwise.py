"""Convolutions with one input channel a group: no matrix product, a sum over positions."""

import triton
import triton.language as tl

from runtimes.triton.kernels.rounding import to_codes
from runtimes.triton.kernels.windows import corners, known, load_codes


@triton.jit(do_not_specialize=["border"])
def depthwise(
    x, w, factor, bias, y, pixels, border, low, high, shift,
    IN: tl.constexpr, OUT: tl.constexpr, X_STRIDES: tl.constexpr,
    KERNEL: tl.constexpr, STRIDES: tl.constexpr, DILATIONS: tl.constexpr,
    CORNER: tl.constexpr, OUTPUTS: tl.constexpr, MULTIPLIER: tl.constexpr,
    PADDED: tl.constexpr, PIXELS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Compute PIXELS x COLUMNS results.

    w is (kernel positions, OUTPUTS), OUTPUTS are those of all groups, and output o reads
    channel ``o // MULTIPLIER``.
    """
    pixel = (tl.program_id(0) * PIXELS + tl.arange(0, PIXELS))[:, None]
    output = (tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS))[None, :]
    image, row, line = corners(tl.minimum(pixel, pixels - 1), OUT, STRIDES, CORNER)
    there = known(output, OUTPUTS, COLUMNS)
    first = x + image * X_STRIDES[0] + there // MULTIPLIER * X_STRIDES[3]
    total = tl.full((PIXELS, COLUMNS), 0, tl.int32) + tl.load(bias + there)
    for place in range(KERNEL[0] * KERNEL[1]):
        i = row + place // KERNEL[1] * DILATIONS[0]
        j = line + place % KERNEL[1] * DILATIONS[1]
        at = first + i * X_STRIDES[1] + j * X_STRIDES[2]
        codes = load_codes(at, i, j, border, IN, PADDED)
        weights = tl.load(w + place * OUTPUTS + there)
        total += codes.to(tl.int32) * weights.to(tl.int32)
    value = total.to(tl.float32) * tl.load(factor + there)
    target = y + pixel * OUTPUTS + output
    mask = (pixel < pixels) & (output < OUTPUTS)
    tl.store(target, to_codes(value, low, high, shift), mask=mask)
