"""Dialect graph (`onnx_ir.Model`) -> `Program` of typed operators."""

import dataclasses
from typing import Any

import numpy as np
import onnx_ir as ir

from qtool.core import numerics
from qtool.core.dialect import islands, moves
from qtool.core.dialect.nodes import (
    ACTIVATION_BITS_KEY,
    ISLAND_KEY,
    WEIGHT_BITS_KEY,
    constant,
    ints,
    require_plain,
    scalar,
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
    MaxPool,
    Mul,
    Op,
    Pad,
    Program,
    Quantize,
    Reshape,
    Slice,
    Transpose,
    Upsample,
)
from qtool.core.errors import UnsupportedError
from qtool.core.selection import LayerBits

# A table states no grid of its own; what reads its codes does.
_NO_GRID = Grid(np.float32(1), 0)
_MOVES = (Reshape, Transpose, Concat, Slice, Pad, Upsample, MaxPool)


def read_program(model: ir.Model) -> Program:
    """Return the typed operators of a dialect graph.

    Raises:
        UnsupportedError: a node is not of the dialect; names it.
    """
    return _Reader(model).read()


class _Reader:
    """Reads nodes one by one; a Clip narrows the operator before it."""

    def __init__(self, model: ir.Model) -> None:
        self.model = model
        self.ops: dict[str, Op] = {}

    def read(self) -> Program:
        graph = self.model.graph
        if len(graph.inputs) != 1 or len(graph.outputs) != 1:
            raise UnsupportedError(
                f"graph has {len(graph.inputs)} inputs and {len(graph.outputs)} outputs; "
                "one of each is supported"
            )
        source, sink = graph.inputs[0], graph.outputs[0]
        final = sink.producer()
        if final is not None and final.op_type == "QGemm":
            return self._read_float(source, sink)
        if final is None or final.op_type != "DequantizeLinear":
            raise UnsupportedError("the graph's output is not dequantized from integers")
        for node in graph:
            is_inside = ISLAND_KEY in node.metadata_props and node.op_type != "QuantizeLinear"
            if node is not final and node.op_type != "Cast" and not is_inside:
                self._read_node(node)
        _require_inputs(final)
        return self._program(source, sink, final.inputs[0], _grid(final, 1))

    def _read_float(self, source: ir.Value, sink: ir.Value) -> Program:
        """Read a graph whose output is a linear layer's float result."""
        for node in self.model.graph:
            if node.op_type != "Cast":
                self._read_node(node)
        return self._program(source, sink, sink, _NO_GRID)

    def _program(
        self, source: ir.Value, sink: ir.Value, output: ir.Value | None, grid: Grid
    ) -> Program:
        kind = "uint8" if source.dtype == ir.DataType.UINT8 else "float32"
        return Program(
            value_name(source), static_shape(source), kind, value_name(sink),
            value_name(output), grid, tuple(self.ops.values()),
            dict(self.model.metadata_props),
        )  # fmt: skip

    def _read_node(self, node: ir.Node) -> None:
        _require_inputs(node)
        if node.op_type == "Clip":
            self._narrow(node)
            return
        reader = _READERS.get(node.op_type)
        if reader is None:
            raise UnsupportedError(
                f"node {node.name}: {node.op_type} is not in the integer dialect"
            )
        op = reader(self, node)
        self.ops[op.output] = op

    def _narrow(self, node: ir.Node) -> None:
        lo, hi = (int(scalar(value, f"{node.name}: bound")) for value in node.inputs[1:])
        source, name = node.inputs[0], value_name(node.outputs[0])
        op = self.ops.get(value_name(source))
        if op is None or source is None or len(list(source.uses())) != 1:
            raise UnsupportedError(f"node {node.name}: Clip of a tensor that others read wide")
        if isinstance(op, _MOVES):
            raise UnsupportedError(f"node {node.name}: Clip behind {type(op).__name__}")
        del self.ops[op.output]
        lo, hi = max(lo, op.lo), min(hi, op.hi)
        if isinstance(op, Lookup):
            op = dataclasses.replace(op, table=numerics.saturate(op.table, lo, hi))
        self.ops[name] = dataclasses.replace(op, output=name, lo=lo, hi=hi)

    def quantize(self, node: ir.Node) -> Op:
        if ISLAND_KEY in node.metadata_props:
            return self._island(node)
        return Quantize(**_common(node, (0,), _grid(node, 1)))

    def _island(self, node: ir.Node) -> Op:
        """The float nodes between DequantizeLinear nodes and QuantizeLinear `node`."""
        result = node.inputs[0]
        if result is None:
            raise UnsupportedError(f"node {node.name}: quantizes nothing")
        region = islands.collect(result, self._feeds_island)
        sources = [_codes_of(value) for value in region.inputs]
        common = _common(node, (0,), _grid(node, 1)) | {
            "inputs": tuple(value_name(codes) for codes, _ in sources)
        }
        layers = islands.layer_costs(region, common["name"], _island_bits(node))
        return Island(
            **common, x=tuple(grid for _, grid in sources), body=islands.body(region),
            operators=region.operators, layers=layers,
            weight_bytes=islands.weight_bytes(region),
        )  # fmt: skip

    def _feeds_island(self, value: ir.Value) -> bool:
        codes, _ = _codes_of(value)
        return value.is_graph_input() or (
            codes is not value and (codes.is_graph_input() or value_name(codes) in self.ops)
        )

    def conv(self, node: ir.Node) -> Op:
        require_plain(node, f"node {node.name}")
        fields = _layer(node, 0, 3, 8, 6)
        weight = fields.pop("w")
        spatial = weight.ndim - 2
        if spatial != 2:
            raise UnsupportedError(
                f"layer {node.name}: {spatial}-D convolution; 2-D is supported"
            )
        return Conv(
            **fields, w_OIHW=weight,
            strides=ints(node, "strides", (1, 1)), pads=ints(node, "pads", (0, 0, 0, 0)),
            dilations=ints(node, "dilations", (1, 1)),
            groups=node.attributes.get_int("group", 1),
        )  # fmt: skip

    def gemm(self, node: ir.Node) -> Op:
        require_plain(node, f"node {node.name}")
        if not node.attributes.get_int("transB", 0):
            raise UnsupportedError(f"node {node.name}: QGemm with transB 0; 1 is supported")
        is_float = node.outputs[0].is_graph_output() and len(node.inputs) < 9
        fields = _layer(node, 0, 3, 6, None if is_float else 7)
        weight = fields.pop("w")
        return (FloatGemm if is_float else Gemm)(**fields, w_OI=weight)

    def add(self, node: ir.Node) -> Op:
        a, b, y = _grid(node, 1), _grid(node, 4), _grid(node, 6)
        addend = constant(node.inputs[3])
        if addend is None:
            return Add(**_common(node, (0, 3), y), a=a, b=b)
        if addend.size != 1:
            raise UnsupportedError(
                f"node {node.name}: adds a constant of shape {addend.shape}"
            )
        shape = static_shape(node.inputs[0])
        if addend.ndim <= len(shape) and shape[-1] == 1:
            raise UnsupportedError(
                f"node {node.name}: adds a constant of {addend.ndim} dimensions to a tensor "
                f"{('N', *shape)}; ONNX Runtime swaps them: use {len(shape) + 1}"
            )
        codes = np.arange(256, dtype=np.uint8)
        table = numerics.add(
            codes, a.scale, a.zero_point, addend.reshape(1), b.scale, b.zero_point, y.scale,
            y.zero_point,
        )  # fmt: skip
        return Lookup(**_common(node, (0,), y), table=table)

    def mul(self, node: ir.Node) -> Op:
        common = _common(node, (0, 3), _grid(node, 6))
        return Mul(**common, a=_grid(node, 1), b=_grid(node, 4))

    def average(self, node: ir.Node) -> Op:
        require_plain(node, f"node {node.name}")
        shape = static_shape(node.inputs[0])
        if len(shape) != 3:
            raise UnsupportedError(f"node {node.name}: average over {shape}; expected C, H, W")
        _, height, width = shape
        common = _common(node, (0,), _grid(node, 3))
        return Average(**common, x=_grid(node, 1), count=height * width)

    def leaky(self, node: ir.Node) -> Op:
        x, y = _grid(node, 1), _grid(node, 3)
        alpha = node.attributes.get_float("alpha", 0.01)
        table = numerics.leaky_table(alpha, x.scale, x.zero_point, y.scale, y.zero_point)
        return Lookup(**_common(node, (0,), y), table=table)

    def gather(self, node: ir.Node) -> Op:
        table, cast = constant(node.inputs[0]), node.inputs[1]
        source = cast.producer() if cast is not None else None
        if source is None or source.op_type != "Cast" or table is None:
            raise UnsupportedError(
                f"node {node.name}: Gather is known as a table look-up only"
            )
        if table.dtype != np.uint8 or table.shape != (256,):
            raise UnsupportedError(
                f"node {node.name}: table of {table.dtype} {table.shape}; expected 256 uint8"
            )
        common = _common(node, (1,), _NO_GRID) | {"inputs": (value_name(source.inputs[0]),)}
        return Lookup(**common, table=table)

    def move(self, node: ir.Node) -> Op:
        """Data movement: the grid and the window are those of what it reads."""
        kind, fields = moves.read(node)
        indices = range(len(node.inputs)) if kind is Concat else (0,)
        sources = [self.ops.get(value_name(node.inputs[i])) for i in indices]
        common = _common(node, tuple(indices), sources[0].grid if sources[0] else _NO_GRID)
        lo = min(op.lo if op else 0 for op in sources)
        hi = max(op.hi if op else 255 for op in sources)
        if kind is Pad:
            lo, hi = min(lo, fields["code"]), max(hi, fields["code"])
        op: Op = kind(**common | {"lo": lo, "hi": hi} | fields)
        return op


