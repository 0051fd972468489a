"""Integer dialect -> ONNX in QDQ form, the spelling that every runtime's optimizer knows.

``QLinearConv(x)`` -> ``Clip(QuantizeLinear(Conv(DequantizeLinear(x), DequantizeLinear(W),
...)))`` and likewise for the other operators. What makes ONNX Runtime keep it in integers:
- clips are on uint8, behind Q; a float Clip before Q would leave Conv in floating point;
- a change of grid is ``DQ -> LeakyRelu(alpha=1) -> Q``: a bare ``DQ -> Q`` pair would be
  merged with its neighbours and change the numbers;
- data movement and tables (Cast, Gather) work on codes, outside any DQ/Q pair;
- narrow weights are packed (`passes.packing.packing`) and widened to int8 when the file is
  loaded, with an explicit int8 zero point; the int32 bias has scale ``xs * ws``.

A float island is DQ -> its operators -> Q already; the metadata list the islands by name.
Layer bits go into the model's metadata (``qtool.bits``), because containers do not show them.
"""

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx_ir as ir

from passes.emit.onnx.packed import finish, pack_weights
from passes.graph import add_constant, collection_paused, numbered, replace_node
from passes.packing.nesting import Nested
from qtool.core.dialect import ISLAND_KEY, constant, scalar
from qtool.core.errors import UnsupportedError
from qtool.core.numerics import bias_scale

# dialect operator: (float operator, first index of each activation, index of the result's
# scale)
_PLAIN = {
    "QLinearAdd": ("Add", (0, 3), 6),
    "QLinearMul": ("Mul", (0, 3), 6),
    "QLinearGlobalAveragePool": ("GlobalAveragePool", (0,), 3),
    "QLinearLeakyRelu": ("LeakyRelu", (0,), 3),
}


def emit_onnx_qdq(
    dialect: ir.Model, metadata: Mapping[str, str], shared: Mapping[str, Nested] | None = None
) -> ir.Model:
    """Return a new model in QDQ form; `dialect` is not changed.

    Args:
        dialect: result of `passes.pipelines.lower`.
        metadata: further entries of the file's metadata.
        shared: how weights are held that several files share, by layer; what such a file
            can compute when it is loaded is then not stored.
    """
    with collection_paused():
        source = dialect.clone()
        bits = pack_weights(source.graph, shared or {})
        _Emitter(source.graph, computes_units=shared is not None).run()
        return finish(source.graph, bits, metadata, operator_form=False)


