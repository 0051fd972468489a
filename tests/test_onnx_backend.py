"""ONNX's own node cases for the integer operators, through the reference runtime.

Every case runs, exactly, or stands in `UNSUPPORTED` with the reason. Codes of other integer
types than uint8 run shifted: int8 code q is uint8 code q + 128, int4 and uint4 are windows of
uint8, as in the dialect.
"""

import dataclasses
import importlib

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.backend.test.case import node as cases_of
from operators import F32
from test_reference import conv_op, gemm_op

from qtool.core import numerics
from qtool.core.dialect import Grid
from runtimes.reference import conv_accumulate, execute, gemm_accumulate

MODULES = [
    "quantizelinear", "dequantizelinear", "qlinearconv", "qlinearmatmul", "convinteger",
    "matmulinteger",
]  # fmt: skip

FLOAT_CODES = "floating-point codes; the dialect's codes are integers"
WIDE_CODES = "16-bit activations; the dialect's container is uint8"
HALF_SCALES = "float16 scales; the dialect's are float32, which round differently"
BLOCKS = "a scale per block; the dialect has one per tensor or per channel"
UNSUPPORTED = {
    "test_quantizelinear_e4m3fn": FLOAT_CODES,
    "test_quantizelinear_e5m2": FLOAT_CODES,
    "test_quantizelinear_float4e2m1": FLOAT_CODES,
    "test_quantizelinear_uint16": WIDE_CODES,
    "test_quantizelinear_int16": WIDE_CODES,
    "test_quantizelinear_blocked_asymmetric": BLOCKS,
    "test_quantizelinear_blocked_symmetric": BLOCKS,
    "test_dequantizelinear_e4m3fn": FLOAT_CODES,
    "test_dequantizelinear_e4m3fn_float16": FLOAT_CODES,
    "test_dequantizelinear_e4m3fn_zero_point": FLOAT_CODES,
    "test_dequantizelinear_e5m2": FLOAT_CODES,
    "test_dequantizelinear_float4e2m1": FLOAT_CODES,
    "test_dequantizelinear_uint16": WIDE_CODES,
    "test_dequantizelinear_int16": WIDE_CODES,
    "test_dequantizelinear_blocked": BLOCKS,
    "test_qlinearmatmul_2D_uint8_float16": HALF_SCALES,
    "test_qlinearmatmul_3D_uint8_float16": HALF_SCALES,
    "test_qlinearmatmul_2D_int8_float16": HALF_SCALES,
    "test_qlinearmatmul_3D_int8_float16": HALF_SCALES,
}


def collect():
    """Cases by name; importing a module of the package registers its cases."""
    for name in MODULES:
        importlib.import_module(f"{cases_of.__name__}.{name}")
    wanted = [
        (case, case.model.graph.node[0].op_type.lower()) for case in cases_of._NodeTestCases
    ]
    return {case.name: case for case, op_type in wanted if op_type in MODULES}


CASES = collect()


def as_arrays(data_set):
    """Inputs and outputs as numpy arrays; the narrow types come as protos."""
    return [
        [numpy_helper.to_array(v) if isinstance(v, TensorProto) else v for v in values]
        for values in data_set
    ]


def in_uint8(array):
    """Codes of any integer type of at most 8 bits as uint8, and the code of integer 0."""
    wide = np.asarray(array).astype(np.int16)
    shift = 128 if wide_limits(array)[0] < 0 else 0
    return (wide + shift).astype(np.uint8), shift


def wide_limits(array):
    """Smallest and largest code of an array's integer type, the 2- and 4-bit ones too."""
    name = np.asarray(array).dtype.name
    bits = int(name.removeprefix("u").removeprefix("int"))
    return (
        (0, 2**bits - 1) if name.startswith("u") else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    )


def per_channel(function, x, scale, zero, axis):
    """Apply `function` to every slice of `x` with its scale and zero point."""
    if scale.size == 1:
        return function(x, F32(scale.item()), int(zero.item()))
    parts = zip(np.moveaxis(x, axis, 0), scale, zero, strict=True)
    results = [function(part, F32(step), int(z)) for part, step, z in parts]
    return np.moveaxis(np.stack(results), 0, axis)


