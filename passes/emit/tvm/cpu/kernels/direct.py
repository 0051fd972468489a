"""Direct convolution: any kernel, stride, dilation and groups; pointwise and linear layers.

A tile of pixels x output vectors stays in registers; every step broadcasts four input bytes of
each pixel and multiplies them with four bytes of each output channel. There are no borders,
because the input has a halo.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tvm.script.ir_builder import tirx as T

from passes.emit.tvm.cpu.kernels import tir
from passes.emit.tvm.cpu.kernels.epilogue import Epilogue, Form, Piece
from passes.emit.tvm.cpu.kernels.float_epilogue import FloatEpilogue
from passes.emit.tvm.cpu.kernels.packed_weights import Run, fields, pack, runs, unpack
from passes.emit.tvm.cpu.kernels.tir import Buffer, Expr, Registers, load
from passes.emit.tvm.cpu.vectors.base import Operand, Vectors
from passes.emit.tvm.cpu.vectors.units import vectors
from qtool.core.weight_codes import narrowed


@dataclass(frozen=True)
class Place:
    """Strides in bytes of a tensor that a kernel walks: from row to row, pixel to pixel."""

    row: int
    pixel: int


@dataclass(frozen=True)
class Tile:
    """Output pixels (rows x columns) and output vectors that are in registers together."""

    rows: int
    columns: int
    vectors: int

    @property
    def pixels(self) -> int:
        """Return the pixels of the tile."""
        return self.rows * self.columns


@dataclass(frozen=True)
class DirectConv:
    """Specification of a direct convolution kernel.

    Args:
        isa: name of the vector unit.
        height, width: of the result.
        outputs: vectors of output channels, of one group.
        groups: groups; group g reads `group_bytes` behind group g - 1.
        group_bytes: see `groups`.
        taps: (rows, columns) of the kernel; columns side by side in memory count as one.
        dwords: four-byte steps at every tap.
        strides: (rows, columns).
        dilations: (rows, columns).
        x, y, other: strides of the input, the result and the residual operand.
        tile: what is in registers.
        weights_outer: walk all pixels for a block of output channels, not the other way.
        parallel: split over threads.
        form: of the epilogue.
        weight_bits: 2 or 4 where weights are packed; then see `packed_weights.scaled`.
    """

    isa: str
    height: int
    width: int
    outputs: int
    groups: int
    group_bytes: int
    taps: tuple[int, int]
    dwords: int
    strides: tuple[int, int]
    dilations: tuple[int, int]
    x: Place
    y: Place
    other: Place
    tile: Tile
    weights_outer: bool
    parallel: bool
    form: Form
    weight_bits: int = 8

    @property
    def blocks(self) -> int:
        """Return the blocks of output channels of a group."""
        return -(-self.outputs // self.tile.vectors)

    @property
    def steps(self) -> int:
        """Return the four-byte steps of a sum."""
        return self.taps[0] * self.taps[1] * self.dwords

    @property
    def weight_vectors(self) -> int:
        """Return the vectors of weights at every tap, for one vector of outputs."""
        return -(-self.dwords // fields(self.weight_bits))

    def name(self) -> str:
        """Return a readable part of the function's name."""
        kind = "pointwise" if self.taps == (1, 1) else "conv"
        size = f"{self.height}x{self.width}_{4 * self.dwords}_{self.outputs}"
        packed = "" if self.weight_bits == 8 else f"_w{self.weight_bits}"
        return f"{kind}{self.taps[0]}_{size}{packed}"

    def build(self, name: str) -> Any:
        """Return the function (x, [other,] y, weights, bias, factor, numbers)."""
        pointers = [("x", "uint8")]
        pointers += [("other", "uint8")] if self.form.residual else []
        pointers += [
            ("y", "float32" if self.form.floats else "uint8"),
            ("w", "int8"), ("bias", "int32"), ("factor", "float32"), ("numbers", "uint8"),
        ]  # fmt: skip
        return tir.function(name, pointers, lambda *buffers: _Body(self, buffers).write())


