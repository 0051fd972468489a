"""Every formula of qtool.numerics against ONNX Runtime's own operator, to the last integer.

Needs x86-64 with VNNI: without it ONNX Runtime's uint8 x int8 products saturate.
"""

import math
from fractions import Fraction

import numpy as np
import onnxruntime
import pytest
from arrays import assert_same, random_codes, random_weights
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from onnx import helper, numpy_helper

from qtool import numerics
from qtool.dialect import MS, Grid
from qtool.qspec import WEIGHT_BITS, activation_window, weight_limit

F32 = np.float32
ALL_CODES = np.arange(256, dtype=np.uint8)
# Ratios of these are close to, or are, halves and powers of two: rounding ties abound.
TIE_SCALES = [0.1, 0.2, 0.025, 0.05, 0.3, 0.15, 1 / 3, 1 / 7, 0.7, 2**-8, 2**-5, 0.5, 1.0]

some = settings(max_examples=30, deadline=None)
many = settings(max_examples=60, deadline=None)

scales = (st.sampled_from(TIE_SCALES) | st.floats(2**-12, 2, width=32)).map(F32)
zero_points = st.sampled_from([0, 1, 127, 128, 254, 255]) | st.integers(0, 255)
grids = st.builds(Grid, scales, zero_points)
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


# QuantizeLinear and DequantizeLinear


def float_samples(rng, scale):
    """Values around the window's width: half-way cases, their neighbours, and others."""
    ties = (np.arange(-300, 300, dtype=F32) + F32(0.5)) * scale
    beside = [np.nextafter(ties, F32(end)) for end in (-np.inf, np.inf)]
    others = rng.normal(0, 100, 500).astype(F32) * scale
    return np.concatenate([ties, *beside, others])


@many
@given(grids, seeds)
def test_quantize_is_quantize_linear(grid, seed):
    x = float_samples(np.random.default_rng(seed), grid.scale)
    expected = run_operator("QuantizeLinear", [x, *on(grid)])
    assert_same(numerics.quantize(x, grid.scale, grid.zero_point), expected)


@many
@given(st.integers(-20, 10), zero_points)
def test_quantize_rounds_exact_ties_to_even(exponent, zero_point):
    grid = Grid(F32(2.0**exponent), zero_point)
    halves = np.arange(-300, 300) + 0.5
    nearest = np.array([round(Fraction(half)) for half in halves])
    expected = np.clip(nearest + zero_point, 0, 255).astype(np.uint8)
    x = (halves * 2.0**exponent).astype(F32)
    assert_same(numerics.quantize(x, grid.scale, zero_point), expected)
    assert_same(run_operator("QuantizeLinear", [x, *on(grid)]), expected)


def test_quantize_divides_where_a_reciprocal_would_differ():
    scale = F32(0.7)
    x = (np.arange(255, dtype=F32) + F32(0.5)) * scale
    by_reciprocal = np.clip(np.rint(x * (F32(1) / scale)), 0, 255)
    assert (by_reciprocal != numerics.quantize(x, scale, 0)).any()


@some
@given(grids)
def test_quantize_saturates_huge_values_and_infinities(grid):
    x = np.array([1e30, np.inf, -1e30, -np.inf], F32)
    result = numerics.quantize(x, grid.scale, grid.zero_point)
    assert result.tolist() == [255, 255, 0, 0]
    assert_same(result, run_operator("QuantizeLinear", [x, *on(grid)]))


@pytest.mark.parametrize("lo, hi", [(0, 255), (112, 143), (3, 9)])
def test_quantize_maps_nan_to_the_lowest_code(lo, hi):
    x = np.array([np.nan, np.inf, -np.inf], F32)
    assert numerics.quantize(x, F32(0.1), 128, lo, hi).tolist() == [lo, hi, lo]


