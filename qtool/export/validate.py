"""Refuse damaged ONNX files before any pass reads them, naming node or tensor.

`onnx.checker` sees to acyclic order, single assignment, known operators and attributes; ONNX's
shape inference to shapes. Neither checks the element types that operators allow, nor what the
numbers of a quantization grid mean. Here:

1. `check_storage`: opsets and domains that exist; all data inside the file.
2. `check_graph`: dimensions of a size that a computer holds; element types as the operators'
   schemas allow them; scales finite and positive, zero points of their codes' type, one of
   each per tensor or channel; biases as long as their layer has outputs.
"""

from collections.abc import Iterator, Sequence
from math import prod
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray
from onnx import TensorProto, defs, helper, numpy_helper

from qtool.core.errors import UnsupportedError, UserError

MS = "com.microsoft"
DOMAINS = ("", "ai.onnx", MS)
# The first opset with an axis on QuantizeLinear.
OLDEST_OPSET = 13
# Elements of one tensor: 1 GiB of float32.
LARGEST_TENSOR = 2**28

_FLOAT, _INT = onnx.AttributeProto.FLOAT, onnx.AttributeProto.INT

Shape = tuple[int | None, ...] | None

_DATA_FIELDS = ("float_data", "int32_data", "int64_data", "double_data", "uint64_data")

# operator: positions of (codes, scale, zero point); codes is None where only a result has them
_GRIDS: dict[str, tuple[tuple[int | None, int, int], ...]] = {
    "QuantizeLinear": ((None, 1, 2),),
    "DequantizeLinear": ((0, 1, 2),),
    "QLinearConv": ((0, 1, 2), (3, 4, 5), (None, 6, 7)),
    "QLinearMatMul": ((0, 1, 2), (3, 4, 5), (None, 6, 7)),
    "QLinearAdd": ((0, 1, 2), (3, 4, 5), (None, 6, 7)),
    "QLinearMul": ((0, 1, 2), (3, 4, 5), (None, 6, 7)),
    "QGemm": ((0, 1, 2), (3, 4, 5), (None, 7, 8)),
    "QLinearGlobalAveragePool": ((0, 1, 2), (None, 3, 4)),
    "QLinearLeakyRelu": ((0, 1, 2), (None, 3, 4)),
    "QLinearSigmoid": ((0, 1, 2), (None, 3, 4)),
}
# layer: positions of its weight and bias
_LAYERS = {"Conv": (1, 2), "QLinearConv": (3, 8), "Gemm": (1, 2), "QGemm": (3, 6)}
_INTS, _STRING = onnx.AttributeProto.INTS, onnx.AttributeProto.STRING
_POOL: dict[str, int] = {
    "auto_pad": _STRING, "ceil_mode": _INT, "channels_last": _INT, "count_include_pad": _INT,
    "kernel_shape": _INTS, "pads": _INTS, "strides": _INTS,
}  # fmt: skip
# Contrib operators have no schema in the onnx package: fewest and most inputs, attributes.
# ONNX Runtime 1.31 aborts the process on a QLinearLeakyRelu without its last zero point.
_CONTRIB: dict[str, tuple[int, int, dict[str, int]]] = {
    "QLinearAdd": (7, 8, {}),
    "QLinearMul": (7, 8, {}),
    "QGemm": (6, 9, {"alpha": _FLOAT, "transA": _INT, "transB": _INT}),
    "QLinearGlobalAveragePool": (5, 5, {"channels_last": _INT}),
    "QLinearAveragePool": (5, 5, _POOL),
    "QLinearLeakyRelu": (5, 5, {"alpha": _FLOAT}),
    "QLinearSigmoid": (5, 5, {}),
    "QLinearConcat": (5, 2**16, {"axis": _INT}),
}


