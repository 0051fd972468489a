"""Kernels of single codes against `qtool.core.numerics`, on shapes with and without halos."""

from typing import Any

import numpy as np
import pytest
from kernel_calls import Array, host_has
from kernel_runner import Arena, Check, filled, place, region

from passes.emit.tvm.cpu.kernels.direct import DirectConv, Place, Tile, pack_weights
from passes.emit.tvm.cpu.kernels.elementwise import (
    AddCodes,
    MulCodes,
    Operands,
    product_numbers,
    sum_numbers,
)
from passes.emit.tvm.cpu.kernels.epilogue import Form
from passes.emit.tvm.cpu.kernels.images import CopyInput, QuantizeInput, quantize_numbers
from passes.emit.tvm.cpu.kernels.layout import Halo, nhwc
from passes.emit.tvm.cpu.kernels.results import Dequantize, dequantize_numbers
from passes.emit.tvm.cpu.kernels.tables import LookUp
from passes.emit.tvm.cpu.vectors.units import vectors
from qtool.core import numerics

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


@pytest.mark.parametrize("kind", ["add", "multiply"])
def test_every_pair_of_codes(kind: str) -> None:
    # Many products are a half away from an integer but for the last bits that rounding drops.
    grid: Grids = (F32(0.1), 128, F32(1), 117, F32(1), 128)
    rng, arena = np.random.default_rng(0), Arena()
    layout = nhwc((256, 16, 16))
    a, b = np.meshgrid(np.arange(256), np.arange(256))
    a, b = (v.astype(np.uint8).reshape(16, 16, 256) for v in (a, b))
    operands = Operands(
        ISA, region(layout), *[place(layout)] * 3, clip=False, clamp=False, parallel=False
    )
    spec, numbers = binary(kind, operands, grid, (0, 255))
    check = Check(arena, layout, rng)
    arena.call(spec, arena.put(a), arena.put(b), check.place, arena.put(numbers))
    sa, za, sb, zb, sy, zy = grid
    want = getattr(numerics, kind)(a, sa, za, b, sb, zb, sy, zy)
    check.compare(arena.run(), want)
    if kind == "multiply":
        product = (a.astype(np.int32) - za) * (b.astype(np.int32) - zb)
        fused = numerics.fma(product, numerics.multiply_factor(sa, sb, sy), F32(zy))
        assert np.any(numerics.saturate(np.rint(fused), 0, 255) != want)


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
    (4, 8, 8, 4, NONE), (3, 5, 5, 4, (2, 2, 2, 2)), (9, 5, 40, 16, NONE),
    (1, 1, 1000, 1, NONE),
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


def test_quantizing_divides() -> None:
    rng, arena, checks = np.random.default_rng(0), Arena(), []
    layout, differing = nhwc((1, 16, 32), NONE, 1), 0
    for scale in (F32(0.0173), F32(0.3), F32(0.007)):
        x = (np.arange(512, dtype=F32) / F32(2)).reshape(1, 16, 32) * scale
        check = Check(arena, layout, rng)
        numbers = arena.put(quantize_numbers(scale, 0, 0, 255))
        spec = QuantizeInput(ISA, 1, 16, 32, place(layout), False)
        arena.call(spec, arena.put(x), check.place, numbers)
        want = numerics.quantize(x, scale, 0)
        differing += np.count_nonzero(np.clip(np.rint(x * (F32(1) / scale)), 0, 255) != want)
        checks.append((check, want.transpose(1, 2, 0)))
    memory = arena.run()
    for check, want in checks:
        check.compare(memory, want)
    # These are numbers for which a product with the reciprocal is another code.
    assert differing > 0


def image(rng: np.random.Generator, shape: tuple[int, ...], scale: np.float32) -> Array:
    """Return floats with ties, NaN, infinities and values beyond every window."""
    x = (rng.integers(-600, 600, shape).astype(F32) / F32(2)) * scale
    odd = np.array([np.nan, np.inf, -np.inf, 3e38, -3e38, 1e-40], F32)
    chosen = rng.random(shape) < 0.05
    x[chosen] = rng.choice(odd, int(chosen.sum()))
    return x


def test_dequantize() -> None:
    rng, arena, found = np.random.default_rng(0), Arena(), []
    for count in (1, 10, 16, 33, 1000):
        codes = rng.integers(0, 256, count).astype(np.uint8)
        scale, zero = F32(rng.uniform(0.001, 1)), int(rng.integers(256))
        want = rng.random(count + 3).astype(F32)
        y = arena.put(want.copy())
        numbers = arena.put(dequantize_numbers(scale, zero))
        arena.call(Dequantize(ISA, count, False), arena.put(codes), y, numbers)
        want[:count] = numerics.dequantize(codes, scale, zero)
        found.append((y, want))
    memory = arena.run()
    for y, want in found:
        assert np.array_equal(memory[y : y + want.nbytes].view(F32), want)


def test_a_linear_layer_with_a_float_result() -> None:
    rng, arena = np.random.default_rng(0), Arena()
    inputs, outputs = 37, 90
    w = rng.integers(-127, 128, (outputs, inputs)).astype(np.int8)
    x = np.zeros(64, np.uint8)
    x[:inputs] = rng.integers(0, 256, inputs)
    nowhere = Place(0, 0)
    spec = DirectConv(
        ISA, 1, 1, 6, 1, 0, (1, 1), 10, (1, 1), (1, 1), nowhere, nowhere, nowhere,
        Tile(1, 1, 4), True, False, Form(zero=False, clip=False, floats=True),
    )  # fmt: skip
    bias, factor = np.zeros(128, np.int32), np.zeros(128, F32)
    bias[:outputs] = rng.integers(-9999, 9999, outputs)
    factor[:outputs] = rng.uniform(1e-6, 1e-2, outputs)
    before = rng.random(112).astype(F32)
    packed = pack_weights(w.reshape(1, outputs, 1, 1, inputs), spec, vectors(ISA))
    y = arena.put(before)
    constants = [arena.put(v) for v in (packed, bias, factor, np.zeros(64, np.uint8))]
    arena.call(spec, arena.put(x), y, *constants)
    after = arena.run()[y : y + before.nbytes].view(F32)
    acc = (w.astype(np.int32) @ x[:inputs].astype(np.int32) + bias[:outputs])[None]
    want = numerics.scale_accumulators(acc.astype(np.int32), factor[:outputs])[0]
    assert np.array_equal(after[:outputs], want)
    assert np.array_equal(after[96:], before[96:])
