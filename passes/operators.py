"""Float operators with an integer twin, one function each: what lowering and importing share.

``Q(op(x, ...))`` on the grid (scale s, zero point z, window) of Q becomes

1. Conv: QLinearConv, bias in int32 units of xs * ws. 2. Gemm: QGemm.
3. Add: QLinearAdd. 4. Mul: QLinearMul. 5. GlobalAveragePool: QLinearGlobalAveragePool.
6. AveragePool: QLinearConv, depthwise, codes 1, scale 1/n.
7. BatchNormalization: QLinearConv, depthwise 1x1, codes +-127, scale |gamma / sigma| / 127.
8. LeakyRelu: QLinearLeakyRelu. 9. HardSigmoid(x) = relu6(x + 3) / 6: QLinearAdd of
   the constant 3 onto the grid (6 s, 0), whose codes are those of (s, 0).
10. Sigmoid, Swish, HardSwish, Tanh: a table of 256 answers (Cast, Gather).
"""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from passes.accumulator import Layer, fit_accumulator
from passes.integer_builder import IntegerBuilder, Quantized
from passes.layers import layer_name, read_layer
from qtool import numerics
from qtool.dialect import (
    ACTIVATION_BITS_KEY,
    MS,
    WEIGHT_BITS_KEY,
    Grid,
    constant,
    ints,
    require_plain,
    static_shape,
    value_name,
)
from qtool.errors import UnsupportedError
from qtool.numerics import (
    MULTIPLY_FACTOR_MAX,
    average_factor,
    clip_code,
    lookup_table,
    multiply_factor,
    quantize_bias,
)
from qtool.qspec import Window

# 2^31 / (2 * 255), rounded down: sums of two scaled codes stay inside int32.
ADD_RATIO_MAX = 2**22
AFFINE_CODE = 127


@dataclass(frozen=True)
class Site:
    """A float operator about to become an integer one.

    Args:
        node: the operator.
        inputs: its activations.
        grid, window, name: of its result.
        like: its float result, for the shape.
    """

    node: ir.Node
    inputs: tuple[Quantized, ...]
    grid: Grid
    window: Window
    name: str
    like: ir.Value


Operator = Callable[[IntegerBuilder, Site], ir.Value]


def _conv(build: IntegerBuilder, site: Site) -> ir.Value:
    require_plain(site.node, f"layer {layer_name(site.node)}")
    names = ("kernel_shape", "strides", "pads", "dilations")
    kept: dict[str, Any] = {n: list(v) for n in names if (v := ints(site.node, n, ()))}
    kept["group"] = site.node.attributes.get_int("group", 1)
    return _qlinear_conv(build, site, read_layer(site.node, site.name), kept)


def _qlinear_conv(
    build: IntegerBuilder, site: Site, layer: Layer, attributes: dict[str, Any]
) -> ir.Value:
    x = site.inputs[0]
    layer = fit_accumulator(layer, x.grid.scale)
    inputs = [
        x.value, *build.grid(x.grid), *_weight(build, layer), *build.grid(site.grid),
        _bias(build, x, layer),
    ]  # fmt: skip
    result = build.emit(
        "QLinearConv", inputs, layer.name, site.like, site.window, "", attributes
    )
    return _marked(result, layer, x)


def _gemm(build: IntegerBuilder, site: Site) -> ir.Value:
    require_plain(site.node, f"layer {layer_name(site.node)}")
    x = site.inputs[0]
    if len(static_shape(x.value)) != 1:
        raise UnsupportedError(
            f"layer {layer_name(site.node)}: {site.node.op_type} of a tensor "
            f"{('N', *static_shape(x.value))}; (N, features) is supported"
        )
    layer = fit_accumulator(read_layer(site.node, site.name), x.grid.scale)
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
    site = Site(node, (x,), y, Window(0, 0, 255), value_name(output), output)
    result = _gemm(build, site)
    made = build.nodes[-1]
    made.resize_inputs(7)
    result.name, result.type = output.name, ir.TensorType(ir.DataType.FLOAT)
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


def mark(result: ir.Value, weight_bits: int, activation_bits: int) -> None:
    """Write the bits of a layer onto the node that makes `result`, perhaps behind a Clip."""
    node = result.producer()
    if node is not None and node.op_type == "Clip" and node.inputs[0] is not None:
        node = node.inputs[0].producer()
    if node is not None:
        node.metadata_props[WEIGHT_BITS_KEY] = str(weight_bits)
        node.metadata_props[ACTIVATION_BITS_KEY] = str(activation_bits)


def _marked(result: ir.Value, layer: Layer, x: Quantized) -> ir.Value:
    if layer.bits is not None:
        mark(result, layer.bits, x.bits)
    return result


