"""Pixels to row-major order and back, for operators that have no vector kernel."""

from dataclasses import dataclass
from typing import Any

from tvm.script.ir_builder import tirx as T

from passes.emit.kernels import tir
from passes.emit.kernels.direct import Place
from passes.emit.kernels.tir import Buffer, Expr


@dataclass(frozen=True)
class ToPlain:
    """Specification of (C, H, W) codes from pixels into their logical order; no constants.

    Args:
        isa: name of the vector unit; it does not matter, as bytes are only moved.
        channels: C.
        height: H.
        width: W.
        place: strides of the pixels.
        parallel: split over threads.
    """

    isa: str
    channels: int
    height: int
    width: int
    place: Place
    parallel: bool

    def name(self) -> str:
        """Return a readable part of the function's name."""
        return f"to_plain_{self.channels}x{self.height}x{self.width}"

    def build(self, name: str) -> Any:
        """Return the function (x, y)."""
        return tir.function(name, [("x", "uint8"), ("y", "uint8")], self._write)

    def _write(self, x: Buffer, y: Buffer) -> None:
        with tir.loop(self.height, self.parallel) as row:
            with tir.loop(self.channels) as channel, tir.loop(self.width) as column:
                pixel, plain = self._places(channel, row, column)
                T.buffer_store(y, x[pixel], [plain])

    def _places(self, channel: Expr, row: Expr, column: Expr) -> tuple[Expr, Expr]:
        """Return where a code lies in pixels and in logical order."""
        pixel = row * self.place.row + column * self.place.pixel + channel
        return pixel, (channel * self.height + row) * self.width + column


@dataclass(frozen=True)
class FromPlain(ToPlain):
    """Specification of (C, H, W) codes in logical order into pixels; no constants."""

    def name(self) -> str:
        """Return a readable part of the function's name."""
        return f"from_plain_{self.channels}x{self.height}x{self.width}"

    def _write(self, x: Buffer, y: Buffer) -> None:
        with tir.loop(self.height, self.parallel) as row:
            with tir.loop(self.width) as column, tir.loop(self.channels) as channel:
                pixel, plain = self._places(channel, row, column)
                T.buffer_store(y, x[plain], [pixel])
