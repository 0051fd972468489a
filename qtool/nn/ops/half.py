"""Rounding to float16, straight through: what 16 bits are, of weights and of tensors."""

import torch
from torch import Tensor

from qtool.quantizers.normalised import pass_through

_LARGEST = torch.finfo(torch.float16).max


def half(x: Tensor) -> Tensor:
    """Return `x` rounded to float16, as float32; the gradient is that of the identity.

    Args:
        x: float32, any shape; beyond +-65504 it is clipped.
    """
    rounded = x.detach().clamp(-_LARGEST, _LARGEST).half().to(x.dtype)
    return pass_through(x, rounded)
