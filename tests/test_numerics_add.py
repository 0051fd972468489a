"""Fused multiply-add against rational arithmetic, and QLinearAdd, which is made of it."""

from fractions import Fraction
from itertools import product

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
    nearest_float32,
    on,
    random_scales,
    run_operator,
    seeds,
    some,
    zero_points,
)

from qtool.core import numerics
from qtool.core.dialect import MS, Grid

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


def test_add_is_qlinear_add_for_every_zero_point():
    rng = np.random.default_rng(3)
    for zero_point in range(256):
        a, b = random_codes(rng, 2, 999)
        zeros = [zero_point, 255 - zero_point, int(rng.integers(256))]
        three = [Grid(*pair) for pair in zip(random_scales(rng, 3), zeros, strict=True)]
        assert_same(added(a, three[0], b, *three[1:]), qlinear_add(a, three[0], b, *three[1:]))


# The operands' order

# Codes on which `add` of (a, b) and of (b, a) differ: the order of roundings shows.
ORDERED = Grid(F32(0.3), 216), Grid(F32(1 / 3), 86), Grid(F32(1 / 3), 96)


def ordered_codes():
    a, b = (axis.reshape(-1) for axis in np.meshgrid(ALL_CODES, ALL_CODES))
    differ = added(a, *ORDERED[:1], b, *ORDERED[1:]) != swapped(a, b)
    assert differ.any()
    return a[differ][0], b[differ][0]


def swapped(a, b):
    return added(b, ORDERED[1], a, ORDERED[0], ORDERED[2])


CUBES = list(product((1, 2, 3), repeat=3))
PAIRS = [
    (a, b)
    for a in CUBES
    for b in CUBES
    if all(n == m or (n * m <= 3 and 1 in (n, m)) for n, m in zip(a, b, strict=True))
]
PAIRS += [((), ()), ((1,), ()), ((5,), ()), ((), (5,)), ((2, 3, 4), (4,)), ((1,), (2, 3, 4))]
PAIRS += [
    ((2, 8, 7, 7), (2, 8, 1, 1)),
    ((1, 8, 1, 1), (2, 8, 7, 7)),
    ((1, 8, 1, 1), (8, 1, 1)),
]


@pytest.mark.parametrize("live", [(0, 3), (0,), (3,)], ids=["", "b-constant", "a-constant"])
def test_add_swaps_says_which_operand_comes_first(live):
    codes = ordered_codes()
    for a_shape, b_shape in PAIRS:
        a, b = np.full(a_shape, codes[0]), np.full(b_shape, codes[1])
        inputs = [a, *on(ORDERED[0]), b, *on(ORDERED[1]), *on(ORDERED[2])]
        expected = run_operator("QLinearAdd", inputs, MS, live=live)
        swaps = numerics.add_swaps(a_shape, b_shape)
        result = swapped(a, b) if swaps else added(a, ORDERED[0], b, *ORDERED[1:])
        np.testing.assert_array_equal(result, expected, f"{a_shape} + {b_shape}", strict=True)


@some
@given(grids, grids, grids, seeds, st.sampled_from(BROADCASTS), st.booleans())
def test_add_broadcasts_a_gate_a_channel_constant_or_a_scalar(
    a_grid, b_grid, y_grid, seed, b_shape, live
):
    rng = np.random.default_rng(seed)
    a, b = random_codes(rng, 2, 3, 5, 7), random_codes(rng, *b_shape)
    inputs = [a, *on(a_grid), b, *on(b_grid), *on(y_grid)]
    expected = run_operator("QLinearAdd", inputs, MS, live=(0, 3) if live else (0,))
    assert_same(added(a, a_grid, b, b_grid, y_grid), expected)
