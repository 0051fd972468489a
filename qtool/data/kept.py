"""A source whose images are decoded once, the first time they are asked for.

Training on episodes sees the same few thousand images hundreds of times. As pixels Omniglot's
32,460 drawings take 25 MB, 12,800 images of 84x84 in colour 271 MB; only what was asked for
takes memory.
"""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from qtool.data.images import Rows, Source


@dataclass(frozen=True)
class Kept:
    """The images of `source`, decoded as for evaluation.

    Args:
        source: of single images, no clips.
    """

    source: Source
    frames: int = 1
    draws: int = 0
    _pixels: NDArray[np.uint8] = field(init=False, repr=False, compare=False)
    _known: NDArray[np.bool_] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.source.frames != 1:
            raise ValueError(f"got clips of {self.source.frames} frames, expected images")
        count = len(self.source)
        self._keep(np.empty((count, *self.shape), np.uint8), np.zeros(count, bool))

    def _keep(self, pixels: NDArray[np.uint8], known: NDArray[np.bool_]) -> None:
        object.__setattr__(self, "_pixels", pixels)
        object.__setattr__(self, "_known", known)

    @property
    def labels(self) -> NDArray[np.int64]:
        """Class of every image, (N,)."""
        return self.source.labels

    @property
    def shape(self) -> tuple[int, ...]:
        """(C, H, W) of one image."""
        return self.source.shape

    def __len__(self) -> int:
        return len(self.source)

    def head(self, count: int | None) -> "Kept":
        """Return the first `count` images (all for None), which share their memory."""
        first = Kept(self.source.head(count))
        first._keep(self._pixels[:count], self._known[:count])
        return first

    def load(self, rows: Rows, draws: NDArray[np.float32] | None = None) -> NDArray[np.uint8]:
        """Return the pixels (n, C, H, W) of `rows`; nothing is drawn.

        Raises:
            UserError: a file is gone or damaged; names it.
        """
        wanted = np.unique(np.arange(len(self))[rows])
        missing = wanted[~self._known[wanted]]
        if len(missing):
            self._pixels[missing] = self.source.load(missing)
            self._known[missing] = True
        return self._pixels[rows]
