"""Where kernels run: on a CUDA GPU, or on this CPU where the user asks for that.

Triton decides when a kernel is *defined* whether it will be compiled or interpreted, by
``TRITON_INTERPRET`` in the environment. So it is the user who says it, before anything is
imported, and by the name that Triton's own users know.
"""

from dataclasses import dataclass
from importlib import metadata
from typing import Any

from qtool.core.errors import UserError

INTERPRET = "TRITON_INTERPRET"
INSTALL = "pip install 'qtool[gpu]'"


@dataclass(frozen=True)
class Device:
    """What executes kernels.

    Args:
        torch: its name in PyTorch.
        processors: multiprocessors, which should all have work.
        text: for people.
        interpreted: by Triton's interpreter, on a CPU.
    """

    torch: Any
    processors: int
    text: str
    interpreted: bool = False

    @property
    def block(self) -> int:
        """Elements of a program without a matrix product: the interpreter likes it large."""
        return 16384 if self.interpreted else 1024


def require_triton() -> None:
    """Raise `UserError` unless kernels can run here.

    1. PyTorch and Triton are installed; nothing is imported to see that
    2. PyTorch finds a GPU, or the environment asks for the interpreter
    """
    for package in ("torch", "triton"):
        try:
            metadata.version(package)
        except metadata.PackageNotFoundError:
            raise UserError(
                f"runtime triton needs {package}, not installed: {INSTALL}"
            ) from None
    if not _interpreting() and not _has_gpu():
        raise UserError(
            "runtime triton needs a CUDA GPU, and PyTorch finds none: "
            f"{INTERPRET}=1 in the environment runs its kernels on this CPU, slowly"
        )


def open_device() -> Device:
    """Return the device of this process.

    Raises:
        UserError: as `require_triton` has it.
    """
    require_triton()
    import torch

    triton = f"Triton {metadata.version('triton')}"
    if _interpreting():
        return Device(
            torch.device("cpu"), 1, f"this CPU, by the interpreter of {triton}", True
        )
    index = torch.cuda.current_device()
    found = torch.cuda.get_device_properties(index)
    text = f"{found.name}, sm_{found.major}{found.minor}, {triton}"
    device = torch.device("cuda", index)
    return Device(device, found.multi_processor_count, text)


def _interpreting() -> bool:
    from triton import knobs

    return bool(knobs.runtime.interpret)


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()
