"""Spellings of other tools -> those that `passes.importing.import_qdq` and its helpers know.

Cases:
1. ``Softmax`` over the classes at the very end, perhaps quantized: its input is the output.
   Which class is largest stays; that the output is logits is noted.
2. ``ReduceMean`` with axes as an attribute (opset < 18): axes as an input.
3. ``Add(MatMul(x, W), b)`` with a constant b, of one value or one an output:
   ``Gemm(x, W, b)``.
4. An int32 bias whose scale is not xs * ws: a float bias, which lowering rounds again. (ONNX
   Runtime takes its integers for multiples of xs * ws whatever scale the file says.) Also one
   that BatchNorm follows.
5. ``Mul(x, HardSigmoid(x))`` with torch's slope 1/6: ``HardSwish(x)``.
6. Every weight is called after its layer, the node's name, so that refusals and reports are.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import InPlacePass, PassResult

from passes.conditions import ensure
from passes.graph import LAYER_KEY, add_constant, fresh_name, operand, replace_node
from passes.importing.fold_constants import LAYERS
from passes.lower.layers import layer_name
from passes.lower.moves import is_move
from passes.lower.operators import ACTIVATIONS
from passes.twins import note_output
from qtool.core import numerics
from qtool.core.dialect import constant, label, value_name


@dataclass(frozen=True)
class RespellForeign(InPlacePass):
    """One spelling for layers, biases and the end of the model.

    Args:
        notes: a sentence is appended for each change of what the model computes.
    """

    notes: list[str] = field(default_factory=list)

    def call(self, model: ir.Model) -> PassResult:
        """Rewrite `model` in place."""
        modified = _drop_softmax(model.graph, self.notes)
        for node in list(model.graph):
            if node.op_type == "ReduceMean":
                modified |= _axes(model.graph, node)
            elif node.op_type == "Mul":
                modified |= _hard_swish(model.graph, node)
            elif node.op_type == "Add":
                modified |= _linear(model.graph, node)
        for node in model.graph:
            if node.op_type in LAYERS:
                modified |= _name(node)
                modified |= _bias(model.graph, node, self.notes)
        return PassResult(model, modified)

    def ensures(self, model: ir.Model) -> None:
        """Every quantized weight has its layer's name."""
        layers = (node for node in model.graph if node.op_type in LAYERS)
        weights = ((node, _weight(node)) for node in layers)
        ensure(
            self,
            (
                f"{label(node)} ({node.op_type}): its weight has no name"
                for node, weight in weights
                if weight is not None and LAYER_KEY not in weight.metadata_props
            ),
        )


def _drop_softmax(graph: ir.Graph, notes: list[str]) -> bool:
    output = graph.outputs[0]
    node, dead = output.producer(), []
    while node is not None and node.op_type in ("DequantizeLinear", "QuantizeLinear"):
        dead.append(node)
        node = operand(node, 0).producer()
    if node is None or node.op_type not in ("Softmax", "LogSoftmax"):
        return False
    logits = operand(node, 0)
    if not _over_classes(node, logits):
        return False
    if logits.is_graph_input() or constant(logits) is not None:
        return False
    note_output(graph, value_name(logits))
    name = output.name
    graph.outputs[0] = logits
    output.name, logits.name = fresh_name(graph, f"{name}/{node.op_type}"), name
    graph.remove([*dead, node], safe=True)
    notes.append(f"the final {node.op_type} is left out: the output is its input, the logits")
    return True


def _over_classes(node: ir.Node, logits: ir.Value) -> bool:
    """True where every image has one distribution: over all that is not 1 but the batch."""
    shape = logits.shape
    if shape is None:
        return False
    axis = node.attributes.get_int("axis", -1) % len(shape)
    return axis > 0 and all(n == 1 for i, n in enumerate(shape) if i not in (0, axis))


def _axes(graph: ir.Graph, node: ir.Node) -> bool:
    axes = node.attributes.get_ints("axes", ())
    if not axes:
        return False
    node.attributes.pop("axes")
    node.resize_inputs(2)
    name = f"{node.outputs[0].name}.axes"
    node.replace_input_with(1, add_constant(graph, name, np.array(axes, np.int64)))
    return True


