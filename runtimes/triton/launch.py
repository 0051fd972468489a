"""A kernel with its arguments, ready to run any number of times."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

# A product and a sum in one rounding would be another number than the reference's.
EXACT: Mapping[str, Any] = {"enable_fp_fusion": False}


@dataclass(frozen=True)
class Launch:
    """One call of a kernel.

    Args:
        name: of the layer or tensor that it computes.
        kernel: of `runtimes.triton.kernels`.
        grid: programs along up to three axes.
        args: tensors and numbers, in the kernel's order.
        constants: what the kernel is compiled for.
        options: of the compiler, over `EXACT`.
    """

    name: str
    kernel: Any
    grid: tuple[int, ...]
    args: tuple[Any, ...]
    constants: Mapping[str, Any]
    options: Mapping[str, Any] = field(default_factory=dict)

    def __call__(self) -> None:
        """Start it; on a GPU it need not have ended when this returns."""
        self.kernel[self.grid](*self.args, **self.constants, **self.options, **EXACT)
