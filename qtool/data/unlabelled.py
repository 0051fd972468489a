"""Pictures in one folder, without labels: what BatchNorm's statistics can be taken from.

They are decoded as the images of the data set that a network was trained on: the middle of a
picture where that data set's images are cut so, else all of it.
"""

import os
from pathlib import Path

import numpy as np

from qtool.core.errors import UserError
from qtool.data.decode import SUFFIXES, Decoder, Drawing, Grey, Photograph
from qtool.data.image_files import FileImages, image_names
from qtool.data.images import DataSet
from qtool.data.names import pack

# Data sets whose images are the middle of pictures of any size.
_CUT = (
    "imagefolder", "imagenette", "webdataset", "activitynet", "kinetics", "video_files",
    "video_frames",
)  # fmt: skip
_DRAWN = ("omniglot", "omniglot_fewshot")


def holds_pictures(folder: Path) -> bool:
    """True where `folder` itself holds image files, which no published data set does."""
    if not folder.is_dir():
        return False
    with os.scandir(folder) as entries:
        return any(e.is_file() and e.name.lower().endswith(SUFFIXES) for e in entries)


def load_unlabelled(
    folder: Path, dataset: str, shape: tuple[int, ...], classes: int
) -> DataSet:
    """Return the pictures in `folder`, which all have label 0, for training and test alike.

    Args:
        folder: `holds_pictures`.
        dataset: that the network was trained on.
        shape: (C, H, W) of its images.
        classes: as the network has them.

    Raises:
        UserError: the network's images are not square, or of other channels than pictures.
    """
    channels, height, width = shape
    if height != width or channels not in (1, 3):
        raise UserError(
            f"folder {folder} of pictures: data set {dataset} has images {shape}, not square "
            "ones in colour or grey: give its own folder"
        )
    names = image_names(str(folder), ".")
    labels = np.zeros(len(names), np.int64)
    decode = _decoder(dataset, channels, height)
    images = FileImages(str(folder), pack([names]), np.arange(len(names)), labels, decode)
    return DataSet(f"pictures in {folder}", images, images, classes)


def _decoder(dataset: str, channels: int, size: int) -> Decoder:
    if dataset in _DRAWN:
        return Drawing(size)
    return Grey(size) if channels == 1 else Photograph(size, whole=dataset not in _CUT)
