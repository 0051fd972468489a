"""Data sets for methods that learn new classes from a few images: no class is in both halves.

    omniglot_fewshot      background (964 characters) and evaluation (659) of the publisher's
                          own split (Lake et al. 2015), each character at four rotations:
                          3,856 and 2,636 classes of 20 drawings
    omniglot_vinyals      the split of Vinyals et al. (2016), which few-shot methods are mostly
                          compared on: 1,200 and 423 characters, 4,800 and 1,692 classes
    miniimagenet_fewshot  classes of train.csv (64) and of test.csv (20; Ravi and Larochelle
                          2017)
    imagefolder_fewshot   train/CLASS/* and val/CLASS/*, of different classes; whole pictures,
                          made square

Test classes are numbered from 0, as training classes are.
"""

from pathlib import Path

from qtool.core.errors import UserError
from qtool.data.decode import Photograph
from qtool.data.folders import data_folder
from qtool.data.image_files import class_folders, subfolders
from qtool.data.imagefolder import split_folders
from qtool.data.images import DataSet, Source
from qtool.data.kept import Kept
from qtool.data.miniimagenet import miniimagenet_split
from qtool.data.omniglot import SPLITS, omniglot_split, vinyals_split
from qtool.data.turned import Turned


def load_omniglot_fewshot(folder: Path | None, image_size: int = 0) -> DataSet:
    """Return Omniglot's two halves, with rotations as classes.

    Args:
        folder: of images_background and images_evaluation, or its parent; None:
            ``$QTOOL_DATA``.
        image_size: side of the images in pixels; 0: 28.

    Raises:
        UserError: a folder is missing or empty.
    """
    root = data_folder("omniglot_fewshot", folder)
    halves = (omniglot_split(root, split, image_size) for split in SPLITS)
    return _dataset("omniglot_fewshot", *(Turned(Kept(half)) for half in halves))


def load_omniglot_vinyals(folder: Path | None, image_size: int = 0) -> DataSet:
    """Return Omniglot in Vinyals' split; otherwise as `load_omniglot_fewshot`."""
    halves = vinyals_split(data_folder("omniglot_vinyals", folder), image_size)
    return _dataset("omniglot_vinyals", *(Turned(Kept(half)) for half in halves))


def load_miniimagenet_fewshot(folder: Path | None, image_size: int = 0) -> DataSet:
    """Return MiniImageNet's training and test classes.

    Args:
        folder: of images and the csv files, or its parent; None: ``$QTOOL_DATA``.
        image_size: side of the images in pixels; 0: 84.

    Raises:
        UserError: a file is missing or not in the published format.
    """
    root = data_folder("miniimagenet_fewshot", folder)
    halves = (miniimagenet_split(root, split, image_size) for split in ("train", "test"))
    return _dataset("miniimagenet_fewshot", *map(Kept, halves))


def load_imagefolder_fewshot(folder: Path | None, image_size: int = 0) -> DataSet:
    """Return the data set in `folder` or ``$QTOOL_DATA``; `image_size` 0: 84.

    Raises:
        UserError: no folder, an empty one, or a class that is in both halves.
    """
    name = "imagefolder_fewshot"
    places = split_folders(name, data_folder(name, folder))
    known, new = (set(subfolders(str(place))) for place in places)
    if both := sorted(known & new):
        raise UserError(
            f"data set {name}: class {both[0]} is in {places[0]} and in {places[1]}, expected "
            "test classes that training has not seen"
        )
    decode = Photograph(image_size or 84, whole=True)
    return _dataset(name, *(Kept(class_folders(str(place), decode)) for place in places))


def _dataset(name: str, train: Source, test: Source) -> DataSet:
    return DataSet(name, train, test, int(train.labels.max()) + 1, unseen=True)
