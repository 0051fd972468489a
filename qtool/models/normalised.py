"""A network that normalises its images itself, so that it takes pixel / 255 like any other.

``network((x - mean) / std)`` with a BatchNorm that holds mean and std (`ConstantNorm`):
the integer export sees a per-channel affine on the pixel codes, and nothing special elsewhere.
It cannot be folded into the first convolution: zero padding would then be black, not grey.
"""

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from qtool.core.errors import UserError


class ConstantNorm(nn.BatchNorm2d):
    """A BatchNorm that holds constants: it is always in evaluation, and never trained."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.eval()

    def train(self, mode: bool = True) -> "ConstantNorm":
        """Stay in evaluation, whatever the network does."""
        super().train(False)
        return self


class Normalised(nn.Module):
    """``network(normalise(x))``.

    Args:
        network: takes normalised images (N, C, H, W).
        mean: per channel, of images in [0, 1].
        std: per channel.
    """

    def __init__(
        self, network: nn.Module, mean: Sequence[float], std: Sequence[float]
    ) -> None:
        super().__init__()
        norm = ConstantNorm(len(mean), eps=0.0).requires_grad_(False)
        cast(Tensor, norm.running_mean).copy_(torch.tensor(mean))
        cast(Tensor, norm.running_var).copy_(torch.tensor(std, dtype=torch.float64).square())
        self.normalise = norm
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) in [0, 1] -> what the network returns."""
        y: Tensor = self.network(self.normalise(x))
        return y


def normalised(
    network: nn.Module, mean: Sequence[float], std: Sequence[float], channels: int
) -> nn.Module:
    """Return `network`, or `Normalised` where there is a mean; refuse other channel counts."""
    if not mean:
        return network
    if len(mean) != channels:
        raise UserError(
            f"recipe settings mean and std: got {len(mean)} values, the images have "
            f"{channels} channels"
        )
    return Normalised(network, mean, std)
