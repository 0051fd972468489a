"""ONNX in QDQ form -> integer dialect: files of `passes.emit.onnx.onnx_qdq` and others.

``DQ(Clip(Q([Relu|Clip](op(DQ(x), ...)))))`` -> the integer operator (`passes.lower.operators`)
on the grid of Q, exactly as runtimes fuse it; codes are read on the grid of each DQ.

1. uint8 activations as they are; int8 ones move up by 128, codes and zero points.
2. int8 weights with zero point 0, also packed ones; uint8 weights with zero point 128.
3. Data movement, between DQ and Q or on codes. 4. ``Gather(table, Cast(codes))``: a table.
5. DQ to the graph output. 6. The float islands that the file's metadata lists.
Refuses any other operator that would run in floating point, naming it, and weights that the
dialect does not hold; the model is then unchanged.
"""

import dataclasses
import json
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import InPlacePass, PassResult

from passes.conditions import ensure
from passes.graph import operand
from passes.lower.integer_builder import Quantized
from passes.lower.layer_operators import float_gemm, maker, mark
from passes.lower.layers import read_layer
from passes.lower.lowering import Lowering
from passes.lower.moves import is_move, lower_move, sources
from passes.lower.operators import ACTIVATIONS
from passes.lower.tables import gather
from passes.packing.packing import code_width, holds
from passes.twins import note_twins, output_of
from qtool.core.accumulator import Layer
from qtool.core.dialect import (
    BITS_KEY,
    ISLAND_KEY,
    ISLANDS_KEY,
    Grid,
    constant,
    label,
    require_ends,
    require_plain,
    scalar,
    value_name,
)
from qtool.core.errors import UnsupportedError, UserError
from qtool.core.grids import FLOAT_WIDTHS, FULL, WEIGHT_BITS, Window
from qtool.core.numerics import bias_scale
from qtool.core.selection import LayerBits
from qtool.core.weight_codes import narrowed


@dataclass(frozen=True)
class ImportQDQ(InPlacePass):
    """Fuse every DQ -> operator -> Q group into one integer operator.

    Args:
        notes: where given, `passes.lower.choose_grid` fills gaps between the file's grids,
            and a sentence about each is appended.
        allow_float: keep groups that have no integer form as float islands.
    """

    notes: list[str] | None = None
    allow_float: bool = False

    def call(self, model: ir.Model) -> PassResult:
        """Rewrite `model` in place."""
        if not any(_is_inside(node) for node in model.graph):
            return PassResult(model, False)
        importer = _Importer(model, self.notes, self.allow_float)
        for node in model.graph:
            importer.visit(node)
        outputs = [importer.output(value) for value in model.graph.outputs]
        note_twins(model, importer.twins(model))
        importer.walk.build.commit(model, outputs)
        return PassResult(model, True)

    def ensures(self, model: ir.Model) -> None:
        """Nothing is dequantized on the way."""
        left = (node for node in model.graph if _is_inside(node))
        ensure(self, (f"{label(node)} (DequantizeLinear) is left" for node in left))


def _is_inside(node: ir.Node) -> bool:
    """True for what the dialect dequantizes at its output and before islands alone."""
    return (
        node.op_type == "DequantizeLinear"
        and bool(node.outputs[0].uses())
        and ISLAND_KEY not in node.metadata_props
    )


