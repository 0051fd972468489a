"""What weight quantizers have in common, and what the export asks them."""

from dataclasses import dataclass
from typing import ClassVar, Protocol

from torch import Tensor


@dataclass(frozen=True)
class WeightOptions:
    """Choices that every weight quantizer is made with.

    Args:
        per_channel: one scale for each output channel, else one for the tensor.
        rescale: no BatchNorm follows that would undo the weights' scale (SAT).
    """

    per_channel: bool = True
    rescale: bool = False


class WeightQuantizer(Protocol):
    """Weights (C, ...) -> integer codes times a scale.

    `scheme`: how `passes.adaptive.freeze_weights` makes the codes from `source`; `learned`:
    there is a step parameter, (C,) or (1,), else `step` is None everywhere; `widest`: most
    bits whose codes int8 holds; `per_channel`: as published; `stored`: codes *nest*, those of
    fewer bits are a function of the codes of so many bits (0: they do not). The step of
    nesting codes, where it is learned, is that of the stored ones: all candidates share it.
    """

    scheme: ClassVar[str]
    learned: ClassVar[bool]
    widest: ClassVar[int]
    per_channel: ClassVar[bool]
    stored: ClassVar[int]

    def __init__(self, options: WeightOptions) -> None: ...

    def quantize(self, w: Tensor, bits: int, step: Tensor | None) -> Tensor:
        """Return codes * scale, like `w`."""

    def scale(self, w: Tensor, bits: int, step: Tensor | None) -> Tensor:
        """Return the positive scale, (C,) or (1,)."""

    def source(self, w: Tensor, step: Tensor | None) -> Tensor:
        """Return what is rounded, like `w`; it is the same at all bits."""


def per_row(values: Tensor, w: Tensor) -> Tensor:
    """Return (C,) or (1,) shaped to broadcast over `w` (C, ...)."""
    return values.reshape(-1, *[1] * (w.ndim - 1))


def rows(w: Tensor, per_channel: bool) -> Tensor:
    """Return `w` as (C, values), or as (1, values)."""
    return w.reshape(w.shape[0] if per_channel else 1, -1)
