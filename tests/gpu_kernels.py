"""Kernels for a GPU, run on this CPU with loops for threads."""

from typing import Any

import numpy as np
import tvm
from tvm import relax

from passes.emit.tvm.cpu_target import host_target
from passes.emit.tvm.cuda.module import emit_cuda
from passes.emit.tvm.cuda.serial import compile_serially
from qtool.core.dialect import Program
from runtimes.compare import Parity
from runtimes.reference import ReferenceRuntime
from runtimes.tvm import _array, _codes

# What multiplies: tensor cores, or not.
PRODUCTS = {"mma": True, "dp4a": False}


def differing(program: Program, x: Any, mma: bool) -> tuple[str, dict[str, Any]]:
    """Return what differs from the reference in words, "" if nothing does; and the facts."""
    module = emit_cuda(program, len(x), mma)
    machine = relax.VirtualMachine(compile_serially(module.ir, host_target()), tvm.cpu())
    image, reference = tvm.runtime.tensor(x), ReferenceRuntime(program)
    memory = _array(machine["trace"](image))
    got = {n: _codes(memory, **place) for n, place in module.facts["trace"].items()}
    fused, parity = module.facts["fused_tensors"], Parity()
    parity.add_all(reference.intermediates(x), got, fused)
    if parity.mismatched:
        first = parity.first_divergence or {}
        op = next(op for op in program.ops if op.output == first["tensor"])
        said = f"{parity.mismatched} of {parity.compared} differ, first {first}: {op}"
        return said, module.facts
    if len(got) + len(fused) != len(program.tensors()):
        return "tensors are missing", module.facts
    same = np.array_equal(machine["main"](image).numpy(), reference.run(x))
    return "" if same else "other logits than its own trace", module.facts
