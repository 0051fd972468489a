"""Image files to uint8 pixels of one size, through Pillow.

For evaluation the middle square, 7/8 of the short side (a side of 256 cut to 224, Krizhevsky
et al. 2012); for training a random box (`qtool.data.augment.crop_boxes`), or the middle
where nothing is drawn. A box is resampled to the wanted size in one step, antialiased.
"""

import io
import struct
import warnings
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from qtool.core.errors import UserError
from qtool.data.augment import crop_boxes
from qtool.data.pixels import to_mode, upright

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".ppm", ".tif", ".tiff")
BOX_DRAWS = 4
_MIDDLE = 7 / 8
_BROKEN = (
    OSError, SyntaxError, ValueError, EOFError, IndexError, struct.error,
    Image.DecompressionBombError,
)  # fmt: skip


class Decoder(Protocol):
    """Turns the bytes of an image file into pixels; `draws` as of `Source`."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(C, H, W) of the pixels."""

    @property
    def draws(self) -> int:
        """How many random numbers an image takes."""

    def __call__(
        self, data: bytes, where: str, draws: NDArray[np.float32] | None
    ) -> NDArray[np.uint8]:
        """Return (C, H, W) uint8.

        Args:
            data: content of a file.
            where: its name, for messages.
            draws: (K,) or None for evaluation.

        Raises:
            UserError: the image is damaged; names it.
        """


@dataclass(frozen=True)
class Photograph:
    """Decodes to RGB, `size` x `size`; a box of the image, or with `whole` all of it."""

    size: int
    whole: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        """(3, size, size)."""
        return 3, self.size, self.size

    @property
    def draws(self) -> int:
        """Random numbers that place the box."""
        return BOX_DRAWS

    def __call__(
        self, data: bytes, where: str, draws: NDArray[np.float32] | None
    ) -> NDArray[np.uint8]:
        """Return (3, size, size) uint8."""
        image = open_image(data, where, "RGB")
        wide, tall = image.size
        if draws is not None:
            top, left, height, width = crop_boxes(draws[None], tall, wide)[0].tolist()
            box = (left, top, min(left + width, wide), min(top + height, tall))
        elif self.whole:
            box = (0, 0, wide, tall)
        else:
            side = min(wide, tall) * _MIDDLE
            left, top = (wide - side) / 2, (tall - side) / 2
            box = (left, top, left + side, top + side)
        if image.size != (self.size, self.size) or box != (0, 0, *image.size):
            size = (self.size, self.size)
            image = image.resize(size, Image.Resampling.BILINEAR, box)
        return np.asarray(image).transpose(2, 0, 1)


@dataclass(frozen=True)
class Drawing:
    """Decodes dark ink on white paper to one channel, `size` x `size`, with white ink."""

    size: int
    draws: int = 0

    @property
    def shape(self) -> tuple[int, ...]:
        """(1, size, size)."""
        return 1, self.size, self.size

    def __call__(
        self, data: bytes, where: str, draws: NDArray[np.float32] | None
    ) -> NDArray[np.uint8]:
        """Return (1, size, size) uint8."""
        image = open_image(data, where, "L")
        small = image.resize((self.size, self.size), Image.Resampling.LANCZOS)
        return 255 - np.asarray(small)[None]


@dataclass(frozen=True)
class Grey:
    """Decodes to one channel, `size` x `size`, all of the image."""

    size: int
    draws: int = 0

    @property
    def shape(self) -> tuple[int, ...]:
        """(1, size, size)."""
        return 1, self.size, self.size

    def __call__(
        self, data: bytes, where: str, draws: NDArray[np.float32] | None
    ) -> NDArray[np.uint8]:
        """Return (1, size, size) uint8."""
        image = open_image(data, where, "L")
        if image.size != (self.size, self.size):
            image = image.resize((self.size, self.size), Image.Resampling.BILINEAR)
        return np.asarray(image)[None]


def open_image(data: bytes, where: str, mode: str) -> Image.Image:
    """Return the whole decoded image in Pillow's `mode`, upright (`qtool.data.pixels`).

    Raises:
        UserError: truncated, damaged, no image, or one whose pixels have no 8-bit form.
    """
    try:
        with warnings.catch_warnings():
            # Of metadata that does not matter here.
            warnings.simplefilter("ignore")
            image = Image.open(io.BytesIO(data))
            image.load()
            return to_mode(upright(image), where, mode)
    except _BROKEN as error:
        # Pillow puts an object's address into the message about an unknown format.
        unknown = "cannot identify" in str(error)
        reason = "no image format" if unknown else " ".join(str(error).split())[:80]
        raise UserError(f"image {where} is damaged: {reason}") from None