class _Emitter:
    """Rewrites a copy of the dialect graph node by node.

    Args:
        graph: rewritten in place.
        computes_units: the scale of a bias is the product ``xs * ws``, a node in the file,
            which runtimes compute at load.
    """

    def __init__(self, graph: ir.Graph, computes_units: bool) -> None:
        self.graph, self.computes_units = graph, computes_units
        self.dequantized: dict[tuple[ir.Value | None, ...], ir.Value] = {}
        self.views: Counter[ir.Value] = Counter()
        values = [value for node in graph for value in node.outputs]
        self.names = {v.name for v in (*graph.inputs, *graph.initializers.values(), *values)}

    def run(self) -> None:
        old = list(self.graph)
        for node in old:
            if ISLAND_KEY in node.metadata_props:
                continue  # DQ, float operators and Q already
            if node.op_type not in NODES:
                raise UnsupportedError(f"node {node.name}: {node.op_type} has no QDQ form")
            NODES[node.op_type](self, node)

    def _append(
        self, before: ir.Node, op_type: str, inputs: Any, **attributes: Any
    ) -> ir.Value:
        node = ir.node(op_type, inputs, attributes)
        self.graph.insert_before(before, node)
        return node.outputs[0]

    def _name(self, name: str) -> str:
        """Return a name that no other tensor has, not the user's either."""
        fresh = numbered(name, self.names.__contains__)
        self.names.add(fresh)
        return fresh

    def _dequantize(self, before: ir.Node, index: int) -> ir.Value:
        """Return the float view of activation input `index`, made once a tensor."""
        inputs = tuple(before.inputs[index : index + 3])
        if inputs[0] is None:
            raise UnsupportedError(f"node {before.name}: input {index} is missing")
        if inputs not in self.dequantized:
            value = self._append(before, "DequantizeLinear", inputs)
            # The same codes may be read on two grids: a gate's, a constant's.
            value.name = self._name(f"{inputs[0].name}/f{self.views[inputs[0]] or ''}")
            self.views[inputs[0]] += 1
            self.dequantized[inputs] = value
        return self.dequantized[inputs]

    def keep(self, node: ir.Node) -> None:
        """Leave what ONNX has for integers already."""

    def plain(self, node: ir.Node) -> None:
        """Spell an operator as DQ, the float operator, Q."""
        op_type, operands, y = _PLAIN[node.op_type]
        inputs = [self._dequantize(node, index) for index in operands]
        kept = [v for k, v in node.attributes.items() if k != "channels_last"]
        core = ir.Node("", op_type, inputs, kept)
        self.graph.insert_before(node, core)
        self._requantize(node, core.outputs[0], y)

    def _requantize(self, node: ir.Node, result: ir.Value, y: int) -> None:
        """Put QuantizeLinear in the place of `node`."""
        codes = node.outputs[0]
        result.name = self._name(f"{codes.name}/y")
        quantize = ir.node("QuantizeLinear", [result, node.inputs[y], node.inputs[y + 1]])
        after = quantize.outputs[0]
        name, after.type, after.shape = codes.name, codes.type, codes.shape
        ir.convenience.replace_nodes_and_values(
            self.graph, node, [node], [quantize], [codes], [after]
        )
        after.name = name

    def layer(self, node: ir.Node) -> None:
        """Spell a convolution or linear layer as DQ of its operands, the float one, Q."""
        is_conv = node.op_type == "QLinearConv"
        bias, y = (8, 6) if is_conv else (6, 7)
        name = str(node.name)
        x = self._dequantize(node, 0)
        weight = self._append(node, "DequantizeLinear", node.inputs[3:6], axis=0)
        unit = self._unit(node, name)
        offset = self._append(node, "DequantizeLinear", [node.inputs[bias], unit], axis=0)
        weight.name, offset.name = self._name(f"{name}.w"), self._name(f"{name}.b")
        if is_conv:
            kept = {k: v for k, v in node.attributes.items() if k != "channels_last"}
            core = ir.Node("", "Conv", [x, weight, offset], list(kept.values()))
        else:
            core = ir.node("Gemm", [x, weight, offset], {"transB": 1})
        if not is_conv and y >= len(node.inputs):
            replace_node(node, core)  # a float result, the model's output
            return
        self.graph.insert_before(node, core)
        self._requantize(node, core.outputs[0], y)

    def _unit(self, node: ir.Node, name: str) -> ir.Value:
        """Return the scale of the bias of layer `name`."""
        x_scale = np.float32(scalar(node.inputs[1], f"{name}: input scale"))
        w_scale = constant(node.inputs[4])
        if w_scale is None:
            raise UnsupportedError(f"layer {name}: weight scale is not constant")
        if self.computes_units:
            unit = self._append(node, "Mul", [node.inputs[1], node.inputs[4]])
            unit.name = self._name(f"{name}.u")
            return unit
        return add_constant(self.graph, f"{name}.bias_scale", bias_scale(x_scale, w_scale))


# node type of the dialect: how it is spelled; the last four widen stored weights
NODES: dict[str, Callable[[_Emitter, ir.Node], None]] = {
    "QLinearConv": _Emitter.layer, "QGemm": _Emitter.layer,
    **dict.fromkeys(_PLAIN, _Emitter.plain),
    "QuantizeLinear": _Emitter.keep, "DequantizeLinear": _Emitter.keep, "Clip": _Emitter.keep,
    "MaxPool": _Emitter.keep, "Reshape": _Emitter.keep, "Flatten": _Emitter.keep,
    "Transpose": _Emitter.keep, "Concat": _Emitter.keep, "Slice": _Emitter.keep,
    "Pad": _Emitter.keep, "Resize": _Emitter.keep,
    "Cast": _Emitter.keep, "Gather": _Emitter.keep, "MatMulInteger": _Emitter.keep,
    "Add": _Emitter.keep,
}  # fmt: skip
