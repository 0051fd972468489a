"""Constants of float Conv, Gemm and MatMul nodes whose weight is ``DequantizeLinear(codes)``.

FreezeWeights and ImportQDQ both leave that form, with the layer's name and bits as metadata of
the DequantizeLinear node.
"""

from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from passes.graph import LAYER_KEY, operand
from passes.importing.unpacking import unpack
from qtool.core.accumulator import Layer
from qtool.core.dialect import WEIGHT_BITS_KEY, constant, ints, require_plain
from qtool.core.errors import UnsupportedError
from qtool.core.folding import NormValues
from qtool.core.numerics import bias_scale

LAYERS = ("Conv", "Gemm", "MatMul")


def layer_name(node: ir.Node) -> str:
    """Return the layer's name in the user's model, or the node's own."""
    if LAYER_KEY in node.metadata_props:
        return node.metadata_props[LAYER_KEY]
    weight = weight_node(node)
    if weight is not None and LAYER_KEY in weight.metadata_props:
        return weight.metadata_props[LAYER_KEY]
    return str(node.name or node.outputs[0].name)


def weight_node(node: ir.Node) -> ir.Node | None:
    """Return the DequantizeLinear of the weight, perhaps behind a Transpose."""
    if len(node.inputs) < 2 or node.inputs[1] is None:
        return None
    producer = node.inputs[1].producer()
    if producer is not None and producer.op_type == "Transpose":
        producer = operand(producer, 0).producer()
    return producer


def has_integer_weight(node: ir.Node) -> bool:
    """True when the weight of a Conv, Gemm or MatMul is a DequantizeLinear of codes."""
    weight = weight_node(node)
    if weight is None or weight.op_type != "DequantizeLinear":
        return False
    return LAYER_KEY in weight.metadata_props or _is_stored(operand(weight, 0))


def _is_stored(codes: ir.Value) -> bool:
    return constant(codes) is not None or unpack(codes) is not None


def read_layer(node: ir.Node, fallback: str) -> Layer:
    """Return the constants of a Conv, Gemm or MatMul node.

    Args:
        node: its weight is a DequantizeLinear of constant codes.
        fallback: the layer's name where FreezeWeights has not written one.

    Raises:
        UnsupportedError: float weights, weights with a zero point, anything computed at run
            time.
    """
    weight = weight_node(node)
    if weight is None or weight.op_type != "DequantizeLinear":
        raise UnsupportedError(f"layer {fallback}: {node.op_type} has float weights")
    name = weight.metadata_props.get(LAYER_KEY, fallback)
    require_plain(weight, f"layer {name}")
    codes, scale = _codes(weight, name), constant(weight.inputs[1])
    if scale is None:
        raise UnsupportedError(f"layer {name}: weights are computed at run time")
    codes, spread = _by_output(node, weight, codes, scale, name)
    bits = weight.metadata_props.get(WEIGHT_BITS_KEY)
    bias, unit = _bias(node, name, len(spread))
    return Layer(
        name, codes, spread.astype(np.float32), bias, None if bits is None else int(bits), unit
    )


def _by_output(
    node: ir.Node,
    weight: ir.Node,
    codes: NDArray[np.int8],
    scale: NDArray[Any],
    name: str,
) -> tuple[NDArray[np.int8], NDArray[Any]]:
    """Return the codes with the outputs first, and a scale for each output."""
    if node.op_type != "Conv" and codes.ndim != 2:
        raise UnsupportedError(f"layer {name}: {codes.ndim}-D weight of {node.op_type}; 2-D")
    axis = _output_axis(node, name)
    if np.all(scale == scale.reshape(-1)[:1]):  # one for all: spread along whichever axis
        scale = scale.reshape(-1)[:1]
    if scale.size > 1 and _axis(weight, codes.ndim) != axis:
        raise UnsupportedError(
            f"layer {name}: weight scales along axis {_axis(weight, codes.ndim)}; those of "
            f"the outputs, axis {axis} of {node.op_type}, are supported"
        )
    if axis == 1:
        codes = np.ascontiguousarray(codes.T)
    if scale.size not in (1, len(codes)):
        raise UnsupportedError(
            f"layer {name}: {scale.size} weight scales for {len(codes)} outputs"
        )
    return codes, np.ascontiguousarray(np.broadcast_to(scale.reshape(-1), codes.shape[:1]))


