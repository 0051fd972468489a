"""The protocol that every runtime keeps."""

from collections import Counter
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Codes = NDArray[np.uint8]
# Images (N, C, H, W): float32, or uint8 where the model takes raw pixels.
Inputs = NDArray[Any]


class Runtime(Protocol):
    """A loaded model."""

    name: str

    def run(self, x: Inputs) -> Floats:
        """Return the float output (N, classes) for input `x` (N, C, H, W)."""

    def intermediates(self, x: Inputs) -> dict[str, Codes]:
        """Return every integer tensor by name, each (N, ...)."""

    def float_ops(self) -> Counter[str]:
        """Count operators that compute in floating point between input Q and output DQ."""
