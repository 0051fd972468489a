"""Images in files of their own: listed once, compactly, and decoded on demand."""

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from qtool.core.errors import UserError
from qtool.data.decode import SUFFIXES, Decoder
from qtool.data.images import Rows
from qtool.data.names import Names, pack

_SUFFIXES = tuple(suffix.encode() for suffix in SUFFIXES)


@dataclass(frozen=True)
class FileImages:
    """Image files in `root`, a source of images.

    Args:
        root: folder.
        names: paths in it, of these images and maybe others.
        places: (N,) number of every image's name.
        labels: (N,) int64.
        decode: makes pixels of a file's content.
    """

    root: str
    names: Names
    places: NDArray[np.int64]
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

    def head(self, count: int | None) -> "FileImages":
        """Return the first `count` images (all for None)."""
        return self.select(slice(count))

    def select(self, rows: Rows) -> "FileImages":
        """Return the images `rows`."""
        return replace(self, places=self.places[rows], labels=self.labels[rows])

    def load(self, rows: Rows, draws: NDArray[np.float32] | None = None) -> NDArray[np.uint8]:
        """Return the pixels (n, C, H, W) of `rows`, decoded.

        Raises:
            UserError: a file is gone or damaged; names it.
        """
        wanted = self.places[rows]
        pixels = np.empty((len(wanted), *self.shape), np.uint8)
        for row, place in enumerate(wanted.tolist()):
            path = os.path.join(self.root, os.fsdecode(self.names[place]))
            own = None if draws is None else draws[row]
            pixels[row] = self.decode(_read(path), path, own)
        return pixels


def _read(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError as error:
        raise UserError(f"image {path} is not readable: {error.strerror}") from None


def subfolders(root: str) -> list[str]:
    """Return the names of the folders in `root`, sorted; those that start with a dot are none.

    Raises:
        UserError: no such folder, or nothing in it.
    """
    try:
        with os.scandir(root) as entries:
            found = sorted(e.name for e in entries if e.is_dir() and e.name[0] != ".")
    except OSError as error:
        raise UserError(f"data folder {root} is not readable: {error.strerror}") from None
    if not found:
        raise UserError(f"data folder {root} holds no folders, expected one for each class")
    return found


def list_classes(root: str, classes: Mapping[str, int], decode: Decoder) -> FileImages:
    """Return the images in the folders `classes` of `root`, taking turns, each sorted.

    Args:
        root: folder.
        classes: labels by name of a folder.
        decode: of a file's content.

    Raises:
        UserError: a folder is missing or holds no images.
    """
    counts: list[int] = []

    def listed() -> Iterator[list[bytes]]:
        for name in classes:
            yield (found := image_names(root, name))
            counts.append(len(found))

    names = pack(listed())
    labels = np.repeat(np.array(list(classes.values()), np.int64), counts)
    return take_turns(root, names, labels, decode)


def class_folders(root: str, decode: Decoder) -> FileImages:
    """Return the images in all folders of `root`, classes numbered by sorted name.

    Raises:
        UserError: no folders, or one that holds no images.
    """
    names = subfolders(root)
    return list_classes(root, {name: number for number, name in enumerate(names)}, decode)


def take_turns(
    root: str, names: Names, labels: NDArray[np.int64], decode: Decoder
) -> FileImages:
    """Return the images with the first of every class first, then the second, and so on.

    Files are listed class by class, but the first thousand images, which calibration and
    `train_images` take, must not be one class.
    """
    by_class = np.argsort(labels, kind="stable")
    sizes = np.unique(labels, return_counts=True)[1]
    turns = np.concatenate([np.arange(size) for size in sizes])
    places = by_class[np.argsort(turns, kind="stable")]
    return FileImages(root, names, places, labels[places], decode)


def image_names(root: str, folder: str) -> list[bytes]:
    """Return the paths in `root` of the images in its `folder`, sorted.

    Raises:
        UserError: no such folder, or no images in it.
    """
    prefix, place = os.fsencode(folder) + b"/", os.path.join(root, folder)
    try:
        with os.scandir(os.fsencode(place)) as entries:
            found = [e.name for e in entries if e.name.lower().endswith(_SUFFIXES)]
    except OSError as error:
        raise UserError(f"data folder {place} is not readable: {error.strerror}") from None
    names = sorted(prefix + name for name in found if name[:1] != b".")
    if not names:
        raise UserError(
            f"data folder {place} holds no images (looked for {', '.join(SUFFIXES)})"
        )
    return names


def held_out(labels: NDArray[np.int64], parts: int) -> NDArray[np.bool_]:
    """Return (N,): whether an item is among the last 1/`parts` of its class, at least one."""
    chosen = np.zeros(len(labels), bool)
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        chosen[rows[-max(1, len(rows) // parts) :]] = True
    return chosen
