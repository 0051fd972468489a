"""Grids: integer code windows with a scale; value = (code - zero_point) * scale.

Activations live in uint8 containers, weights in int8 containers; the b-bit meaning is a
window inside the container (``design``: unsigned windows start at 0, signed ones are centred
on 128, weights are symmetric and narrow).
"""

from dataclasses import dataclass

ACTIVATION_BITS = range(1, 9)
# Smaller steps count as this one, in training and in the passes alike.
MIN_STEP = 1e-7
WEIGHT_BITS = range(1, 9)
# Weights that stay floating point, in a float island: float16 and float32 as they are stored.
FLOAT_WIDTHS = (16, 32)
HALF = 16


@dataclass(frozen=True)
class Window:
    """Codes `lo`..`hi` (inclusive) of a uint8 container, value 0 at `zero_point`."""

    zero_point: int
    lo: int
    hi: int

    @property
    def full(self) -> bool:
        """True when the container's own saturation already is the window."""
        return self.lo == 0 and self.hi == 255


FULL = Window(0, 0, 255)


def activation_window(bits: int, signed: bool, zero_point: int | None = None) -> Window:
    """Return the uint8 window of a `bits`-bit activation.

    Unsigned: [0, 2^b - 1] around 0. Signed: [-2^(b-1), 2^(b-1) - 1] around 128. A
    `zero_point` of its own, another than those two, makes it asymmetric: [0, 2^b - 1] around
    that code.
    """
    if zero_point is not None and zero_point != (128 if signed else 0):
        return Window(zero_point, 0, (1 << bits) - 1)
    if signed:
        half = 1 << (bits - 1)
        return Window(128, 128 - half, 128 + half - 1)
    return Window(0, 0, (1 << bits) - 1)


def weight_limit(bits: int) -> int:
    """Return Q of the symmetric, narrow weight range [-Q, Q], Q = 2^(b-1) - 1.

    Narrow, so that a negative BatchNorm gamma can flip a channel's codes without overflow. One
    bit holds the codes -1 and 1.
    """
    return max((1 << (bits - 1)) - 1, 1)
