"""Data sets of WebDataset shards (`qtool.data.shards`), for data that do not fit into memory.

In the folder: ``train/*.tar`` and ``val/*.tar``, or tar files with train and val (or test,
validation) in their names, as ``imagenet1k-train-0000.tar``. An epoch reads the shards in
random order, `WINDOW` at a time, and the images of a window in random order.
"""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from qtool.core.errors import UserError
from qtool.data.decode import Decoder, Photograph
from qtool.data.folders import data_folder
from qtool.data.images import DataSet, Rows
from qtool.data.shards import index_shard

WINDOW = 16
_SPLITS = {"train": ("train", "training"), "test": ("val", "test", "validation", "valid")}


@dataclass(frozen=True)
class ShardImages:
    """Images in tar files, a source that gives an order of its own.

    Args:
        paths: of the shards.
        shards, offsets, sizes, labels: (N,) of every image; `shards` ascends.
        decode: makes pixels of a file's content.
    """

    paths: tuple[str, ...]
    shards: NDArray[np.int32]
    offsets: NDArray[np.int64]
    sizes: NDArray[np.int32]
    labels: NDArray[np.int64]
    decode: Decoder
    frames: int = 1

    @property
    def shape(self) -> tuple[int, ...]:
        """(C, H, W) of one image."""
        return self.decode.shape

    @property
    def draws(self) -> int:
        """How many random numbers decoding takes in training."""
        return self.decode.draws

    def __len__(self) -> int:
        return len(self.labels)

    def head(self, count: int | None) -> "ShardImages":
        """Return the first `count` images (all for None)."""
        first = slice(count)
        return replace(
            self, shards=self.shards[first], offsets=self.offsets[first],
            sizes=self.sizes[first], labels=self.labels[first],
        )  # fmt: skip

    def order(self, generator: np.random.Generator) -> NDArray[np.int64]:
        """Return all rows (N,) in an epoch's order: few shards at a time."""
        count = int(self.shards[-1]) + 1
        starts = np.searchsorted(self.shards, np.arange(count + 1))
        mixed = generator.permutation(count)
        windows = []
        for first in range(0, count, WINDOW):
            rows = [np.arange(starts[s], starts[s + 1]) for s in mixed[first : first + WINDOW]]
            windows.append(generator.permutation(np.concatenate(rows)))
        return np.concatenate(windows)

    def load(self, rows: Rows, draws: NDArray[np.float32] | None = None) -> NDArray[np.uint8]:
        """Return the pixels (n, C, H, W) of `rows`, decoded.

        Raises:
            UserError: a shard is gone, or an image damaged; names it.
        """
        wanted = np.arange(len(self))[rows]
        pixels = np.empty((len(wanted), *self.shape), np.uint8)
        for shard in np.unique(self.shards[wanted]).tolist():
            path = self.paths[shard]
            places = np.flatnonzero(self.shards[wanted] == shard)
            for place, data in zip(places, self._read(path, wanted[places]), strict=True):
                where = f"at byte {self.offsets[wanted[place]]} of {path}"
                pixels[place] = self.decode(
                    data, where, None if draws is None else draws[place]
                )
        return pixels

    def _read(self, path: str, rows: NDArray[np.int64]) -> list[bytes]:
        try:
            with open(path, "rb", buffering=0) as file:
                return [
                    os.pread(file.fileno(), int(self.sizes[row]), int(self.offsets[row]))
                    for row in rows
                ]
        except OSError as error:
            raise UserError(f"shard {path} is not readable: {error.strerror}") from None


def load_webdataset(folder: Path | None, image_size: int = 0) -> DataSet:
    """Return the shards in `folder` or ``$QTOOL_DATA``.

    Args:
        folder: of the shards, or of folders of them.
        image_size: side of the images in pixels; 0: 224.

    Raises:
        UserError: no shards, or a damaged one.
    """
    root = data_folder("webdataset", folder)
    decode = Photograph(image_size or 224)
    train, test = (open_shards(_find(root, split), decode) for split in _SPLITS)
    classes = int(train.labels.max()) + 1
    if test.labels.max() >= classes:
        raise UserError(
            f"data set webdataset: {root} has test images of class {test.labels.max()}, "
            f"training images of classes below {classes}"
        )
    return DataSet("webdataset", train, test, classes)


def open_shards(paths: Sequence[Path], decode: Decoder) -> ShardImages:
    """Return the images in the tar files `paths`."""
    indexes = [index_shard(path) for path in paths]
    counts = [len(index.labels) for index in indexes]
    return ShardImages(
        tuple(map(str, paths)),
        np.repeat(np.arange(len(paths), dtype=np.int32), counts),
        np.concatenate([index.offsets for index in indexes]),
        np.concatenate([index.sizes for index in indexes]),
        np.concatenate([index.labels for index in indexes]),
        decode,
    )


def _find(root: Path, split: str) -> list[Path]:
    names = _SPLITS[split]
    for name in names:
        if found := sorted((root / name).glob("*.tar")):
            return found
    marked = re.compile(rf"(^|[-_.])({'|'.join(names)})([-_.0-9])")
    found = sorted(path for path in root.glob("*.tar") if marked.search(path.name))
    if not found:
        raise UserError(
            f"data set webdataset: {root} has no shards for {split}, expected "
            f"{names[0]}/*.tar or *-{names[0]}-*.tar"
        )
    return found
