"""Windows of results as `kernels.rounding.to_codes` takes them: low, high, shift."""

from qtool.core.dialect import Op

# Codes are kept as int8, less this.
SHIFT = 128

Window = tuple[float, float, float]


def window_behind(op: Op) -> Window:
    """Where the zero point is added behind the rounding: `to_codes` adds it."""
    zero = op.grid.zero_point
    return float(op.lo - zero), float(op.hi - zero), float(zero - SHIFT)


def window_before(op: Op) -> Window:
    """Where the zero point is in the sum that is rounded."""
    return float(op.lo), float(op.hi), float(-SHIFT)
