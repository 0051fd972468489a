"""How a depthwise kernel walks along one band of rows, for one block of channels.

`Walk` keeps the dwords of the last columns in registers. Windows with more columns than
registers hold go through `StripWalk`: it interleaves a strip of columns into a buffer first,
and then computes one quarter of the channels after the other.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tvm.script.ir_builder import tirx as T

from passes.emit.tvm.cpu.kernels import tir
from passes.emit.tvm.cpu.kernels.depthwise_spec import DepthwiseSpec
from passes.emit.tvm.cpu.kernels.epilogue import Epilogue, Piece
from passes.emit.tvm.cpu.kernels.tir import Buffer, Expr, Registers, load, store
from passes.emit.tvm.cpu.vectors.base import Vectors, shuffle

Group = list[Expr]
# (row of results, dword, tap row of each of its bytes)
Dot = tuple[int, int, tuple[int | None, ...]]
_STRIP_BYTES = 1 << 14  # half of a first level cache


@dataclass(frozen=True)
class Operands:
    """What a kernel reads, and its epilogue."""

    unit: Vectors
    x: Buffer
    w: Buffer
    bias: Buffer
    factor: Buffer
    epilogue: Epilogue


class Walk:
    """Walks along the columns of results, a few at a time, with dwords in registers.

    Args:
        spec: of the kernel.
        operands: its buffers.
        dots: the products of a column of taps.
        spots: columns that share a vector.
        block: index of the block of channels.
        channel: its first channel.
    """

    def __init__(
        self, spec: DepthwiseSpec, operands: Operands, dots: Sequence[Dot], spots: int,
        block: Expr, channel: Expr,
    ) -> None:  # fmt: skip
        self.spec, self.on, self.unit = spec, operands, operands.unit
        self.dots, self.block, self.channel = dots, block, channel
        self.width = -(-spec.width // spots)
        self.starts = [min(i * self.width, spec.width - self.width) for i in range(spots)]
        self.weights = block * (4 * spec.taps[1] * len(dots) * 4 * self.unit.lanes)

    def write(self, top: Expr, rows: int) -> None:
        """Write `rows` rows of results from row `top` on."""
        tir.align_frame(self.unit.lanes)
        start = tir.let(top * (self.spec.strides[0] * self.spec.x.row) + self.channel)
        self._columns(start, top, rows)

    def _columns(self, start: Expr, top: Expr, rows: int) -> None:
        """Write the loop over columns; dwords of the next step's first columns are kept."""
        spec, width = self.spec, 4 * self.unit.lanes
        needed, shift = taps_of(spec, 1), spec.strides[1]
        kept = [n for n in needed if n + shift in needed]
        registers = {n: Registers(4 * spec.groups, width, "uint8") for n in kept}

        def keep(n: int, dwords: Group) -> None:
            for i, value in enumerate(dwords):
                registers[n][i] = value

        for n in kept:
            keep(n, self._dwords(start, n, rows))
        with tir.loop(self.width) as column:
            x: dict[int, Group] = {}
            for n in needed:
                if n in kept:
                    x[n] = [tir.let(registers[n][i]) for i in range(4 * spec.groups)]
                else:
                    x[n] = self._dwords(start, column * spec.strides[1] + n, rows)
            self._results(x, top, column, rows)
            for n in kept:
                keep(n, x[n + shift])

    def _results(self, x: dict[int, Group], top: Expr, column: Expr, rows: int) -> None:
        sums = [self._sums(part, 1, rows, quarter(x, part)) for part in range(4)]
        pieces = []
        for r in range(rows):
            pieces += self._pieces([sums[part][r] for part in range(4)], top + r, column)
        self.on.epilogue.write(pieces, transposed=False)

    def _dwords(self, start: Expr, column: Expr, rows: int) -> Group:
        """Return the dwords of a column: four vectors for each four of its rows."""
        spec, found = self.spec, []
        last = (rows - 1) * spec.strides[0] + spec.taps[0] - 1
        for group in range(spec.groups):
            # Rows behind the last one have no weight: any byte will do.
            lines = [min(4 * group + byte, last) * spec.dilations[0] for byte in range(4)]
            parts = {
                line: self._vector(start + line * spec.x.row + column * spec.x.pixel)
                for line in dict.fromkeys(lines)
            }
            found += self.unit.interleave([parts[line] for line in lines])
        return [tir.let(part) for part in found]

    def _vector(self, offset: Expr) -> Expr:
        """Return the bytes of the block at all its spots."""
        size = 4 * self.unit.lanes // len(self.starts)
        step = self.spec.strides[1] * self.spec.x.pixel
        parts = [load(self.on.x, offset + s * step, size) for s in self.starts]
        if len(parts) == 1:
            return tir.let(parts[0])
        return tir.let(shuffle(parts, range(size * len(parts))))

    def _sums(
        self, part: Expr, columns: int, rows: int, dword: Callable[[int, int], Expr]
    ) -> list[Expr]:
        """Return the sums of a quarter of the channels, row by row.

        Args:
            part: which quarter.
            columns: results side by side.
            rows: of results.
            dword: returns this quarter's dwords of an input column and four of its rows.
        """
        spec, n = self.spec, self.unit.lanes
        bias = tir.let(load(self.on.bias, (self.block * 4 + part) * n, n))
        acc = [bias] * (rows * columns)
        for group in range(spec.groups):
            x = {i: dword(i, group) for i in taps_of(spec, columns)}
            for t in range(spec.taps[1]):
                for i, (r, g, _) in enumerate(self.dots):
                    if r >= rows or g != group:
                        continue
                    place = ((part * spec.taps[1] + t) * len(self.dots) + i) * 4 * n
                    w = tir.let(load(self.on.w, self.weights + place, 4 * n))
                    for c in range(columns):
                        code, at = x[tap(spec, c, t)], r * columns + c
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
                    load(self.on.factor, (self.block * 4 + part) * n, n),
                    row * spec.y.row + pixel * spec.y.pixel + inside,
                    row * spec.other.row + pixel * spec.other.pixel + inside,
                    None, spot,
                )
            )  # fmt: skip
        return found