class _Importer:
    """Maps the file's 8-bit tensors to the dialect's."""

    def __init__(self, model: ir.Model, notes: list[str] | None, allow_float: bool) -> None:
        require_ends(model)
        self.walk = Lowering(notes, allow_float, _read_islands(model))
        self.walk.build.reserve(model)
        self.bits = _read_bits(model)
        self.codes: dict[ir.Value, Quantized] = {}
        for value in model.graph.inputs:
            if value.dtype == ir.DataType.UINT8:
                self.codes[value] = Quantized(value, Grid(np.float32(1), 0), 8)

    def visit(self, node: ir.Node) -> None:
        if node.op_type == "QuantizeLinear":
            self._quantize(node)
        elif node.op_type == "DequantizeLinear":
            self._dequantize(node)
        elif is_move(node):
            self._move(node)
        elif node.op_type == "Gather":
            self._gather(node)

    def output(self, value: ir.Value) -> ir.Value:
        found = self.walk.find(value)
        if found is not None:
            return self.walk.build.dequantize(found, value)
        node = value.producer()
        if node is None or node.op_type not in ("Gemm", "MatMul"):
            if value in self.codes:
                raise UnsupportedError(
                    f"output {value.name} is codes without a grid; put DequantizeLinear behind"
                )
            last = "the input" if node is None else f"the float result of {node.op_type}"
            raise UnsupportedError(
                f"output {value.name} is {last}; only a linear layer's may stay float, others "
                "need a grid (--output-range LO,HI)"
            )
        x = self.walk.tensor(operand(node, 0), node)
        twin = float_gemm(self.walk.build, node, x, value)
        self._mark_layer(twin, node)
        return twin

    def twins(self, model: ir.Model) -> Iterator[tuple[str, str, Quantized]]:
        """Yield the file's quantized tensors, values and codes, with what they became."""
        outputs = set(model.graph.outputs) if output_of(model) else set()
        for value, twin in self.walk.quantized.items():
            node = value.producer()
            if value in outputs:  # the name is that of what was left out behind it
                continue
            if node is not None and node.op_type == "DequantizeLinear":
                yield "values", value_name(value), twin
        for value, twin in self.codes.items():
            if not any(usage.node.op_type == "Clip" for usage in value.uses()):
                yield "codes", value_name(value), twin

    def _quantize(self, node: ir.Node) -> None:
        """Lower the group that ends in `node`."""
        value = operand(node, 0)
        if constant(value) is not None:
            return  # a weight that is quantized when the file is loaded; its reader refuses it
        require_plain(node)
        result, window = _window(node)
        bits = (window.hi - window.lo).bit_length()
        name = value_name(result)
        twin = self.walk.lower(value, _grid(node), window, name, bits)
        core = value.producer()
        if core is not None:
            self._mark(twin, core)
        self.codes[result] = self.codes[node.outputs[0]] = twin

    def _mark(self, twin: Quantized, core: ir.Node) -> None:
        """State the bits of a layer: the file's, or as many as its codes need."""
        if self.walk.is_island(twin):
            self._mark_island(twin, (self.bits or {}).get(value_name(twin.value)))
            return
        while core.op_type in ACTIVATIONS:
            inner = operand(core, 0).producer()
            if inner is None:
                return
            core = inner
        if core.op_type in ("Conv", "Gemm", "MatMul"):
            self._mark_layer(twin.value, core, twin.grid)

    def _mark_layer(self, twin: ir.Value, core: ir.Node, grid: Grid | None = None) -> None:
        made = maker(twin)
        name = str(made.name) if made is not None else value_name(twin)
        if self.bits is not None and name not in self.bits:
            return
        x, layer = self.walk.tensor(operand(core, 0), core), read_layer(core, name)
        if grid is not None:
            self._note_bias(layer, x.grid, grid)
        weight, activation = (self.bits or {}).get(name, [code_width(layer.codes), x.bits])
        codes, _ = narrowed(layer.codes, weight)
        largest = int(np.abs(codes.astype(np.int16)).max(initial=0))
        if not holds(layer.codes, weight) and largest > 1 << (weight - 1):
            raise UserError(
                f"layer {name}: weights exceed the {weight} bits that the file states"
            )
        mark(twin, weight, activation)

    def _note_bias(self, layer: Layer, x: Grid, y: Grid) -> None:
        """Say where the int32 bias is so coarse that it moves the result."""
        if self.walk.notes is None:
            return
        unit = bias_scale(x.scale, layer.scale).astype(np.float64)
        bias = layer.bias.astype(np.float64)
        with np.errstate(all="ignore"):  # a channel that is off has next to no scale
            off = np.nan_to_num(np.abs(np.rint(bias / unit) * unit - bias)) / float(y.scale)
        if off.max(initial=0) > 0.5:
            channel = int(off.argmax())
            self.walk.notes.append(
                f"layer {layer.name}: the bias of channel {channel} is rounded to a multiple "
                f"of input scale * weight scale, {unit[channel]:.4g}, which moves its result "
                f"by {off[channel]:.3g} steps (ONNX Runtime's int32 bias does too)"
            )

    def _mark_island(self, twin: Quantized, pair: list[int] | None) -> None:
        if pair is None:
            return
        if not LayerBits(*pair).is_float:
            raise UserError(
                f"layer {value_name(twin.value)}: runs in floating point, but the file states "
                f"{pair[0]} bits"
            )
        mark(twin.value, *pair)

    def _dequantize(self, node: ir.Node) -> None:
        source, result = operand(node, 0), node.outputs[0]
        if source in self.codes:
            require_plain(node)
            twin = self.codes[source]
            self.walk.quantized[result] = Quantized(twin.value, _grid(node), twin.bits)
            return
        codes = constant(source)
        if codes is not None and codes.size == 1 and codes.dtype in (np.uint8, np.int8):
            require_plain(node)
            lifted = (codes.astype(np.int16) + _lift(codes.dtype)).astype(np.uint8)
            self.walk.constants[result] = (lifted, _grid(node))

    def _move(self, node: ir.Node) -> None:
        result, build = node.outputs[0], self.walk.build
        if all(value in self.codes for value in sources(node)):
            xs = [self.codes[value] for value in sources(node)]
            # A table's codes have no grid of their own: each DQ states what it reads.
            xs = [dataclasses.replace(x, grid=xs[0].grid) for x in xs]
            lift = 128 if sources(node)[0].dtype == ir.DataType.INT8 else 0
            self.codes[result] = lower_move(build, node, xs, value_name(result), lift)
        else:
            self.walk.find(result)

    def _gather(self, node: ir.Node) -> None:
        cast, table = operand(node, 1).producer(), constant(node.inputs[0])
        source = None if cast is None or cast.op_type != "Cast" else operand(cast, 0)
        if table is None or source is None or source not in self.codes:
            return  # constants being unpacked, or nothing that integers reach
        if source.dtype == ir.DataType.INT8:  # -128 to -1 count from the end
            table = np.roll(table, 128)
        result, x = node.outputs[0], self.codes[source]
        twin = gather(self.walk.build, value_name(result), x.value, table, result)
        self.codes[result] = Quantized(twin, x.grid, 8)


