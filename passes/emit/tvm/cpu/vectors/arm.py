"""Arm: 128-bit NEON with dot products."""

from tvm.script.ir_builder import tirx as T

from passes.emit.tvm.cpu.kernels.tir import Buffer, Expr, intrinsic, let, load, reinterpret
from passes.emit.tvm.cpu.vectors.base import Operand, Vectors, shuffle
from passes.emit.tvm.cpu.vectors.blocks import BLOCK, Blocks

_SIGN = 0x80  # of a byte; x ^ 0x80 is x - 128 as a signed byte


class Neon(Blocks):
    """AArch64 with `sdot`, which multiplies signed bytes with signed bytes.

    uint8 codes become signed by flipping their top bit. The kernel's bias makes up for the 128
    that `accumulate` takes off every code (`x_offset`); `dot` adds it itself.
    """

    name = "neon_dot"
    lanes = 4
    registers = 32
    step_registers, w_registers = 3, 1
    x_offset = _SIGN
    has_table = True

    def prepare_x(self, x: Expr) -> Operand:
        """Return four codes - 128 in every lane."""
        return (let(self._signed(self.broadcast(x))),)

    def accumulate(self, acc: Expr, x: Operand, w: Operand) -> Expr:
        """Return acc + the sums of four products of w and x - 128."""
        return self._sdot(acc, *x, *w)

    def dot(self, acc: Expr, x: Expr, w: Expr) -> Expr:
        """Return acc + the sums of four products of bytes."""
        half = T.broadcast(T.int8(_SIGN // 2), 16)
        offset = self._sdot(self._sdot(acc, half, w), half, w)
        return self._sdot(offset, self._signed(reinterpret(x, "int8x16")), w)

    def _signed(self, x: Expr) -> Expr:
        return x ^ T.broadcast(T.int8(_SIGN - 256), 16)

    def _sdot(self, acc: Expr, x: Expr, w: Expr) -> Expr:
        # In this order LLVM takes a broadcast x as one element of a register.
        return intrinsic("int32x4", "llvm.aarch64.neon.sdot", acc, w, x)

    def round(self, x: Expr) -> Expr:
        """Return float32 as int32, halves to even."""
        return intrinsic("int32x4", "llvm.aarch64.neon.fcvtns", x)

    def look_up(self, codes: Expr, table: Buffer, offset: Expr) -> Expr:
        """Return the entries: those of 64 codes at a time."""
        found = T.broadcast(T.int8(0), BLOCK)
        for first in range(0, 256, 4 * BLOCK):
            index = reinterpret(codes - T.broadcast(T.uint8(first), BLOCK), "int8x16")
            parts = [
                reinterpret(load(table, offset + first + BLOCK * i, BLOCK), "int8x16")
                for i in range(4)
            ]
            # An index out of range leaves what was found.
            found = intrinsic("int8x16", "llvm.aarch64.neon.tbx4", found, *parts, index)
        return reinterpret(found, "uint8x16")

    def _halves(self, a: Expr, b: Expr) -> Expr:
        parts = [intrinsic("int16x4", "llvm.aarch64.neon.sqxtn", part) for part in (a, b)]
        return shuffle(parts, range(8))

    def _bytes(self, a: Expr, b: Expr) -> Expr:
        parts = [intrinsic("int8x8", "llvm.aarch64.neon.sqxtun", part) for part in (a, b)]
        return reinterpret(shuffle(parts, range(16)), "uint8x16")


class NeonI8mm(Neon):
    """AArch64 with `usdot` (the i8mm extension): unsigned with signed bytes."""

    name = "neon_i8mm"
    x_offset = Vectors.x_offset
    prepare_x, accumulate = Vectors.prepare_x, Vectors.accumulate

    def dot(self, acc: Expr, x: Expr, w: Expr) -> Expr:
        """Return acc + the sums of four products of bytes."""
        return intrinsic("int32x4", "llvm.aarch64.neon.usdot", acc, x, w)