_READERS: dict[str, Any] = {
    "QuantizeLinear": _Reader.quantize, "QLinearConv": _Reader.conv, "QGemm": _Reader.gemm,
    "QLinearAdd": _Reader.add, "QLinearMul": _Reader.mul, "QLinearLeakyRelu": _Reader.leaky,
    "QLinearGlobalAveragePool": _Reader.average, "Gather": _Reader.gather,
} | dict.fromkeys(moves.OP_TYPES, _Reader.move)  # fmt: skip


# Inputs that the reader takes by position; ONNX leaves some of them optional.
_INPUTS = {
    "Clip": 3, "QuantizeLinear": 3, "DequantizeLinear": 3, "QLinearConv": 9, "QGemm": 9,
    "QLinearAdd": 8, "QLinearMul": 8, "QLinearGlobalAveragePool": 5, "QLinearLeakyRelu": 5,
    "Gather": 2, "Reshape": 2, "Slice": 3, "Pad": 2, "Resize": 3,
}  # fmt: skip


def _require_inputs(node: ir.Node) -> None:
    needed = _INPUTS.get(node.op_type, 1)
    if node.op_type == "QGemm" and node.outputs[0].is_graph_output():
        needed = 7
    missing = None in node.inputs[:needed] and node.op_type != "Resize"
    if missing or len(node.inputs) < needed:
        raise UnsupportedError(
            f"node {node.name}: {node.op_type} with {len(node.inputs)} inputs; {needed} are "
            "needed"
        )


