"""Uniform quantization with a straight-through gradient: what all quantizers are made of.

v = x / s,  x_hat = clip(round(v), -Qn, Qp) * s  (half to even, as the device rounds)
dL/dx = g where -Qn <= v <= Qp, else 0
dL/ds, by rule: sum of g * (-Qn where v is below, Qp where it is above, and inside
    "lsq":   round(v) - v)  (LSQ, arXiv 1902.08153, Eq. 3)
    "clip":  0)             (PACT, arXiv 1805.06085, Eq. 3, with s = alpha / Qp)
    "none":  no gradient
    "offset": as "lsq", and dL/do = sum of g below and above, of a learnable offset o (LSQ+,
              arXiv 2004.09576, Eq. 6)

How it is computed: `qtool.quantizers.engines`.
"""

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from qtool.quantizers import engines
from qtool.quantizers.engines import Gradients
from qtool.quantizers.grid import Grid, Rule


class _Function(Function):
    """x, step, offset -> x_hat, like x."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        step: Tensor,
        offset: Tensor | None,
        grid: Grid,
        rule: Rule,
        factor: float,
    ) -> Tensor:
        ctx.save_for_backward(x, step)
        ctx.grid, ctx.rule, ctx.factor = grid, rule, factor
        ctx.how = engines.how(x, step)
        return engines.forward(x, step, grid, ctx.how)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> Any:
        x, step = ctx.saved_tensors
        rule: Rule = ctx.rule if any(ctx.needs_input_grad[1:3]) else "none"
        found = engines.backward(grads[0], x, step, ctx.grid, rule, ctx.factor, ctx.how)
        return found.x, *parameter_gradients(ctx, found), None, None, None


def uniform(
    x: Tensor,
    step: Tensor,
    qn: int,
    qp: int,
    rule: Rule = "lsq",
    factor: float = 1.0,
    offset: Tensor | None = None,
    relu: bool = False,
    ceiling: float = math.inf,
) -> Tensor:
    """Fake-quantize `x` on the grid ``step * {-qn, ..., qp}``.

    Args:
        x: float32, any shape; of a half precision under autocast, then the result is float32.
        step: positive; a scalar, or of `x`'s rank with the shared axes of size 1.
        qn: number of negative codes.
        qp: number of positive codes.
        rule: gradient of the step, see above.
        factor: multiplies the gradients of step and offset (LSQ's g).
        offset: scalar that only takes part in the gradient (LSQ+; the forward knows it as
            zero point, which is in `qn` and `qp`); of a scalar step.
        relu: quantize ``clamp(x, 0, ceiling)`` instead of `x`.
        ceiling: see `relu`.
    """
    grid = Grid(qn, qp, relu, ceiling)
    if x.dtype in (torch.bfloat16, torch.float16):
        x = x.float()  # under autocast: codes need the digits
    rule = "offset" if offset is not None and rule == "lsq" else rule
    out: Tensor = _Function.apply(x, step, offset, grid, rule, factor)  # type: ignore[no-untyped-call]
    return out


def parameter_gradients(ctx: Any, found: Gradients) -> tuple[Tensor | None, Tensor | None]:
    """Return dL/dstep and dL/doffset, the second and third input, where they are asked for."""
    _, needs_step, needs_offset = ctx.needs_input_grad[:3]
    return found.step if needs_step else None, found.outside if needs_offset else None
