"""Depthwise, global average and max pooling kernels against numpy, to the integer."""

from typing import Any, NamedTuple

import numpy as np
import pytest
from arrays import assert_same, random_codes, random_weights
from kernel_calls import Call, host_has, run
from numpy.lib.stride_tricks import sliding_window_view

from passes.emit.tvm.cpu.kernels.average import GlobalAverage
from passes.emit.tvm.cpu.kernels.depthwise import (
    DepthwiseConv,
    blocks,
    lane_order,
    pack_depthwise,
)
from passes.emit.tvm.cpu.kernels.direct import Place
from passes.emit.tvm.cpu.kernels.epilogue import Residual, Window, form, record
from passes.emit.tvm.cpu.kernels.layout import Layout, nhwc
from passes.emit.tvm.cpu.kernels.max_pool import MaxPool, supports
from passes.emit.tvm.cpu.vectors.units import vectors
from qtool.core import numerics

ISA = "avx512_vnni"
SLACK = 64  # bytes that a kernel may read behind a tensor


needs_vnni = pytest.mark.skipif(
    not host_has("avx512vnni", "avx512vbmi"),
    reason="this CPU has no AVX512-VNNI or no AVX512-VBMI",
)


def call(spec: Any, result: int, *arrays: np.ndarray) -> np.ndarray:
    """Run a kernel; `result` is the index of the array it writes."""
    return run([Call(spec.build("kernel"), arrays)], "znver4")[0][result]


def stored(codes: np.ndarray, layout: Layout, zero: int) -> np.ndarray:
    """Return the bytes of (C, H, W) codes, its halo and what may be read behind it."""
    top, left, bottom, right = layout.halo
    _, height, width = codes.shape
    full = np.full((height + top + bottom, width + left + right, layout.pixel), zero, np.uint8)
    inner = full[top : top + height, left : left + width]
    inner[:] = 201  # pad channels hold anything
    inner[:, :, : len(codes)] = codes.transpose(1, 2, 0)
    return np.append(full.reshape(-1), np.full(SLACK, 77, np.uint8))


def blank(layout: Layout) -> np.ndarray:
    """Return room for a result, from its first pixel on."""
    return np.full(layout.bytes + SLACK, 99, np.uint8)[layout.origin :]


def logical(raw: np.ndarray, layout: Layout) -> np.ndarray:
    """Return the (C, H, W) codes of a result; its halo was left alone."""
    top, left, bottom, right = layout.halo
    whole = np.append(np.full(layout.origin, 99, np.uint8), raw)
    assert_same(whole[layout.bytes :], np.full(SLACK, 99, np.uint8))
    rows, columns = layout.height + top + bottom, layout.width + left + right
    full = whole[: layout.bytes].reshape(rows, columns, layout.pixel)
    inner = full[top : rows - bottom, left : columns - right]
    codes = inner[:, :, : layout.channels].transpose(2, 0, 1).copy()
    inner[:] = 99
    assert_same(full, np.full(full.shape, 99, np.uint8))
    return codes


class Case(NamedTuple):
    """A depthwise layer."""

    channels: int
    size: tuple[int, int]
    taps: tuple[int, int] = (3, 3)
    strides: tuple[int, int] = (1, 1)
    dilations: tuple[int, int] = (1, 1)
    pads: tuple[int, int, int, int] = (1, 1, 1, 1)
    zeros: tuple[int, int] = (7, 3)
    window: tuple[int, int] = (0, 255)
    residual: str = ""
    table: bool = False
    parallel: bool = False
    isa: str = "avx512_vnni"


CASES = [
    Case(64, (9, 9)),
    Case(96, (7, 7), zeros=(0, 0)),
    Case(32, (12, 13), strides=(2, 2), window=(3, 250)),
    Case(1, (1, 1), zeros=(255, 255)),
    Case(200, (5, 6), strides=(2, 1)),
    Case(17, (4, 3), window=(5, 40), parallel=True),
    Case(72, (11, 11), (5, 5), (2, 2), pads=(2, 2, 2, 2)),
    Case(33, (6, 9), (5, 5), pads=(2, 2, 2, 2)),
    Case(16, (9, 8), (7, 7), pads=(3, 3, 3, 3)),
    Case(64, (2, 41), (5, 5), pads=(2, 2, 2, 2)),
    Case(48, (9, 10), dilations=(2, 2), pads=(2, 2, 2, 2)),
    Case(64, (8, 7), dilations=(1, 3), pads=(0, 0, 0, 0)),
    Case(80, (10, 11), (2, 1), (3, 4), pads=(0, 0, 0, 0)),
    Case(144, (3, 5), (1, 1), pads=(0, 0, 0, 0)),
    Case(24, (5, 1), (4, 3), pads=(2, 1, 1, 1)),
    Case(64, (5, 5), residual="first"),
    Case(48, (6, 5), residual="second", window=(2, 90)),
    Case(112, (4, 5), residual="first", zeros=(9, 0)),
    Case(96, (5, 6), table=True, parallel=True),
    Case(72, (4, 6), table=True, residual="first", isa="avx512_vbmi"),
    Case(40, (1, 9), (9, 2), pads=(4, 1, 4, 0)),
]


