"""BatchNorm over the batch of all processes: torch's own SyncBatchNorm needs a GPU.

mean = sum x / n,  var = sum (x - mean)^2 / n,  y = gamma (x - mean) / sqrt(var + eps) + beta

with sums over all processes' values of a channel, n of them. Two messages forward, and two
backward, which follow from the graph of the same formula.
"""

from typing import cast

import torch
from torch import Tensor, nn

from qtool.nn.ops.shapes import shaped_like
from qtool.parallel.collectives import all_reduce_sum
from qtool.parallel.job import current


class SyncBatchNorm(nn.BatchNorm2d):
    """`norm`, 1d or 2d, sharing its parameters and statistics."""

    def __init__(self, norm: nn.BatchNorm1d | nn.BatchNorm2d) -> None:
        super().__init__(norm.num_features, norm.eps, norm.momentum, norm.affine)
        self.weight, self.bias = norm.weight, norm.bias
        self.running_mean, self.running_var = norm.running_mean, norm.running_var
        self.num_batches_tracked = norm.num_batches_tracked
        self.train(norm.training)

    def _check_input_dim(self, input: Tensor) -> None:
        """Take (N, C) too."""

    def forward(self, input: Tensor) -> Tensor:
        """(N, C) or (N, C, H, W) -> the same shape."""
        if not self.training or current().size == 1:
            return super().forward(input)
        mean, var, count = global_statistics(input)
        self._track(mean.detach(), var.detach(), count)
        scale = torch.rsqrt(var + self.eps)
        if self.affine:
            scale = scale * self.weight
        y = (input - shaped_like(mean, input)) * shaped_like(scale, input)
        return y + shaped_like(self.bias, input) if self.affine else y

    @torch.no_grad()
    def _track(self, mean: Tensor, var: Tensor, count: float) -> None:
        """Move the running statistics, as torch does: with the unbiased variance."""
        if self.running_mean is None or self.running_var is None:
            return
        seen = cast(Tensor, self.num_batches_tracked).add_(1)
        share = 1 / float(seen) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean, share)
        self.running_var.lerp_(var * (count / max(count - 1, 1)), share)


def global_statistics(x: Tensor) -> tuple[Tensor, Tensor, float]:
    """Return (mean, biased variance), each (C,), of all processes' `x`, and the values each.

    Args:
        x: (N, C, ...) float32; every process has the same shape.
    """
    axes = (0, *range(2, x.ndim))
    count = current().size * x.numel() / x.shape[1]
    mean = all_reduce_sum(x.sum(axes)) / count
    var = all_reduce_sum((x - shaped_like(mean, x)).square().sum(axes)) / count
    return mean, var, count


def synchronise_norms(model: nn.Module) -> None:
    """Put `SyncBatchNorm` in the place of every BatchNorm, in a job of several processes."""
    if current().size == 1:
        return
    for name, module in list(model.named_modules()):
        if name and type(module) in (nn.BatchNorm1d, nn.BatchNorm2d):
            model.set_submodule(name, SyncBatchNorm(cast(nn.BatchNorm2d, module)))
