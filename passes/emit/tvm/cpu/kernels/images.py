"""The network's input: float32 (C, H, W) planes to codes of interleaved pixels.

``clip(rint(x / scale) + zero_point)`` of `qtool.core.numerics.quantize`: a true division, and
NaN is the smallest code. Vectors of each plane are shuffled into pixels. A tensor whose codes
keep its own order is an image of one plane, one row and pixels of one byte.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tvm.script.ir_builder import tirx as T

from passes.emit.tvm.cpu.kernels import tir
from passes.emit.tvm.cpu.kernels.direct import Place
from passes.emit.tvm.cpu.kernels.epilogue import ROUND_LIMIT
from passes.emit.tvm.cpu.kernels.numbers import Numbers, slots
from passes.emit.tvm.cpu.kernels.runs import store_first
from passes.emit.tvm.cpu.kernels.tir import Buffer, Expr, let, load
from passes.emit.tvm.cpu.vectors.base import Vectors, shuffle
from passes.emit.tvm.cpu.vectors.units import vectors

_NAMES = ("scale", "zero16", "lo", "hi")
# Shuffling many planes into pixels would be long code; they go byte by byte.
_SHUFFLED_PLANES = 4


def quantize_numbers(scale: np.float32, zero: int, lo: int, hi: int) -> NDArray[np.uint8]:
    """Return the record of `QuantizeInput`: the grid and the window."""
    return slots(np.float32(scale), np.int16(zero), np.uint8(lo), np.uint8(hi))


@dataclass(frozen=True)
class CopyInput:
    """Specification of uint8 (C, H, W) pixels, which are codes already; no constants.

    Nothing is read beyond the input, whose memory is the caller's.

    Args:
        isa: name of the vector unit.
        planes: C.
        height: H.
        width: W.
        y: strides of the result. Bytes of a pixel behind C take anything.
        parallel: split over threads.
    """

    isa: str
    planes: int
    height: int
    width: int
    y: Place
    parallel: bool

    def name(self) -> str:
        """Return a readable part of the function's name."""
        return f"pixels_{self.planes}x{self.height}x{self.width}_{self.y.pixel}"

    def build(self, name: str) -> Any:
        """Return the function (x, y)."""
        return tir.function(name, [("x", "uint8"), ("y", "uint8")], self._write)

    def _write(self, x: Buffer, y: Buffer) -> None:
        _Interleave(self, x, y).write()

    def codes(self, unit: Vectors, parts: Sequence[Expr], numbers: Numbers | None) -> Expr:
        """Return the codes of four vectors of `unit.lanes` elements of the input."""
        return shuffle(parts, range(4 * unit.lanes))


@dataclass(frozen=True)
class QuantizeInput(CopyInput):
    """Specification of float32 (C, H, W) to codes; its constant is `quantize_numbers`."""

    def name(self) -> str:
        """Return a readable part of the function's name."""
        return f"quantize_{self.planes}x{self.height}x{self.width}_{self.y.pixel}"

    def build(self, name: str) -> Any:
        """Return the function (x, y, numbers)."""
        pointers = [("x", "float32"), ("y", "uint8"), ("numbers", "uint8")]
        return tir.function(name, pointers, self._write_numbers)

    def _write_numbers(self, x: Buffer, y: Buffer, record: Buffer) -> None:
        _Interleave(self, x, y, Numbers(vectors(self.isa), record, _NAMES)).write()

    def codes(self, unit: Vectors, parts: Sequence[Expr], numbers: Numbers | None) -> Expr:
        """Return the codes of four vectors of `unit.lanes` elements of the input."""
        if numbers is None:
            raise ValueError("quantizing needs a grid")
        high = T.broadcast(T.float32(ROUND_LIMIT), unit.lanes)
        low = T.broadcast(T.float32(-ROUND_LIMIT), unit.lanes)
        rounded = []
        for part in parts:
            steps = let(part / numbers.floats("scale"))
            # A maximum whose first operand is NaN is its second operand.
            rounded.append(let(unit.round(T.min(T.max(steps, low), high))))
        codes = unit.transpose(unit.add_saturated(rounded, numbers.halves("zero16")))
        return T.min(T.max(codes, numbers.bytes("lo")), numbers.bytes("hi"))


class _Interleave:
    """Writes the loops of an input kernel."""

    def __init__(
        self, spec: CopyInput, x: Buffer, y: Buffer, numbers: Numbers | None = None
    ) -> None:
        self.spec, self.x, self.y, self.numbers = spec, x, y, numbers
        self.unit = vectors(spec.isa)
        self.plane = spec.height * spec.width
        flat = spec.height == 1 or spec.y.row == spec.width * spec.y.pixel
        merge = flat and not spec.parallel
        self.rows = 1 if merge else spec.height
        self.width = self.plane if merge else spec.width

    def write(self) -> None:
        """Write the loops over rows and steps of pixels."""
        most = 4 if self.spec.planes <= _SHUFFLED_PLANES else 1
        parts = min(most, self.width // self.unit.lanes)
        size = max(1, parts * self.unit.lanes)
        threads = self.spec.parallel
        with tir.loop(self.rows, threads) as row:
            with tir.loop(-(-self.width // size), threads and self.rows == 1) as turn:
                # The last step overlaps its neighbour.
                first = tir.let(T.min(turn * size, self.width - size))
                self._step(
                    row * self.spec.width + first,
                    row * self.spec.y.row + first * self.spec.y.pixel,
                    parts,
                )

    def _step(self, source: Expr, target: Expr, parts: int) -> None:
        """Write max(1, parts x lanes) pixels."""
        unit, spec = self.unit, self.spec
        size = max(1, parts * unit.lanes)
        planes = []
        for plane in range(spec.planes):
            start = source + plane * self.plane
            found = [
                let(load(self.x, start + i * unit.lanes, unit.lanes)) for i in range(parts)
            ]
            # Rows shorter than a vector go pixel by pixel.
            found = found or [T.broadcast(self.x[start], unit.lanes)]
            planes.append(let(spec.codes(unit, (found * 4)[:4], self.numbers)))
        if spec.planes > _SHUFFLED_PLANES or parts == 0:
            self._scatter(planes, target, size)
        else:
            self._shuffle(planes, target, size)

    def _scatter(self, planes: Sequence[Expr], target: Expr, size: int) -> None:
        for channel, codes in enumerate(planes):
            for i in range(size):
                code = shuffle([codes], [i])
                T.buffer_store(self.y, code, [target + i * self.spec.y.pixel + channel])

    def _shuffle(self, planes: Sequence[Expr], target: Expr, size: int) -> None:
        lanes, pixel = 4 * self.unit.lanes, self.spec.y.pixel
        for start in range(0, size * pixel, lanes):
            byte = [divmod(start + i, pixel) for i in range(lanes)]
            # Lanes behind the last pixel are not stored.
            source = [min(p, size - 1) for p, _ in byte]
            codes = shuffle([planes[0]], source)
            for channel in range(1, len(planes)):
                places = [
                    lanes + source[i] if byte[i][1] == channel else i for i in range(lanes)
                ]
                codes = let(shuffle([codes, planes[channel]], places))
            count = min(lanes, size * pixel - start)
            store_first(self.y, target + start, codes, count, lanes)
