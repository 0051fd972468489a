"""One-bit weights (Rastegari et al., XNOR-Net, ECCV 2016, arXiv 1603.05279).

w_hat = s * sign(w), sign(0) = +1;  s = mean|w| minimises |w - s * sign(w)|^2  (section 3.1)
dw_hat/dw = 1 (straight through, as DoReFa's 1-bit weights, arXiv 1606.06160, section 2.3)
dw_hat/ds = sign(w), times LSQ's g = 1 / sqrt(N), since Qp = 1
"""

import math
from typing import Any

import torch
from torch import Tensor


class _Binary(torch.autograd.Function):
    """w (any shape), step (shaped to broadcast over w) -> w_hat, like w."""

    @staticmethod
    def forward(ctx: Any, w: Tensor, step: Tensor) -> Tensor:
        ctx.save_for_backward(w, step)
        return torch.where(w >= 0, step, -step)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        (grad,) = grads
        w, step = ctx.saved_tensors
        grad_step = None
        if ctx.needs_input_grad[1]:
            signed = torch.where(w >= 0, grad, -grad)
            total = signed.double().sum_to_size(step.shape)
            grad_step = (total / math.sqrt(w.numel() / step.numel())).to(step.dtype)
        return grad, grad_step


def binary(w: Tensor, step: Tensor) -> Tensor:
    """Return `step` where ``w >= 0``, ``-step`` elsewhere.

    Args:
        w: float32, any shape.
        step: positive; of `w`'s rank with the shared axes of size 1.
    """
    out: Tensor = _Binary.apply(w, step)  # type: ignore[no-untyped-call]
    return out


def binary_step(w: Tensor) -> Tensor:
    """Return mean|w| of each row, (C, 1); `w` is (C, values)."""
    return w.abs().mean(1, keepdim=True)