def factors(rng: np.random.Generator, case: Case) -> np.ndarray:
    """Return factors that spread sums over the codes and beyond."""
    taps = case.taps[0] * case.taps[1]
    return (rng.uniform(0.2, 2, case.channels) / (taps**0.5 * 90)).astype(np.float32)


def sums(x: np.ndarray, w: np.ndarray, bias: np.ndarray, case: Case) -> np.ndarray:
    top, left, bottom, right = case.pads
    signed = x.astype(np.int32) - case.zeros[0]
    padded = np.pad(signed, ((0, 0), (top, bottom), (left, right)))
    reach = [(t - 1) * d + 1 for t, d in zip(case.taps, case.dilations, strict=True)]
    views = sliding_window_view(padded, reach, (1, 2))
    views = views[:, :: case.strides[0], :: case.strides[1]]
    views = views[..., :: case.dilations[0], :: case.dilations[1]]
    total = np.einsum("cijkl,ckl->cij", views, w.astype(np.int32)) + bias[:, None, None]
    return np.asarray(total, np.int32)


@needs_vnni
@pytest.mark.parametrize("case", CASES, ids=str)
def test_depthwise_equals_requantized_sums(case: Case) -> None:
    rng, unit = np.random.default_rng(5), vectors(case.isa)
    x = random_codes(rng, case.channels, *case.size)
    w = random_weights(rng, case.channels, *case.taps)
    bias = rng.integers(-3000, 3000, case.channels).astype(np.int32)
    factor, acc = factors(rng, case), sums(x, w, bias, case)
    expected = numerics.requantize(acc[None], factor, case.zeros[1], *case.window)[0]
    table, residual, other = None, None, random_codes(rng, *acc.shape)
    if case.residual:
        residual, expected = added(expected, other, case)
    if case.table:
        table = random_codes(rng, 256)
        expected = table[expected]
    lx, ly = nhwc(x.shape, case.pads), nhwc(acc.shape, (1, 0, 1, 2))
    lo = nhwc(acc.shape, (1, 2, 0, 1))
    window = Window(case.zeros[1], *case.window)
    spec = DepthwiseConv(
        case.isa, *acc.shape[1:], lx.pixel, case.taps, case.strides, case.dilations,
        Place(lx.row, lx.pixel), Place(ly.row, ly.pixel), Place(lo.row, lo.pixel),
        case.parallel,
        form(window, 1e6, residual, case.residual == "first", case.table),
    )  # fmt: skip
    order = lane_order(spec, unit)
    inner = np.zeros((2, lx.pixel), np.float64)
    inner[:, : case.channels] = bias - case.zeros[0] * w.astype(int).sum((1, 2)), factor
    inputs = [stored(x, lx, case.zeros[0])]
    inputs += [stored(other, lo, 0)[lo.origin :]] if case.residual else []
    raw = call(
        spec, len(inputs), *inputs, blank(ly), pack_depthwise(w, spec, unit),
        inner[0, order].astype(np.int32), inner[1, order].astype(np.float32),
        record(window, residual, table),
    )  # fmt: skip
    assert_same(logical(raw, ly), expected)
    assert len(np.unique(expected)) > 5 or expected.size < 50


def added(codes: np.ndarray, other: np.ndarray, case: Case) -> tuple[Residual, np.ndarray]:
    """Return the addition behind a layer, and its answer."""
    grids = [(np.float32(0.03), case.zeros[1]), (np.float32(0.021), 130)]
    operands = [codes, other]
    if case.residual == "second":
        grids.reverse()
        operands.reverse()
    y_scale, y_zero, lo, hi = np.float32(0.04), 100, 1, 240
    numbers = (*grids[0], *grids[1], y_scale, y_zero)
    ra, rb, c = numerics.add_coefficients(*numbers)
    answer = numerics.add(
        operands[0], *grids[0], operands[1], *grids[1], y_scale, y_zero, lo, hi
    )
    return Residual(float(ra), float(rb), float(c), lo, hi), answer


