"""``--mcpu NAME`` -> the CPU to compile for: triple, integer instructions, needed features.

Names and features are LLVM's (``llc -mcpu=help``). A name is looked up before LLVM sees it:
of an unknown CPU it only prints a warning, and compiles for the oldest one.

1. native, or no name: this machine's CPU, without what the machine masks (virtual machines do)
2. a CPU of this machine's architecture
3. a CPU of the other one of x86-64 and AArch64, on Linux
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import tvm
from tvm.target import codegen

from qtool.core.cpu_features import GENERATED
from qtool.core.errors import UserError, unknown_name

ARCHITECTURES = tuple(GENERATED)


@dataclass(frozen=True)
class CpuTarget:
    """A CPU to compile for.

    Args:
        triple: LLVM's, such as "x86_64-linux-gnu".
        mcpu: LLVM's name of the CPU.
        isa: integer instructions of the kernels: "avx512_vnni", "avx_vnni", "avx2",
            "arm_dotprod" or "generic".
        vbmi: whether bytes can be permuted across 512 bits.
        features: what a machine must have to run the code, LLVM's names.
        masked: features of `mcpu` that code must not use.
    """

    triple: str
    mcpu: str
    isa: str
    vbmi: bool
    features: tuple[str, ...]
    masked: tuple[str, ...] = ()

    @property
    def architecture(self) -> str:
        """The triple's first part."""
        return self.triple.partition("-")[0]

    def llvm(self) -> dict[str, Any]:
        """Return the options of TVM's target."""
        without = {"mattr": [f"-{name}" for name in self.masked]} if self.masked else {}
        return {"kind": "llvm", "mtriple": self.triple, "mcpu": self.mcpu, **without}

    def to_json(self) -> dict[str, Any]:
        """Return what a seal holds of the CPU."""
        return {
            "triple": self.triple, "mcpu": self.mcpu, "isa": self.isa,
            "features": list(self.features),
        }  # fmt: skip


def host_target() -> CpuTarget:
    """Return this machine's CPU.

    Raises:
        UserError: an architecture that qtool does not compile for.
    """
    triple, mcpu = host_triple(), str(codegen.llvm_get_system_cpu())
    machine = tvm.get_global_func("tvm.codegen.llvm.GetHostCPUFeatures")()
    return _target(triple, mcpu, {str(name): bool(has) for name, has in machine.items()})


def cpu_target(mcpu: str | None) -> CpuTarget:
    """Return the CPU that `mcpu` names; None or "native" is this machine's.

    Raises:
        UserError: no such CPU, or one without 64 bits; names the nearest.
    """
    if mcpu is None or mcpu == "native":
        return host_target()
    triples = _triples()
    for triple in triples:
        if mcpu in _known(triple):
            return _target(triple, mcpu, {})
    names = {name for triple in triples for name in _known(triple)}
    error = unknown_name("CPU", mcpu, names)
    text = str(error)
    if "did you mean" not in text:  # the list of all is long
        text = text.partition(": known")[0] + ": expected a name of LLVM, such as znver4, "
        text += "icelake-server, haswell, x86-64 or cortex-a76"
    raise UserError(f"--mcpu: {text}; native is this machine's")


def host_triple() -> str:
    """Return LLVM's triple of this machine."""
    return str(codegen.llvm_get_system_triple())


def _triples() -> list[str]:
    """Return what can be compiled for, this machine first."""
    host = host_triple()
    others = [a for a in ARCHITECTURES if not host.startswith(a)]
    return [host, *(f"{architecture}-linux-gnu" for architecture in others)]


@cache
def _known(triple: str) -> frozenset[str]:
    target = tvm.target.Target({"kind": "llvm", "mtriple": triple})
    return frozenset(str(name) for name in codegen.llvm_get_cpu_archlist(target))


def _target(triple: str, mcpu: str, machine: Mapping[str, bool]) -> CpuTarget:
    """Return the target; `machine` says of features whether the machine has them."""
    architecture = triple.partition("-")[0]
    if architecture not in ARCHITECTURES:
        raise UserError(
            f"CPU {mcpu} is {architecture}; TVM modules are made for "
            f"{' and '.join(ARCHITECTURES)}; choose one with --mcpu"
        )
    named = codegen.llvm_get_cpu_features(
        tvm.target.Target({"kind": "llvm", "mtriple": triple, "mcpu": mcpu})
    )
    every = {str(name) for name in named}
    if architecture == "x86_64" and "64bit" not in every:
        raise UserError(f"--mcpu: {mcpu} has no 64-bit mode; the oldest with one is x86-64")
    masked = tuple(name for name in sorted(every) if machine.get(name) is False)
    # The same rule for all: a set of names, in the order of the table.
    features = tuple(
        name for name in GENERATED[architecture] if name in every and name not in masked
    )
    isa, vbmi = choose_isa(architecture, set(features))
    return CpuTarget(
        triple, mcpu, isa, vbmi, features,
        tuple(name for name in masked if name in GENERATED[architecture]),
    )  # fmt: skip


def choose_isa(architecture: str, features: set[str]) -> tuple[str, bool]:
    """Return the best integer instructions of a CPU, and whether it permutes 64 bytes."""
    if architecture == "aarch64":
        return ("arm_dotprod" if "dotprod" in features else "generic"), False
    if features >= {"avx512vnni", "avx512bw", "avx512vl"}:
        return "avx512_vnni", "avx512vbmi" in features
    for flag, isa in (("avxvnni", "avx_vnni"), ("avx2", "avx2")):
        if flag in features:
            return isa, False
    return "generic", False
