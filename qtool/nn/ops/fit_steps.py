"""Steps and zero points for the values of a tensor, at several bit-widths."""

from collections.abc import Sequence

import torch
from torch import Tensor

from qtool.core.grids import MIN_STEP
from qtool.quantizers.binary import binary_step
from qtool.quantizers.lsq import mse_grid, mse_step

# Per bit-width: steps (widths, channels), and zero points; as they were where none is chosen.
Fit = tuple[Tensor, list[int]]
Limits = Sequence[tuple[int, int]]


def least_squares(
    rows: Tensor, bits: Sequence[int], limits: Limits, zeros: Sequence[int], asymmetric: bool
) -> Fit:
    """Fit each row of `rows` (channels, values) with the least squared error.

    Args:
        rows: float32; asymmetric grids have one row.
        bits: the widths.
        limits: (Qn, Qp) of each, of symmetric grids; (0, 0) for the codes -1 and 1.
        zeros: zero point of each.
        asymmetric: choose zero points too.
    """
    steps, chosen = [], list(zeros)
    for index, (width, (qn, qp)) in enumerate(zip(bits, limits, strict=True)):
        if asymmetric:
            step, chosen[index] = mse_grid(rows, width)
            steps.append(step.reshape(1))
        elif (qn, qp) == (0, 0):
            steps.append(binary_step(rows)[:, 0])
        else:
            steps.append(mse_step(rows, qn, qp)[:, 0])
    return torch.stack(steps), chosen


def covering(
    low: float,
    high: float,
    bits: Sequence[int],
    limits: Limits,
    zeros: Sequence[int],
    asymmetric: bool,
) -> Fit:
    """Return the smallest steps with which `low`, 0 and `high` are on the grid."""
    low, high = min(low, 0.0), max(high, 0.0)
    steps, chosen = [], list(zeros)
    for index, (width, (qn, qp)) in enumerate(zip(bits, limits, strict=True)):
        if asymmetric:
            codes = (1 << width) - 1
            chosen[index] = round(codes * -low / max(high - low, MIN_STEP))
            qn, qp = chosen[index], codes - chosen[index]
        steps.append([max(-low / max(qn, 1), high / max(qp, 1), MIN_STEP)])
    return torch.tensor(steps), chosen
