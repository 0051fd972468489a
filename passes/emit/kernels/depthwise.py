"""Depthwise convolution: four input rows of a pixel column become one dword per channel.

Interleaving four byte vectors (the rows of one column) gives dwords that one dot product
multiplies with up to four taps. At stride 1 these dwords serve several rows of results, by
weights shifted by a byte, and several columns, because they stay in registers while the kernel
walks along the rows. A vector that is wider than the channels left holds several *spots*: the
same channels at columns far apart.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tvm.script.ir_builder import tirx as T

from passes.emit.kernels import tir
from passes.emit.kernels.direct import Place
from passes.emit.kernels.epilogue import Epilogue, Form, Piece
from passes.emit.kernels.tir import Buffer, Expr, Registers, load
from passes.emit.kernels.vectors import Vectors, shuffle, vectors

Group = list[Expr]


@dataclass(frozen=True)
class Block:
    """Channels that fill one vector, at one or more spots.

    Args:
        channel: the first.
        channels: how many.
        spots: columns at which the vector holds them.
    """

    channel: int
    channels: int
    spots: int


@dataclass(frozen=True)
class DepthwiseConv:
    """Specification of a depthwise convolution kernel with one result per channel.

    Args:
        isa: name of the vector unit.
        height, width: of the result.
        channels: with those that pad the pixel, a multiple of 16.
        taps: (rows, columns) of the kernel.
        strides: (rows, columns).
        dilations: (rows, columns).
        x, y, other: strides of the input, the result and the residual operand.
        parallel: split over threads.
        form: of the epilogue.
        columns: results side by side in registers; 0 to let the kernel choose.
    """

    isa: str
    height: int
    width: int
    channels: int
    taps: tuple[int, int]
    strides: tuple[int, int]
    dilations: tuple[int, int]
    x: Place
    y: Place
    other: Place
    parallel: bool
    form: Form
    columns: int = 0

    @property
    def groups(self) -> int:
        """Return the dwords that hold one column of taps."""
        return -(-self.taps[0] // 4)

    @property
    def rows(self) -> int:
        """Return the rows of results that the dwords of a column serve."""
        if self.dilations[0] > 1:
            return 1
        return min(self.height, (4 * self.groups - self.taps[0]) // self.strides[0] + 1)

    def name(self) -> str:
        """Return a readable part of the function's name."""
        return f"depthwise{self.taps[0]}_{self.height}x{self.width}_{self.channels}"

    def build(self, name: str) -> Any:
        """Return the function (x, [other,] y, weights, bias, factor, numbers)."""
        kinds = {"x": "uint8", "other": "uint8", "y": "uint8", "w": "int8", "bias": "int32"}
        kinds |= {"factor": "float32", "numbers": "uint8"}
        if not self.form.residual:
            del kinds["other"]
        return tir.function(
            name, list(kinds.items()), lambda *found: _Body(self, found).write()
        )


