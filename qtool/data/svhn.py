"""SVHN, cropped digits (Netzer et al. 2011): 32x32 house numbers, 10 classes.

``train_32x32.mat`` (73,257 images) and ``test_32x32.mat`` (26,032), MATLAB 5 files of X (32,
32, 3, N) and y (N, 1), in which the digit 0 has label 10. ``extra_32x32.mat`` (531,131
easier ones) is appended to the training images by the data set svhn_extra. Source:
http://ufldl.stanford.edu/housenumbers.
"""

import zlib
from pathlib import Path

import numpy as np

from qtool.core.errors import UserError
from qtool.data.checksums import require_published
from qtool.data.folders import data_folder, nested_folder
from qtool.data.images import DataSet, Images

CLASSES = 10
_BROKEN = (
    OSError, ValueError, TypeError, IndexError, OverflowError, MemoryError,
    NotImplementedError, zlib.error,
)  # fmt: skip
_SOURCE = "format 2 from http://ufldl.stanford.edu/housenumbers"


def load_svhn(folder: Path | None) -> DataSet:
    """Return the data set from `folder` or ``$QTOOL_DATA``, or folder svhn inside it.

    Raises:
        UserError: no folder, or a file that is missing or damaged.
    """
    root = nested_folder(data_folder("svhn", folder), "svhn")
    return DataSet("svhn", _read(root, "train"), _read(root, "test"), CLASSES)


def load_svhn_extra(folder: Path | None) -> DataSet:
    """Return the data set with the extra images behind the training images."""
    root = nested_folder(data_folder("svhn_extra", folder), "svhn")
    parts = [_read(root, "train"), _read(root, "extra")]
    pixels = np.concatenate([part.pixels for part in parts])
    labels = np.concatenate([part.labels for part in parts])
    return DataSet("svhn_extra", Images(pixels, labels), _read(root, "test"), CLASSES)


def _read(root: Path, split: str) -> Images:
    from scipy.io import loadmat
    from scipy.io.matlab import MatReadError

    path = root / f"{split}_32x32.mat"
    if not path.is_file():
        raise UserError(f"data file missing: {path} ({_SOURCE})")
    require_published(path)
    try:
        content = loadmat(path, variable_names=["X", "y"])
        images, labels = content["X"], content["y"].reshape(-1)
    except KeyError as error:
        raise UserError(f"data file {path}: no variable {error}; expected {_SOURCE}") from None
    except (*_BROKEN, MatReadError) as error:
        reason = " ".join(str(error).split())[:80]
        raise UserError(
            f"data file {path} is truncated or no MATLAB 5 file: {reason}"
        ) from None
    if images.dtype != np.uint8 or images.shape != (32, 32, 3, len(labels)):
        raise UserError(
            f"data file {path}: X is {images.dtype} {images.shape} with {len(labels)} labels, "
            f"expected uint8 (32, 32, 3, N); not {_SOURCE}"
        )
    if not len(labels) or labels.min() < 1 or labels.max() > CLASSES:
        raise UserError(f"data file {path}: labels must be 1 to 10; not {_SOURCE}")
    pixels = np.ascontiguousarray(images.transpose(3, 2, 0, 1))
    return Images(pixels, labels.astype(np.int64) % CLASSES)
