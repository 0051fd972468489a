"""LSQ+ (Bhalgat et al., CVPRW 2020, arXiv 2004.09576): LSQ with a learnable offset.

x_hat = clip(round((x - o) / s), 0, 2^b - 1) s + o
dx_hat/ds = round(v) - v inside, 0 or 2^b - 1 outside, v = (x - o) / s
dx_hat/do = 0 inside, 1 outside; both times LSQ's g

On the device a zero point is an integer: o is used as -z s with z = round(-o / s) between 0
and 2^b - 1, and the gradient of o passes straight through that rounding. Only signed
activations have an offset: after a ReLU the window starts at 0 anyway.
"""

import torch
from torch import Tensor

from qtool.quantizers.activation import ActivationQuantizer

ACTIVATION = ActivationQuantizer("step", "lsq", scaled=True, has_offset=True)


@torch.no_grad()
def zero_points(steps: Tensor, offsets: Tensor, highest: Tensor) -> Tensor:
    """Return z = round(-o / s) from 0 to `highest`; all (candidates,)."""
    return (-offsets / steps).round_().clamp_min_(0).minimum(highest)