@pytest.mark.parametrize("channels", [16, 48, 64, 80, 112, 960])
def test_blocks_hold_every_channel_once(channels: int) -> None:
    found = blocks(channels, 64)
    assert [c for b in found for c in range(b.channel, b.channel + b.channels)] == list(
        range(channels)
    )
    assert all(block.channels * block.spots == 64 for block in found)


@needs_vnni
@pytest.mark.parametrize(
    ("channels", "size", "halo", "parallel"),
    [
        (1, (1, 1), (0, 0, 0, 0), False),
        (24, (3, 5), (1, 1, 1, 1), False),
        (48, (7, 7), (0, 0, 0, 0), False),
        (96, (7, 7), (0, 0, 0, 0), True),
        (130, (2, 3), (0, 1, 0, 0), False),
        (1280, (4, 4), (0, 0, 0, 0), True),
    ],
)
def test_average_equals_numerics(
    channels: int, size: tuple[int, int], halo: tuple[int, int, int, int], parallel: bool
) -> None:
    rng = np.random.default_rng(3)
    x, x_zero, y_zero, limits = random_codes(rng, channels, *size), 119, 30, (4, 250)
    count, (x_scale, y_scale) = size[0] * size[1], np.float32([0.05, 0.013])
    total = (x.astype(np.int32) - x_zero).sum((1, 2), dtype=np.int32)
    expected = numerics.average(total, x_scale, y_scale, count, y_zero, *limits)
    lx, ly, window = nhwc(x.shape, halo), nhwc((channels,)), Window(y_zero, *limits)
    spec = GlobalAverage(
        ISA, *size, lx.pixel, Place(lx.row, lx.pixel), parallel, form(window, 1e6)
    )
    lanes = vectors(ISA).lanes
    factor = numerics.average_factor(x_scale, y_scale, count)
    raw = call(
        spec, 1, stored(x, lx, 0)[lx.origin :], blank(ly),
        np.full(lanes, -x_zero * count, np.int32), np.full(lanes, factor, np.float32),
        record(window),
    )  # fmt: skip
    assert_same(logical(raw, ly)[:, 0, 0], expected)


def pool(
    size: tuple[int, int], channels: int, taps: int, stride: int, pad: int, dilation: int = 1
) -> MaxPool:
    lx = nhwc((channels, *size), (0, 1, 1, 0))
    height, width = ((n + 2 * pad - (taps - 1) * dilation - 1) // stride + 1 for n in size)
    ly = nhwc((channels, height, width), (0, 2, 1, 1))
    return MaxPool(
        ISA, size, height, width, lx.pixel, (taps, taps), (stride, stride),
        (dilation, dilation), (pad, pad), Place(lx.row, lx.pixel), Place(ly.row, ly.pixel),
        False,
    )  # fmt: skip


@needs_vnni
@pytest.mark.parametrize(
    ("size", "channels", "taps", "stride", "pad", "dilation"),
    [
        ((12, 13), 64, 3, 2, 1, 1),
        ((6, 5), 24, 2, 2, 0, 1),
        ((7, 7), 112, 5, 1, 2, 1),
        ((1, 1), 1, 3, 1, 1, 1),
        ((9, 8), 80, 2, 3, 0, 2),
    ],
)
def test_max_pool_equals_the_largest_code(
    size: tuple[int, int], channels: int, taps: int, stride: int, pad: int, dilation: int
) -> None:
    spec = pool(size, channels, taps, stride, pad, dilation)
    assert supports(spec)
    rng = np.random.default_rng(4)
    x = random_codes(rng, channels, *size)
    padded = np.pad(x, ((0, 0), (pad, pad), (pad, pad)))
    reach = (taps - 1) * dilation + 1
    views = sliding_window_view(padded, (reach, reach), (1, 2))[:, ::stride, ::stride]
    expected = views[..., ::dilation, ::dilation].max((3, 4))
    lx, ly = nhwc(x.shape, (0, 1, 1, 0)), nhwc(expected.shape, (0, 2, 1, 1))
    raw = call(spec, 1, stored(x, lx, 255)[lx.origin :], blank(ly))
    assert_same(logical(raw, ly), expected)


@pytest.mark.parametrize(
    ("taps", "stride", "pad", "dilation"), [(2, 1, 2, 1), (3, 1, 1, 2), (2, 2, 3, 1)]
)
def test_max_pool_refuses_windows_that_clamping_changes(
    taps: int, stride: int, pad: int, dilation: int
) -> None:
    assert not supports(pool((6, 6), 16, taps, stride, pad, dilation))
