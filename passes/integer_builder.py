"""Builds nodes of the integer dialect; what lowering and importing have in common.

A `Quantized` is a uint8 tensor with its grid. Every builder method appends one operator, and a
Clip behind it where the window is narrower than the container.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from passes.graph import add_constant
from qtool.dialect import (
    ACTIVATION_BITS_KEY,
    MS,
    WEIGHT_BITS_KEY,
    Grid,
    ints,
    require_plain,
    static_shape,
)
from qtool.errors import UnsupportedError
from qtool.numerics import average_factor, bias_scale, quantize_bias
from qtool.qspec import Window

INT32_MAX = 2**31 - 1
BIAS_MAX = 2**30
# 2^31 / (2 * 255), rounded down: sums of two scaled codes stay inside int32.
ADD_RATIO_MAX = 2**22


@dataclass(frozen=True)
class Quantized:
    """A uint8 tensor and the grid of its codes; `bits` is its width as an activation."""

    value: ir.Value
    grid: Grid
    bits: int


@dataclass(frozen=True)
class Layer:
    """Constants of a convolution or linear layer after BatchNorm folding."""

    name: str
    codes: NDArray[np.int8]
    scale: NDArray[np.float32]
    bias: NDArray[Any]
    bits: int


def conv_attributes(node: ir.Node) -> dict[str, Any]:
    """Return the attributes of a Conv that its integer twin keeps."""
    names = ("kernel_shape", "strides", "pads", "dilations")
    kept: dict[str, Any] = {name: list(v) for name in names if (v := ints(node, name, ()))}
    return kept | {"group": node.attributes.get_int("group", 1)}


class IntegerBuilder:
    """Appends dialect nodes to `graph`, sharing equal constants."""

    def __init__(self, graph: ir.Graph) -> None:
        self.graph = graph
        self._shared: dict[tuple[str, bytes], ir.Value] = {}

    def constant(self, array: Any, name: str) -> ir.Value:
        """Return an initializer with this content, the same one for the same content."""
        array = np.asarray(array)
        key = (f"{array.dtype}{array.shape}", array.tobytes())
        if key not in self._shared:
            self._shared[key] = add_constant(self.graph, name, array)
        return self._shared[key]

    def _grid(self, grid: Grid) -> tuple[ir.Value, ir.Value]:
        scale = self.constant(np.float32(grid.scale), f"s{len(self._shared)}")
        return scale, self.constant(np.uint8(grid.zero_point), f"z{grid.zero_point}")

    def _emit(
        self,
        op_type: str,
        inputs: Sequence[ir.Value | None],
        name: str,
        like: ir.Value,
        window: Window,
        domain: str = "",
        attributes: dict[str, Any] | None = None,
    ) -> ir.Value:
        """Append the operator and its clip; the result is `name`, shaped like `like`."""
        node = ir.node(op_type, inputs, attributes or {}, domain=domain, name=name)
        self.graph.append(node)
        result = _describe(node.outputs[0], name if window.full else f"{name}/wide", like)
        if window.full:
            return result
        bounds = [self.constant(np.uint8(b), f"u{b}") for b in (window.lo, window.hi)]
        clip = ir.node("Clip", [result, *bounds], name=f"{name}/clip")
        self.graph.append(clip)
        return _describe(clip.outputs[0], name, like)

    def quantize(self, x: ir.Value, grid: Grid, window: Window, name: str) -> ir.Value:
        """QuantizeLinear of the float input."""
        return self._emit("QuantizeLinear", [x, *self._grid(grid)], name, x, window)

    def dequantize(self, x: Quantized, like: ir.Value) -> ir.Value:
        """DequantizeLinear to the float output."""
        node = ir.node("DequantizeLinear", [x.value, *self._grid(x.grid)], name="output")
        self.graph.append(node)
        result = node.outputs[0]
        result.name, result.shape, result.type = like.name, like.shape, like.type
        return result

    def conv(
        self,
        x: Quantized,
        layer: Layer,
        grid: Grid,
        window: Window,
        like: ir.Value,
        attributes: dict[str, Any],
    ) -> ir.Value:
        """QLinearConv."""
        layer = fit_accumulator(layer, x.grid.scale)
        inputs = [
            x.value, *self._grid(x.grid), *self._weight(layer), *self._grid(grid),
            self._bias(x, layer),
        ]  # fmt: skip
        result = self._emit("QLinearConv", inputs, layer.name, like, window, "", attributes)
        return self._mark(result, layer, x)

    def gemm(
        self, x: Quantized, layer: Layer, grid: Grid, window: Window, like: ir.Value
    ) -> ir.Value:
        """com.microsoft QGemm with the weight as (outputs, inputs)."""
        layer = fit_accumulator(layer, x.grid.scale)
        inputs = [
            x.value, *self._grid(x.grid), *self._weight(layer), self._bias(x, layer),
            *self._grid(grid),
        ]  # fmt: skip
        attributes = {"transB": 1, "alpha": 1.0}
        result = self._emit("QGemm", inputs, layer.name, like, window, MS, attributes)
        return self._mark(result, layer, x)

    def add(
        self, a: Quantized, b: Quantized, grid: Grid, window: Window, like: ir.Value, name: str
    ) -> ir.Value:
        """com.microsoft QLinearAdd."""
        _check_add(a.grid, b.grid, grid, like, name)
        inputs = [
            a.value,
            *self._grid(a.grid),
            b.value,
            *self._grid(b.grid),
            *self._grid(grid),
        ]
        return self._emit("QLinearAdd", inputs, name, like, window, MS)

    def average(
        self, x: Quantized, grid: Grid, window: Window, like: ir.Value, name: str
    ) -> ir.Value:
        """com.microsoft QLinearGlobalAveragePool."""
        _check_average(x, grid, name)
        inputs = [x.value, *self._grid(x.grid), *self._grid(grid)]
        attributes = {"channels_last": 0}
        return self._emit(
            "QLinearGlobalAveragePool", inputs, name, like, window, MS, attributes
        )

    def rescale(
        self, x: Quantized, grid: Grid, window: Window, like: ir.Value, name: str
    ) -> ir.Value:
        """com.microsoft QLinearLeakyRelu with alpha 1: a table look-up from grid to grid."""
        inputs = [x.value, *self._grid(x.grid), *self._grid(grid)]
        return self._emit("QLinearLeakyRelu", inputs, name, like, window, MS, {"alpha": 1.0})

    def move(self, node: ir.Node, x: Quantized, name: str) -> ir.Value:
        """The same data movement on codes."""
        require_plain(node, f"tensor {name}")
        attributes = {k: v for k, v in node.attributes.items() if k != "auto_pad"}
        new = ir.Node("", node.op_type, [x.value], list(attributes.values()), name=name)
        self.graph.append(new)
        return _describe(new.outputs[0], name, node.outputs[0])

    def _weight(self, layer: Layer) -> list[ir.Value]:
        return [
            add_constant(self.graph, f"{layer.name}.weight", layer.codes),
            add_constant(self.graph, f"{layer.name}.weight_scale", layer.scale),
            self.constant(np.zeros(len(layer.scale), np.int8), f"zeros{len(layer.scale)}"),
        ]

    def _bias(self, x: Quantized, layer: Layer) -> ir.Value:
        """int32 bias in units of xs * ws."""
        bias = quantize_bias(layer.bias.astype(np.float64), x.grid.scale, layer.scale)
        return add_constant(self.graph, f"{layer.name}.bias", bias.astype(np.int32))

    def _mark(self, result: ir.Value, layer: Layer, x: Quantized) -> ir.Value:
        node = result.producer()
        if node is not None and node.op_type == "Clip" and node.inputs[0] is not None:
            node = node.inputs[0].producer()
        if node is not None:
            node.metadata_props[WEIGHT_BITS_KEY] = str(layer.bits)
            node.metadata_props[ACTIVATION_BITS_KEY] = str(x.bits)
        return result


def _check_add(a: Grid, b: Grid, y: Grid, like: ir.Value, name: str) -> None:
    """Refuse what ONNX Runtime's QLinearAdd computes by another formula."""
    if int(np.prod(static_shape(like))) == 1:
        raise UnsupportedError(
            f"tensor {name}: Add of one-element tensors; ONNX Runtime swaps their operands"
        )
    ratio = max(a.scale / y.scale, b.scale / y.scale)
    if ratio >= ADD_RATIO_MAX:
        raise UnsupportedError(
            f"tensor {name}: Add onto a grid {ratio:.3g} times finer than its input's; ONNX "
            f"Runtime's int32 overflows from {ADD_RATIO_MAX}"
        )


