"""How TVM lowers a module for a GPU: calls of kernels, with planned memory."""

from typing import Any

import tvm
import tvm_ffi
from tvm import relax
from tvm.ir import Call

from qtool.core.sealed import function_names

_STORAGE = "relax.memory.alloc_storage"


def compile_module(module: Any, target: Any) -> tuple[Any, int]:
    """Return TVM's executable, and the bytes of activations that it plans.

    Args:
        module: of `passes.emit.tvm.cuda.module`.
        target: TVM's.
    """
    planned: list[int] = []

    def lower(found: Any) -> Any:
        lowered, size = _lower_relax(found)
        planned.append(size)
        return lowered

    with tvm.transform.PassContext(opt_level=3):
        return tvm.compile(module, target, relax_pipeline=lower), planned[0]


def _lower_relax(module: Any) -> tuple[Any, int]:
    """Return `module` ready for code generation, and the bytes of ``main``'s activations.

    Tensors that are not alive at one time share memory (`StaticPlanBlockMemory`).
    """
    planned = tvm.transform.Sequential(
        [
            relax.transform.ToNonDataflow(),
            relax.transform.RemovePurityChecking(),
            relax.transform.CallTIRRewrite(),
            relax.transform.StaticPlanBlockMemory(),
        ]
    )(module)
    lowered = tvm.transform.Sequential(
        [
            relax.transform.LowerAllocTensor(),
            relax.transform.KillAfterLastUse(),
            relax.transform.LowerRuntimeBuiltin(),
            relax.transform.ComputePrimValue(),
            relax.transform.VMShapeLower(),
        ]
    )(planned)
    return lowered, _storage(planned[function_names()[0]])


def _storage(function: Any) -> int:
    """Return the bytes that a function allocates."""
    sizes: list[int] = []

    def call(node: Any) -> None:
        if getattr(node.op, "name", None) == _STORAGE:
            sizes.append(int(node.args[0].values[0]))

    tvm_ffi.structural_walk(function, (Call, call))
    return sum(sizes)
