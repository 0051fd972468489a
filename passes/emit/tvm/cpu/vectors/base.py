"""What a kernel asks of a CPU's vector unit; one class for each instruction set.

A *vector* here is a register of `lanes` int32 or float32, or of 4 x `lanes` bytes. Each method
returns an expression; all are exact (no saturation on the way, halves to even).
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence

from tvm.script.ir_builder import tirx as T

from passes.emit.tvm.cpu.kernels.tir import Buffer, Expr, intrinsic, let, reinterpret

Operand = tuple[Expr, ...]


class Vectors(ABC):
    """Vector instructions.

    Args:
        name: of the instruction set.
        lanes: int32 in a vector.
        registers: vectors that the CPU holds.
        step_registers: of them a step needs for `x`, constants and what is between.
        w_registers: of them a prepared `w` takes.
        x_offset: `accumulate` subtracts it from every byte of x. A kernel that uses it adds
            ``x_offset * sum(w)`` to the bias: ``bias - (zero_point - x_offset) * sum(w)``.
        has_table: whether `look_up` is cheap enough for an epilogue.
        has_dot16: it has `dot16`.
    """

    name: str
    lanes: int
    registers: int
    step_registers: int = 1
    w_registers: int = 1
    x_offset: int = 0
    has_table: bool = False
    has_dot16: bool = False

    def accumulators(self, columns: int) -> int:
        """Return how many sums of a tile stay in registers besides what a step needs.

        Args:
            columns: vectors of output channels in the tile.
        """
        free = self.registers - self.step_registers - columns * self.w_registers
        return max(free, 0)

    def prepare_x(self, x: Expr) -> Operand:
        """Return four bytes (as int32) in every lane, as `accumulate` wants them."""
        return (let(self.broadcast(x)),)

    def prepare_w(self, w: Expr) -> Operand:
        """Return a vector of int8 as `accumulate` wants it."""
        return (let(w),)

    def accumulate(self, acc: Expr, x: Operand, w: Operand) -> Expr:
        """Return `dot` of prepared operands, with `x_offset` subtracted from every x."""
        return self.dot(acc, *x, *w)

    @abstractmethod
    def dot(self, acc: Expr, x: Expr, w: Expr) -> Expr:
        """Return acc + the sums of four products of uint8 bytes `x` and int8 bytes `w`."""

    def dot16(self, acc: Expr, x: Expr, w: Expr) -> Expr:
        """Return acc + the sums of two products of int16, modulo 2^32."""
        raise NotImplementedError

    @abstractmethod
    def round(self, x: Expr) -> Expr:
        """Return float32 as int32, halves to even."""

    @abstractmethod
    def pack(self, parts: Sequence[Expr]) -> Expr:
        """Return four int32 vectors as one of uint8, saturated, in the order of `order`."""

    @abstractmethod
    def interleave(self, parts: Sequence[Expr]) -> list[Expr]:
        """Return four byte vectors as four vectors of dwords, one byte of each in a dword.

        Part j of the result holds bytes 16 k + 4 j + t at lane 4 k + t, which is how `pack`
        without `transpose` puts them back.
        """

    def look_up(self, codes: Expr, table: Buffer, offset: Expr) -> Expr:
        """Return for every byte of `codes` its entry of the 256 at `offset` of `table`."""
        count = 4 * self.lanes
        return table[T.cast(codes, f"int32x{count}") + T.broadcast(offset, count)]

    @abstractmethod
    def transpose(self, packed: Expr) -> Expr:
        """Return `pack`'s result with the bytes of each of its four parts side by side."""

    @abstractmethod
    def add_saturated(self, parts: Sequence[Expr], zero: Expr) -> Expr:
        """Return `pack` of the parts + `zero`, an int16 vector of equal elements."""

    def broadcast(self, x: Expr) -> Expr:
        """Return four bytes (as int32) in every lane, as bytes."""
        return reinterpret(T.broadcast(x, self.lanes), f"int8x{4 * self.lanes}")

    def broadcast16(self, x: Expr) -> Expr:
        """Return two int16 (as int32) in every lane, as int16."""
        return reinterpret(T.broadcast(x, self.lanes), f"int16x{2 * self.lanes}")

    def floats(self, x: Expr) -> Expr:
        """Return int32 (or uint8) lanes as float32."""
        return T.cast(x, f"float32x{self.lanes}")

    def fma(self, a: Expr, b: Expr, c: Expr) -> Expr:
        """Return ``a * b + c``, rounded once."""
        return intrinsic(f"float32x{self.lanes}", "llvm.fma", a, b, c)


def zip_bytes(parts: Sequence[Expr], count: int) -> list[Expr]:
    """Return `Vectors.interleave` in x86's shuffles: bytes in pairs, then pairs in fours."""

    def zipped(a: Expr, b: Expr, size: int, high: bool) -> Expr:
        lane, all_ = 16 // size, count // size
        half = range(lane // 2 * high, lane // 2 * (high + 1))
        first = [start + i for start in range(0, all_, lane) for i in half]
        return let(shuffle([a, b], [p for i in first for p in (i, i + all_)]))

    found = []
    for high in (False, True):
        pairs = [
            reinterpret(zipped(a, b, 1, high), f"int16x{count // 2}")
            for a, b in (parts[:2], parts[2:])
        ]
        for upper in (False, True):
            found.append(reinterpret(zipped(pairs[0], pairs[1], 2, upper), f"uint8x{count}"))
    return found


def shuffle(vectors: Sequence[Expr], places: Sequence[int]) -> Expr:
    """Return the elements at constant `places` of the `vectors` one after another."""
    return T.Shuffle(list(vectors), [T.int32(p) for p in places])
