"""Integer dialect -> ONNX in QDQ form, the spelling that every runtime's optimizer knows.

``QLinearConv(x)`` -> ``Clip(QuantizeLinear(Conv(DequantizeLinear(x), DequantizeLinear(W),
...)))`` and likewise for the other operators. What makes ONNX Runtime keep it in integers:
- clips are on uint8, behind Q; a float Clip before Q would leave Conv in floating point;
- a change of grid is ``DQ -> LeakyRelu(alpha=1) -> Q``: a bare ``DQ -> Q`` pair would be
  merged with its neighbours and change the numbers;
- Flatten and MaxPool work on codes, outside any DQ/Q pair;
- weights are packed at their own bits (`passes.packing`) and widened to int8 by nodes that
  fold when the model is loaded, with an explicit int8 zero point; the int32 bias has scale
  ``xs * ws``.

Layer bits go into the model's metadata (``qtool.bits``), because containers do not show them.
"""

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx_ir as ir

from passes.graph import add_constant, drop_unused_constants
from passes.integer_builder import IntegerBuilder
from passes.packing import pack, required_versions
from qtool.dialect import (
    ACTIVATION_BITS_KEY,
    WEIGHT_BITS_KEY,
    constant,
    scalar,
)
from qtool.errors import UnsupportedError
from qtool.numerics import bias_scale

BITS_KEY = "qtool.bits"
# dialect operator: (float operator, domain of result parameters: index of y scale)
_PLAIN = {
    "QLinearAdd": ("Add", (0, 3), 6),
    "QLinearGlobalAveragePool": ("GlobalAveragePool", (0,), 3),
    "QLinearLeakyRelu": ("LeakyRelu", (0,), 3),
}


def emit_onnx_qdq(dialect: ir.Model, metadata: Mapping[str, str]) -> ir.Model:
    """Return a new model in QDQ form; `dialect` is not changed.

    Args:
        dialect: result of `passes.pipelines.lower`.
        metadata: further entries of the file's metadata.
    """
    source = dialect.clone()
    emitter = _Emitter(source.graph)
    emitter.run()
    # ONNX Runtime refuses newer IR versions than it knows.
    opset, ir_version = required_versions(source.graph)
    model = ir.Model(source.graph, ir_version=ir_version, producer_name="qtool")
    model.graph.opset_imports.clear()
    model.opset_imports[""] = opset
    model.metadata_props.update(metadata)
    model.metadata_props[BITS_KEY] = json.dumps(emitter.bits, separators=(",", ":"))
    return model


class _Emitter:
    """Rewrites a copy of the dialect graph node by node."""

    def __init__(self, graph: ir.Graph) -> None:
        self.graph = graph
        self.build = IntegerBuilder(graph)
        self.dequantized: dict[ir.Value, ir.Value] = {}
        self.bits: dict[str, list[int]] = {}

    def run(self) -> None:
        old = list(self.graph)
        for node in old:
            if node.op_type in ("QLinearConv", "QGemm"):
                self._layer(node)
            elif node.op_type in _PLAIN:
                self._plain(node)
            elif node.op_type not in ("QuantizeLinear", "DequantizeLinear", "Clip") and (
                node.op_type not in ("Flatten", "MaxPool")
            ):
                raise UnsupportedError(f"node {node.name}: {node.op_type} has no QDQ form")
        drop_unused_constants(self.graph)
        for node in self.graph:
            _strip(node)

    def _append(
        self, before: ir.Node, op_type: str, inputs: Any, **attributes: Any
    ) -> ir.Value:
        node = ir.node(op_type, inputs, attributes)
        self.graph.insert_before(before, node)
        return node.outputs[0]

    def _dequantize(self, before: ir.Node, index: int) -> ir.Value:
        """Return the float view of activation input `index`, made once a tensor."""
        x = before.inputs[index]
        if x is None:
            raise UnsupportedError(f"node {before.name}: input {index} is missing")
        if x not in self.dequantized:
            inputs = [x, before.inputs[index + 1], before.inputs[index + 2]]
            value = self._append(before, "DequantizeLinear", inputs)
            value.name = f"{x.name}/f"
            self.dequantized[x] = value
        return self.dequantized[x]

    def _plain(self, node: ir.Node) -> None:
        op_type, operands, y = _PLAIN[node.op_type]
        inputs = [self._dequantize(node, index) for index in operands]
        attributes = {"alpha": 1.0} if op_type == "LeakyRelu" else {}
        self._requantize(node, self._append(node, op_type, inputs, **attributes), y)

    def _requantize(self, node: ir.Node, result: ir.Value, y: int) -> None:
        """Put QuantizeLinear in the place of `node`."""
        codes = node.outputs[0]
        result.name = f"{codes.name}/y"
        quantize = ir.node("QuantizeLinear", [result, node.inputs[y], node.inputs[y + 1]])
        after = quantize.outputs[0]
        name, after.type, after.shape = codes.name, codes.type, codes.shape
        ir.convenience.replace_nodes_and_values(
            self.graph, node, [node], [quantize], [codes], [after]
        )
        after.name = name

    def _layer(self, node: ir.Node) -> None:
        is_conv = node.op_type == "QLinearConv"
        bias, y = (8, 6) if is_conv else (6, 7)
        name, bits = str(node.name), int(node.metadata_props[WEIGHT_BITS_KEY])
        self.bits[name] = [bits, int(node.metadata_props[ACTIVATION_BITS_KEY])]
        x_scale = np.float32(scalar(node.inputs[1], f"{name}: input scale"))
        w_scale = constant(node.inputs[4])
        if w_scale is None:
            raise UnsupportedError(f"layer {name}: weight scale is not constant")
        x = self._dequantize(node, 0)
        weight_inputs = [self._stored(node, name, bits), node.inputs[4], node.inputs[5]]
        weight = self._append(node, "DequantizeLinear", weight_inputs, axis=0)
        unit = add_constant(self.graph, f"{name}.bias_scale", bias_scale(x_scale, w_scale))
        offset = self._append(node, "DequantizeLinear", [node.inputs[bias], unit], axis=0)
        weight.name, offset.name = f"{name}.w", f"{name}.b"
        if is_conv:
            kept = {k: v for k, v in node.attributes.items() if k != "channels_last"}
            core = ir.Node("", "Conv", [x, weight, offset], list(kept.values()))
        else:
            core = ir.node("Gemm", [x, weight, offset], {"transB": 1})
        self.graph.insert_before(node, core)
        self._requantize(node, core.outputs[0], y)

    def _stored(self, node: ir.Node, name: str, bits: int) -> ir.Value:
        """Return the weight codes as int8, widened from as few bits as hold them."""
        codes = constant(node.inputs[3])
        if codes is None:
            raise UnsupportedError(f"layer {name}: weight is not constant")
        return pack(self.graph, node, f"{name}.w{bits}", codes, bits)


def _strip(node: ir.Node) -> None:
    """Drop what the file can do without: shape inference and the tensor names say it again."""
    node.metadata_props.clear()
    node.name = None
    for value in node.outputs:
        if not value.is_graph_output():
            value.shape = value.type = None