def _window(node: ir.Node) -> tuple[ir.Value, Window]:
    """Return the tensor behind Q and its clip, and the window in uint8 codes."""
    result = node.outputs[0]
    users = [usage.node for usage in result.uses()]
    if len(users) == 1 and users[0].op_type == "Clip":
        clip = users[0]
        bounds = [scalar(operand(clip, i), f"Clip behind {result.name}") for i in (1, 2)]
        lo, hi = (int(bound) + _lift(bound.dtype) for bound in bounds)
        return clip.outputs[0], Window(0, lo, hi)
    return result, FULL


def _lift(kind: np.dtype[np.generic]) -> int:
    """Return how far codes of this type move up to become uint8."""
    return 128 if kind == np.int8 else 0


def _grid(node: ir.Node) -> Grid:
    """Return the uint8 grid of a QuantizeLinear or DequantizeLinear node."""
    name = value_name(node.outputs[0])
    scale = scalar(node.inputs[1], f"scale of {name}")
    if len(node.inputs) < 3 or node.inputs[2] is None:
        # The specification's default: 0, of the codes' type.
        zero_point = np.zeros((), _codes_type(node))[()]
    else:
        zero_point = scalar(node.inputs[2], f"zero point of {name}")
    if zero_point.dtype not in (np.uint8, np.int8):
        raise UnsupportedError(
            f"tensor {value_name(node.inputs[0])}: {zero_point.dtype}; uint8 and int8 are "
            "supported"
        )
    return Grid(np.float32(scale), int(zero_point) + _lift(zero_point.dtype))


def _codes_type(node: ir.Node) -> np.dtype[np.generic]:
    """Return the type of the codes that a node without a zero point makes or reads."""
    codes = node.inputs[0] if node.op_type == "DequantizeLinear" else node.outputs[0]
    if codes is None or codes.dtype is None:
        raise UnsupportedError(f"{label(node)}: the type of its codes is not known")
    return codes.dtype.numpy()


_BITS = (*WEIGHT_BITS, *FLOAT_WIDTHS)


def _read_islands(model: ir.Model) -> frozenset[str]:
    """Return the results that the file says are float islands."""
    text = model.metadata_props.get(ISLANDS_KEY, "[]")
    try:
        names = json.loads(text)
        if isinstance(names, list) and all(isinstance(name, str) for name in names):
            return frozenset(names)
    except (ValueError, RecursionError):
        pass
    raise UserError(f"the file's {ISLANDS_KEY} metadata is damaged: {text[:60]!r}")


def _read_bits(model: ir.Model) -> dict[str, list[int]] | None:
    """Return the layers' bits, None for a file of another tool."""
    if BITS_KEY not in model.metadata_props:
        return None
    text = model.metadata_props[BITS_KEY]
    try:
        value: dict[str, list[int]] = json.loads(text)
        if all(
            len(pair) == 2 and all(type(b) is int and b in _BITS for b in pair)
            for pair in value.values()
        ):
            return value
    except (ValueError, TypeError, AttributeError, RecursionError):
        pass
    raise UserError(f"the file's {BITS_KEY} metadata is damaged: {text[:60]!r}")