def check_storage(model: onnx.ModelProto) -> None:
    """Check what the file says about itself, before anything follows its references.

    Raises:
        UserError: no opset that exists, or data in another file.
    """
    newest = defs.onnx_opset_version()
    versions = [item.version for item in model.opset_import if item.domain in ("", "ai.onnx")]
    if len(versions) != 1 or not OLDEST_OPSET <= versions[0] <= newest:
        found = ", ".join(map(str, versions)) or "none"
        raise UserError(f"opset {found}; one of {OLDEST_OPSET} to {newest} is supported")
    for tensor in _tensors(model.graph):
        if tensor.data_location == TensorProto.EXTERNAL or tensor.external_data:
            raise UserError(
                f"tensor {tensor.name} is stored in another file; save the model with its data"
            )
        _check_shape(tensor.name, tuple(tensor.dims))
        _check_length(tensor)


def check_graph(model: onnx.ModelProto) -> None:
    """Check a model that has passed `onnx.checker` and has inferred shapes.

    Raises:
        UserError: the first violation found; names node or tensor.
    """
    facts = _Facts(model)
    for name, shape in facts.shapes.items():
        _check_shape(name, shape)
    for index, node in enumerate(model.graph.node):
        where = f"node {node.name or node.output[0] or index} ({node.op_type})"
        if node.domain not in DOMAINS:
            raise UnsupportedError(f"{where}: unknown operator domain {node.domain!r}")
        if node.domain == MS:
            _check_contrib(node, where)
        else:
            _check_types(node, facts, where)
        for positions in _GRIDS.get(node.op_type, ()):
            _check_grid(node, positions, facts, where)
        if node.op_type in _LAYERS:
            _check_layer(node, facts, where)


def check_contrib(model: onnx.ModelProto) -> None:
    """Check inputs and attributes of ONNX Runtime's own operators.

    Raises:
        UserError: the first violation found; names the node.
    """
    for index, node in enumerate(model.graph.node):
        where = f"node {node.name or node.output[0] or index} ({node.op_type})"
        if node.domain == MS:
            _check_contrib(node, where)


class _Facts:
    """Shapes, element types and constants of a model by tensor name."""

    def __init__(self, model: onnx.ModelProto) -> None:
        graph = model.graph
        self.opset = next(i.version for i in model.opset_import if i.domain in ("", "ai.onnx"))
        self.shapes: dict[str, Shape] = {}
        self.types: dict[str, int] = {}
        for value in (*graph.value_info, *graph.output, *graph.input):
            self.types[value.name] = value.type.tensor_type.elem_type
            self.shapes[value.name] = _shape(value.type.tensor_type)
        self.constants = {tensor.name: tensor for tensor in graph.initializer}
        for tensor in graph.initializer:
            self.types[tensor.name] = tensor.data_type
            self.shapes[tensor.name] = tuple(tensor.dims)

    def array(self, name: str) -> NDArray[Any] | None:
        """Return a constant's values, None if `name` is not an initializer."""
        tensor = self.constants.get(name)
        if tensor is None:
            return None
        try:
            return numpy_helper.to_array(tensor)
        except (ValueError, TypeError) as error:
            raise UserError(f"tensor {name}: its data is damaged: {error}") from None


def _tensors(graph: onnx.GraphProto) -> Iterator[TensorProto]:
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    for node in graph.node:
        for attribute in node.attribute:
            yield from (attribute.t, *attribute.tensors)
            for inner in (attribute.g, *attribute.graphs):
                yield from _tensors(inner)


def _shape(tensor: onnx.TypeProto.Tensor) -> Shape:
    if not tensor.HasField("shape"):
        return None
    return tuple(d.dim_value if d.HasField("dim_value") else None for d in tensor.shape.dim)


def _check_shape(name: str, shape: Shape) -> None:
    known = [n for n in shape or () if n is not None]
    if any(n < 0 for n in known):
        raise UserError(f"tensor {name}: negative dimension in {list(known)}")
    if prod(known) > LARGEST_TENSOR or any(n > LARGEST_TENSOR for n in known):
        raise UserError(f"tensor {name}: {known} elements; at most 2^28 are supported")
    if 0 in known:
        raise UserError(f"tensor {name}: empty, its dimensions are {known}")


