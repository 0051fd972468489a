"""Every image at four rotations, each of which is a class of its own.

So Omniglot's characters become four times as many classes, in training and in testing (Santoro
et al. 2016; Vinyals et al. 2016, section 4.1.1).
"""

from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from qtool.data.images import Rows, Source

ROTATIONS = 4


@dataclass(frozen=True)
class Turned:
    """`source` at 0, 90, 180 and 270 degrees: image i is its image i // 4, turned i % 4 times.

    Class c becomes the classes 4 c to 4 c + 3.

    Args:
        source: of square images.
        count: of the turned images, the first ones; None: all.
    """

    source: Source
    count: int | None = None
    frames: int = 1
    draws: int = 0
    labels: NDArray[np.int64] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.shape[-2] != self.shape[-1]:
            raise ValueError(f"images {self.shape} are not square: turned, they have no size")
        turned = ROTATIONS * self.source.labels[:, None] + np.arange(ROTATIONS)
        object.__setattr__(self, "labels", turned.reshape(-1)[: self.count])

    @property
    def shape(self) -> tuple[int, ...]:
        """(C, H, W) of one image."""
        return self.source.shape

    def __len__(self) -> int:
        return len(self.labels)

    def head(self, count: int | None) -> "Turned":
        """Return the first `count` images (all for None)."""
        return replace(self, count=len(self.labels[:count]))

    def load(self, rows: Rows, draws: NDArray[np.float32] | None = None) -> NDArray[np.uint8]:
        """Return the pixels (n, C, H, W) of `rows`; nothing is drawn.

        Raises:
            UserError: a file is gone or damaged; names it.
        """
        source_rows, turns = np.divmod(np.arange(len(self))[rows], ROTATIONS)
        pixels = self.source.load(source_rows)
        turned = np.empty_like(pixels)
        for turn in range(ROTATIONS):
            mine = turns == turn
            turned[mine] = np.rot90(pixels[mine], turn, axes=(-2, -1))
        return turned