def _add(build: IntegerBuilder, site: Site) -> ir.Value:
    a, b = site.inputs
    if constant(a.value) is not None:
        a, b = b, a
    elif constant(b.value) is None:
        a, b = _large_first(site)
    return _qlinear_add(build, site, a, b, site.grid)


def _qlinear_add(
    build: IntegerBuilder, site: Site, a: Quantized, b: Quantized, grid: Grid
) -> ir.Value:
    _check_add(a.grid, b.grid, grid, site)
    return _binary(build, "QLinearAdd", site, (a, b), grid)


def _binary(
    build: IntegerBuilder, op_type: str, site: Site, xs: tuple[Quantized, ...], grid: Grid
) -> ir.Value:
    operands = [value for x in xs for value in (x.value, *build.grid(x.grid))]
    inputs = [*operands, *build.grid(grid)]
    return build.emit(op_type, inputs, site.name, site.like, site.window, MS)


def _check_add(a: Grid, b: Grid, y: Grid, site: Site) -> None:
    """Refuse what ONNX Runtime's QLinearAdd computes by another formula."""
    if int(np.prod(static_shape(site.like))) == 1:
        raise UnsupportedError(
            f"tensor {site.name}: Add of one-element tensors; ONNX Runtime swaps their "
            "operands"
        )
    ratio = max(a.scale / y.scale, b.scale / y.scale)
    if ratio >= ADD_RATIO_MAX:
        raise UnsupportedError(
            f"tensor {site.name}: Add onto a grid {ratio:.3g} times finer than its input's; "
            f"ONNX Runtime's int32 overflows from {ADD_RATIO_MAX}"
        )


def _mul(build: IntegerBuilder, site: Site) -> ir.Value:
    a, b = _large_first(site)
    factor = multiply_factor(a.grid.scale, b.grid.scale, site.grid.scale)
    if factor >= MULTIPLY_FACTOR_MAX:
        raise UnsupportedError(
            f"tensor {site.name}: Mul onto a grid {factor:.3g} times finer than its inputs'; "
            f"ONNX Runtime's int32 overflows from {MULTIPLY_FACTOR_MAX}"
        )
    return _binary(build, "QLinearMul", site, (a, b), site.grid)


def _large_first(site: Site) -> tuple[Quantized, Quantized]:
    """Return the operands, a broadcast one second: ONNX Runtime then keeps their order."""
    a, b = site.inputs
    shape_a, shape_b, shape = (static_shape(v) for v in (a.value, b.value, site.like))
    if shape not in (shape_a, shape_b) or len(shape_a) != len(shape_b):
        raise UnsupportedError(
            f"layer {layer_name(site.node)}: {site.node.op_type} of shapes {shape_a} and "
            f"{shape_b}; one must have the shape of the result"
        )
    return (a, b) if shape_a == shape else (b, a)


def _global_average(build: IntegerBuilder, site: Site) -> ir.Value:
    x = site.inputs[0]
    _, height, width = static_shape(x.value)
    factor = average_factor(x.grid.scale, site.grid.scale, height * width)
    if not 2**-32 < factor < 256:
        raise UnsupportedError(
            f"tensor {site.name}: average with factor {factor:.3g}; ONNX Runtime takes 2^-32 "
            "to 256"
        )
    inputs = [x.value, *build.grid(x.grid), *build.grid(site.grid)]
    return build.emit(
        "QLinearGlobalAveragePool", inputs, site.name, site.like, site.window, MS,
        {"channels_last": 0},
    )  # fmt: skip


def _average_pool(build: IntegerBuilder, site: Site) -> ir.Value:
    node, where = site.node, f"layer {layer_name(site.node)}"
    require_plain(node, where)
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


def _affine(build: IntegerBuilder, site: Site) -> ir.Value:
    node, shape = site.node, static_shape(site.inputs[0].value)
    if len(shape) != 3:
        raise UnsupportedError(
            f"layer {layer_name(node)}: BatchNorm of a {len(shape) + 1}-D tensor that no "
            "layer before it absorbs; 4-D is supported"
        )
    gamma, beta, mean, var = (parameter(node, index) for index in range(1, 5))
    ratio = gamma / np.sqrt(var + node.attributes.get_float("epsilon", 1e-5))
    codes = (np.sign(ratio) * AFFINE_CODE).astype(np.int8).reshape(-1, 1, 1, 1)
    scale = np.where(ratio == 0, 1e-30, np.abs(ratio) / AFFINE_CODE)
    layer = _unlisted(site, codes, scale, beta - mean * ratio)
    attributes = {"kernel_shape": [1, 1], "group": len(ratio)}
    return _qlinear_conv(build, site, layer, attributes)


