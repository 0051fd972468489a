"""Double Rounding (Huang et al. 2025, arXiv 2502.01199): one stored 8-bit code, every width.

W_8 = clip(round(w / s), -127, 127), one learned s for all widths                       (Eq. 1)
W_b = clip(round(W_8 / 2^D), -Q, Q),  D = 8 - b,  Q = 2^(b-1) - 1                       (Eq. 2)
w_hat = W_b * s * 2^D                                                                   (Eq. 3)
Straight through both roundings: dw_hat/dw = 1 inside, 0 where either clips;
dw_hat/ds = 2^D W_b - w / s inside, 2^D W_b where clipped (the chain rule; Eq. 13 at D = 0),
times LSQ's g = 1 / sqrt(N * Q) and eta_b, 10^(-D/2) or at odd D 5 * 10^(-(D+1)/2)      (Eq. 7)

Codes nest: those of b bits are a function of the stored ones, so that a device needs no second
set. Where the paper leaves room, or is left:
- Windows are narrow at every width (the paper's start at -2^(b-1)): BatchNorm flips channels.
- A half goes to the even neighbour, in both roundings. Between 8-bit codes ties are common
  (at 7 bits every second code); a half up has the same error, but moves all weights up, and
  would not commute with a flip.
- A step for each output channel, as LSQ has here.
- One bit, which the paper does not have: the sign of W_8, 0 counting as positive, times
  s mean|W_8|, a constant; dw_hat/dw = 1 (as DoReFa's one bit).
- eta is ALRS: the paper's learning rates of s, one a precision. Passes at several widths share
  one optimizer step here, so that eta scales the gradient of each pass. s is 2^D times smaller
  than a step of b bits, and its gradient 2^D times larger: without eta, few bits would move it
  4^D times as far, and decide it alone. Of Eq. 6 the bracket is left out, learning rate minus
  the layers' mean largest gradient: as printed it may be negative.
Inputs have an LSQ step for each width (Eq. 4, 5: "learned individually").
"""

import math
from typing import Any

import torch
from torch import Tensor

from qtool.core.grids import MIN_STEP, WEIGHT_BITS, weight_limit
from qtool.quantizers.normalised import pass_through
from qtool.quantizers.weight import WeightOptions, per_row, rows

_STORED = WEIGHT_BITS[-1]


class DoubleRoundingWeight:
    """See the module, and `qtool.quantizers.weight.WeightQuantizer`."""

    scheme, learned, widest, per_channel = "double_rounding", True, 8, True
    stored = _STORED

    def __init__(self, options: WeightOptions) -> None:
        self.options = options

    def source(self, w: Tensor, step: Tensor | None) -> Tensor:
        """Return W_8, like `w`, without a gradient."""
        return stored_codes(w.detach(), per_row(_positive(step).detach(), w))

    def scale(self, w: Tensor, bits: int, step: Tensor | None) -> Tensor:
        """Return s 2^D, at one bit s mean|W_8|; (C,) or (1,)."""
        unit = _positive(step)
        if bits > 1:
            return unit * 2.0 ** (_STORED - bits)
        sizes = rows(self.source(w, step).abs(), self.options.per_channel).double().mean(1)
        return (sizes * unit.detach()).to(unit.dtype).clamp_min(MIN_STEP)

    def quantize(self, w: Tensor, bits: int, step: Tensor | None) -> Tensor:
        """Return w_hat, like `w`."""
        if bits == 1:
            signs = narrowed(self.source(w, step), 1)
            return pass_through(w, signs * per_row(self.scale(w, 1, step), w))
        out: Tensor = _DoubleRounding.apply(w, per_row(_positive(step), w), bits)  # type: ignore[no-untyped-call]
        return out


WEIGHT = DoubleRoundingWeight


def stored_codes(w: Tensor, step: Tensor) -> Tensor:
    """Return W_8 in float32, like `w`; `step` is positive and broadcasts over `w`."""
    limit = weight_limit(_STORED)
    return (w / step).clamp_(-limit, limit).round_()


def narrowed(stored: Tensor, bits: int) -> Tensor:
    """Return W_b of W_8: `qtool.core.weight_codes.double_rounding_weight`."""
    if bits == 1:
        return torch.where(stored >= 0, 1.0, -1.0)
    limit = weight_limit(bits)
    return (stored / 2.0 ** (_STORED - bits)).clamp_(-limit, limit).round_()


def rate(bits: int) -> float:
    """Return eta_b, the factor of ALRS (Eq. 7): 1 at 8 bits, 0.1 at 6, 0.01 at 4."""
    gap = _STORED - bits
    return 5 * 10.0 ** -((gap + 1) // 2) if gap % 2 else 10.0 ** -(gap // 2)


class _DoubleRounding(torch.autograd.Function):
    """w (C, ...), step (shaped to broadcast over w), bits from 2 -> w_hat, like w."""

    @staticmethod
    def forward(ctx: Any, w: Tensor, step: Tensor, bits: int) -> Tensor:
        ctx.save_for_backward(w, step)
        ctx.bits = bits
        codes = narrowed(stored_codes(w, step), bits)
        return codes * (step * 2.0 ** (_STORED - bits))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        w, step = ctx.saved_tensors
        unit, limit = 2.0 ** (_STORED - ctx.bits), weight_limit(ctx.bits)
        stored, exact = stored_codes(w, step), w / step
        inside = (stored.abs() <= limit * unit) & (exact.abs() <= weight_limit(_STORED))
        grad_step = None
        if ctx.needs_input_grad[1]:
            # In float64: codes and quotient nearly cancel.
            rest = torch.where(inside, w.double() / step.double(), 0.0)
            total = grads[0].double() * (narrowed(stored, ctx.bits) * unit - rest)
            factor = rate(ctx.bits) / math.sqrt(w.numel() / step.numel() * limit)
            grad_step = (total.sum_to_size(step.shape) * factor).to(step.dtype)
        return grads[0] * inside, grad_step, None


def _positive(step: Tensor | None) -> Tensor:
    """Return the step s, (C,) or (1,)."""
    if step is None:
        raise ValueError("Double Rounding's weights have a step")
    return step.abs().clamp_min(MIN_STEP)
