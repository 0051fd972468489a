"""A layer of a network, alone: what its time depends on, and a network of just this layer.

The network of one layer reads an image of the layer's input size on the layer's own grid, or
on an 8-bit grid first where the layer reads a tensor that has one (because it is added, or
read by several): the change of grid then belongs to the layer that asks for it. Its result
has an 8-bit grid; fewer bits there are what the next layer asks for, and counted there.
"""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import onnx_ir as ir
import torch
from torch import Tensor, fx, nn

from qtool.core.selection import LayerBits
from qtool.export.trace import trace
from qtool.nn.control import calibrate
from qtool.nn.modules.fake_quant import FakeQuantizer
from qtool.nn.modules.prologue import Deferred
from qtool.nn.modules.quant_layer import QuantLayer
from qtool.nn.modules.shared_grid import SharedGrid
from qtool.nn.prepare.graph_view import GraphView
from qtool.nn.prepare.prepare import LayerSpec, QuantSpec, prepare

LAYER = "layer"


@dataclass(frozen=True)
class Geometry:
    """What a layer's time depends on, beside its bits.

    Args:
        inputs: (C, H, W) of its input, or (features,).
        outputs: channels, or features.
        kernel, stride, padding, dilation, groups: as `nn.Conv2d` takes them; a linear layer
            has no kernel.
        bias: whether it has one (with BatchNorm always).
        signed: whether its input has negative values.
        ceiling: upper bound of the ReLU behind it, None where there is none.
        grid: bits of the grid that its input tensor has already, None where it has the
            layer's.
    """

    inputs: tuple[int, ...]
    outputs: int
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...] | str
    dilation: tuple[int, ...]
    groups: int
    bias: bool
    signed: bool
    ceiling: float | None
    grid: int | None


def geometries(model: fx.GraphModule, shape: Sequence[int]) -> dict[str, Geometry]:
    """Return the geometry of every layer of a prepared network, by name.

    Args:
        model: result of `qtool.nn.prepare.prepare.prepare`.
        shape: (C, H, W) of an image.
    """
    sizes = _input_sizes(model, shape)
    view, found = GraphView(model, True), {}
    for node in view.nodes:
        module = view.module(node)
        if isinstance(module, QuantLayer):
            source = view.module(view.origin(view.source(node)))
            shared = isinstance(module.input_quant, SharedGrid)
            given = isinstance(source, FakeQuantizer) and not shared
            found[module.name] = _geometry(
                module, sizes[module.name], _ceiling(view, node),
                source.bits[0] if given and isinstance(source, FakeQuantizer) else None,
            )  # fmt: skip
    return found


def _geometry(
    module: QuantLayer, inputs: tuple[int, ...], ceiling: float | None, grid: int | None
) -> Geometry:
    layer, signed = module.layer, module.input_quant.signed
    bias = layer.bias is not None or module.norm is not None
    if isinstance(layer, nn.Linear):
        sizes: tuple[int, ...] = ()
        return Geometry(
            inputs, layer.out_features, sizes, sizes, sizes, sizes, 1, bias, signed, ceiling,
            grid,
        )  # fmt: skip
    return Geometry(
        inputs, layer.out_channels, layer.kernel_size, layer.stride, layer.padding,
        layer.dilation, layer.groups, bias, signed, ceiling, grid,
    )  # fmt: skip


def _input_sizes(model: fx.GraphModule, shape: Sequence[int]) -> dict[str, tuple[int, ...]]:
    """Return the size of every layer's input, by running the network on one image."""
    sizes: dict[str, tuple[int, ...]] = {}

    def keep(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if isinstance(module, QuantLayer):
            sizes[module.name] = tuple(inputs[0].shape[1:])

    layers = [module for module in model.modules() if isinstance(module, QuantLayer)]
    hooks = [module.register_forward_pre_hook(keep) for module in layers]
    try:
        with torch.no_grad():
            model.eval()(torch.zeros(1, *shape))
    finally:
        for hook in hooks:
            hook.remove()
    return sizes


def _ceiling(view: GraphView, node: fx.Node) -> float | None:
    """Return the upper bound of the ReLU that reads `node`."""
    for reader in view.readers(node):
        module, bounds = view.module(reader), view.bounds(reader)
        if isinstance(module, Deferred):
            return module.ceiling
        if bounds is not None and bounds[0] >= 0:
            return bounds[1]
    return None


def one_layer(geometry: Geometry, choices: Sequence[LayerBits]) -> ir.Model:
    """Return the adaptive graph of a network of one layer, named `LAYER`, random weights.

    Args:
        geometry: of the layer.
        choices: the bits that it shall be lowered at.
    """
    shape = geometry.inputs if geometry.kernel else (*geometry.inputs, 1, 1)
    widths = LayerSpec(
        tuple(sorted({bits.weight for bits in choices}, reverse=True)),
        tuple(sorted({bits.activation for bits in choices}, reverse=True)),
    )
    step = None if geometry.signed else 1 / 255
    model = prepare(
        _network(geometry), QuantSpec(input_step=step, layers={LAYER: widths}), shape
    )
    glue = (
        None if geometry.grid is None else _insert_grid(model, geometry.grid, geometry.signed)
    )
    x = torch.rand(2, *shape)
    calibrate(model, 2 * x - 1 if geometry.signed else x)
    if glue is not None:
        with torch.no_grad():  # equal grids would need no change of grid
            glue.step.mul_(1.1)
    return trace(model, shape)


def _network(geometry: Geometry) -> nn.Module:
    parts: OrderedDict[str, nn.Module] = OrderedDict()
    if geometry.kernel:
        parts[LAYER] = nn.Conv2d(
            geometry.inputs[0], geometry.outputs, geometry.kernel, geometry.stride,  # type: ignore[arg-type]
            geometry.padding, geometry.dilation, geometry.groups, geometry.bias,  # type: ignore[arg-type]
        )  # fmt: skip
    else:
        parts["flatten"] = nn.Flatten()
        parts[LAYER] = nn.Linear(geometry.inputs[0], geometry.outputs, geometry.bias)
    if geometry.ceiling is not None:
        parts["relu"] = nn.Hardtanh(0.0, geometry.ceiling)
        if geometry.ceiling == float("inf"):
            parts["relu"] = nn.ReLU()
    return nn.Sequential(parts)


def _insert_grid(model: fx.GraphModule, bits: int, signed: bool) -> FakeQuantizer:
    """Put the image on a grid of its own before the layer reads it; return its quantizer."""
    (image,) = (node for node in model.graph.nodes if node.op == "placeholder")
    quantizer = FakeQuantizer("glue_input", "input", (bits,), signed)
    model.add_submodule("glue_input", quantizer)
    with model.graph.inserting_after(image):
        glue = model.graph.call_module("glue_input", (image,))
    image.replace_all_uses_with(glue, delete_user_cb=lambda user: user is not glue)
    model.recompile()
    return quantizer
