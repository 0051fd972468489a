"""A few training images, kept in the run: what it is compared with when its data are away."""

import io
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from qtool.core.errors import UserError
from qtool.core.files import write_bytes
from qtool.data.images import DataSet

SAMPLE = "sample.npy"
_KEPT = 8


def keep_sample(folder: Path, data: DataSet) -> None:
    """Write the first training images of `data` into the run `folder`."""
    try:
        clips = -(-_KEPT // data.train.frames)
        pixels = data.train.load(slice(clips))[:_KEPT]
    except UserError:
        return  # training says what is wrong with them
    content = io.BytesIO()
    np.save(content, pixels, allow_pickle=False)
    write_bytes(folder / SAMPLE, content.getvalue())


def read_sample(folder: Path, shape: tuple[int, ...]) -> NDArray[np.uint8] | None:
    """Return the images (N, C, H, W) of `shape` (C, H, W) that the run in `folder` keeps.

    None where there are none, as in older runs, or not these.
    """
    try:
        pixels = np.load(folder / SAMPLE, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    found: NDArray[np.uint8] | None = pixels
    return found if pixels.dtype == np.uint8 and pixels.shape[1:] == shape else None
