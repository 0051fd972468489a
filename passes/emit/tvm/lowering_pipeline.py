"""How TVM lowers a module of `tvm_module`: only what a single call of a TIR function needs.

TVM's default pipeline would make a packed function of every kernel, although only other TIR
functions call them, and its storage rewrite would move what kernels keep in registers to the
heap.
"""

from typing import Any

import tvm
from tvm import relax

CONFIG = {"tirx.disable_storage_rewrite": True}
# TVM tells LLVM that buffers of different names never overlap. Inlined into their caller, one
# kernel's result and the next one's input have different names and are the same memory; LLVM
# then moved stores of the one past loads of the other.
NO_ALIASING_BY_NAME = "-enable-tbaa:bool=false"


def lower_relax(module: Any) -> Any:
    """Return `module` ready for code generation."""
    passes = [
        relax.transform.ToNonDataflow(),
        relax.transform.RemovePurityChecking(),
        relax.transform.CallTIRRewrite(),
        relax.transform.LowerAllocTensor(),
        relax.transform.KillAfterLastUse(),
        relax.transform.LowerRuntimeBuiltin(),
        relax.transform.ComputePrimValue(),
        relax.transform.VMShapeLower(),
    ]
    return tvm.transform.Sequential(passes)(module)


def compile_module(module: Any, target: dict[str, Any]) -> Any:
    """Return the executable of `module`.

    Args:
        module: of `tvm_module`.
        target: options of an LLVM target.
    """
    options = {**target, "cl-opt": [NO_ALIASING_BY_NAME]}
    with tvm.transform.PassContext(opt_level=3, config=CONFIG):
        return tvm.compile(module, tvm.target.Target(options), relax_pipeline=lower_relax)