@many
@given(st.builds(Grid, scales | st.just(F32(1e-42)), zero_points))
def test_dequantize_is_dequantize_linear_bit_for_bit(grid):
    expected = run_operator("DequantizeLinear", [ALL_CODES, *on(grid)], output=F32)
    result = numerics.dequantize(ALL_CODES, grid.scale, grid.zero_point)
    assert_same(result.view(np.uint32), expected.view(np.uint32))


@some
@given(grids)
def test_quantize_undoes_dequantize(grid):
    values = numerics.dequantize(ALL_CODES, grid.scale, grid.zero_point)
    assert_same(numerics.quantize(values, grid.scale, grid.zero_point), ALL_CODES)


# Weights and biases


@pytest.mark.parametrize("bits", WEIGHT_BITS)
def test_weight_codes_round_ties_to_even_in_the_narrow_range(bits):
    limit = weight_limit(bits)
    halves = np.arange(-2 * limit - 2, 2 * limit + 2) + 0.5
    nearest = np.array([round(Fraction(half)) for half in halves])
    expected = np.clip(nearest, -limit, limit).astype(np.int8)
    scale = np.array([2.0**-7, 2.0**3], F32)
    w = (halves[None] * scale[:, None]).astype(F32)
    assert_same(numerics.quantize_weight(w, scale, limit), np.stack([expected, expected]))


@some
@given(seeds)
def test_weight_codes_are_per_channel_quantize_linear(seed):
    rng = np.random.default_rng(seed)
    scale = random_scales(rng, 4)
    steps = scale.reshape(4, 1, 1, 1)
    ties = (rng.integers(-140, 140, (4, 3, 5, 5)) + F32(0.5)).astype(F32) * steps
    w = np.where(rng.random(ties.shape) < 0.5, ties, rng.normal(0, 60, ties.shape) * steps)
    inputs = [w.astype(F32), scale, np.zeros(4, np.int8)]
    wide = run_operator("QuantizeLinear", inputs, output=np.int8, axis=0)
    result = numerics.quantize_weight(w.astype(F32), scale, 127)
    assert_same(result, np.maximum(wide, -127))


@many
@given(scales, scales)
def test_bias_scale_is_the_product_rounded_once(x_scale, w_scale):
    expected = nearest_float32(Fraction(float(x_scale)) * Fraction(float(w_scale)))
    assert_same(numerics.bias_scale(x_scale, np.array([w_scale])), np.array([expected]))


def test_bias_rounds_ties_to_even_and_keeps_what_exceeds_int32():
    units = np.array([0.5, 1.5, -2.5, 2.0**24 + 1, 2.0**40 + 1])
    scale = np.array([0.25], F32)
    bias = numerics.quantize_bias(units * 0.125, F32(0.5), scale)
    assert bias.tolist() == [0, 2, -2, 2.0**24 + 1, 2.0**40 + 1]


# QLinearConv and QGemm


def qlinear_conv(x, x_grid, w, w_scale, bias, y_grid, **attributes):
    zeros = np.zeros(len(w), np.int8)
    inputs = [x, *on(x_grid), w, w_scale, zeros, *on(y_grid), bias]
    return run_operator("QLinearConv", inputs, **attributes)


def qgemm(x, x_grid, w, w_scale, bias, y_grid):
    zeros = np.zeros(len(w), np.int8)
    inputs = [x, *on(x_grid), w, w_scale, zeros, bias, *on(y_grid)]
    return run_operator("QGemm", inputs, MS, transB=1, alpha=1.0)