def parameter(node: ir.Node, index: int) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Return a parameter of BatchNormalization.

    Raises:
        UnsupportedError: it is computed at run time.
    """
    array = constant(node.inputs[index])
    if array is None:
        raise UnsupportedError(f"layer {node.name}: BatchNorm parameters must be constants")
    return array.astype(np.float64)


def _unlisted(site: Site, codes: Any, scale: Any, bias: Any) -> Layer:
    """A QLinearConv that is none of the user's layers."""
    return Layer(site.name, codes, scale.astype(np.float32), bias, None)


def leaky(
    build: IntegerBuilder,
    x: Quantized,
    like: ir.Value,
    grid: Grid,
    window: Window,
    name: str,
    alpha: float = 1.0,
) -> ir.Value:
    """QLinearLeakyRelu; with alpha 1 a change of grid."""
    inputs = [x.value, *build.grid(x.grid), *build.grid(grid)]
    return build.emit("QLinearLeakyRelu", inputs, name, like, window, MS, {"alpha": alpha})


def _leaky_relu(build: IntegerBuilder, site: Site) -> ir.Value:
    alpha = site.node.attributes.get_float("alpha", 0.01)
    return leaky(build, site.inputs[0], site.like, site.grid, site.window, site.name, alpha)


def _hard_sigmoid(build: IntegerBuilder, site: Site) -> ir.Value:
    node, grid = site.node, site.grid
    alpha, beta = (node.attributes.get_float(k, v) for k, v in (("alpha", 0.2), ("beta", 0.5)))
    is_sixth = abs(alpha - 1 / 6) < 1e-6 and beta == 0.5
    if not is_sixth or grid.zero_point != 0 or int(np.prod(static_shape(site.like))) == 1:
        return _table(build, site, lambda x: np.clip(np.float64(alpha) * x + beta, 0.0, 1.0))
    window = Window(0, site.window.lo, min(site.window.hi, clip_code(1.0, grid.scale, 0)))
    # As many dimensions as x has: ONNX Runtime swaps x (..., 1) with a constant of fewer.
    rank = len(static_shape(site.like)) + 1
    code = build.constant(np.ones((1,) * rank, np.uint8), f"three{rank}")
    three = Quantized(code, Grid(np.float32(3), 0), 8)
    six = Grid(np.float32(6) * grid.scale, 0)
    narrowed = dataclasses.replace(site, window=window)
    return _qlinear_add(build, narrowed, site.inputs[0], three, six)


def _table(build: IntegerBuilder, site: Site, function: numerics.Function) -> ir.Value:
    """Cast and Gather: the answers are qtool's, so every runtime gives the same ones."""
    x, y, window = site.inputs[0], site.grid, site.window
    answers = lookup_table(
        function, x.grid.scale, x.grid.zero_point, y.scale, y.zero_point, window.lo, window.hi
    )
    return gather(build, site.name, x.value, answers, site.like)


def gather(
    build: IntegerBuilder, name: str, x: ir.Value, answers: Any, like: ir.Value
) -> ir.Value:
    """``answers[x]``."""
    index = build.emit("Cast", [x], f"{name}/index", like, attributes={"to": 6})
    index.type = ir.TensorType(ir.DataType.INT32)
    return build.emit("Gather", [build.add(answers, f"{name}.table"), index], name, like)


FUNCTIONS: dict[str, numerics.Function] = {
    "Sigmoid": numerics.sigmoid,
    "Swish": numerics.silu,
    "HardSwish": lambda x: x * numerics.hard_sigmoid(x),
    "Tanh": np.tanh,
}


def _function(build: IntegerBuilder, site: Site) -> ir.Value:
    return _table(build, site, FUNCTIONS[site.node.op_type])


# operator: (how it is lowered, which inputs are activations)
OPERATORS: dict[str, tuple[Operator, tuple[int, ...]]] = {
    "Conv": (_conv, (0,)),
    "Gemm": (_gemm, (0,)),
    "Add": (_add, (0, 1)),
    "Mul": (_mul, (0, 1)),
    "MatMul": (_gemm, (0,)),
    "GlobalAveragePool": (_global_average, (0,)),
    "AveragePool": (_average_pool, (0,)),
    "BatchNormalization": (_affine, (0,)),
    "LeakyRelu": (_leaky_relu, (0,)),
    "HardSigmoid": (_hard_sigmoid, (0,)),
    **dict.fromkeys(FUNCTIONS, (_function, (0,))),
}
ACTIVATIONS = ("Relu", "Clip")
