"""Labelled uint8 images, in memory or decoded on demand, and the floats a network sees."""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from qtool.core.errors import UserError

Rows = NDArray[np.int64] | slice


class Source(Protocol):
    """Labelled images, or clips of several frames, of one size."""

    @property
    def labels(self) -> NDArray[np.int64]:
        """Class of every item, (N,)."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(C, H, W) of one image."""

    @property
    def frames(self) -> int:
        """Images an item: 1, more for clips."""

    @property
    def draws(self) -> int:
        """How many random numbers an item `load` decodes with; 0: it always does the same."""

    def __len__(self) -> int:
        """Number of items."""

    def head(self, count: int | None) -> "Source":
        """Return the first `count` items (all for None)."""

    def load(self, rows: Rows, draws: NDArray[np.float32] | None = None) -> NDArray[np.uint8]:
        """Return the pixels (n * frames, C, H, W) of `rows`, the frames of an item together.

        Args:
            rows: (n,) or a slice.
            draws: (n, K) uniform in [0, 1), K at least `self.draws`, for training; None
                decodes as for evaluation, always the same.

        Raises:
            UserError: a file is missing or damaged; names it.
        """


@runtime_checkable
class Ordered(Protocol):
    """A source that is better read in some orders than in others."""

    def order(self, generator: np.random.Generator) -> NDArray[np.int64]:
        """Return all rows (N,) in an epoch's random order."""


@dataclass(frozen=True)
class Images:
    """Pixels (N, C, H, W) uint8 and labels (N,) int64 in memory."""

    pixels: NDArray[np.uint8]
    labels: NDArray[np.int64]
    frames: int = 1
    draws: int = 0

    @property
    def shape(self) -> tuple[int, ...]:
        """(C, H, W) of one image."""
        return self.pixels.shape[1:]

    def __len__(self) -> int:
        return len(self.labels)

    def head(self, count: int | None) -> "Images":
        """Return the first `count` images (all for None)."""
        return Images(self.pixels[:count], self.labels[:count])

    def load(self, rows: Rows, draws: NDArray[np.float32] | None = None) -> NDArray[np.uint8]:
        """Return the pixels of `rows`; nothing is drawn."""
        return self.pixels[rows]


@dataclass(frozen=True)
class DataSet:
    """Training and test images, with the number of classes.

    `unseen`: test images are of other classes, which no training image is of, numbered from 0
    (`qtool.data.fewshot`); `classes` counts those of training. `names`: of the classes, in
    their order, where they are the user's own; else empty.
    """

    name: str
    train: Source
    test: Source
    classes: int
    unseen: bool = False
    names: tuple[str, ...] = ()

    def __len__(self) -> int:
        """Number of test images."""
        return len(self.test)

    @property
    def shape(self) -> tuple[int, ...]:
        """(C, H, W) of one image."""
        return self.test.shape

    def require_seen(self) -> None:
        """Refuse test images of classes that training images do not have."""
        if self.unseen:
            raise UserError(
                f"data set {self.name}: its test classes are not those of training, for "
                "few-shot methods (frontends mebqat_pn, mebqat_maml); this one needs another"
            )


# Networks see pixel / 255, in [0, 1]: the first layer's 8-bit grid is then the pixel grid
# itself, and the input quantization loses nothing. Any affine normalisation is left to
# BatchNorm.
INPUT_SCALE = np.float32(1) / np.float32(255)


def to_float(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return the network input: pixel * (1/255), float32."""
    return pixels.astype(np.float32) * INPUT_SCALE
