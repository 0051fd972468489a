"""Any-Precision DNNs (Yu et al., AAAI 2021, arXiv 1911.07346): DoReFa, mean weight kept.

t = tanh(w) / max |tanh(w)|,  n = 2^b - 1,  E = mean |w|
w_hat = E * (2 round(n (t / 2 + 1/2)) / n - 1),  dw_hat/dt = E, and E is a constant

One bit too: the released code has no special case. Inputs are DoReFa's.
"""

from torch import Tensor

from qtool.core.grids import MIN_STEP
from qtool.quantizers.dorefa import levels, odd_codes
from qtool.quantizers.normalised import mean_abs, normalised, pass_through
from qtool.quantizers.weight import WeightOptions, per_row


class AnyPrecisionWeight:
    """See the module, and `qtool.quantizers.weight.WeightQuantizer`."""

    scheme, learned, widest, per_channel = "dorefa", False, 7, False
    stored = 0

    def __init__(self, options: WeightOptions) -> None:
        self.options = options

    def source(self, w: Tensor, step: Tensor | None) -> Tensor:
        """Return t, like `w`."""
        return normalised(w, self.options.per_channel)

    def scale(self, w: Tensor, bits: int, step: Tensor | None) -> Tensor:
        """Return E / n, (C,) or (1,)."""
        mean = mean_abs(w, self.options.per_channel)
        return (mean / levels(bits)).clamp_min(MIN_STEP)

    def quantize(self, w: Tensor, bits: int, step: Tensor | None) -> Tensor:
        """Return w_hat, like `w`."""
        t, scale = self.source(w, step), per_row(self.scale(w, bits, step), w)
        return pass_through(t, odd_codes(t, bits) * scale, scale * levels(bits))


WEIGHT = AnyPrecisionWeight
