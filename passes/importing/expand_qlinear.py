"""``QLinearConv(x, ...)`` -> ``QuantizeLinear(Conv(DequantizeLinear(x), ...))`` and the like.

1. QLinearConv, QGemm, QLinearMatMul: DequantizeLinear of the weight, and of the bias with
   scale xs * ws. 2. QLinearAdd, QLinearMul, QLinearGlobalAveragePool, QLinearAveragePool,
   QLinearLeakyRelu, QLinearSigmoid: the float operator. 3. QLinearConcat: Concat.
The operator form (ONNX QLinear*, com.microsoft) and the QDQ form thus become one.
A QGemm without a grid of its result is the float operator alone.
Refuses what has no float twin: channels_last layouts.
"""

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import InPlacePass, PassResult

from passes.conditions import ensure
from passes.graph import add_constant, operand, replace_node
from qtool.core.dialect import MS, constant, label
from qtool.core.errors import UnsupportedError
from qtool.core.numerics import bias_scale

# operator: (float operator, first index of each activation, index of the result's scale)
_PLAIN = {
    "QLinearAdd": ("Add", (0, 3), 6),
    "QLinearMul": ("Mul", (0, 3), 6),
    "QLinearGlobalAveragePool": ("GlobalAveragePool", (0,), 3),
    "QLinearAveragePool": ("AveragePool", (0,), 3),
    "QLinearLeakyRelu": ("LeakyRelu", (0,), 3),
    "QLinearSigmoid": ("Sigmoid", (0,), 3),
}
# operator: (float operator, index of the bias, of the result's scale)
_LAYERS = {
    "QLinearConv": ("Conv", 8, 6),
    "QGemm": ("Gemm", 6, 7),
    "QLinearMatMul": ("MatMul", 8, 6),
}


_KNOWN = {*_PLAIN, *_LAYERS, "QLinearConcat"}


def is_operator_form(model: ir.Model) -> bool:
    """True when the graph holds QLinear operators."""
    return any(node.op_type in _KNOWN for node in model.graph)


@dataclass(frozen=True)
class ExpandQLinear(InPlacePass):
    """Spell every QLinear operator as DQ, the float operator, Q."""

    def call(self, model: ir.Model) -> PassResult:
        """Rewrite `model` in place."""
        found = [node for node in model.graph if node.op_type in _KNOWN]
        for node in found:
            _refuse(node)
        for node in found:
            _expand(model.graph, node)
        model.opset_imports.pop(MS, None)
        return PassResult(model, bool(found))

    def ensures(self, model: ir.Model) -> None:
        """No QLinear operator is left."""
        left = (node for node in model.graph if node.op_type in _KNOWN)
        ensure(self, (f"{label(node)} ({node.op_type}) is left" for node in left))


def _refuse(node: ir.Node) -> None:
    if node.attributes.get_int("channels_last", 0):
        raise UnsupportedError(f"{label(node)}: {node.op_type} in channels-last layout")


def _expand(graph: ir.Graph, node: ir.Node) -> None:
    if node.op_type == "QLinearConcat":
        operands = [_dequantize(graph, node, i) for i in range(2, len(node.inputs), 3)]
        core, y = ir.node("Concat", operands, {"axis": node.attributes.get_int("axis", 1)}), 0
    elif node.op_type in _PLAIN:
        op_type, indices, y = _PLAIN[node.op_type]
        operands = [_dequantize(graph, node, index) for index in indices]
        kept = [v for k, v in node.attributes.items() if k != "channels_last"]
        core = ir.Node("", op_type, operands, kept)
    else:
        op_type, bias, y = _LAYERS[node.op_type]
        operands = [_dequantize(graph, node, 0), _weight(graph, node)]
        if bias < len(node.inputs) and node.inputs[bias] is not None:
            operands.append(_bias(graph, node, bias))
        core = ir.Node("", op_type, operands, list(node.attributes.values()))
    core.name = node.name
    if y >= len(node.inputs):  # QGemm without a result's grid: a float result
        replace_node(node, core)
        return
    graph.insert_before(node, core)
    quantize = ir.node("QuantizeLinear", [core.outputs[0], *node.inputs[y : y + 2]])
    replace_node(node, quantize)


def _append(
    graph: ir.Graph, before: ir.Node, inputs: list[ir.Value | None], axis: int
) -> ir.Value:
    node = ir.node("DequantizeLinear", inputs, {"axis": axis})
    graph.insert_before(before, node)
    return node.outputs[0]


def _dequantize(graph: ir.Graph, node: ir.Node, index: int) -> ir.Value:
    return _append(graph, node, list(node.inputs[index : index + 3]), 0)


def _weight(graph: ir.Graph, node: ir.Node) -> ir.Value:
    # A MatMul's weight is (inputs, outputs), a Conv's and our Gemm's outputs first.
    turned = node.op_type == "QGemm" and not node.attributes.get_int("transB", 0)
    axis = 1 if node.op_type == "QLinearMatMul" or turned else 0
    return _append(graph, node, list(node.inputs[3:6]), axis)


def _bias(graph: ir.Graph, node: ir.Node, index: int) -> ir.Value:
    x_scale, w_scale = constant(node.inputs[1]), constant(node.inputs[4])
    if x_scale is None or w_scale is None:
        raise UnsupportedError(f"{label(node)}: scales are computed at run time")
    unit = bias_scale(np.float32(x_scale.reshape(())), w_scale.reshape(-1))
    scale = add_constant(graph, f"{node.outputs[0].name}.bias_scale", unit)
    return _append(graph, node, [operand(node, index), scale], 0)
