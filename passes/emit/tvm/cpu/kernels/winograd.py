"""3 x 3 convolution in a quarter of the products: exact integer Winograd F(4x4, 3x3).

A strip of tiles at a time: its input becomes 36 int16 matrices (tiles x channels). For each
output vector the weights become 36 matrices, too; the products of the matrices are 36 sums for
every tile, which become 16 results. See `winograd_transforms`. Weights transformed by the
compiler would save 4 to 13 % of the time as long as caches hold eight times the bytes, little
or nothing where they do not. A product of int16 costs as much as two of bytes, so at best half
the time of the direct kernel is left.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from tvm.script.ir_builder import tirx as T

from passes.emit.tvm.cpu.kernels import tir
from passes.emit.tvm.cpu.kernels.direct import Place
from passes.emit.tvm.cpu.kernels.epilogue import Epilogue, Form, Piece
from passes.emit.tvm.cpu.kernels.layout import round_up
from passes.emit.tvm.cpu.kernels.tir import Buffer, Expr, Registers, load, store
from passes.emit.tvm.cpu.kernels.winograd_transforms import (
    BIAS_POINT,
    EXPAND,
    PATCH,
    POINTS,
    SHIFT,
    TAPS,
    TILE,
    Transforms,
)
from passes.emit.tvm.cpu.vectors.units import vectors

# Tiles in registers together: enough to hide the latency of a product and to share a load of
# weights; no more, because every tile's 36 sums wait in the first-level cache.
_TILES = range(6, 25)
# Bytes for a strip. Measured on Zen 4, with 1 MiB of second-level cache: 1.3 MB are better
# than more strips (256 channels at 28 x 28), 1.4 MB are not (64 at 56 x 56).
_CACHE = 1_350_000
# How early to ask for weights: where they come from the last-level cache or memory, 256
# channels at 14 x 14 take a tenth less time.
_AHEAD = 2**13


@dataclass(frozen=True)
class Winograd:
    """Specification of a Winograd convolution kernel.

    Args:
        isa: name of the vector unit.
        height, width: of the result, `TILE` or more each.
        channels: of the input.
        outputs: vectors of output channels.
        x, y, other: strides of the input, the result and the residual operand.
        strip: rows of tiles that share transformed weights, see `strip_rows`.
        parallel: split tiles, then output vectors over threads.
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
            ("y", "uint8"), ("w", "int8"), ("bias", "int32"), ("factor", "float32"),
            ("numbers", "uint8"),
        ]  # fmt: skip
        return tir.function(name, pointers, lambda *buffers: _Body(self, buffers).write())


def strip_rows(height: int, width: int, channels: int) -> int:
    """Return the rows of tiles of a strip, for which the weights are transformed once.

    Args:
        height: of the result.
        width: of the result.
        channels: of the input.
    """
    rows, columns = -(-height // TILE), -(-width // TILE)
    room = (_CACHE // POINTS - 64 * channels // 2) // (columns * (2 * channels + 64))
    cost = {
        n: -(-rows // n) * (n * columns * POINTS + EXPAND)
        for n in range(1, max(1, min(rows, room)) + 1)
    }
    return min(cost, key=lambda n: (cost[n], n))


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
        self.weights = (spec.pairs + 1) * self.halves
        self.sums = POINTS * self.unit.lanes

    def write(self) -> None:
        """Write the loop over strips; the last overlaps its neighbour."""
        spec, rows = self.spec, self.spec.grid[0]
        with (
            _scratch(POINTS * self.matrix, "int16") as v,
            tir.loop(-(-rows // spec.strip)) as strip,
        ):
            first = tir.let(T.min(strip * spec.strip, rows - spec.strip))
            with (
                tir.loop(spec.count, spec.parallel) as tile,
                tir.loop(self.depth // self.halves) as vector,
            ):
                self._transform(v, first, tile, vector)
            with (
                tir.loop(spec.outputs, spec.parallel) as output,
                _scratch(POINTS * self.weights, "int16") as u,
                _scratch(spec.count * self.sums, "int32") as m,
            ):
                with tir.loop(spec.pairs) as pair:
                    self._expand(u, output, pair)
                with tir.loop(POINTS) as point:
                    self._multiply(v, u, m, point)
                with tir.loop(spec.count) as tile:
                    self._finish(m, first, tile, output)

    def _expand(self, u: Buffer, output: Expr, pair: Expr) -> None:
        """Transform the weights of an output vector and two channels."""
        n = self.halves
        start = tir.let((output * self.spec.pairs + pair) * (TAPS * TAPS * n))
        for i in range(0, TAPS * TAPS, 2):
            tir.prefetch(self.w, start + i * n + _AHEAD)
        columns = []
        for j in range(TAPS):
            taps = [load(self.w, start + (i * TAPS + j) * n, n) for i in range(TAPS)]
            columns.append(
                self.transforms.weights([tir.let(T.cast(w, f"int16x{n}")) for w in taps])
            )
        for i in range(PATCH):
            for j, value in enumerate(self.transforms.weights([c[i] for c in columns])):
                store(u, (i * PATCH + j) * self.weights + pair * n, value, n)

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

    def _multiply(self, v: Buffer, u: Buffer, m: Buffer, point: Expr) -> None:
        """Multiply the matrix of a point with its weights."""
        spec, n, count = self.spec, self.unit.lanes, self.spec.tiles
        with tir.loop(-(-spec.count // count)) as turn:
            tile = tir.let(T.min(turn * count, spec.count - count))
            acc = Registers(count, n)
            for i in range(count):
                acc[i] = T.broadcast(T.int32(0), n)
            with tir.loop(spec.pairs) as pair:
                place = point * self.weights + pair * self.halves
                w = tir.let(load(u, place, self.halves))
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
