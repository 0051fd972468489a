"""What a runtime answers: outputs of all images, integer tensors of the first ones."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from qtool.checking.models import Model
from qtool.core.progress import Progress
from qtool.data.images import DataSet, to_float
from qtool.data.random_inputs import RandomInputs
from runtimes.base import Floats, Inputs, Runtime

TRACED_IMAGES = 32
ISLAND_IMAGES = 8  # numpy convolves slowly
_BATCH = 100


@dataclass
class Checked:
    """Float outputs of the whole test set, and integer tensors of the first images."""

    outputs: dict[str, Floats] = field(default_factory=dict)
    tensors: dict[str, dict[str, Any]] = field(default_factory=dict)

    def add(
        self, name: str, runtime: Runtime, model: Model, data: DataSet | RandomInputs,
        progress: Progress,
    ) -> None:  # fmt: skip
        """Run `runtime` on all images, and once more on the first ones for every tensor."""
        progress.start(name, len(range(0, len(data), _BATCH)))
        self.outputs[name] = outputs_of(model, runtime, data, progress)
        progress.note(f"reading every integer tensor of {TRACED_IMAGES} images from {name}")
        self.tensors[name] = runtime.intermediates(fed(model, data, slice(TRACED_IMAGES)))


def fed(model: Model, data: DataSet | RandomInputs, part: slice) -> Inputs:
    """Return inputs (N, C, H, W) as the model takes them; pixels themselves, or / 255."""
    if isinstance(data, RandomInputs):
        return data.values[part]
    pixels = data.test.load(part)
    return pixels if model.facts["input_kind"] == "uint8" else to_float(pixels)


def outputs_of(
    model: Model, runtime: Runtime, data: DataSet | RandomInputs, progress: Progress
) -> Floats:
    """Return the outputs for every image."""
    parts = []
    for start in range(0, len(data), _BATCH):
        parts.append(runtime.run(fed(model, data, slice(start, start + _BATCH))))
        progress.step("")
    return np.concatenate(parts)
