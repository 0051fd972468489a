"""Grids of a prepared network from sample images, without training.

Layer inputs and weights: the step (and zero point) that minimises the squared error. Glue (the
grids of residual additions, poolings and outputs): by choice

    mse         the same
    minmax      every value seen lies on the grid
    percentile  so do all but the highest and lowest (100 - p)/2 percent each

Values are those of the float network.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from qtool.nn.control import activation_quantizers, initialise_weight_steps, turn_off
from qtool.nn.grid_fit import cover, fit_values
from qtool.nn.modules.fake_quant import FakeQuantizer

GLUE_ROLES = ("glue", "output")
_SAMPLES = 1 << 17


@dataclass
class Observed:
    """Values that a quantizer sees: the extremes of all, and an even sample."""

    low: float
    high: float
    sample: list[Tensor]

    def add(self, x: Tensor, count: int) -> None:
        """Count the values of `x`, keeping about `count` of them."""
        self.low, self.high = min(self.low, x.min().item()), max(self.high, x.max().item())
        flat = x.detach().reshape(-1)
        # An odd stride: one that divides the row length would see the same columns only.
        self.sample.append(flat[:: max(1, flat.numel() // count) | 1].clone())

    def values(self) -> Tensor:
        """Return the sample (n,)."""
        return torch.cat(self.sample)

    def range(self, percentile: float) -> tuple[float, float]:
        """Return the values between which `percentile` percent lie."""
        if percentile >= 100:
            return self.low, self.high
        tail = (1 - percentile / 100) / 2
        values = self.values().double()
        return values.quantile(tail).item(), values.quantile(1 - tail).item()


@torch.no_grad()
def observe(model: nn.Module, x: Tensor, batch: int) -> dict[FakeQuantizer, Observed]:
    """Run the float network on images `x` (N, C, H, W); return what each quantizer sees."""
    model.eval()
    seen: dict[FakeQuantizer, Observed] = {}
    batches = [x[start : start + batch] for start in range(0, len(x), batch)]

    def look(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        if isinstance(module, FakeQuantizer):
            fresh = Observed(torch.inf, -torch.inf, [])
            seen.setdefault(module, fresh).add(args[0], _SAMPLES // len(batches))

    hooks = []
    turn_off(model)
    for quantizer in activation_quantizers(model):
        hooks.append(quantizer.register_forward_pre_hook(look))
    try:
        for images in batches:
            model(images)
    finally:
        for hook in hooks:
            hook.remove()
    return seen


def fit_layers(model: nn.Module, seen: dict[FakeQuantizer, Observed]) -> None:
    """Fit weights and layer inputs, at every candidate bit-width."""
    initialise_weight_steps(model)
    for quantizer, observed in seen.items():
        if quantizer.role not in GLUE_ROLES:
            fit_values(quantizer, observed.values())


def fit_glue(seen: dict[FakeQuantizer, Observed], choice: str, percentile: float) -> None:
    """Fit the glue grids by `choice`: one of `qtool.settings.ptq.GLUE_CHOICES`."""
    for quantizer, observed in seen.items():
        if quantizer.role not in GLUE_ROLES:
            continue
        if choice == "mse":
            fit_values(quantizer, observed.values())
        else:
            share = 100.0 if choice == "minmax" else percentile
            cover(quantizer, *observed.range(share))
