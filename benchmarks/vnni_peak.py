"""The integer peak of one core: VPDPBUSD on registers alone, as fast as the core takes them.

    python benchmarks/vnni_peak.py [--turns 5] [--json FILE]

A kernel, compiled by TVM, repeats independent VPDPBUSD (u8 x s8, four products to an int32
sum) whose operands stay in registers: no loads, no stores, and more sums than the instruction
takes cycles. What a layer reaches of the widest one that the CPU has is its share of the peak.
Time is the process's own (`interleaved`).
"""

import argparse
import json
import statistics
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import interleaved
import numpy as np
from interleaved import engine_command

from runtimes.isa import integer_features

REPEATS = 50_000
SUMS = 12  # independent accumulators: latency x throughput is 4 to 10 on today's cores
# Vector bits by instruction set, the best first.
WIDTHS = {"avx512_vnni": (512, 256), "avx_vnni": (256,)}


@dataclass(frozen=True)
class Peak:
    """The peak of one vector width, 10^9 multiply-accumulates a second of one core."""

    bits: int
    gmac_per_s: float


def main() -> None:
    """Measure every width that this CPU has and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    if not widths():
        parser.exit(1, f"no VNNI: this CPU has {', '.join(integer_features())}\n")
    commands = {str(bits): command(bits) for bits in widths()}
    timings = interleaved.measure(commands, args.turns)
    peaks = [
        Peak(int(bits), macs(int(bits)) / statistics.median(timing.turns(1)) / 1e6)
        for bits, timing in timings.items()
    ]
    print("| instruction | GMAC/s of one core |", "|---|---|", sep="\n")
    for peak in peaks:
        print(f"| VPDPBUSD, {peak.bits} bits | {peak.gmac_per_s:.0f} |")
    if args.json:
        args.json.write_text(json.dumps([asdict(peak) for peak in peaks], indent=2) + "\n")


def widths() -> tuple[int, ...]:
    """Return the widths in bits of VPDPBUSD here, the widest first; none without VNNI."""
    features = integer_features()
    return next((bits for name, bits in WIDTHS.items() if name in features), ())


def command(bits: int) -> list[str]:
    """Return the command line of a process that `interleaved` asks for a call's time."""
    return engine_command("peak", bits, 1, (1,))


def macs(bits: int) -> int:
    """Return the multiply-accumulates of one call."""
    return REPEATS * SUMS * bits // 8


def peak_call(bits: int) -> Callable[[], object]:
    """Compile the kernel of one width for this CPU; return a call that runs it once.

    Raises:
        RuntimeError: the kernel computes something else than it should.
    """
    import tvm

    cpu = tvm.target.codegen.llvm_get_system_cpu()
    module = tvm.compile(
        tvm.IRModule({"peak": kernel(bits)}), tvm.target.Target({"kind": "llvm", "mcpu": cpu})
    )
    rng = np.random.default_rng(0)
    x = rng.integers(0, 3, bits // 8).astype(np.uint8)
    w = rng.integers(-1, 2, bits // 8).astype(np.int8)
    result = tvm.runtime.tensor(np.zeros(SUMS * bits // 32, np.int32))
    run, operands = module["peak"], (tvm.runtime.tensor(x), tvm.runtime.tensor(w))
    run(*operands, result)
    once = (x.astype(np.int32) * w).reshape(-1, 4).sum(1)
    if not np.array_equal(
        result.numpy().reshape(SUMS, -1), np.tile(once * REPEATS, (SUMS, 1))
    ):
        raise RuntimeError(f"VPDPBUSD with {bits} bits: wrong sums")
    return lambda: run(*operands, result)


def kernel(bits: int) -> Any:
    """Return the PrimFunc (x uint8, w int8, sums int32) of `REPEATS` rounds of `SUMS`."""
    from tvm.script.ir_builder import IRBuilder
    from tvm.script.ir_builder import tirx as T

    lanes, name = bits // 32, f"llvm.x86.avx512.vpdpbusd.{bits}"
    operand = T.ramp(0, 1, 4 * lanes)
    places = [T.ramp(i * lanes, 1, lanes) for i in range(SUMS)]
    with IRBuilder() as builder, T.prim_func(s_tir=False):
        T.func_name("peak")
        # Without this LLVM writes every sum to memory: it could be an operand.
        T.func_attr({"tirx.noalias": True})
        x = T.arg("x", T.buffer((4 * lanes,), "uint8"))
        w = T.arg("w", T.buffer((4 * lanes,), "int8"))
        y = T.arg("y", T.buffer((SUMS * lanes,), "int32"))
        sums = T.alloc_buffer((SUMS * lanes,), "int32", scope="local", layout=None)
        for place in places:
            T.buffer_store(sums, T.broadcast(T.int32(0), lanes), [place])
        with T.serial(0, REPEATS):
            for place in places:
                pixels = T.reinterpret(x[operand], dtype=f"int8x{4 * lanes}")
                value = T.call_llvm_pure_intrin(
                    f"int32x{lanes}", name, sums[place], pixels, w[operand]
                )
                T.buffer_store(sums, value, [place])
        for place in places:
            T.buffer_store(y, sums[place], [place])
    return builder.get()


if __name__ == "__main__":
    main()
