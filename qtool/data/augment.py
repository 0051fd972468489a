"""Augmentation of whole batches of uint8 pixels, by the names in a recipe's `augment`.

    flip          mirrored left to right, half of the images
    crop4         4 black pixels around, then a window of the first size (He et al. 2016, 4.2)
    resized_crop  8 to 100 % of the area, 3:4 to 4:3, made the full size (Szegedy et al. 2015)
    cutout8       a black square of 8 pixels (DeVries and Taylor 2017); it may stick out

An image's draws decide all of it, so the same draws give the same image in any batch.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from qtool.core.errors import UserError, unknown_name

Pixels = NDArray[np.uint8]
Draws = NDArray[np.float32]
RESIZED_CROP = "resized_crop"
MIN_AREA, MAX_RATIO = 0.08, 4 / 3


def _flip(pixels: Pixels, draws: Draws, _: int) -> Pixels:
    mirrored = draws[:, 0] < 0.5
    pixels = pixels.copy()
    pixels[mirrored] = pixels[mirrored][..., ::-1]
    return pixels


def _crop(pixels: Pixels, draws: Draws, pad: int) -> Pixels:
    n, channels, height, width = pixels.shape
    padded = np.zeros((n, channels, height + 2 * pad, width + 2 * pad), np.uint8)
    padded[:, :, pad : pad + height, pad : pad + width] = pixels
    windows = sliding_window_view(padded, (height, width), axis=(2, 3))
    top, left = _pick(draws[:, 0], 2 * pad + 1), _pick(draws[:, 1], 2 * pad + 1)
    cropped: Pixels = windows[np.arange(n), :, top, left]
    return cropped


def _cutout(pixels: Pixels, draws: Draws, side: int) -> Pixels:
    inside = []
    for axis, size in enumerate(pixels.shape[2:]):
        start = _pick(draws[:, axis], size)[:, None] - side // 2
        place = np.arange(size)
        inside.append((place >= start) & (place < start + side))
    keep = ~(inside[0][:, :, None] & inside[1][:, None, :])
    return pixels * keep[:, None]


def _resized_crop(pixels: Pixels, draws: Draws, _: int) -> Pixels:
    height, width = pixels.shape[2:]
    top, left, tall, wide = crop_boxes(draws, height, width).T[:, :, None]
    index = np.arange(len(pixels))[:, None]
    low, high, share = _between(top, tall, height)
    # Two index arrays around a slice: their axes come first, (n, H, C, W).
    rows = pixels[index, :, low].astype(np.float32)
    rows += (pixels[index, :, high] - rows) * share[:, :, None, None]
    # Columns first too, (n, W, H, C): whole ones are copied then, not single pixels.
    rows = np.ascontiguousarray(rows.transpose(0, 3, 1, 2))
    low, high, share = _between(left, wide, width)
    mixed = rows[index, low]
    mixed += (rows[index, high] - mixed) * share[:, :, None, None]
    return np.rint(mixed).astype(np.uint8).transpose(0, 3, 2, 1)


def crop_boxes(
    draws: Draws, height: int | NDArray[np.int64], width: int | NDArray[np.int64]
) -> NDArray[np.float64]:
    """Return (n, 4): top, left, height and width in pixels of each image's random crop.

    Args:
        draws: (n, 4): area, shape, place from the top, place from the left.
        height: of the images, or (n,) of each.
        width: likewise.
    """
    area, shape, down, across = draws[:, :4].astype(np.float64).T
    share = MIN_AREA + (1 - MIN_AREA) * area
    ratio = MAX_RATIO ** (2 * shape - 1)
    size = share * height * width
    tall, wide = (
        np.minimum(np.sqrt(size / ratio), height),
        np.minimum(np.sqrt(size * ratio), width),
    )
    return np.stack([down * (height - tall), across * (width - wide), tall, wide], 1)


def _between(
    start: NDArray[np.float64], length: NDArray[np.float64], size: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]:
    """Return the two source pixels of every target pixel (n, size), and the second's share."""
    place = start + (np.arange(size) + 0.5) * (length / size) - 0.5
    place = np.clip(place, 0, size - 1)
    low = place.astype(np.int64)
    return low, np.minimum(low + 1, size - 1), (place - low).astype(np.float32)


def _pick(draws: Draws, count: int) -> NDArray[np.int64]:
    """Return whole numbers below `count`; in float64, where no product rounds up to it."""
    return (draws.astype(np.float64) * count).astype(np.int64)


# name: (draws an image, whether a number of pixels follows the name, function)
AUGMENTS: dict[str, tuple[int, bool, Callable[[Pixels, Draws, int], Pixels]]] = {
    "flip": (1, False, _flip),
    "crop": (2, True, _crop),
    RESIZED_CROP: (4, False, _resized_crop),
    "cutout": (2, True, _cutout),
}


@dataclass(frozen=True)
class Augment:
    """Augmentations in order: (draws, pixels, function) of each."""

    steps: tuple[tuple[int, int, Callable[[Pixels, Draws, int], Pixels]], ...]

    @property
    def draws(self) -> int:
        """How many random numbers an image takes."""
        return sum(count for count, _, _ in self.steps)

    def __call__(self, pixels: Pixels, draws: Draws) -> Pixels:
        """Return augmented `pixels` (n, C, H, W); `draws` (n, self.draws)."""
        start = 0
        for count, size, function in self.steps:
            pixels = function(pixels, draws[:, start : start + count], size)
            start += count
        return pixels


def parse_augment(names: Sequence[str]) -> Augment:
    """Return the augmentations that a recipe names.

    Raises:
        UserError: an unknown name, or a number where none belongs or is missing.
    """
    steps = []
    for name in names:
        stem, digits = re.fullmatch(r"(.*?)(\d*)", name, re.DOTALL).groups()  # type: ignore[union-attr]
        if stem not in AUGMENTS:
            raise unknown_name("augmentation", name, AUGMENTS)
        count, sized, function = AUGMENTS[stem]
        if bool(digits) != sized or (sized and int(digits) == 0):
            wanted = f"{stem}4, with a number of pixels" if sized else stem
            raise UserError(f"recipe setting augment: got {name!r}, expected {wanted}")
        steps.append((count, int(digits or 0), function))
    return Augment(tuple(steps))
