"""The grid of a uniform quantizer, without its step."""

import math
from dataclasses import dataclass
from typing import Literal

# What the gradient of a step is (`qtool.quantizers.uniform`), as the native kernels number it.
Rule = Literal["none", "clip", "lsq", "offset"]
RULES: tuple[Rule, ...] = ("none", "clip", "lsq", "offset")


@dataclass(frozen=True)
class Grid:
    """Codes ``{-below, ..., above}``, after an activation function where there is one.

    Args:
        below: Qn, number of negative codes.
        above: Qp, number of positive codes.
        relu: the input is clipped to [0, `ceiling`] before it is quantized: ReLU and ReLU6
            then need no pass over memory of their own.
        ceiling: see `relu`.
    """

    below: int
    above: int
    relu: bool = False
    ceiling: float = math.inf

    @property
    def arguments(self) -> tuple[int, int, float, int]:
        """The grid as the native kernels take it."""
        return self.below, self.above, self.ceiling, int(self.relu)
