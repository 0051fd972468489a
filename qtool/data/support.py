"""A user's few images of each class, ``CLASS/*`` in a folder, for few-shot networks.

They are decoded as the network's training images were, and are training and test images alike:
a folder of other images of the same classes tells how good the network is on these (``qtool
check MODEL --data FOLDER``). Classes are numbered in the order of their sorted names.
"""

from collections.abc import Callable
from pathlib import Path

from qtool.core.errors import UserError
from qtool.data.decode import Decoder, Drawing, Grey, Photograph
from qtool.data.folders import data_folder
from qtool.data.image_files import class_folders, subfolders
from qtool.data.images import DataSet

_DRAWINGS, _COLOUR, _GREY = "support_drawings", "support_colour", "support_grey"
_DECODERS: dict[str, Callable[[int], Decoder]] = {
    _DRAWINGS: Drawing,
    _COLOUR: lambda size: Photograph(size, whole=True),
    _GREY: Grey,
}
MIN_CLASSES = 2


def support_name(dataset: str, shape: tuple[int, ...]) -> str:
    """Return the data set that decodes a user's images as `dataset` does its own.

    Args:
        dataset: that the network was trained on.
        shape: (C, H, W) of its images.

    Raises:
        UserError: its images are not square.
    """
    channels, height, width = shape
    if height != width:
        raise UserError(f"data set {dataset}: images are {shape}, support images are square")
    if dataset.startswith("omniglot_"):
        return _DRAWINGS
    return _GREY if channels == 1 else _COLOUR


def load_drawings(folder: Path | None, image_size: int = 0) -> DataSet:
    """Return drawings with dark ink on white paper; `image_size` 0: 28."""
    return _load(_DRAWINGS, folder, image_size or 28)


def load_colour(folder: Path | None, image_size: int = 0) -> DataSet:
    """Return pictures in colour; `image_size` 0: 84."""
    return _load(_COLOUR, folder, image_size or 84)


def load_grey(folder: Path | None, image_size: int = 0) -> DataSet:
    """Return pictures in grey; `image_size` 0: 84."""
    return _load(_GREY, folder, image_size or 84)


def class_names(folder: Path) -> list[str]:
    """Return the classes in a support folder, in the order of their numbers.

    Raises:
        UserError: no such folder, or fewer classes than there is something to tell apart.
    """
    if not folder.is_dir():
        wrong = "is no folder" if folder.exists() else "does not exist"
        raise UserError(f"support folder {folder} {wrong}, expected CLASS/* in it")
    names = subfolders(str(folder))
    if len(names) < MIN_CLASSES:
        raise UserError(
            f"support folder {folder}: {len(names)} class ({names[0]}), expected "
            f"{MIN_CLASSES} or more, a folder of images each"
        )
    return names


def _load(name: str, folder: Path | None, size: int) -> DataSet:
    root = data_folder(name, folder)
    names = tuple(class_names(root))
    images = class_folders(str(root), _DECODERS[name](size))
    return DataSet(name, images, images, len(names), names=names)
