"""``BatchNorm(Conv(x, DQ(q, s), b))`` -> ``Conv(x, DQ(q', s'), b')``, codes kept.

With r = gamma / sqrt(var + eps):  s' = s * |r|,  q' = q * sign(r),  b' = beta + (b - mean) *
r. Gemm and MatMul of a matrix (N, features) take it in likewise; both become
``Gemm(x, DQ(q', s'), b', transB=1)``.

Cases:
1. r > 0: codes unchanged.
2. r < 0: the channel's codes change sign; weights are symmetric and narrow, so this is exact.
3. r = 0: the channel is the constant beta. Codes become 0, and the scale so fine that the
   builder chooses it by beta alone: on the old scale beta would be rounded coarsely.
A weight that other layers read too is copied first.
BatchNorm is folded before rounding elsewhere: peers fold first and quantize the product, which
changes the codes that training learned.
A layer whose weights stay float keeps its BatchNorm, and with `allow_float` so does anything
that cannot absorb it: both are float islands.
A BatchNorm of a tensor that has a grid of its own is left alone (`passes.lower.operators`).
Refuses when BatchNorm follows something else, or a tensor of more dimensions than a linear
layer's features, or a flipped code leaves its container.
"""

from dataclasses import dataclass

import onnx_ir as ir
from onnx_ir.passes import InPlacePass, PassResult

from passes.conditions import ensure, require, unfrozen_weights
from passes.graph import LAYER_KEY, add_constant, as_fake_quant, operand, replace_node
from passes.lower.layers import (
    LAYERS,
    has_integer_weight,
    norm_values,
    read_layer,
    weight_node,
)
from passes.lower.moves import is_move, sources
from qtool.core.dialect import label, require_plain
from qtool.core.errors import UnsupportedError
from qtool.core.folding import fold_norm


@dataclass(frozen=True)
class FoldBatchNorm(InPlacePass):
    """Move BatchNorm into the scale, the sign and the bias of the layer before it.

    Args:
        allow_float: leave a BatchNorm that no integer layer can absorb.
    """

    allow_float: bool = False

    def call(self, model: ir.Model) -> PassResult:
        """Rewrite `model` in place."""
        modified = False
        # A norm behind another one stands behind the layer once that one is folded.
        while matches := [(norm, *_match(norm)) for norm in self._norms(model)]:
            for norm, conv, weight in matches:
                _fold(model.graph, norm, conv, weight)
            modified = True
        return PassResult(model, modified)

    def requires(self, model: ir.Model) -> None:
        """Weights are codes: folding before rounding would change them."""
        require(self, unfrozen_weights(model))

    def ensures(self, model: ir.Model) -> None:
        """No BatchNorm is left that a layer absorbs."""
        ensure(self, (f"node {n.name}: a BatchNorm is left" for n in self._norms(model)))

    def _norms(self, model: ir.Model) -> list[ir.Node]:
        """Return the BatchNorms that must go."""
        norms = (node for node in model.graph if node.op_type == "BatchNormalization")
        return [norm for norm in norms if not self._is_left(norm)]

    def _is_left(self, norm: ir.Node) -> bool:
        layer = operand(norm, 0).producer()
        absorbs = layer is not None and _takes_norms(layer) and has_integer_weight(layer)
        return _stands_alone(norm) or (self.allow_float and not absorbs)


def _stands_alone(norm: ir.Node) -> bool:
    """True for the BatchNorm of a tensor on a grid: it is lowered to a per-channel affine."""
    producer = operand(norm, 0).producer()
    while producer is not None and is_move(producer) and sources(producer):
        producer = sources(producer)[0].producer()
    dequantized = producer is not None and producer.op_type == "DequantizeLinear"
    return dequantized or as_fake_quant(producer) is not None


def _takes_norms(layer: ir.Node) -> bool:
    """True for layers whose outputs are what a BatchNorm behind them calls channels."""
    if layer.domain or layer.op_type not in LAYERS:
        return False
    shape = layer.outputs[0].shape
    return layer.op_type == "Conv" or (shape is not None and len(shape) == 2)


def _fold(graph: ir.Graph, norm: ir.Node, layer: ir.Node, weight: ir.Node) -> None:
    name = weight.metadata_props[LAYER_KEY]
    folded = fold_norm(read_layer(layer, name), norm_values(norm))
    twin = _twin(weight, folded.codes.shape)
    twin.replace_input_with(0, add_constant(graph, f"{name}.folded_codes", folded.codes))
    twin.replace_input_with(1, add_constant(graph, f"{name}.folded_scale", folded.scale))
    graph.insert_before(layer, twin)
    if layer.op_type != "Conv":
        layer = _with_outputs_first(layer)
    layer.replace_input_with(1, twin.outputs[0])
    _drop_unread(graph, weight)
    layer.resize_inputs(3)
    layer.replace_input_with(2, add_constant(graph, f"{name}.folded_bias", folded.bias))
    result, (after,) = layer.outputs[0], norm.outputs
    renamed = after.name if after.is_graph_output() else result.name
    after.replace_all_uses_with(result, replace_graph_outputs=True)
    graph.remove(norm, safe=True)
    result.name = renamed


def _twin(weight: ir.Node, shape: tuple[int, ...]) -> ir.Node:
    """Return a DequantizeLinear like `weight`: another layer may read that one too."""
    twin = ir.Node("", weight.op_type, weight.inputs[:2], name=weight.name)
    twin.attributes["axis"] = ir.AttrInt64("axis", 0)
    twin.metadata_props.update(weight.metadata_props)
    twin.outputs[0].shape, twin.outputs[0].type = ir.Shape(shape), weight.outputs[0].type
    return twin


def _with_outputs_first(layer: ir.Node) -> ir.Node:
    """Return the Gemm or MatMul `layer`, in its place, as a Gemm of a weight (O, I)."""
    kept = [value for key, value in layer.attributes.items() if key != "transB"]
    kept.append(ir.AttrInt64("transB", 1))
    gemm = ir.Node("", "Gemm", layer.inputs, kept, name=layer.name)
    gemm.metadata_props.update(layer.metadata_props)
    replace_node(layer, gemm)
    return gemm


def _drop_unread(graph: ir.Graph, weight: ir.Node) -> None:
    """Remove `weight`, and a Transpose behind it, where nothing reads them."""
    for usage in list(weight.outputs[0].uses()):
        if usage.node.op_type == "Transpose" and not usage.node.outputs[0].uses():
            graph.remove(usage.node, safe=True)
    if not weight.outputs[0].uses():
        graph.remove(weight, safe=True)


def _match(norm: ir.Node) -> tuple[ir.Node, ir.Node]:
    """Return the layer and the DequantizeLinear of its weight."""
    source = operand(norm, 0)
    layer = source.producer()
    if layer is None or not _takes_norms(layer):
        got = "the input" if layer is None else layer.op_type
        raise UnsupportedError(
            f"{label(norm)}: BatchNorm after {got}; only Conv, or a linear layer of "
            "(N, features), can absorb it"
        )
    require_plain(norm)
    weight = weight_node(layer)
    if weight is None or LAYER_KEY not in weight.metadata_props:
        raise UnsupportedError(
            f"{label(norm)}: BatchNorm after a {layer.op_type} with float weights"
        )
    if len(list(source.uses())) != 1 or source.is_graph_output():
        raise UnsupportedError(
            f"layer {weight.metadata_props[LAYER_KEY]}: its result is also read unnormalised"
        )
    return layer, weight
