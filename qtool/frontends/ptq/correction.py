"""Undo, channel by channel, what quantization does to a layer's output on average.

Per output channel, with y the quantized and r the float layer's output on sample images:

    bias    b = E[r] - E[y]                              (Nagel et al. 2019, arXiv 1906.04721)
    affine  g = Cov(y, r) / Var(y),  b = E[r] - g E[y]:  the least-squares fit of r

Layers are corrected in the order they run in, each on inputs that are corrected already. g and
b go into BatchNorm's weight and bias, or b into the layer's own bias: the network keeps its
form, and the integers stay as exact as before. Layers with neither are left as they are.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from qtool.nn.control import quant_layers, turn_off
from qtool.nn.modules.quant_layer import QuantLayer
from qtool.nn.ops.shapes import shaped_like

# A channel that quantization made almost constant says nothing about its scale.
_LIMITS = (0.5, 2.0)
_TINY = 1e-12


@contextmanager
def _hooked(model: nn.Module, hook: "_Record | _Correct") -> Iterator[None]:
    handles = [layer.register_forward_hook(hook) for layer in quant_layers(model)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class _Record:
    """Keeps every layer's output."""

    def __init__(self) -> None:
        self.outputs: dict[nn.Module, Tensor] = {}

    def __call__(self, layer: nn.Module, _args: object, output: Tensor) -> None:
        self.outputs[layer] = output.clone()


class _Correct:
    """Fits every layer's output to the recorded one, and hands on the corrected output."""

    def __init__(self, wanted: dict[nn.Module, Tensor], scale: bool) -> None:
        self.wanted, self.scale = wanted, scale

    def __call__(self, layer: nn.Module, _args: object, output: Tensor) -> Tensor:
        if not isinstance(layer, QuantLayer):
            return output
        norm, bias = layer.batch_norm, layer.bias
        has_affine = norm is not None and norm.affine
        factor, shift = _fit(output, self.wanted[layer], self.scale and has_affine)
        if norm is not None and norm.affine:
            norm.weight.mul_(factor)
            norm.bias.mul_(factor).add_(shift)
        elif norm is None and bias is not None:
            bias.add_(shift)
        else:
            return output
        return output * shaped_like(factor, output) + shaped_like(shift, output)


def _fit(y: Tensor, wanted: Tensor, scale: bool) -> tuple[Tensor, Tensor]:
    """Return (factor, shift), each (C,), from `y` to `wanted`, both (N, C, ...)."""
    axes = (0, *range(2, y.ndim))
    mean, goal = y.mean(axes), wanted.mean(axes)
    if not scale:
        return torch.ones_like(mean), goal - mean
    centred = y - shaped_like(mean, y)
    covariance = (centred * wanted).mean(axes)
    variance = centred.square().mean(axes)
    factor = (covariance / variance.clamp_min(_TINY)).clamp(*_LIMITS)
    return factor, goal - factor * mean


@torch.no_grad()
def float_outputs(model: nn.Module, x: Tensor) -> dict[nn.Module, Tensor]:
    """Return every layer's output in the float network for images `x` (N, C, H, W)."""
    record = _Record()
    turn_off(model)
    model.eval()
    with _hooked(model, record):
        model(x)
    return record.outputs


@torch.no_grad()
def correct(model: nn.Module, x: Tensor, wanted: dict[nn.Module, Tensor], kind: str) -> None:
    """Correct a prepared `model` at the bits that are selected, in place.

    Args:
        model: its grids are fitted already.
        x: images (N, C, H, W).
        wanted: result of `float_outputs` for the same images.
        kind: one of `qtool.settings.ptq.CORRECTIONS`.
    """
    model.eval()
    if kind != "none":
        with _hooked(model, _Correct(wanted, kind == "affine")):
            model(x)
