"""Random inputs for models that name no data set: enough for parity, cost and latency."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

COUNT = 100
_BEYOND = np.float32(3)


@dataclass(frozen=True)
class RandomInputs:
    """`values` (N, C, H, W) as the model takes them."""

    name: str
    values: NDArray[Any]

    def __len__(self) -> int:
        return len(self.values)

    @property
    def shape(self) -> tuple[int, ...]:
        """(C, H, W) of one input."""
        return self.values.shape[1:]


def random_inputs(facts: Mapping[str, Any]) -> RandomInputs:
    """Return `COUNT` inputs, uniform over what the model's first grid covers; always the same.

    Every second one goes beyond it too, where codes saturate.

    Args:
        facts: result of `passes.emit.facts.describe`.
    """
    low, high = facts.get("input_range") or (0.0, 1.0)
    rng, shape = np.random.default_rng(0), (COUNT, *facts["input_shape"])
    if facts["input_kind"] == "uint8":
        return RandomInputs(
            "none: random pixels", rng.integers(0, 256, shape).astype(np.uint8)
        )
    values = rng.uniform(low, high, shape).astype(np.float32)
    values[1::2] *= _BEYOND
    return RandomInputs(f"none: random inputs from {low:.4g} to {high:.4g}", values)
