"""Units whose byte instructions work on blocks of 16 bytes; a vector is one or more blocks."""

from abc import abstractmethod
from collections.abc import Sequence

from tvm.script.ir_builder import tirx as T

from passes.emit.tvm.cpu.kernels.tir import Expr, intrinsic, let, reinterpret
from passes.emit.tvm.cpu.vectors.base import Vectors, shuffle, zip_bytes

BLOCK = 16  # bytes


class Blocks(Vectors):
    """What follows from narrowing int32 to int16 and int16 to uint8 within blocks."""

    @abstractmethod
    def _halves(self, a: Expr, b: Expr) -> Expr:
        """Return two int32 vectors as one of int16, saturated: a's block, b's block, ..."""

    @abstractmethod
    def _bytes(self, a: Expr, b: Expr) -> Expr:
        """Return two int16 vectors as one of uint8, saturated: a's block, b's block, ..."""

    def dot16(self, acc: Expr, x: Expr, w: Expr) -> Expr:
        """Return acc + the sums of two products of int16, modulo 2^32."""
        kind, sixteen = f"int32x{self.lanes}", T.broadcast(T.int32(16), self.lanes)
        a, b = (let(reinterpret(v, kind)) for v in (x, w))
        low = ((a << sixteen) >> sixteen) * ((b << sixteen) >> sixteen)
        return acc + low + (a >> sixteen) * (b >> sixteen)

    def pack(self, parts: Sequence[Expr]) -> Expr:
        """Return four int32 vectors as one of uint8, saturated."""
        return self._bytes(self._halves(*parts[:2]), self._halves(*parts[2:]))

    def add_saturated(self, parts: Sequence[Expr], zero: Expr) -> Expr:
        """Return `pack` of the parts + `zero`, an int16 vector of equal elements."""
        halves = (self._halves(*parts[:2]), self._halves(*parts[2:]))
        kind = f"int16x{2 * self.lanes}"
        return self._bytes(*(intrinsic(kind, "llvm.sadd.sat", half, zero) for half in halves))

    def transpose(self, packed: Expr) -> Expr:
        """Return `pack`'s result with the bytes of each of its four parts side by side."""
        blocks = self.lanes // 4
        if blocks == 1:
            return packed
        return shuffle(
            [packed],
            [
                BLOCK * k + 4 * j + t
                for j in range(4) for k in range(blocks) for t in range(4)
            ],
        )  # fmt: skip

    def interleave(self, parts: Sequence[Expr]) -> list[Expr]:
        """Return four byte vectors as four of dwords, see `Vectors.interleave`."""
        return zip_bytes(parts, 4 * self.lanes)
