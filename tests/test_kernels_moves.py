"""Kernels that move codes: copies, fills, halos and channels."""

import numpy as np
import pytest
from kernel_calls import Array, host_has
from kernel_runner import Arena, Check, filled, pixels, place

from passes.emit.tvm.cpu.kernels.channels import ShuffleChannels, channel_places
from passes.emit.tvm.cpu.kernels.copies import CopyRegion, FillHalo, FillRegion
from passes.emit.tvm.cpu.kernels.direct import Place
from passes.emit.tvm.cpu.kernels.layout import NO_HALO, Halo, Layout, nhwc
from passes.emit.tvm.cpu.kernels.runs import Region

ISA = "avx512_vnni"
RNG = np.random.default_rng

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


def random_codes(rng: np.random.Generator, layout: Layout) -> Array:
    shape = (layout.height, layout.width, layout.channels)
    return rng.integers(0, 256, shape).astype(np.uint8)


def put(arena: Arena, rng: np.random.Generator, layout: Layout) -> tuple[int, Array]:
    """Return the address of the first pixel of a random tensor, and its codes."""
    codes = random_codes(rng, layout)
    return arena.put(filled(rng, layout, codes)) + layout.origin, codes


def compare(arena: Arena, checks: list[tuple[Check, Array, int | None]]) -> None:
    """Run the kernels, then compare each result and the bytes around it."""
    memory = arena.run()
    for check, want, channels in checks:
        check.compare(memory, want, channels)


@pytest.mark.parametrize("order", [1, -1])
def test_concatenation_of_channels_in_any_order(order: int) -> None:
    rng, arena, checks = RNG(0), Arena(), []
    for parts in ([58, 58], [5, 17, 3, 96, 1], [24], [200, 40], [16, 32]):
        y = nhwc((sum(parts), 3, 5), (1, 0, 1, 2))
        check, wanted, calls = Check(arena, y, rng), [], []
        for i, channels in enumerate(parts):
            x = nhwc((channels, 3, 5), (0, i % 2, 0, 0))
            source, codes = put(arena, rng, x)
            wanted.append(codes)
            spec = CopyRegion(ISA, Region(3, 5, channels), place(x), place(y), (1, 1), False)
            calls.append((spec, source, check.place + sum(parts[:i])))
        for call in calls[::order]:
            arena.call(*call)
        checks.append((check, np.concatenate(wanted, 2), sum(parts)))
    compare(arena, checks)


@pytest.mark.parametrize("steps", [(1, 1), (2, 3), (-1, -2)])
def test_slices(steps: tuple[int, int]) -> None:
    rng, arena, checks = RNG(0), Arena(), []
    for channels in (1, 3, 16, 58, 130):
        x, first = nhwc((channels + 7, 11, 9), (1, 1, 1, 1)), 4
        source, codes = put(arena, rng, x)
        i, j = (n - 1 if s < 0 else 1 for n, s in zip((11, 9), steps, strict=True))
        want = codes[i :: steps[0], j :: steps[1], first : first + channels]
        y = nhwc((channels, *want.shape[:2]))
        check = Check(arena, y, rng)
        walked = Place(x.row * steps[0], x.pixel * steps[1])
        pixel = Region(y.height, y.width, channels)
        spec = CopyRegion(ISA, pixel, walked, place(y), (1, 1), False)
        arena.call(spec, source + i * x.row + j * x.pixel + first, check.place)
        checks.append((check, want, channels))
    compare(arena, checks)


@pytest.mark.parametrize("parallel", [False, True])
def test_upsampling(parallel: bool) -> None:
    rng, arena, checks = RNG(0), Arena(), []
    for repeat in ((1, 1), (2, 2), (1, 3), (4, 1)):
        for halo in (NO_HALO, (1, 1, 2, 1)):
            x = nhwc((40, 5, 4))
            y = nhwc((40, 5 * repeat[0], 4 * repeat[1]), halo)
            source, codes = put(arena, rng, x)
            check = Check(arena, y, rng)
            spec = CopyRegion(ISA, Region(5, 4, x.pixel), place(x), place(y), repeat, parallel)
            arena.call(spec, source, check.place)
            checks.append((check, codes.repeat(repeat[0], 0).repeat(repeat[1], 1), None))
    compare(arena, checks)


def test_padding_of_rows_columns_and_channels() -> None:
    rng, arena = RNG(0), Arena()
    x, y = nhwc((20, 4, 5)), nhwc((33, 9, 8), (1, 1, 1, 1))
    source, codes = put(arena, rng, x)
    check = Check(arena, y, rng)
    value = arena.put(np.full(64, 77, np.uint8))
    arena.call(FillRegion(ISA, Region(9, 8, 33), place(y), False), check.place, value)
    inside = check.place + 2 * y.row + y.pixel + 6
    copy = CopyRegion(ISA, Region(4, 5, 20), place(x), place(y), (1, 1), False)
    arena.call(copy, source, inside)
    want = np.pad(codes, ((2, 3), (1, 2), (6, 7)), constant_values=77)
    compare(arena, [(check, want, 33)])


@pytest.mark.parametrize("vbmi", [False, True])
def test_channels_in_another_order(vbmi: bool) -> None:
    if vbmi and not host_has("avx512vbmi"):
        pytest.skip("this CPU has no AVX512-VBMI")
    rng, arena, checks = RNG(0), Arena(), []
    for inputs, outputs in ((6, 6), (58, 116), (116, 58), (129, 64), (464, 464)):
        x, y = nhwc((inputs, 3, 4)), nhwc((outputs, 3, 4), (1, 1, 1, 1))
        index = [int(i) for i in rng.integers(0, inputs, outputs)]
        source, codes = put(arena, rng, x)
        check = Check(arena, y, rng)
        spec = ShuffleChannels(ISA, vbmi, inputs, outputs, 3, 4, place(x), place(y), False)
        arena.call(spec, source, check.place, arena.put(channel_places(index)))
        checks.append((check, codes[:, :, index], outputs))
    compare(arena, checks)
