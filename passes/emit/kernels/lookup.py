"""256 answers: ``table[code]`` for a whole vector of codes at once.

AVX512-VBMI's vpermi2b looks 64 codes up in 128 bytes, so two of them and a choice by the top
bit are a table of 256 bytes that never leaves four registers.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tvm.script.ir_builder import tirx as T

from passes.emit.kernels import tir
from passes.emit.kernels.direct import Place
from passes.emit.kernels.runs import Region, store_first, walk
from passes.emit.kernels.tir import Buffer, Expr, intrinsic, let, load, reinterpret

_BYTES = 64  # of an AVX512 vector
_VPERMI2B = "llvm.x86.avx512.vpermi2var.qi.512"


def look_up_vbmi(codes: Expr, t0: Expr, t1: Expr, t2: Expr, t3: Expr) -> Expr:
    """Return the answers to 64 codes; all arguments and the result are uint8x64.

    Args:
        codes: uint8.
        t0: answers to 0..63.
        t1: answers to 64..127.
        t2: answers to 128..191.
        t3: answers to 192..255.
    """
    low, high = (permute_vbmi(codes, *half) for half in ((t0, t1), (t2, t3)))
    return T.Select(codes >= T.broadcast(T.uint8(128), _BYTES), high, low)


def permute_vbmi(places: Expr, first: Expr, second: Expr) -> Expr:
    """Return the bytes at `places` modulo 128 of two vectors; all are uint8x64."""
    a, index, b = (reinterpret(v, "int8x64") for v in (first, places, second))
    return reinterpret(intrinsic("int8x64", _VPERMI2B, a, index, b), "uint8x64")


def load_table(table: Buffer, offset: Expr = 0) -> Sequence[Expr]:
    """Return a table of 256 bytes as the four vectors of `look_up_vbmi`."""
    return [let(load(table, offset + _BYTES * i, _BYTES)) for i in range(4)]


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
