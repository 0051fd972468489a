"""Pillow images of any type -> 8-bit grey or RGB.

1. Bilevel, grey, palette, RGB, CMYK, YCbCr: Pillow's own conversion. Grey has three equal
   channels in RGB.
2. Transparency (an alpha channel, a transparent colour or palette entry): over white.
3. 16-bit grey: ``rint(v / 257)``, so that 65535 becomes 255. (Pillow would cut off at 255.)
   16-bit colour is 8 bits already when Pillow has decoded it: the high bytes.
Refuses what has no known range or no conversion: 32-bit integers, floats, Lab.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from qtool.core.errors import UserError

_PLAIN = ("1", "L", "P", "RGB", "RGBX", "CMYK", "YCbCr", "HSV")
_ALPHA = ("LA", "PA", "RGBA", "RGBa")
_ORIENTATION = 0x0112  # of EXIF
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM, 5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # fmt: skip


def upright(image: Image.Image) -> Image.Image:
    """Return `image` as its EXIF orientation says that it is to be shown."""
    try:
        turn = _TURNS.get(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # damaged metadata: whoever shows the image passes over it too
        turn = None
    return image if turn is None else image.transpose(turn)


def to_mode(image: Image.Image, where: str, mode: str) -> Image.Image:
    """Return `image` in Pillow's `mode`, "L" or "RGB".

    Args:
        image: of any mode.
        where: names it in messages.
        mode: what is wanted.

    Raises:
        UserError: pixels that have no known range or no conversion; says what they are.
    """
    if is_wide_grey(image):
        return Image.fromarray(narrow(np.asarray(image))).convert(mode)
    if image.mode in _ALPHA or (image.mode in _PLAIN and image.has_transparency_data):
        paper = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(paper, image.convert("RGBA")).convert(mode)
    if image.mode not in _PLAIN:
        raise UserError(
            f"image {where} has pixels of Pillow's mode {image.mode} "
            f"({_KINDS.get(image.mode, 'unknown')}); convert it to 8-bit grey or RGB, or "
            "16-bit grey"
        )
    # By way of RGB: Pillow takes the first ink of CMYK for grey.
    if image.mode == mode:
        return image
    colour = image.convert("RGB")
    return colour if mode == "RGB" else colour.convert(mode)


_KINDS = {"I": "32-bit integers", "F": "32-bit floats", "LAB": "CIE Lab"}


def is_wide_grey(image: Image.Image) -> bool:
    """True for 16 bits of grey; in "I" Pillow has them of PNM files alone."""
    return image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PPM")


def narrow(values: NDArray[Any]) -> NDArray[np.uint8]:
    """Return ``rint(v / 257)`` of 16-bit values as uint8."""
    # Exact in integers; there are no ties, 257 is odd.
    narrowed: NDArray[np.uint8] = ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)
    return narrowed
