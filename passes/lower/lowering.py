"""Values on grids -> dialect operators: the walk that lowering and importing share.

A *float value* of the source graph is known by its `Quantized` twin once a grid stands on it.
`Lowering.lower` makes the twin of a value that a grid closes:

1. the graph input: QuantizeLinear.
2. An operator of `passes.lower.operators`.
3. Data movement of a tensor that has a grid, then, where the grids differ,
4. a change of grid.
5. Data movement of tensors without a grid, or of several grids: the grid moves before it, onto
   every tensor.
6. With `allow_float`, or where a file says so: any other operator, as a float island
   (`passes.lower.islands`).
Relu and Clip(c0, c1) before the grid narrow its window: lo = max(lo, rint(c0/s) + z),
hi = min(hi, rint(c1/s) + z).
Refuses any other operator, naming layer, operator and reason.
"""

import dataclasses

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from passes.graph import operand
from passes.lower.choose_grid import grid_after, grid_before, grid_of_all
from passes.lower.integer_builder import IntegerBuilder, Quantized
from passes.lower.islands import FLAG, build_island
from passes.lower.layers import LAYERS, has_integer_weight, layer_name
from passes.lower.moves import has_integer_form, is_move, lower_move, sources
from passes.lower.operators import ACTIVATIONS, OPERATORS
from passes.lower.site import Site
from passes.lower.tables import leaky
from qtool.core.dialect import Grid, ints, is_plain, label, require_plain, scalar, value_name
from qtool.core.errors import UnsupportedError
from qtool.core.grids import Window
from qtool.core.numerics import clip_code


