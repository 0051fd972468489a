"""A BatchNorm and a ReLU that leave their work to the quantizer behind them, in training.

``norm -> relu -> quantizer``, each the only reader of the one before: in training the
quantizer gets the norm's input and computes all of it in one pass (`qtool.nn.ops.norm_quant`).
In evaluation, where the device's arithmetic is computed, and in tracing, each does its own
work.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from qtool.nn.modules.switch_norm import SwitchNorm
from qtool.nn.ops.norm_quant import norm_quantize
from qtool.quantizers.activation import UniformArgs
from qtool.quantizers.grid import Grid
from qtool.quantizers.uniform import uniform


class Deferred(nn.Module):
    """A ReLU that is the identity in training, where the quantizer behind it clips.

    Args:
        ceiling: upper bound, 6 for ReLU6.
    """

    def __init__(self, ceiling: float) -> None:
        super().__init__()
        self.ceiling = ceiling

    def forward(self, x: Tensor) -> Tensor:
        """Return `x` in training, else ``clamp(x, 0, ceiling)``."""
        return x if self.training else rectify(x, self.ceiling)


def rectify(x: Tensor, ceiling: float) -> Tensor:
    """Return ReLU, ReLU6 or another bounded ReLU of `x`."""
    if ceiling == math.inf:
        return nn.functional.relu(x)
    return nn.functional.hardtanh(x, 0.0, ceiling)


@dataclass(frozen=True)
class Prologue:
    """What a quantizer computes first, in training.

    Args:
        owner: module whose ``norm`` comes first; None where none is deferred.
        ceiling: upper bound of the ReLU that comes then; None where none is deferred.
    """

    owner: nn.Module | None
    ceiling: float | None

    def apply(self, x: Tensor) -> Tensor:
        """Return what the quantizer would read if nothing were deferred."""
        x = x if self.owner is None else self._norm()(x)
        return x if self.ceiling is None else rectify(x, self.ceiling)

    def quantize(self, x: Tensor, arguments: UniformArgs) -> Tensor:
        """Return the quantized result of `apply`, without making that.

        Args:
            x: float32.
            arguments: the quantizer's.
        """
        step, qn, qp, rule, factor, offset = arguments
        relu = self.ceiling is not None
        ceiling = math.inf if self.ceiling is None else self.ceiling
        if self.owner is None or not self._fits(x):
            x = x if self.owner is None else self._norm()(x)
            return uniform(x, *arguments, relu=relu, ceiling=ceiling)
        grid = Grid(qn, qp, relu, ceiling)
        return norm_quantize(x, self._norm(), step, grid, rule, factor, offset)

    def _norm(self) -> nn.BatchNorm2d:
        """Return the norm as it is now: other code may have replaced it, or picked a row."""
        norm = None if self.owner is None else self.owner.norm
        norm = norm.picked if isinstance(norm, SwitchNorm) else norm
        if not isinstance(norm, nn.BatchNorm2d):
            raise TypeError(f"deferred norm is a {type(norm).__name__}")
        return norm

    def _fits(self, x: Tensor) -> bool:
        """True where one pass computes what norm and quantizer would.

        On a GPU cuDNN's own BatchNorm is faster.
        """
        norm = self._norm()
        plain = type(norm) is nn.BatchNorm2d and norm.training and norm.track_running_stats
        return plain and x.device.type == "cpu" and x.dtype == torch.float32
