"""Dialect nodes -> typed operators, one function each: ``(node, operators before it) -> Op``.

`READERS` says which node types there are and what each is read as. A node of any other type
is not of the dialect.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from qtool.core import numerics
from qtool.core.dialect import islands, moves
from qtool.core.dialect.fields import NO_GRID, common, grid_at, layer
from qtool.core.dialect.nodes import (
    ACTIVATION_BITS_KEY,
    ISLAND_KEY,
    WEIGHT_BITS_KEY,
    constant,
    ints,
    label,
    static_shape,
    value_name,
)
from qtool.core.dialect.ops import (
    Add,
    Average,
    Concat,
    Conv,
    FloatGemm,
    Gemm,
    Grid,
    Island,
    Lookup,
    Mul,
    Op,
    Pad,
    Quantize,
)
from qtool.core.errors import UnsupportedError
from qtool.core.selection import LayerBits

# Operators by the name of their result.
Ops = Mapping[str, Op]


@dataclass(frozen=True)
class Reader:
    """How nodes of one type are read.

    Args:
        makes: the operators that such a node may be.
        read: returns the one that it is.
    """

    makes: tuple[type[Op], ...]
    read: Callable[[ir.Node, Ops], Op]


def _quantize(node: ir.Node, ops: Ops) -> Op:
    if ISLAND_KEY in node.metadata_props:
        return _island(node, ops)
    return Quantize(**common(node, (0,), grid_at(node, 1)))


def _island(node: ir.Node, ops: Ops) -> Op:
    """The float nodes between DequantizeLinear nodes and QuantizeLinear `node`."""
    result = node.inputs[0]
    if result is None:
        raise UnsupportedError(f"{label(node)}: quantizes nothing")
    region = islands.collect(result, lambda value: _feeds_island(value, ops))
    sources = [_codes_of(value) for value in region.inputs]
    fields = common(node, (0,), grid_at(node, 1)) | {
        "inputs": tuple(value_name(codes) for codes, _ in sources)
    }
    layers = islands.layer_costs(region, fields["name"], _island_bits(node))
    return Island(
        **fields, x=tuple(grid for _, grid in sources), body=islands.body(region),
        operators=region.operators, layers=layers, weight_bytes=islands.weight_bytes(region),
    )  # fmt: skip


def _feeds_island(value: ir.Value, ops: Ops) -> bool:
    codes, _ = _codes_of(value)
    return value.is_graph_input() or (
        codes is not value and (codes.is_graph_input() or value_name(codes) in ops)
    )


def _codes_of(value: ir.Value) -> tuple[ir.Value, Grid | None]:
    """Return the codes that an island's input dequantizes, and their grid."""
    node = value.producer()
    if node is None or node.op_type != "DequantizeLinear" or node.inputs[0] is None:
        return value, None
    is_constant = constant(node.inputs[0]) is not None
    return (value, None) if is_constant else (node.inputs[0], grid_at(node, 1))


def _island_bits(node: ir.Node) -> LayerBits | None:
    keys = (WEIGHT_BITS_KEY, ACTIVATION_BITS_KEY)
    found = [node.metadata_props.get(key) for key in keys]
    weight, activation = (int(text) if text is not None else None for text in found)
    return None if weight is None or activation is None else LayerBits(weight, activation)


def _conv(node: ir.Node, _ops: Ops) -> Op:
    fields = layer(node, 0, 3, 8, 6)
    weight = fields.pop("w")
    spatial = weight.ndim - 2
    if spatial != 2:
        raise UnsupportedError(f"layer {node.name}: {spatial}-D convolution; 2-D is supported")
    return Conv(
        **fields, w_OIHW=weight,
        strides=ints(node, "strides", (1, 1)), pads=ints(node, "pads", (0, 0, 0, 0)),
        dilations=ints(node, "dilations", (1, 1)), groups=node.attributes.get_int("group", 1),
    )  # fmt: skip


def _gemm(node: ir.Node, _ops: Ops) -> Op:
    if not node.attributes.get_int("transB", 0):
        raise UnsupportedError(f"{label(node)}: QGemm with transB 0; 1 is supported")
    is_float = node.outputs[0].is_graph_output() and len(node.inputs) < 9
    fields = layer(node, 0, 3, 6, None if is_float else 7)
    weight = fields.pop("w")
    return (FloatGemm if is_float else Gemm)(**fields, w_OI=weight)


