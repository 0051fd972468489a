"""Weights normalised by tanh, and rounding with a straight-through gradient.

t = tanh(w) / M,  M = max |tanh(w)|  (DoReFa-Net, arXiv 1606.06160, Eq. 9), in [-1, 1]
dL/dw = (dL/dt - a sum(dL/dt * t) / m) / M * (1 - tanh(w)^2),  a = sign(w) where |tanh(w)| = M
(m weights share the maximum), else 0: the gradient of M is part of it, as in released codes.

In float64, since 1 - tanh^2 loses its digits in float32; weights are few.
"""

from typing import Any

import torch
from torch import Tensor

from qtool.quantizers.weight import per_row, rows

_TINY = 1e-30


class _Normalised(torch.autograd.Function):
    """w (C, ...) -> t, like w."""

    @staticmethod
    def forward(ctx: Any, w: Tensor, per_channel: bool) -> Tensor:
        bent = torch.tanh(w.double())
        largest = rows(bent.abs(), per_channel).amax(1).clamp_min_(_TINY)
        ctx.save_for_backward(bent, largest)
        ctx.per_channel = per_channel
        return (bent / per_row(largest, w)).to(w.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        bent, largest = ctx.saved_tensors
        grad = grads[0].double()
        top = per_row(largest, bent)
        is_largest = bent.abs() == top
        total = rows(grad * bent, ctx.per_channel).sum(1) / largest
        ties = rows(is_largest, ctx.per_channel).sum(1).clamp_min_(1)
        share = per_row(total / ties, bent)
        grad = torch.where(is_largest, grad - bent.sign() * share, grad)
        return (grad / top * (1 - bent * bent)).to(grads[0].dtype), None


class _Through(torch.autograd.Function):
    """(x, values, gain) -> values; the gradient goes to x, times gain."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, values: Tensor, gain: Tensor | float) -> Tensor:
        ctx.gain = gain
        return values

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        return grads[0] * ctx.gain, None, None


def normalised(w: Tensor, per_channel: bool) -> Tensor:
    """Return ``tanh(w) / max |tanh(w)|``, like `w`, by tensor or by output channel."""
    out: Tensor = _Normalised.apply(w, per_channel)  # type: ignore[no-untyped-call]
    return out


def pass_through(x: Tensor, values: Tensor, gain: Tensor | float = 1.0) -> Tensor:
    """Return `values` with the gradient ``d values / dx = gain``.

    Args:
        x: any shape.
        values: without a gradient, like `x`.
        gain: constant, broadcast over `x`.
    """
    out: Tensor = _Through.apply(x, values, gain)  # type: ignore[no-untyped-call]
    return out


def mean_abs(w: Tensor, per_channel: bool) -> Tensor:
    """Return mean |w| of each row, (C,) or (1,), without a gradient."""
    return rows(w.detach().double().abs(), per_channel).mean(1).to(w.dtype)
