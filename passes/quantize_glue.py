"""``FakeQuant(Flatten(x))`` -> ``Flatten(FakeQuant(x))``; every edge has a grid then.

Cases:
1. A grid after Flatten, MaxPool or Identity whose input only it reads moves before it:
   rounding and data movement (or a maximum) commute.
2. Conv, Gemm, Add and GlobalAveragePool: every activation they read comes from a grid (perhaps
   through data movement), and their result, perhaps through Relu or Clip, goes to one.
Refuses when an edge of case 2 has no grid, naming operator and tensor.
"""

from dataclasses import dataclass

import onnx_ir as ir
from onnx_ir.passes import InPlacePass, PassResult

from passes.graph import LAYER_KEY, as_fake_quant, operand
from qtool.errors import UnsupportedError

MOVES = ("Flatten", "MaxPool", "Identity")
ARITHMETIC = {"Conv": (0,), "Gemm": (0,), "Add": (0, 1), "GlobalAveragePool": (0,)}
ACTIVATIONS = ("Relu", "Clip")


@dataclass(frozen=True)
class QuantizeGlue(InPlacePass):
    """Put every grid right behind the operator that computes its values; refuse gaps."""

    def call(self, model: ir.Model) -> PassResult:
        """Rewrite `model` in place."""
        modified = False
        while any([_hoist(node) for node in list(model.graph)]):
            modified = True
        for node in model.graph:
            if node.op_type in ARITHMETIC and not node.domain:
                _check_edges(node)
        return PassResult(model, modified)


def _hoist(node: ir.Node) -> bool:
    """Move the FakeQuant `node` before the data movement it reads."""
    view = as_fake_quant(node)
    move = view.source.producer() if view else None
    if move is None or move.op_type not in MOVES or move.domain:
        return False
    source, moved = operand(move, 0), move.outputs[0]
    if (
        len(list(source.uses())) != 1
        or len(list(moved.uses())) != 1
        or moved.is_graph_output()
    ):
        return False
    graph, result = node.graph, node.outputs[0]
    if graph is None:
        return False
    node.replace_input_with(0, source)
    result.replace_all_uses_with(moved, replace_graph_outputs=True)
    result.shape, result.type = source.shape, source.type
    move.replace_input_with(0, result)
    graph.remove(node)
    graph.insert_before(move, node)
    return True


def _check_edges(node: ir.Node) -> None:
    name = layer_name(node)
    for index in ARITHMETIC[node.op_type]:
        if not _has_grid(operand(node, index)):
            raise UnsupportedError(
                f"layer {name}: {node.op_type} reads {operand(node, index).name} in floating "
                "point; no quantizer stands on that edge"
            )
    if not _goes_to_grid(node.outputs[0]):
        raise UnsupportedError(
            f"layer {name}: the result of {node.op_type} has no quantizer behind it"
        )


def layer_name(node: ir.Node) -> str:
    """Return the layer's name in the user's model, or the node's own."""
    if len(node.inputs) > 1 and node.inputs[1] is not None:
        weight = node.inputs[1].producer()
        if weight is not None and LAYER_KEY in weight.metadata_props:
            return weight.metadata_props[LAYER_KEY]
    return str(node.name)


def _has_grid(value: ir.Value) -> bool:
    producer = value.producer()
    while producer is not None and producer.op_type in MOVES:
        producer = operand(producer, 0).producer()
    return as_fake_quant(producer) is not None


def _goes_to_grid(value: ir.Value) -> bool:
    users = [usage.node for usage in value.uses()]
    if value.is_graph_output() or not users:
        return False
    return all(
        as_fake_quant(user) is not None
        or (user.op_type in ACTIVATIONS and _goes_to_grid(user.outputs[0]))
        for user in users
    )
