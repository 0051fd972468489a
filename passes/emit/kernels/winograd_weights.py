"""Where the Winograd kernel may and should replace the direct one, and what it reads there."""

import numpy as np
from numpy.typing import NDArray

from passes.emit.kernels.layout import round_up
from passes.emit.kernels.vectors import vectors
from passes.emit.kernels.winograd import Winograd
from passes.emit.kernels.winograd_transforms import (
    BIAS_FACTOR,
    LIMIT,
    POINTS,
    TILE,
    WEIGHT,
)

# Cycles on Zen 4, where a product instruction takes one: to transform a patch of one vector of
# channels; to turn the 36 sums of an output vector into codes.
_TRANSFORM, _FINISH = 119, 145
# Bytes of weights per cycle, measured on Zen 4 with `tir.prefetch`.
FROM_CACHE, FROM_MEMORY = 12.0, 5.5
_VECTOR_BYTES = 64
_CLEARLY = 1.2  # worth weights of eight times the bytes


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


def gain(spec: Winograd, bandwidth: float = FROM_CACHE) -> float:
    """Return about how many times the direct kernel takes as long.

    Args:
        spec: of the kernel.
        bandwidth: bytes of weights per cycle, `FROM_CACHE` (the last level) where those of the
            whole network stay between two images, else `FROM_MEMORY`.
    """
    rows, columns = spec.grid
    tiles = round_up(rows, spec.strip) * columns
    products = POINTS * spec.pairs * spec.outputs
    transforms = _TRANSFORM * -(-spec.channels // 32) + _FINISH * spec.outputs
    loads = products * _VECTOR_BYTES / bandwidth
    direct = spec.height * spec.width * 9 * -(-spec.channels // 4) * spec.outputs
    return direct / max(tiles * (products + transforms), loads)


def worthwhile(spec: Winograd, bandwidth: float = FROM_CACHE) -> bool:
    """Return True when the kernel is clearly faster than the direct one; see `gain`."""
    return gain(spec, bandwidth) >= _CLEARLY


def pack_winograd(w_OIHW: NDArray[np.int8], spec: Winograd) -> NDArray[np.int16]:
    """Return transformed weights in the order in which the kernel reads them.

    Args:
        w_OIHW: (outputs, channels, 3, 3) codes.
        spec: of the kernel.

    Returns:
        (output vectors, 36, pairs of channels, lanes, 2) flattened.
    """
    u_POC = np.einsum("ai,ocij,bj->aboc", WEIGHT, w_OIHW.astype(np.int64), WEIGHT)
    lanes = vectors(spec.isa).lanes
    outputs, channels = w_OIHW.shape[:2]
    full = np.zeros((POINTS, spec.outputs * lanes, 2 * spec.pairs), np.int16)
    full[:, :outputs, :channels] = u_POC.reshape(POINTS, outputs, channels)
    parts = full.reshape(POINTS, spec.outputs, lanes, spec.pairs, 2)
    return np.ascontiguousarray(parts.transpose(1, 0, 3, 2, 4)).reshape(-1)


def pack_bias(bias: NDArray[np.int32]) -> NDArray[np.int32]:
    """Return what the kernel adds at one point for `bias`, modulo 2^32."""
    scaled = bias.astype(np.int64) * BIAS_FACTOR
    return (scaled % 2**32).astype(np.uint32).view(np.int32)
