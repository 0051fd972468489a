"""``FakeQuant(const W, steps)`` -> ``DequantizeLinear(codes, scale, 0, axis=0)``.

The codes are what training saw; no pass recomputes them. By the node's attribute ``scheme``:
"symmetric" (the default), ``clip(rint(W / s), -Q, Q)``, at one bit +-1; "dorefa", "modified"
and "centered", see `qtool.core.weight_codes`, of weights normalised to [-1, 1] already;
"double_rounding" of 8-bit codes. They are held times ``2^k``, at a scale as much finer
(`container_shift`): the bias is rounded to multiples of it.
The node carries the layer's name and bits as metadata.
Weights of 32 bits stay as they are, those of 16 become ``Cast(float16 W)``; the layer that
reads them carries name and bits, and becomes a float island.
Refuses when the weight is not constant, or weights would stay float without `allow_float`.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.passes import InPlacePass, PassResult

from passes.conditions import (
    broken_codes,
    ensure,
    require,
    several_widths,
    unfrozen_weights,
)
from passes.graph import LAYER_KEY, FakeQuant, add_constant, fake_quants, replace_node
from qtool.core.dialect import ACTIVATION_BITS_KEY, WEIGHT_BITS_KEY, constant
from qtool.core.errors import UnsupportedError
from qtool.core.grids import FLOAT_WIDTHS, MIN_STEP, weight_limit
from qtool.core.weight_codes import (
    binary_weight,
    centered_weight,
    container_shift,
    dorefa_weight,
    double_rounding_weight,
    modified_weight,
    quantize_weight,
)

# Schemes whose codes are odd integers of b + 1 bits: their name, and the codes.
_ODD = {"dorefa": ("DoReFa", dorefa_weight), "centered": ("centered", centered_weight)}


@dataclass(frozen=True)
class FreezeWeights(InPlacePass):
    """Turn quantized weights into integer codes with a scale per output channel.

    Args:
        allow_float: weights of 16 and 32 bits may stay float.
    """

    allow_float: bool = False

    def call(self, model: ir.Model) -> PassResult:
        """Rewrite `model` in place."""
        views = [view for view in fake_quants(model) if view.role == "weight"]
        floats = [view for view in views if view.bits[-1] in FLOAT_WIDTHS]
        if floats and not self.allow_float:
            raise UnsupportedError(
                f"layer {floats[0].name}: weights of {floats[0].bits[0]} bits would run in "
                "floating point (--allow-float keeps the layer as a float island)"
            )
        for view in views:
            if view in floats:
                _leave_float(model.graph, view)
            else:
                replace_node(view.node, _frozen(model.graph, view))
        return PassResult(model, bool(views))

    def requires(self, model: ir.Model) -> None:
        """Every weight has one bit-width."""
        require(self, several_widths(model, "weight"))

    def ensures(self, model: ir.Model) -> None:
        """Every weight is codes, or float on purpose."""
        ensure(self, unfrozen_weights(model))
        ensure(self, broken_codes(model))


def _leave_float(graph: ir.Graph, view: FakeQuant) -> None:
    """Let the layer read its float weight, and say whose it is."""
    weight, bits = view.plain, view.bits[0]
    for reader in _readers(view.node.outputs[0]):
        props = reader.metadata_props
        props[LAYER_KEY], props[WEIGHT_BITS_KEY] = view.name, str(bits)
        props[ACTIVATION_BITS_KEY] = view.node.metadata_props[ACTIVATION_BITS_KEY]
    if bits == 16:
        replace_node(view.node, _half(graph, view))
        return
    view.node.outputs[0].replace_all_uses_with(weight)
    graph.remove(view.node, safe=True)


def _readers(weight: ir.Value) -> list[ir.Node]:
    """Return the layers that read a weight, perhaps through a Transpose."""
    nodes = [usage.node for usage in weight.uses()]
    if any(node.op_type == "Transpose" for node in nodes):
        return [reader for node in nodes for reader in _readers(node.outputs[0])]
    return nodes


def _half(graph: ir.Graph, view: FakeQuant) -> ir.Node:
    weight = constant(view.plain)
    if weight is None:
        raise UnsupportedError(f"layer {view.name}: weight is computed at run time")
    with np.errstate(over="ignore"):
        half = weight.astype(np.float16)
    if not np.isfinite(half).all():
        raise UnsupportedError(
            f"layer {view.name}: weights up to {np.abs(weight).max():g} are no float16; "
            "use 32 bits"
        )
    stored = add_constant(graph, f"{view.name}.half", half)
    return ir.node("Cast", [stored], {"to": int(ir.DataType.FLOAT)}, name=f"{view.name}.wide")


def _frozen(graph: ir.Graph, view: FakeQuant) -> ir.Node:
    weight = constant(view.source)
    if weight is None:
        raise UnsupportedError(f"layer {view.name}: weight is computed at run time")
    channels = weight.shape[0]
    # The same float32 |step| that training divided by; per-tensor steps are spread.
    scale = np.broadcast_to(np.maximum(np.abs(view.steps[0]), np.float32(MIN_STEP)), channels)
    scale = np.ascontiguousarray(scale)
    shift = container_shift(view.scheme, view.bits[0])
    codes = _codes(weight, scale, view) << shift
    node = ir.node(
        "DequantizeLinear",
        [
            add_constant(graph, f"{view.name}.codes", codes),
            add_constant(graph, f"{view.name}.scale", scale / np.float32(1 << shift)),
            add_constant(graph, f"{view.name}.zero", np.zeros(channels, np.int8)),
        ],
        {"axis": 0},
        name=view.name,
    )
    node.metadata_props[LAYER_KEY] = view.name
    node.metadata_props[WEIGHT_BITS_KEY] = str(view.bits[0])
    return node


def _codes(weight: NDArray[np.float32], scale: NDArray[np.float32], view: FakeQuant) -> Any:
    """Return the int8 codes that the quantizer's scheme gives `weight`."""
    bits = view.bits[0]
    if view.scheme in _ODD:
        if bits == 8:
            raise UnsupportedError(
                f"layer {view.name}: 8-bit {_ODD[view.scheme][0]} weights are odd integers up "
                "to 255, which int8 does not hold; use 7 bits, or the modified scheme"
            )
        return _ODD[view.scheme][1](weight, bits).astype(np.int8)
    if view.scheme == "modified":
        return modified_weight(weight, bits).astype(np.int8)
    if view.scheme == "double_rounding":
        return double_rounding_weight(weight, bits)
    if view.scheme != "symmetric":
        raise UnsupportedError(f"layer {view.name}: unknown weight scheme {view.scheme!r}")
    if bits == 1:
        return binary_weight(weight)
    return quantize_weight(weight, scale, weight_limit(bits))
