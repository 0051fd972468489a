"""Scale-adjusted training (Jin et al. 2019, arXiv 1912.10207), AdaBits (arXiv 1912.09666).

Weights, the "modified" scheme of AdaBits: t = tanh(w) / max |tanh(w)|
    w_hat = r (2 q - 1),  q = min(floor(2^b (t + 1) / 2), 2^b - 1) / 2^b,  dw_hat/dt = r
    "constant rescaling" of layers that no BatchNorm follows: r = 1 / sqrt(n_out Var(2 q - 1)),
    a constant in the gradient; n_out = out_features, for convolutions times the kernel's
    area. Else r = 1.
Activations: PACT with the calibrated gradient ("CG-PACT"), x~ = clip(x / alpha)
    dx_hat/dalpha = q(x~) - x~ inside, 1 above: LSQ's rule on step = alpha / Qp, without its g.

Codes are b-bit integers, scale 2^(1-b) r. At 8 bits -128 is not used, so that a negative
BatchNorm gamma can flip a channel: t is held above -1 + 2^-7, which changes no code of fewer
bits. As published, one scale serves all channels.
"""

import math

import torch
from torch import Tensor

from qtool.core.grids import MIN_STEP
from qtool.quantizers.activation import ActivationQuantizer
from qtool.quantizers.normalised import normalised, pass_through
from qtool.quantizers.weight import WeightOptions, per_row

ACTIVATION = ActivationQuantizer("alpha", "lsq")
_LOWEST = -1 + 2.0**-7


class SatWeight:
    """See the module, and `qtool.quantizers.weight.WeightQuantizer`."""

    scheme, learned, widest, per_channel = "modified", False, 8, False
    stored = 8

    def __init__(self, options: WeightOptions) -> None:
        self.options = options

    def source(self, w: Tensor, step: Tensor | None) -> Tensor:
        """Return t, like `w`."""
        return normalised(w, self.options.per_channel).clamp_min(_LOWEST)

    def scale(self, w: Tensor, bits: int, step: Tensor | None) -> Tensor:
        """Return 2^(1-b) r, (C,) or (1,)."""
        codes = codes_of(self.source(w.detach(), step), bits)
        return rescaled(w, codes, 2.0 ** (1 - bits), self.options)

    def quantize(self, w: Tensor, bits: int, step: Tensor | None) -> Tensor:
        """Return w_hat, like `w`."""
        t = normalised(w, self.options.per_channel)
        codes = codes_of(t.detach().clamp_min(_LOWEST), bits)
        scale = per_row(rescaled(w, codes, 2.0 ** (1 - bits), self.options), w)
        return pass_through(t, codes * scale, scale * 2.0 ** (bits - 1))


WEIGHT = SatWeight


def codes_of(t: Tensor, bits: int) -> Tensor:
    """Return ``q 2^b - 2^(b-1)``, float32: `qtool.core.weight_codes.modified_weight`."""
    count = 1 << bits
    cells = torch.floor_((t + 1) / 2 * count).clamp_(0, count - 1)
    return cells.sub_(count // 2)


def rescaled(w: Tensor, codes: Tensor, unit: float, options: WeightOptions) -> Tensor:
    """Return the scale of `codes`, (C,) or (1,): `unit`, times r if `options` ask for it."""
    channels = len(codes) if options.per_channel else 1
    if not options.rescale:
        return codes.new_full((channels,), unit)
    fan_out = w.shape[0] * math.prod(w.shape[2:])
    deviation = codes.double().std().nan_to_num(0.0)  # of one weight: none
    ratio = 1 / (math.sqrt(fan_out) * deviation)
    scale = torch.where(deviation > 0, ratio, unit).to(w.dtype)
    return scale.clamp_min(MIN_STEP).expand(channels)