def blocks(channels: int, vector: int) -> list[Block]:
    """Return blocks of whole vectors, then of halves and quarters (at least 16 channels)."""
    found, start, size = [], 0, vector
    while start < channels:
        while size > channels - start:
            size //= 2
        found.append(Block(start, size, vector // size))
        start += size
    return found


def _dots(spec: DepthwiseConv) -> list[tuple[int, int, tuple[int | None, ...]]]:
    """Return (row of results, dword, tap row of each of its bytes) of the products needed."""
    found = []
    for r in range(spec.rows):
        for g in range(spec.groups):
            rows = [4 * g + byte - r * spec.strides[0] for byte in range(4)]
            taps = tuple(t if 0 <= t < spec.taps[0] else None for t in rows)
            if any(t is not None for t in taps):
                found.append((r, g, taps))
    return found


def _columns(spec: DepthwiseConv, unit: Vectors) -> int:
    """Return how many results side by side share weights: as many as registers allow."""
    return spec.columns or 2


class _Body:
    """Writes the loops of a `DepthwiseConv`."""

    def __init__(self, spec: DepthwiseConv, buffers: Sequence[Buffer]) -> None:
        self.spec, self.unit = spec, vectors(spec.isa)
        self.x, (self.w, self.bias, self.factor, numbers) = buffers[0], buffers[-4:]
        y, other = buffers[-5], buffers[1] if spec.form.residual else None
        self.epilogue = Epilogue(self.unit, spec.form, numbers, y, other)
        self.dots, self.columns = _dots(spec), _columns(spec, self.unit)

    def write(self) -> None:
        """Write the loops over rows and blocks of channels; blocks of one kind share code."""
        spec, found = self.spec, blocks(self.spec.channels, 4 * self.unit.lanes)
        bands = -(-spec.height // spec.rows)
        for spots in sorted({block.spots for block in found}):
            same = [i for i, block in enumerate(found) if block.spots == spots]
            with tir.loop(bands * len(same), spec.parallel) as turn:
                band, index = T.floordiv(turn, len(same)), T.floormod(turn, len(same))
                channel = found[same[0]].channel + index * found[same[0]].channels
                walk = _Walk(self, spots, index + same[0], channel)
                self._band(walk, band)

    def _band(self, walk: "_Walk", band: Expr) -> None:
        """Write one band of rows; the last may have fewer of them."""
        spec, top = self.spec, tir.let(band * self.spec.rows)
        full, rest = divmod(spec.height, spec.rows)
        if not rest:
            walk.write(top, spec.rows)
            return
        with T.If(band < full):
            with T.Then():
                walk.write(top, spec.rows)
            with T.Else():
                walk.write(top, rest)


class _Walk:
    """Walks along rows of results of one block of channels."""

    def __init__(self, body: _Body, spots: int, block: Expr, channel: Expr) -> None:
        spec, n = body.spec, body.unit.lanes
        self.body, self.spec, self.unit = body, spec, body.unit
        self.block, self.channel = block, channel
        self.width = -(-spec.width // spots)
        self.starts = [min(i * self.width, spec.width - self.width) for i in range(spots)]
        self.weights = block * (4 * spec.taps[1] * len(body.dots) * 4 * n)

    def write(self, top: Expr, rows: int) -> None:
        """Write the loop over columns for `rows` rows of results from row `top` on."""
        spec, columns = self.spec, min(self.body.columns, self.width)
        start = tir.let(top * (spec.strides[0] * spec.x.row) + self.channel)
        needed, shift = self._needed(columns), columns * spec.strides[1]
        kept = [n for n in needed if n + shift in needed]
        count = self.spec.groups * 4
        registers = {n: Registers(count, 4 * self.unit.lanes, "uint8") for n in kept}
        for n in kept:
            self._keep(registers[n], self._dwords(start, n, rows))
        steps, rest = divmod(self.width, columns)
        with tir.loop(steps) as step:
            found = self._step(start, top, step * columns, columns, rows, registers)
            for n in kept:
                self._keep(registers[n], found[n + shift])
        if rest:
            self._step(start, top, steps * columns, rest, rows, registers)

    def _needed(self, columns: int) -> list[int]:
        """Return the columns of the input, relative, under `columns` results."""
        (_, stride), (_, dilation) = self.spec.strides, self.spec.dilations
        taps = range(self.spec.taps[1])
        return sorted({c * stride + t * dilation for c in range(columns) for t in taps})

    def _keep(self, registers: Registers, dwords: Group) -> None:
        for i, value in enumerate(dwords):
            registers[i] = value

    def _dwords(self, start: Expr, column: Expr, rows: int) -> Group:
        """Return the dwords of a column: four vectors for each four of its rows."""
        spec, found = self.spec, []
        last = (rows - 1) * spec.strides[0] + (spec.taps[0] - 1)
        for group in range(spec.groups):
            # Rows behind the last one have no weight: any byte will do.
            lines = [min(4 * group + byte, last) * spec.dilations[0] for byte in range(4)]
            at = [start + line * spec.x.row + column * spec.x.pixel for line in lines]
            parts = {
                line: self._vector(o) for line, o in dict(zip(lines, at, strict=True)).items()
            }
            found += self.unit.interleave([parts[line] for line in lines])
        return [tir.let(part) for part in found]

    def _vector(self, offset: Expr) -> Expr:
        """Return the bytes of the block at all its spots."""
        size = 4 * self.unit.lanes // len(self.starts)
        step = self.spec.strides[1] * self.spec.x.pixel
        parts = [load(self.body.x, offset + s * step, size) for s in self.starts]
        return tir.let(
            parts[0] if len(parts) == 1 else shuffle(parts, range(size * len(parts)))
        )

    def _step(
        self, start: Expr, top: Expr, left: Expr, columns: int, rows: int,
        registers: dict[int, Registers],
    ) -> dict[int, Group]:  # fmt: skip
        """Write `rows` x `columns` results; return the dwords of the input's columns."""
        spec, count = self.spec, self.spec.groups * 4
        x: dict[int, Group] = {}
        for n in self._needed(columns):
            if n in registers:
                x[n] = [tir.let(registers[n][i]) for i in range(count)]
            else:
                x[n] = self._dwords(start, left * spec.strides[1] + n, rows)
        sums = [self._sums(x, part, columns, rows) for part in range(4)]
        pieces = []
        for r in range(rows):
            for c in range(columns):
                acc = [sums[part][r * columns + c] for part in range(4)]
                pieces += self._pieces(acc, top + r, left + c)
        self.body.epilogue.write(pieces, transposed=False)
        return x

    def _sums(self, x: dict[int, Group], part: int, columns: int, rows: int) -> list[Expr]:
        """Return the sums of a quarter of the channels, row by row."""
        spec, n = self.spec, self.unit.lanes
        bias = tir.let(load(self.body.bias, (self.block * 4 + part) * n, n))
        acc = [bias] * (rows * columns)
        dots = self.body.dots
        for t in range(spec.taps[1]):
            for i, (r, group, _) in enumerate(dots):
                if r >= rows:
                    continue
                place = ((part * spec.taps[1] + t) * len(dots) + i) * 4 * n
                w = tir.let(load(self.body.w, self.weights + place, 4 * n))
                for c in range(columns):
                    code = x[c * spec.strides[1] + t * spec.dilations[1]][group * 4 + part]
                    at = r * columns + c
                    acc[at] = tir.let(self.unit.dot(acc[at], code, w))
        return acc

    def _pieces(self, acc: Sequence[Expr], row: Expr, column: Expr) -> list[Piece]:
        """Return the four vectors of sums of one vector of codes, and where its bytes go."""
        spec, n = self.spec, self.unit.lanes
        size, found = 4 * n // len(self.starts), []
        for part in range(4):
            spot, byte = divmod(part * n, size)
            pixel, inside = column + self.starts[spot], self.channel + byte
            found.append(
                Piece(
                    acc[part],
                    load(self.body.factor, (self.block * 4 + part) * n, n),
                    row * spec.y.row + pixel * spec.y.pixel + inside,
                    row * spec.other.row + pixel * spec.other.pixel + inside,
                    None, spot,
                )
            )  # fmt: skip
        return found


def lane_order(spec: DepthwiseConv, unit: Vectors) -> NDArray[np.int64]:
    """Return the channel of every element of the bias and factor arrays (blocks x vector)."""
    return np.concatenate(
        [
            block.channel + interleaved(unit) % block.channels
            for block in blocks(spec.channels, 4 * unit.lanes)
        ]
    )


def interleaved(unit: Vectors) -> NDArray[np.int64]:
    """Return the byte of a vector that each int32 lane belongs to, for four int32 vectors."""
    bytes_ = np.arange(4 * unit.lanes).reshape(-1, 4, 4)
    return bytes_.transpose(1, 0, 2).reshape(-1)


def pack_depthwise(
    w: NDArray[np.int8], spec: DepthwiseConv, unit: Vectors
) -> NDArray[np.int8]:
    """Return weights in the order in which the kernel reads them.

    Args:
        w: (channels, rows, columns); `spec.channels` channels, or fewer where pads follow.
        spec: of the kernel.
        unit: its vector unit.

    Returns:
        (blocks, parts, columns, products, lanes, 4) flattened.
    """
    full = np.zeros((spec.channels, *spec.taps), np.int8)
    full[: len(w)] = w
    lanes = full[lane_order(spec, unit)].reshape(-1, 4, unit.lanes, *spec.taps)
    dots = _dots(spec)
    packed = np.zeros((len(lanes), 4, spec.taps[1], len(dots), unit.lanes, 4), np.int8)
    for i, (_, _, taps) in enumerate(dots):
        for byte, tap in enumerate(taps):
            if tap is not None:
                packed[:, :, :, i, :, byte] = lanes[:, :, :, tap].transpose(0, 1, 3, 2)
    return packed.reshape(-1)
