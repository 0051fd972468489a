"""``Conv(x, Transpose(DQ(q, s, 128)))`` -> ``Conv(x, DQ(q', s, 0))``, q' int8, its own.

What later passes change of a weight is then read by nobody else. Cases:
1. One DequantizeLinear that several layers read: a copy for each.
2. uint8 codes around 128: int8 codes around 0, 128 lower.
3. Transpose between a convolution's DequantizeLinear and it: the codes are turned, and the
   axis of the scales with them. (A Gemm's and a MatMul's is read by `passes.lower.layers`.)
Anything else is left as it is.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.passes import InPlacePass, PassResult

from passes.conditions import ensure
from passes.graph import add_constant, drop_unused_constants, operand
from passes.importing.fold_constants import LAYERS
from qtool.core.dialect import constant, is_plain, label, value_name


@dataclass(frozen=True)
class OwnWeights(InPlacePass):
    """Give every layer a DequantizeLinear of its own, in the layout that it reads."""

    def call(self, model: ir.Model) -> PassResult:
        """Rewrite `model` in place."""
        layers = [node for node in model.graph if node.op_type in LAYERS and not node.domain]
        changed = [_own(model.graph, node) for node in layers]
        if any(changed):
            drop_unused_constants(model.graph)
        return PassResult(model, any(changed))

    def ensures(self, model: ir.Model) -> None:
        """No two layers read one DequantizeLinear."""
        owners: dict[ir.Node, ir.Node] = {}
        shared = []
        for node in model.graph:
            chain = _chain(node) if node.op_type in LAYERS and not node.domain else []
            if chain and owners.setdefault(chain[-1], node) is not node:
                shared.append(f"{label(node)} shares its weight with others")
        ensure(self, shared)


def _chain(layer: ir.Node) -> list[ir.Node]:
    """Return Transpose nodes and the DequantizeLinear of stored codes that `layer` reads."""
    chain, value = list[ir.Node](), layer.inputs[1] if len(layer.inputs) > 1 else None
    while value is not None and (node := value.producer()) is not None:
        chain.append(node)
        if node.op_type == "DequantizeLinear":
            return chain if constant(node.inputs[0]) is not None and is_plain(node) else []
        if node.op_type != "Transpose":
            break
        value = node.inputs[0]
    return []


def _own(graph: ir.Graph, layer: ir.Node) -> bool:
    """Rewrite what `layer` reads, where one of the cases applies."""
    chain = _chain(layer)
    if not chain:
        return False
    weight, turns = chain[-1], chain[:-1]
    codes = constant(operand(weight, 0))
    if codes is None:
        return False
    alone = all(
        len(list(n.outputs[0].uses())) == 1 and not n.outputs[0].is_graph_output()
        for n in chain
    )
    lowers = _is_around_128(weight, codes)
    moves = bool(turns) and layer.op_type == "Conv"
    if alone and not lowers and not moves:
        return False
    node = _lowered(graph, weight, codes) if lowers else _copy(weight)
    graph.insert_before(layer, node)
    value = node.outputs[0]
    for turn in reversed(turns):
        value = _turned(graph, layer, turn, value, moves)
    layer.replace_input_with(1, value)
    _drop(graph, chain)
    return True


def _is_around_128(weight: ir.Node, codes: NDArray[Any]) -> bool:
    zero = constant(weight.inputs[2]) if len(weight.inputs) > 2 else None
    return codes.dtype == np.uint8 and zero is not None and bool(np.all(zero == 128))


def _copy(node: ir.Node, inputs: list[ir.Value | None] | None = None) -> ir.Node:
    """Return a node like `node`, without a name or metadata of its own."""
    read = list(node.inputs) if inputs is None else inputs
    twin = ir.Node("", node.op_type, read, list(node.attributes.values()))
    old, new = node.outputs[0], twin.outputs[0]
    new.shape, new.type = old.shape, old.type
    return twin


def _lowered(graph: ir.Graph, weight: ir.Node, codes: NDArray[Any]) -> ir.Node:
    name = f"{value_name(weight.outputs[0])}/int8"
    moved = add_constant(graph, name, (codes.astype(np.int16) - 128).astype(np.int8))
    return _copy(weight, [moved, weight.inputs[1]])


def _turned(
    graph: ir.Graph, layer: ir.Node, turn: ir.Node, value: ir.Value, moves: bool
) -> ir.Value:
    """Return `value`, made right before `layer`, as the Transpose `turn` leaves it."""
    weight = value.producer()
    if not moves or weight is None:
        copy = _copy(turn, [value])
        graph.insert_before(layer, copy)
        return copy.outputs[0]
    codes = constant(operand(weight, 0))
    if codes is None:
        raise ValueError(f"{weight.name}: its codes are computed")
    usual = tuple(reversed(range(codes.ndim)))
    perm = [axis % codes.ndim for axis in turn.attributes.get_ints("perm", usual)]
    name = f"{value_name(turn.outputs[0])}/codes"
    turned = np.ascontiguousarray(codes.transpose(perm))
    weight.replace_input_with(0, add_constant(graph, name, turned))
    axis = weight.attributes.get_int("axis", 1) % codes.ndim
    weight.attributes["axis"] = ir.AttrInt64("axis", perm.index(axis))
    value.shape = ir.Shape(turned.shape)
    return value


def _drop(graph: ir.Graph, chain: list[ir.Node]) -> None:
    """Remove the nodes of `chain` that nothing reads any more, readers first."""
    for node in chain:
        if node.outputs[0].uses() or node.outputs[0].is_graph_output():
            return
        graph.remove(node, safe=True)
