"""What a frontend does to a prepared model as a whole: select bits, calibrate, count."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, fx, nn

from qtool.core.choose import choose, given_bits
from qtool.core.cost import LayerCost
from qtool.core.grids import FLOAT_WIDTHS
from qtool.core.selection import LayerBits, Selection
from qtool.models.macs import count_macs
from qtool.nn.grid_fit import fit_values, fit_weights, observed
from qtool.nn.modules.fake_quant import FakeQuantizer
from qtool.nn.modules.quant_layer import QuantLayer
from qtool.nn.modules.quantizer import Quantizer
from qtool.nn.modules.shared_grid import SharedGrid
from qtool.nn.norm_rows import layer_candidates, pick_rows


def quantizers(model: nn.Module) -> list[Quantizer]:
    """Return every quantizer of a prepared model, in module order."""
    return [module for module in model.modules() if isinstance(module, Quantizer)]


def quant_layers(model: nn.Module) -> list[QuantLayer]:
    """Return every quantized layer of a prepared model, in module order."""
    return [module for module in model.modules() if isinstance(module, QuantLayer)]


def called_layers(model: nn.Module) -> list[QuantLayer]:
    """Return every quantized layer of a prepared model, in the order of its calls.

    That is a trace's order; modules may have another where a container is entered twice.
    """
    if not isinstance(model, fx.GraphModule):
        raise TypeError(f"got a {type(model).__name__}, expected a prepared network")
    calls = (node for node in model.graph.nodes if node.op == "call_module")
    modules = (model.get_submodule(str(node.target)) for node in calls)
    return [module for module in modules if isinstance(module, QuantLayer)]


def activation_quantizers(model: nn.Module) -> list[FakeQuantizer]:
    """Return every quantizer of a tensor that has a grid of its own, in module order."""
    return [module for module in model.modules() if isinstance(module, FakeQuantizer)]


def select(
    model: nn.Module,
    selection: Selection,
    weights: bool = True,
    float_tensors: bool = False,
) -> None:
    """Turn every quantizer on, each at its selected bits.

    Args:
        model: prepared model.
        selection: weight and input activation bits per layer; which candidate a layer gets is
            `qtool.core.choose`, as for the pass that resolves bits. Quantizers of other
            tensors have one candidate.
        weights: quantize weights too; else they stay floating point, whatever is selected.
        float_tensors: inputs that are asked at 16 or 32 bits are floats too, as MEBQAT trains
            them, and so is then every tensor between layers; else they keep their widest
            grid, as the device has them.

    Raises:
        UserError: bits that a layer does not have, or a name or pattern that is about none;
            nothing is changed then.
    """
    selection = selection.resolve(layer.name for layer in called_layers(model))
    for quantizer, bits in _plan(model, selection, weights, float_tensors):
        quantizer.choose(bits)
    pick_rows(model, selection)


def select_pair(model: nn.Module, bits: LayerBits) -> None:
    """Select a pair of bits for all layers; tensors of 16 or 32 bits are floats."""
    select(model, Selection(default=bits), float_tensors=True)


class PairSelector:
    """`select_pair` in every pass of a training: what a pair means is worked out once.

    Args:
        model: prepared; its candidates stay as they are, and no norm has rows.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._plans: dict[LayerBits, Plan] = {}

    def __call__(self, bits: LayerBits) -> None:
        """Select `bits` for all layers."""
        if bits not in self._plans:
            self._plans[bits] = _plan(self._model, Selection(default=bits), True, True)
        for quantizer, width in self._plans[bits]:
            quantizer.choose(width)


# What each quantizer is to apply; None, 16 and 32: floating point.
Plan = list[tuple[Quantizer, int | None]]


def _plan(model: nn.Module, selection: Selection, weights: bool, float_tensors: bool) -> Plan:
    """Return what `selection`, of names and a default, means to every quantizer."""
    chosen = _choices(model, selection, weights, float_tensors)
    floats = any(
        bits in FLOAT_WIDTHS and quantizer.role == "activation"
        for quantizer, bits in chosen.items()
    )
    return [
        (quantizer, chosen.get(quantizer, None if floats else quantizer.default))
        for quantizer in quantizers(model)
    ]


def _choices(
    model: nn.Module, selection: Selection, weights: bool, float_tensors: bool
) -> dict[Quantizer, int | None]:
    """Return what layers' quantizers get; None, 16 and 32: floating point."""
    chosen = dict[Quantizer, int | None]()
    for layer in called_layers(model):
        asked = selection.of(layer.name)
        may_differ = layer.is_end and layer.name not in selection.layers
        keeps = layer.weight_quant.keeps_bits
        inputs = None if asked is None else asked.activation
        if float_tensors and inputs in FLOAT_WIDTHS and not (keeps and may_differ):
            chosen[layer.input_quant] = inputs
        else:
            chosen[layer.input_quant] = choose(
                layer.input_quant.bits, inputs, False, may_differ, layer.name, keeps
            )
        chosen[layer.weight_quant] = None
        if weights:
            chosen[layer.weight_quant] = choose(
                layer.weight_quant.bits, None if asked is None else asked.weight, True,
                may_differ, layer.name, keeps,
            )  # fmt: skip
    return chosen


def turn_off(model: nn.Module) -> None:
    """Turn every quantizer off: the network computes in floating point."""
    for quantizer in quantizers(model):
        quantizer.choose(None)


@torch.no_grad()
def calibrate(model: nn.Module, x: Tensor) -> None:
    """Initialise every learned parameter from the float forward of `x` and the weights.

    Weights that a quantizer normalises are quantized in this forward, and BatchNorm behind
    them uses the batch's statistics: the float network's values are not what follows them.
    """
    model.eval()
    turn_off(model)
    with _rescaled(model), observed(activation_quantizers(model)) as seen:
        model(x)
    for quantizer, values in seen.items():
        fit_values(quantizer, values)
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


@torch.no_grad()
def start_clipping(model: nn.Module, level: float) -> None:
    """Let every learned clipping level (alpha, of every row) start at `level`."""
    for quantizer in activation_quantizers(model):
        if quantizer.learned == "alpha":
            quantizer.get_parameter("alpha").fill_(level)
            quantizer.limit()


def initialise_weight_steps(model: nn.Module) -> None:
    """Fit every layer's per-channel weight steps to its present weights."""
    for layer in quant_layers(model):
        fit_weights(layer.weight_quant, layer.layer.weight)


@contextmanager
def baked(model: nn.Module) -> Iterator[None]:
    """Within this context, what a trace shall hold as constants is computed already."""
    try:
        for layer in quant_layers(model):
            layer.weight_quant.bake(layer.layer.weight)
        for quantizer in quantizers(model):
            if isinstance(quantizer, FakeQuantizer | SharedGrid):
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
    """Return the bits that `select` gives every layer; those asked, where that is float."""
    select(model, selection)
    selection = selection.resolve(layer.name for layer in called_layers(model))
    return given_bits(layer_candidates(model), selection)


def bit_costs(model: nn.Module, shape: Sequence[int], selection: Selection) -> list[LayerCost]:
    """Return every layer's MACs and the bits that `select` gives it."""
    bits = selected_bits(model, selection)
    return [LayerCost(name, macs, bits[name]) for name, macs in layer_macs(model, shape)]
