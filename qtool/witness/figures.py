"""A tensor of the artifact beside the origin's: differing integers, signal to noise.

SNR = 10 log10(mean(x^2) / mean((x - y)^2)) in dB, x the origin's values, y the artifact's. A
signal weaker than one step of the grid counts as one step: a tensor of zeros has a ratio too.
"""

import math

import numpy as np
from numpy.typing import NDArray

from qtool.core import numerics
from qtool.core.dialect import Grid
from qtool.witness.record import Differing
from runtimes.base import Codes, Floats

# Beyond these a ratio says nothing more; NaN counts as the lowest.
LOWEST_DB, SAME_DB = -200.0, 200.0
_MOST_STEPS = 1e9


def snr_db(expected: Floats, got: Floats, step: float) -> float:
    """Return the signal-to-noise ratio of `got`; `SAME_DB` where it is `expected`.

    Args:
        expected: the origin's values, any shape.
        got: the artifact's, as many.
        step: of the grid that `got` is on; 0 for floats.
    """
    if expected.size != got.size:
        return LOWEST_DB
    x = expected.reshape(-1).astype(np.float64)
    noise = float(np.mean((x - got.reshape(-1)) ** 2)) if x.size else 0.0
    if noise == 0:
        return SAME_DB
    signal = max(float(np.mean(x * x)), step * step)
    if not (math.isfinite(noise) and math.isfinite(signal)) or signal == 0:
        return LOWEST_DB
    ratio = 10 * math.log10(signal / noise)
    return min(max(ratio, LOWEST_DB), SAME_DB)


def largest_steps(expected: Floats, got: Floats, step: float) -> float:
    """Return the largest difference in steps of the grid (of floats: any is large)."""
    if expected.size != got.size:
        return _MOST_STEPS
    error = float(np.abs(expected.reshape(-1).astype(np.float64) - got.reshape(-1)).max())
    if error == 0:
        return 0.0
    steps = error / step if step else _MOST_STEPS
    return min(steps, _MOST_STEPS) if math.isfinite(steps) else _MOST_STEPS


def differing(expected: Floats, codes: NDArray[np.integer], grid: Grid) -> Differing:
    """Count the codes that are not those of `expected`, values on `grid`."""
    if expected.size != codes.size:
        return Differing(codes.size, codes.size)
    # Not clipped: a value beyond the last code is a difference.
    wanted = np.rint(expected.reshape(-1).astype(np.float64) / float(grid.scale))
    same = wanted == codes.reshape(-1).astype(np.int64) - grid.zero_point
    return Differing(int(np.count_nonzero(~same)), codes.size)


def real(codes: Codes, grid: Grid) -> Floats:
    """Return what `codes` stand for."""
    return numerics.dequantize(codes, grid.scale, grid.zero_point)
