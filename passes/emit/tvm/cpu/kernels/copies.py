"""Codes that only move or are written over: slices, concatenations, paddings, upsampling.

A concatenation is a `CopyRegion` for each of its parts, with result pointers into one tensor;
a padding a `FillRegion` or `FillHalo` and a copy. Not a byte outside of a region is written,
so the order of the parts does not matter and parts may be any number of channels.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from passes.emit.tvm.cpu.kernels import tir
from passes.emit.tvm.cpu.kernels.direct import Place
from passes.emit.tvm.cpu.kernels.layout import Halo
from passes.emit.tvm.cpu.kernels.runs import Region, put, store_first, take, walk
from passes.emit.tvm.cpu.kernels.tir import Buffer, Expr, let, load

_VECTOR = 64  # bytes; the compiler splits it where the CPU's vectors are shorter


@dataclass(frozen=True)
class CopyRegion:
    """Specification of a copy of every pixel of a region, `repeat` times; no constants.

    Args:
        isa: name of the vector unit; it does not matter, as bytes are only moved.
        region: pixels of `x` that are read.
        x: strides of what is read; steps of a slice multiply them, or turn them round.
        y: strides of the result.
        repeat: times that each pixel is written: rows, columns.
        parallel: split over threads.
    """

    isa: str
    region: Region
    x: Place
    y: Place
    repeat: tuple[int, int]
    parallel: bool

    def name(self) -> str:
        """Return a readable part of the function's name."""
        return f"copy_{self.region}"

    def build(self, name: str) -> Any:
        """Return the function (x, y)."""
        return tir.function(name, [("x", "uint8"), ("y", "uint8")], self._write)

    def _write(self, x: Buffer, y: Buffer) -> None:
        down, right = self.repeat
        targets = Place(self.y.row * down, self.y.pixel * right)

        def step(offsets: Sequence[Expr], count: int) -> None:
            for start, size in whole(count):
                codes = let(take(x, offsets[0] + start, size))
                for i in range(down):
                    for j in range(right):
                        place = i * self.y.row + j * self.y.pixel + start
                        put(y, offsets[1] + place, codes, size)

        walk(self.region, (self.x, targets), _VECTOR, step, self.parallel)


def whole(count: int) -> list[tuple[int, int]]:
    """Return (start, size) of at most two vectors that cover `count` <= 64 bytes exactly."""
    size = 1 << count.bit_length() - 1
    return [(0, size)] if size == count else [(0, size), (count - size, size)]


@dataclass(frozen=True)
class FillRegion:
    """Specification of a region in which every byte becomes the first of 64 equal constants.

    Args:
        isa: name of the vector unit; it does not matter, as bytes are only moved.
        region: pixels.
        y: strides.
        parallel: split over threads.
    """

    isa: str
    region: Region
    y: Place
    parallel: bool

    def name(self) -> str:
        """Return a readable part of the function's name."""
        return f"fill_{self.region}"

    def build(self, name: str) -> Any:
        """Return the function (y, value)."""
        return tir.function(name, [("y", "uint8"), ("value", "uint8")], self._write)

    def _write(self, y: Buffer, value: Buffer) -> None:
        _fill(y, 0, let(load(value, 0, _VECTOR)), self.region, self.y, self.parallel)


@dataclass(frozen=True)
class FillHalo:
    """Specification of writing a tensor's borders; 64 bytes of zero point are its constant.

    Args:
        isa: name of the vector unit; it does not matter, as bytes are only moved.
        height: rows of the tensor, without its halo.
        width: pixels of its rows, without the halo.
        pixel: bytes of a pixel.
        halo: pixels around it.
    """

    isa: str
    height: int
    width: int
    pixel: int
    halo: Halo

    def name(self) -> str:
        """Return a readable part of the function's name."""
        return f"halo_{self.height}x{self.width}x{self.pixel}_" + "_".join(map(str, self.halo))

    def build(self, name: str) -> Any:
        """Return the function (y, value); `y` points to the first byte of the halo."""
        return tir.function(name, [("y", "uint8"), ("value", "uint8")], self._write)

    def _write(self, y: Buffer, value: Buffer) -> None:
        top, left, bottom, right = self.halo
        row = (left + self.width + right) * self.pixel
        code = let(load(value, 0, _VECTOR))
        # Every row's right border and the next row's left one are one run.
        sides, first = (left + right) * self.pixel, (top + 1) * row - right * self.pixel
        parts = [
            (0, Region(1, 1, top * row + left * self.pixel)),
            (first, Region(self.height - 1, 1, sides)),
            (first + (self.height - 1) * row, Region(1, 1, right * self.pixel + bottom * row)),
        ]
        for start, region in parts:
            if region.height and region.bytes:
                _fill(y, start, code, region, Place(row, 0), False)


def _fill(
    y: Buffer, start: int, code: Expr, region: Region, place: Place, parallel: bool
) -> None:
    def step(offsets: Sequence[Expr], count: int) -> None:
        store_first(y, offsets[0] + start, code, count, _VECTOR)

    walk(region, (place,), _VECTOR, step, parallel)
