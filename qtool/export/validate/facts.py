"""What the checks ask about a model: shapes, types and constants by name, inputs of a node."""

from typing import Any

import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from qtool.core.errors import UserError

Shape = tuple[int | None, ...] | None


class Facts:
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


def _shape(tensor: onnx.TypeProto.Tensor) -> Shape:
    if not tensor.HasField("shape"):
        return None
    return tuple(d.dim_value if d.HasField("dim_value") else None for d in tensor.shape.dim)


def type_name(code: int) -> str:
    """Return an element type as schemas spell it."""
    try:
        return f"tensor({TensorProto.DataType.Name(code).lower()})"
    except ValueError:
        return f"type {code}"


def input_at(node: onnx.NodeProto, position: int | None) -> str:
    """Return the name of an input, "" where it is missing."""
    is_there = position is not None and position < len(node.input)
    return node.input[position] if is_there and position is not None else ""


def attribute(node: onnx.NodeProto, name: str, default: int) -> int:
    """Return an integer attribute."""
    values = [helper.get_attribute_value(a) for a in node.attribute if a.name == name]
    return int(values[0]) if values else default


def place(node: onnx.NodeProto, index: int) -> str:
    """Return how messages name node number `index`."""
    return f"node {node.name or node.output[0] or index} ({node.op_type})"
