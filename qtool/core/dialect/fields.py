"""What operators of several types are read from: grids, layers' constants, bits, names."""

from typing import Any

import numpy as np
import onnx_ir as ir

from qtool.core.dialect.nodes import (
    ACTIVATION_BITS_KEY,
    WEIGHT_BITS_KEY,
    constant,
    label,
    scalar,
    static_shape,
    value_name,
)
from qtool.core.dialect.ops import Grid
from qtool.core.errors import UnsupportedError
from qtool.core.selection import LayerBits

# A table states no grid of its own; what reads its codes does.
NO_GRID = Grid(np.float32(1), 0)

# Inputs that are read by position; ONNX leaves some of them optional.
_INPUTS = {
    "Clip": 3, "QuantizeLinear": 3, "DequantizeLinear": 3, "QLinearConv": 9, "QGemm": 9,
    "QLinearAdd": 8, "QLinearMul": 8, "QLinearGlobalAveragePool": 5, "QLinearLeakyRelu": 5,
    "Gather": 2, "Reshape": 2, "Slice": 3, "Pad": 2, "Resize": 3,
}  # fmt: skip


def require_inputs(node: ir.Node) -> None:
    """Refuse a node that lacks an input that is read by position."""
    needed = _INPUTS.get(node.op_type, 1)
    if node.op_type == "QGemm" and node.outputs[0].is_graph_output():
        needed = 7
    missing = None in node.inputs[:needed] and node.op_type != "Resize"
    if missing or len(node.inputs) < needed:
        raise UnsupportedError(
            f"{label(node)}: {node.op_type} with {len(node.inputs)} inputs; {needed} are "
            "needed"
        )


def common(node: ir.Node, inputs: tuple[int, ...], grid: Grid) -> dict[str, Any]:
    """Return the fields that every operator has."""
    return {
        "name": str(node.name), "output": value_name(node.outputs[0]),
        "inputs": tuple(value_name(node.inputs[i]) for i in inputs), "grid": grid,
        "lo": 0, "hi": 255, "shape": static_shape(node.outputs[0]),
    }  # fmt: skip


def grid_at(node: ir.Node, index: int) -> Grid:
    """Return the grid whose scale is input `index`, and whose zero point follows."""
    scale = scalar(node.inputs[index], f"{label(node)}: scale")
    zero_point = scalar(node.inputs[index + 1], f"{label(node)}: zero point")
    if zero_point.dtype != np.uint8:
        raise UnsupportedError(
            f"{label(node)}: {zero_point.dtype} activations; uint8 is supported"
        )
    return Grid(np.float32(scale), int(zero_point))


def layer(node: ir.Node, x: int, w: int, bias: int, y: int | None) -> dict[str, Any]:
    """Return the fields of a convolution or linear layer; its weight's name is "w".

    Args:
        node: the layer.
        x: position of the input's codes, followed by their grid.
        w: position of the weight's codes.
        bias: position of the bias.
        y: position of the result's scale, None for a float result.
    """
    weight, scale = constant(node.inputs[w]), constant(node.inputs[w + 1])
    offset = constant(node.inputs[bias])
    if weight is None or scale is None or offset is None:
        raise UnsupportedError(f"{label(node)}: weight, scale and bias must be constants")
    zero = constant(node.inputs[w + 2])
    if zero is None or np.any(zero):
        raise UnsupportedError(f"{label(node)}: weights must have zero point 0")
    grid = NO_GRID if y is None else grid_at(node, y)
    return common(node, (x,), grid) | {
        "x": grid_at(node, x + 1), "w_scale": scale.astype(np.float32).reshape(-1),
        "bias": offset.astype(np.int32), "bits": _layer_bits(node),
        "w": weight.astype(np.int8),
    }  # fmt: skip


def _layer_bits(node: ir.Node) -> LayerBits | None:
    keys = (WEIGHT_BITS_KEY, ACTIVATION_BITS_KEY)
    if not any(key in node.metadata_props for key in keys):
        return None
    weight, activation = (node.metadata_props.get(key, "none") for key in keys)
    if not {weight, activation} <= set("12345678"):
        found = f"{weight} and {activation}"[:40]
        raise UnsupportedError(f"layer {node.name}: bits {found}; 1 to 8 are supported")
    return LayerBits(int(weight), int(activation))
