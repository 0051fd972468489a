"""Kernels for a GPU, run on this CPU with loops for threads."""

from typing import Any

import pytest
import tvm
from tvm import relax

from passes.emit.tvm.cpu_target import host_target
from passes.emit.tvm.cuda import nvrtc
from passes.emit.tvm.cuda.module import emit_cuda
from passes.emit.tvm.cuda.serial import compile_serially
from qtool.core.dialect import Program
from qtool.core.errors import UserError
from runtimes.tvm import as_array, codes_at

# What multiplies: whether on tensor cores.
PRODUCTS = {"mma": True, "dp4a": False}


def needs_nvrtc() -> None:
    """Skip where NVRTC is not installed."""
    try:
        nvrtc.require_nvrtc()
    except UserError as error:
        pytest.skip(str(error))


class SerialRuntime:
    """A program in its GPU kernels, which this CPU runs thread by thread.

    Args:
        program: the dialect.
        batch: images per call.
        products: a key of `PRODUCTS`.
    """

    def __init__(self, program: Program, batch: int, products: str) -> None:
        module = emit_cuda(program, batch, PRODUCTS[products])
        self.facts = module.facts
        self._machine = relax.VirtualMachine(
            compile_serially(module.ir, host_target()), tvm.cpu()
        )

    def run(self, x: Any) -> Any:
        return self._machine["main"](tvm.runtime.tensor(x)).numpy()

    def intermediates(self, x: Any) -> dict[str, Any]:
        memory = as_array(self._machine["trace"](tvm.runtime.tensor(x)))
        return {n: codes_at(memory, **place) for n, place in self.facts["trace"].items()}
