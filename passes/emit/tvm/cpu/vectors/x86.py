"""x86 without AVX512: 256-bit vectors with and without VNNI, and 128-bit ones."""

from tvm.script.ir_builder import tirx as T

from passes.emit.tvm.cpu.kernels.tir import Buffer, Expr, intrinsic, let, load, reinterpret
from passes.emit.tvm.cpu.vectors.base import Operand, Vectors, shuffle
from passes.emit.tvm.cpu.vectors.blocks import BLOCK, Blocks


class Sse2(Blocks):
    """Every x86 with 64 bits.

    `pmaddubsw` of later ones multiplies bytes but saturates. So bytes are widened: the even
    and the odd bytes of x and w as int16, multiplied and summed in pairs by `pmaddwd`.
    """

    name = "sse2"
    lanes = 4
    registers = 16
    step_registers, w_registers = 4, 2
    has_dot16 = True
    _multiply = "llvm.x86.sse2.pmadd.wd"
    _to_int32 = "llvm.x86.sse2.cvtps2dq"
    _to_int16 = "llvm.x86.sse2.packssdw.128"
    _to_uint8 = "llvm.x86.sse2.packuswb.128"

    def prepare_x(self, x: Expr) -> Operand:
        """Return the even and the odd bytes as int16."""
        return self._split_x(T.broadcast(x, self.lanes))

    def prepare_w(self, w: Expr) -> Operand:
        """Return the even and the odd bytes as int16."""
        eight = T.broadcast(T.int16(8), 2 * self.lanes)
        halves = let(reinterpret(w, f"int16x{2 * self.lanes}"))
        return (let((halves << eight) >> eight), let(halves >> eight))

    def _split_x(self, dwords: Expr) -> Operand:
        n = 2 * self.lanes
        even = dwords & T.broadcast(T.int32(0x00FF00FF), self.lanes)
        odd = reinterpret(dwords, f"uint16x{n}") >> T.broadcast(T.uint16(8), n)
        return (let(reinterpret(even, f"int16x{n}")), let(reinterpret(odd, f"int16x{n}")))

    def accumulate(self, acc: Expr, x: Operand, w: Operand) -> Expr:
        """Return acc + the products of even bytes + those of odd bytes."""
        for a, b in zip(x, w, strict=True):
            acc = self.dot16(acc, a, b)
        return acc

    def dot(self, acc: Expr, x: Expr, w: Expr) -> Expr:
        """Return acc + the sums of four products of bytes."""
        dwords = let(reinterpret(x, f"int32x{self.lanes}"))
        return self.accumulate(acc, self._split_x(dwords), self.prepare_w(w))

    def dot16(self, acc: Expr, x: Expr, w: Expr) -> Expr:
        """Return acc + the sums of two products of int16, modulo 2^32."""
        return acc + intrinsic(f"int32x{self.lanes}", self._multiply, x, w)

    def round(self, x: Expr) -> Expr:
        """Return float32 as int32, by the current mode: halves to even."""
        return intrinsic(f"int32x{self.lanes}", self._to_int32, x)

    def _halves(self, a: Expr, b: Expr) -> Expr:
        return intrinsic(f"int16x{2 * self.lanes}", self._to_int16, a, b)

    def _bytes(self, a: Expr, b: Expr) -> Expr:
        total = 4 * self.lanes
        return reinterpret(intrinsic(f"int8x{total}", self._to_uint8, a, b), f"uint8x{total}")


class Avx2(Sse2):
    """x86 with AVX2 and FMA."""

    name = "avx2"
    lanes = 8
    has_table = True
    _multiply = "llvm.x86.avx2.pmadd.wd"
    _to_int32 = "llvm.x86.avx.cvt.ps2dq.256"
    _to_int16 = "llvm.x86.avx2.packssdw"
    _to_uint8 = "llvm.x86.avx2.packuswb"

    def look_up(self, codes: Expr, table: Buffer, offset: Expr) -> Expr:
        """Return the entries: those of sixteen codes at a time."""
        found, most = T.broadcast(T.uint8(0), 32), T.broadcast(T.uint8(0x70), 32)
        for first in range(0, 256, BLOCK):
            # `vpshufb` answers 0 to an index with the top bit; an index < 16 stays below it.
            own = codes ^ T.broadcast(T.uint8(first), 32)
            index = intrinsic("uint8x32", "llvm.uadd.sat", own, most)
            entries = shuffle([load(table, offset + first, BLOCK)] * 2, range(32))
            found = found | intrinsic("uint8x32", "llvm.x86.avx2.pshuf.b", entries, index)
        return found


class AvxVnni(Avx2):
    """x86 with AVX-VNNI (or AVX512-VNNI and VL): 256-bit `vpdpbusd`."""

    name = "avx_vnni"
    step_registers, w_registers = Vectors.step_registers, Vectors.w_registers
    prepare_x, prepare_w = Vectors.prepare_x, Vectors.prepare_w
    accumulate = Vectors.accumulate

    def dot(self, acc: Expr, x: Expr, w: Expr) -> Expr:
        """Return acc + the sums of four products of bytes."""
        return intrinsic("int32x8", "llvm.x86.avx512.vpdpbusd.256", acc, x, w)

    def dot16(self, acc: Expr, x: Expr, w: Expr) -> Expr:
        """Return acc + the sums of two products of int16, modulo 2^32."""
        return intrinsic("int32x8", "llvm.x86.avx512.vpdpwssd.256", acc, x, w)
