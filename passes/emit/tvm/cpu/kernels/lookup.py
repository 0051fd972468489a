"""256 answers: ``table[code]`` for a whole vector of codes at once.

AVX512-VBMI's vpermi2b looks 64 codes up in 128 bytes, so two of them and a choice by the top
bit are a table of 256 bytes that never leaves four registers.
"""

from collections.abc import Sequence

from tvm.script.ir_builder import tirx as T

from passes.emit.tvm.cpu.kernels.tir import Buffer, Expr, intrinsic, let, load, reinterpret

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