def _check_length(tensor: TensorProto) -> None:
    """Check that a tensor holds as many elements as its dimensions say."""
    if not tensor.data_type or tensor.data_type not in TensorProto.DataType.values():
        return  # no tensor at all, or a type that onnx.checker refuses
    bits, count = ir.DataType(tensor.data_type).bitwidth, prod(tensor.dims)
    if tensor.HasField("raw_data"):
        found, expected = len(tensor.raw_data), (count * bits + 7) // 8
    else:
        found = sum(len(getattr(tensor, field)) for field in _DATA_FIELDS)
        expected = (count * bits + 7) // 8 if bits < 8 else count
    if found != expected:
        raise UserError(
            f"tensor {tensor.name} of shape {tuple(tensor.dims)} holds {found} items of data; "
            f"{expected} are needed"
        )
    low, high = (-128, 127) if tensor.data_type == TensorProto.INT8 else (0, 255)
    if tensor.data_type in (TensorProto.INT8, TensorProto.UINT8) and tensor.int32_data:
        if min(tensor.int32_data) < low or max(tensor.int32_data) > high:
            raise UserError(f"tensor {tensor.name}: codes beyond {low} to {high}")


def _check_contrib(node: onnx.NodeProto, where: str) -> None:
    """Check inputs and attributes of an operator whose schema is ONNX Runtime's."""
    if node.op_type not in _CONTRIB:
        raise UnsupportedError(f"{where}: this {MS} operator is not in the integer dialect")
    fewest, most, attributes = _CONTRIB[node.op_type]
    if not fewest <= len(node.input) <= most:
        raise UserError(f"{where}: {len(node.input)} inputs; it takes {fewest} to {most}")
    for attribute in node.attribute:
        if attributes.get(attribute.name) != attribute.type:
            raise UserError(f"{where}: attribute {attribute.name} is unknown or mistyped")


def _check_types(node: onnx.NodeProto, facts: _Facts, where: str) -> None:
    """Check element types against the operator's schema, type parameters included."""
    schema = defs.get_schema(node.op_type, facts.opset, node.domain)
    bound: dict[str, str] = {}
    for formals, names in ((schema.inputs, node.input), (schema.outputs, node.output)):
        for formal, name in _pairs(formals, names):
            code = facts.types.get(name, 0)
            if not code:
                if name in facts.types:
                    raise UserError(f"{where}: tensor {name} has no type")
                continue
            found = _type_name(code)
            if found not in formal.types:
                raise UserError(f"{where}: tensor {name} is {found}, which it does not take")
            if bound.setdefault(formal.type_str, found) != found and formal.is_homogeneous:
                raise UserError(
                    f"{where}: tensor {name} is {found}, beside {bound[formal.type_str]}"
                )


def _pairs(
    formals: Sequence[defs.OpSchema.FormalParameter], names: Sequence[str]
) -> Iterator[tuple[defs.OpSchema.FormalParameter, str]]:
    """Pair actual names with formal parameters; the last one may be variadic."""
    for index, name in enumerate(names):
        if name and formals:
            yield formals[min(index, len(formals) - 1)], name


def _type_name(code: int) -> str:
    try:
        return f"tensor({TensorProto.DataType.Name(code).lower()})"
    except ValueError:
        return f"type {code}"


