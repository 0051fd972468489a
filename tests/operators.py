"""Single operators in ONNX Runtime, and grids on which rounding ties abound.

Needs x86-64 with VNNI: without it ONNX Runtime's uint8 x int8 products saturate.
"""

import math
from fractions import Fraction

import numpy as np
import onnxruntime
from hypothesis import settings
from hypothesis import strategies as st
from onnx import helper, numpy_helper

from qtool.core.dialect import MS, Grid

F32 = np.float32
ALL_CODES = np.arange(256, dtype=np.uint8)
# Ratios of these are close to, or are, halves and powers of two: rounding ties abound.
TIE_SCALES = [0.1, 0.2, 0.025, 0.05, 0.3, 0.15, 1 / 3, 1 / 7, 0.7, 2**-8, 2**-5, 0.5, 1.0]

# Shapes of a second operand beside (2, 3, 5, 7): a gate, a channel constant, scalars.
BROADCASTS = [(2, 3, 1, 1), (1, 3, 1, 1), (3, 1, 1), (1,), (), (1, 1, 1, 1), (2, 1, 5, 7)]

some = settings(max_examples=30, deadline=None)
many = settings(max_examples=60, deadline=None)

scales = (st.sampled_from(TIE_SCALES) | st.floats(2**-12, 2, width=32)).map(F32)
zero_points = st.sampled_from([0, 1, 127, 128, 254, 255]) | st.integers(0, 255)
grids = st.builds(Grid, scales, zero_points)
# Any positive float32, the subnormal ones too.
wide_scales = st.builds(
    lambda mantissa, exponent: F32(math.ldexp(mantissa, exponent)),
    st.sampled_from([1.0, 1.5]) | st.floats(1, 1.99),
    st.integers(-149, 126),
)
wide_grids = st.builds(Grid, wide_scales, zero_points)
seeds = st.integers(0, 2**32 - 1)


def run_operator(op_type, inputs, domain="", output=np.uint8, live=(0,), **attributes):
    """The result of a graph of one node; inputs whose index is not in `live` are constants."""
    names = [f"input{i}" for i in range(len(inputs))]
    arrays = dict(zip(names, map(np.asarray, inputs), strict=True))
    feeds = {names[i]: arrays[names[i]] for i in live}
    graph = helper.make_graph(
        [helper.make_node(op_type, names, ["y"], domain=domain, **attributes)],
        op_type,
        [value_info(name, array.dtype, array.shape) for name, array in feeds.items()],
        [value_info("y", np.dtype(output), None)],
        [numpy_helper.from_array(arrays[name], name) for name in names if name not in feeds],
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid(MS, 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    return session(model).run(None, feeds)[0]


def value_info(name, dtype, shape):
    return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(dtype), shape)


def session(model):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    return onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def on(grid):
    """Scale and zero point as the operators' inputs."""
    return [F32(grid.scale), np.uint8(grid.zero_point)]


def params(*grids):
    """Scales and zero points as the arguments of numerics."""
    return [value for grid in grids for value in (grid.scale, grid.zero_point)]


def random_scales(rng, count):
    return rng.choice(TIE_SCALES, count).astype(F32)


def nearest_float32(value):
    """The float32 nearest to a Fraction, ties to even, in integer arithmetic alone."""
    if value == 0:
        return F32(0)
    exponent = abs(value.numerator).bit_length() - value.denominator.bit_length()
    if abs(value) < Fraction(2) ** exponent:
        exponent -= 1
    unit = Fraction(2) ** max(exponent - 23, -149)
    # `round` of a Fraction is exact and half-even; at most 2**24 units fit a float64.
    return F32(float(round(value / unit) * unit))
