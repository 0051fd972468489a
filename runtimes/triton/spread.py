"""Launches of elementwise kernels: over as few axes as the operands' layouts allow."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from runtimes.triton.plan import Plan
from runtimes.triton.tiles import count

# What kernels call the strides of their operands, by how many there are.
_NAMES = {2: ("X", "Y"), 3: ("A", "B", "Y")}
Axis = tuple[int, tuple[int, ...]]


def spread(
    plan: Plan, name: str, kernel: Any, operands: Sequence[Tensor], *numbers: Any
) -> None:
    """Add a launch of `kernel` for every element of its last operand, the result.

    Args:
        plan: that gets it.
        name: of the layer.
        kernel: of `kernels.elementwise`.
        operands: what it reads, then its result; they broadcast to the result's shape.
        numbers: further arguments.
    """
    *read, result = operands
    read = [x.expand(result.shape) for x in read]
    sizes, strides = collapse([*read, result])
    total, block = result.numel(), plan.device.block
    constants = {"SIZES": sizes, "BLOCK": block}
    constants |= dict(zip(_NAMES[len(operands)], strides, strict=True))
    args = (*read, result, total, *numbers)
    plan.launch(name, kernel, (count(total, block),), args, constants)


def collapse(operands: Sequence[Tensor]) -> tuple[tuple[int, ...], list[tuple[int, ...]]]:
    """Return the sizes of all axes but the outermost, and each operand's strides.

    Axes are ordered as the last operand has them in memory, innermost first; those of one
    element are left out, and two become one where every operand steps through both evenly.
    """
    shape = operands[-1].shape
    axes: list[Axis] = []
    for k in sorted(range(len(shape)), key=lambda k: (operands[-1].stride(k), -k)):
        steps = tuple(x.stride(k) for x in operands)
        if shape[k] == 1:
            continue
        if axes and all(s == n * axes[-1][0] for s, n in zip(steps, axes[-1][1], strict=True)):
            axes[-1] = (axes[-1][0] * shape[k], axes[-1][1])
        else:
            axes.append((shape[k], steps))
    axes = axes or [(1, (0,) * len(operands))]
    strides = [tuple(steps[i] for _, steps in axes) for i in range(len(operands))]
    return tuple(size for size, _ in axes[:-1]), strides
