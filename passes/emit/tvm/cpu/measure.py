"""The time that kernels take on this machine, many variants compiled as one module.

As in a network, a kernel finds its input in a near cache and its weights in a far one: every
call takes other weights of a large array. The time is that of the thread, not of the clock on
the wall, and the least of a few rounds: other programs only ever make a kernel slower.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import tvm
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from passes.emit.tvm.cpu.kernels.layout import round_up
from passes.emit.tvm.cpu.plan.steps import Kernel
from passes.emit.tvm.cpu_target import CpuTarget
from passes.emit.tvm.lowering_pipeline import compile_module

# Bytes of weights that calls take in turn: more than a second-level cache holds.
_FAR = 2**23
_ALIGNMENT = 64
_SLACK = 256
_MICROSECONDS = 400  # of one round, about
_MOST = 10_000
_ROUNDS = 6


@dataclass(frozen=True)
class Candidate:
    """A kernel to measure.

    Args:
        kernel: its specification.
        bytes: that its pointers point to, in the order of its arguments.
        weights: index of the pointer to its weights; the pointer to its result is before it.
    """

    kernel: Kernel
    bytes: tuple[int, ...]
    weights: int


def measure(candidates: Sequence[Candidate], target: CpuTarget) -> list[float]:
    """Return the microseconds of a call of each kernel on this machine, one thread.

    Args:
        candidates: what to measure; not empty.
        target: this machine's CPU.
    """
    near = max(_places(c)[-1] for c in candidates)
    far = max(_stride(c) * _copies(c) for c in candidates)
    module = {}
    for index, candidate in enumerate(candidates):
        reference = tvm.ir.GlobalVar(f"k{index}")
        module[reference] = candidate.kernel.build(f"k{index}")
        name = f"run{index}"
        module[tvm.ir.GlobalVar(name)] = _calls(name, reference, candidate, near, far)
    code = compile_module(tvm.IRModule(module), target.llvm())
    rng = np.random.default_rng(0)
    memory, weights = (
        tvm.runtime.tensor(rng.integers(0, 255, n, np.uint8)) for n in (near, far)
    )
    runs = [code[f"run{index}"] for index in range(len(candidates))]
    turns = [_turns(run, memory, weights) for run in runs]
    best = [float("inf")] * len(runs)
    for _ in range(_ROUNDS):  # in turn, so that a slow moment does not hit one of them only
        for index, run in enumerate(runs):
            best[index] = min(best[index], _time(run, memory, weights, turns[index]))
    return best


def _time(run: Any, memory: Any, weights: Any, turns: int) -> float:
    """Return the microseconds of one of `turns` calls."""
    start = time.thread_time_ns()
    run(memory, weights, turns, 0)
    return (time.thread_time_ns() - start) / 1e3 / turns


def _turns(run: Any, memory: Any, weights: Any) -> int:
    """Return how many calls take the time of a round."""
    turns = 1
    while turns < _MOST and _time(run, memory, weights, turns) * turns < _MICROSECONDS / 2:
        turns *= 2
    return turns + 1


def _stride(candidate: Candidate) -> int:
    """Return the bytes from one set of weights to the next."""
    return round_up(candidate.bytes[candidate.weights] + _SLACK, _ALIGNMENT)


def _copies(candidate: Candidate) -> int:
    return -(-_FAR // _stride(candidate))


def _places(candidate: Candidate) -> list[int]:
    """Return where each pointer points to, weights apart, and the bytes of all."""
    places = [0]
    for index, size in enumerate(candidate.bytes):
        used = 0 if index == candidate.weights else round_up(size + _SLACK, _ALIGNMENT)
        places.append(places[-1] + used)
    return places


def _calls(name: str, kernel: Any, candidate: Candidate, near: int, far: int) -> Any:
    """Return a function that calls a kernel several times with other weights.

    Args:
        name: of the function.
        kernel: reference to what it calls.
        candidate: the kernel.
        near: bytes of the array of all other arguments.
        far: bytes of the array of weights.
    """
    with IRBuilder() as builder, T.prim_func(s_tir=False):
        T.func_name(name)
        T.func_attr({"global_symbol": name})
        memory = T.arg("memory", T.buffer((near,), "uint8", layout=None))
        weights = T.arg("weights", T.buffer((far,), "uint8", layout=None))
        turns = T.arg("turns", T.int32())
        apart = T.arg("apart", T.int32())
        with T.serial(0, turns) as turn:
            places: list[Any] = _places(candidate)
            # Results in places that the compiler does not know, which is always the same:
            # otherwise it may see that only the last call counts.
            places[candidate.weights - 1] = places[candidate.weights - 1] + turn * apart
            pointers = [T.address_of(memory[place]) for place in places[:-1]]
            copy = T.floormod(turn, _copies(candidate)) * _stride(candidate)
            pointers[candidate.weights] = T.address_of(weights[copy])
            T.evaluate(T.Call(kernel, pointers, ret_ty="int32"))
    return builder.get()
