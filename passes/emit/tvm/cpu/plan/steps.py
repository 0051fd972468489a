"""A step of the plan: one call of one kernel on named tensors."""

from dataclasses import dataclass, field
from typing import Any, Protocol

from numpy.typing import NDArray

INPUT = "<input>"
OUTPUT = "<output>"


class Kernel(Protocol):
    """A kernel's specification; equal specifications are one function."""

    def name(self) -> str:
        """Return a readable part of the function's name."""

    def build(self, name: str) -> Any:
        """Return the function."""


@dataclass(frozen=True)
class Operand:
    """Where a kernel's pointer points: `offset` bytes into a tensor, or `INPUT`, `OUTPUT`."""

    tensor: str
    offset: int = 0


@dataclass(frozen=True)
class Step:
    """A call of a kernel.

    Args:
        kernel: what to call.
        inputs: activations, in the order of its arguments.
        output: the result.
        constants: weights and numbers, in the order of its arguments.
        layer: name of the operator that it computes, for reports.
        macs: of the layer; 0 for others.
    """

    kernel: Kernel
    inputs: tuple[Operand, ...]
    output: Operand
    constants: tuple[NDArray[Any], ...] = field(default=())
    layer: str = ""
    macs: int = 0
