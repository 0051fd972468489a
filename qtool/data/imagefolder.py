"""Folders of images, a folder a class, as ImageNet and Imagenette are laid out.

``train/<class>/*`` and ``val/<class>/*`` (or ``test``), JPEG, PNG, WebP. Classes are
numbered in the order of their sorted names. Images are cut and resized to a square
(`qtool.data.decode`). Sources: https://www.image-net.org,
https://github.com/fastai/imagenette.
"""

from pathlib import Path

from qtool.core.errors import UserError
from qtool.data.decode import Photograph
from qtool.data.folders import data_folder
from qtool.data.image_files import list_classes, subfolders
from qtool.data.images import DataSet

IMAGENETTE = ("imagenette", "imagenette2", "imagenette2-320", "imagenette2-160")
TEST_NAMES = ("val", "test", "validation")


def load_imagefolder(folder: Path | None, image_size: int = 0) -> DataSet:
    """Return the data set in `folder` or ``$QTOOL_DATA``.

    Args:
        folder: of train and val.
        image_size: side of the images in pixels; 0: 224.

    Raises:
        UserError: no folder, an empty one, or test classes without training images.
    """
    root = data_folder("imagefolder", folder)
    return _load("imagefolder", root, image_size or 224)


def load_imagenette(folder: Path | None, image_size: int = 0) -> DataSet:
    """Return Imagenette, 10 of ImageNet's classes; `image_size` 0: 128."""
    root = data_folder("imagenette", folder)
    places = [root / name for name in IMAGENETTE if (root / name).is_dir()]
    return _load("imagenette", places[0] if places else root, image_size or 128)


def split_folders(name: str, root: Path) -> tuple[Path, Path]:
    """Return the folders of training and test images in `root`; `name` is the data set.

    Raises:
        UserError: one of them is not there.
    """
    train = root / "train"
    if not train.is_dir():
        raise UserError(
            f"data set {name}: {root} has no folder train, expected train/CLASS/* and "
            "val/CLASS/*"
        )
    tests = [root / split for split in TEST_NAMES if (root / split).is_dir()]
    if not tests:
        raise UserError(f"data set {name}: {root} has no folder {' or '.join(TEST_NAMES)}")
    return train, tests[0]


def _load(name: str, root: Path, size: int) -> DataSet:
    train, held = split_folders(name, root)
    classes = {label: number for number, label in enumerate(subfolders(str(train)))}
    tested = subfolders(str(held))
    for label in tested:
        if label not in classes:
            raise UserError(f"data folder {held / label}: class without training images")
    decode = Photograph(size)
    images = list_classes(str(train), classes, decode)
    test = list_classes(str(held), {label: classes[label] for label in tested}, decode)
    return DataSet(name, images, test, len(classes))
