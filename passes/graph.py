"""Small helpers on `onnx_ir` graphs that several passes share."""

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from qtool.core.dialect import Grid, constant, label
from qtool.core.errors import UnsupportedError
from qtool.core.grids import MIN_STEP, Window, activation_window

QTOOL = "qtool"
LAYER_KEY = "qtool.layer"


@dataclass(frozen=True)
class FakeQuant:
    """Typed view of a ``qtool::FakeQuant`` node; `steps` is (candidates, channels).

    `zero_points` has one entry a candidate, or none where all are the windows' usual ones.
    `keeps`: it has its first candidate whatever a selection's default asks.
    """

    node: ir.Node
    name: str
    role: str
    bits: tuple[int, ...]
    signed: bool
    zero_points: tuple[int, ...]
    steps: NDArray[np.float32]
    scheme: str
    keeps: bool = False

    @property
    def source(self) -> ir.Value:
        """The tensor it quantizes."""
        return operand(self.node, 0)

    @property
    def plain(self) -> ir.Value:
        """The tensor as it is where it is not quantized."""
        return operand(self.node, 2 if len(self.node.inputs) > 2 else 0)

    @property
    def grid(self) -> Grid:
        """Grid of the first candidate; the same float32 |step| that training divided by."""
        step = np.float32(max(abs(float(self.steps[0, 0])), MIN_STEP))
        return Grid(step, self.window.zero_point)

    @property
    def window(self) -> Window:
        """Window of the first candidate."""
        zero_point = self.zero_points[0] if self.zero_points else None
        return activation_window(self.bits[0], self.signed, zero_point)


def as_fake_quant(node: ir.Node | None) -> FakeQuant | None:
    """Return the typed view of `node`, None when it is another operator."""
    if node is None or node.domain != QTOOL or node.op_type != "FakeQuant":
        return None
    attributes, steps = node.attributes, constant(node.inputs[1])
    name = attributes.get_string("name", "")
    if steps is None:
        raise UnsupportedError(f"FakeQuant {name}: its steps are not constant")
    return FakeQuant(
        node, name, attributes.get_string("role", ""), tuple(attributes.get_ints("bits", ())),
        bool(attributes.get_int("signed", 0)), tuple(attributes.get_ints("zero_points", ())),
        steps, attributes.get_string("scheme", "symmetric"),
        bool(attributes.get_int("keeps", 0)),
    )  # fmt: skip


def fake_quants(model: ir.Model) -> list[FakeQuant]:
    """Return every FakeQuant node in graph order."""
    views = (as_fake_quant(node) for node in model.graph)
    return [view for view in views if view is not None]


def operand(node: ir.Node, index: int) -> ir.Value:
    """Return input `index`, which must be present."""
    value = node.inputs[index] if index < len(node.inputs) else None
    if value is None:
        raise UnsupportedError(f"{label(node)} ({node.op_type}): input {index} is missing")
    return value


def add_constant(graph: ir.Graph, name: str, array: NDArray[Any]) -> ir.Value:
    """Register `array` as initializer `name`, or a numbered variant if the name is taken."""
    value = make_constant(fresh_name(graph, name), array)
    graph.register_initializer(value)
    return value


def fresh_name(graph: ir.Graph, name: str) -> str:
    """Return `name`, numbered where a tensor of `graph`, perhaps the user's, is called so."""
    taken = _NAMES.get(graph)
    if taken is None:
        results = (value for node in graph for value in node.outputs)
        taken = _NAMES[graph] = {str(value.name) for value in (*graph.inputs, *results)}
    return numbered(name, lambda fresh: fresh in graph.initializers or fresh in taken)


def forget_names(graph: ir.Graph) -> None:
    """Look at the names of `graph` again: other nodes are in it now."""
    _NAMES.pop(graph, None)


# The names of a graph's input and results. Kept, because looking at all of them for each
# constant takes longer the larger the graph is; passes take names over and derive new ones,
# so that none of the user's is missing here.
_NAMES: WeakKeyDictionary[ir.Graph, set[str]] = WeakKeyDictionary()


def numbered(name: str, is_taken: Callable[[str], bool]) -> str:
    """Return the first of ``name, name_1, name_2, ...`` that is not taken."""
    fresh, number = name, 1
    while is_taken(fresh):
        fresh, number = f"{name}_{number}", number + 1
    return fresh


def make_constant(name: str, array: NDArray[Any]) -> ir.Value:
    """Return `array` as a constant that no graph owns yet."""
    # ir.tensor would ask first whether it is some other library's tensor, which takes longer
    # than all the rest of a pass.
    tensor = ir.Tensor(array, dtype=ir.DataType.from_numpy(array.dtype), name=name)
    return ir.Value(
        name=name,
        const_value=tensor,
        type=ir.TensorType(tensor.dtype),
        shape=ir.Shape(tensor.shape.numpy()),
    )


def drop_unused_constants(graph: ir.Graph) -> None:
    """Remove initializers that no node reads."""
    for name in [name for name, value in graph.initializers.items() if not value.uses()]:
        del graph.initializers[name]


def replace_node(old: ir.Node, new: ir.Node) -> None:
    """Put `new` where `old` is; its first output takes over the name, type, shape and uses."""
    graph = old.graph
    if graph is None:
        raise ValueError(f"{old.name} is in no graph")
    before, after = old.outputs[0], new.outputs[0]
    after.type, after.shape = before.type, before.shape
    ir.convenience.replace_nodes_and_values(graph, old, [old], [new], [before], [after])


@contextmanager
def collection_paused() -> Iterator[None]:
    """Run a block without the cyclic garbage collector.

    A graph is many small objects that stay: the collector looks at all of them again and
    again, which makes the time of a pass grow faster than its graph.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
