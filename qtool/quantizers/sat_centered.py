"""SAT with the "centered" scheme of AdaBits: every code in the middle of its cell.

t = tanh(w) / max |tanh(w)|,  q = min(floor(2^b (t + 1) / 2), 2^b - 1) / 2^b  as in `sat`
w_hat = r (2 q - 1 + 2^-b),  dw_hat/dt = r,  the same constant rescaling r

Half a code more than "modified", whose mean is half a code too low. Codes are the odd integers
from 1 - 2^b to 2^b - 1, scale 2^-b r: 8 bits do not fit int8. Inputs are SAT's.
"""

from torch import Tensor

from qtool.quantizers.normalised import normalised, pass_through
from qtool.quantizers.sat import codes_of, rescaled
from qtool.quantizers.weight import WeightOptions, per_row


class SatCenteredWeight:
    """See the module, and `qtool.quantizers.weight.WeightQuantizer`."""

    scheme, learned, widest, per_channel = "centered", False, 7, False
    stored = 7

    def __init__(self, options: WeightOptions) -> None:
        self.options = options

    def source(self, w: Tensor, step: Tensor | None) -> Tensor:
        """Return t, like `w`."""
        return normalised(w, self.options.per_channel)

    def scale(self, w: Tensor, bits: int, step: Tensor | None) -> Tensor:
        """Return 2^-b r, (C,) or (1,)."""
        return rescaled(w, _odd(self.source(w.detach(), step), bits), 2.0**-bits, self.options)

    def quantize(self, w: Tensor, bits: int, step: Tensor | None) -> Tensor:
        """Return w_hat, like `w`."""
        t = self.source(w, step)
        codes = _odd(t.detach(), bits)
        scale = per_row(rescaled(w, codes, 2.0**-bits, self.options), w)
        return pass_through(t, codes * scale, scale * 2.0**bits)


WEIGHT = SatCenteredWeight


def _odd(t: Tensor, bits: int) -> Tensor:
    return codes_of(t, bits).mul_(2).add_(1)
