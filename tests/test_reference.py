"""The reference runtime's operators against independent computations, exact to the integer."""

import dataclasses
from fractions import Fraction

import numpy as np
import pytest
import torch
from arrays import assert_same, random_codes, random_weights
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from qtool.core import numerics
from qtool.core.dialect import (
    Add,
    Average,
    Conv,
    Gemm,
    Grid,
    Lookup,
    MaxPool,
    Op,
    Program,
    Quantize,
    Reshape,
)
from qtool.core.selection import LayerBits
from runtimes.reference import (
    ReferenceRuntime,
    _exact_type,
    conv_accumulate,
    execute,
    gemm_accumulate,
)

F32 = np.float32
BITS = LayerBits(8, 8)
UNIT = Grid(F32(1), 0)
ALL_CODES = np.arange(256, dtype=np.uint8)


def make(kind, grid=UNIT, lo=0, hi=255, inputs=("x",), shape=(), **fields):
    """An operator of the dialect called "op"; only a convolution's shape matters here."""
    return kind("op", "y", inputs, grid, lo, hi, shape, **fields)


def conv_op(w, size, x_zero=0, bias=None, **fields):
    """A convolution of images of `size`, (height, width)."""
    attributes = {"strides": (1, 1), "pads": (0,) * 4, "dilations": (1, 1), "groups": 1}
    attributes |= {"w_scale": np.ones(len(w), F32), "bits": BITS, "x": Grid(F32(1), x_zero)}
    attributes |= fields
    padded = np.add(size, np.add(attributes["pads"][:2], attributes["pads"][2:]))
    reach = np.subtract(w.shape[2:], 1) * attributes["dilations"] + 1
    shape = (len(w), *((padded - reach) // attributes["strides"] + 1).tolist())
    bias = np.zeros(len(w), np.int32) if bias is None else bias
    return make(Conv, w_OIHW=w, bias=bias, shape=shape, **attributes)


def gemm_op(w, x_zero=0, bias=None, **fields):
    attributes = {"w_scale": np.ones(len(w), F32), "bits": BITS, "x": Grid(F32(1), x_zero)}
    bias = np.zeros(len(w), np.int32) if bias is None else bias
    return make(Gemm, w_OI=w, bias=bias, **attributes | fields)


def random_bias(rng, count):
    return rng.integers(-(2**20), 2**20, count).astype(np.int32)


def torch_conv(op, x):
    """The accumulators by torch in float64, on centred integers."""
    top, left, bottom, right = op.pads
    centred = torch.from_numpy(x.astype(np.float64) - op.x.zero_point)
    padded = functional.pad(centred, (left, right, top, bottom))
    weight, bias = (torch.from_numpy(v.astype(np.float64)) for v in (op.w_OIHW, op.bias))
    acc = functional.conv2d(
        padded, weight, bias, stride=op.strides, dilation=op.dilations, groups=op.groups
    )
    return acc.numpy().astype(np.int32)


# Convolution


@dataclasses.dataclass(frozen=True)
class Case:
    """A convolution: (channels, height, width) of its input and all its attributes."""

    image: tuple[int, int, int]
    outputs: int
    kernel: tuple[int, int] = (3, 3)
    batch: int = 1
    groups: int = 1
    strides: tuple[int, int] = (1, 1)
    pads: tuple[int, int, int, int] = (0, 0, 0, 0)
    dilations: tuple[int, int] = (1, 1)


CASES = {
    "plain": Case((3, 8, 8), 5),
    "1x1": Case((7, 5, 4), 9, (1, 1)),
    "1x1 image": Case((16, 1, 1), 11, (1, 1), batch=3),
    "1x1 image, padded 3x3": Case((5, 1, 1), 4, pads=(1, 1, 1, 1)),
    "as many outputs as channels": Case((6, 5, 5), 6),
    "grouped, as many outputs as channels": Case((8, 5, 5), 8, groups=2),
    "one channel": Case((1, 6, 6), 1),
    "one channel, two outputs": Case((1, 6, 6), 2),
    "odd channels": Case((13, 6, 5), 17, (2, 3), batch=2),
    "wide kernel": Case((3, 4, 9), 4, (1, 7), pads=(0, 3, 0, 3)),
    "groups": Case((12, 6, 6), 8, groups=4, batch=2),
    "groups, more outputs": Case((6, 5, 5), 9, groups=3, pads=(1, 1, 1, 1)),
    "depthwise": Case((7, 6, 6), 7, groups=7, batch=2),
    "depthwise, strided and padded": Case(
        (10, 7, 9), 10, groups=10, strides=(2, 2), pads=(1, 1, 1, 1)
    ),
    "depthwise, dilated": Case((4, 9, 9), 4, groups=4, dilations=(2, 3)),
    "depth multiplier 2": Case((5, 6, 6), 10, groups=5, batch=3),
    "depth multiplier 3, 1x1": Case((4, 3, 3), 12, (1, 1), groups=4, batch=2),
    "stride": Case((4, 9, 10), 6, strides=(2, 3)),
    "stride above kernel": Case((4, 11, 12), 6, (2, 1), strides=(5, 4), batch=2),
    "stride above image": Case((4, 3, 3), 6, strides=(9, 9)),
    "dilation": Case((3, 11, 12), 5, dilations=(2, 3), batch=2),
    "dilation, stride and pads": Case(
        (3, 9, 9), 5, strides=(2, 1), pads=(2, 1, 0, 3), dilations=(3, 2), batch=2
    ),
    "asymmetric pads": Case((3, 5, 6), 4, pads=(0, 1, 2, 3), batch=2),
    "pads above kernel": Case((2, 2, 2), 3, (2, 2), pads=(3, 4, 5, 2)),
}


def random_conv(case, x_zero, seed):
    """A convolution like `case` with random constants, and its input."""
    rng = np.random.default_rng(seed)
    per_group = case.image[0] // case.groups
    w = random_weights(rng, case.outputs, per_group, *case.kernel)
    shared = ("groups", "strides", "pads", "dilations")
    attributes = {name: getattr(case, name) for name in shared}
    op = conv_op(w, case.image[1:], x_zero, random_bias(rng, case.outputs), **attributes)
    return op, random_codes(rng, case.batch, *case.image)


@pytest.mark.parametrize("x_zero", [0, 128, 255])
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_conv_accumulators_are_torch_conv2d(case, x_zero):
    op, x = random_conv(case, x_zero, seed=x_zero)
    assert_same(conv_accumulate(op, x), torch_conv(op, x))


@st.composite
def conv_cases(draw):
    """Small convolutions with every attribute drawn, the padded image at least the kernel."""

    def pair(low, high):
        return draw(st.tuples(*[st.integers(low, high)] * 2))

    groups, per_group = draw(st.integers(1, 4)), draw(st.integers(1, 3))
    kernel, dilations = pair(1, 3), pair(1, 2)
    pads = draw(st.tuples(*[st.integers(0, 3)] * 4))
    reach = [(k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True)]
    height = max(1, reach[0] - pads[0] - pads[2]) + draw(st.integers(0, 4))
    width = max(1, reach[1] - pads[1] - pads[3]) + draw(st.integers(0, 4))
    return Case(
        (groups * per_group, height, width),
        groups * draw(st.integers(1, 3)),
        kernel,
        draw(st.integers(1, 3)),
        groups,
        pair(1, 4),
        pads,
        dilations,
    )


@settings(max_examples=60, deadline=None)
@given(conv_cases(), st.integers(0, 255), st.integers(0, 2**32 - 1))
def test_conv_accumulators_are_torch_conv2d_for_drawn_attributes(case, x_zero, seed):
    op, x = random_conv(case, x_zero, seed)
    assert_same(conv_accumulate(op, x), torch_conv(op, x))


@pytest.mark.parametrize("x_zero", [0, 77, 255])
def test_padding_counts_as_the_real_zero(x_zero):
    op = conv_op(np.full((2, 3, 3, 3), 127, np.int8), (4, 4), x_zero, pads=(1, 1, 1, 1))
    x = np.full((1, 3, 4, 4), x_zero, np.uint8)
    assert_same(conv_accumulate(op, x), np.zeros((1, 2, 4, 4), np.int32))


def test_conv_bias_is_added_per_output():
    bias = np.array([-(2**30), 0, 2**30], np.int32)
    op = conv_op(np.ones((3, 1, 1, 1), np.int8), (2, 2), 5, bias)
    acc = conv_accumulate(op, np.full((2, 1, 2, 2), 9, np.uint8))
    assert_same(acc, np.broadcast_to(bias.reshape(1, 3, 1, 1) + np.int32(4), (2, 3, 2, 2)))


# Gemm


@settings(max_examples=30, deadline=None)
@given(*[st.integers(1, 40)] * 3, st.integers(0, 255), st.integers(0, 2**32 - 1))
def test_gemm_accumulators_are_the_integer_product(batch, inputs, outputs, x_zero, seed):
    rng = np.random.default_rng(seed)
    x, w = random_codes(rng, batch, inputs), random_weights(rng, outputs, inputs)
    bias = random_bias(rng, outputs)
    expected = (x.astype(np.int64) - x_zero) @ w.astype(np.int64).T + bias
    assert_same(gemm_accumulate(gemm_op(w, x_zero, bias), x), expected.astype(np.int32))


# The type of the sums


def rows_of_sum(*sums):
    """Weight rows, each with the given sum of magnitudes; signs alternate."""
    magnitudes = np.zeros((len(sums), max(sums) // 127 + 1), np.int64)
    for row, total in zip(magnitudes, sums, strict=True):
        row[: total // 127], row[total // 127] = 127, total % 127
    magnitudes[:, ::2] *= -1
    return magnitudes.astype(np.int8)


def test_float32_is_chosen_just_while_every_sum_is_below_2_to_24():
    below = (2**24 - 1) // 255
    assert _exact_type(rows_of_sum(below)) is np.float32
    assert _exact_type(rows_of_sum(below + 1)) is np.float64


def test_the_row_of_largest_magnitude_chooses_the_type():
    assert _exact_type(rows_of_sum(10, 70000, 10)) is np.float64
    assert _exact_type(rows_of_sum(60000, 60000, 60000)) is np.float32


def test_the_type_of_a_convolution_counts_channels_and_kernel():
    assert _exact_type(np.full((4, 57, 3, 3), -127, np.int8)) is np.float32
    assert _exact_type(np.full((4, 58, 3, 3), -127, np.int8)) is np.float64


def test_float32_sums_are_exact_up_to_the_limit():
    w = np.abs(rows_of_sum((2**24 - 1) // 255))
    x = np.full((1, w.shape[1]), 255, np.uint8)
    assert gemm_accumulate(gemm_op(w), x).item() == 2**24 - 1
    assert gemm_accumulate(gemm_op(-w), x).item() == 1 - 2**24


def odd_sum_above_2_to_24():
    """519 weights and codes whose sum of products is odd: no float32 holds it."""
    w = np.abs(rows_of_sum(65797))[0]
    return w, np.full(519, 255, np.uint8), 255 * 65797


def test_gemm_is_exact_where_float32_is_not():
    w, x, total = odd_sum_above_2_to_24()
    assert int(w.astype(F32) @ x.astype(F32)) != total
    assert gemm_accumulate(gemm_op(w[None]), x[None]).item() == total


@pytest.mark.parametrize("image", [(519, 1, 1), (1, 3, 173)], ids=["dense", "depthwise"])
def test_conv_is_exact_where_float32_is_not(image):
    w, x, total = odd_sum_above_2_to_24()
    op = conv_op(w.reshape(1, *image), image[1:])
    assert conv_accumulate(op, x.reshape(1, *image)).item() == total


# From accumulators to codes


def half_even(numerators, denominator):
    """Integers nearest to ``numerators / denominator``, ties to even, by rational numbers."""
    flat = [round(Fraction(int(n), denominator)) for n in np.ravel(numerators)]
    return np.array(flat).reshape(np.shape(numerators))


def windowed(values, lo, hi):
    return np.clip(values, lo, hi).astype(np.uint8)


LAYER = {"x": Grid(F32(0.5), 7), "w_scale": np.array([0.25, 0.125], F32)}
RESULT = {"grid": Grid(F32(2), 131), "lo": 112, "hi": 143}


def test_conv_codes_are_requantized_per_channel_into_the_window():
    x = ALL_CODES.reshape(1, 1, 16, 16)
    op = conv_op(np.array([3, -5], np.int8).reshape(2, 1, 1, 1), (16, 16), **LAYER | RESULT)
    centred = x.astype(np.int64) - 7
    rounded = [half_even(centred * 3, 16), half_even(centred * -5, 32)]
    assert_same(execute(op, [x]), windowed(np.concatenate(rounded, 1) + 131, 112, 143))


def test_gemm_codes_are_requantized_per_output_into_the_window():
    x = ALL_CODES.reshape(-1, 1)
    op = gemm_op(np.array([[3], [-5]], np.int8), **LAYER | RESULT)
    centred = x.astype(np.int64) - 7
    rounded = [half_even(centred * 3, 16), half_even(centred * -5, 32)]
    assert_same(execute(op, [x]), windowed(np.concatenate(rounded, 1) + 131, 112, 143))


def test_add_scales_both_operands_and_rounds_after_the_zero_point():
    a, b = np.meshgrid(ALL_CODES, ALL_CODES)
    grids = {"a": Grid(F32(0.5), 100), "b": Grid(F32(0.25), 30)}
    op = make(Add, Grid(F32(1), 51), 5, 250, ("a", "b"), **grids)
    quarters = (a.astype(np.int64) - 100) * 2 + (b.astype(np.int64) - 30)
    # n / 4 half-even without rational numbers: 65536 of them would be slow.
    expected = np.rint(quarters / 4 + 51)
    assert_same(execute(op, [a, b]), windowed(expected, 5, 250))


@pytest.mark.parametrize("height, width", [(1, 1), (1, 2), (2, 4), (8, 8)])
def test_average_is_the_mean_on_the_new_grid(height, width):
    x = random_codes(np.random.default_rng(0), 3, 50, height, width)
    count = height * width
    op = make(Average, Grid(F32(0.5), 30), 9, 200, x=Grid(F32(0.25), 101), count=count)
    total = x.astype(np.int64).sum((2, 3), keepdims=True) - 101 * count
    assert_same(execute(op, [x]), windowed(half_even(total, 2 * count) + 30, 9, 200))


def test_rescale_looks_every_code_up():
    x = np.random.default_rng(0).permutation(ALL_CODES).reshape(2, 4, 4, 8)
    table = numerics.rescale_table(F32(0.25), 19, F32(0.5), 128, 64, 191)
    op = make(Lookup, Grid(F32(0.5), 128), 64, 191, table=table)
    rounded = half_even(x.astype(np.int64) - 19, 2)
    assert_same(execute(op, [x]), windowed(rounded + 128, 64, 191))


# Data movement


@pytest.mark.parametrize(
    "kernel, strides, pads",
    [
        ((2, 2), (2, 2), (0, 0, 0, 0)),
        ((3, 3), (2, 2), (1, 1, 1, 1)),
        ((3, 3), (1, 1), (0, 1, 2, 1)),
        ((3, 2), (2, 3), (2, 0, 1, 1)),
        ((1, 1), (3, 2), (0, 0, 0, 0)),
    ],
)
@pytest.mark.parametrize("highest", [1, 40, 256])
def test_max_pool_is_torch_and_pads_never_win(kernel, strides, pads, highest):
    x = np.random.default_rng(0).integers(0, highest, (2, 5, 9, 8)).astype(np.uint8)
    top, left, bottom, right = pads
    below_all = functional.pad(
        torch.from_numpy(x).double(), (left, right, top, bottom), value=-1
    )
    expected = functional.max_pool2d(below_all, kernel, strides).numpy()
    op = make(MaxPool, Grid(F32(1), 128), kernel=kernel, strides=strides, pads=pads)
    assert_same(execute(op, [x]), expected.astype(np.uint8))


def test_flatten_keeps_the_batch_and_the_order():
    x = np.arange(2 * 3 * 4 * 5, dtype=np.uint8).reshape(2, 3, 4, 5)
    expected = torch.from_numpy(x).flatten(1).numpy()
    assert_same(execute(make(Reshape, shape=(60,)), [x]), expected)


def test_an_unknown_operator_is_refused_by_name():
    with pytest.raises(TypeError, match="op: Op has no reference"):
        execute(make(Op), [ALL_CODES])


# A whole program


def halving_program():
    """Quantize to step 1/2 around 128, negate, rescale to step 1, flatten."""
    fine, coarse = Grid(F32(0.5), 128), Grid(F32(1), 10)
    table = numerics.rescale_table(F32(0.5), 128, F32(1), 10, 3)
    ops = [
        make(Quantize, fine, 0, 250),
        conv_op(np.full((1, 1, 1, 1), -1, np.int8), (1, 3), x=fine, grid=fine),
        make(Lookup, coarse, 3, 255, table=table),
        make(Reshape, coarse, shape=(3,)),
    ]
    names = ["image", "codes", "negated", "coarse", "flat"]
    chained = tuple(
        dataclasses.replace(op, inputs=(source,), output=output)
        for op, source, output in zip(ops, names[:-1], names[1:], strict=True)
    )
    return Program("image", (1, 1, 3), "float32", "result", "flat", coarse, chained, {})


def test_the_runtime_chains_operators_and_dequantizes_the_last():
    x = np.array([-3.5, 0.25, 200], F32).reshape(1, 1, 1, 3)
    result = ReferenceRuntime(halving_program()).run(x)
    # 3.5 -> 4 (half-even); 0.25 -> 0; 200 saturates twice, the window ends at 3 - 10.
    assert_same(result, np.array([[4, 0, -7]], F32))


def test_intermediates_hold_every_result():
    x = np.array([-3.5, 0.25, 200], F32).reshape(1, 1, 1, 3)
    results = ReferenceRuntime(halving_program()).intermediates(x)
    codes = {name: value.ravel().tolist() for name, value in results.items()}
    assert codes == {
        "codes": [121, 128, 250],
        "negated": [135, 128, 6],
        "coarse": [14, 10, 3],
        "flat": [14, 10, 3],
    }
    assert {value.dtype for value in results.values()} == {np.dtype(np.uint8)}


def test_the_reference_has_no_float_operators():
    assert not ReferenceRuntime(halving_program()).float_ops()
