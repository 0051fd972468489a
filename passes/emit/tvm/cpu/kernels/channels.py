"""Channels in another order: every pixel's bytes at constant places.

A shuffle of groups (ShuffleNet), or any selection. With AVX512-VBMI a vector of results comes
out of pages of 128 bytes, which a choice by the page joins.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tvm.script.ir_builder import tirx as T

from passes.emit.tvm.cpu.kernels import tir
from passes.emit.tvm.cpu.kernels.direct import Place
from passes.emit.tvm.cpu.kernels.layout import round_up
from passes.emit.tvm.cpu.kernels.lookup import permute_vbmi
from passes.emit.tvm.cpu.kernels.runs import store_first
from passes.emit.tvm.cpu.kernels.tir import Buffer, Expr, let, load

_BYTES = 64  # of an AVX512 vector
_PAGE = 128  # bytes among which one instruction chooses


def channel_places(index: Sequence[int]) -> NDArray[np.uint8]:
    """Return the constant of `ShuffleChannels`: for result channel i, input channel index[i].

    Returns:
        Places in their pages, padded to whole vectors, then the pages.
    """
    full = np.zeros(round_up(len(index), _BYTES), np.int64)
    full[: len(index)] = index
    return np.concatenate([full % _PAGE, full // _PAGE]).astype(np.uint8)


@dataclass(frozen=True)
class ShuffleChannels:
    """Specification of ``y[channel] = x[index[channel]]`` at every pixel.

    Args:
        isa: name of the vector unit; it does not matter, as bytes are only moved.
        vbmi: the CPU has AVX512-VBMI; without it bytes are moved one by one.
        inputs: channels of `x` that may be chosen.
        outputs: channels of `y`; nothing is written behind them.
        height: rows.
        width: pixels of a row.
        x: strides of the input.
        y: strides of the result.
        parallel: split over threads.
    """

    isa: str
    vbmi: bool
    inputs: int
    outputs: int
    height: int
    width: int
    x: Place
    y: Place
    parallel: bool

    def name(self) -> str:
        """Return a readable part of the function's name."""
        return f"channels_{self.height}x{self.width}_{self.inputs}_{self.outputs}"

    def build(self, name: str) -> Any:
        """Return the function (x, y, places)."""
        pointers = [("x", "uint8"), ("y", "uint8"), ("places", "uint8")]
        return tir.function(name, pointers, self._write)

    def _write(self, x: Buffer, y: Buffer, places: Buffer) -> None:
        pixel = self._vbmi if self.vbmi else self._scalar
        with tir.loop(self.height, self.parallel) as row, tir.loop(self.width) as column:
            source = let(row * self.x.row + column * self.x.pixel)
            target = let(row * self.y.row + column * self.y.pixel)
            pixel((x, source), (y, target), places)

    def _scalar(self, x: tuple[Buffer, Expr], y: tuple[Buffer, Expr], places: Buffer) -> None:
        pages = round_up(self.outputs, _BYTES)
        with tir.loop(self.outputs) as k:
            page = T.cast(places[pages + k], "int32")
            channel = page * _PAGE + T.cast(places[k], "int32")
            T.buffer_store(y[0], x[0][x[1] + channel], [y[1] + k])

    def _vbmi(self, x: tuple[Buffer, Expr], y: tuple[Buffer, Expr], places: Buffer) -> None:
        pages = round_up(self.outputs, _BYTES)
        parts = [
            let(load(x[0], x[1] + start, _BYTES)) for start in range(0, self.inputs, _BYTES)
        ]
        for start in range(0, self.outputs, _BYTES):
            place = let(load(places, start, _BYTES))
            page = load(places, pages + start, _BYTES)
            found = permute_vbmi(place, parts[0], parts[min(1, len(parts) - 1)])
            for i in range(2, len(parts), 2):
                other = permute_vbmi(place, parts[i], parts[min(i + 1, len(parts) - 1)])
                here = page == T.broadcast(T.uint8(i // 2), _BYTES)
                found = T.Select(here, other, found)
            count = min(_BYTES, self.outputs - start)
            store_first(y[0], y[1] + start, let(found), count, _BYTES)
