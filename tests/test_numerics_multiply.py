"""QLinearMul for every shape that broadcasts, and where its int32 overflows."""

import numpy as np
import pytest
from arrays import assert_same, random_codes
from hypothesis import assume, given
from hypothesis import strategies as st
from operators import (
    ALL_CODES,
    BROADCASTS,
    F32,
    grids,
    many,
    on,
    params,
    random_scales,
    run_operator,
    seeds,
    some,
    wide_scales,
    zero_points,
)

from qtool.core import numerics
from qtool.core.dialect import MS, Grid

ALL_PAIRS = [np.ascontiguousarray(axis) for axis in np.meshgrid(ALL_CODES, ALL_CODES)]
# Products of two grids over these stay near the window and often half-way between codes.
RATIOS = [0.5, 1, 2, 3, 6, 64, 100, 128, 254, 255, 256, 512]


def qlinear_mul(a, a_grid, b, b_grid, y_grid, live=(0, 3)):
    inputs = [a, *on(a_grid), b, *on(b_grid), *on(y_grid)]
    return run_operator("QLinearMul", inputs, MS, live=live)


def multiplied(a, a_grid, b, b_grid, y_grid):
    return numerics.multiply(a, *params(a_grid), b, *params(b_grid, y_grid))


@st.composite
def three_grids(draw):
    """Two factors' grids, and a result's grid that about covers the products."""
    a, b = draw(grids), draw(grids)
    ratio = draw(st.sampled_from(RATIOS) | st.floats(1, 600))
    return a, b, Grid(F32(a.scale * b.scale * ratio), draw(zero_points))


@many
@given(three_grids())
def test_multiply_is_qlinear_mul_for_every_pair_of_codes(three):
    (a, b), (a_grid, b_grid, y_grid) = ALL_PAIRS, three
    expected = qlinear_mul(a, a_grid, b, b_grid, y_grid)
    assert_same(multiplied(a, a_grid, b, b_grid, y_grid), expected)


def test_multiply_is_qlinear_mul_for_every_zero_point():
    rng = np.random.default_rng(4)
    for zero_point in range(256):
        a, b = random_codes(rng, 2, 999)
        a_scale, b_scale = random_scales(rng, 2)
        y_scale = F32(a_scale * b_scale * rng.choice(RATIOS))
        zeros = zero_point, 255 - zero_point, int(rng.integers(256))
        a_grid, b_grid = Grid(a_scale, zeros[0]), Grid(b_scale, zeros[1])
        y_grid = Grid(y_scale, zeros[2])
        expected = qlinear_mul(a, a_grid, b, b_grid, y_grid)
        assert_same(multiplied(a, a_grid, b, b_grid, y_grid), expected)


@pytest.mark.parametrize("length", range(1, 71))
def test_multiply_is_qlinear_mul_for_every_length(length):
    rng = np.random.default_rng(length)
    for _ in range(4):
        a_scale, b_scale = random_scales(rng, 2)
        y_scale = F32(a_scale * b_scale * rng.choice(RATIOS))
        pairs = zip((a_scale, b_scale, y_scale), rng.integers(0, 256, 3).tolist(), strict=True)
        a_grid, b_grid, y_grid = (Grid(*pair) for pair in pairs)
        a, b = random_codes(rng, 2, length)
        expected = qlinear_mul(a, a_grid, b, b_grid, y_grid)
        assert_same(multiplied(a, a_grid, b, b_grid, y_grid), expected)


@many
@given(
    three_grids(), seeds, st.sampled_from(BROADCASTS), st.sampled_from([(0, 3), (0,), (3,)])
)
def test_multiply_broadcasts_in_either_order(three, seed, b_shape, live):
    rng, (a_grid, b_grid, y_grid) = np.random.default_rng(seed), three
    a, b = random_codes(rng, 2, 3, 5, 7), random_codes(rng, *b_shape)
    result = multiplied(a, a_grid, b, b_grid, y_grid)
    assert_same(result, qlinear_mul(a, a_grid, b, b_grid, y_grid, live))
    assert_same(result, qlinear_mul(b, b_grid, a, a_grid, y_grid, live))


@some
@given(st.integers(-8, 8), zero_points, zero_points, zero_points)
def test_multiply_rounds_exact_ties_to_even_after_the_zero_point(
    exponent, a_zero, b_zero, zero
):
    a, b = ALL_PAIRS
    a_grid, b_grid = Grid(F32(2.0**exponent), a_zero), Grid(F32(0.25), b_zero)
    result = multiplied(a, a_grid, b, b_grid, Grid(F32(2.0 ** (exponent - 1)), zero))
    halves = (a.astype(np.int64) - a_zero) * (b.astype(np.int64) - b_zero) + 2 * zero
    # n / 2 half-even: the odd n go to the multiple of 4 beside them.
    nearest = np.where(halves % 2 == 0, halves // 2, (halves + 1) // 4 * 2)
    assert_same(result, np.clip(nearest, 0, 255).astype(np.uint8))


@many
@given(wide_scales, wide_scales, wide_scales, st.tuples(*[zero_points] * 3))
def test_multiply_holds_below_the_largest_factor(a_scale, b_scale, y_scale, zeros):
    factor = numerics.multiply_factor(a_scale, b_scale, y_scale)
    assume(factor <= numerics.MULTIPLY_FACTOR_MAX)
    (a, b), scales = ALL_PAIRS, (a_scale, b_scale, y_scale)
    a_grid, b_grid, y_grid = (Grid(*pair) for pair in zip(scales, zeros, strict=True))
    expected = qlinear_mul(a, a_grid, b, b_grid, y_grid)
    assert_same(multiplied(a, a_grid, b, b_grid, y_grid), expected)


# Zero points of both that leave products of 255 * 255.
EXTREMES = [(0, 0), (255, 255)]


@pytest.mark.parametrize("a_zero, b_zero", [(0, 0), (0, 255), (255, 255), (128, 128)])
def test_the_largest_factor_is_the_last_power_of_two_without_overflow(a_zero, b_zero):
    (a, b), y_grid = ALL_PAIRS, Grid(F32(1), 255)
    largest = numerics.MULTIPLY_FACTOR_MAX
    for scale, differs in ((largest, False), (2 * largest, (a_zero, b_zero) in EXTREMES)):
        a_grid, b_grid = Grid(F32(scale), a_zero), Grid(F32(1), b_zero)
        result = multiplied(a, a_grid, b, b_grid, y_grid)
        expected = qlinear_mul(a, a_grid, b, b_grid, y_grid)
        assert (result != expected).any() == differs
