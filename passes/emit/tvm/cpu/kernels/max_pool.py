"""Largest code of every window: vectors of channels, borders by clamping the position.

A position outside the image is replaced by the nearest one inside. The maximum stays the same
where that one belongs to the window anyway, which `supports` tells.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tvm.script.ir_builder import tirx as T

from passes.emit.tvm.cpu.kernels import tir
from passes.emit.tvm.cpu.kernels.direct import Place
from passes.emit.tvm.cpu.kernels.tir import Buffer, Expr, load, store
from passes.emit.tvm.cpu.vectors.units import vectors


@dataclass(frozen=True)
class MaxPool:
    """Specification of a max pooling kernel.

    Args:
        isa: name of the vector unit.
        size: (rows, columns) of the input.
        height, width: of the result.
        channels: with those that pad the pixel, a multiple of 16.
        taps: (rows, columns) of the window.
        strides: (rows, columns).
        dilations: (rows, columns).
        pads: (top, left).
        x, y: strides of the input, whose pointer is at its first pixel, and of the result.
        parallel: split over threads.
    """

    isa: str
    size: tuple[int, int]
    height: int
    width: int
    channels: int
    taps: tuple[int, int]
    strides: tuple[int, int]
    dilations: tuple[int, int]
    pads: tuple[int, int]
    x: Place
    y: Place
    parallel: bool

    def name(self) -> str:
        """Return a readable part of the function's name."""
        return f"max_pool{self.taps[0]}_{self.height}x{self.width}_{self.channels}"

    def build(self, name: str) -> Any:
        """Return the function (x, y)."""
        kinds = [("x", "uint8"), ("y", "uint8")]
        return tir.function(name, kinds, lambda *found: _Body(self, found).write())


def supports(spec: MaxPool) -> bool:
    """Return whether every position that clamping picks belongs to its window."""
    return all(
        set(clamped) <= set(window)
        for axis in (0, 1)
        for window, clamped in _windows(spec, axis)
    )


def _windows(spec: MaxPool, axis: int) -> list[tuple[list[int], list[int]]]:
    """Return the positions of every window along an axis, and those that are read."""
    found = []
    for i in range((spec.height, spec.width)[axis]):
        first = i * spec.strides[axis] - spec.pads[axis]
        window = [first + t * spec.dilations[axis] for t in range(spec.taps[axis])]
        found.append((window, [min(max(p, 0), spec.size[axis] - 1) for p in window]))
    return found


class _Body:
    """Writes the loops of a `MaxPool`."""

    def __init__(self, spec: MaxPool, buffers: Sequence[Buffer]) -> None:
        self.spec, (self.x, self.y) = spec, buffers
        self.vector = 4 * vectors(spec.isa).lanes

    def write(self) -> None:
        """Write the loops over rows, columns and channels."""
        spec = self.spec
        with tir.loop(spec.height, spec.parallel) as row:
            rows = [tir.let(p * spec.x.row) for p in self._positions(row, 0)]
            with tir.loop(spec.width) as column:
                columns = [tir.let(p * spec.x.pixel) for p in self._positions(column, 1)]
                offsets = [r + c for r in rows for c in columns]
                result = tir.let(row * spec.y.row + column * spec.y.pixel)
                whole, rest = divmod(spec.channels, self.vector)
                if whole:
                    with tir.loop(whole) as block:
                        self._largest(offsets, result, block * self.vector, self.vector)
                channel, size = whole * self.vector, self.vector // 2
                while rest:
                    if rest >= size:
                        self._largest(offsets, result, channel, size)
                        channel, rest = channel + size, rest - size
                    size //= 2

    def _positions(self, index: Expr, axis: int) -> list[Expr]:
        """Return the rows or columns that a window reads."""
        spec = self.spec
        first = tir.let(index * spec.strides[axis] - spec.pads[axis])
        touched = {p for window, _ in _windows(spec, axis) for p in window}
        inside = min(touched) >= 0 and max(touched) < spec.size[axis]
        found = [first + t * spec.dilations[axis] for t in range(spec.taps[axis])]
        if inside:
            return found
        return [T.min(T.max(p, 0), spec.size[axis] - 1) for p in found]

    def _largest(self, offsets: list[Expr], result: Expr, channel: Expr, size: int) -> None:
        largest = load(self.x, offsets[0] + channel, size)
        for offset in offsets[1:]:
            largest = T.max(largest, load(self.x, offset + channel, size))
        store(self.y, result + channel, largest, size)