class Lowering:
    """Maps float values to the integer tensors that stand for them.

    Args:
        notes: where given, tensors in float between two operators get a grid if
            `passes.lower.choose_grid` has one, and a sentence about each is appended.
        allow_float: what has no integer form becomes a float island.
        islands: names of results that are islands whatever computes them.
    """

    def __init__(
        self,
        notes: list[str] | None = None,
        allow_float: bool = False,
        islands: frozenset[str] = frozenset(),
    ) -> None:
        self.notes, self.allow_float, self.islands = notes, allow_float, islands
        self.built: set[ir.Value] = set()  # results of islands
        self.build = IntegerBuilder()
        self.quantized: dict[ir.Value, Quantized] = {}
        self.constants: dict[ir.Value, tuple[NDArray[np.uint8], Grid]] = {}

    def tensor(self, value: ir.Value, reader: ir.Node) -> Quantized:
        """Return the twin of `value`, which `reader` reads."""
        if value in self.constants:
            codes, grid = self.constants[value]
            return Quantized(self.build.constant(codes, str(value.name)), grid, 8)
        found = self.find(value)
        if found is None and self.notes is not None:
            found = self._choose(value)
        if found is None:
            raise UnsupportedError(
                f"layer {layer_name(reader)}: {reader.op_type} reads {value.name}, which is "
                "float"
            )
        return found

    def find(self, value: ir.Value) -> Quantized | None:
        """Return the twin of a value on the grid that reaches it, None where none does.

        Relu, Clip and movement of a tensor on a grid stay on that grid.
        """
        node = value.producer()
        if value in self.quantized or node is None or node.domain:
            return self.quantized.get(value)
        if node.op_type in ACTIVATIONS:
            twin = self._activation(node, value)
        elif is_move(node):
            if self.is_left_float(node):
                return None
            xs = [self.find(source) for source in sources(node)]
            known = [x for x in xs if x is not None]
            if not known or len(known) < len(xs) or len({x.grid for x in known}) > 1:
                return None
            twin = lower_move(self.build, node, known, f"{value_name(value)}/codes")
        else:
            return None
        if twin is not None:
            self.quantized[value] = twin
        return twin

    def _choose(self, value: ir.Value) -> Quantized | None:
        """Return the twin of a value on a grid made for it, None if its range is unknown."""
        node = value.producer()
        if node is None or node.domain:
            return None
        if node.op_type in ACTIVATIONS or (is_move(node) and len(sources(node)) == 1):
            source = operand(node, 0)
            return self.find(value) if self.find(source) or self._choose(source) else None
        read = sources(node) if is_move(node) else [operand(node, 0)]
        xs = [self.find(source) for source in read]
        known = [x for x in xs if x is not None]
        if not known or len(known) < len(xs):
            return None
        grids = [x.grid for x in known]
        grid = grid_of_all(grids) if is_move(node) else grid_after(node, grids[0])
        return None if grid is None else self._settle(value, grid)

    def _settle(self, value: ir.Value, grid: Grid) -> Quantized:
        """Put `value` on a grid that the file does not have."""
        if self.notes is not None:
            ends = [(code - grid.zero_point) * float(grid.scale) for code in (0, 255)]
            self.notes.append(
                f"tensor {value_name(value)} is float in the file; it gets 8 bits, "
                f"{ends[0]:.4g} to {ends[1]:.4g}, the range that the grids around it leave"
            )
        name, window = f"{value_name(value)}/codes", Window(grid.zero_point, 0, 255)
        self.quantized[value] = self.lower(value, grid, window, name, 8)
        return self.quantized[value]

    def _activation(self, node: ir.Node, value: ir.Value) -> Quantized | None:
        x = self.find(operand(node, 0))
        if x is None:
            return None
        window = _narrowed(node, x.grid, Window(x.grid.zero_point, 0, 255))
        self._note_bounds(node, x.grid)
        return self._on_grid(x, value, x.grid, window, f"{value_name(value)}/codes", x.bits)

    def _note_bounds(self, node: ir.Node, grid: Grid) -> None:
        """Say which bounds of a Clip lie between two values of `grid`."""
        for bound in _bounds(node) if self.notes is not None else ():
            code = 0 if bound is None else clip_code(bound, grid.scale, grid.zero_point)
            nearest = (code - grid.zero_point) * float(grid.scale)
            apart = bound is not None and abs(nearest - bound) > 1e-3 * float(grid.scale)
            if apart and 0 <= code <= 255 and self.notes is not None:
                self.notes.append(
                    f"tensor {value_name(node.outputs[0])} is cut off at {bound:.6g}, between "
                    f"two values of its grid; {nearest:.6g} is taken"
                )

    def move(self, node: ir.Node, name: str) -> Quantized:
        """Return the twin of a movement's result."""
        xs = [self.tensor(value, node) for value in sources(node)]
        return lower_move(self.build, node, xs, name)

    def lower(
        self, value: ir.Value, grid: Grid, window: Window, name: str, bits: int
    ) -> Quantized:
        """Return the twin of `value` on `grid`, called `name`."""
        core, window = _strip_activations(value, grid, window)
        if core.is_graph_input() and core not in self.quantized:
            codes = self.build.quantize(core, grid, window, name)
            return Quantized(codes, grid, bits, window)
        node = core.producer()
        found = self.find(core)
        if found is not None:
            return self._on_grid(found, core, grid, window, name, bits)
        if node is None:
            raise UnsupportedError(f"tensor {name}: quantizes a constant at run time")
        if name in self.islands or (self.allow_float and self._stays_float(node)):
            return self._island(core, grid, window, name, bits)
        if is_move(node):
            xs = [
                self.lower(source, grid, window, f"{name}/{index}", bits)
                for index, source in enumerate(sources(node))
            ]
            moved = lower_move(self.build, node, xs, name)
            if window.lo <= grid.zero_point <= window.hi:
                return moved
            # A Pad has put the code of 0 beside the window, where the bounds behind it bound.
            return self._on_grid(moved, core, grid, window, f"{name}/bounded", bits)
        if node.op_type not in OPERATORS:
            raise UnsupportedError(
                f"layer {layer_name(node)}: operator {node.op_type} has no integer form; it "
                f"would run in floating point ({FLAG})"
            )
        require_plain(node, f"layer {layer_name(node)}")
        build, indices = OPERATORS[node.op_type]
        source = operand(node, 0)
        before = None if self.notes is None else grid_before(node, grid)
        if before is not None and self.find(source) is None:
            self._settle(source, before)
        inputs = tuple(self.tensor(operand(node, index), node) for index in indices)
        site = Site(node, inputs, grid, window, name, node.outputs[0])
        return Quantized(build(self.build, site), grid, bits, window)

    def _island(
        self, core: ir.Value, grid: Grid, window: Window, name: str, bits: int
    ) -> Quantized:
        codes = build_island(self.build, core, self.find, grid, window, name)
        self.built.add(codes)
        return Quantized(codes, grid, bits)

    def is_island(self, twin: Quantized) -> bool:
        """True when `twin` is the result of a float island."""
        return twin.value in self.built

    def _stays_float(self, node: ir.Node) -> bool:
        """True for an operator that has no integer form, here at least.

        Integer weights stay: what is wrong with their layer must be heard.
        """
        if node.domain or (node.op_type not in OPERATORS and not is_move(node)):
            return True
        if is_move(node):
            return self.is_left_float(node)
        if node.op_type in LAYERS:
            return not has_integer_weight(node)
        _, indices = OPERATORS[node.op_type]
        reads = [operand(node, index) for index in indices]
        if any(self.find(v) is None and v not in self.constants for v in reads):
            return True
        return _is_exception(node) or not is_plain(node)

    def is_left_float(self, move: ir.Node) -> bool:
        """True for a movement that codes do not have and an island may hold."""
        return bool(self.allow_float or self.islands) and not has_integer_form(move)

    def _on_grid(
        self, x: Quantized, like: ir.Value, grid: Grid, window: Window, name: str, bits: int
    ) -> Quantized:
        """Return `x` itself where it is on `grid` already, else its change of grid."""
        if x.grid == grid and window.lo <= x.window.lo and x.window.hi <= window.hi:
            return dataclasses.replace(x, bits=bits)
        changed = leaky(self.build, x, like, grid, window, name)
        return Quantized(changed, grid, bits, window)


