"""CIFAR-10 (Krizhevsky 2009): 32x32 colour photographs, 10 classes, 50,000 + 10,000 images.

The published binary version is read: ``data_batch_1.bin`` to ``data_batch_5.bin`` and
``test_batch.bin``, in records of 3073 bytes: the label, then 1024 bytes each of red, green and
blue, row by row. The version for Python consists of pickles, which run code when opened: it is
refused.
Source: https://www.cs.toronto.edu/~kriz/cifar.html (cifar-10-binary.tar.gz).
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from qtool.data.folders import data_folder, nested_folder
from qtool.data.images import DataSet, Images
from qtool.errors import UserError

CLASSES = 10
SHAPE = (3, 32, 32)
FOLDER, PICKLED_FOLDER = "cifar-10-batches-bin", "cifar-10-batches-py"
TRAIN = tuple(f"data_batch_{index}.bin" for index in range(1, 6))
TEST = ("test_batch.bin",)
_RECORD = 1 + 3 * 32 * 32
_ARCHIVE = "cifar-10-binary.tar.gz from https://www.cs.toronto.edu/~kriz/cifar.html"


def load_cifar10(folder: Path | None) -> DataSet:
    """Return the data set from `folder` or from ``$QTOOL_DATA``, or a folder inside it.

    Raises:
        UserError: no folder, a file that is missing or damaged, or only the pickled version.
    """
    root = nested_folder(data_folder("cifar10", folder), FOLDER)
    _refuse_pickles(root)
    return DataSet("cifar10", _split(root, TRAIN), _split(root, TEST), CLASSES)


def _refuse_pickles(root: Path) -> None:
    """Refuse the version for Python by name; its files have the same stems."""
    if (root / TEST[0]).exists():
        return
    for place in (root / PICKLED_FOLDER, root):
        if (place / "test_batch").is_file():
            raise UserError(
                f"data folder {place} holds CIFAR-10 as pickles, which can run code when "
                f"opened and are never read; unpack the binary version, {_ARCHIVE}"
            )


def _split(root: Path, names: Sequence[str]) -> Images:
    records = np.concatenate([read_records(root / name) for name in names])
    pixels = np.ascontiguousarray(records[:, 1:]).reshape(-1, *SHAPE)
    return Images(pixels, records[:, 0].astype(np.int64))


def read_records(path: Path) -> NDArray[np.uint8]:
    """Return the records (N, 3073) uint8 of a batch file, whole or not at all.

    Raises:
        UserError: missing, empty, truncated, or with a label that is not 0 to 9.
    """
    try:
        raw = np.frombuffer(path.read_bytes(), np.uint8)
    except OSError:
        raise UserError(f"data file missing: {path} ({_ARCHIVE})") from None
    if raw.size == 0 or raw.size % _RECORD:
        raise UserError(
            f"data file {path}: got {raw.size} bytes, expected a multiple of {_RECORD} "
            "(label and 3x32x32 pixels); truncated or not CIFAR-10's binary version"
        )
    records = raw.reshape(-1, _RECORD)
    wrong = np.flatnonzero(records[:, 0] >= CLASSES)
    if wrong.size:
        raise UserError(
            f"data file {path}: record {wrong[0]} has label {records[wrong[0], 0]}, expected "
            f"0 to {CLASSES - 1}; not CIFAR-10's binary version"
        )
    return records
