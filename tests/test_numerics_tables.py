"""Formulas that are one table of 256 answers, and QLinearGlobalAveragePool."""

from decimal import Decimal, localcontext
from fractions import Fraction

import numpy as np
import pytest
import torch
from arrays import assert_same, random_codes
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from operators import (
    ALL_CODES,
    F32,
    grids,
    many,
    on,
    params,
    random_scales,
    run_operator,
    seeds,
    some,
    wide_grids,
)

from qtool.core import numerics
from qtool.core.dialect import MS, Grid

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


@some
@given(wide_grids, wide_grids)
def test_rescale_and_leaky_tables_hold_for_scales_of_any_magnitude(x_grid, y_grid):
    inputs = [ALL_CODES, *on(x_grid), *on(y_grid)]
    for alpha in (1.0, 0.1):
        expected = run_operator("QLinearLeakyRelu", inputs, MS, alpha=alpha)
        assert_same(numerics.leaky_table(alpha, *params(x_grid, y_grid)), expected)


ALPHAS = st.sampled_from([0.0, 0.01, 0.1, 0.125, 0.2, 0.25, 0.5, 1.0, 2.0, -0.5])


@many
@given(grids, grids, ALPHAS | st.floats(-2, 2, width=32))
def test_leaky_table_is_qlinear_leaky_relu(x_grid, y_grid, alpha):
    inputs = [ALL_CODES, *on(x_grid), *on(y_grid)]
    expected = run_operator("QLinearLeakyRelu", inputs, MS, alpha=alpha)
    assert_same(numerics.leaky_table(alpha, *params(x_grid, y_grid)), expected)


def test_tables_hold_for_every_zero_point():
    rng = np.random.default_rng(5)
    for zero_point in range(256):
        x_grid = Grid(random_scales(rng, 1)[0], zero_point)
        y_grid = Grid(random_scales(rng, 1)[0], int(rng.integers(256)))
        inputs = [ALL_CODES, *on(x_grid), *on(y_grid)]
        for alpha in (1.0, 0.1):
            expected = run_operator("QLinearLeakyRelu", inputs, MS, alpha=alpha)
            assert_same(numerics.leaky_table(alpha, *params(x_grid, y_grid)), expected)


@many
@given(st.lists(grids, min_size=1, max_size=4), grids, seeds, st.booleans())
def test_concat_is_one_rescale_table_per_input(x_grids, y_grid, seed, share):
    rng = np.random.default_rng(seed)
    x_grids = [y_grid, *x_grids] if share else x_grids
    parts = [random_codes(rng, 2, int(rng.integers(1, 70)), 3, 1) for _ in x_grids]
    pairs = list(zip(parts, x_grids, strict=True))
    inputs = [*on(y_grid), *[v for x, grid in pairs for v in (x, *on(grid))]]
    live = tuple(range(2, len(inputs), 3))
    expected = run_operator("QLinearConcat", inputs, MS, live=live, axis=1)
    tables = [numerics.rescale_table(*params(grid, y_grid)) for grid in x_grids]
    result = [table[x] for table, x in zip(tables, parts, strict=True)]
    assert_same(np.concatenate(result, 1), expected)


# Functions: qtool's own tables

FUNCTIONS = {"sigmoid": numerics.sigmoid, "hard_sigmoid": numerics.hard_sigmoid}
FUNCTIONS |= {"silu": numerics.silu}


def precise(name, x):
    """The function of a Fraction, to 50 digits."""
    with localcontext() as context:
        context.prec = 50
        value = Decimal(x.numerator) / Decimal(x.denominator)
        gate = 1 / (1 + (-value).exp())
        if name == "hard_sigmoid":
            return max(Fraction(0), min(Fraction(1), x / 6 + Fraction(1, 2)))
        return Fraction(gate if name == "sigmoid" else value * gate)


@pytest.mark.parametrize("name", FUNCTIONS)
@settings(max_examples=15, deadline=None)
@given(grids, grids)
def test_lookup_table_rounds_the_function_once(name, x_grid, y_grid):
    unit, step = Fraction(float(y_grid.scale)), Fraction(float(x_grid.scale))
    table = numerics.lookup_table(FUNCTIONS[name], *params(x_grid, y_grid))
    for code, got in enumerate(table.tolist()):
        exact = precise(name, (code - x_grid.zero_point) * step) / unit
        nearest = {round(exact)}
        if abs(exact - (exact // 1) - Fraction(1, 2)) < Fraction(1, 10**9):
            nearest = {exact // 1, exact // 1 + 1}  # float64 decides
        assert got in {min(max(n + y_grid.zero_point, 0), 255) for n in nearest}


def test_hard_sigmoid_and_silu_are_torchs():
    x = np.linspace(-20, 20, 4001)
    for name in ("hard_sigmoid", "silu", "sigmoid"):
        twin = getattr(torch.nn.functional, name.replace("_", ""))(torch.from_numpy(x))
        np.testing.assert_allclose(FUNCTIONS[name](x), twin.numpy(), rtol=0, atol=1e-14)


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("x_zero", [0, 128, 255])
def test_function_tables_saturate_without_a_warning_at_huge_scales(name, x_zero):
    table = numerics.lookup_table(FUNCTIONS[name], F32(1e38), x_zero, F32(1 / 255), 0)
    codes, top = np.arange(256), numerics.quantize(np.array([0.5], F32), F32(1 / 255), 0)[0]
    at_zero = 0 if name == "silu" else top
    expected = np.where(codes < x_zero, 0, np.where(codes > x_zero, 255, at_zero))
    assert_same(table, expected.astype(np.uint8))


def test_a_table_on_the_gates_grid_reaches_both_ends():
    table = numerics.lookup_table(numerics.hard_sigmoid, F32(1 / 32), 128, F32(1 / 255), 0)
    assert (table[0], table[-1]) == (0, 255) and (np.diff(table.astype(int)) >= 0).all()
