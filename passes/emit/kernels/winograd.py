"""3 x 3 convolution in a quarter of the products: exact integer Winograd F(4x4, 3x3).

A strip of tiles at a time: its input becomes 36 int16 matrices (tiles x channels); each is
multiplied with its weights; the 36 sums of a tile and output vector become 16 results. See
`winograd_transforms`. A product of int16 costs as much as two of bytes, so that at best half
the time of the direct kernel is left.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from tvm.script.ir_builder import tirx as T

from passes.emit.kernels import tir
from passes.emit.kernels.direct import Place
from passes.emit.kernels.epilogue import Epilogue, Form, Piece
from passes.emit.kernels.layout import round_up
from passes.emit.kernels.tir import Buffer, Expr, Registers, load, store
from passes.emit.kernels.vectors import vectors
from passes.emit.kernels.winograd_transforms import (
    BIAS_POINT,
    PATCH,
    POINTS,
    SHIFT,
    TILE,
    Transforms,
)

# Tiles in registers together: enough to hide the latency of a product and to share a load of
# weights; no more, because every tile's 36 sums wait in the first-level cache.
_TILES = range(6, 25)
_FEWEST = 5  # tiles of a strip that still keep the products busy
# Weights are used for one strip only, so they come from far away: ask for them this early.
# 256 channels at 14 x 14 on Zen 4, weights in the last-level cache: 400 us instead of 590.
_AHEAD = 2**14  # bytes


@dataclass(frozen=True)
class Winograd:
    """Specification of a Winograd convolution kernel.

    Args:
        isa: name of the vector unit.
        height, width: of the result, `TILE` or more each.
        channels: of the input.
        outputs: vectors of output channels.
        x, y, other: strides of the input, the result and the residual operand.
        strip: rows of tiles that are transformed before they are multiplied.
        parallel: split strips over threads.
        form: of the epilogue.
    """

    isa: str
    height: int
    width: int
    channels: int
    outputs: int
    x: Place
    y: Place
    other: Place
    strip: int
    parallel: bool
    form: Form

    @property
    def grid(self) -> tuple[int, int]:
        """Return the rows and columns of tiles."""
        return -(-self.height // TILE), -(-self.width // TILE)

    @property
    def count(self) -> int:
        """Return the tiles of a strip."""
        return self.strip * self.grid[1]

    @property
    def tiles(self) -> int:
        """Return the tiles in registers together: few are computed twice at a strip's end."""
        sizes = [size for size in _TILES if size <= self.count] or [self.count]
        return min(sizes, key=lambda size: (round_up(self.count, size), -size))

    @property
    def pairs(self) -> int:
        """Return the steps of a sum: two channels each."""
        return -(-self.channels // 2)

    def name(self) -> str:
        """Return a readable part of the function's name."""
        return f"winograd3_{self.height}x{self.width}_{self.channels}_{self.outputs}"

    def build(self, name: str) -> Any:
        """Return the function (x, [other,] y, weights, bias, factor, numbers).

        Weights and bias are those of `winograd_weights`.
        """
        pointers = [("x", "uint8")]
        pointers += [("other", "uint8")] if self.form.residual else []
        pointers += [
            ("y", "uint8"), ("w", "int16"), ("bias", "int32"), ("factor", "float32"),
            ("numbers", "uint8"),
        ]  # fmt: skip
        return tir.function(name, pointers, lambda *buffers: _Body(self, buffers).write())


def strip_rows(height: int, width: int) -> int:
    """Return the rows of tiles of a strip for a result: few, and no row computed twice."""
    rows, columns = -(-height // TILE), -(-width // TILE)
    enough = [n for n in range(1, rows + 1) if n * columns >= _FEWEST] or [rows]
    return min(enough, key=lambda n: (round_up(rows, n), n))


@contextmanager
def _scratch(count: int, kind: str) -> Iterator[Buffer]:
    """Yield memory of the current thread."""
    with T.attr("cpu", "device_id", T.int32(0)), T.attr("cpu", "device_type", T.int32(1)):
        yield T.alloc_buffer((count,), kind, scope="global", layout=None)


class _Body:
    """Writes the loops of a `Winograd`."""

    def __init__(self, spec: Winograd, buffers: Sequence[Buffer]) -> None:
        self.spec, self.unit = spec, vectors(spec.isa)
        self.x, (self.w, self.bias, self.factor, numbers) = buffers[0], buffers[-4:]
        y, other = buffers[-5], buffers[1] if spec.form.residual else None
        self.epilogue = Epilogue(self.unit, spec.form, numbers, y, other)
        self.transforms = Transforms(self.unit.lanes)
        self.halves = 2 * self.unit.lanes
        self.depth = round_up(spec.channels, self.halves)
        # One vector more, lest all matrices fall into one set of the cache.
        self.matrix = spec.count * self.depth + self.halves
        self.sums = POINTS * self.unit.lanes

    def write(self) -> None:
        """Write the loop over strips; the last overlaps its neighbour."""
        spec, rows = self.spec, self.spec.grid[0]
        with (
            tir.loop(-(-rows // spec.strip), spec.parallel) as strip,
            _scratch(POINTS * self.matrix, "int16") as v,
            _scratch(spec.count * self.sums, "int32") as m,
        ):
            first = tir.let(T.min(strip * spec.strip, rows - spec.strip))
            with tir.loop(spec.count) as tile, tir.loop(self.depth // self.halves) as vector:
                self._transform(v, first, tile, vector)
            with tir.loop(spec.outputs) as output:
                with tir.loop(POINTS) as point:
                    self._multiply(v, m, output, point)
                with tir.loop(spec.count) as tile:
                    self._finish(m, first, tile, output)

    def _corner(self, first: Expr, tile: Expr) -> tuple[Expr, Expr]:
        """Return the row and column of a tile's first result; the last tiles overlap, too."""
        spec, columns = self.spec, self.spec.grid[1]
        row, column = first + T.floordiv(tile, columns), T.floormod(tile, columns)
        top = tir.let(T.min(row * TILE, spec.height - TILE))
        return top, tir.let(T.min(column * TILE, spec.width - TILE))

    def _transform(self, v: Buffer, first: Expr, tile: Expr, vector: Expr) -> None:
        """Transform the patch of a tile, one vector of its channels."""
        x, n = self.spec.x, self.halves
        top, left = self._corner(first, tile)
        start = tir.let(top * x.row + left * x.pixel + vector * n)
        columns = []
        for j in range(PATCH):
            codes = [load(self.x, start + i * x.row + j * x.pixel, n) for i in range(PATCH)]
            columns.append(
                self.transforms.input([tir.let(T.cast(c, f"int16x{n}")) for c in codes])
            )
        place = tir.let(tile * self.depth + vector * n)
        for i in range(PATCH):
            for j, value in enumerate(self.transforms.input([c[i] for c in columns])):
                store(v, place + (i * PATCH + j) * self.matrix, value, n)

    def _multiply(self, v: Buffer, m: Buffer, output: Expr, point: Expr) -> None:
        """Multiply the matrix of a point with the weights of an output vector."""
        spec, n, count = self.spec, self.unit.lanes, self.spec.tiles
        weights = tir.let((output * POINTS + point) * (spec.pairs * self.halves))
        with tir.loop(-(-spec.count // count)) as turn:
            tile = tir.let(T.min(turn * count, spec.count - count))
            acc = Registers(count, n)
            for i in range(count):
                acc[i] = T.broadcast(T.int32(0), n)
            with tir.loop(spec.pairs) as pair:
                w = tir.let(load(self.w, weights + pair * self.halves, self.halves))
                tir.prefetch(self.w, weights + pair * self.halves + _AHEAD // 2)
                x = tir.let(point * self.matrix + tile * self.depth + pair * 2)
                for i in range(count):
                    codes = tir.reinterpret(load(v, x + i * self.depth, 2), "int32")
                    acc[i] = self.unit.dot16(acc[i], self.unit.broadcast16(codes), w)
            for i in range(count):
                store(m, (tile + i) * self.sums + point * n, acc[i], n)

    def _finish(self, m: Buffer, first: Expr, tile: Expr, output: Expr) -> None:
        """Turn the sums of a tile and output vector into codes."""
        n, start = self.unit.lanes, tir.let(tile * self.sums)
        columns = []
        for j in range(PATCH):
            sums = [tir.let(load(m, start + (i * PATCH + j) * n, n)) for i in range(PATCH)]
            if j == BIAS_POINT[1]:
                i = BIAS_POINT[0]
                sums[i] = tir.let(self.transforms.add(sums[i], load(self.bias, output * n, n)))
            columns.append(self.transforms.output(sums))
        factor = load(self.factor, output * n, n)
        factors = {
            s: tir.let(factor * T.broadcast(T.float32(2.0**-s), n))
            for s in sorted({a + b for a in SHIFT for b in SHIFT})
        }
        top, left = self._corner(first, tile)
        for i in range(TILE):
            pieces = []
            for j, value in enumerate(self.transforms.output([c[i] for c in columns])):
                y, other = (
                    (top + i) * place.row + (left + j) * place.pixel + output * n
                    for place in (self.spec.y, self.spec.other)
                )
                acc, scaled = self.transforms.divide(value), factors[SHIFT[i] + SHIFT[j]]
                pieces.append(Piece(acc, scaled, y, other, run=j))
            self.epilogue.write(pieces)