def _output_axis(node: ir.Node, name: str) -> int:
    """Return which axis of the stored codes is that of the outputs."""
    source = operand(node, 1).producer()
    turned = source is not None and source.op_type == "Transpose"
    if node.op_type == "Conv":
        if turned:
            raise UnsupportedError(f"layer {name}: the weight of a Conv behind Transpose")
        return 0
    if source is not None and turned:
        turned = ints(source, "perm", (1, 0))[0] % 2 == 1
    return 0 if bool(node.attributes.get_int("transB", 0)) != turned else 1


def _axis(weight: ir.Node, rank: int) -> int:
    return weight.attributes.get_int("axis", 1) % rank


def _codes(weight: ir.Node, name: str) -> NDArray[np.int8]:
    """Return the int8 codes of a weight; uint8 ones around 128 move down."""
    source = operand(weight, 0)
    codes, plain = unpack(source), constant(source)
    zero = constant(weight.inputs[2]) if len(weight.inputs) > 2 else None
    if plain is not None and plain.dtype == np.uint8:
        if zero is None or np.any(zero != 128):
            raise UnsupportedError(
                f"layer {name}: uint8 weights with zero point {_show(zero)}; 128 is supported"
            )
        return (plain.astype(np.int16) - 128).astype(np.int8)
    if codes is None:
        raise UnsupportedError(f"layer {name}: weights are no constant 8-bit integers")
    if zero is not None and np.any(zero):
        raise UnsupportedError(
            f"layer {name}: weights with zero point {_show(zero)}; 0 is supported"
        )
    return codes


def _show(zero: NDArray[Any] | None) -> str:
    return "0" if zero is None else ", ".join(map(str, np.unique(zero)[:4]))


def _bias(
    node: ir.Node, name: str, channels: int
) -> tuple[NDArray[Any], NDArray[np.float32] | None]:
    """Return the bias in real units, (channels,), and its scale where it is int32."""
    value = node.inputs[2] if len(node.inputs) > 2 else None
    if value is None:
        return np.zeros(channels, np.float32), None
    bias, unit = constant(value), None
    if bias is None:
        bias, unit = _dequantized(value, name)
    if bias.size != channels:
        raise UnsupportedError(
            f"layer {name}: bias has {bias.size} values, expected {channels}"
        )
    return bias.reshape(-1), unit


def _dequantized(value: ir.Value, name: str) -> tuple[NDArray[Any], NDArray[np.float32]]:
    """Return ``codes * scale`` of an int32 bias in float64: rounded again it is the same."""
    node = value.producer()
    codes = None if node is None else constant(node.inputs[0])
    unit = None if node is None or len(node.inputs) < 2 else _unit(node.inputs[1])
    if node is None or node.op_type != "DequantizeLinear" or codes is None or unit is None:
        raise UnsupportedError(f"layer {name}: bias is computed at run time")
    require_plain(node, f"layer {name}")
    zero = constant(node.inputs[2]) if len(node.inputs) > 2 else None
    if codes.dtype != np.int32 or (zero is not None and np.any(zero)):
        raise UnsupportedError(f"layer {name}: bias is not int32 around 0")
    spread = np.broadcast_to(unit.reshape(-1).astype(np.float32), codes.size)
    return codes.reshape(-1).astype(np.float64) * spread.astype(np.float64), spread


def _unit(value: ir.Value | None) -> NDArray[Any] | None:
    """Return the scale of a bias: stored, or the product of two that are."""
    node = None if value is None else value.producer()
    if node is None or node.op_type != "Mul" or node.domain or len(node.inputs) != 2:
        return constant(value)
    x_scale, w_scale = (constant(factor) for factor in node.inputs)
    if x_scale is None or w_scale is None or x_scale.size != 1:
        return None
    unit = bias_scale(np.float32(x_scale.reshape(())[()]), w_scale)
    return unit if np.all(np.isfinite(unit) & (unit > 0)) else None


def norm_values(node: ir.Node) -> NormValues:
    """Return the numbers of a BatchNormalization.

    Raises:
        UnsupportedError: a parameter is computed at run time.
    """
    arrays = [constant(value) for value in node.inputs[1:5]]
    known = [array.astype(np.float64) for array in arrays if array is not None]
    if len(known) < 4:
        raise UnsupportedError(f"layer {node.name}: BatchNorm parameters must be constants")
    gamma, beta, mean, var = known
    return NormValues(gamma, beta, mean, var, node.attributes.get_float("epsilon", 1e-5))
