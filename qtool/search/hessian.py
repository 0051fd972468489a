"""HAWQ-V2's penalty of every candidate: mean curvature times squared quantization error.

Dong et al. 2020, arXiv 1911.03852, equation 5 and section 3.4, for layer l at bits (b_w, b_a):

    Omega = Tr(H_w) / n_w * ||Q_w(W) - W||^2 + Tr(H_a) / n_a * mean_i ||Q_a(a_i) - a_i||^2

with n the number of elements and i the images: twice the expected rise of the loss if errors
are independent of the Hessian's eigenvectors. A trace estimated below zero counts as zero: at
a minimum of the loss there is none, so it is the probes' noise or training that has not ended,
and a negative penalty would pay for errors.
"""

import copy
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from qtool.core.choose import choose
from qtool.core.grids import FLOAT_WIDTHS
from qtool.data.batches import Batch
from qtool.nn.control import quant_layers, turn_off
from qtool.nn.grid_fit import fit_weights
from qtool.nn.modules.quant_layer import QuantLayer
from qtool.nn.modules.quantizer import Quantizer
from qtool.nn.modules.weight_quant import WeightQuantizer
from qtool.search.curvature import LayerTraces, Traces, layer_traces
from qtool.search.space import Space
from qtool.search.undisturbed import undisturbed
from qtool.training.evaluation import device_of

__all__ = ["LayerTraces", "Traces", "hessian_penalties", "layer_traces"]

# Mean square error of an element, by layer and bits.
Errors = dict[str, dict[int, float]]


def hessian_penalties(
    model: nn.Module, space: Space, traces: Mapping[str, Traces], batches: Iterable[Batch]
) -> list[list[float]]:
    """Return Omega of the choices of every open layer; leaves the model as it is.

    Weight steps are fitted to the present weights, as when bits have been chosen. A quantizer
    that rescales weights (DoReFa, SAT) has that rescaling in its error.

    Args:
        model: prepared network at the meta-state, whose activation steps are trained.
        space: its candidates.
        traces: `layer_traces` of the float network.
        batches: (x, labels) to take activation errors from.
    """
    with undisturbed(model):
        turn_off(model)
        weights, inputs = weight_errors(model, space), input_errors(model, space, batches)
    table = []
    for layer in space.open:
        trace = traces[layer.name]
        curve_w, curve_a = max(trace.weight, 0.0), max(trace.activation, 0.0)
        w, a = weights[layer.name], inputs[layer.name]
        table.append(
            [curve_w * w[c.weight] + curve_a * a[c.activation] for c in layer.choices]
        )
    return table


@torch.no_grad()
def weight_errors(model: nn.Module, space: Space) -> Errors:
    """Return ||Q_w(W) - W||^2 / n_w by layer and bits; 0 where weights stay float."""
    layers, errors = _open_layers(model, space), Errors()
    for entry in space.open:
        layer = layers[entry.name]
        weight, quantizer = layer.layer.weight, copy.deepcopy(layer.weight_quant)
        fit_weights(quantizer, weight)
        widths = {choice.weight for choice in entry.choices}
        errors[entry.name] = {b: _square_error(quantizer, weight, b) for b in widths}
    return errors


@torch.no_grad()
def input_errors(model: nn.Module, space: Space, batches: Iterable[Batch]) -> Errors:
    """Return mean_i ||Q_a(a_i) - a_i||^2 / n_a by layer and bits.

    Args:
        model: prepared network in evaluation mode, its quantizers off.
        space: its candidates.
        batches: one or more.
    """
    layers, total, images = _open_layers(model, space), Errors(), 0
    device, count = device_of(model), 0

    def hook_of(name: str, widths: set[int]) -> Any:
        sums = total.setdefault(name, dict.fromkeys(widths, 0.0))

        def hook(layer: QuantLayer, args: tuple[Tensor]) -> None:
            for bits in widths:
                sums[bits] += count * _square_error(layer.input_quant, args[0], bits)

        return hook

    with ExitStack() as hooks:
        for entry in space.open:
            hook = hook_of(entry.name, {choice.activation for choice in entry.choices})
            handle = layers[entry.name].register_forward_pre_hook(hook)
            hooks.callback(handle.remove)
        for x, labels in batches:
            count = len(labels)
            images += count
            model(x.to(device))
    if not images:
        raise ValueError("no images to take activation errors from")
    return {name: {b: s / images for b, s in row.items()} for name, row in total.items()}


def _open_layers(model: nn.Module, space: Space) -> dict[str, QuantLayer]:
    names = {layer.name for layer in space.open}
    return {layer.name: layer for layer in quant_layers(model) if layer.name in names}


def _square_error(quantizer: Quantizer, x: Tensor, bits: int) -> float:
    """Return the mean of (Q(x) - x)^2 at `bits`, of 16 or 32 as `select` treats them."""
    is_weight = isinstance(quantizer, WeightQuantizer)
    bits = choose(quantizer.bits, bits, is_weight, False, quantizer.name)
    if bits in FLOAT_WIDTHS:
        return 0.0
    difference = (quantizer.quantize_at(x, bits) - x).double()
    return float(difference.square().mean())
