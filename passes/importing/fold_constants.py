"""``QuantizeLinear(W)``, ``Clip(codes)``, ``Transpose(W)``, ... of constants -> their value.

Exporters leave weights in float with QuantizeLinear behind them (AIMET), a Clip on the codes
(Brevitas), a Transpose before a MatMul; others quantize BatchNorm's parameters (ONNX Runtime).

Cases:
1. An operator of `_FUNCTIONS` on constants alone.
2. DequantizeLinear of constants, unless it holds a weight or bias of a layer, or one number.
Anything else is left as it is. Values are the ONNX specification's, rounded by
`qtool.core.numerics`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.passes import InPlacePass, PassResult

from passes.graph import add_constant, drop_unused_constants
from qtool.core import numerics
from qtool.core.dialect import constant, is_plain

Array = NDArray[Any]
LAYERS = ("Conv", "Gemm", "MatMul")


@dataclass(frozen=True)
class FoldConstants(InPlacePass):
    """Compute what does not depend on the model's input."""

    def call(self, model: ir.Model) -> PassResult:
        """Rewrite `model` in place."""
        modified = False
        for node in list(model.graph):
            value = _value(node)
            if value is None:
                continue
            result = node.outputs[0]
            folded = add_constant(model.graph, f"{result.name}/value", value)
            result.replace_all_uses_with(folded, replace_graph_outputs=False)
            modified |= not result.is_graph_output()
            if not result.is_graph_output():
                model.graph.remove(node, safe=True)
        if modified:
            drop_unused_constants(model.graph)
        return PassResult(model, modified)


def _value(node: ir.Node) -> Array | None:
    """Return the result of `node`, None where it is no constant or has to stay."""
    function = _FUNCTIONS.get(node.op_type)
    if function is None or node.domain or node.outputs[0].is_graph_output():
        return None
    if not is_plain(node):
        return None  # whoever reads the result refuses it
    arrays = [None if value is None else constant(value) for value in node.inputs]
    if arrays[0] is None or any(
        value is not None and array is None
        for value, array in zip(node.inputs, arrays, strict=True)
    ):
        return None
    if node.op_type == "DequantizeLinear" and (arrays[0].size == 1 or _is_layers(node)):
        return None
    return function(node, arrays)


def _is_layers(node: ir.Node) -> bool:
    """True for the weight or bias of a layer."""
    users = [(usage.node.op_type, usage.idx) for usage in node.outputs[0].uses()]
    return all((kind in LAYERS and index > 0) or kind == "Transpose" for kind, index in users)


def _quantize(node: ir.Node, arrays: list[Array | None]) -> Array | None:
    x, scale, zero = [*arrays, None][:3]
    kind = node.outputs[0].dtype if zero is None else ir.DataType.from_numpy(zero.dtype)
    if x is None or scale is None or kind not in (ir.DataType.UINT8, ir.DataType.INT8):
        return None
    steps, offset = _along(node, scale, x), 128 if kind == ir.DataType.INT8 else 0
    zeros = 0 if zero is None else _along(node, zero.astype(np.int16), x)
    codes = numerics.quantize(x, steps, zeros + offset)
    folded: Array = (codes.astype(np.int16) - offset).astype(kind.numpy())
    return folded


def _dequantize(node: ir.Node, arrays: list[Array | None]) -> Array | None:
    q, scale, zero = [*arrays, None][:3]
    if q is None or scale is None or q.dtype not in (np.uint8, np.int8, np.int32):
        return None
    zeros: Any = 0 if zero is None else _along(node, zero.astype(np.int32), q)
    return numerics.dequantize(q, _along(node, scale, q), zeros)


def _along(node: ir.Node, values: Array, x: Array) -> Any:
    """Return scales or zero points, one a channel or one in all, shaped to meet `x`."""
    if values.size == 1:
        return values.reshape(())[()]
    axis = node.attributes.get_int("axis", 1) % max(x.ndim, 1)
    return values.reshape(-1, *[1] * (x.ndim - axis - 1))


def _clip(_node: ir.Node, arrays: list[Array | None]) -> Array | None:
    x, low, high = [*arrays, None, None][:3]
    return None if x is None else np.clip(x, low, high).astype(x.dtype)


def _transpose(node: ir.Node, arrays: list[Array | None]) -> Array | None:
    (x,) = arrays
    if x is None:
        return None
    perm = node.attributes.get_ints("perm", tuple(reversed(range(x.ndim))))
    return np.ascontiguousarray(x.transpose(tuple(perm)))


def _reshape(_node: ir.Node, arrays: list[Array | None]) -> Array | None:
    x, shape = arrays
    # What inference has checked; 0, "as before", is left to whoever reads the node.
    return None if x is None or shape is None or 0 in shape else x.reshape(shape)


_FUNCTIONS: dict[str, Callable[[ir.Node, list[Array | None]], Array | None]] = {
    "QuantizeLinear": _quantize, "DequantizeLinear": _dequantize, "Clip": _clip,
    "Transpose": _transpose, "Reshape": _reshape,
}  # fmt: skip
