"""Formulas of qtool.core.numerics against ONNX Runtime's own operator, to the last integer.

This file: QuantizeLinear, DequantizeLinear, weights, biases and windows.
"""

import math
from fractions import Fraction

import numpy as np
import pytest
from arrays import assert_same
from hypothesis import given
from hypothesis import strategies as st
from operators import (
    ALL_CODES,
    F32,
    grids,
    many,
    nearest_float32,
    on,
    random_scales,
    run_operator,
    scales,
    seeds,
    some,
    zero_points,
)

from qtool.core import numerics, weight_codes
from qtool.core.dialect import Grid
from qtool.core.grids import WEIGHT_BITS, activation_window, weight_limit

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
    assert_same(weight_codes.quantize_weight(w, scale, limit), np.stack([expected, expected]))


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
    result = weight_codes.quantize_weight(w.astype(F32), scale, 127)
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
        "multiply": numerics.multiply(a, scale, 128, b, scale, 80, F32(0.07), 128, lo, hi),
        "average": numerics.average(acc, scale, scale, 6, 128, lo, hi),
        "rescale": numerics.rescale_table(scale, 100, F32(0.07), 128, lo, hi),
        "leaky": numerics.leaky_table(0.9, scale, 100, F32(0.07), 128, lo, hi),
        "function": numerics.lookup_table(np.sinh, scale, 128, scale, 128, lo, hi),
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
