"""Weights of 4 and 2 bits that the direct kernel unpacks in registers."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from conv_cases import CASES, Case, Convolution, drawn
from kernel_calls import Call, cpu_for, run

from passes.emit.tvm.cpu.kernels.direct import DirectConv
from passes.emit.tvm.cpu.kernels.packed_weights import (
    SMALLEST_FACTOR,
    growth,
    pack,
    runs,
    scaled,
    width_of,
    worth_packing,
)
from passes.emit.tvm.cpu.plan.plan import make_plan
from passes.emit.tvm.cpu.vectors.base import Vectors
from passes.emit.tvm.cpu.vectors.units import UNITS, vectors
from qtool.core.dialect import Conv, Grid, Program, Quantize
from qtool.core.selection import LayerBits

Array = np.ndarray[Any, Any]
ONE = np.ones(1, np.float32)


@pytest.fixture(params=sorted(UNITS))
def unit(request: pytest.FixtureRequest) -> tuple[Vectors, str]:
    """A unit and a CPU to compile for that this one is compatible with."""
    return vectors(request.param), cpu_for(request.param)


class Packed(Convolution):
    """A convolution with weights of few bits, all of them ends where it is extreme."""

    def __init__(self, case: Case, unit: Vectors, seed: int, bits: int) -> None:
        super().__init__(case, unit, seed)
        self.bits, half = bits, 1 << (bits - 1)
        low, high = -half, half - 1
        if case.extreme:
            self.weights = np.where(self.weights < 0, low, high).astype(np.int8)
        else:
            self.weights = self.rng.integers(low, half, self.weights.shape).astype(np.int8)
        self.acc = self._sums()
        self.factor = self._factor()

    def spec(self) -> DirectConv:
        return replace(super().spec(), weight_bits=self.bits)

    def call(self, name: str) -> Call:
        call = super().call(name)
        *first, packed, bias, factor, numbers = call.arrays
        codes = self.weights.reshape(self.total, -1)
        assert width_of(codes, bias, factor, self.unit.x_offset) == self.bits
        times = growth(codes, self.bits)
        return replace(call, arrays=[*first, packed, *scaled(bias, factor, times), numbers])


def compare(layers: Sequence[Packed], cpu: str) -> None:
    calls = [layer.call(f"kernel{i}") for i, layer in enumerate(layers)]
    for layer, after in zip(layers, run(calls, cpu), strict=True):
        layer.check(after)


def test_every_unit_computes_the_integers_of_numerics(unit: tuple[Vectors, str]) -> None:
    compare([Packed(CASES[i], unit[0], i, 2 + i % 2 * 2) for i in (1, 2, 6, 11)], unit[1])


@pytest.mark.parametrize("bits", [2, 4])
def test_cases_and_random_shapes(bits: int) -> None:
    name = "avx512_vnni"
    cases = [*CASES[:10], *(drawn(100 + seed) for seed in range(8))]
    layers = [Packed(case, vectors(name), seed, bits) for seed, case in enumerate(cases)]
    compare(layers, cpu_for(name))


@pytest.mark.parametrize("bits", [2, 4])
@pytest.mark.parametrize("tile", [(1, 14, 2), (1, 3, 8), (1, 1, 3)])
def test_tiles_that_fill_the_registers_or_do_not(bits: int, tile: Any) -> None:
    name = "avx512_vnni"
    # 8, 9, 10 and 11 steps: every number of fields that the last byte can have.
    cases = [
        Case(channels, 128, size=(1, 14), kernel=(1, 1), tile=tile)
        for channels in (32, 36, 40, 44)
    ]
    layers = [Packed(case, vectors(name), i, bits) for i, case in enumerate(cases)]
    compare(layers, cpu_for(name))


@pytest.mark.parametrize(("bits", "largest"), [(2, 2**25), (4, 2**27)])
@pytest.mark.parametrize("sign", [1, -1])
def test_sums_at_the_bound_are_exact(bits: int, largest: int, sign: int) -> None:
    """The largest bias that is packed with; one more is refused."""
    layer = Packed(Case(8, 16, kernel=(1, 1), x_zero=0), vectors("avx512_vnni"), 0, bits)
    half = 1 << (bits - 1)
    layer.weights[...] = sign * (half - 1)
    reach = 255 * layer.weights.reshape(16, -1).astype(np.int64).sum(1)
    ends = (largest - 1 if sign > 0 else -largest) - reach
    layer.bias = ends.astype(np.int32)
    layer.codes[...] = 0
    layer.codes[0] = 255
    layer.acc = layer._sums()
    assert np.all(layer.acc[:, 0] == (largest - 1 if sign > 0 else -largest))
    layer.factor = np.full(16, 2.0**-19, np.float32)
    compare([layer], cpu_for("avx512_vnni"))
    factor = np.ones(16, np.float32)
    beyond = (ends + sign).astype(np.int32)
    assert width_of(layer.weights.reshape(16, -1), beyond, factor) == (4 if bits == 2 else 8)


def test_width_is_what_codes_and_sums_allow() -> None:
    zero = np.zeros(1, np.int32)
    for codes, bits in (
        ([0], 2), ([-2, 1], 2), ([2, 1], 4), ([-3], 4), ([-8, 7], 4), ([8, 1], 8), ([-9], 8),
        # Powers of two that all have in common are divided away first.
        ([2], 2), ([64, -64], 2), ([-128, 64], 2), ([-64, 48], 4), ([-64, 40], 4), ([72], 8),
    ):  # fmt: skip
        assert width_of(np.array([codes], np.int8), zero, ONE) == bits, codes
    # 16 * 255 * 7 * count reaches 2^31 between these two.
    most = (2**27 - 1) // (255 * 7)
    for count, bits in ((most, 4), (most + 1, 8)):
        assert width_of(np.full((1, count), 7, np.int8), zero, ONE) == bits
        # The ends of x - 128 are nearer to 0.
        assert width_of(np.full((1, count), 7, np.int8), zero, ONE, 128) == 4


@pytest.mark.parametrize("bits", [2, 4])
def test_codes_times_a_power_of_two_give_the_same_sums(bits: int) -> None:
    for shift in range(1, 8 - bits):
        layer = Packed(Case(40, 24, tile=(1, 4, 2)), vectors("avx512_vnni"), shift, bits)
        layer.weights[0, 0] = np.array(1, np.int8)  # odd: no more is divided away
        layer.weights = (layer.weights << shift).astype(np.int8)
        layer.acc = layer._sums()
        layer.factor = layer._factor()
        assert growth(layer.weights, bits) == 1 << (8 - bits - shift)
        compare([layer], cpu_for("avx512_vnni"))


def test_factors_that_would_lose_bits_are_refused() -> None:
    w, zero = np.ones((1, 4), np.int8), np.zeros(1, np.int32)
    assert width_of(w, zero, np.float32(SMALLEST_FACTOR) * ONE) == 2
    assert width_of(w, zero, np.float32(SMALLEST_FACTOR / 2) * ONE) == 8
    assert width_of(w, zero, 0 * ONE) == 2


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_packing_keeps_every_code_and_needs_no_more_bytes(bits: int) -> None:
    rng, half = np.random.default_rng(bits), 1 << (bits - 1)
    for steps in range(1, 10):
        w = rng.integers(-half, half, (3, steps, 2, 4)).astype(np.int8)
        packed = pack(w, bits).astype(np.int64)
        assert packed.shape == (3, -(-steps // (8 // bits)), 2, 4)
        for together in (False, True):
            found = {
                (first + turn) * (8 // bits) + field: (packed[:, first + turn] << bits * field)
                for first, count, chosen in runs(steps, bits, together)
                for turn in range(count)
                for field in chosen
            }
            assert sorted(found) == list(range(steps))
            for step, value in found.items():
                signed = value.astype(np.int8) >> (8 - bits)
                assert np.array_equal(signed, w[:, step])


def test_only_what_costs_no_time_is_packed() -> None:
    assert worth_packing("avx512_vbmi", 14, 24) and worth_packing("avx_vnni", 1, 6)
    assert worth_packing("avx512_vnni", 4, 24) and not worth_packing("avx512_vnni", 4, 23)
    assert not worth_packing("avx_vnni", 2, 100) and not worth_packing("avx2", 7, 100)


def program(largest: int, bias: int = 0) -> Program:
    """An image and a pointwise convolution with codes up to `largest`."""
    grid, shape = Grid(np.float32(0.5), 3), (512, 14, 14)
    outputs = 32
    first = Quantize("image", "codes", ("image",), grid, 0, 255, shape)
    w = np.random.default_rng(0).integers(-largest, largest + 1, (outputs, 512, 1, 1))
    w[0, 0] = largest
    conv = Conv(
        "conv", "result", ("codes",), grid, 0, 255, (outputs, 14, 14),
        grid, w.astype(np.int8), np.full(outputs, 0.5, np.float32),
        np.full(outputs, bias, np.int32), (1, 1), (0, 0, 0, 0), (1, 1), 1, LayerBits(4, 8),
    )  # fmt: skip
    ops = (first, conv)
    return Program("image", shape, "float32", "logits", "result", grid, ops, {})


def test_the_plan_says_which_layers_are_packed() -> None:
    sizes = []
    for largest, bias, packed in ((1, 0, 1), (7, 0, 1), (8, 0, 0), (7, 2**27, 0)):
        plan = make_plan(program(largest, bias), vectors("avx512_vnni"))
        assert plan.packed_weights == ("conv",) * packed
        sizes.append(next(s for s in plan.steps if s.layer == "conv").constants[0].size)
    assert sizes == [32 * 512 // 4, 32 * 512 // 2, 32 * 512, 32 * 512]
    assert make_plan(program(7), vectors("avx2")).packed_weights == ()
