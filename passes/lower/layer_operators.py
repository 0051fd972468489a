"""Operators that are convolutions or linear layers on the device.

1. Conv: QLinearConv, bias in int32 units of xs * ws. 2. Gemm, MatMul: QGemm.
3. AveragePool: QLinearConv, depthwise, codes 1, scale 1/n.
4. BatchNormalization: QLinearConv, depthwise 1x1, codes +-127, scale |gamma / sigma| / 127.
Refuses pools that leave out their padding, BatchNorm of other than 4-D tensors, linear layers
on more than (N, features).
"""

import dataclasses
from typing import Any

import numpy as np
import onnx_ir as ir

from passes.lower.integer_builder import IntegerBuilder, Quantized
from passes.lower.layers import layer_name, norm_values, read_layer
from passes.lower.ort_limits import check_factor
from passes.lower.site import Site
from qtool.core.accumulator import Layer, fit_accumulator
from qtool.core.dialect import (
    ACTIVATION_BITS_KEY,
    MS,
    WEIGHT_BITS_KEY,
    Grid,
    ints,
    require_plain,
    static_shape,
    value_name,
)
from qtool.core.errors import UnsupportedError
from qtool.core.folding import affine_layer
from qtool.core.grids import Window
from qtool.core.numerics import quantize_bias


def conv(build: IntegerBuilder, site: Site) -> ir.Value:
    """QLinearConv."""
    names = ("kernel_shape", "strides", "pads", "dilations")
    kept: dict[str, Any] = {n: list(v) for n in names if (v := ints(site.node, n, ()))}
    kept["group"] = site.node.attributes.get_int("group", 1)
    return _qlinear_conv(build, site, read_layer(site.node, site.name), kept)


def _qlinear_conv(
    build: IntegerBuilder, site: Site, layer: Layer, attributes: dict[str, Any]
) -> ir.Value:
    x = site.inputs[0]
    layer = fit_accumulator(layer, x.grid.scale)
    check_factor(x.grid, layer.scale, site.grid, layer.name)
    inputs = [
        x.value, *build.grid(x.grid), *_weight(build, layer), *build.grid(site.grid),
        _bias(build, x, layer),
    ]  # fmt: skip
    result = build.emit(
        "QLinearConv", inputs, layer.name, site.like, site.window, "", attributes
    )
    return _marked(result, layer, x)


def gemm(build: IntegerBuilder, site: Site) -> ir.Value:
    """com.microsoft QGemm with the weight as (outputs, inputs)."""
    return _linear(build, site, read_layer(site.node, site.name))


def _linear(build: IntegerBuilder, site: Site, layer: Layer) -> ir.Value:
    x, where = site.inputs[0], f"layer {layer_name(site.node)}"
    require_plain(site.node, where)
    if len(static_shape(x.value)) != 1:
        raise UnsupportedError(
            f"{where}: {site.node.op_type} of a tensor {('N', *static_shape(x.value))}; "
            "(N, features) is supported"
        )
    layer = fit_accumulator(layer, x.grid.scale)
    check_factor(x.grid, layer.scale, site.grid, layer.name)
    inputs = [
        x.value, *build.grid(x.grid), *_weight(build, layer), _bias(build, x, layer),
        *build.grid(site.grid),
    ]  # fmt: skip
    attributes = {"transB": 1, "alpha": 1.0}
    result = build.emit("QGemm", inputs, layer.name, site.like, site.window, MS, attributes)
    return _marked(result, layer, x)


def float_gemm(
    build: IntegerBuilder, node: ir.Node, x: Quantized, output: ir.Value
) -> ir.Value:
    """QGemm without a grid of its result, the float `output`: ``f32(acc) * (xs * ws)``."""
    y = Grid(np.float32(1), 0)
    name = value_name(output)
    site = Site(node, (x,), y, Window(0, 0, 255), name, output)
    # The output's name, which is all that a file in QDQ form keeps of it.
    result = _linear(build, site, dataclasses.replace(read_layer(node, name), name=name))
    made = build.nodes[-1]
    made.resize_inputs(7)
    made.name = result.name = output.name
    result.type = ir.TensorType(ir.DataType.FLOAT)
    return result


def _weight(build: IntegerBuilder, layer: Layer) -> list[ir.Value]:
    return [
        build.add(layer.codes, f"{layer.name}.weight"),
        build.add(layer.scale, f"{layer.name}.weight_scale"),
        build.constant(np.zeros(len(layer.scale), np.int8), f"zeros{len(layer.scale)}"),
    ]


def _bias(build: IntegerBuilder, x: Quantized, layer: Layer) -> ir.Value:
    """int32 bias in units of xs * ws."""
    bias = quantize_bias(layer.bias.astype(np.float64), x.grid.scale, layer.scale)
    return build.add(bias.astype(np.int32), f"{layer.name}.bias")


def maker(result: ir.Value) -> ir.Node | None:
    """Return the operator that makes `result`, perhaps behind a Clip."""
    node = result.producer()
    if node is not None and node.op_type == "Clip" and node.inputs[0] is not None:
        node = node.inputs[0].producer()
    return node


def mark(result: ir.Value, weight_bits: int, activation_bits: int) -> None:
    """Write the bits of a layer onto the node that makes `result`, perhaps behind a Clip."""
    node = maker(result)
    if node is not None:
        node.metadata_props[WEIGHT_BITS_KEY] = str(weight_bits)
        node.metadata_props[ACTIVATION_BITS_KEY] = str(activation_bits)


def _marked(result: ir.Value, layer: Layer, x: Quantized) -> ir.Value:
    if layer.bits is not None:
        mark(result, layer.bits, x.bits)
    return result


def average_pool(build: IntegerBuilder, site: Site) -> ir.Value:
    """A depthwise QLinearConv of ones: ONNX Runtime's own pool sums floats."""
    node, where = site.node, f"layer {layer_name(site.node)}"
    pads, kernel = ints(node, "pads", (0, 0, 0, 0)), ints(node, "kernel_shape", ())
    if any(pads) and not node.attributes.get_int("count_include_pad", 0):
        raise UnsupportedError(
            f"{where}: AveragePool that leaves out its padding divides by a number that "
            "varies; use count_include_pad=True"
        )
    channels = static_shape(site.like)[0]
    codes = np.ones((channels, 1, *kernel), np.int8)
    attributes = {
        "strides": list(ints(node, "strides", (1, 1))), "pads": list(pads), "group": channels,
        "kernel_shape": list(kernel),
    }  # fmt: skip
    layer = _unlisted(site, codes, np.full(channels, 1 / np.prod(kernel)), np.zeros(channels))
    return _qlinear_conv(build, site, layer, attributes)


def affine(build: IntegerBuilder, site: Site) -> ir.Value:
    """BatchNorm that no layer absorbs: a depthwise 1x1 QLinearConv."""
    node, shape = site.node, static_shape(site.inputs[0].value)
    if len(shape) != 3:
        raise UnsupportedError(
            f"layer {layer_name(node)}: BatchNorm of a {len(shape) + 1}-D tensor that no "
            "layer before it absorbs; 4-D is supported"
        )
    layer = affine_layer(site.name, norm_values(node), f"layer {layer_name(node)}")
    attributes = {"kernel_shape": [1, 1], "group": len(layer.scale)}
    return _qlinear_conv(build, site, layer, attributes)


def _unlisted(site: Site, codes: Any, scale: Any, bias: Any) -> Layer:
    """A QLinearConv that is none of the user's layers."""
    return Layer(site.name, codes, scale.astype(np.float32), bias, None)