def _check_average(x: Quantized, y: Grid, name: str) -> None:
    """Refuse factors that ONNX Runtime's QLinearGlobalAveragePool rejects when it runs."""
    _, height, width = static_shape(x.value)
    factor = average_factor(x.grid.scale, y.scale, height * width)
    if not 2**-32 < factor < 256:
        raise UnsupportedError(
            f"tensor {name}: average with factor {factor:.3g}; ONNX Runtime takes 2^-32 to 256"
        )


def fit_accumulator(layer: Layer, x_scale: np.float32) -> Layer:
    """Return `layer` with every channel's bias and sums inside the int32 accumulator.

    A channel whose BatchNorm gamma is almost 0 has so fine a scale that its bias would exceed
    int32. It gets a scale on which the bias is 2^30, and its codes are rounded to that scale:
    an error below ``bias * fan_in * 2^-23``, far below the result's grid. Others stay.

    Raises:
        UnsupportedError: bias or scale is not finite, or the weights alone can overflow; names
            layer and channel.
    """
    codes = layer.codes.astype(np.int64).reshape(len(layer.scale), -1)
    bias = layer.bias.astype(np.float64)
    unit = bias_scale(x_scale, layer.scale).astype(np.float64)
    broken = ~(np.isfinite(bias) & np.isfinite(unit))
    if broken.any():
        channel = int(broken.argmax())
        raise UnsupportedError(
            f"layer {layer.name}: channel {channel} has bias {bias[channel]} and weight scale "
            f"{layer.scale[channel]}; both must be finite"
        )
    finest = np.maximum(np.abs(bias) / BIAS_MAX, float(np.finfo(np.float32).tiny))
    over = np.abs(bias / np.maximum(unit, 1e-300)) > _room(codes)
    if not over.any():
        return layer
    coarse = over & (unit < finest)
    scale = np.where(coarse, finest * (1 + 1e-6) / np.float64(x_scale), layer.scale)
    scale = scale.astype(np.float32)
    ratio = np.where(coarse, layer.scale.astype(np.float64) / scale, 1.0)
    rounded = np.rint(codes * ratio[:, None])
    left = np.where(coarse, BIAS_MAX, np.abs(bias / np.maximum(unit, 1e-300)))
    broken = left > _room(rounded.astype(np.int64))
    if broken.any():
        raise UnsupportedError(
            f"layer {layer.name}: channel {int(broken.argmax())} can overflow its int32 "
            f"accumulator: {codes.shape[1]} products of 8-bit inputs and the bias"
        )
    fitted = rounded.astype(np.int8).reshape(layer.codes.shape)
    return Layer(layer.name, fitted, scale, layer.bias, layer.bits)


def _room(codes: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the largest bias per channel that cannot overflow int32 with 8-bit inputs."""
    room: NDArray[np.int64] = INT32_MAX - 255 * np.abs(codes).sum(1)
    return room


def _describe(value: ir.Value, name: str, like: ir.Value) -> ir.Value:
    value.name, value.shape = name, like.shape
    value.type = ir.TensorType(ir.DataType.UINT8)
    return value
