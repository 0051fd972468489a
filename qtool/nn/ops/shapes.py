"""Per-channel values in the shape of what they are applied to."""

from torch import Tensor


def shaped_like(values: Tensor, y: Tensor) -> Tensor:
    """Return (C,) as (1, C, 1, ...), of `y`'s rank."""
    return values.reshape(1, -1, *[1] * (y.ndim - 2))
