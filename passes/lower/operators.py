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

import numpy as np
import onnx_ir as ir

from passes.lower.integer_builder import IntegerBuilder, Quantized
from passes.lower.layer_operators import affine, average_pool, conv, gemm
from passes.lower.layers import layer_name
from passes.lower.ort_limits import check_add, check_average, check_multiply
from passes.lower.site import Operator, Site
from passes.lower.tables import FUNCTIONS, leaky_relu, tabulate, tabulated
from qtool.core.dialect import MS, Grid, constant, static_shape
from qtool.core.errors import UnsupportedError
from qtool.core.grids import Window
from qtool.core.numerics import clip_code


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
    check_add(a.grid, b.grid, grid, static_shape(site.like), site.name)
    return _binary(build, "QLinearAdd", site, (a, b), grid)


def _binary(
    build: IntegerBuilder, op_type: str, site: Site, xs: tuple[Quantized, ...], grid: Grid
) -> ir.Value:
    operands = [value for x in xs for value in (x.value, *build.grid(x.grid))]
    inputs = [*operands, *build.grid(grid)]
    return build.emit(op_type, inputs, site.name, site.like, site.window, MS)


def _mul(build: IntegerBuilder, site: Site) -> ir.Value:
    a, b = _large_first(site)
    check_multiply(a.grid, b.grid, site.grid, site.name)
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
    check_average(x.grid, site.grid, static_shape(x.value), site.name)
    inputs = [x.value, *build.grid(x.grid), *build.grid(site.grid)]
    return build.emit(
        "QLinearGlobalAveragePool", inputs, site.name, site.like, site.window, MS,
        {"channels_last": 0},
    )  # fmt: skip


def _hard_sigmoid(build: IntegerBuilder, site: Site) -> ir.Value:
    node, grid = site.node, site.grid
    alpha, beta = (node.attributes.get_float(k, v) for k, v in (("alpha", 0.2), ("beta", 0.5)))
    is_sixth = abs(alpha - 1 / 6) < 1e-6 and beta == 0.5
    if not is_sixth or grid.zero_point != 0 or int(np.prod(static_shape(site.like))) == 1:
        return tabulate(build, site, lambda x: np.clip(np.float64(alpha) * x + beta, 0.0, 1.0))
    window = Window(0, site.window.lo, min(site.window.hi, clip_code(1.0, grid.scale, 0)))
    # As many dimensions as x has: ONNX Runtime swaps x (..., 1) with a constant of fewer.
    rank = len(static_shape(site.like)) + 1
    code = build.constant(np.ones((1,) * rank, np.uint8), f"three{rank}")
    three = Quantized(code, Grid(np.float32(3), 0), 8)
    six = Grid(np.float32(6) * grid.scale, 0)
    narrowed = dataclasses.replace(site, window=window)
    return _qlinear_add(build, narrowed, site.inputs[0], three, six)


# operator: (how it is lowered, which inputs are activations)
OPERATORS: dict[str, tuple[Operator, tuple[int, ...]]] = {
    "Conv": (conv, (0,)),
    "Gemm": (gemm, (0,)),
    "Add": (_add, (0, 1)),
    "Mul": (_mul, (0, 1)),
    "MatMul": (gemm, (0,)),
    "GlobalAveragePool": (_global_average, (0,)),
    "AveragePool": (average_pool, (0,)),
    "BatchNormalization": (affine, (0,)),
    "LeakyRelu": (leaky_relu, (0,)),
    "HardSigmoid": (_hard_sigmoid, (0,)),
    **dict.fromkeys(FUNCTIONS, (tabulated, (0,))),
}
ACTIVATIONS = ("Relu", "Clip")
