"""Float operators -> a float island: ``Q(f(DQ(x0), DQ(x1), ...))``, f node by node as it was.

f is everything between tensors that have a grid and the grid that closes it: one operator, or
a chain of them, with its constants. On the graph it is literally that, in the dialect as in
both ONNX flavours; its nodes carry the island's name (`ISLAND_KEY`).

1. A convolution or linear layer with float weights: the island has the layer's name and bits.
2. ``Swish(x)``: spelled ``Mul(x, Sigmoid(alpha * x))`` again, which every opset knows.
3. Operators that ONNX Runtime replaces by integer kernels when they stand alone between DQ and
   Q (it even rounds float weights to int8 on its own): ``LeakyRelu(alpha=1)`` before Q, which
   changes no value, and which it fuses into the operator, keeps them float.
Refuses what depends on more than its inputs: control flow, random numbers, other domains.
"""

from collections.abc import Callable, Sequence

import numpy as np
import onnx_ir as ir

from passes.graph import LAYER_KEY, operand
from passes.lower.integer_builder import IntegerBuilder, Quantized
from passes.lower.layer_operators import mark
from qtool.core.dialect import ACTIVATION_BITS_KEY, ISLAND_KEY, WEIGHT_BITS_KEY, Grid, constant
from qtool.core.dialect.islands import Region, collect, require_opset
from qtool.core.errors import UnsupportedError
from qtool.core.grids import Window

# ONNX Runtime's WeightBiasQuantization and QDQ selectors (BatchNormalization joins a Conv).
_GUARDED = (
    "Conv", "ConvTranspose", "Gemm", "MatMul", "BatchNormalization", "Softmax", "AveragePool",
    "Where", "Concat", "Add", "Mul", "Sigmoid",
)  # fmt: skip
Find = Callable[[ir.Value], Quantized | None]
FLAG = "--allow-float keeps it as a float island"


def build_island(
    build: IntegerBuilder, result: ir.Value, find: Find, grid: Grid, window: Window, name: str
) -> ir.Value:
    """Make the island that computes `result`.

    Args:
        build: gets its nodes.
        result: a float value that no integer operator computes.
        find: returns the twin of a value that has a grid, None for others.
        grid: of the result.
        window: of the result.
        name: of the result; a layer in the island has precedence.

    Returns:
        The codes.

    Raises:
        UnsupportedError: what it would hold cannot be an island; names the operator.
    """
    region = _region(result, find, name)
    layer = next((n for n in region.nodes if LAYER_KEY in n.metadata_props), None)
    if layer is not None:
        name = layer.metadata_props[LAYER_KEY]
    first = len(build.nodes)
    values = _read(build, region, find, name) | _constants(build, region, name)
    for index, node in enumerate(region.nodes):
        _copy(build, node, values, f"{name}/f{index}")
    floats = values[result]
    if region.nodes[-1].op_type in (*_GUARDED, "Swish"):
        guard = ir.node("LeakyRelu", [floats], {"alpha": 1.0})
        floats = _append(build, guard, [result], f"{name}/float")
    codes = build.emit("QuantizeLinear", [floats, *build.grid(grid)], name, result, window)
    _name_nodes(build.nodes[first:], str(codes.name))
    if layer is not None:
        props = layer.metadata_props
        mark(codes, int(props[WEIGHT_BITS_KEY]), int(props[ACTIVATION_BITS_KEY]))
    return codes


def _region(result: ir.Value, find: Find, name: str) -> Region:
    """Return what computes `result` from tensors that have a grid, or refuse it."""
    region = collect(result, lambda value: find(value) is not None or value.is_graph_input())
    if not region.inputs:
        raise UnsupportedError(f"tensor {name}: computed from constants alone")
    if result.dtype not in (None, ir.DataType.FLOAT):
        raise UnsupportedError(f"tensor {name}: {result.dtype}; islands compute in float32")
    graph = region.nodes[0].graph
    require_opset(region, graph.opset_imports.get("") if isinstance(graph, ir.Graph) else None)
    return region


def _name_nodes(nodes: list[ir.Node], name: str) -> None:
    for node in nodes:
        if node.op_type != "Clip" or node is not nodes[-1]:
            node.metadata_props[ISLAND_KEY] = name


def _read(
    build: IntegerBuilder, region: Region, find: Find, name: str
) -> dict[ir.Value, ir.Value]:
    """Dequantize the island's inputs."""
    values = {}
    for index, value in enumerate(region.inputs):
        twin = find(value)
        if twin is None:
            values[value] = value  # the model's float input itself
            continue
        node = ir.node("DequantizeLinear", [twin.value, *build.grid(twin.grid)])
        values[value] = _append(build, node, [value], f"{name}/x{index}")
    return values


def _constants(build: IntegerBuilder, region: Region, name: str) -> dict[ir.Value, ir.Value]:
    return {value: build.constant(constant(value), f"{name}.{i}")
            for i, value in enumerate(region.constants)}  # fmt: skip


def _copy(
    build: IntegerBuilder, node: ir.Node, values: dict[ir.Value, ir.Value], name: str
) -> None:
    """Append a copy of `node` that reads `values`; add its results to them."""
    inputs = [None if value is None else values[value] for value in node.inputs]
    if node.op_type == "Swish":
        alpha = node.attributes.get_float("alpha", 1.0)
        if alpha != 1:
            factor = build.constant(np.float32(alpha), f"{name}/alpha")
            scaled = ir.node("Mul", [inputs[0], factor])
            inputs = [_append(build, scaled, node.outputs[:1], f"{name}/scaled")]
        gate = _append(build, ir.node("Sigmoid", inputs), node.outputs[:1], f"{name}/gate")
        copy = ir.node("Mul", [values[operand(node, 0)], gate])
    else:
        kept = list(node.attributes.values())
        copy = ir.Node("", node.op_type, inputs, kept, num_outputs=len(node.outputs))
    _append(build, copy, node.outputs, name)
    values.update(zip(node.outputs, copy.outputs, strict=True))


def _append(
    build: IntegerBuilder,
    node: ir.Node,
    like: Sequence[ir.Value],
    name: str,
) -> ir.Value:
    """Append `node`, its results named after `name` and shaped as `like`."""
    node.name = build.unique(name)
    for index, (mine, old) in enumerate(zip(node.outputs, like, strict=True)):
        mine.shape, mine.type = old.shape, old.type
        if old.name != "":
            mine.name = node.name if index == 0 else build.unique(f"{name}.{index}")
        else:
            mine.name = ""
    build.nodes.append(node)
    return node.outputs[0]
