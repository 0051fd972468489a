"""Kernels of single codes against `qtool.numerics`, on shapes with and without halos."""

from typing import Any

import numpy as np
import pytest
from kernel_runner import Arena, Array, filled, host_has, pixels, untouched

from passes.emit.kernels.copies import FillHalo
from passes.emit.kernels.direct import Place
from passes.emit.kernels.elementwise import (
    AddCodes,
    MulCodes,
    Operands,
    product_numbers,
    sum_numbers,
)
from passes.emit.kernels.images import CopyInput, QuantizeInput, quantize_numbers
from passes.emit.kernels.layout import Halo, Layout, nhwc
from passes.emit.kernels.lookup import LookUp
from passes.emit.kernels.results import Dequantize, dequantize_numbers
from passes.emit.kernels.runs import Region
from qtool import numerics

ISA = "avx512_vnni"
F32 = np.float32
if not host_has("avx512vnni", "avx512vbmi"):
    pytest.skip("these kernels need a CPU with AVX512 VNNI and VBMI", allow_module_level=True)

NONE: Halo = (0, 0, 0, 0)
# Shape, halos of two operands and the result.
CASES: list[tuple[tuple[int, int, int], Halo, Halo, Halo]] = [
    ((1, 1, 1), NONE, NONE, NONE),
    ((3, 5, 7), NONE, (1, 1, 1, 1), NONE),
    ((16, 4, 4), NONE, NONE, NONE),
    ((24, 7, 3), NONE, NONE, (1, 2, 0, 1)),
    ((40, 3, 9), (2, 2, 2, 2), NONE, (0, 1, 1, 0)),
    ((96, 6, 5), (1, 1, 1, 1), (1, 1, 1, 1), (1, 1, 1, 1)),
    ((200, 2, 3), NONE, NONE, NONE),
]


def place(layout: Layout) -> Place:
    return Place(layout.row, layout.pixel)


def region(layout: Layout) -> Region:
    return Region(layout.height, layout.width, layout.pixel)


class Check:
    """A result to compare once the arena has run."""

    def __init__(self, arena: Arena, layout: Layout, rng: np.random.Generator) -> None:
        self.layout, self.before = layout, filled(rng, layout)
        self.start = arena.put(self.before)
        self.place = self.start + layout.origin

    def compare(self, memory: Array, want: Array, channels: int | None = None) -> None:
        after = memory[self.start : self.start + self.layout.bytes]
        assert np.count_nonzero(pixels(self.layout, after) != want) == 0
        assert untouched(self.layout, self.before, after, channels)


Grids = tuple[np.float32, int, np.float32, int, np.float32, int]


def grids(rng: np.random.Generator, product: bool) -> Grids:
    """Return scales and zero points of two operands and a result, often with ties."""
    if rng.integers(3) == 0:
        scales = [F32(1), F32(0.5), F32(0.5 if product else 1)]
    else:
        scales = [F32(s) for s in 10 ** rng.uniform(-2, 0, 3)]
    za, zb, zy = (int(rng.choice([0, 128, 255, int(rng.integers(256))])) for _ in range(3))
    return scales[0], za, scales[1], zb, scales[2], zy


def binary(
    kind: str, operands: Operands, grid: Grids, window: tuple[int, int]
) -> tuple[Any, Array]:
    """Return the kernel and its numbers."""
    sa, za, sb, zb, sy, zy = grid
    if kind == "add":
        return AddCodes(operands), sum_numbers(*numerics.add_coefficients(*grid), *window)
    factor = numerics.multiply_factor(sa, sb, sy)
    return MulCodes(operands), product_numbers(factor, za, zb, zy, *window)


@pytest.mark.parametrize("parallel", [False, True])
@pytest.mark.parametrize("kind", ["add", "multiply"])
@pytest.mark.parametrize("gate", [False, True])
def test_sums_and_products(kind: str, gate: bool, parallel: bool) -> None:
    rng = np.random.default_rng(len(kind) + gate)
    arena, checks = Arena(), []
    for shape, *halos in CASES:
        a, b, y = (nhwc(shape, halo) for halo in halos)
        b = nhwc((shape[0], 1, 1)) if gate else b
        codes = [
            rng.integers(0, 256, (t.height, t.width, shape[0])).astype(np.uint8)
            for t in (a, b)
        ]
        window = (0, 255) if rng.integers(2) else (3, 201)
        grid = grids(rng, kind == "multiply")
        other = Place(0, 0) if gate else place(b)
        clip, clamp = window != (0, 255), bool(rng.integers(2))
        spec, numbers = binary(
            kind,
            Operands(ISA, region(y), place(a), other, place(y), clip, clamp, parallel),
            grid, window,
        )  # fmt: skip
        x, z = (
            arena.put(filled(rng, t, c)) + t.origin for t, c in zip((a, b), codes, strict=True)
        )
        check = Check(arena, y, rng)
        arena.call(spec, x, z, check.place, arena.put(numbers))
        formula = getattr(numerics, kind)
        sa, za, sb, zb, sy, zy = grid
        want = formula(codes[0], sa, za, codes[1], sb, zb, sy, zy, *window)
        checks.append((check, want))
    memory = arena.run()
    for check, want in checks:
        check.compare(memory, want)


