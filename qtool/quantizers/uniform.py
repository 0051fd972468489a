"""Uniform quantization with a straight-through gradient: what all quantizers are made of.

v = x / s,  x_hat = clip(round(v), -Qn, Qp) * s  (half to even, as the device rounds)
dL/dx = g where -Qn <= v <= Qp, else 0
dL/ds, by rule, of the sums I = sum g * (round(v) - v) inside, B = sum g below, A = sum g above:
    "lsq":   I - Qn * B + Qp * A   (LSQ, arXiv 1902.08153, Eq. 3)
    "clip":    - Qn * B + Qp * A   (PACT, arXiv 1805.06085, Eq. 3, with s = alpha / Qp)
    "none":  0
dL/do = B + A, of a learnable offset o (LSQ+, arXiv 2004.09576, Eq. 6)
"""

from typing import Any, Literal

import torch
from torch import Tensor

Rule = Literal["lsq", "clip", "none"]


class _Uniform(torch.autograd.Function):
    """x (any shape), step (scalar, or of x's rank and broadcast over it) -> x_hat, like x."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        step: Tensor,
        offset: Tensor | None,
        limits: tuple[int, int],
        rule: Rule,
        factor: float,
    ) -> Tensor:
        ctx.save_for_backward(x, step)
        ctx.limits, ctx.rule, ctx.factor = limits, rule, factor
        return forward_eager(x, step, *limits)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        (grad,) = grads
        x, step = ctx.saved_tensors
        qn, qp = ctx.limits
        grad_x, inner, below, above = backward_eager(grad, x, step, qn, qp)
        grad_step = grad_offset = None
        if ctx.needs_input_grad[1]:
            total = qp * above - qn * below
            if ctx.rule == "lsq":
                total = total + inner
            grad_step = (total * (ctx.factor if ctx.rule != "none" else 0)).to(step.dtype)
        if ctx.needs_input_grad[2]:
            grad_offset = ((below + above) * ctx.factor).sum().to(step.dtype)
        return grad_x, grad_step, grad_offset, None, None, None


def uniform(
    x: Tensor,
    step: Tensor,
    qn: int,
    qp: int,
    rule: Rule = "lsq",
    factor: float = 1.0,
    offset: Tensor | None = None,
) -> Tensor:
    """Fake-quantize `x` on the grid ``step * {-qn, ..., qp}``.

    Args:
        x: float32, any shape.
        step: positive; a scalar, or of `x`'s rank with the shared axes of size 1.
        qn: number of negative codes.
        qp: number of positive codes.
        rule: gradient of the step, see above.
        factor: multiplies the gradients of step and offset (LSQ's g).
        offset: scalar that only takes part in the gradient (LSQ+; the forward knows it as
            zero point, which is in `qn` and `qp`).
    """
    out: Tensor = _Uniform.apply(x, step, offset, (qn, qp), rule, factor)  # type: ignore[no-untyped-call]
    return out


def forward_eager(x: Tensor, step: Tensor, qn: int, qp: int) -> Tensor:
    """Return x_hat, like `x`."""
    return (x / step).clamp_(-qn, qp).round_().mul_(step)


def backward_eager(
    grad: Tensor, x: Tensor, step: Tensor, qn: int, qp: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return dL/dx, like `x`, and the sums I, B and A, float64 and of `step`'s shape."""
    v = x / step
    clipped = v.clamp(-qn, qp)
    inside = v == clipped
    grad_x = grad * inside
    # round(v) - v loses all its digits in float32 where v is large; (round(v) * s - x) / s
    # in float64 does not.
    rest = clipped.round_().double().mul_(step).sub_(x).div_(step).mul_(grad_x)
    outside = (grad - grad_x).double()
    return (
        grad_x,
        _sum_to(rest, step),
        _sum_to(outside * (v < 0), step),
        _sum_to(outside * (v > 0), step),
    )


def _sum_to(values: Tensor, step: Tensor) -> Tensor:
    return values.sum_to_size(step.shape) if step.ndim else values.sum()