def accumulate(x, x_grid, w, bias, pad=0, groups=1):
    """Exact int32 accumulators of a convolution of stride 1, one kernel position at a time."""
    (batch, channels, height, width), (outputs, _, rows, cols) = x.shape, w.shape
    centred = np.pad(x.astype(np.int32) - x_grid.zero_point, [(0, 0)] * 2 + [(pad, pad)] * 2)
    split = centred.reshape(batch, groups, channels // groups, *centred.shape[2:])
    weight = w.astype(np.int32).reshape(groups, outputs // groups, -1, rows, cols)
    height, width = height + 2 * pad - rows + 1, width + 2 * pad - cols + 1
    acc = np.zeros((batch, groups, outputs // groups, height, width), np.int32)
    for i, j in np.ndindex(rows, cols):
        shifted = split[..., i : i + height, j : j + width]
        acc += np.einsum("ngchw,goc->ngohw", shifted, weight[..., i, j])
    return acc.reshape(batch, outputs, height, width) + bias.reshape(1, -1, 1, 1)


def requantized(acc, x_grid, w_scale, y_grid):
    factor = numerics.multiplier(x_grid.scale, w_scale, y_grid.scale)
    return numerics.requantize(acc, factor, y_grid.zero_point)


def covering(acc, x_grid, w_scale, zero_point):
    """A grid of the result on which the real values of `acc` span about two windows."""
    shape = [1, -1] + [1] * (acc.ndim - 2)
    real = np.abs(acc * (x_grid.scale * w_scale.astype(np.float64)).reshape(shape))
    return Grid(F32(max(real.max(), 1e-6) / 250), zero_point)


def any_accumulators(rng, factor):
    """int32 values of every magnitude and both signs, half of them near rounding ties."""
    wide = rng.integers(-(2**31), 2**31, len(factor)) >> rng.integers(0, 31, len(factor))
    ties = np.rint((rng.integers(-300, 300, len(factor)) + 0.5) / factor)
    chosen = np.where(rng.random(len(factor)) < 0.5, wide, ties)
    return np.clip(chosen, -(2**31), 2**31 - 1).astype(np.int32)


@many
@given(grids, grids, seeds)
def test_requantize_is_qlinear_conv_for_any_accumulator(x_grid, y_grid, seed):
    rng = np.random.default_rng(seed)
    w_scale, w = random_scales(rng, 1024), random_weights(rng, 1024, 1, 1, 1)
    bias = any_accumulators(rng, x_grid.scale * w_scale.astype(np.float64) / y_grid.scale)
    x = np.full((1, 1, 1, 1), x_grid.zero_point, np.uint8)
    expected = qlinear_conv(x, x_grid, w, w_scale, bias, y_grid)
    assert_same(requantized(bias.reshape(1, -1, 1, 1), x_grid, w_scale, y_grid), expected)


@some
@given(grids, grids, seeds)
def test_requantize_is_qgemm_for_any_accumulator(x_grid, y_grid, seed):
    rng = np.random.default_rng(seed)
    w_scale, w = random_scales(rng, 1024), random_weights(rng, 1024, 1)
    bias = any_accumulators(rng, x_grid.scale * w_scale.astype(np.float64) / y_grid.scale)
    x = np.full((1, 1), x_grid.zero_point, np.uint8)
    expected = qgemm(x, x_grid, w, w_scale, bias, y_grid)
    assert_same(requantized(bias.reshape(1, -1), x_grid, w_scale, y_grid), expected)


@pytest.mark.parametrize(
    "channels, outputs, kernel, groups",
    [(5, 7, 1, 1), (64, 9, 1, 1), (6, 6, 3, 6), (33, 33, 3, 33), (3, 8, 3, 1), (8, 12, 2, 4)],
    ids=["1x1", "1x1-wide", "depthwise", "depthwise-wide", "3x3", "grouped"],
)
@settings(max_examples=25, deadline=None)
@given(grids, zero_points, seeds)
def test_requantized_sums_are_qlinear_conv(
    channels, outputs, kernel, groups, x_grid, zero_point, seed
):
    rng = np.random.default_rng(seed)
    x = random_codes(rng, 2, channels, 5, 6)
    w = random_weights(rng, outputs, channels // groups, kernel, kernel)
    w_scale = random_scales(rng, outputs)
    bias = rng.integers(-20000, 20000, outputs).astype(np.int32)
    pad = kernel // 2
    acc = accumulate(x, x_grid, w, bias, pad, groups)
    y_grid = covering(acc, x_grid, w_scale, zero_point)
    attributes = {"pads": [pad] * 4, "group": groups}
    expected = qlinear_conv(x, x_grid, w, w_scale, bias, y_grid, **attributes)
    assert_same(requantized(acc, x_grid, w_scale, y_grid), expected)


@many
@given(grids, zero_points, seeds, st.integers(1, 300), st.integers(1, 40), st.integers(1, 5))
def test_requantized_sums_are_qgemm(x_grid, zero_point, seed, inputs, outputs, batch):
    rng = np.random.default_rng(seed)
    x, w = random_codes(rng, batch, inputs), random_weights(rng, outputs, inputs)
    w_scale = random_scales(rng, outputs)
    bias = rng.integers(-50000, 50000, outputs).astype(np.int32)
    acc = (x.astype(np.int32) - x_grid.zero_point) @ w.astype(np.int32).T + bias
    y_grid = covering(acc, x_grid, w_scale, zero_point)
    expected = qgemm(x, x_grid, w, w_scale, bias, y_grid)
    assert_same(requantized(acc, x_grid, w_scale, y_grid), expected)


@some
@given(st.sampled_from([0, 255]), seeds)
def test_extreme_codes_and_weights_are_qlinear_conv(x_zero, seed):
    rng = np.random.default_rng(seed)
    x_grid, w_scale = Grid(F32(0.1), x_zero), random_scales(rng, 6)
    x = rng.choice(np.array([0, 255], np.uint8), (3, 64, 3, 3))
    w = rng.choice(np.array([-127, 127], np.int8), (6, 64, 3, 3))
    x[:2], w[:2] = [[[[0]]], [[[255]]]], [[[[-127]]], [[[127]]]]
    bias = rng.integers(-9, 10, 6).astype(np.int32)
    acc = accumulate(x, x_grid, w, bias)
    assert np.abs(acc).max() > 2**24, "float32 does not hold these sums exactly"
    y_grid = covering(acc, x_grid, w_scale, 128)
    expected = qlinear_conv(x, x_grid, w, w_scale, bias, y_grid)
    assert_same(requantized(acc, x_grid, w_scale, y_grid), expected)


@some
@given(st.integers(0, 12), zero_points)
def test_requantize_rounds_exact_ties_to_even_before_the_zero_point(exponent, zero_point):
    acc = np.arange(-700, 700, dtype=np.int32)[None, :, None] << exponent
    factor = np.full(acc.shape[1], 0.5**exponent / 2, F32)
    nearest = np.array([round(Fraction(int(n), 2)) for n in range(-700, 700)])
    expected = np.clip(nearest + zero_point, 0, 255).astype(np.uint8)[None, :, None]
    assert_same(numerics.requantize(acc, factor, zero_point), expected)


# Fused multiply-add

floats32 = st.floats(-(2.0**60), 2.0**60, width=32)


def exact_fma(a, b, c):
    """The fused multiply-add of float32 arrays, by rational arithmetic."""
    exact = [Fraction(float(x)) * Fraction(float(y)) for x, y in zip(a, b, strict=True)]
    sums = [product + Fraction(float(z)) for product, z in zip(exact, c, strict=True)]
    return np.array([nearest_float32(value) for value in sums], F32)


def naive_fma(a, b, c):
    """The multiply-add in float64, then rounded again to float32."""
    return (a.astype(np.float64) * b + c).astype(F32)


def columns(triples):
    return np.array(triples, F32).T


@many
@given(st.lists(st.tuples(floats32, floats32, floats32), min_size=1, max_size=30))
def test_fma_rounds_the_exact_value_once(triples):
    a, b, c = columns(triples)
    assert_same(numerics.fma(a, b, c), exact_fma(a, b, c))


@many
@given(st.lists(st.tuples(floats32, floats32), min_size=1, max_size=30))
def test_fma_recovers_the_rounding_error_of_a_product(pairs):
    a, b = columns(pairs)
    assert_same(numerics.fma(a, b, -(a * b)), exact_fma(a, b, -(a * b)))


@st.composite
def products_half_way(draw):
    """Odd a and b whose 25-bit product lies half-way between two float32, and a small c."""
    a = draw(st.integers(1, 511)) * 2 + 1
    b = draw(st.integers(2**24 // a + 1, (2**25 - 1) // a)) | 1
    assume(a * b < 2**25)
    size = draw(st.sampled_from([1, 3])) * 2.0 ** -draw(
        st.integers(26, 32) | st.integers(26, 99)
    )
    return a, b, draw(st.sampled_from([-size, size]))


@many
@given(st.lists(products_half_way(), min_size=1, max_size=10))
def test_fma_breaks_ties_towards_the_addend_however_small(triples):
    a, b, c = columns(triples)
    product = a.astype(np.int64) * b.astype(np.int64)
    expected = np.where(c > 0, product + 1, product - 1).astype(F32)
    assert_same(numerics.fma(a, b, c), expected)
    assert_same(exact_fma(a, b, c), expected)


def test_a_float64_detour_rounds_twice_where_fma_rounds_once():
    # 97 * 172961 = 2**24 + 1 is half-way between 2**24 and 2**24 + 2; float64 drops c.
    a, b, c = columns([(97.0, 172961.0, 2.0**-60)])
    assert naive_fma(a, b, c) == 2**24
    assert numerics.fma(a, b, c) == exact_fma(a, b, c) == 2**24 + 2


def test_fma_broadcasts_scalars_against_arrays():
    codes = ALL_CODES.astype(F32)
    result = numerics.fma(codes, F32(0.1), F32(-3.7))
    assert_same(result, exact_fma(codes, [F32(0.1)] * 256, [F32(-3.7)] * 256))


# QLinearAdd


def qlinear_add(a, a_grid, b, b_grid, y_grid):
    inputs = [a, *on(a_grid), b, *on(b_grid), *on(y_grid)]
    return run_operator("QLinearAdd", inputs, MS, live=(0, 3))


def added(a, a_grid, b, b_grid, y_grid):
    constants = [(grid.scale, grid.zero_point) for grid in (a_grid, b_grid, y_grid)]
    return numerics.add(a, *constants[0], b, *constants[1], *constants[2])


@many
@given(grids, grids, grids)
def test_add_is_qlinear_add_for_every_pair_of_codes(a_grid, b_grid, y_grid):
    a, b = (np.ascontiguousarray(axis) for axis in np.meshgrid(ALL_CODES, ALL_CODES))
    expected = qlinear_add(a, a_grid, b, b_grid, y_grid)
    assert_same(added(a, a_grid, b, b_grid, y_grid), expected)


@pytest.mark.parametrize("seed", range(5))
def test_add_is_qlinear_add_on_tie_heavy_grids(seed):
    rng = np.random.default_rng(seed)
    a, b = (np.ascontiguousarray(axis) for axis in np.meshgrid(ALL_CODES, ALL_CODES))
    for _ in range(20):
        zeros = rng.integers(0, 256, 3).tolist()
        three = [Grid(*pair) for pair in zip(random_scales(rng, 3), zeros, strict=True)]
        assert_same(added(a, three[0], b, *three[1:]), qlinear_add(a, three[0], b, *three[1:]))


def test_add_fuses_the_offset_of_the_zero_points():
    a, b = (np.ascontiguousarray(axis) for axis in np.meshgrid(ALL_CODES, ALL_CODES))
    three = Grid(F32(0.3), 216), Grid(F32(1 / 3), 86), Grid(F32(1 / 3), 96)
    ra, rb, c = numerics.add_coefficients(*[v for g in three for v in (g.scale, g.zero_point)])
    unfused = F32(96) - (ra * F32(216) + rb * F32(86))
    swapped = F32(96) - numerics.fma(rb, F32(86), ra * F32(216))
    assert c not in (unfused, swapped)
    assert_same(added(a, three[0], b, *three[1:]), qlinear_add(a, three[0], b, *three[1:]))


# ONNX Runtime takes a tensor of one single element for a scalar and swaps the operands.
@some
@given(st.integers(2, 80), grids, grids, grids, seeds)
def test_add_is_qlinear_add_for_any_length(length, a_grid, b_grid, y_grid, seed):
    a, b = random_codes(np.random.default_rng(seed), 2, length)
    expected = qlinear_add(a, a_grid, b, b_grid, y_grid)
    assert_same(added(a, a_grid, b, b_grid, y_grid), expected)


@some
@given(st.integers(-8, 8), zero_points, zero_points, zero_points)
def test_add_rounds_exact_ties_to_even_after_the_zero_point(exponent, a_zero, b_zero, y_zero):
    a, b = np.meshgrid(ALL_CODES, ALL_CODES)
    half, unit = F32(2.0**exponent), F32(2.0 ** (exponent + 1))
    result = added(a, Grid(half, a_zero), b, Grid(half, b_zero), Grid(unit, y_zero))
    halves = (a.astype(np.int64) - a_zero) + (b.astype(np.int64) - b_zero) + 2 * y_zero
    # n / 2 half-even: the odd n go to the multiple of 4 beside them.
    nearest = np.where(halves % 2 == 0, halves // 2, (halves + 1) // 4 * 2)
    assert_same(result, np.clip(nearest, 0, 255).astype(np.uint8))


# QLinearGlobalAveragePool and QLinearLeakyRelu


@pytest.mark.parametrize("height, width", [(1, 1), (1, 2), (2, 3), (2, 5), (7, 7), (12, 12)])
@settings(max_examples=25, deadline=None)
@given(grids, grids, seeds)
def test_average_is_qlinear_global_average_pool(height, width, x_grid, y_grid, seed):
    assume(x_grid.scale / y_grid.scale < 256)  # ONNX Runtime refuses larger factors
    rng = np.random.default_rng(seed)
    near_zero = x_grid.zero_point + rng.integers(-4, 5, (1, 64, height, width))
    small = np.clip(near_zero, 0, 255).astype(np.uint8)
    x = np.concatenate([small, random_codes(rng, 1, 64, height, width)])
    inputs = [x, *on(x_grid), *on(y_grid)]
    expected = run_operator("QLinearGlobalAveragePool", inputs, MS, channels_last=0)
    total = (x.astype(np.int32) - x_grid.zero_point).sum((2, 3), keepdims=True, dtype=np.int32)
    result = numerics.average(
        total, x_grid.scale, y_grid.scale, height * width, y_grid.zero_point
    )
    assert_same(result, expected)


def test_average_of_exact_ties_rounds_to_even_before_the_zero_point():
    total = np.arange(-9, 10, 2, dtype=np.int32)
    result = numerics.average(total, F32(0.5), F32(0.25), 4, 129)
    assert result.tolist() == [129 + round(Fraction(int(n), 2)) for n in total]


@many
@given(grids, grids)
def test_rescale_table_is_leaky_relu_of_slope_one(x_grid, y_grid):
    inputs = [ALL_CODES, *on(x_grid), *on(y_grid)]
    expected = run_operator("QLinearLeakyRelu", inputs, MS, alpha=1.0)
    table = numerics.rescale_table(
        x_grid.scale, x_grid.zero_point, y_grid.scale, y_grid.zero_point
    )
    assert_same(table, expected)


@some
@given(grids)
def test_rescale_to_the_same_grid_changes_nothing(grid):
    same = (grid.scale, grid.zero_point)
    assert_same(numerics.rescale_table(*same, *same), ALL_CODES)


# Windows and clipping bounds


def windowed_results(lo, hi):
    """Every windowed formula on values that cover far more than one window."""
    x = np.linspace(-60, 60, 500, dtype=F32)
    acc = np.arange(-2000, 2000, 7, dtype=np.int32).reshape(1, 1, -1)
    scale, a, b = F32(0.1), ALL_CODES, ALL_CODES[::-1] // 3
    return {
        "quantize": numerics.quantize(x, scale, 128, lo, hi),
        "requantize": numerics.requantize(acc, np.array([0.1], F32), 128, lo, hi),
        "add": numerics.add(a, scale, 128, b, scale, 80, F32(0.07), 128, lo, hi),
        "average": numerics.average(acc, scale, scale, 6, 128, lo, hi),
        "rescale": numerics.rescale_table(scale, 100, F32(0.07), 128, lo, hi),
    }


WINDOWS = [activation_window(bits, signed) for bits in (1, 2, 4, 7) for signed in (0, 1)]


@pytest.mark.parametrize("window", WINDOWS, ids=lambda window: f"{window.lo}-{window.hi}")
def test_a_window_clips_the_full_result(window):
    full = windowed_results(0, 255)
    for name, result in windowed_results(window.lo, window.hi).items():
        clip = [full[name], np.uint8(window.lo), np.uint8(window.hi)]
        assert_same(result, run_operator("Clip", clip))
        assert {window.lo, window.hi} <= set(result.flat), name


def test_saturate_clips_beyond_the_window_and_keeps_its_ends():
    values = np.array([-1e9, -1, 0, 4, 5, 200, 201, 255, 256, 1e9])
    assert numerics.saturate(values, 4, 200).tolist() == [4, 4, 4, 4, 5, 200, 200] + [200] * 3


def to_codes(values, grid):
    return np.rint(values / grid.scale).astype(np.int64) + grid.zero_point


@st.composite
def clipped_values(draw):
    """A grid, a clipping bound (often half-way between codes), and values, some beside it."""
    grid = draw(grids)
    half_way = F32(draw(st.integers(-300, 300)) + 0.5) * grid.scale
    bound = draw(st.just(half_way) | st.floats(-100, 100, width=32).map(F32))
    values = np.array(draw(st.lists(st.floats(-200, 200, width=32), max_size=30)), F32)
    beside = [bound, np.nextafter(bound, F32(-1e6)), np.nextafter(bound, F32(1e6))]
    return np.append(values, beside).astype(F32), bound, grid


@many
@given(clipped_values())
def test_clip_code_commutes_with_rounding(case):
    values, bound, grid = case
    code = numerics.clip_code(float(bound), grid.scale, grid.zero_point)
    codes = to_codes(values, grid)
    assert_same(to_codes(np.minimum(values, bound), grid), np.minimum(codes, code))
    assert_same(to_codes(np.maximum(values, bound), grid), np.maximum(codes, code))


@pytest.mark.parametrize("half", [0.5, 1.5, 2.5, -0.5, -1.5])
def test_clip_code_of_an_exact_tie_is_even_before_the_zero_point(half):
    assert numerics.clip_code(half * 0.25, F32(0.25), 7) == round(half) + 7


@some
@given(grids)
def test_relu_is_the_zero_point(grid):
    assert numerics.clip_code(0.0, grid.scale, grid.zero_point) == grid.zero_point


@many
@given(st.integers(-(2**60), 2**60), st.integers(-200, 60))
def test_nearest_float32_agrees_with_numpy_where_float64_is_exact(numerator, exponent):
    value = float(numerator)  # at most 53 bits
    exact = Fraction(int(value)) * Fraction(2) ** exponent
    assert nearest_float32(exact) == F32(math.ldexp(value, exponent))