def _hard_swish(graph: ir.Graph, node: ir.Node) -> bool:
    for x, gate in (node.inputs, node.inputs[::-1]):
        sigmoid = None if gate is None else gate.producer()
        if sigmoid is None or sigmoid.op_type != "HardSigmoid" or sigmoid.inputs[0] is not x:
            continue
        slope, offset = (
            sigmoid.attributes.get_float(*d) for d in (("alpha", 0.2), ("beta", 0.5))
        )
        if (
            abs(slope - 1 / 6) < 1e-6
            and offset == 0.5
            and len(list(sigmoid.outputs[0].uses())) == 1
        ):
            replace_node(node, ir.node("HardSwish", [x], name=node.name))
            graph.remove(sigmoid, safe=True)
            return True
    return False


def _linear(graph: ir.Graph, node: ir.Node) -> bool:
    for product, addend in (node.inputs, node.inputs[::-1]):
        matmul, bias = None if product is None else product.producer(), constant(addend)
        if matmul is None or product is None or bias is None or matmul.op_type != "MatMul":
            continue
        shape, alone = operand(matmul, 0).shape, len(list(product.uses())) == 1
        if shape is None or len(shape) != 2 or not alone or bias.ndim > 2:
            continue
        outputs = product.shape[-1] if product.shape is not None else None
        if bias.size == 1 and isinstance(outputs, int):
            bias = np.full(outputs, bias.reshape(()))
        if bias.size != bias.shape[-1]:
            continue
        flat = add_constant(graph, f"{node.name}.bias", bias.reshape(-1))
        layer = ir.node("Gemm", [*matmul.inputs, flat], name=matmul.name)
        replace_node(node, layer)
        graph.remove(matmul, safe=True)
        return True
    return False


def _weight(node: ir.Node) -> ir.Node | None:
    weight = operand(node, 1).producer()
    if weight is not None and weight.op_type == "Transpose":
        weight = operand(weight, 0).producer()
    return weight if weight is not None and weight.op_type == "DequantizeLinear" else None


def _name(node: ir.Node) -> bool:
    weight = _weight(node)
    if weight is None or LAYER_KEY in weight.metadata_props:
        return False
    weight.metadata_props[LAYER_KEY] = node.name or value_name(node.outputs[0])
    return True


def _bias(graph: ir.Graph, node: ir.Node, notes: list[str]) -> bool:
    value = node.inputs[2] if len(node.inputs) > 2 else None
    source = None if value is None else value.producer()
    if source is None or source.op_type != "DequantizeLinear":
        return False
    codes, unit = constant(source.inputs[0]), constant(source.inputs[1])
    fits = _fits(node, unit)
    normalised = any(u.node.op_type == "BatchNormalization" for u in node.outputs[0].uses())
    if codes is None or unit is None or (fits and not normalised):
        return False
    if len(source.inputs) > 2 and np.any(constant(source.inputs[2])):
        return False  # its reader refuses it
    steps: Any = unit if unit.size > 1 else unit.reshape(())
    real = numerics.dequantize(codes, steps, 0)
    node.replace_input_with(2, add_constant(graph, f"{value_name(value)}/real", real))
    if not fits:
        notes.append(
            f"layer {layer_name(node)}: the scale of its int32 bias is not input scale * "
            "weight scale; the bias is rounded again (ONNX Runtime ignores the file's scale)"
        )
    return True


def _fits(node: ir.Node, unit: object) -> bool:
    """True when `unit` is the product of the scales of input and weight."""
    weight, x = _weight(node), operand(node, 0).producer()
    while x is not None and (is_move(x) or x.op_type in ACTIVATIONS):
        x = operand(x, 0).producer()
    if weight is None or x is None or x.op_type != "DequantizeLinear":
        return False
    x_scale, w_scale = constant(x.inputs[1]), constant(weight.inputs[1])
    if x_scale is None or w_scale is None or x_scale.size != 1:
        return False
    expected = numerics.bias_scale(np.float32(x_scale.reshape(())), w_scale.reshape(-1))
    found = np.asarray(unit, np.float32).reshape(-1)
    return found.size in (1, expected.size) and bool(np.all(found == expected))