def _check_grid(
    node: onnx.NodeProto, positions: tuple[int | None, int, int], facts: _Facts, where: str
) -> None:
    """Check a scale, and the zero point beside it."""
    codes, scale, zero = (_input(node, position) for position in positions)
    values = facts.array(scale)
    if values is None:
        return  # computed scales are the reader's to refuse
    if values.dtype != np.float32:
        raise UnsupportedError(
            f"{where}: scale {scale} is {values.dtype}; float32 is supported"
        )
    if not (np.isfinite(values) & (values > 0)).all():
        raise UserError(f"{where}: scale {scale} is not finite and positive")
    if values.ndim > 1:
        raise UnsupportedError(f"{where}: scale {scale} has {values.ndim} dimensions; 0 or 1")
    channels = _channels(node, positions, facts)
    if values.size != 1 and channels is not None and values.size != channels:
        raise UserError(f"{where}: {values.size} scales for {channels} channels")
    offsets = facts.shapes.get(zero)
    if (
        zero
        and offsets is not None
        and (len(offsets) > 1 or prod(n or 0 for n in offsets) != values.size)
    ):
        raise UserError(f"{where}: {values.size} scales, but zero points of shape {offsets}")
    # A contrib operator's result has no type until it is expanded.
    if codes and zero and facts.types.get(codes, 0) not in (0, facts.types.get(zero, 0)):
        kinds = [_type_name(facts.types.get(name, 0)) for name in (codes, zero)]
        raise UserError(f"{where}: codes are {kinds[0]}, their zero point is {kinds[1]}")


def _channels(
    node: onnx.NodeProto, positions: tuple[int | None, int, int], facts: _Facts
) -> int | None:
    """Return how many scales the operand has if it has one a channel, None if unknown."""
    shape = facts.shapes.get(_input(node, positions[0] if positions[0] is not None else 0))
    if node.op_type not in ("QuantizeLinear", "DequantizeLinear"):
        is_weight = positions[0] == 3 and node.op_type in (
            "QLinearConv",
            "QLinearMatMul",
            "QGemm",
        )
        if not is_weight:
            return 1
        axis = 0 if node.op_type == "QLinearConv" else -1
        if node.op_type == "QGemm" and _attribute(node, "transB", 0):
            axis = 0
    else:
        axis = _attribute(node, "axis", 1)
    if shape is None or not -len(shape) <= axis < len(shape):
        return None if shape is None else 1
    return shape[axis]


def _check_layer(node: onnx.NodeProto, facts: _Facts, where: str) -> None:
    """Check channels against the weight, and the bias against the outputs."""
    weight, bias = (_input(node, position) for position in _LAYERS[node.op_type])
    x_shape, w_shape = facts.shapes.get(node.input[0]), facts.shapes.get(weight)
    if not w_shape or len(w_shape) < 2:
        return
    if x_shape is not None and len(x_shape) != len(w_shape):
        raise UserError(f"{where}: weight of shape {w_shape} for an input of {x_shape}")
    is_conv, axis = node.op_type.endswith("Conv"), int(not _attribute(node, "transB", 0))
    outputs, inputs = (
        (w_shape[0], w_shape[1]) if is_conv else (w_shape[axis], w_shape[1 - axis])
    )
    groups = _attribute(node, "group", 1)
    if groups < 1 or (outputs is not None and outputs % groups):
        raise UserError(f"{where}: {outputs} outputs in {groups} groups")
    channels = x_shape[1] if x_shape is not None and len(x_shape) > 1 else None
    expected = None if inputs is None else inputs * groups
    if channels is not None and expected is not None and channels != expected:
        raise UserError(f"{where}: input of {channels} channels, weight for {expected}")
    shape = facts.shapes.get(bias)
    if bias and shape is not None and shape[-2:] not in ((outputs,), (1, outputs)):
        raise UserError(f"{where}: bias of shape {shape} for {outputs} outputs")


def _input(node: onnx.NodeProto, position: int | None) -> str:
    is_there = position is not None and position < len(node.input)
    return node.input[position] if is_there and position is not None else ""


def _attribute(node: onnx.NodeProto, name: str, default: int) -> int:
    values = [helper.get_attribute_value(a) for a in node.attribute if a.name == name]
    return int(values[0]) if values else default
