"""An image classification data set in memory: uint8 pixels, and the floats a network sees."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Images:
    """Pixels (N, C, H, W) uint8 and labels (N,) int64."""

    pixels: NDArray[np.uint8]
    labels: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.labels)

    def head(self, count: int | None) -> "Images":
        """Return the first `count` images (all for None)."""
        return Images(self.pixels[:count], self.labels[:count])


@dataclass(frozen=True)
class DataSet:
    """Training and test images, with the number of classes."""

    name: str
    train: Images
    test: Images
    classes: int

    def __len__(self) -> int:
        """Number of test images."""
        return len(self.test)

    @property
    def shape(self) -> tuple[int, ...]:
        """(C, H, W) of one image."""
        return self.test.pixels.shape[1:]


# Networks see pixel / 255, in [0, 1]: the first layer's 8-bit grid is then the pixel grid
# itself, and the input quantization loses nothing. Any affine normalisation is left to
# BatchNorm.
INPUT_SCALE = np.float32(1) / np.float32(255)


def to_float(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return the network input: pixel * (1/255), float32."""
    return pixels.astype(np.float32) * INPUT_SCALE