@pytest.mark.parametrize("vbmi", [False, True])
def test_tables(vbmi: bool) -> None:
    rng = np.random.default_rng(0)
    arena, checks = Arena(), []
    for shape, halo, _, result in CASES:
        x, y = nhwc(shape, halo), nhwc(shape, result)
        codes = rng.integers(0, 256, (x.height, x.width, shape[0])).astype(np.uint8)
        table = rng.integers(0, 256, 256).astype(np.uint8)
        check = Check(arena, y, rng)
        spec = LookUp(ISA, vbmi, region(y), place(x), place(y), False)
        source = arena.put(filled(rng, x, codes)) + x.origin
        arena.call(spec, source, check.place, arena.put(table))
        checks.append((check, table[codes]))
    memory = arena.run()
    for check, want in checks:
        check.compare(memory, want)


IMAGES = [
    # planes, height, width, bytes of a pixel, halo
    (3, 17, 33, 3, NONE), (3, 9, 70, 4, NONE), (3, 20, 28, 16, (1, 2, 3, 1)),
    (3, 6, 90, 3, (3, 3, 3, 3)), (1, 28, 28, 16, (1, 1, 1, 1)), (1, 1, 10, 1, NONE),
    (4, 8, 8, 4, NONE), (3, 5, 5, 4, (2, 2, 2, 2)), (9, 5, 40, 16, NONE), (1, 1, 1000, 1, NONE),
]  # fmt: skip


@pytest.mark.parametrize("parallel", [False, True])
@pytest.mark.parametrize("kind", ["float32", "uint8"])
def test_images(kind: str, parallel: bool) -> None:
    rng = np.random.default_rng(0)
    arena, checks = Arena(), []
    for planes, height, width, pixel, halo in IMAGES:
        y = nhwc((planes, height, width), halo, pixel)
        shape = (planes, height, width)
        check = Check(arena, y, rng)
        if kind == "float32":
            scale, zero, lo, hi = (
                F32(rng.choice([0.5, 0.0173])),
                int(rng.integers(256)),
                3,
                250,
            )
            x = image(rng, shape, scale)
            spec: Any = QuantizeInput(ISA, *shape, place(y), parallel)
            numbers = arena.put(quantize_numbers(scale, zero, lo, hi))
            arena.call(spec, arena.put(x), check.place, numbers)
            want = numerics.quantize(x, scale, zero, lo, hi)
        else:
            want = rng.integers(0, 256, shape).astype(np.uint8)
            arena.call(
                CopyInput(ISA, *shape, place(y), parallel), arena.put(want), check.place
            )
        checks.append((check, want.transpose(1, 2, 0)))
    memory = arena.run()
    for check, want in checks:
        check.compare(memory, want)


def image(rng: np.random.Generator, shape: tuple[int, ...], scale: np.float32) -> Array:
    """Return floats with ties, NaN, infinities and values beyond every window."""
    x = (rng.integers(-600, 600, shape).astype(F32) / F32(2)) * scale
    odd = np.array([np.nan, np.inf, -np.inf, 3e38, -3e38, 1e-40], F32)
    chosen = rng.random(shape) < 0.05
    x[chosen] = rng.choice(odd, int(chosen.sum()))
    return x


@pytest.mark.parametrize("count", [1, 10, 16, 33, 1000])
def test_dequantize(count: int) -> None:
    rng = np.random.default_rng(count)
    codes = rng.integers(0, 256, count).astype(np.uint8)
    scale, zero = F32(rng.uniform(0.001, 1)), int(rng.integers(256))
    arena = Arena()
    before = rng.random(count + 3).astype(F32)
    x, y = arena.put(codes), arena.put(before)
    numbers = arena.put(dequantize_numbers(scale, zero))
    arena.call(Dequantize(ISA, count, False), x, y, numbers)
    after = arena.run()[y : y + before.nbytes].view(F32)
    assert np.array_equal(after[:count], numerics.dequantize(codes, scale, zero))
    assert np.array_equal(after[count:], before[count:])


HALOS: list[tuple[int, int, int, Halo]] = [
    (1, 1, 16, (1, 1, 1, 1)), (5, 7, 32, (1, 2, 3, 4)), (6, 6, 3, (3, 3, 3, 3)),
    (4, 5, 96, (0, 1, 0, 0)), (4, 5, 16, (0, 0, 1, 0)), (3, 3, 48, (2, 0, 0, 1)),
]  # fmt: skip


def test_halos() -> None:
    rng = np.random.default_rng(0)
    arena, checks = Arena(), []
    for height, width, pixel, halo in HALOS:
        layout = nhwc((pixel, height, width), halo, pixel)
        code = int(rng.integers(256))
        before = filled(rng, layout)
        start = arena.put(before)
        value = arena.put(np.full(64, code, np.uint8))
        arena.call(FillHalo(ISA, height, width, pixel, halo), start, value)
        want = np.full(layout.bytes, code, np.uint8)
        pixels(layout, want)[:] = pixels(layout, before)
        guard = arena.put(np.zeros(16, np.uint8))
        checks.append((start, want, guard))
    memory = arena.run()
    for start, want, guard in checks:
        assert np.array_equal(memory[start : start + want.size], want)
        assert not memory[guard : guard + 16].any()
