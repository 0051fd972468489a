"""Fake-quantized float graph -> integer dialect, without floats from input Q to output DQ.

Each FakeQuant with the operators it closes becomes one integer operator on its grid (scale s,
zero point z, window [lo, hi]):

1. FakeQuant(input): QuantizeLinear.
2. FakeQuant([Relu|Clip](Conv(x, W, b))): QLinearConv, bias in int32 units of xs * ws.
3. FakeQuant(Gemm): QGemm. 4. FakeQuant(Add): QLinearAdd.
5. FakeQuant(GlobalAveragePool): QLinearGlobalAveragePool.
6. FakeQuant of a tensor that already has a grid: a change of grid (QLinearLeakyRelu, alpha 1).
7. Flatten, MaxPool: the same operator on codes.
8. Graph output: DequantizeLinear.
Relu and Clip(c0, c1) narrow the window: lo = max(lo, rint(c0/s) + z), hi = min(hi, rint(c1/s)
+ z).
Refuses any other operator, naming layer, operator and reason.
"""

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import InPlacePass, PassResult

from passes.graph import LAYER_KEY, QTOOL, FakeQuant, as_fake_quant, finish_dialect, operand
from passes.integer_builder import IntegerBuilder, Layer, Quantized, conv_attributes
from passes.quantize_glue import MOVES, layer_name
from qtool.dialect import (
    WEIGHT_BITS_KEY,
    Grid,
    constant,
    require_plain,
    scalar,
)
from qtool.errors import UnsupportedError
from qtool.numerics import clip_code
from qtool.qspec import Window, activation_window


@dataclass(frozen=True)
class LowerToInteger(InPlacePass):
    """Replace the whole float graph by its integer twin."""

    def call(self, model: ir.Model) -> PassResult:
        """Rewrite `model` in place; a model that is refused is left with stray nodes."""
        if not any(as_fake_quant(node) for node in model.graph):
            return PassResult(model, False)
        lowering = _Lowering(model.graph)
        old = list(model.graph)
        finish_dialect(model, old, lowering.run(old))
        model.opset_imports.pop(QTOOL, None)
        return PassResult(model, True)


class _Lowering:
    """Maps float values to the integer tensors that stand for them."""

    def __init__(self, graph: ir.Graph) -> None:
        self.graph = graph
        self.build = IntegerBuilder(graph)
        self.quantized: dict[ir.Value, Quantized] = {}

    def run(self, nodes: list[ir.Node]) -> list[ir.Value]:
        for node in nodes:
            view = as_fake_quant(node)
            if view is not None and view.role != "weight":
                self._lower(view)
            elif node.op_type in MOVES and operand(node, 0) in self.quantized:
                self._move(node)
        return [self._output(value) for value in self.graph.outputs]

    def _output(self, value: ir.Value) -> ir.Value:
        if value not in self.quantized:
            raise UnsupportedError(
                f"output {value.name}: no grid reaches it; it would stay float"
            )
        return self.build.dequantize(self.quantized[value], value)

    def _move(self, node: ir.Node) -> None:
        x = self.quantized[operand(node, 0)]
        if node.op_type == "Identity":
            self.quantized[node.outputs[0]] = x
            return
        moved = self.build.move(node, x, f"{x.value.name}/{node.op_type.lower()}")
        self.quantized[node.outputs[0]] = Quantized(moved, x.grid, x.bits)

    def _lower(self, view: FakeQuant) -> None:
        window = activation_window(view.bits[0], view.signed)
        step = np.float32(max(abs(float(view.steps[0, 0])), 1e-7))
        grid = Grid(step, window.zero_point)
        core, window = _strip_activations(view.source, grid, window)
        result = self._core(view, core, grid, window)
        self.quantized[view.node.outputs[0]] = Quantized(result, grid, view.bits[0])

    def _core(self, view: FakeQuant, value: ir.Value, grid: Grid, window: Window) -> ir.Value:
        # A glue tensor has its own name; a layer's input is called after its reader.
        is_input = view.role == "activation"
        name = f"{view.name}/input" if is_input else view.name.removeprefix("glue_")
        if value in self.quantized:
            return self.build.rescale(self.quantized[value], grid, window, value, name)
        if value.is_graph_input():
            return self.build.quantize(value, grid, window, f"{value.name}/codes")
        node = value.producer()
        if node is None:
            raise UnsupportedError(f"{name}: quantizes a constant activation")
        if node.op_type == "Conv":
            return self._conv(node, grid, window)
        if node.op_type == "Gemm":
            return self._gemm(node, grid, window)
        if node.op_type == "Add":
            a, b = self._input(node, 0), self._input(node, 1)
            _refuse_broadcast(node)
            return self.build.add(a, b, grid, window, value, name)
        if node.op_type == "GlobalAveragePool":
            return self.build.average(self._input(node, 0), grid, window, value, name)
        raise UnsupportedError(
            f"layer {layer_name(node)}: operator {node.op_type} has no integer form; it would "
            "run in floating point"
        )

    def _input(self, node: ir.Node, index: int) -> Quantized:
        value = operand(node, index)
        if value not in self.quantized:
            raise UnsupportedError(
                f"layer {layer_name(node)}: {node.op_type} reads {value.name}, which is float"
            )
        return self.quantized[value]

    def _layer(self, node: ir.Node) -> Layer:
        weight = operand(node, 1).producer()
        if weight is None or LAYER_KEY not in weight.metadata_props:
            raise UnsupportedError(f"layer {node.name}: {node.op_type} has float weights")
        codes, scale = constant(weight.inputs[0]), constant(weight.inputs[1])
        bias = constant(node.inputs[2]) if len(node.inputs) > 2 else None
        if codes is None or scale is None:
            raise UnsupportedError(f"layer {node.name}: weights are computed at run time")
        return Layer(
            weight.metadata_props[LAYER_KEY], codes.astype(np.int8), scale,
            np.zeros(len(scale), np.float32) if bias is None else bias,
            int(weight.metadata_props[WEIGHT_BITS_KEY]),
        )  # fmt: skip

    def _conv(self, node: ir.Node, grid: Grid, window: Window) -> ir.Value:
        require_plain(node, f"layer {layer_name(node)}")
        return self.build.conv(
            self._input(node, 0), self._layer(node), grid, window, node.outputs[0],
            conv_attributes(node),
        )  # fmt: skip

    def _gemm(self, node: ir.Node, grid: Grid, window: Window) -> ir.Value:
        require_plain(node, f"layer {layer_name(node)}")
        layer = self._layer(node)
        return self.build.gemm(self._input(node, 0), layer, grid, window, node.outputs[0])


def _strip_activations(value: ir.Value, grid: Grid, window: Window) -> tuple[ir.Value, Window]:
    """Return what Relu and Clip read, and the window they leave."""
    lo, hi = window.lo, window.hi
    node = value.producer()
    while node is not None and node.op_type in ("Relu", "Clip") and not node.domain:
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


def _refuse_broadcast(node: ir.Node) -> None:
    shapes = {str(operand(node, i).shape) for i in (0, 1)}
    if len(shapes) != 1:
        raise UnsupportedError(
            f"layer {layer_name(node)}: Add of different shapes {' and '.join(sorted(shapes))}"
        )
