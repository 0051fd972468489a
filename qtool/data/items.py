"""Images as a user's code gives them -> uint8 (C, H, W).

A Pillow image as `qtool.data.pixels` converts it: one channel where it is grey, else RGB; not
turned. A uint8 array or tensor (C, H, W), (H, W, C) or (H, W); floats in [0, 1], rounded
to 255ths. Refuses other types, other ranges, and channels last that are not 1 or 3.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from qtool.core.errors import UserError
from qtool.core.importing import reason

_CHANNELS = (1, 3)
_GREY = ("1", "L", "LA")


def to_array(what: str, value: Any) -> NDArray[Any]:
    """Return an array of whatever numpy makes one of.

    Raises:
        UserError: nothing that it does; `what` names it.
    """
    try:
        return np.asarray(value)
    except Exception as error:  # tensors of other devices and types, objects of any kind
        raise UserError(f"{what}: {kind_of(value)} is no array: {reason(error)}") from None


def layout(what: str, array: NDArray[Any], ndim: int) -> NDArray[Any]:
    """Return `array` with channels before rows and columns.

    Args:
        what: names it.
        array: one image, or many.
        ndim: of the result: 3, or 4 for many.
    """
    if array.ndim == ndim - 1:
        array = np.expand_dims(array, -3)
    if array.ndim != ndim:
        raise UserError(f"{what}: images have shape {array.shape}, expected (C, H, W)")
    if array.shape[-3] not in _CHANNELS and array.shape[-1] in _CHANNELS:
        array = np.moveaxis(array, -1, -3)
    if array.shape[-1] in (2, 4) and array.shape[-3] > 4:
        raise UserError(
            f"{what}: images have shape {array.shape[-3:]}, {array.shape[-1]} channels last; "
            "expected 1 or 3, without transparency"
        )
    return np.ascontiguousarray(array)


def item_pixels(what: str, item: Any) -> NDArray[np.uint8]:
    """Return the pixels (C, H, W) of an item (image, label) of a map-style data set.

    Raises:
        UserError: no such item, or values that are no pixels; `what` names it.
    """
    if not isinstance(item, tuple | list) or len(item) < 2:
        raise UserError(f"{what}: an item is {kind_of(item)}, expected (image, label)")
    image = item[0]
    if hasattr(image, "getbands"):  # Pillow's, which only those need who have such images
        from qtool.data.pixels import is_wide_grey, to_mode

        grey = is_wide_grey(image) or image.mode in _GREY
        image = to_mode(image, f"of {what}", "L" if grey else "RGB")
    array = to_array(what, image)
    if array.dtype.kind == "f":
        array = _rounded(what, array)
    if array.dtype != np.uint8:
        raise UserError(
            f"{what}: an image is {kind_of(item[0])} of {array.dtype}, expected uint8, or "
            "floats in [0, 1]"
        )
    return layout(what, array, 3)


def _rounded(what: str, array: NDArray[Any]) -> NDArray[np.uint8]:
    low, high = (array.min(), array.max()) if array.size else (np.nan, np.nan)
    if not (low >= 0 and high <= 1):  # NaN is neither
        raise UserError(
            f"{what}: image values from {low:.3g} to {high:.3g}, expected [0, 1]: normalise "
            "with the recipe's mean and std instead"
        )
    pixels: NDArray[np.uint8] = np.rint(array * 255).astype(np.uint8)
    return pixels


def kind_of(value: Any) -> str:
    """Return how messages name a value of the user's."""
    size = f" of {len(value)}" if isinstance(value, tuple | list) else ""
    return f"a {type(value).__name__}{size}"
