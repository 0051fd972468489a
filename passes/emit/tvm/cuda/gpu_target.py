"""``--arch sm_80`` -> the GPU to compile for, and the CPU that calls its kernels."""

from dataclasses import dataclass
from typing import Any

from passes.emit.tvm.cpu_target import CpuTarget, cpu_target, host_triple
from passes.emit.tvm.cuda.nvrtc import architectures
from qtool.core.errors import UserError

# Since then tensor cores multiply uint8 by int8 in tiles of 16 x 8 x 32 (PTX ISA, mma).
_FIRST_MMA = 80
# LLVM's of any NVIDIA GPU.
_TRIPLE = "nvptx64-nvidia-cuda"
# Oldest CPU by architecture: a GPU module should not ask for more of the machine around it.
_HOSTS = {"x86_64": "x86-64", "aarch64": "generic"}


@dataclass(frozen=True)
class GpuTarget:
    """A GPU to compile for.

    Args:
        arch: NVIDIA's name of its instructions, such as "sm_80".
        host: the CPU beside it.
    """

    arch: str
    host: CpuTarget

    @property
    def mma(self) -> bool:
        """Whether its tensor cores multiply uint8 by int8."""
        return int(self.arch.removeprefix("sm_")) >= _FIRST_MMA

    def tvm(self) -> dict[str, Any]:
        """Return the options of TVM's target, without the host."""
        return {"kind": "cuda", "arch": self.arch}

    def to_json(self) -> dict[str, Any]:
        """Return what a seal holds of the GPU: the fields of a `CpuTarget`."""
        isa = "mma" if self.mma else "dp4a"
        return {"triple": _TRIPLE, "mcpu": self.arch, "isa": isa, "features": []}


def gpu_target(arch: str | None) -> GpuTarget:
    """Return the GPU that `arch` names.

    Raises:
        UserError: none is named, one that NVRTC does not compile for, or no NVRTC.
    """
    known = architectures()
    if arch not in known:
        got = "none" if arch is None else repr(arch)
        raise UserError(f"--device cuda needs --arch, one of {', '.join(known)}; got {got}")
    triple = host_triple()
    return GpuTarget(arch, cpu_target(_HOSTS.get(triple.partition("-")[0])))
