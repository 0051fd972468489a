"""Requantized sums against QLinearConv, QGemm and QLinearMatMul, to the last integer."""

from fractions import Fraction

import numpy as np
import pytest
from arrays import assert_same, random_codes, random_weights
from hypothesis import given, settings
from hypothesis import strategies as st
from operators import (
    F32,
    grids,
    many,
    on,
    random_scales,
    run_operator,
    seeds,
    some,
    wide_grids,
    wide_scales,
    zero_points,
)

from qtool.core import numerics
from qtool.core.dialect import MS, Grid

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


def test_every_zero_point_of_input_and_result():
    rng = np.random.default_rng(7)
    x, w = random_codes(rng, 2, 37), random_weights(rng, 6, 37)
    w_scale, bias = random_scales(rng, 6), rng.integers(-9999, 9999, 6).astype(np.int32)
    for zero_point in range(256):
        x_grid = Grid(F32(0.1), zero_point)
        acc = (x.astype(np.int32) - zero_point) @ w.astype(np.int32).T + bias
        y_grid = covering(acc, x_grid, w_scale, 255 - zero_point)
        result = requantized(acc, x_grid, w_scale, y_grid)
        assert_same(result, qgemm(x, x_grid, w, w_scale, bias, y_grid))
        square, kernel = x[..., None, None], w[..., None, None]
        expected = qlinear_conv(square, x_grid, kernel, w_scale, bias, y_grid)
        assert_same(result[..., None, None], expected)


@some
@given(wide_grids, wide_grids, st.lists(wide_scales, min_size=5, max_size=5), seeds)
def test_requantize_holds_for_scales_of_any_magnitude(x_grid, y_grid, w_scale, seed):
    rng, w_scale = np.random.default_rng(seed), np.array(w_scale)
    factor = numerics.multiplier(x_grid.scale, w_scale, y_grid.scale)
    w_scale[np.isinf(factor)] = 2.0**-149
    x, w = random_codes(rng, 3, 9), random_weights(rng, 5, 9)
    bias = rng.integers(-(2**29), 2**29, 5).astype(np.int32)
    acc = (x.astype(np.int32) - x_grid.zero_point) @ w.astype(np.int32).T + bias
    result = requantized(acc, x_grid, w_scale, y_grid)
    assert_same(result, qgemm(x, x_grid, w, w_scale, bias, y_grid))
    square, kernel = x[..., None, None], w[..., None, None]
    expected = qlinear_conv(square, x_grid, kernel, w_scale, bias, y_grid)
    assert_same(result[..., None, None], expected)


# QLinearMatMul


@pytest.mark.parametrize("per_column", [False, True], ids=["per-tensor", "per-column"])
@pytest.mark.parametrize("kind", [np.int8, np.uint8])
@settings(max_examples=30, deadline=None)
@given(grids, zero_points, seeds, st.integers(1, 70), st.integers(1, 40))
def test_requantized_products_are_qlinear_mat_mul(
    kind, per_column, x_grid, zero_point, seed, inputs, outputs
):
    rng, limits = np.random.default_rng(seed), np.iinfo(kind)
    x = random_codes(rng, 3, inputs)
    w = rng.integers(limits.min, limits.max + 1, (inputs, outputs)).astype(kind)
    w_scale = random_scales(rng, outputs if per_column else ())
    w_zero = rng.integers(limits.min, limits.max + 1, w_scale.shape).astype(kind)
    acc = (x.astype(np.int32) - x_grid.zero_point) @ (w.astype(np.int32) - w_zero)
    acc, columns = acc.astype(np.int32), np.broadcast_to(w_scale, outputs)
    y_grid = covering(acc, x_grid, columns, zero_point)
    expected = run_operator("QLinearMatMul", [x, *on(x_grid), w, w_scale, w_zero, *on(y_grid)])
    assert_same(requantized(acc, x_grid, columns, y_grid), expected)
