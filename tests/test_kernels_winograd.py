"""The Winograd kernel against numpy, to the integer, and where it must be refused."""

from dataclasses import replace
from typing import NamedTuple

import numpy as np
import pytest
from arrays import assert_same
from kernel_calls import Array, host_has
from kernel_runner import Arena, filled, pixels, untouched
from numpy.lib.stride_tricks import sliding_window_view

from passes.emit.tvm.cpu.kernels.direct import Place
from passes.emit.tvm.cpu.kernels.epilogue import Form, Residual, Window, form, record
from passes.emit.tvm.cpu.kernels.layout import Layout, nhwc, round_up
from passes.emit.tvm.cpu.kernels.winograd import Winograd, strip_rows
from passes.emit.tvm.cpu.kernels.winograd_transforms import INPUT, LIMIT, OUTPUT, SHIFT, WEIGHT
from passes.emit.tvm.cpu.kernels.winograd_weights import (
    gain,
    pack_bias,
    pack_winograd,
    supports,
    worthwhile,
)
from qtool.core import numerics

ISA = "avx512_vnni"
F32 = np.float32
needs_vnni = pytest.mark.skipif(
    not host_has("avx512vnni", "avx512bw"), reason="this CPU has no AVX512-VNNI"
)


def convolved(x_HWC: Array, w_OIHW: Array, bias: Array) -> Array:
    """Return (O, H, W) int32 sums over an image that is padded already."""
    patches = sliding_window_view(x_HWC.astype(np.int64), (3, 3), (0, 1))
    sums = np.einsum("hwcij,ocij->ohw", patches, w_OIHW.astype(np.int64), optimize=True)
    return (sums + bias[:, None, None]).astype(np.int32)


class Case(NamedTuple):
    """A layer: (channels, height, width, outputs) and what is special about it."""

    size: tuple[int, int, int, int]
    codes: str = "any"
    weights: str = "any"
    window: Window = Window(3, 2, 250)
    residual: str = ""
    strip: int = 0
    parallel: bool = False


CASES = [
    Case((64, 8, 8, 64)),
    Case((17, 5, 9, 33)),
    Case((3, 4, 4, 5), window=Window(0, 0, 255)),
    Case((1, 4, 7, 1), codes="ends", weights="ends"),
    Case((40, 13, 6, 24), weights="negative", parallel=True),
    Case((32, 9, 17, 48), strip=2),
    Case((50, 12, 10, 16), codes="ends", weights="ends", strip=3),
    Case((130, 7, 5, 40), codes="ends", weights="lowest", window=Window(200, 0, 255)),
    Case((33, 6, 30, 17), residual="first"),
    Case((16, 14, 14, 32), residual="second", window=Window(0, 0, 255), parallel=True),
    Case((24, 4, 112, 16)),
]


