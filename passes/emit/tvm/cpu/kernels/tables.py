"""A table of 256 answers over a tensor: activations and changes of grid."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tvm.script.ir_builder import tirx as T

from passes.emit.tvm.cpu.kernels import tir
from passes.emit.tvm.cpu.kernels.direct import Place
from passes.emit.tvm.cpu.kernels.lookup import load_table, look_up_vbmi
from passes.emit.tvm.cpu.kernels.runs import Region, store_first, walk
from passes.emit.tvm.cpu.kernels.tir import Buffer, Expr, let, load

_BYTES = 64  # of an AVX512 vector


@dataclass(frozen=True)
class LookUp:
    """Specification of ``table[code]``; the table of 256 uint8 is its only constant.

    Args:
        isa: name of the vector unit; it does not matter, as bytes are only moved.
        vbmi: the CPU has AVX512-VBMI; without it answers are loaded one by one.
        region: pixels.
        x, y: strides of the codes and the answers.
        parallel: split over threads.
    """

    isa: str
    vbmi: bool
    region: Region
    x: Place
    y: Place
    parallel: bool

    def name(self) -> str:
        """Return a readable part of the function's name."""
        return f"lookup_{self.region}"

    def build(self, name: str) -> Any:
        """Return the function (x, y, table)."""
        pointers = [("x", "uint8"), ("y", "uint8"), ("table", "uint8")]
        return tir.function(name, pointers, self._vbmi if self.vbmi else self._scalar)

    def _vbmi(self, x: Buffer, y: Buffer, table: Buffer) -> None:
        answers = load_table(table)

        def step(offsets: Sequence[Expr], count: int) -> None:
            codes = let(load(x, offsets[0], _BYTES))
            store_first(y, offsets[1], let(look_up_vbmi(codes, *answers)), count, _BYTES)

        walk(self.region, (self.x, self.y), _BYTES, step, self.parallel)

    def _scalar(self, x: Buffer, y: Buffer, table: Buffer) -> None:
        def step(offsets: Sequence[Expr], count: int) -> None:
            T.buffer_store(y, table[T.cast(x[offsets[0]], "int32")], [offsets[1]])

        walk(self.region, (self.x, self.y), 1, step, self.parallel)