def _add(node: ir.Node, _ops: Ops) -> Op:
    a, b, y = grid_at(node, 1), grid_at(node, 4), grid_at(node, 6)
    addend = constant(node.inputs[3])
    if addend is None:
        return Add(**common(node, (0, 3), y), a=a, b=b)
    if addend.size != 1:
        raise UnsupportedError(f"{label(node)}: adds a constant of shape {addend.shape}")
    shape = static_shape(node.inputs[0])
    if addend.ndim <= len(shape) and shape[-1] == 1:
        raise UnsupportedError(
            f"{label(node)}: adds a constant of {addend.ndim} dimensions to a tensor "
            f"{('N', *shape)}; ONNX Runtime swaps them: use {len(shape) + 1}"
        )
    codes = np.arange(256, dtype=np.uint8)
    table = numerics.add(
        codes, a.scale, a.zero_point, addend.reshape(1), b.scale, b.zero_point, y.scale,
        y.zero_point,
    )  # fmt: skip
    return Lookup(**common(node, (0,), y), table=table)


def _mul(node: ir.Node, _ops: Ops) -> Op:
    fields = common(node, (0, 3), grid_at(node, 6))
    return Mul(**fields, a=grid_at(node, 1), b=grid_at(node, 4))


def _average(node: ir.Node, _ops: Ops) -> Op:
    shape = static_shape(node.inputs[0])
    if len(shape) != 3:
        raise UnsupportedError(f"{label(node)}: average over {shape}; expected C, H, W")
    _, height, width = shape
    fields = common(node, (0,), grid_at(node, 3))
    return Average(**fields, x=grid_at(node, 1), count=height * width)


def _leaky(node: ir.Node, _ops: Ops) -> Op:
    x, y = grid_at(node, 1), grid_at(node, 3)
    alpha = node.attributes.get_float("alpha", 0.01)
    table = numerics.leaky_table(alpha, x.scale, x.zero_point, y.scale, y.zero_point)
    return Lookup(**common(node, (0,), y), table=table)


def _gather(node: ir.Node, _ops: Ops) -> Op:
    table, cast = constant(node.inputs[0]), node.inputs[1]
    source = cast.producer() if cast is not None else None
    if source is None or source.op_type != "Cast" or table is None:
        raise UnsupportedError(f"{label(node)}: Gather is known as a table look-up only")
    if table.dtype != np.uint8 or table.shape != (256,):
        raise UnsupportedError(
            f"{label(node)}: table of {table.dtype} {table.shape}; expected 256 uint8"
        )
    fields = common(node, (1,), NO_GRID) | {"inputs": (value_name(source.inputs[0]),)}
    return Lookup(**fields, table=table)


def _move(node: ir.Node, ops: Ops) -> Op:
    """Data movement: the grid and the window are those of what it reads."""
    kind, fields = moves.read(node)
    indices = range(len(node.inputs)) if kind is Concat else (0,)
    sources = [ops.get(value_name(node.inputs[i])) for i in indices]
    shared = common(node, tuple(indices), sources[0].grid if sources[0] else NO_GRID)
    lo = min(op.lo if op else 0 for op in sources)
    hi = max(op.hi if op else 255 for op in sources)
    if kind is Pad:
        lo, hi = min(lo, fields["code"]), max(hi, fields["code"])
    op: Op = kind(**shared | {"lo": lo, "hi": hi} | fields)
    return op


READERS: dict[str, Reader] = {
    "QuantizeLinear": Reader((Quantize, Island), _quantize),
    "QLinearConv": Reader((Conv,), _conv),
    "QGemm": Reader((Gemm, FloatGemm), _gemm),
    "QLinearAdd": Reader((Add, Lookup), _add),
    "QLinearMul": Reader((Mul,), _mul),
    "QLinearGlobalAveragePool": Reader((Average,), _average),
    "QLinearLeakyRelu": Reader((Lookup,), _leaky),
    "Gather": Reader((Lookup,), _gather),
    **{op_type: Reader((kind,), _move) for op_type, (kind, _) in moves.MOVES.items()},
}
