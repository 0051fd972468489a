"""DoReFa-Net (Zhou et al. 2016, arXiv 1606.06160).

Weights: t = tanh(w) / max |tanh(w)|,  n = 2^b - 1
    w_hat = 2 round(n (t / 2 + 1/2)) / n - 1,  dw_hat/dt = 1  (section 2.3, Eq. 9)
    one bit: w_hat = mean|w| * sign(t),  dw_hat/dw = 1, mean|w| a constant  (section 2.3)
Activations: a_hat = round(n clip(a, 0, 1)) / n,  da_hat/da = 1 inside, 0 outside (section 2.4)

Codes of weights are the odd integers from -n to n: 8 bits do not fit int8. As published, one
scale serves all channels. The paper leaves open what signed activations do; here they are
clipped to [-1, 1 - 2^(1-b)]. A code of 0 does not exist: t = 0 rounds to -1 at one bit.
"""

import torch
from torch import Tensor

from qtool.core.grids import MIN_STEP
from qtool.quantizers.activation import ActivationQuantizer
from qtool.quantizers.normalised import mean_abs, normalised, pass_through
from qtool.quantizers.weight import WeightOptions, per_row

ACTIVATION = ActivationQuantizer("step", "none", fixed_alpha=1.0)


class DorefaWeight:
    """See the module, and `qtool.quantizers.weight.WeightQuantizer`."""

    scheme, learned, widest, per_channel = "dorefa", False, 7, False
    stored = 0

    def __init__(self, options: WeightOptions) -> None:
        self.options = options

    def source(self, w: Tensor, step: Tensor | None) -> Tensor:
        """Return t, like `w`."""
        return normalised(w, self.options.per_channel)

    def scale(self, w: Tensor, bits: int, step: Tensor | None) -> Tensor:
        """Return 1 / n, at one bit mean |w|; (C,) or (1,)."""
        mean = mean_abs(w, self.options.per_channel)
        return (mean if bits == 1 else torch.full_like(mean, 1 / levels(bits))).clamp_min(
            MIN_STEP
        )

    def quantize(self, w: Tensor, bits: int, step: Tensor | None) -> Tensor:
        """Return w_hat, like `w`."""
        t = self.source(w, step)
        values = odd_codes(t, bits) * per_row(self.scale(w, bits, step), w)
        return pass_through(w if bits == 1 else t, values)


WEIGHT = DorefaWeight


def levels(bits: int) -> int:
    """Return n = 2^b - 1."""
    return (1 << bits) - 1


def odd_codes(t: Tensor, bits: int) -> Tensor:
    """Return ``2 round((t + 1) / 2 * n) - n``, as `qtool.core.weight_codes` does."""
    n = levels(bits)
    return ((t.detach() + 1) / 2).mul_(n).round_().mul_(2).sub_(n)
