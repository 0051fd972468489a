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

from passes.emit.tvm.cpu.kernels import tir
from passes.emit.tvm.cpu.kernels.depthwise_spec import DepthwiseSpec
from passes.emit.tvm.cpu.kernels.depthwise_walk import Dot, Operands, StripWalk, Walk, taps_of
from passes.emit.tvm.cpu.kernels.epilogue import Epilogue
from passes.emit.tvm.cpu.kernels.tir import Buffer, Expr
from passes.emit.tvm.cpu.vectors.base import Vectors
from passes.emit.tvm.cpu.vectors.units import vectors


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
class DepthwiseConv(DepthwiseSpec):
    """Specification of a depthwise convolution kernel."""

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


def _dots(spec: DepthwiseConv) -> list[Dot]:
    """Return (row of results, dword, tap row of each of its bytes) of the products needed."""
    found = []
    for r in range(spec.rows):
        for g in range(spec.groups):
            rows = [4 * g + byte - r * spec.strides[0] for byte in range(4)]
            taps = tuple(t if 0 <= t < spec.taps[0] else None for t in rows)
            if any(t is not None for t in taps):
                found.append((r, g, taps))
    return found


class _Body:
    """Writes the loops of a `DepthwiseConv`."""

    def __init__(self, spec: DepthwiseConv, buffers: Sequence[Buffer]) -> None:
        self.spec, unit = spec, vectors(spec.isa)
        (w, bias, factor, numbers), y = buffers[-4:], buffers[-5]
        other = buffers[1] if spec.form.residual else None
        epilogue = Epilogue(unit, spec.form, numbers, y, other)
        self.operands = Operands(unit, buffers[0], w, bias, factor, epilogue)
        self.walk = Walk if _in_registers(spec, unit) else StripWalk

    def write(self) -> None:
        """Write the loops over bands of rows and blocks of channels."""
        spec, found = self.spec, blocks(self.spec.channels, 4 * self.operands.unit.lanes)
        bands = -(-spec.height // spec.rows)
        with tir.loop(bands * len(found), spec.parallel) as turn:
            if spec.blocks_outer:
                band, index = T.floormod(turn, bands), T.floordiv(turn, bands)
            else:
                band, index = T.floordiv(turn, len(found)), T.floormod(turn, len(found))
            kinds = [block.spots for block in found]
            for spots in dict.fromkeys(kinds):
                # Blocks of one kind follow each other and share code.
                first, count = kinds.index(spots), kinds.count(spots)
                channel = found[first].channel + (index - first) * found[first].channels
                walk = self.walk(spec, self.operands, _dots(spec), spots, index, channel)
                if count == len(found):
                    self._band(walk, band)
                else:
                    with T.If(T.And(index >= first, index < first + count)), T.Then():
                        self._band(walk, band)

    def _band(self, walk: Walk, band: Expr) -> None:
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


def _in_registers(spec: DepthwiseConv, unit: Vectors) -> bool:
    """Return whether the dwords under a result take less than half of the registers."""
    return len(taps_of(spec, 1)) * spec.groups * 4 < unit.registers // 2


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
