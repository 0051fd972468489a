"""What a frontend does to a prepared model as a whole: select bits, calibrate, count."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from qtool.core.cost import LayerCost
from qtool.core.grids import FLOAT_WIDTHS
from qtool.core.selection import LayerBits, Selection
from qtool.models.macs import count_macs
from qtool.nn.modules.fake_quant import FakeQuantizer
from qtool.nn.modules.quant_layer import QuantLayer
from qtool.nn.norm_rows import pick_rows


def quantizers(model: nn.Module) -> list[FakeQuantizer]:
    """Return every quantizer of a prepared model, in module order."""
    return [module for module in model.modules() if isinstance(module, FakeQuantizer)]


def quant_layers(model: nn.Module) -> list[QuantLayer]:
    """Return every quantized layer of a prepared model, in module order."""
    return [module for module in model.modules() if isinstance(module, QuantLayer)]


def select(model: nn.Module, selection: Selection, weights: bool = True) -> None:
    """Turn every quantizer on, each at its selected bits.

    Args:
        model: prepared model.
        selection: weight and input activation bits per layer; a quantizer whose layer it does
            not name, or that lacks the bits (first and last layer), gets its first candidate.
            Of 16 or 32 bits, weights stay float, and an input keeps its widest grid. Norms and
            biases with several rows get that of these bits (`qtool.core.choose`).
        weights: quantize weights too; else they stay floating point.
    """
    for quantizer in quantizers(model):
        quantizer.mix = None
        quantizer.selected = quantizer.default
        chosen = selection.of(quantizer.name)
        if quantizer.role == "weight" and not weights:
            quantizer.selected = None
        elif chosen is not None and quantizer.role in ("weight", "activation"):
            wanted = chosen.weight if quantizer.role == "weight" else chosen.activation
            if wanted in FLOAT_WIDTHS:
                is_weight = quantizer.role == "weight"
                quantizer.selected = None if is_weight else max(quantizer.bits)
            elif wanted in quantizer.bits:
                quantizer.selected = wanted
    pick_rows(model, selection)


def turn_off(model: nn.Module) -> None:
    """Turn every quantizer off: the network computes in floating point."""
    for quantizer in quantizers(model):
        quantizer.selected, quantizer.mix = None, None


@torch.no_grad()
def calibrate(model: nn.Module, x: Tensor) -> None:
    """Initialise every learned parameter from the float forward of `x` and the weights.

    Weights that a quantizer normalises are quantized in this forward, and BatchNorm behind
    them uses the batch's statistics: the float network's values are not what follows them.
    """
    model.eval()
    active = [q for q in quantizers(model) if q.role != "weight"]
    turn_off(model)
    for quantizer in active:
        quantizer.observing = True
    with _rescaled(model):
        model(x)
    for quantizer in active:
        quantizer.observing = False
        if quantizer.observed is not None:
            quantizer.initialise(quantizer.observed)
        quantizer.observed = None
    initialise_weight_steps(model)


@contextmanager
def _rescaled(model: nn.Module) -> Iterator[None]:
    """Within this context, layers whose weights get another size work on that."""
    layers = [
        layer for layer in quant_layers(model)
        if layer.weight_quant.learned is None and layer.weight_quant.default is not None
    ]  # fmt: skip
    norms = [norm for layer in layers if (norm := layer.batch_norm) is not None]
    kept = [{name: value.clone() for name, value in n.named_buffers()} for n in norms]
    for layer in layers:
        layer.weight_quant.selected = max(layer.weight_quant.bits)
    for norm in norms:
        norm.train()
    try:
        yield
    finally:
        for norm, statistics in zip(norms, kept, strict=True):
            norm.load_state_dict(statistics, strict=False)
            norm.eval()
        turn_off(model)


def initialise_weight_steps(model: nn.Module) -> None:
    """Fit every layer's per-channel weight steps to its present weights."""
    for layer in quant_layers(model):
        layer.weight_quant.initialise(layer.layer.weight)


@contextmanager
def baked(model: nn.Module) -> Iterator[None]:
    """Within this context, what a trace shall hold as constants is computed already."""
    try:
        for layer in quant_layers(model):
            layer.weight_quant.bake(layer.layer.weight)
        for quantizer in quantizers(model):
            if quantizer.role != "weight":
                quantizer.bake()
        yield
    finally:
        for quantizer in quantizers(model):
            quantizer.unbake()


def layer_macs(model: nn.Module, shape: Sequence[int]) -> list[tuple[str, int]]:
    """Return (layer, MACs) of a prepared model, named as in the user's model."""

    def weight_of(module: nn.Module) -> Tensor | None:
        return module.layer.weight if isinstance(module, QuantLayer) else None

    return count_macs(model, shape, weight_of)


def selected_bits(model: nn.Module, selection: Selection) -> dict[str, LayerBits]:
    """Return the bits that `select` gives every layer."""
    select(model, selection)
    return {layer.name: _layer_bits(layer, selection) for layer in quant_layers(model)}


def bit_costs(model: nn.Module, shape: Sequence[int], selection: Selection) -> list[LayerCost]:
    """Return every layer's MACs and the bits that `select` gives it."""
    bits = selected_bits(model, selection)
    return [LayerCost(name, macs, bits[name]) for name, macs in layer_macs(model, shape)]


def _layer_bits(layer: QuantLayer, selection: Selection) -> LayerBits:
    asked = selection.of(layer.name)
    if asked is not None and asked.is_float and layer.weight_quant.default is not None:
        return asked
    return layer_bits(layer)


def layer_bits(layer: QuantLayer) -> LayerBits:
    """Return the selected bits of `layer`, its first candidates where none are."""
    if layer.weight_quant.default is None:  # float weights, so the products are too
        return LayerBits(layer.weight_quant.bits[0], layer.weight_quant.bits[0])
    return LayerBits(_bits(layer.weight_quant), _bits(layer.input_quant))


def _bits(quantizer: FakeQuantizer) -> int:
    return quantizer.bits[0] if quantizer.selected is None else quantizer.selected
