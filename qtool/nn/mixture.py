"""A weighted sum of a quantizer's candidates, and its cheap form where one weight is 1."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from qtool.nn.fake_quant import FakeQuantizer


def mixed(quantizer: "FakeQuantizer", x: Tensor, weights: Tensor) -> Tensor:
    """Return sum over candidates b of weights[b] * Q_b(x), shaped as `x`."""
    parts = (
        weight * quantizer.quantize_at(x, bits)
        for weight, bits in zip(weights, quantizer.bits, strict=True)
    )
    return torch.stack(tuple(parts)).sum(0)


def chosen(quantizer: "FakeQuantizer", x: Tensor, weights: Tensor) -> Tensor:
    """Return what `mixed` does, for one-hot `weights` and a quantizer that is not trained.

    Forward quantizes at one candidate and keeps `x` only; the gradient of weights[b], which is
    <gradient, Q_b(x)>, quantizes at the others when it is asked for.
    """
    out: Tensor = _Chosen.apply(x, weights, quantizer)  # type: ignore[no-untyped-call]
    return out


class _Chosen(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weights: Tensor, quantizer: "FakeQuantizer") -> Tensor:
        ctx.save_for_backward(x)
        ctx.quantizer, ctx.bits = quantizer, quantizer.bits[int(weights.argmax())]
        return quantizer.quantize_at(x, ctx.bits)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        (x,), (grad,) = ctx.saved_tensors, grads
        outputs, dx = [], None
        for bits in ctx.quantizer.bits:
            with torch.set_grad_enabled(bits == ctx.bits and ctx.needs_input_grad[0]):
                leaf = x.detach().requires_grad_(torch.is_grad_enabled())
                out = ctx.quantizer.quantize_at(leaf, bits)
                if torch.is_grad_enabled():
                    (dx,) = torch.autograd.grad(out, leaf, grad)
            outputs.append(out.detach())
        return dx, _products(outputs, grad), None


def _products(outputs: Sequence[Tensor], grad: Tensor) -> Tensor:
    """Return <out, grad> of every output."""
    flat = _flat(grad)
    return torch.stack([torch.dot(_flat(out), flat) for out in outputs])


def _flat(x: Tensor) -> Tensor:
    """Return the elements of `x` in channels-last order, where no copy is needed for it."""
    return (x.permute(0, 2, 3, 1) if x.ndim == 4 else x).reshape(-1)
