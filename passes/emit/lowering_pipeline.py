"""How TVM lowers a module of `tvm_module`: only what a single call of a TIR function needs.

TVM's default pipeline would make a packed function of every kernel, although only other TIR
functions call them, and its storage rewrite would move what kernels keep in registers to the
heap.
"""

from typing import Any

import tvm
from tvm import relax

CONFIG = {"tirx.disable_storage_rewrite": True}


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


def compile_module(module: Any, target: Any) -> Any:
    """Return the executable of `module`."""
    with tvm.transform.PassContext(opt_level=3, config=CONFIG):
        return tvm.compile(module, target, relax_pipeline=lower_relax)
