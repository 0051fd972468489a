"""Images in files of their own: listed once, compactly, and decoded on demand."""

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from qtool.data.decode import SUFFIXES, Decoder
from qtool.data.images import Rows
from qtool.data.names import Names, pack
from qtool.errors import UserError

_SUFFIXES = tuple(suffix.encode() for suffix in SUFFIXES)


@dataclass(frozen=True)
class FileImages:
    """Image files in `root`, a source of images.

    Args:
        root: folder.
        names: paths in it.
        labels: (N,) int64.
        decode: makes pixels of a file's content.
    """

    root: str
    names: Names
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
        return replace(self, names=self.names.head(count), labels=self.labels[:count])

    def load(self, rows: Rows, draws: NDArray[np.float32] | None = None) -> NDArray[np.uint8]:
        """Return the pixels (n, C, H, W) of `rows`, decoded.

        Raises:
            UserError: a file is gone or damaged; names it.
        """
        wanted = np.arange(len(self))[rows]
        pixels = np.empty((len(wanted), *self.shape), np.uint8)
        for place, row in enumerate(wanted.tolist()):
            path = os.path.join(self.root, os.fsdecode(self.names[row]))
            own = None if draws is None else draws[place]
            pixels[place] = self.decode(_read(path), path, own)
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
    """Return the images in the folders `classes` of `root`, in this order, each sorted.

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
    return FileImages(root, names, labels, decode)


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


def select(images: FileImages, rows: NDArray[np.int64]) -> FileImages:
    """Return the images `rows` of `images`."""
    names = pack([[images.names[row] for row in rows.tolist()]])
    return replace(images, names=names, labels=images.labels[rows])


def held_out(labels: NDArray[np.int64], parts: int) -> NDArray[np.bool_]:
    """Return (N,): whether an item is among the last 1/`parts` of its class, at least one."""
    chosen = np.zeros(len(labels), bool)
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        chosen[rows[-max(1, len(rows) // parts) :]] = True
    return chosen
