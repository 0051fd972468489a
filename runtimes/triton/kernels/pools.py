"""Maxima over windows, means over images."""

import triton
import triton.language as tl

from runtimes.triton.kernels.rounding import to_codes
from runtimes.triton.kernels.windows import corners, known, load_codes


@triton.jit
def max_pool(
    x, y, pixels,
    IN: tl.constexpr, OUT: tl.constexpr, X_STRIDES: tl.constexpr,
    KERNEL: tl.constexpr, STRIDES: tl.constexpr, CORNER: tl.constexpr,
    CHANNELS: tl.constexpr, PIXELS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Compute PIXELS x COLUMNS maxima: shifted codes are in the order of codes."""
    pixel = (tl.program_id(0) * PIXELS + tl.arange(0, PIXELS))[:, None]
    channel = (tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS))[None, :]
    image, row, line = corners(tl.minimum(pixel, pixels - 1), OUT, STRIDES, CORNER)
    first = x + image * X_STRIDES[0] + known(channel, CHANNELS, COLUMNS) * X_STRIDES[3]
    top = tl.full((PIXELS, COLUMNS), -128, tl.int8)
    for place in range(KERNEL[0] * KERNEL[1]):
        i = row + place // KERNEL[1]
        j = line + place % KERNEL[1]
        at = first + i * X_STRIDES[1] + j * X_STRIDES[2]
        top = tl.maximum(top, load_codes(at, i, j, -128, IN, True))
    mask = (pixel < pixels) & (channel < CHANNELS)
    tl.store(y + pixel * CHANNELS + channel, top, mask=mask)


@triton.jit(do_not_specialize=["offset"])
def average(
    x, y, offset, factor, low, high, shift,
    IN: tl.constexpr, X_STRIDES: tl.constexpr, CHANNELS: tl.constexpr,
    PIXELS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Compute the means of COLUMNS channels of one image, PIXELS positions a step.

    `offset` makes the sum of shifted codes that of ``q - zero_point``, and `factor` is that of
    `numerics.average_factor`.
    """
    channel = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    there = known(channel, CHANNELS, COLUMNS)
    first = x + tl.program_id(0) * X_STRIDES[0] + there[None, :] * X_STRIDES[3]
    total = tl.full((PIXELS, COLUMNS), 0, tl.int32)
    for start in range(0, IN[0] * IN[1], PIXELS):
        pixel = (start + tl.arange(0, PIXELS))[:, None]
        at = first + pixel // IN[1] * X_STRIDES[1] + pixel % IN[1] * X_STRIDES[2]
        total += tl.load(at, mask=pixel < IN[0] * IN[1], other=0).to(tl.int32)
    value = (tl.sum(total, 0) + offset).to(tl.float32) * factor
    target = y + tl.program_id(0) * CHANNELS + channel
    tl.store(target, to_codes(value, low, high, shift), mask=channel < CHANNELS)
