"""May code that was compiled for some CPU run on this one? Asked before it is loaded.

An instruction that a machine lacks kills the process (SIGILL): no error could be shown then.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tvm
from tvm.target import codegen

from qtool.core.errors import UserError

_SHOWN = 4  # missing features in a message


def machine_features() -> tuple[str, set[str]]:
    """Return this machine's architecture and features, by LLVM's names.

    What LLVM reads from the processor itself; what it does not read there (on Arm most) is
    concluded from the processor's name.
    """
    target = tvm.target.Target({"kind": "llvm", "mcpu": codegen.llvm_get_system_cpu()})
    named = {str(name) for name in codegen.llvm_get_cpu_features(target)}
    read = tvm.get_global_func("tvm.codegen.llvm.GetHostCPUFeatures")()
    present = {str(name) for name, has in read.items() if has}
    absent = {str(name) for name, has in read.items() if not has}
    architecture = str(codegen.llvm_get_system_triple()).partition("-")[0]
    return architecture, (named - absent) | present


def refuse_foreign_cpu(path: Path, cpu: Mapping[str, Any]) -> None:
    """Raise `UserError` if this machine cannot run code that was compiled for `cpu`.

    Args:
        path: the module, for the message.
        cpu: "triple", "mcpu" and "features" of its seal.
    """
    triple, mcpu, needed = cpu.get("triple"), cpu.get("mcpu"), cpu.get("features")
    if not (isinstance(triple, str) and isinstance(needed, list)):
        raise UserError(
            f"model {path}: its seal does not say what CPU it is for; export again"
        )
    architecture, features = machine_features()
    wanted = triple.partition("-")[0]
    missing = [str(name) for name in needed if name not in features]
    if wanted != architecture:
        reason = f"({wanted}), and this machine is {architecture}"
    elif missing:
        more = f" and {len(missing) - _SHOWN} more" if len(missing) > _SHOWN else ""
        reason = f"and needs {', '.join(missing[:_SHOWN])}{more}, which this machine lacks"
    else:
        return
    raise UserError(
        f"model {path}: compiled for {mcpu} {reason}; export it for this machine with "
        "qtool export --target tvm --mcpu native"
    )