class _Body:
    """Writes the loops of a `DirectConv`."""

    def __init__(self, spec: DirectConv, buffers: Sequence[Buffer]) -> None:
        self.spec, self.unit = spec, vectors(spec.isa)
        self.x, (self.w, self.bias, self.factor, numbers) = buffers[0], buffers[-4:]
        y, other = buffers[-5], buffers[1] if spec.form.residual else None
        self.epilogue = (
            FloatEpilogue(self.unit, y)
            if spec.form.floats
            else Epilogue(self.unit, spec.form, numbers, y, other)
        )

    def write(self) -> None:
        """Write the loops over groups, blocks of channels, rows and columns."""
        spec, tile = self.spec, self.spec.tile
        rows, columns = -(-spec.height // tile.rows), -(-spec.width // tile.columns)
        blocks = spec.groups * spec.blocks
        with tir.loop(rows * blocks, spec.parallel) as turn:
            if spec.weights_outer:
                block, row = T.floordiv(turn, rows), T.floormod(turn, rows)
            else:
                block, row = T.floormod(turn, blocks), T.floordiv(turn, blocks)
            # The last tile overlaps its neighbour rather than leave the image.
            top = tir.let(T.min(row * tile.rows, spec.height - tile.rows))
            with tir.loop(columns) as column:
                left = tir.let(T.min(column * tile.columns, spec.width - tile.columns))
                self._tile(block, top, left)

    def _tile(self, block: Expr, top: Expr, left: Expr) -> None:
        tile, n = self.spec.tile, self.unit.lanes
        count = tile.pixels * tile.vectors
        acc = Registers(count, n)
        channel = block * tile.vectors * n
        for i in range(count):
            acc[i] = load(self.bias, channel + i % tile.vectors * n, n)
        self._sum(acc, block, top, left)
        self.epilogue.write(list(self._pieces(acc, block, top, left)))

    def _sum(self, acc: Registers, block: Expr, top: Expr, left: Expr) -> None:
        spec, tile = self.spec, self.spec.tile
        vector = 4 * self.unit.lanes
        (sy, sx), (dy, dx) = spec.strides, spec.dilations
        start = top * (sy * spec.x.row) + left * (sx * spec.x.pixel)
        if spec.groups > 1:
            start = start + T.floordiv(block, spec.blocks) * spec.group_bytes
        per_tap = spec.weight_vectors * tile.vectors * vector
        weights = block * (spec.taps[0] * spec.taps[1] * per_tap)
        with tir.loop(spec.taps[0]) as i, tir.loop(spec.taps[1]) as j:
            tap = tir.let(start + i * (dy * spec.x.row) + j * (dx * spec.x.pixel))
            own = tir.let(weights + (i * spec.taps[1] + j) * per_tap)
            for first, count, chosen in self._runs():
                with tir.loop(count) as turn:
                    k = first + turn
                    w = tir.let(own + k * (tile.vectors * vector))
                    x = tir.let(tap + k * (4 * fields(spec.weight_bits)))
                    self._steps(acc, x, w, chosen)

    def _runs(self) -> list[Run]:
        """Return loops over the steps at a tap: all fields of a byte together, if they fit."""
        spec, tile = self.spec, self.spec.tile
        held = tile.pixels * tile.vectors + tile.vectors + 1  # packed weights and the mask
        together = held <= self.unit.accumulators(tile.vectors)
        return runs(spec.dwords, spec.weight_bits, together)

    def _steps(self, acc: Registers, x: Expr, w: Expr, chosen: Sequence[int]) -> None:
        """Write the steps whose weights are in the `chosen` fields of one packed vector."""
        n, bits = 4 * self.unit.lanes, self.spec.weight_bits
        loaded = [tir.let(load(self.w, w + j * n, n)) for j in range(self.spec.tile.vectors)]
        for field in chosen:
            columns = [self.unit.prepare_w(unpack(v, field, bits, n)) for v in loaded]
            self._step(acc, x + 4 * field, columns)

    def _step(self, acc: Registers, x: Expr, columns: Sequence[Operand]) -> None:
        spec, tile, unit = self.spec, self.spec.tile, self.unit
        for p in range(tile.pixels):
            down, right = divmod(p, tile.columns)
            offset = (
                down * spec.strides[0] * spec.x.row + right * spec.strides[1] * spec.x.pixel
            )
            bytes4 = tir.reinterpret(load(self.x, x + offset, 4), "int32")
            code = unit.prepare_x(bytes4)
            for j, column in enumerate(columns):
                i = p * tile.vectors + j
                acc[i] = unit.accumulate(acc[i], code, column)

    def _pieces(self, acc: Registers, block: Expr, top: Expr, left: Expr) -> list[Piece]:
        spec, tile, n = self.spec, self.spec.tile, self.unit.lanes
        channel = block * tile.vectors * n
        found = []
        for p in range(tile.pixels):
            down, right = divmod(p, tile.columns)
            y = (top + down) * spec.y.row + (left + right) * spec.y.pixel + channel
            other = (top + down) * spec.other.row + (left + right) * spec.other.pixel + channel
            for j in range(tile.vectors):
                valid = None
                if spec.outputs % tile.vectors:
                    valid = T.floormod(block, spec.blocks) * tile.vectors + j < spec.outputs
                found.append(
                    Piece(
                        acc[p * tile.vectors + j],
                        load(self.factor, channel + j * n, n),
                        y + j * n, other + j * n, valid, p,
                    )
                )  # fmt: skip
        return found


def pack_weights(w: NDArray[np.int8], spec: DirectConv, unit: Vectors) -> NDArray[np.int8]:
    """Return weights in the order in which the kernel reads them.

    Args:
        w: (groups, outputs of a group, rows, columns, bytes), zeros where bytes hold no
            channel; columns and bytes as `spec.taps` and 4 x `spec.dwords` count them.
        spec: of the kernel.
        unit: its vector unit.

    Returns:
        (groups, blocks, rows, columns, weight vectors, vectors, lanes, 4) flattened.
    """
    lanes, per_block = unit.lanes, spec.tile.vectors * unit.lanes
    per_step = 4 * per_block
    groups, outputs, rows, columns, _ = w.shape
    full = np.zeros((groups, spec.blocks * per_block, rows, columns, 4 * spec.dwords), np.int8)
    full[:, :outputs, :, :, : w.shape[4]] = w
    parts = full.reshape(
        groups, spec.blocks, spec.tile.vectors, lanes, rows, columns, spec.dwords, 4
    )
    ordered = parts.transpose(0, 1, 4, 5, 6, 2, 3, 7).reshape(-1, spec.dwords, 1, per_step)
    narrow, _ = narrowed(np.ascontiguousarray(ordered), spec.weight_bits)
    return pack(narrow, spec.weight_bits).reshape(-1)