class StripWalk(Walk):
    """Interleaves a strip of columns into a buffer, then computes a quarter at a time."""

    def _columns(self, start: Expr, top: Expr, rows: int) -> None:
        spec, vector = self.spec, 4 * self.unit.lanes
        most = _STRIP_BYTES // (4 * spec.groups * vector)
        reach = (spec.taps[1] - 1) * spec.dilations[1] + 1
        length = min(self.width, max((most - reach) // spec.strides[1] + 1, 1))
        inputs = (length - 1) * spec.strides[1] + reach
        strip = tir.scratch(4 * spec.groups * inputs * vector, "uint8", self.unit.lanes)
        step = _step(length, rows)
        sums = tir.scratch(4 * rows * step * self.unit.lanes, "int32", self.unit.lanes)
        with tir.loop(-(-self.width // length)) as index:
            # The last strip, and the last step in it, overlap their neighbours.
            left = tir.let(T.min(index * length, self.width - length))
            with tir.loop(inputs) as n:
                dwords = self._dwords(start, left * spec.strides[1] + n, rows)
                for i, value in enumerate(dwords):
                    store(strip, (i * inputs + n) * vector, value, vector)
            with tir.loop(-(-length // step)) as turn:
                inner = tir.let(T.min(turn * step, length - step))
                first = tir.let(inner * (spec.strides[1] * vector))
                self._quarters(strip, sums, first, inputs, step, rows)
                self._finish(sums, top, left + inner, step, rows)

    def _quarters(
        self, strip: Buffer, sums: Buffer, first: Expr, inputs: int, step: int, rows: int
    ) -> None:
        """Write the sums of `rows` x `step` results, as a loop that keeps registers few."""
        lanes = self.unit.lanes
        with tir.loop(4) as part:

            def dword(n: int, group: int) -> Expr:
                place = ((4 * group + part) * inputs + n) * 4 * lanes
                return tir.let(load(strip, first + place, 4 * lanes))

            for i, acc in enumerate(self._sums(part, step, rows, dword)):
                store(sums, (part * rows * step + i) * lanes, acc, lanes)

    def _finish(self, sums: Buffer, top: Expr, column: Expr, step: int, rows: int) -> None:
        lanes, pieces = self.unit.lanes, []
        for r in range(rows):
            for c in range(step):
                places = [(part * rows * step + r * step + c) * lanes for part in range(4)]
                acc = [load(sums, place, lanes) for place in places]
                pieces += self._pieces(acc, top + r, column + c)
        self.on.epilogue.write(pieces, transposed=False)


def quarter(x: dict[int, Group], part: int) -> Callable[[int, int], Expr]:
    """Return what finds a quarter's dwords of an input column and four of its rows."""
    return lambda column, group: x[column][4 * group + part]


def tap(spec: DepthwiseSpec, column: int, index: int) -> int:
    """Return the input column under a tap of a result."""
    return column * spec.strides[1] + index * spec.dilations[1]


def taps_of(spec: DepthwiseSpec, columns: int) -> list[int]:
    """Return the input columns under `columns` results."""
    return sorted({tap(spec, c, t) for c in range(columns) for t in range(spec.taps[1])})


def _step(length: int, rows: int) -> int:
    """Return how many results side by side to compute together: at most 16 sums.

    Fewer steps read fewer weights; overlapping ones compute results twice.
    """
    return min(
        range(1, min(length, max(16 // rows, 1)) + 1),
        key=lambda step: -(-length // step) * (step + 1),
    )
