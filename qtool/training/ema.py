"""Exponential moving average of weights: what is evaluated and saved after a phase.

shadow <- d * shadow + (1 - d) * weight after every step t = 1, 2, ...,
d = min(decay, (1 + t) / (10 + t)), so that early weights are forgotten soon.

All parameters are averaged, the quantizers' too. BatchNorm's statistics are not: they are
recalibrated with the averaged weights afterwards.
"""

import torch
from torch import Tensor, nn


class Ema:
    """The average of `model`'s parameters.

    Args:
        model: as it is now is where the average starts.
        decay: below 1.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self._parameters = dict(model.named_parameters())
        self.decay = decay
        self.shadow = {name: p.detach().clone() for name, p in self._parameters.items()}
        self.steps = torch.zeros((), dtype=torch.int64)

    @torch.no_grad()
    def update(self) -> None:
        """Count one step of the optimizer."""
        self.steps += 1
        steps = int(self.steps)
        share = 1 - min(self.decay, (1 + steps) / (10 + steps))
        torch._foreach_lerp_(
            list(self.shadow.values()), list(self._parameters.values()), share
        )

    @torch.no_grad()
    def copy_to_model(self) -> None:
        """Replace the weights by their average."""
        for name, parameter in self._parameters.items():
            parameter.copy_(self.shadow[name])

    def tensors(self) -> dict[str, Tensor]:
        """Return what a checkpoint holds; it is restored in place."""
        return {"ema.steps": self.steps, **{f"ema.{n}": t for n, t in self.shadow.items()}}
