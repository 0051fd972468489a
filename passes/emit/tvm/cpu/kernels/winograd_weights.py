"""Where the Winograd kernel may and should replace the direct one, and what it reads there."""

import numpy as np
from numpy.typing import NDArray

from passes.emit.tvm.cpu.kernels.winograd import Winograd
from passes.emit.tvm.cpu.kernels.winograd_transforms import (
    BIAS_FACTOR,
    EXPAND,
    LIMIT,
    POINTS,
    TAPS,
    TILE,
)
from passes.emit.tvm.cpu.vectors.units import vectors

# Cycles on Zen 4, where a product instruction takes one: to transform a patch of one vector of
# channels; to turn the 36 sums of an output vector into codes.
_TRANSFORM, _FINISH = 119, 145
_CLEARLY = 1.2


def supports(
    isa: str, size: tuple[int, int], w_OIHW: NDArray[np.int8], bias: NDArray[np.int32],
    codes: tuple[int, int] = (0, 255),
) -> bool:  # fmt: skip
    """Return True when the kernel is exact for a convolution of stride 1, dilation 1, group 1.

    Args:
        isa: name of the vector unit.
        size: height and width of the result.
        w_OIHW: (outputs, channels, rows, columns) weight codes.
        bias: (outputs,) what is added to the sums of raw codes.
        codes: smallest and largest code of the input, its zero point included.
    """
    if not vectors(isa).has_dot16 or w_OIHW.shape[2:] != (3, 3) or min(size) < TILE:
        return False
    w = w_OIHW.astype(np.int64).reshape(len(w_OIHW), -1)
    ends = w * codes[0], w * codes[1]
    low = bias + np.minimum(*ends).sum(axis=1)
    high = bias + np.maximum(*ends).sum(axis=1)
    return bool(low.min() >= -LIMIT and high.max() < LIMIT)


def gain(spec: Winograd) -> float:
    """Return about how many times the direct kernel takes as long.

    Of 24 layers on Zen 4 with warm caches, 21 had this to within 10 %, mostly a little less;
    256 channels at 28 x 28 had 1.6 instead of 1.8, 512 at 14 x 14 had 1.04 instead of 1.3.
    """
    rows, columns = spec.grid
    strips = -(-rows // spec.strip)
    products = spec.pairs * spec.outputs
    transforms = _TRANSFORM * -(-spec.channels // 32) + _FINISH * spec.outputs
    tiles = strips * spec.strip * columns
    cycles = tiles * (POINTS * products + transforms) + strips * EXPAND * products
    steps = TAPS * TAPS * -(-spec.channels // 4)
    return spec.height * spec.width * steps * spec.outputs / cycles


def worthwhile(spec: Winograd) -> bool:
    """Return True when the kernel is clearly faster than the direct one; see `gain`."""
    return gain(spec) >= _CLEARLY


def pack_winograd(w_OIHW: NDArray[np.int8], spec: Winograd) -> NDArray[np.int8]:
    """Return weights in the order in which the kernel reads them.

    Args:
        w_OIHW: (outputs, channels, 3, 3) codes.
        spec: of the kernel.

    Returns:
        (output vectors, pairs of channels, 9, lanes, 2) flattened.
    """
    lanes = vectors(spec.isa).lanes
    outputs, channels = w_OIHW.shape[:2]
    full = np.zeros((spec.outputs * lanes, 2 * spec.pairs, TAPS * TAPS), np.int8)
    full[:outputs, :channels] = w_OIHW.reshape(outputs, channels, TAPS * TAPS)
    parts = full.reshape(spec.outputs, lanes, spec.pairs, 2, TAPS * TAPS)
    return np.ascontiguousarray(parts.transpose(0, 2, 4, 1, 3)).reshape(-1)


def pack_bias(bias: NDArray[np.int32]) -> NDArray[np.int32]:
    """Return what the kernel adds at one point for `bias`, modulo 2^32."""
    scaled = bias.astype(np.int64) * BIAS_FACTOR
    return (scaled % 2**32).astype(np.uint32).view(np.int32)
