"""Compiles kernels alone and runs them on an arena, as the emitter's modules do."""

from typing import Any

import numpy as np
import tvm
from kernel_calls import HOST, Array, compiled
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from passes.emit.tvm.cpu.kernels.direct import Place
from passes.emit.tvm.cpu.kernels.layout import Layout, round_up
from passes.emit.tvm.cpu.kernels.runs import Region

# The last bytes may be read 64 bytes further; pointers are 16-byte aligned and no more.
SLACK, ALIGNMENT = 64, 16


class Arena:
    """Kernels and their arguments in one block of memory; one compilation for all."""

    def __init__(self) -> None:
        self.size = 0
        self.arrays: list[tuple[int, Array]] = []
        self.calls: list[tuple[Any, tuple[int, ...]]] = []

    def put(self, array: Array) -> int:
        """Return the address of a copy of `array`."""
        place = round_up(self.size, 2 * ALIGNMENT) + ALIGNMENT
        self.arrays.append((place, array))
        self.size = place + array.nbytes + SLACK
        return place

    def call(self, spec: Any, *places: int) -> None:
        """Run the kernel `spec` with pointers to `places`."""
        self.calls.append((spec, places))

    def run(self) -> Array:
        """Return the memory after all calls."""
        memory = np.random.default_rng(1).integers(0, 256, self.size).astype(np.uint8)
        for place, array in self.arrays:
            memory[place : place + array.nbytes] = (
                np.ascontiguousarray(array).view(np.uint8).ravel()
            )
        library = compiled(self._module(), mcpu=str(HOST.attrs["mcpu"]))
        held = tvm.runtime.tensor(memory)
        library["run_all"](held)
        result: Array = held.numpy()
        return result

    def _module(self) -> Any:
        functions = {
            tvm.ir.GlobalVar(f"kernel{i}"): spec.build(f"kernel{i}")
            for i, (spec, _) in enumerate(self.calls)
        }
        with IRBuilder() as builder, T.prim_func(s_tir=False):
            T.func_name("run_all")
            T.func_attr({"global_symbol": "run_all"})
            memory = T.arg("memory", T.buffer((self.size,), "uint8", layout=None))
            for kernel, (_, places) in zip(functions, self.calls, strict=True):
                pointers = [T.address_of(memory[place]) for place in places]
                T.evaluate(T.Call(kernel, pointers, ret_ty="int32"))
        return tvm.IRModule({tvm.ir.GlobalVar("run_all"): builder.get(), **functions})


def pixels(layout: Layout, memory: Array) -> Array:
    """Return the (height, width, C) codes of a tensor at the start of `memory`, as a view."""
    top, left, bottom, right = layout.halo
    rows, columns = top + layout.height + bottom, left + layout.width + right
    whole = memory[: layout.bytes].reshape(rows, columns, layout.pixel)
    return whole[top : top + layout.height, left : left + layout.width, : layout.channels]


def filled(rng: np.random.Generator, layout: Layout, codes: Array | None = None) -> Array:
    """Return the bytes of a tensor, all of them random but for (height, width, C) `codes`."""
    memory = rng.integers(0, 256, layout.bytes).astype(np.uint8)
    if codes is not None:
        pixels(layout, memory)[:] = codes
    return memory


def untouched(
    layout: Layout, before: Array, after: Array, channels: int | None = None
) -> bool:
    """Return whether nothing changed but `channels` bytes of each pixel (all by default)."""
    masked = [m[: layout.bytes].copy() for m in (before, after)]
    wide = Layout(
        (channels or layout.pixel, layout.height, layout.width), layout.halo, layout.pixel
    )
    for memory in masked:
        pixels(wide, memory)[:] = 0
    return bool(np.array_equal(*masked))


def place(layout: Layout) -> Place:
    """Return a tensor's strides."""
    return Place(layout.row, layout.pixel)


def region(layout: Layout) -> Region:
    """Return a tensor's pixels, with the bytes behind their channels."""
    return Region(layout.height, layout.width, layout.pixel)


class Check:
    """A result to compare once the arena has run."""

    def __init__(self, arena: Arena, layout: Layout, rng: np.random.Generator) -> None:
        self.layout = layout
        self.before = rng.integers(0, 256, layout.bytes + 2 * SLACK).astype(np.uint8)
        self.start = arena.put(self.before)
        self.place = self.start + SLACK + layout.origin

    def compare(self, memory: Array, want: Array, channels: int | None = None) -> None:
        """Fail unless codes are `want` and only `channels` bytes of each pixel changed."""
        after = memory[self.start : self.start + self.before.size]
        tensors = [m[SLACK : SLACK + self.layout.bytes] for m in (self.before, after)]
        assert np.count_nonzero(pixels(self.layout, tensors[1]) != want) == 0
        assert untouched(self.layout, *tensors, channels)
        for guard in (slice(SLACK), slice(-SLACK, None)):
            assert np.array_equal(self.before[guard], after[guard])
