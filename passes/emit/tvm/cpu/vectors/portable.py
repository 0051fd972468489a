"""Any CPU: 128-bit vectors in plain arithmetic, for which LLVM finds instructions."""

from tvm.script.ir_builder import tirx as T

from passes.emit.tvm.cpu.kernels.tir import Expr, intrinsic, let, reinterpret
from passes.emit.tvm.cpu.vectors.base import Operand, shuffle
from passes.emit.tvm.cpu.vectors.blocks import Blocks


class Portable(Blocks):
    """int32 products of single bytes."""

    name = "portable"
    lanes = 4
    registers = 16
    # Of the four vectors of a prepared w LLVM keeps two or splits it again.
    step_registers, w_registers = 4, 2

    def prepare_x(self, x: Expr) -> Operand:
        """Return four int32 vectors: the same byte of every dword."""
        return self._split(T.broadcast(T.reinterpret("uint32", x), 4), "uint32")

    def prepare_w(self, w: Expr) -> Operand:
        """Return four int32 vectors: the same byte of every dword."""
        return self._split(let(reinterpret(w, "int32x4")), "int32")

    def _split(self, dwords: Expr, kind: str) -> Operand:
        """Return the four bytes of each dword as int32, signed as `kind` is."""

        def shift(bits: int) -> Expr:
            return T.broadcast(T.Cast(kind, T.int32(bits)), 4)

        tops = (T.shift_left(dwords, shift(24 - 8 * i)) for i in range(4))
        return tuple(
            let(reinterpret(T.shift_right(top, shift(24)), "int32x4")) for top in tops
        )

    def accumulate(self, acc: Expr, x: Operand, w: Operand) -> Expr:
        """Return acc + four products."""
        for a, b in zip(x, w, strict=True):
            acc = acc + a * b
        return acc

    def dot(self, acc: Expr, x: Expr, w: Expr) -> Expr:
        """Return acc + the sums of four products of bytes."""
        codes = self._split(let(reinterpret(x, "uint32x4")), "uint32")
        return self.accumulate(acc, codes, self.prepare_w(w))

    def round(self, x: Expr) -> Expr:
        """Return float32 as int32, by the current mode: halves to even."""
        return intrinsic("int32x4", "llvm.lrint", x)

    def _halves(self, a: Expr, b: Expr) -> Expr:
        return self._narrow(a, b, 4, -(2**15), 2**15 - 1, "int16")

    def _bytes(self, a: Expr, b: Expr) -> Expr:
        return self._narrow(a, b, 8, 0, 255, "uint8")

    def _narrow(self, a: Expr, b: Expr, lanes: int, lo: int, hi: int, kind: str) -> Expr:
        both, wide = shuffle([a, b], range(2 * lanes)), "int32" if lanes == 4 else "int16"
        low, high = (T.broadcast(T.Cast(wide, T.int32(v)), 2 * lanes) for v in (lo, hi))
        return T.cast(T.max(T.min(both, high), low), f"{kind}x{2 * lanes}")
