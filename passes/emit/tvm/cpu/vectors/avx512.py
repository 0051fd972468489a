"""x86 with AVX512: VNNI, and VBMI."""

from collections.abc import Sequence

from tvm.script.ir_builder import tirx as T

from passes.emit.tvm.cpu.kernels.lookup import load_table, look_up_vbmi
from passes.emit.tvm.cpu.kernels.tir import Buffer, Expr, intrinsic, load, reinterpret
from passes.emit.tvm.cpu.vectors.base import Vectors, shuffle, zip_bytes

_CURRENT_ROUNDING = 4  # of MXCSR: to nearest, halves to even


class Avx512Vnni(Vectors):
    """x86 with AVX512-VNNI: 512-bit vectors."""

    name = "avx512_vnni"
    lanes = 16
    registers = 32
    has_dot16 = True

    def dot(self, acc: Expr, x: Expr, w: Expr) -> Expr:
        """With vpdpbusd."""
        return intrinsic("int32x16", "llvm.x86.avx512.vpdpbusd.512", acc, x, w)

    def dot16(self, acc: Expr, x: Expr, w: Expr) -> Expr:
        """With vpdpwssd."""
        return intrinsic("int32x16", "llvm.x86.avx512.vpdpwssd.512", acc, x, w)

    def round(self, x: Expr) -> Expr:
        """With vcvtps2dq, by the current mode: halves to even."""
        zero, mode = T.broadcast(T.int32(0), 16), T.int32(_CURRENT_ROUNDING)
        return intrinsic(
            "int32x16", "llvm.x86.avx512.mask.cvtps2dq.512", x, zero, T.int16(-1), mode
        )

    def _halves(self, a: Expr, b: Expr) -> Expr:
        return intrinsic("int16x32", "llvm.x86.avx512.packssdw.512", a, b)

    def _bytes(self, a: Expr, b: Expr) -> Expr:
        packed = intrinsic("int8x64", "llvm.x86.avx512.packuswb.512", a, b)
        return reinterpret(packed, "uint8x64")

    def pack(self, parts: Sequence[Expr]) -> Expr:
        """With vpackssdw, then vpackuswb."""
        return self._bytes(self._halves(*parts[:2]), self._halves(*parts[2:]))

    def add_saturated(self, parts: Sequence[Expr], zero: Expr) -> Expr:
        """`pack` with vpaddsw between."""
        halves = (self._halves(*parts[:2]), self._halves(*parts[2:]))
        return self._bytes(
            *(intrinsic("int16x32", "llvm.sadd.sat", half, zero) for half in halves)
        )

    def transpose(self, packed: Expr) -> Expr:
        """A permutation of dwords."""
        return shuffle(
            [packed],
            [16 * k + 4 * j + t for j in range(4) for k in range(4) for t in range(4)],
        )

    def interleave(self, parts: Sequence[Expr]) -> list[Expr]:
        """With vpunpck of bytes, then of words."""
        return zip_bytes(parts, 4 * self.lanes)

    def look_up(self, codes: Expr, table: Buffer, offset: Expr) -> Expr:
        """Return the entries."""
        # Sixteen look-ups of sixteen bytes: all that is sure to come with VNNI.
        found = T.broadcast(T.uint8(0), 64)
        for high in range(16):
            # High bits that match become 0; all others saturate to >= 128, which selects 0.
            own = codes ^ T.broadcast(T.uint8(16 * high), 64)
            index = intrinsic("uint8x64", "llvm.uadd.sat", own, T.broadcast(T.uint8(0x70), 64))
            part = load(table, offset + 16 * high, 16)
            entries = shuffle([part] * 4, range(64))
            found = found | intrinsic(
                "uint8x64", "llvm.x86.avx512.pshuf.b.512", entries, index
            )
        return found


class Avx512Vbmi(Avx512Vnni):
    """With AVX512-VBMI: shuffles of bytes across a whole vector."""

    name = "avx512_vbmi"
    has_table = True

    def look_up(self, codes: Expr, table: Buffer, offset: Expr) -> Expr:
        """Return the entries."""
        return look_up_vbmi(codes, *load_table(table, offset))
