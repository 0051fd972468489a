"""MiniImageNet (Vinyals et al. 2016), Ravi and Larochelle's split (2017): 84x84, 100 classes.

``images/*.jpg``, and ``train.csv``, ``val.csv`` and ``test.csv`` of lines ``filename,label``
below such a header. The classes of the three files are different ones (64, 16 and 20): methods
that learn from a few images of new classes train on the first and are tested on the last;
`miniimagenet_split` gives each.

As a data set for ordinary training: the classes of train.csv, with the last sixth of each
one's images (100 of 600) as test images. Source:
https://github.com/twitter-research/meta-learning-lstm.
"""

import csv
from pathlib import Path

import numpy as np

from qtool.core.errors import UserError, unknown_name
from qtool.data.decode import Photograph
from qtool.data.folders import data_folder, nested_folder
from qtool.data.image_files import FileImages, held_out, take_turns
from qtool.data.images import DataSet
from qtool.data.names import pack

SPLITS = ("train", "val", "test")
HEADER = ["filename", "label"]
_TEST_SHARE = 6


def load_miniimagenet(folder: Path | None, image_size: int = 0) -> DataSet:
    """Return the training classes, 5/6 of the images for training.

    Args:
        folder: of images and the csv files, or its parent; None: ``$QTOOL_DATA``.
        image_size: side of the images in pixels; 0: 84.

    Raises:
        UserError: a file is missing or not in the published format.
    """
    images = miniimagenet_split(data_folder("miniimagenet", folder), "train", image_size)
    test = held_out(images.labels, _TEST_SHARE)
    train = images.select(np.flatnonzero(~test))
    held = images.select(np.flatnonzero(test))
    return DataSet("miniimagenet", train, held, int(images.labels.max()) + 1)


def miniimagenet_split(root: Path, split: str, image_size: int = 0) -> FileImages:
    """Return the images that a csv file lists, taking turns; classes by sorted name.

    Raises:
        UserError: unknown `split`, or a file that is missing or not in the published format.
    """
    if split not in SPLITS:
        raise unknown_name("split of miniimagenet", split, SPLITS)
    place = nested_folder(root, "miniimagenet")
    path = place / f"{split}.csv"
    names, labels = _read(path)
    present = {entry.name for entry in (place / "images").glob("*")}
    for name in names:
        if name not in present:
            raise UserError(f"data file missing: {place / 'images' / name}, listed in {path}")
    _, numbers = np.unique(np.array(labels), return_inverse=True)
    packed = pack([[name.encode() for name in names]])
    decode = Photograph(image_size or 84, whole=True)
    return take_turns(str(place / "images"), packed, numbers.astype(np.int64), decode)


def _read(path: Path) -> tuple[list[str], list[str]]:
    """Return file names and class names of a csv file."""
    try:
        rows = list(csv.reader(path.read_text().splitlines(), strict=True))
    except OSError as error:
        raise UserError(f"data file {path} is not readable: {error.strerror}") from None
    except (ValueError, csv.Error) as error:
        raise UserError(f"data file {path} is no csv file: {error}") from None
    if len(rows) < 2 or rows[0] != HEADER:
        raise UserError(f"data file {path}: expected {','.join(HEADER)} and a line per image")
    for number, row in enumerate(rows[1:], 2):
        if len(row) != 2 or not all(row) or "/" in row[0]:
            raise UserError(
                f"data file {path}, line {number}: got {','.join(row)!r}, expected "
                f"{','.join(HEADER)}"
            )
    return [row[0] for row in rows[1:]], [row[1] for row in rows[1:]]
