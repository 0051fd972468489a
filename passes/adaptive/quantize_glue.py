"""``FakeQuant(Flatten(x))`` -> ``Flatten(FakeQuant(x))``; every edge has a grid then.

Cases:
1. A grid after data movement whose input only it reads moves before it, for Concat onto every
   input: rounding commutes with copying and with a maximum.
2. Operators of `passes.lower.operators`: every activation they read comes from a grid (perhaps
   through data movement), and their result, perhaps through Relu or Clip, goes to one.
Refuses when an edge of case 2 has no grid, naming operator and tensor.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import onnx_ir as ir
from onnx_ir.passes import InPlacePass, PassResult

from passes.conditions import ensure, require, unfrozen_weights
from passes.graph import as_fake_quant, operand
from passes.lower.layers import has_integer_weight, layer_name
from passes.lower.moves import has_integer_form, is_move, sources
from passes.lower.operators import ACTIVATIONS, OPERATORS
from passes.twins import note_quantizer
from qtool.core.errors import UnsupportedError


@dataclass(frozen=True)
class QuantizeGlue(InPlacePass):
    """Put every grid right behind the operator that computes its values; refuse gaps.

    Args:
        allow_float: gaps are float islands, but for layers with integer weights.
    """

    allow_float: bool = False

    def call(self, model: ir.Model) -> PassResult:
        """Rewrite `model` in place."""
        for gap in self._gaps(model):
            raise UnsupportedError(gap)
        modified = False
        # Backwards: a grid behind several movements then walks through all of them.
        waiting = [node for node in model.graph if as_fake_quant(node) is not None]
        while waiting:
            moved = _hoist(waiting.pop(), self.allow_float)
            modified |= bool(moved)
            waiting += moved
        return PassResult(model, modified)

    def requires(self, model: ir.Model) -> None:
        """Weights are codes: what is left to quantize are activations."""
        require(self, unfrozen_weights(model))

    def ensures(self, model: ir.Model) -> None:
        """Every edge has a grid, right behind what computes its values."""
        ensure(self, self._gaps(model))
        ensure(
            self,
            (
                f"FakeQuant {node.name} stands behind {move.op_type} {move.name}"
                for node in model.graph
                if (move := _hoistable(node, self.allow_float)) is not None
            ),
        )

    def _gaps(self, model: ir.Model) -> Iterator[str]:
        """Say which edges have no grid."""
        for node in model.graph:
            needed = not self.allow_float or has_integer_weight(node)
            if node.op_type in OPERATORS and not node.domain and needed:
                yield from _gaps(node)


def _hoist(node: ir.Node, allow_float: bool) -> list[ir.Node]:
    """Move the FakeQuant `node` before the data movement it reads.

    Returns:
        Those that may move now: what reads its result, behind the movement itself from now on,
        and `node` where it is now.
    """
    graph = node.graph
    if graph is None:  # moved already, as one of those
        return []
    view, move = as_fake_quant(node), _hoistable(node, allow_float)
    if view is None or move is None:
        return []
    moved, values = move.outputs[0], sources(move)
    fresh = [u.node for u in node.outputs[0].uses() if as_fake_quant(u.node) is not None]
    for index, value in enumerate(values):
        twin = _twin(node, value, view.name if len(values) == 1 else f"{view.name}.{index}")
        graph.insert_before(move, twin)
        move.replace_input_with(index, twin.outputs[0])
        fresh.append(twin)
    note_quantizer(moved, view.role, view.name)
    node.outputs[0].replace_all_uses_with(moved, replace_graph_outputs=True)
    graph.remove(node, safe=True)
    return fresh


def _hoistable(node: ir.Node, allow_float: bool) -> ir.Node | None:
    """Return the data movement that the FakeQuant `node` can move before, None if none.

    With `allow_float` not one that stays float: it may compute.
    """
    view = as_fake_quant(node)
    move = view.source.producer() if view else None
    if move is None or not is_move(move) or (allow_float and not has_integer_form(move)):
        return None
    # The copies of Concat's grid stand on its edges: its inputs may have other readers.
    read = [] if move.op_type == "Concat" else sources(move)
    return move if _alone([move.outputs[0], *read]) else None


def _alone(values: list[ir.Value]) -> bool:
    """True when each value has one reader; a graph output has more."""
    return all(len(list(v.uses())) == 1 and not v.is_graph_output() for v in values)


def _twin(node: ir.Node, value: ir.Value, name: str) -> ir.Node:
    """Return a FakeQuant like `node` of `value`."""
    kept = [v for k, v in node.attributes.items() if k != "name"]
    kept.append(ir.AttrString("name", name))
    twin = ir.Node(node.domain, node.op_type, [value, *node.inputs[1:]], kept, name=name)
    twin.outputs[0].shape, twin.outputs[0].type = value.shape, value.type
    return twin


def _gaps(node: ir.Node) -> Iterator[str]:
    name = layer_name(node)
    for index in OPERATORS[node.op_type][1]:
        if not _has_grid(operand(node, index)):
            yield (
                f"layer {name}: {node.op_type} reads {operand(node, index).name} in floating "
                "point; no quantizer stands on that edge"
            )
    if not _goes_to_grid(node.outputs[0]):
        yield f"layer {name}: the result of {node.op_type} has no quantizer behind it"


def _has_grid(value: ir.Value) -> bool:
    producer = value.producer()
    if producer is not None and is_move(producer):
        return all(_has_grid(source) for source in sources(producer))
    return as_fake_quant(producer) is not None


def _goes_to_grid(value: ir.Value) -> bool:
    users = [usage.node for usage in value.uses()]
    if value.is_graph_output() or not users:
        return False
    return all(as_fake_quant(user) is not None or _passes_on(user) for user in users)


def _passes_on(user: ir.Node) -> bool:
    known = (user.op_type in ACTIVATIONS and not user.domain) or is_move(user)
    return known and _goes_to_grid(user.outputs[0])
