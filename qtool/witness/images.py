"""The few images that origin and artifact are both given."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qtool.core.errors import UserError
from qtool.data import load_dataset
from qtool.data.images import INPUT_SCALE, to_float
from qtool.data.random_inputs import random_inputs
from qtool.runs.run import Run
from qtool.runs.sample import read_sample
from runtimes.base import Inputs

IMAGES = 4


@dataclass(frozen=True)
class Asked:
    """Which images the user wants.

    Args:
        data: value of ``--data``: of a folder or a function; None for what is known.
        dataset: name of the data set in it.
        images: how many.
    """

    data: Path | str | None = None
    dataset: str = "imagefolder"
    images: int = IMAGES


@dataclass(frozen=True)
class Chosen:
    """Inputs (N, C, H, W) as pixels or floats.

    Args:
        values: uint8 pixels, or floats that are no pixels.
        text: what they are.
        are_real: not random: calibrated grids fit them.
    """

    values: NDArray[Any]
    text: str
    are_real: bool

    @property
    def digest(self) -> str:
        """Return the hash of the values."""
        return hashlib.sha256(np.ascontiguousarray(self.values).tobytes()).hexdigest()

    def fed(self, kind: str) -> Inputs:
        """Return them as a model takes them: "uint8" or "float32"."""
        pixels = self.values.dtype == np.uint8 and kind != "uint8"
        return to_float(self.values) if pixels else self.values


def images_of_run(run: Run, asked: Asked) -> Chosen:
    """Return the first training images of the run's data.

    Those of --data; without it the ones that the run keeps, or its data where they are known;
    else random ones.

    Raises:
        UserError: the data that were asked for cannot be read, or are others than the run's.
    """
    config, kept = run.config, read_sample(run.folder, run.input_shape)
    if asked.data is None and kept is not None and len(kept):
        pixels = kept[: asked.images]
        return Chosen(pixels, f"{len(pixels)} images of {config.dataset}", True)
    try:
        data = load_dataset(config.dataset, asked.data, config.image_size, config.frames)
        run.require_shape(data)
        pixels = data.train.load(slice(asked.images))[: asked.images]
    except (UserError, ModuleNotFoundError):
        if asked.data is not None:
            raise
        return _random(run.input_shape, asked.images)
    return Chosen(pixels, f"{len(pixels)} images of {data.name}", True)


def _random(shape: tuple[int, ...], count: int) -> Chosen:
    pixels = np.random.default_rng(0).integers(0, 256, (count, *shape)).astype(np.uint8)
    return Chosen(pixels, f"{count} random images (--data gives real ones)", False)


def inputs_of_file(facts: Mapping[str, Any], asked: Asked) -> Chosen:
    """Return images spread over the range of the input's grid, or random values of it.

    Args:
        facts: `passes.emit.facts.describe` of the imported program.
        asked: what the user wants.

    Raises:
        UserError: the data cannot be read, or have another shape than the model's.
    """
    if asked.data is None:
        found = random_inputs(facts)
        count = min(asked.images, len(found))
        text = f"{count} {found.name.removeprefix('none: ')}"
        return Chosen(found.values[:count], text, False)
    shape = tuple(facts["input_shape"])
    data = load_dataset(asked.dataset, asked.data, shape[-1])
    if data.shape != shape:
        raise UserError(f"data {asked.data}: images are {data.shape}, the model takes {shape}")
    pixels = data.train.load(slice(asked.images))[: asked.images]
    text = f"{len(pixels)} images of {data.name}"
    if facts["input_kind"] == "uint8":
        return Chosen(pixels, text, True)
    low, high = facts["input_range"] or (0.0, 1.0)
    spread = pixels.astype(np.float32) * (INPUT_SCALE * np.float32(high - low))
    return Chosen(spread + np.float32(low), text, True)
