"""What the dialect reads off `onnx_ir` nodes: constants, attributes, static shapes."""

from typing import Any

import onnx_ir as ir
from numpy.typing import NDArray

from qtool.core.errors import UnsupportedError

MS = "com.microsoft"
WEIGHT_BITS_KEY = "qtool.weight_bits"
ACTIVATION_BITS_KEY = "qtool.activation_bits"
# Metadata of a file: {layer: [weight bits, activation bits]}, which containers do not show.
BITS_KEY = "qtool.bits"
# Metadata of a node in a float island: the island's name; of a file: the list of its islands.
ISLAND_KEY = "qtool.island"
ISLANDS_KEY = "qtool.islands"


def constant(value: ir.Value | None) -> NDArray[Any] | None:
    """Return the array of an initializer or Constant node, None if `value` is computed."""
    if value is None or value.is_graph_input():
        return None
    tensor = ir.convenience.get_const_tensor(value)
    return None if tensor is None else tensor.numpy()


def scalar(value: ir.Value | None, what: str) -> Any:
    """Return a constant of one element as a numpy scalar."""
    array = constant(value)
    if array is None or array.size != 1:
        raise UnsupportedError(f"{what}: expected a constant scalar")
    return array.reshape(())[()]


def label(node: ir.Node) -> str:
    """Return how messages name a node: many files give their nodes no names."""
    return f"node {node.name or (value_name(node.outputs[0]) if node.outputs else '?')}"


def ints(node: ir.Node, name: str, default: tuple[int, ...]) -> Any:
    """Return an INTS attribute as a tuple."""
    return tuple(node.attributes.get_ints(name, default))


def static_shape(value: ir.Value | None) -> tuple[int, ...]:
    """Return the shape of `value` without its batch dimension.

    Raises:
        UnsupportedError: unknown or symbolic dimensions other than the batch.
    """
    shape = value.shape if value is not None else None
    if shape is None or any(not isinstance(n, int) for n in list(shape)[1:]):
        raise UnsupportedError(f"tensor {value_name(value)}: shape {shape} is not static")
    return tuple(int(n) for n in list(shape)[1:])  # type: ignore[arg-type]


def value_name(value: ir.Value | None) -> str:
    """Return the tensor's name, "?" where it has none."""
    return "?" if value is None or value.name is None else value.name
