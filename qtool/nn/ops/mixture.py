"""A weighted sum of a quantizer's candidates: a branch of MetaMix (Eq. 2) or DNAS."""

from collections.abc import Iterator
from typing import Any, Protocol

import torch
from torch import Tensor


class Candidates(Protocol):
    """What has several quantizers to choose from."""

    @property
    def bits(self) -> tuple[int, ...]:
        """The candidates."""
        ...

    def quantize_at(self, x: Tensor, bits: int) -> Tensor:
        """Return `x` fake-quantized at one of `bits`."""
        ...


def mixed(quantizer: Candidates, x: Tensor, weights: Tensor) -> Tensor:
    """Return sum over candidates b of weights[b] * Q_b(x), float32, shaped as `x`."""
    parts = _parts(quantizer, x)
    pairs = zip(weights, parts, strict=True)
    return torch.stack([weight * part for weight, part in pairs]).sum(0)


def mixed_fixed(quantizer: Candidates, x: Tensor, weights: Tensor) -> Tensor:
    """Return what `mixed` does, for a quantizer that is not trained.

    Only `x` is kept for the backward pass, which quantizes once more: a third of the memory,
    and no pass over it for steps that nobody trains.
    """
    out: Tensor = _Mixed.apply(x, weights, quantizer)  # type: ignore[no-untyped-call]
    return out


class _Mixed(torch.autograd.Function):
    """d/dx of the sum, and d/dweights[b] = <gradient, Q_b(x)>."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weights: Tensor, quantizer: Candidates) -> Tensor:
        ctx.save_for_backward(x, weights)
        ctx.quantizer = quantizer
        return _sum(quantizer, x, weights)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        (x, weights), (grad,) = ctx.saved_tensors, grads
        products, flat = [], _flat(grad)
        dx = None if not ctx.needs_input_grad[0] else torch.zeros_like(grad)
        for weight, bits in zip(weights.tolist(), ctx.quantizer.bits, strict=True):
            with torch.set_grad_enabled(dx is not None):
                leaf = x.detach().requires_grad_(dx is not None)
                out = ctx.quantizer.quantize_at(leaf, bits)
            products.append(torch.dot(_flat(out.detach()), flat))
            if dx is not None:
                (part,) = torch.autograd.grad(out, leaf, grad)
                dx.add_(part, alpha=weight)
        return None if dx is None else dx.to(x.dtype), torch.stack(products), None


def _parts(quantizer: Candidates, x: Tensor) -> Iterator[Tensor]:
    return (quantizer.quantize_at(x, bits) for bits in quantizer.bits)


def _sum(quantizer: Candidates, x: Tensor, weights: Tensor) -> Tensor:
    total = torch.zeros_like(x, dtype=torch.float32)  # as the parts are, under autocast too
    for weight, part in zip(weights.tolist(), _parts(quantizer, x), strict=True):
        total.add_(part, alpha=weight)
    return total


def _flat(x: Tensor) -> Tensor:
    """Return the elements of `x` in channels-last order, where no copy is needed for it."""
    return (x.permute(0, 2, 3, 1) if x.ndim == 4 else x).reshape(-1)