def quantize(node, x, scale, zero):
    (lo, hi), (zero8, shift) = wide_limits(zero), in_uint8(zero)

    def one(part, step, z):
        return numerics.quantize(part, step, z, lo + shift, hi + shift)

    codes = per_channel(one, x, scale, zero8, attribute(node, "axis", 1))
    return (codes.astype(np.int16) - shift).astype(zero.dtype)


def dequantize(node, q, scale, zero):
    codes, zero8 = in_uint8(q)[0], in_uint8(zero)[0]
    return per_channel(numerics.dequantize, codes, scale, zero8, attribute(node, "axis", 1))


def attribute(node, name, default):
    return next(
        (helper.get_attribute_value(a) for a in node.attribute if a.name == name), default
    )


def centred(w, zero, axis=0):
    """Weight codes without their zero point; ONNX's own reach -255, beyond int8."""
    shape = [1] * w.ndim
    shape[axis] = -1
    return w.astype(np.int16) - np.asarray(zero).astype(np.int16).reshape(shape)


def conv_integer(node, x, w, x_zero, w_zero=0):
    pads = tuple(attribute(node, "pads", (0, 0, 0, 0)))
    op = conv_op(centred(w, w_zero), x.shape[2:], int(x_zero), pads=pads)
    return conv_accumulate(op, x)


def mat_mul_integer(node, a, b, a_zero, b_zero):
    return gemm_accumulate(gemm_op(centred(b, b_zero, 1).T, int(a_zero.item())), a)


def qlinear_conv(node, x, x_scale, x_zero, w, w_scale, w_zero, y_scale, y_zero):
    grids = Grid(F32(x_scale), int(x_zero)), Grid(F32(y_scale), int(y_zero))
    op = conv_op(centred(w, w_zero), x.shape[2:], w_scale=w_scale, x=grids[0])
    return execute(dataclasses.replace(op, grid=grids[1]), [x])


def qlinear_mat_mul(node, a, a_scale, a_zero, b, b_scale, b_zero, y_scale, y_zero):
    if a.ndim > 2:
        rest = [a_scale, a_zero], [b_scale, b_zero, y_scale, y_zero]
        pairs = zip(a, b, strict=True)
        return np.stack([qlinear_mat_mul(node, x, *rest[0], w, *rest[1]) for x, w in pairs])
    (x, shift), scales = in_uint8(a), np.broadcast_to(b_scale, b.shape[1])
    grids = (
        Grid(F32(s.item()), int(z.item()) + shift)
        for s, z in ((a_scale, a_zero), (y_scale, y_zero))
    )
    x_grid, y_grid = grids
    op = gemm_op(centred(b, b_zero, 1).T, w_scale=scales, x=x_grid)
    codes = execute(dataclasses.replace(op, grid=y_grid), [x])
    return (codes.astype(np.int16) - shift).astype(y_zero.dtype)


RUN = {
    "QuantizeLinear": quantize,
    "DequantizeLinear": dequantize,
    "QLinearConv": qlinear_conv,
    "QLinearMatMul": qlinear_mat_mul,
    "ConvInteger": conv_integer,
    "MatMulInteger": mat_mul_integer,
}


@pytest.mark.parametrize("name", sorted(set(CASES) - set(UNSUPPORTED)))
def test_node_case(name):
    case = CASES[name]
    (node,) = case.model.graph.node
    for inputs, (expected,) in map(as_arrays, case.data_sets):
        result = RUN[node.op_type](node, *inputs)
        np.testing.assert_array_equal(result, expected, strict=True)


def test_every_unsupported_case_exists_and_every_operator_runs():
    assert set(UNSUPPORTED) <= set(CASES)
    ran = {CASES[name].model.graph.node[0].op_type for name in set(CASES) - set(UNSUPPORTED)}
    assert ran == set(RUN)
