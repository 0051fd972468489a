"""Where kernel windows are in an image, and what they read outside it."""

import triton
import triton.language as tl


@triton.jit
def corners(pixel, OUT: tl.constexpr, STRIDES: tl.constexpr, CORNER: tl.constexpr):
    """Return image, row and column where the windows of result `pixel` begin."""
    row = pixel // OUT[1] % OUT[0] * STRIDES[0] - CORNER[0]
    column = pixel % OUT[1] * STRIDES[1] - CORNER[1]
    return pixel // (OUT[0] * OUT[1]), row, column


@triton.jit
def known(channel, CHANNELS: tl.constexpr, COLUMNS: tl.constexpr):
    """Return the channels that there are: the last one for those beyond it.

    Where COLUMNS divide CHANNELS all are, and the compiler sees them follow each other.
    """
    if CHANNELS % COLUMNS == 0:
        return channel
    else:
        return tl.minimum(channel, CHANNELS - 1)


@triton.jit
def load_codes(at, row, column, border, IN: tl.constexpr, PADDED: tl.constexpr):
    """Return the codes in memory at `at`, which is (row, column) of an image, or `border`."""
    if PADDED:
        within = (row >= 0) & (row < IN[0]) & (column >= 0) & (column < IN[1])
        return tl.load(at, mask=within, other=border)
    else:
        return tl.load(at)