def _codes_of(value: ir.Value) -> tuple[ir.Value, Grid | None]:
    """Return the codes that an island's input dequantizes, and their grid."""
    node = value.producer()
    if node is None or node.op_type != "DequantizeLinear" or node.inputs[0] is None:
        return value, None
    is_constant = constant(node.inputs[0]) is not None
    return (value, None) if is_constant else (node.inputs[0], _grid(node, 1))


def _island_bits(node: ir.Node) -> LayerBits | None:
    keys = (WEIGHT_BITS_KEY, ACTIVATION_BITS_KEY)
    found = [node.metadata_props.get(key) for key in keys]
    weight, activation = (int(text) if text is not None else None for text in found)
    return None if weight is None or activation is None else LayerBits(weight, activation)


def _layer_bits(node: ir.Node) -> LayerBits | None:
    keys = (WEIGHT_BITS_KEY, ACTIVATION_BITS_KEY)
    if not any(key in node.metadata_props for key in keys):
        return None
    weight, activation = (node.metadata_props.get(key, "none") for key in keys)
    if not {weight, activation} <= set("12345678"):
        found = f"{weight} and {activation}"[:40]
        raise UnsupportedError(f"layer {node.name}: bits {found}; 1 to 8 are supported")
    return LayerBits(int(weight), int(activation))


def _common(node: ir.Node, inputs: tuple[int, ...], grid: Grid) -> dict[str, Any]:
    return {
        "name": str(node.name), "output": value_name(node.outputs[0]),
        "inputs": tuple(value_name(node.inputs[i]) for i in inputs), "grid": grid,
        "lo": 0, "hi": 255, "shape": static_shape(node.outputs[0]),
    }  # fmt: skip


def _grid(node: ir.Node, index: int) -> Grid:
    scale = scalar(node.inputs[index], f"node {node.name}: scale")
    zero_point = scalar(node.inputs[index + 1], f"node {node.name}: zero point")
    if zero_point.dtype != np.uint8:
        raise UnsupportedError(
            f"node {node.name}: {zero_point.dtype} activations; uint8 is supported"
        )
    return Grid(np.float32(scale), int(zero_point))


# Inputs that are read by position; ONNX leaves some of them optional.


def _layer(node: ir.Node, x: int, w: int, bias: int, y: int | None) -> dict[str, Any]:
    weight, scale = constant(node.inputs[w]), constant(node.inputs[w + 1])
    offset = constant(node.inputs[bias])
    if weight is None or scale is None or offset is None:
        raise UnsupportedError(f"node {node.name}: weight, scale and bias must be constants")
    zero = constant(node.inputs[w + 2])
    if zero is None or np.any(zero):
        raise UnsupportedError(f"node {node.name}: weights must have zero point 0")
    grid = _NO_GRID if y is None else _grid(node, y)
    return _common(node, (x,), grid) | {
        "x": _grid(node, x + 1), "w_scale": scale.astype(np.float32).reshape(-1),
        "bias": offset.astype(np.int32), "bits": _layer_bits(node),
        "w": weight.astype(np.int8),
    }  # fmt: skip
