"""Compiles kernels alone, for any CPU, and calls those that this one runs."""

import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
import tvm
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from passes.emit.tvm.cpu_target import CpuTarget, cpu_target, host_triple

Array = np.ndarray[Any, Any]
CONFIG = {"tirx.disable_storage_rewrite": True}
X86 = platform.machine() in ("x86_64", "AMD64")
HOST = tvm.target.Target({"kind": "llvm", "mcpu": tvm.target.codegen.llvm_get_system_cpu()})
# Unit -> CPUs (LLVM's names, features that they need) that can run it; the first that fits.
CPUS: dict[str, list[tuple[str, tuple[str, ...]]]] = {
    "avx512_vnni": [("cascadelake", ("avx512vnni", "avx512vl", "avx512bw"))],
    "avx512_vbmi": [("icelake-client", ("avx512vnni", "avx512vbmi", "avx512vbmi2"))],
    "avx_vnni": [("cascadelake", ("avx512vnni", "avx512vl")), ("alderlake", ("avxvnni",))],
    "avx2": [("haswell", ("avx2", "fma", "bmi2"))],
    "sse2": [("x86-64", ("sse2",))],
    "neon_dot": [("cortex-a76", ("dotprod",))],
    "neon_i8mm": [("neoverse-v1", ("dotprod", "i8mm"))],
}


def host_has(*features: str) -> bool:
    """Return whether this CPU has LLVM's features."""
    return all(tvm.target.codegen.llvm_cpu_has_features(f, HOST) for f in features)


def cpu_for(name: str) -> str:
    """Return the CPU to compile a unit for so that it runs here; skip where there is none."""
    if name == "portable":
        return "x86-64" if X86 else "generic"
    if X86 != name.startswith(("avx", "sse")):
        pytest.skip(f"{name} is of another processor family than {platform.machine()}")
    for cpu, features in CPUS[name]:
        if host_has(*features):
            return cpu
    pytest.skip(f"this CPU lacks what {name} needs")


def target_of(name: str) -> CpuTarget:
    """Return a target of the emitter whose kernels use a unit and run here."""
    isa = {"avx512_vbmi": "avx512_vnni", "neon_dot": "arm_dotprod", "neon_i8mm": "arm_dotprod"}
    named = cpu_target(cpu_for(name))
    return replace(
        named, triple=host_triple(), isa=isa.get(name, name), vbmi=name == "avx512_vbmi"
    )


@dataclass(frozen=True)
class Call:
    """A kernel, its arrays, and for some of them the element that it gets a pointer to."""

    kernel: Any
    arrays: Sequence[Array]
    places: Mapping[int, int] = field(default_factory=dict)


def module(calls: Sequence[Call]) -> Any:
    """Return a module with `call0`, `call1`, ..., which call the kernels, each once in it."""
    found: dict[Any, Any] = {}
    owners: dict[int, Any] = {}
    for index, call in enumerate(calls):
        own = owners.setdefault(id(call.kernel), tvm.ir.GlobalVar(f"kernel{index}"))
        with IRBuilder() as builder, T.prim_func(s_tir=False):
            T.func_name(f"call{index}")
            T.func_attr({"global_symbol": f"call{index}"})
            buffers = [
                T.arg(f"a{i}", T.buffer((a.size,), str(a.dtype), layout=None))
                for i, a in enumerate(call.arrays)
            ]
            pointers = [T.address_of(b[call.places.get(i, 0)]) for i, b in enumerate(buffers)]
            T.evaluate(T.Call(own, pointers, ret_ty="int32"))
        found[own] = call.kernel
        found[tvm.ir.GlobalVar(f"call{index}")] = builder.get()
    return tvm.IRModule(found)


def compiled(mod: Any, **target: str) -> Any:
    """Return the library of a module for a CPU of LLVM's."""
    with tvm.transform.PassContext(opt_level=3, config=CONFIG):
        return tvm.compile(mod, tvm.target.Target({"kind": "llvm", **target}))


def run(calls: Sequence[Call], cpu: str) -> list[list[Array]]:
    """Return the arrays after every call."""
    library, results = compiled(module(calls), mcpu=cpu), []
    for index, call in enumerate(calls):
        held = [tvm.runtime.tensor(a) for a in call.arrays]
        library[f"call{index}"](*held)
        results.append([t.numpy() for t in held])
    return results
