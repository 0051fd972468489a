"""Learned Step Size Quantization (Esser et al., ICLR 2020, arXiv 1902.08153).

v = clip(x / s, -Qn, Qp),  x_hat = round(v) * s  (Eq. 1, 2; half to even, as the device rounds)
dx_hat/ds = round(v) - v inside, -Qn or Qp outside  (Eq. 3), times g = 1 / sqrt(N * Qp)
(Qp = 0, a grid without positive codes: g = 1 / sqrt(N))
dx_hat/dx = 1 inside, 0 outside  (Eq. 5)
"""

import math

import torch
from torch import Tensor

from qtool.core.grids import MIN_STEP, weight_limit
from qtool.quantizers.activation import ActivationQuantizer
from qtool.quantizers.binary import binary
from qtool.quantizers.uniform import uniform
from qtool.quantizers.weight import WeightOptions, per_row

ACTIVATION = ActivationQuantizer("step", "lsq", scaled=True)


class LsqWeight:
    """Symmetric, narrow weights; see `qtool.quantizers.weight.WeightQuantizer`.

    One bit is `qtool.quantizers.binary`.
    """

    scheme, learned, widest, per_channel = "symmetric", True, 8, True
    stored = 0

    def __init__(self, options: WeightOptions) -> None:
        self.options = options

    def source(self, w: Tensor, step: Tensor | None) -> Tensor:
        """Return `w` itself."""
        return w

    def scale(self, w: Tensor, bits: int, step: Tensor | None) -> Tensor:
        """Return the positive step, (C,) or (1,)."""
        if step is None:
            raise ValueError("LSQ weights have a step")
        return step.abs().clamp_min(MIN_STEP)

    def quantize(self, w: Tensor, bits: int, step: Tensor | None) -> Tensor:
        """Return w_hat, like `w`."""
        scale = per_row(self.scale(w, bits, step), w)
        if bits == 1:
            return binary(w, scale)
        return lsq(w, scale, weight_limit(bits), weight_limit(bits))


WEIGHT = LsqWeight


def lsq(x: Tensor, step: Tensor, qn: int, qp: int) -> Tensor:
    """Fake-quantize `x` on the grid ``step * {-qn, ..., qp}``.

    Args:
        x: float32, any shape.
        step: positive; a scalar, or of `x`'s rank with the shared axes of size 1.
        qn: number of negative codes.
        qp: number of positive codes.
    """
    factor = 1 / math.sqrt(x.numel() / step.numel() * max(qp, 1))
    return uniform(x, step, qn, qp, "lsq", factor)


def mse_step(x: Tensor, qn: int, qp: int, candidates: int = 64) -> Tensor:
    """Return the step (C, 1) that minimises each row's squared error; `x` is (C, values).

    A line search over clipping points between the row's maximum and 1/`candidates` of it;
    better than LSQ's own start, 2 * mean|x| / sqrt(Qp), where training is short.
    """
    positive = x.amax(1, keepdim=True) / qp if qp else torch.zeros_like(x[:, :1])
    negative = -x.amin(1, keepdim=True) / qn if qn else torch.zeros_like(positive)
    widest = torch.maximum(positive, negative).clamp_min(1e-8)
    best, error = widest.clone(), torch.full_like(widest, math.inf)
    for index in range(candidates):
        step = widest * (1 - index / candidates)
        got = (lsq(x, step, qn, qp) - x).square().sum(1, keepdim=True)
        best = torch.where(got < error, step, best)
        error = torch.minimum(got, error)
    return best


def mse_grid(x: Tensor, bits: int, candidates: int = 16) -> tuple[Tensor, int]:
    """Return (step, zero point) of the asymmetric `bits`-bit grid that minimises x's error.

    Codes are [0, 2^bits - 1], values (code - zero point) * step. Clipping points below and
    above are searched together, `candidates` each; the step of the best zero point, and that
    of the symmetric grid (whose error is therefore never beaten by it), is then refined.

    Args:
        x: float32, any shape.
        bits: 1 to 8.
        candidates: clipping points a side.

    Returns:
        Scalar step, and the zero point, 0 to 2^bits - 1.
    """
    row, codes = x.reshape(1, -1), (1 << bits) - 1
    low, high = -float(row.min().clamp_max(0)), float(row.max().clamp_min(0))
    shares = [1 - index / candidates for index in range(candidates)]
    ranges = {(low * a, high * b) for a in shares for b in shares}
    grids = {(max(a + b, 1e-8) / codes, _zero_point(a, b, codes)) for a, b in ranges}

    def error(grid: tuple[float, int]) -> float:
        step, zero_point = grid
        rounded = lsq(row, row.new_tensor(step), zero_point, codes - zero_point)
        return float((rounded - row).square().sum())

    coarse = min(sorted(grids), key=error)
    refined = [
        (float(mse_step(row, zero, codes - zero)), zero)
        for zero in sorted({coarse[1], (codes + 1) // 2})
    ]
    step, zero_point = min([coarse, *refined], key=error)
    return x.new_tensor(step), zero_point


def _zero_point(below: float, above: float, codes: int) -> int:
    """Return the code of value 0 on a grid from -`below` to `above`."""
    return round(codes * below / max(below + above, 1e-8))
