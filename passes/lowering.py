"""Values on grids -> dialect operators: the walk that lowering and importing share.

A *float value* of the source graph is known by its `Quantized` twin once a grid stands on it.
`Lowering.lower` makes the twin of a value that a grid closes:

1. the graph input: QuantizeLinear. 2. An operator of `passes.operators`. 3. Data movement of a
tensor that has a grid, then, where the grids differ, a change of grid.
4. With `allow_float`, or where a file says so: any other operator as a float island
(`passes.islands`).
Relu and Clip(c0, c1) before the grid narrow its window: lo = max(lo, rint(c0/s) + z),
hi = min(hi, rint(c1/s) + z).
Refuses any other operator, naming layer, operator and reason.
"""

import numpy as np
import onnx_ir as ir

from passes.graph import operand
from passes.integer_builder import IntegerBuilder, Quantized
from passes.islands import FLAG, build_island
from passes.layers import LAYERS, has_integer_weight, layer_name
from passes.moves import is_move, lower_move, sources
from passes.operators import ACTIVATIONS, OPERATORS, Site, leaky
from qtool.dialect import Grid, ints, scalar
from qtool.errors import UnsupportedError
from qtool.numerics import clip_code
from qtool.qspec import Window


class Lowering:
    """Maps float values to the integer tensors that stand for them.

    Args:
        allow_float: what has no integer form becomes a float island.
        islands: names of results that are islands whatever computes them.
    """

    def __init__(
        self, allow_float: bool = False, islands: frozenset[str] = frozenset()
    ) -> None:
        self.allow_float, self.islands = allow_float, islands
        self.floats: set[ir.Value] = set()  # results of movements that codes do not have
        self.built: set[ir.Value] = set()  # results of islands
        self.build = IntegerBuilder()
        self.quantized: dict[ir.Value, Quantized] = {}
        self.constants: dict[ir.Value, tuple[np.uint8, Grid]] = {}

    def tensor(self, value: ir.Value, reader: ir.Node) -> Quantized:
        """Return the twin of `value`, which `reader` reads."""
        if value in self.constants:
            code, grid = self.constants[value]
            return Quantized(self.build.constant(code, f"u{code}"), grid, 8)
        if value not in self.quantized:
            raise UnsupportedError(
                f"layer {layer_name(reader)}: {reader.op_type} reads {value.name}, which is "
                "float"
            )
        return self.quantized[value]

    def move(self, node: ir.Node, name: str) -> Quantized:
        """Return the twin of a movement's result."""
        xs = [self.tensor(value, node) for value in sources(node)]
        return lower_move(self.build, node, xs, name)

    def leave(self, node: ir.Node, error: UnsupportedError) -> None:
        """Leave a movement that was refused to an island, or refuse it."""
        if not (self.allow_float or self.islands):
            raise error
        self.floats.add(node.outputs[0])

    def lower(
        self, value: ir.Value, grid: Grid, window: Window, name: str, bits: int
    ) -> Quantized:
        """Return the twin of `value` on `grid`, called `name`."""
        core, window = _strip_activations(value, grid, window)
        if core.is_graph_input() and core not in self.quantized:
            return Quantized(self.build.quantize(core, grid, window, name), grid, bits)
        node = core.producer()
        if core in self.quantized:
            return self._on_grid(self.quantized[core], core, grid, window, name, bits)
        if node is None:
            raise UnsupportedError(f"tensor {name}: quantizes a constant at run time")
        if name in self.islands or (self.allow_float and self._stays_float(node, core)):
            return self._island(core, grid, window, name, bits)
        if is_move(node):
            moved = self.move(node, f"{name}/{node.op_type.lower()}")
            return self._on_grid(moved, core, grid, window, name, bits)
        if node.op_type not in OPERATORS:
            raise UnsupportedError(
                f"layer {layer_name(node)}: operator {node.op_type} has no integer form; it "
                f"would run in floating point ({FLAG})"
            )
        build, indices = OPERATORS[node.op_type]
        inputs = tuple(self.tensor(operand(node, index), node) for index in indices)
        site = Site(node, inputs, grid, window, name, node.outputs[0])
        return Quantized(build(self.build, site), grid, bits)

    def _island(
        self, core: ir.Value, grid: Grid, window: Window, name: str, bits: int
    ) -> Quantized:
        codes = build_island(self.build, core, self.quantized, grid, window, name)
        self.built.add(codes)
        return Quantized(codes, grid, bits)

    def is_island(self, twin: Quantized) -> bool:
        """True when `twin` is the result of a float island."""
        return twin.value in self.built

    def _stays_float(self, node: ir.Node, result: ir.Value) -> bool:
        """True for an operator that has no integer form, here at least.

        Integer weights stay: what is wrong with their layer must be heard.
        """
        if node.domain or (node.op_type not in OPERATORS and not is_move(node)):
            return True
        if is_move(node):
            known = all(value in self.quantized for value in sources(node))
            return result in self.floats or not known
        if node.op_type in LAYERS:
            return not has_integer_weight(node)
        _, indices = OPERATORS[node.op_type]
        reads = [operand(node, index) for index in indices]
        if any(v not in self.quantized and v not in self.constants for v in reads):
            return True
        return _is_exception(node)

    def _on_grid(
        self, x: Quantized, like: ir.Value, grid: Grid, window: Window, name: str, bits: int
    ) -> Quantized:
        """Return `x` itself where it is on `grid` already, else its change of grid."""
        if x.grid == grid and window.full:
            return x
        changed = leaky(self.build, x, like, grid, window, name)
        return Quantized(changed, grid, bits)


def _is_exception(node: ir.Node) -> bool:
    """True for forms of an operator whose other forms are integer."""
    if node.op_type == "BatchNormalization":
        shape = operand(node, 0).shape
        return shape is None or len(shape) != 4
    if node.op_type == "AveragePool":
        varies = any(ints(node, "pads", ())) and not node.attributes.get_int(
            "count_include_pad", 0
        )
        return varies or bool(node.attributes.get_int("ceil_mode", 0))
    return False


def _strip_activations(value: ir.Value, grid: Grid, window: Window) -> tuple[ir.Value, Window]:
    """Return what Relu and Clip read, and the window they leave."""
    lo, hi = window.lo, window.hi
    node = value.producer()
    while node is not None and node.op_type in ACTIVATIONS and not node.domain:
        low, high = _bounds(node)
        if low is not None:
            lo = max(lo, min(clip_code(low, grid.scale, grid.zero_point), window.hi))
        if high is not None:
            hi = min(hi, max(clip_code(high, grid.scale, grid.zero_point), window.lo))
        value = operand(node, 0)
        node = value.producer()
    return value, Window(window.zero_point, lo, hi)


def _bounds(node: ir.Node) -> tuple[float | None, float | None]:
    if node.op_type == "Relu":
        return 0.0, None
    what = f"node {node.name}: Clip bound"
    values = [*node.inputs[1:], None, None][:2]
    low, high = (None if v is None else float(scalar(v, what)) for v in values)
    return low, high
