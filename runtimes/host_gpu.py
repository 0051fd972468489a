"""May code that was compiled for some NVIDIA GPU run here? Asked before it is loaded.

Machine code runs on GPUs of its own generation (``sm_80``: compute capability 8.x) that are at
least as new. Source: CUDA C++ Programming Guide, "Binary Compatibility".
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tvm

from qtool.core.errors import UserError


def refuse_foreign_gpu(path: Path, device: Mapping[str, Any]) -> None:
    """Raise `UserError` unless this machine's first GPU can run code compiled for `device`.

    Args:
        path: the module, for the message.
        device: "mcpu" of its seal, such as "sm_80".
    """
    arch = str(device.get("mcpu"))
    number = arch.removeprefix("sm_")
    if not (arch.startswith("sm_") and number.isdigit()):
        raise UserError(
            f"model {path}: its seal does not say what GPU it is for; export again"
        )
    gpu = tvm.cuda()
    if not gpu.exist:
        raise UserError(
            f"model {path}: compiled for an NVIDIA GPU ({arch}), and TVM finds none here, "
            "or no driver or libcudart.so.13; export it for this CPU with qtool export "
            "--target tvm"
        )
    major, minor = (int(part) for part in str(gpu.compute_version).split("."))
    if (int(number) // 10, int(number) % 10) > (major, minor) or int(number) // 10 != major:
        raise UserError(
            f"model {path}: compiled for {arch}, and this machine's GPU is sm_{major}{minor}; "
            f"export it with --device cuda --arch sm_{major}{minor}"
        )
