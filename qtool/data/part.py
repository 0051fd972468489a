"""Some items of a source, and which images a source has."""

import hashlib
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from qtool.data.images import Rows, Source

# Images of a source that say which one it is, with all labels.
_LOOKED_AT = 32


@dataclass(frozen=True)
class Part:
    """The items `rows` (n,) of `source`, in that order: a source."""

    source: Source
    rows: NDArray[np.int64]

    @property
    def labels(self) -> NDArray[np.int64]:
        """Class of every item, (n,)."""
        return self.source.labels[self.rows]

    @property
    def shape(self) -> tuple[int, ...]:
        """(C, H, W) of one image."""
        return self.source.shape

    @property
    def frames(self) -> int:
        """Images an item."""
        return self.source.frames

    @property
    def draws(self) -> int:
        """How many random numbers an item is decoded with in training."""
        return self.source.draws

    def __len__(self) -> int:
        return len(self.rows)

    def head(self, count: int | None) -> "Part":
        """Return the first `count` items (all for None)."""
        return replace(self, rows=self.rows[:count])

    def load(self, rows: Rows, draws: NDArray[np.float32] | None = None) -> NDArray[np.uint8]:
        """Return the pixels of `rows`, numbered as in this part; raises as the source."""
        return self.source.load(self.rows[rows], draws)


def digest_of(images: Source) -> str:
    """Return the hash of all labels and of some of the images, spread over the set."""
    rows = np.unique(np.linspace(0, len(images) - 1, _LOOKED_AT).astype(np.int64))
    state = hashlib.sha256(np.ascontiguousarray(images.labels).tobytes())
    state.update(np.ascontiguousarray(images.load(rows)).tobytes())
    return state.hexdigest()
