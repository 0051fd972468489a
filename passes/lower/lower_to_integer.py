"""Fake-quantized float graph -> integer dialect, without floats from input Q to output DQ.

``FakeQuant([Relu|Clip](op(FakeQuant(x), ...)))`` -> the integer operator
(`passes.lower.operators`) on the second FakeQuant's grid; FakeQuant of a tensor that already
has a grid -> a change of grid; data movement -> the same on codes; the graph's output ->
DequantizeLinear. Any other operator stays a float island (`passes.lower.islands`) with
`allow_float`; else it is refused, naming layer, operator and reason, and the model is
unchanged.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import onnx_ir as ir
from onnx_ir.passes import InPlacePass, PassResult

from passes.conditions import ensure, foreign_nodes, require, several_widths, unfrozen_weights
from passes.graph import QTOOL, FakeQuant, as_fake_quant
from passes.lower.integer_builder import Quantized
from passes.lower.lowering import Lowering
from passes.lower.moves import is_move, sources
from passes.twins import note_twins, quantizer_of
from qtool.core.errors import UnsupportedError


@dataclass(frozen=True)
class LowerToInteger(InPlacePass):
    """Replace the whole float graph by its integer twin.

    Args:
        allow_float: keep operators that have no integer form as float islands.
    """

    allow_float: bool = False

    def call(self, model: ir.Model) -> PassResult:
        """Rewrite `model` in place."""
        if not any(as_fake_quant(node) for node in model.graph):
            return PassResult(model, False)
        walk = Lowering(allow_float=self.allow_float)
        walk.build.reserve(model)
        for node in model.graph:
            _visit(walk, node)
        outputs = [_output(walk, value) for value in model.graph.outputs]
        note_twins(model, _twins(model, walk))
        walk.build.commit(model, outputs)
        model.opset_imports.pop(QTOOL, None)
        return PassResult(model, True)

    def requires(self, model: ir.Model) -> None:
        """Weights are codes, and every activation has one bit-width."""
        require(self, unfrozen_weights(model))
        require(self, several_widths(model))

    def ensures(self, model: ir.Model) -> None:
        """Nothing but the dialect's operators is left."""
        ensure(self, foreign_nodes(model))


def _twins(model: ir.Model, walk: Lowering) -> Iterator[tuple[str, str, Quantized]]:
    """Yield role and name of every quantizer, with the integers of its result."""
    for node in model.graph:
        view, result = as_fake_quant(node), node.outputs[0]
        key = quantizer_of(result) if view is None else (view.role, view.name)
        if key is not None and result in walk.quantized:
            yield *key, walk.quantized[result]


def _visit(walk: Lowering, node: ir.Node) -> None:
    view, result = as_fake_quant(node), node.outputs[0]
    if view is not None and view.role != "weight":
        walk.quantized[result] = _lower(walk, view)
    elif is_move(node) and all(value in walk.quantized for value in sources(node)):
        if walk.is_left_float(node):
            return
        source = walk.quantized[sources(node)[0]].value
        walk.quantized[result] = walk.move(node, f"{source.name}/{node.op_type.lower()}")


def _lower(walk: Lowering, view: FakeQuant) -> Quantized:
    # A glue tensor has its own name; a layer's input is called after its reader.
    is_input = view.role == "activation"
    name = f"{view.name}/input" if is_input else view.name.removeprefix("glue_")
    if view.source.is_graph_input():
        name = f"{view.source.name}/codes"
    return walk.lower(view.source, view.grid, view.window, name, view.bits[0])


def _output(walk: Lowering, value: ir.Value) -> ir.Value:
    if value not in walk.quantized:
        raise UnsupportedError(f"output {value.name}: no grid reaches it; it would stay float")
    return walk.build.dequantize(walk.quantized[value], value)
