"""Fashion-MNIST (Xiao et al. 2017, MIT licence): 28x28 photographs of clothing, 10 classes.

The full set is read in its published format. A balanced subset (12,000 training, 2,000 test
images; the first of each class) ships inside the package; ``python -m qtool.data.fashion_mnist
SOURCE`` makes it again from the full set.
"""

import lzma
import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from qtool.core.errors import UserError
from qtool.core.files import write_bytes
from qtool.data.folders import data_folder, nested_folder
from qtool.data.idx import encode_idx, find_idx, read_idx
from qtool.data.images import DataSet, Images

CLASSES = 10
EMBEDDED = Path(__file__).parent / "fashion_mnist_12k"
SUBSET_PER_CLASS = {"train": 1200, "t10k": 200}


def load_embedded(folder: Path | None) -> DataSet:
    """Return the subset inside the package, or the IDX files in `folder` if one is given."""
    name = "fashion_mnist_12k"
    return _load(name, EMBEDDED) if folder is None else _load(name, _locate(folder))


def load_full(folder: Path | None) -> DataSet:
    """Return the full set from `folder` or from ``$QTOOL_DATA``."""
    root = data_folder("fashion_mnist", folder, " (fashion_mnist_12k is embedded)")
    return _load("fashion_mnist", _locate(root))


def _locate(folder: Path) -> Path:
    """Accept the folder of the files, or its parent."""
    return nested_folder(data_folder("fashion_mnist", folder), "fashion-mnist")


def _load(name: str, folder: Path) -> DataSet:
    return DataSet(name, _split(folder, "train"), _split(folder, "t10k"), CLASSES)


def _split(folder: Path, split: str) -> Images:
    image_path = find_idx(folder, f"{split}-images-idx3-ubyte")
    label_path = find_idx(folder, f"{split}-labels-idx1-ubyte")
    images, labels = read_idx(image_path), read_idx(label_path)
    if images.ndim != 3 or labels.ndim != 1 or len(images) != len(labels):
        raise UserError(
            f"data file {image_path}: shape {images.shape} does not fit labels {labels.shape}"
        )
    if labels.size and labels.max() >= CLASSES:
        raise UserError(f"data file {label_path}: label {labels.max()}, expected 0 to 9")
    return Images(images[:, None], labels.astype(np.int64))


def _first_of_each_class(labels: NDArray[np.int64], count: int) -> NDArray[np.intp]:
    return np.sort(
        np.concatenate([np.flatnonzero(labels == c)[:count] for c in range(CLASSES)])
    )


def make_subset(source: Path, dest: Path) -> None:
    """Write the embedded subset: the first images of each class, in their published order."""
    for split, count in SUBSET_PER_CLASS.items():
        images = _split(_locate(source), split)
        keep = _first_of_each_class(images.labels, count)
        labels = images.labels[keep].astype(np.uint8)
        for kind, array in (("images-idx3", images.pixels[keep, 0]), ("labels-idx1", labels)):
            packed = lzma.compress(encode_idx(array), preset=9 | lzma.PRESET_EXTREME)
            write_bytes(dest / f"{split}-{kind}-ubyte.xz", packed)


if __name__ == "__main__":
    make_subset(Path(sys.argv[1]), EMBEDDED)
