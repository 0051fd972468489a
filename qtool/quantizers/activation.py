"""What activation quantizers differ in: all of them are `uniform`, on a step of their own.

The window {-Qn, ..., Qp} is given by bits and sign. Its step is learned itself, or as alpha,
the end of the range: ``step = alpha / max(Qn, Qp)``. Unsigned tensors are clipped to
[0, alpha], signed ones to [-alpha, alpha - step] (two's complement has one code less above).
"""

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

from torch import Tensor

from qtool.core.grids import MIN_STEP
from qtool.quantizers.grid import Rule


class UniformArgs(NamedTuple):
    """What `uniform` takes after x, in its order."""

    step: Tensor
    qn: int
    qp: int
    rule: Rule
    factor: float
    offset: Tensor | None


@dataclass(frozen=True)
class ActivationQuantizer:
    """One way to learn the step of an activation.

    Args:
        parameter: name of what is learned: "step", or "alpha".
        rule: gradient of the step, see `qtool.quantizers.uniform`.
        scaled: gradients are multiplied by LSQ's g = 1 / sqrt(N * Qp).
        fixed_alpha: nothing is learned; this is alpha, and the parameter is a constant step.
        has_offset: signed tensors have a learned offset too (`qtool.quantizers.lsq_plus`).
    """

    parameter: Literal["step", "alpha"]
    rule: Rule
    scaled: bool = False
    fixed_alpha: float | None = None
    has_offset: bool = False

    def steps_per_parameter(self, qn: int, qp: int) -> int:
        """Return how many steps the parameter is worth."""
        return max(qn, qp) if self.parameter == "alpha" else 1

    def fixed_step(self, qn: int, qp: int) -> float:
        """Return the step that is not learned."""
        return (self.fixed_alpha or 1.0) / max(qn, qp)

    def step(self, value: Tensor, qn: int, qp: int) -> Tensor:
        """Return the positive step for the parameter's `value`, of its shape."""
        unit = self.steps_per_parameter(qn, qp)
        positive = value.abs() if unit == 1 else value.abs() / unit
        return positive.clamp_min(MIN_STEP)

    def arguments(
        self, value: Tensor, offset: Tensor | None, qn: int, qp: int, count: int
    ) -> UniformArgs:
        """Return what `uniform` needs for `count` activations.

        Args:
            value: the parameter, a scalar.
            offset: scalar, None where there is none.
            qn: number of negative codes.
            qp: number of positive codes.
            count: elements that share the step.
        """
        if offset is not None:
            # The two gradients of the step (see below) nearly cancel: not in float32.
            value, offset = value.double(), offset.double()
        step = self.step(value, qn, qp)
        factor = 1 / math.sqrt(count * max(qp, 1)) if self.scaled else 1.0
        if offset is not None:
            # z = round(-o / s) depends on s too: dz/ds = o / s^2, straight through.
            offset = offset - (offset / step).detach() * step
        return UniformArgs(step, qn, qp, self.rule, factor, offset)
