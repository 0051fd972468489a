"""How a block multiplies a tile of codes by a tile of weights: dp4a, or mma on tensor cores.

Both read the tiles from shared memory, as registers of four codes along K: row r, register k
of a tile is at ``r * stride + k``. Both add to sums in registers; `Products.place` says of
which row and column each is.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass

from tvm.script.ir_builder import tirx as T

from passes.emit.tvm.cuda.intrinsics import DP4A, MMA, QUAD, WARP
from passes.emit.tvm.cuda.kernels import tir
from passes.emit.tvm.cuda.kernels.tir import Buffer, Expr

# A tile of mma: pixels, channels, and registers along K.
_M, _N, _K = 16, 8, 8
# Registers of A and of D that a lane has; where its second half of K and its lower rows are.
_PARTS, _HALF, _ROWS = 4, 4, 8


@dataclass(frozen=True)
class Products(ABC):
    """A tile of sums.

    Args:
        rows, columns: pixels and channels of the block's tile.
        own_rows, own_columns: of them those of one thread (dp4a) or one warp (mma).
    """

    rows: int
    columns: int
    own_rows: int
    own_columns: int

    @property
    @abstractmethod
    def threads(self) -> int:
        """Threads of a block."""

    @property
    @abstractmethod
    def sums(self) -> int:
        """Registers of sums that a thread has."""

    @abstractmethod
    def name(self) -> str:
        """Return a readable part of the kernel's name."""

    @abstractmethod
    def place(self, thread: Expr, register: Expr) -> tuple[Expr, Expr]:
        """Return row and column of one of a thread's sums."""

    @abstractmethod
    def add(self, sums: Buffer, x: Buffer, w: Buffer, stride: int, registers: int) -> None:
        """Write loops over threads that add all products of two tiles of `registers`."""


class Dp4a(Products):
    """Four products an instruction; rows and columns of a thread lie apart, for the banks."""

    @property
    def _across(self) -> int:
        return self.columns // self.own_columns

    @property
    def _down(self) -> int:
        return self.rows // self.own_rows

    @property
    def threads(self) -> int:
        """Threads of a block."""
        return self._across * self._down

    @property
    def sums(self) -> int:
        """Registers of sums that a thread has."""
        return self.own_rows * self.own_columns

    def name(self) -> str:
        """Return a readable part of the kernel's name."""
        return f"dp4a_{self.rows}x{self.columns}"

    def place(self, thread: Expr, register: Expr) -> tuple[Expr, Expr]:
        """Return row and column of one of a thread's sums."""
        i, j = register // self.own_columns, register % self.own_columns
        row = thread // self._across + i * self._down
        return row, thread % self._across + j * self._across

    def add(self, sums: Buffer, x: Buffer, w: Buffer, stride: int, registers: int) -> None:
        """Write the loop over threads."""
        codes, weights = (
            tir.registers(self.own_rows, "uint32"),
            tir.registers(self.own_columns),
        )
        with tir.threads(self.threads) as t, T.serial(0, registers) as k:
            with T.unroll(0, self.own_rows) as i:
                row, _ = self.place(t, i * self.own_columns)
                tir.store(codes, x[row * stride + k], i)
            with T.unroll(0, self.own_columns) as j:
                _, column = self.place(t, j)
                tir.store(weights, w[column * stride + k], j)
            with T.unroll(0, self.own_rows) as i, T.unroll(0, self.own_columns) as j:
                n = i * self.own_columns + j
                tir.store(sums, DP4A(codes[i], weights[j], sums[n]), n)


class Mma(Products):
    """Tensor cores: 16 pixels x 8 channels x 32 codes an instruction, by a warp."""

    @property
    def _across(self) -> int:
        return self.columns // self.own_columns

    @property
    def _down(self) -> int:
        return self.own_rows // _M

    @property
    def _wide(self) -> int:
        return self.own_columns // _N

    @property
    def threads(self) -> int:
        """Threads of a block."""
        return WARP * self._across * (self.rows // self.own_rows)

    @property
    def sums(self) -> int:
        """Registers of sums that a thread has."""
        return _PARTS * self._down * self._wide

    def name(self) -> str:
        """Return a readable part of the kernel's name."""
        return f"mma_{self.rows}x{self.columns}"

    def _origin(self, thread: Expr) -> tuple[Expr, Expr]:
        """Return the first row and column of a thread's warp."""
        warp = thread // WARP
        return warp // self._across * self.own_rows, warp % self._across * self.own_columns

    def place(self, thread: Expr, register: Expr) -> tuple[Expr, Expr]:
        """Return row and column of one of a thread's sums."""
        top, left = self._origin(thread)
        group, pair = thread % WARP // QUAD, thread % QUAD
        tile, part = register // _PARTS, register % _PARTS
        row = top + tile // self._wide * _M + group + part // 2 * _ROWS
        return row, left + tile % self._wide * _N + 2 * pair + part % 2

    def add(self, sums: Buffer, x: Buffer, w: Buffer, stride: int, registers: int) -> None:
        """Write loops over threads: fragments are loaded by all, then multiplied by all."""
        a = tir.registers(_PARTS * self._down, "uint32")
        b = tir.registers(2 * self._wide)
        with T.serial(0, registers // _K) as step:
            with tir.threads(self.threads) as t:
                self._load(a, b, x, w, stride, step, t)
            with tir.threads(self.threads):
                with T.unroll(0, self._down) as i, T.unroll(0, self._wide) as j:
                    into = T.address_of(sums[_PARTS * (i * self._wide + j)])
                    codes = [a[_PARTS * i + part] for part in range(_PARTS)]
                    T.evaluate(MMA(into, *codes, b[2 * j], b[2 * j + 1]))

    def _load(
        self, a: Buffer, b: Buffer, x: Buffer, w: Buffer, stride: int, step: Expr, t: Expr
    ) -> None:
        top, left = self._origin(t)
        group, q = t % WARP // QUAD, t % QUAD
        k = step * _K + q
        with T.unroll(0, _PARTS * self._down) as n:
            tile, part = n // _PARTS, n % _PARTS
            row = top + tile * _M + group + part % 2 * _ROWS
            tir.store(a, x[row * stride + k + part // 2 * _HALF], n)
        with T.unroll(0, 2 * self._wide) as n:
            column = left + n // 2 * _N + group
            tir.store(b, w[column * stride + k + n % 2 * _HALF], n)
