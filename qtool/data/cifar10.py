"""CIFAR-10 (Krizhevsky 2009): 32x32 colour photographs, 10 classes, 50,000 + 10,000 images.

Both published versions are read:

    binary  ``data_batch_1.bin`` to ``data_batch_5.bin`` and ``test_batch.bin``, records of
            3073 bytes: the label, then 1024 bytes each of red, green and blue, row by row
    Python  ``data_batch_1`` to ``data_batch_5`` and ``test_batch``: pickles, which are never
            unpickled (`qtool.data.pickled_arrays`), of data (N, 3072) and labels

Source: https://www.cs.toronto.edu/~kriz/cifar.html.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from qtool.core.errors import UserError
from qtool.data.checksums import require_published
from qtool.data.folders import data_folder, nested_folder
from qtool.data.images import DataSet, Images
from qtool.data.pickled_arrays import read_pickled

CLASSES = 10
SHAPE = (3, 32, 32)
FOLDER, PICKLED_FOLDER = "cifar-10-batches-bin", "cifar-10-batches-py"
PICKLED_TRAIN = tuple(f"data_batch_{index}" for index in range(1, 6))
PICKLED_TEST = ("test_batch",)
TRAIN = tuple(f"{name}.bin" for name in PICKLED_TRAIN)
TEST = ("test_batch.bin",)
_RECORD = 1 + 3 * 32 * 32
_SITE = "https://www.cs.toronto.edu/~kriz/cifar.html"
_ARCHIVE = f"cifar-10-binary.tar.gz from {_SITE}"
_PICKLES = f"a batch of cifar-10-python.tar.gz from {_SITE}"


def load_cifar10(folder: Path | None) -> DataSet:
    """Return the data set from `folder` or from ``$QTOOL_DATA``, or a folder inside it.

    Raises:
        UserError: no folder, or a file that is missing or damaged.
    """
    root = data_folder("cifar10", folder)
    for place in (root / PICKLED_FOLDER, root):
        if (place / PICKLED_TEST[0]).is_file() and not _has_binary(root):
            return _load(place, PICKLED_TRAIN, PICKLED_TEST, read_batch)
    return _load(nested_folder(root, FOLDER), TRAIN, TEST, read_records)


def _has_binary(root: Path) -> bool:
    return (nested_folder(root, FOLDER) / TEST[0]).is_file()


def _load(
    root: Path,
    train: Sequence[str],
    test: Sequence[str],
    read: Callable[[Path], NDArray[np.uint8]],
) -> DataSet:
    splits: list[Images] = []
    for names in (train, test):
        records = np.concatenate([read(root / name) for name in names])
        pixels = np.ascontiguousarray(records[:, 1:]).reshape(-1, *SHAPE)
        splits.append(Images(pixels, records[:, 0].astype(np.int64)))
    return DataSet("cifar10", splits[0], splits[1], CLASSES)


def read_batch(path: Path) -> NDArray[np.uint8]:
    """Return the records (N, 3073) uint8 of a pickled batch file, whole or not at all.

    Raises:
        UserError: missing, damaged, or something else.
    """
    batch = read_pickled(path, _PICKLES)
    require_published(path)
    data, labels = batch.get("data"), batch.get("labels")
    if not isinstance(data, np.ndarray) or data.shape[1:] != (_RECORD - 1,):
        raise UserError(f"data file {path}: no array 'data' (N, 3072); expected {_PICKLES}")
    known = labels if isinstance(labels, list) and len(labels) == len(data) > 0 else [-1]
    if not all(type(n) is int and 0 <= n < CLASSES for n in known):
        raise UserError(
            f"data file {path}: 'labels' is no list of {len(data)} numbers from 0 to "
            f"{CLASSES - 1}; expected {_PICKLES}"
        )
    return np.concatenate([np.array(known, np.uint8)[:, None], data], 1)


def read_records(path: Path) -> NDArray[np.uint8]:
    """Return the records (N, 3073) uint8 of a binary batch file, whole or not at all.

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
