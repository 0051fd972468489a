"""Dialect graph (`onnx_ir.Model`) -> `Program` of typed operators."""

import dataclasses

import onnx_ir as ir

from qtool.core import numerics
from qtool.core.dialect.attributes import require_plain
from qtool.core.dialect.fields import NO_GRID, grid_at, require_inputs
from qtool.core.dialect.moves import MOVES
from qtool.core.dialect.nodes import ISLAND_KEY, label, scalar, static_shape, value_name
from qtool.core.dialect.operators import READERS
from qtool.core.dialect.ops import Grid, Lookup, Op, Program
from qtool.core.errors import UnsupportedError

_MOVES = {kind for kind, _ in MOVES.values()}
# Read with the operator that they belong to: a window, a table's index, the model's output.
_PARTS = ("Clip", "Cast", "DequantizeLinear")
NODE_TYPES = frozenset((*READERS, *_PARTS))


def read_program(model: ir.Model) -> Program:
    """Return the typed operators of a dialect graph.

    Raises:
        UnsupportedError: a node is not of the dialect; names it.
    """
    return _Reader(model).read()


def require_ends(model: ir.Model) -> None:
    """Refuse a graph that has not one input and one output."""
    graph = model.graph
    if len(graph.inputs) != 1 or len(graph.outputs) != 1:
        raise UnsupportedError(
            f"graph has {len(graph.inputs)} inputs and {len(graph.outputs)} outputs; "
            "one of each is supported"
        )


class _Reader:
    """Reads nodes one by one; a Clip narrows the operator before it."""

    def __init__(self, model: ir.Model) -> None:
        self.model = model
        self.ops: dict[str, Op] = {}

    def read(self) -> Program:
        graph = self.model.graph
        require_ends(self.model)
        source, sink = graph.inputs[0], graph.outputs[0]
        final = sink.producer()
        is_float = final is not None and final.op_type == "QGemm"
        if not is_float and (final is None or final.op_type != "DequantizeLinear"):
            raise UnsupportedError("the graph's output is not dequantized from integers")
        for node in graph:
            is_inside = ISLAND_KEY in node.metadata_props and node.op_type != "QuantizeLinear"
            is_output = node is final and not is_float
            if not is_output and node.op_type != "Cast" and not is_inside:
                self._read_node(node)
        if final is None or is_float:  # a linear layer's float result
            return self._program(source, sink, sink, NO_GRID)
        require_inputs(final)
        require_plain(final)
        return self._program(source, sink, final.inputs[0], grid_at(final, 1))

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
        require_inputs(node)
        require_plain(node)
        if node.op_type == "Clip":
            self._narrow(node)
            return
        reader = READERS.get(node.op_type)
        if reader is None:
            raise UnsupportedError(
                f"{label(node)}: {node.op_type} is not in the integer dialect"
            )
        op = reader.read(node, self.ops)
        self.ops[op.output] = op

    def _narrow(self, node: ir.Node) -> None:
        lo, hi = (int(scalar(value, f"{node.name}: bound")) for value in node.inputs[1:])
        source, name = node.inputs[0], value_name(node.outputs[0])
        op = self.ops.get(value_name(source))
        if op is None or source is None or len(list(source.uses())) != 1:
            raise UnsupportedError(f"{label(node)}: Clip of a tensor that others read wide")
        if type(op) in _MOVES:
            raise UnsupportedError(f"{label(node)}: Clip behind {type(op).__name__}")
        del self.ops[op.output]
        lo, hi = max(lo, op.lo), min(hi, op.hi)
        if isinstance(op, Lookup):
            op = dataclasses.replace(op, table=numerics.saturate(op.table, lo, hi))
        self.ops[name] = dataclasses.replace(op, output=name, lo=lo, hi=hi)
