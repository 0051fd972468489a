"""Device functions that TIR has no operator for: what a GPU runs, and what it means.

Each is a call of ``tirx.cuda.func_call`` that carries its CUDA source. `MEANINGS` and
`mma_sums` say the same in plain TIR, for `passes.emit.tvm.cuda.serial`, which runs kernels on
a CPU.

`mma` is one instruction of a whole warp: D += A B for a 16 x 32 tile A of uint8 (rows are
pixels), a 32 x 8 tile B of int8 (columns are channels) and a 16 x 8 tile D of int32. Lane
``4 g + q`` holds, four codes to a register:

    A: rows g and g + 8, codes 4 q to 4 q + 3 and those 16 further on: a0, a1, a2, a3 in the
       order (g, 0), (g + 8, 0), (g, 16), (g + 8, 16)
    B: column g, the same codes: b0, b1
    D: rows g and g + 8, columns 2 q and 2 q + 1

Source: PTX ISA, "Matrix Fragments for mma.m16n8k32"; `dp4a`, `fma.rn.f32` there too.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tvm import tirx
from tvm.backend.cuda.op import cuda_func_call
from tvm.ir import Call

Expr = Any
# Returns an argument of the call, as another lane of the same warp computes it.
AtLane = Callable[[int, Expr], Expr]

CALL = "tirx.cuda.func_call"
WARP, BYTES = 32, 4
# Lanes that share a row of A, or a column of B: `q` above counts them.
QUAD = 4


@dataclass(frozen=True)
class Function:
    """A device function.

    Args:
        name: of it.
        returns: its type.
        source: CUDA; one function.
    """

    name: str
    returns: str
    source: str

    def __call__(self, *args: Expr) -> Expr:
        """Return a call."""
        return cuda_func_call(
            self.name, *args, source_code=self.source, return_type=self.returns
        )


DP4A = Function(
    "qtool_dp4a", "int32",
    "__forceinline__ __device__ int qtool_dp4a(unsigned a, int b, int c) {\n"
    "  int d;\n"
    '  asm("dp4a.u32.s32 %0, %1, %2, %3;" : "=r"(d) : "r"(a), "r"(b), "r"(c));\n'
    "  return d;\n"
    "}\n",
)  # fmt: skip
FMA = Function(
    "qtool_fma", "float32",
    "__forceinline__ __device__ float qtool_fma(float a, float b, float c) {\n"
    "  return __fmaf_rn(a, b, c);\n"
    "}\n",
)  # fmt: skip
MMA = Function(
    "qtool_mma", "void",
    "__forceinline__ __device__ void qtool_mma(\n"
    "    int* d, unsigned a0, unsigned a1, unsigned a2, unsigned a3, int b0, int b1) {\n"
    '  asm volatile("mma.sync.aligned.m16n8k32.row.col.s32.u8.s8.s32 "\n'
    '               "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"\n'
    '               : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])\n'
    '               : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));\n'
    "}\n",
)  # fmt: skip


def called(call: Call) -> str | None:
    """Return the name of the device function that is called, None for other calls."""
    return str(call.args[0].value) if call.op.name == CALL else None


def arguments(call: Call) -> list[Expr]:
    """Return what a device function is called with: all but its name and source."""
    return list(call.args[1:-1])


def _bytes(word: Expr, kind: str) -> list[Expr]:
    """Return the four bytes of a register, as int32."""
    bits = tirx.reinterpret("uint32", word)
    parts = [(bits >> tirx.const(8 * i, "uint32")).astype("uint8") for i in range(BYTES)]
    return [tirx.reinterpret(kind, part).astype("int32") for part in parts]


def _dot(codes: Expr, weights: Expr, total: Expr) -> Expr:
    """Four products of a uint8 and an int8, added to `total`."""
    for code, weight in zip(_bytes(codes, "uint8"), _bytes(weights, "int8"), strict=True):
        total = total + code * weight
    return total


def _fma(a: Expr, b: Expr, c: Expr) -> Expr:
    return tirx.call_llvm_pure_intrin("float32", "llvm.fma", a, b, c)


def mma_sums(lane: Expr, q: Expr, at: AtLane) -> list[Expr]:
    """Return what the codes of lanes `q` of their quads add to the part of D that a lane has.

    Args:
        lane: number of the lane in its warp.
        q: which codes of K.
        at: an argument (a0 to a3, b0, b1) as another lane passes it.
    """
    group, pair = lane // QUAD, lane % QUAD
    found = []
    for row, column in ((0, 0), (0, 1), (1, 0), (1, 1)):
        total = tirx.const(0, "int32")
        for half in range(2):
            codes = at(2 * half + row, group * QUAD + q)
            total = _dot(codes, at(4 + half, (2 * pair + column) * QUAD + q), total)
        found.append(total)
    return found


# Of functions that return what one thread computes from its own arguments.
MEANINGS: dict[str, Callable[..., Expr]] = {DP4A.name: _dot, FMA.name: _fma}
