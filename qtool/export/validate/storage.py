"""What a file says about itself, before anything follows its references.

Opsets that exist, all data inside the file, as much of it as the dimensions say, dimensions of
a size that a computer holds.
"""

from collections.abc import Iterator
from math import prod

import onnx
import onnx_ir as ir
from onnx import TensorProto, defs

from qtool.core.errors import UserError
from qtool.export.validate.facts import Shape

# The first opset with an axis on QuantizeLinear.
OLDEST_OPSET = 13
# Elements of one tensor: 1 GiB of float32.
LARGEST_TENSOR = 2**28
_DATA_FIELDS = ("float_data", "int32_data", "int64_data", "double_data", "uint64_data")


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
    if model.graph.sparse_initializer:
        name = model.graph.sparse_initializer[0].values.name
        raise UserError(f"tensor {name} is a sparse initializer; store it with all its zeros")
    for tensor in _tensors(model.graph):
        if tensor.data_location == TensorProto.EXTERNAL or tensor.external_data:
            raise UserError(
                f"tensor {tensor.name} is stored in another file; save the model with its data"
            )
        check_shape(tensor.name, tuple(tensor.dims))
        _check_length(tensor)


def check_shape(name: str, shape: Shape) -> None:
    """Refuse dimensions that are negative, zero, or of more elements than fit memory."""
    known = [n for n in shape or () if n is not None]
    if any(n < 0 for n in known):
        raise UserError(f"tensor {name}: negative dimension in {list(known)}")
    if prod(known) > LARGEST_TENSOR or any(n > LARGEST_TENSOR for n in known):
        raise UserError(f"tensor {name}: {known} elements; at most 2^28 are supported")
    if 0 in known:
        raise UserError(f"tensor {name}: empty, its dimensions are {known}")


def _tensors(graph: onnx.GraphProto) -> Iterator[TensorProto]:
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    for node in graph.node:
        for attribute in node.attribute:
            yield from (attribute.t, *attribute.tensors)
            for inner in (attribute.g, *attribute.graphs):
                yield from _tensors(inner)


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