def _is_exception(node: ir.Node) -> bool:
    """True for forms of an operator whose other forms are integer."""
    if node.op_type == "BatchNormalization":
        shape = operand(node, 0).shape
        return shape is None or len(shape) != 4
    if node.op_type == "AveragePool":
        varies = any(ints(node, "pads", ())) and not node.attributes.get_int(
            "count_include_pad", 0
        )
        return varies
    return False


def _strip_activations(value: ir.Value, grid: Grid, window: Window) -> tuple[ir.Value, Window]:
    """Return what Relu and Clip read, and the window they leave."""
    node = value.producer()
    while node is not None and node.op_type in ACTIVATIONS and not node.domain:
        window = _narrowed(node, grid, window)
        value = operand(node, 0)
        node = value.producer()
    return value, window


def _narrowed(node: ir.Node, grid: Grid, window: Window) -> Window:
    """Return the part of `window` that Relu or Clip leaves."""
    lo, hi = window.lo, window.hi
    low, high = _bounds(node)
    if low is not None:
        lo = max(lo, min(clip_code(low, grid.scale, grid.zero_point), window.hi))
    if high is not None:
        hi = min(hi, max(clip_code(high, grid.scale, grid.zero_point), window.lo))
    return Window(window.zero_point, lo, hi)


def _bounds(node: ir.Node) -> tuple[float | None, float | None]:
    if node.op_type == "Relu":
        return 0.0, None
    what = f"{label(node)}: Clip bound"
    values = [*node.inputs[1:], None, None][:2]
    low, high = (None if v is None else float(scalar(v, what)) for v in values)
    if np.isnan([bound for bound in (low, high) if bound is not None]).any():
        raise UnsupportedError(f"{what} is no number")
    return low, high
