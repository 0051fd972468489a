"""Global average: int32 sums of all pixels of a channel, then a convolution's epilogue.

``rint(f32(S - n zx) * (xs / (ys n))) + zy`` of `qtool.core.numerics.average`: `bias` holds -n
zx and `factor` the quotient, the same for every channel. Four pixels are interleaved, so that
one dot product with ones adds four codes of each channel.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tvm.script.ir_builder import tirx as T

from passes.emit.tvm.cpu.kernels import tir
from passes.emit.tvm.cpu.kernels.direct import Place
from passes.emit.tvm.cpu.kernels.epilogue import Epilogue, Form, Piece
from passes.emit.tvm.cpu.kernels.tir import Buffer, Expr, Registers, load
from passes.emit.tvm.cpu.vectors.units import vectors


@dataclass(frozen=True)
class GlobalAverage:
    """Specification of a global average kernel, (H, W, C) to (C).

    Args:
        isa: name of the vector unit.
        height, width: of the input.
        channels: with those that pad the pixel, a multiple of 16.
        x: strides of the input.
        parallel: split over threads.
        form: of the epilogue; without a residual.
    """

    isa: str
    height: int
    width: int
    channels: int
    x: Place
    parallel: bool
    form: Form

    def name(self) -> str:
        """Return a readable part of the function's name."""
        return f"average_{self.height}x{self.width}_{self.channels}"

    def build(self, name: str) -> Any:
        """Return the function (x, y, bias, factor, numbers); bias, factor: one vector."""
        kinds = {"x": "uint8", "y": "uint8", "bias": "int32", "factor": "float32"}
        kinds |= {"numbers": "uint8"}
        return tir.function(
            name, list(kinds.items()), lambda *found: _Body(self, found).write()
        )


class _Body:
    """Writes the loops of a `GlobalAverage`."""

    def __init__(self, spec: GlobalAverage, buffers: Sequence[Buffer]) -> None:
        self.spec, self.unit = spec, vectors(spec.isa)
        self.x, y, self.bias, self.factor, numbers = buffers
        self.epilogue = Epilogue(self.unit, spec.form, numbers, y)

    def write(self) -> None:
        """Write the loop over blocks of channels; the last overlaps its neighbour."""
        spec, vector = self.spec, 4 * self.unit.lanes
        with tir.loop(-(-spec.channels // vector), spec.parallel) as block:
            # Fewer channels than a vector: it reads those of the next pixel too.
            last = max(spec.channels - vector, 0)
            self._block(tir.let(T.min(block * vector, last)))

    def _block(self, channel: Expr) -> None:
        spec, n = self.spec, self.unit.lanes
        rows, columns = spec.height, spec.width
        if spec.x.row == columns * spec.x.pixel:
            rows, columns = 1, rows * columns
        acc = Registers(4, n)
        for part in range(4):
            acc[part] = load(self.bias, 0, n)
        quads, rest = divmod(columns, 4)
        with tir.loop(rows) as row:
            start = tir.let(row * spec.x.row + channel)
            if quads:
                with tir.loop(quads) as quad:
                    self._add(acc, start + quad * (4 * spec.x.pixel), 4)
            if rest:
                self._add(acc, start + quads * (4 * spec.x.pixel), rest)
        self.epilogue.write(self._pieces(acc, channel), transposed=False)

    def _add(self, acc: Registers, start: Expr, pixels: int) -> None:
        """Add up to four pixels to the sums."""
        n, step = self.unit.lanes, self.spec.x.pixel
        found = [tir.let(load(self.x, start + p * step, 4 * n)) for p in range(pixels)]
        # Pixels that are not there count 0 times.
        ones = tir.reinterpret(
            T.broadcast(T.int32(sum(1 << 8 * p for p in range(pixels))), n), f"int8x{4 * n}"
        )
        dwords = self.unit.interleave(found + found[:1] * (4 - pixels))
        for part in range(4):
            acc[part] = self.unit.dot(acc[part], dwords[part], ones)

    def _pieces(self, acc: Registers, channel: Expr) -> list[Piece]:
        n, found = self.unit.lanes, []
        for part in range(4):
            there = part * n < self.spec.channels
            found.append(
                Piece(
                    acc[part], load(self.factor, 0, n), channel + part * n,
                    valid=None if there else T.bool(False), run=0 if there else 1,
                )
            )  # fmt: skip
        return found