class Layer:
    """Random numbers of a case, and what its kernel gets."""

    def __init__(self, case: Case, seed: int) -> None:
        self.case, rng = case, np.random.default_rng(seed)
        channels, height, width, outputs = case.size
        every = (height + 2, width + 2, channels)
        self.x = {
            "any": lambda: rng.integers(0, 256, every),
            "ends": lambda: rng.choice([0, 255], every),
        }[case.codes]().astype(np.uint8)
        shape = (outputs, channels, 3, 3)
        self.w = {
            "any": lambda: rng.integers(-127, 128, shape),
            "ends": lambda: rng.choice([-127, 127], shape),
            "negative": lambda: rng.integers(-127, 20, shape),
            "lowest": lambda: rng.choice([-128, -127], shape),
        }[case.weights]().astype(np.int8)
        # Sums of both signs, whatever the weights.
        middle = 127 * self.w.astype(np.int64).sum(axis=(1, 2, 3))
        self.bias = (rng.integers(-(2**16), 2**16, outputs) - middle).astype(np.int32)
        self.sums = convolved(self.x, self.w, self.bias)
        largest = np.abs(self.sums).max(axis=(1, 2)) + 1
        self.factor = (rng.uniform(50, 300, outputs) / largest).astype(F32)
        # Room behind each pixel, and a border, that must stay as they were.
        pixel = round_up(outputs, 16) + 16
        self.layout = nhwc((outputs, height, width), (1, 2, 1, 0), pixel)
        self.other = rng.integers(0, 256, (height, width, outputs)).astype(np.uint8)
        self.bytes = filled(rng, self.layout)
        self.x_layout = nhwc((channels, height + 2, width + 2))
        self.x_bytes = filled(rng, self.x_layout, self.x)
        self.other_bytes = filled(rng, self.layout, self.other)

    def residual(self) -> tuple[Residual | None, Array]:
        """Return the addition behind the layer and the codes that it should give."""
        window = self.case.window
        own = numerics.requantize(
            self.sums[None], self.factor, window.zero, window.lo, window.hi
        )[0].transpose(1, 2, 0)
        if not self.case.residual:
            return None, own
        # Scale and zero point of the layer, the other operand and the sum.
        mine, theirs, result = (F32(0.31), window.zero), (F32(0.17), 9), (F32(0.4), 11)
        a, b = (mine, theirs) if self.case.residual == "first" else (theirs, mine)
        operands = (own, self.other) if a is mine else (self.other, own)
        coefficients = numerics.add_coefficients(*a, *b, *result)
        codes = numerics.add(operands[0], *a, operands[1], *b, *result, 4, 240)
        return Residual(*(float(c) for c in coefficients), 4, 240), codes

    def spec(self, form_: Form) -> Winograd:
        channels, height, width, outputs = self.case.size
        place = Place(self.layout.row, self.layout.pixel)
        return Winograd(
            ISA, height, width, channels, -(-outputs // 16),
            Place(self.x_layout.row, self.x_layout.pixel), place, place,
            self.case.strip or strip_rows(height, width, channels), self.case.parallel, form_,
        )  # fmt: skip

    def call(self, arena: Arena) -> tuple[int, Array]:
        """Add the kernel's call; return the address of its result and the codes it owes."""
        residual, want = self.residual()
        window = self.case.window
        spec = self.spec(form(window, 300, residual, self.case.residual == "first"))
        result = arena.put(self.bytes)
        places = [arena.put(self.x_bytes), result + self.layout.origin]
        if residual:
            places.insert(1, arena.put(self.other_bytes) + self.layout.origin)
        padding = (0, spec.outputs * 16 - len(self.bias))
        arrays = (
            pack_winograd(self.w, spec),
            pack_bias(np.pad(self.bias, padding)),
            np.pad(self.factor, padding),
            record(window, residual),
        )
        arena.call(spec, *places, *(arena.put(a) for a in arrays))
        return result, want


def written(layout: Layout, memory: Array, before: Array, start: int) -> Array:
    """Return the codes of a result; nothing but whole vectors of channels was written."""
    after = memory[start : start + layout.bytes]
    assert untouched(layout, before, after, round_up(layout.channels, 16))
    return pixels(layout, after)


@needs_vnni
def test_codes_are_those_of_numerics() -> None:
    arena, layers = Arena(), [Layer(case, seed) for seed, case in enumerate(CASES)]
    calls = [layer.call(arena) for layer in layers]
    memory = arena.run()
    for layer, (start, want) in zip(layers, calls, strict=True):
        assert supports(ISA, layer.case.size[1:3], layer.w, layer.bias), layer.case
        codes = written(layer.layout, memory, layer.bytes, start)
        assert np.count_nonzero(codes != want) == 0, layer.case
        assert len(np.unique(want)) > 10 or want.size < 300, layer.case


def extreme() -> tuple[Array, Array]:
    """Return weights and biases with extreme sums LIMIT, LIMIT - 1, -LIMIT, -LIMIT - 1."""
    w = np.full((4, 128, 3, 3), 127, np.int8)
    w[2:] = -127
    reach = 255 * 127 * 9 * 128
    ends = np.array([LIMIT, LIMIT - 1, -LIMIT, -LIMIT - 1])
    return w, (ends - np.array([reach, reach, -reach, -reach])).astype(np.int32)


@needs_vnni
def test_the_bound_of_the_sums_is_where_the_kernel_fails() -> None:
    w, bias = extreme()
    accepted = [supports(ISA, (4, 4), w[i : i + 1], bias[i : i + 1]) for i in range(4)]
    assert accepted == [False, True, True, False]
    layer = Layer(Case((128, 4, 4, 4), window=Window(128, 0, 255)), 0)
    layer.x[:] = 255
    layer.x_bytes[:] = 255
    layer.w, layer.bias = w, bias
    layer.sums = convolved(layer.x, w, bias)
    layer.factor[:] = 2.0**-19
    arena = Arena()
    start, want = layer.call(arena)
    wrong = written(layer.layout, arena.run(), layer.bytes, start) != want
    # The first result of a tile is the one with the largest power of two.
    expected = np.zeros((4, 4, 4), bool)
    expected[0, 0] = np.logical_not(accepted)
    assert_same(wrong, expected)


def test_fewer_codes_allow_larger_weights() -> None:
    w, bias = extreme()
    assert not supports(ISA, (4, 4), w, bias)
    assert supports(ISA, (4, 4), w, bias, codes=(0, 200))
    small = np.zeros(4, np.int32)
    assert supports(ISA, (4, 4), w[:, :115], small)
    assert not supports(ISA, (4, 4), w[:, :116], small)
    assert not supports(ISA, (4, 4), w[:, :32], small + LIMIT)


@pytest.mark.parametrize(
    ("size", "taps", "fits"),
    [((4, 4), (3, 3), True), ((3, 9), (3, 3), False), ((9, 3), (3, 3), False),
     ((8, 8), (5, 5), False), ((8, 8), (1, 1), False), ((8, 8), (3, 1), False)],
)  # fmt: skip
def test_only_three_by_three_on_whole_tiles(
    size: tuple[int, int], taps: tuple[int, int], fits: bool
) -> None:
    w = np.ones((16, 8, *taps), np.int8)
    assert supports(ISA, size, w, np.zeros(16, np.int32)) is fits


def test_transforms_are_exact_and_their_operands_are_int16() -> None:
    rng = np.random.default_rng(0)
    d, w = rng.integers(0, 256, (6, 6)), rng.integers(-128, 128, (3, 3))
    products = (INPUT @ d @ INPUT.T) * (WEIGHT @ w @ WEIGHT.T)
    powers = 2 ** np.add.outer(np.array(SHIFT), np.array(SHIFT))
    sums = convolved(d[:, :, None], w[None, None], np.zeros(1, np.int64))[0]
    assert_same(OUTPUT @ products @ OUTPUT.T, 9 * powers * sums.astype(np.int64))
    # Codes are not negative: the worst are 255 where coefficients have one sign, else 0.
    patches = np.einsum("ai,bj->abij", INPUT, INPUT)
    for sign in (1, -1):
        assert 255 * np.maximum(sign * patches, 0).sum(axis=(2, 3)).max() < 2**15
    assert 128 * np.abs(WEIGHT).sum(axis=1).max() ** 2 < 2**15


def spec_of(channels: int, size: int) -> Winograd:
    x, plain = Place(1, 1), Form(zero=False, clip=False)
    rows = strip_rows(size, size, channels)
    outputs = -(-channels // 16)
    return Winograd(ISA, size, size, channels, outputs, x, x, x, rows, False, plain)


def test_strips_share_weights_while_the_cache_holds_them() -> None:
    rows = {(c, s): strip_rows(s, s, c) for c, s in
            [(64, 4), (512, 7), (64, 8), (256, 14), (128, 28), (64, 56), (64, 112), (64, 224),
             (2048, 28)]}  # fmt: skip
    assert list(rows.values()) == [1, 2, 2, 4, 7, 7, 4, 2, 1]
    sizes = [replace(spec_of(64, 4 * n), strip=1).tiles for n in (1, 4, 7, 14, 17, 28, 29)]
    assert sizes == [1, 4, 7, 14, 17, 14, 15]


def test_worthwhile_weighs_the_transforms() -> None:
    better = {(64, 56), (128, 28), (256, 14), (32, 16), (256, 28)}
    worse = {(3, 56), (16, 32), (512, 7), (64, 8), (64, 4)}
    assert {key for key in better | worse if worthwhile(spec_of(*key))} == better
    assert gain(spec_of(128, 56)) > gain(spec_of(64, 56)) > gain(spec_of(32, 56))


def test_equal_specifications_are_one_kernel() -> None:
    a, b = spec_of(64, 56), spec_of(64, 56)
    assert a == b and hash(a) == hash(b) and a.name() == "winograd3_56x56_64_4"
    assert replace(a, strip=2) != a
