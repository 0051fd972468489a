"""BatchNorm on batch statistics, ReLU and quantizer as one operation, for training.

z = x * a + b,  a = gamma / sqrt(var + eps),  b = beta - mean * a;  x_hat = Q(relu(z))

Forward reads x and writes x_hat: nothing between exists. Only x is kept for backward, where z
is computed again; the three separate operators keep x, z and relu(z). With g the gradient of
z, N values a channel:

dL/dx = a * (g - mean(g) - (x - mean) * mean(g * (x - mean)) / (var + eps))
dL/dgamma = sum g * (x - mean) / sqrt(var + eps),  dL/dbeta = sum g  (arXiv 1502.03167, sec. 3)
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from qtool.native.library import call, scratch
from qtool.nn.ops.shapes import shaped_like
from qtool.quantizers import engines
from qtool.quantizers.engines import Gradients
from qtool.quantizers.grid import RULES, Grid, Rule
from qtool.quantizers.uniform import parameter_gradients


@dataclass(frozen=True)
class Statistics:
    """A batch's mean and variance (C,), float32, over `count` values a channel."""

    mean: Tensor
    variance: Tensor
    eps: float
    count: int


def norm_quantize(
    x: Tensor,
    norm: nn.BatchNorm2d,
    step: Tensor,
    grid: Grid,
    rule: Rule,
    factor: float,
    offset: Tensor | None = None,
) -> Tensor:
    """Return ``Q(norm(x))`` and update the running statistics, as `norm` does in training.

    Args:
        x: (N, C, H, W) float32.
        norm: in training mode.
        step: positive scalar.
        grid: of the result; with its ReLU, where one stands between.
        rule: gradient of the step (`qtool.quantizers.uniform`).
        factor: multiplies the gradients of step and offset.
        offset: as in `uniform`.
    """
    x = x.contiguous(memory_format=torch.channels_last)
    found = batch_statistics(x, norm)
    rule = "offset" if offset is not None and rule == "lsq" else rule
    gamma = norm.weight if norm.affine else torch.ones_like(found.mean)
    beta = norm.bias if norm.affine else torch.zeros_like(found.mean)
    out: Tensor = _Function.apply(x, step, offset, gamma, beta, found, grid, rule, factor)  # type: ignore[no-untyped-call]
    return out


@torch.no_grad()
def batch_statistics(x: Tensor, norm: nn.BatchNorm2d) -> Statistics:
    """Return the statistics of batch `x` and move the running ones towards them."""
    momentum = norm.momentum
    if norm.num_batches_tracked is not None:
        norm.num_batches_tracked.add_(1)
        if momentum is None:  # a plain average over all batches
            momentum = 1.0 / float(norm.num_batches_tracked)
    mean, variance = torch.batch_norm_update_stats(
        x, norm.running_mean, norm.running_var, momentum or 0.0
    )
    return Statistics(mean, variance, norm.eps, x.numel() // x.shape[1])


class _Function(Function):
    """x (N, C, H, W) channels last, step, offset, gamma (C,), beta (C,) -> x_hat, like x."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        step: Tensor,
        offset: Tensor | None,
        gamma: Tensor,
        beta: Tensor,
        found: Statistics,
        grid: Grid,
        rule: Rule,
        factor: float,
    ) -> Tensor:
        inverse = torch.rsqrt(found.variance + found.eps)
        scale = gamma * inverse
        shift = beta - found.mean * scale
        ctx.save_for_backward(x, step, scale, shift, found.mean, inverse)
        ctx.count, ctx.grid, ctx.rule, ctx.factor = found.count, grid, rule, factor
        ctx.how = engines.how(x, step)
        if ctx.how.engine != "native":
            return engines.forward(_affine(x, scale, shift), step, grid, ctx.how)
        out, channels = torch.empty_like(x), x.shape[1]
        call(
            "qtool_norm_quantize", x, out, x.numel() // channels, channels, scale, shift, step,
            *grid.arguments,
        )  # fmt: skip
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> Any:
        x, step, scale, shift, mean, inverse = ctx.saved_tensors
        native = ctx.how.engine == "native"
        backward = _backward_native if native else _backward_eager
        found, sums = backward(ctx, engines.like(grads[0], x), x, step, scale, shift, mean)
        grad_mean = (sums[0] / ctx.count).float()
        slope = (sums[1] / ctx.count * inverse.double().square()).float()
        if native:
            call(
                "qtool_norm_input_gradient", found.x, x, x.numel() // x.shape[1], x.shape[1],
                scale, mean, grad_mean, slope,
            )  # fmt: skip
            grad_x = found.x
        else:
            centred = (x - shaped_like(mean, x)) * shaped_like(slope, x)
            kept = found.x - shaped_like(grad_mean, x) - centred
            grad_x = kept * shaped_like(scale, x)
        grad_gamma, grad_beta = (sums[1] * inverse).float(), sums[0].float()
        rest = (None,) * 4
        return grad_x, *parameter_gradients(ctx, found), grad_gamma, grad_beta, *rest


def _affine(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    return x * shaped_like(scale, x) + shaped_like(shift, x)


def _backward_eager(
    ctx: Any, grad: Tensor, x: Tensor, step: Tensor, scale: Tensor, shift: Tensor, mean: Tensor
) -> tuple[Gradients, Tensor]:
    """Return the quantizer's gradients, and sum(g) and sum(g * (x - mean)), (2, C) float64."""
    z = _affine(x, scale, shift)
    found = engines.backward(grad, z, step, ctx.grid, ctx.rule, ctx.factor, ctx.how)
    product = found.x * (x - shaped_like(mean, x))
    sums = [
        t.permute(0, 2, 3, 1).reshape(-1, x.shape[1]).double().sum(0)
        for t in (found.x, product)
    ]
    return found, torch.stack(sums)


def _backward_native(
    ctx: Any, grad: Tensor, x: Tensor, step: Tensor, scale: Tensor, shift: Tensor, mean: Tensor
) -> tuple[Gradients, Tensor]:
    channels = x.shape[1]
    pixels, out = x.numel() // channels, torch.empty_like(x)
    grads = torch.empty(2, *step.shape)
    sums = torch.empty(2, channels, dtype=torch.float64)
    room = scratch("qtool_norm_scratch", pixels, channels)
    call(
        "qtool_norm_quantize_backward", grad, x, out, pixels, channels, scale, shift, mean,
        step, *ctx.grid.arguments, RULES.index(ctx.rule), ctx.factor, grads, sums,
        room,
    )  # fmt: skip
    return Gradients(out, grads[0], grads[1]), sums
