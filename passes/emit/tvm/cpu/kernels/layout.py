"""Where the codes of a tensor lie: NHWC bytes with a halo, chosen once for the whole graph.

A (C, H, W) tensor is stored as (top + H + bottom, left + W + right, channel stride) bytes.
The halo holds the tensor's zero point, written when the tensor is: convolutions then never
test for borders, and nothing is copied to be padded. A channel stride of whole vectors lets
every kernel store whole vectors; the channels behind C hold anything.
"""

from dataclasses import dataclass
from math import prod

Shape = tuple[int, ...]
Halo = tuple[int, int, int, int]

NO_HALO: Halo = (0, 0, 0, 0)
CHANNEL_ALIGNMENT = 16


def round_up(n: int, multiple: int) -> int:
    """Return the smallest multiple of `multiple` that is at least `n`."""
    return -(-n // multiple) * multiple


@dataclass(frozen=True)
class Layout:
    """Bytes of one image's tensor.

    Args:
        shape: logical shape without the batch, (C, H, W), (C,) or any other.
        halo: pixels of zero point around it: (top, left, bottom, right).
        pixel: bytes from one pixel to the next; 0 for `plain`.
        plain: True for row-major logical order, where shape is neither (C, H, W) nor (C,), or
            where an operator without a vector kernel wants it.
    """

    shape: Shape
    halo: Halo
    pixel: int
    plain: bool = False

    @property
    def channels(self) -> int:
        """Return C."""
        return self.shape[0]

    @property
    def height(self) -> int:
        """Return H; 1 where there are only channels."""
        return self.shape[1] if len(self.shape) == 3 else 1

    @property
    def width(self) -> int:
        """Return W; 1 where there are only channels."""
        return self.shape[2] if len(self.shape) == 3 else 1

    @property
    def row(self) -> int:
        """Return the bytes from one row to the next."""
        return (self.width + self.halo[1] + self.halo[3]) * self.pixel

    @property
    def origin(self) -> int:
        """Return the offset of the first pixel behind the halo."""
        return self.halo[0] * self.row + self.halo[1] * self.pixel

    @property
    def flat(self) -> bool:
        """Return True when rows follow each other without a gap."""
        return self.halo[1] == self.halo[3] == 0

    @property
    def bytes(self) -> int:
        """Return the bytes of all of it."""
        if self.plain:
            return prod(self.shape)
        return (self.height + self.halo[0] + self.halo[2]) * self.row

    def strides(self, shape: Shape) -> list[int]:
        """Return the bytes between neighbours along each dimension of `shape`.

        Args:
            shape: the tensor's; (C) and (C, 1, 1) are stored alike, so either will do.
        """
        if self.plain:
            return [prod(shape[i + 1 :]) for i in range(len(shape))]
        return [1, self.row, self.pixel][: len(shape)]


def nhwc(shape: Shape, halo: Halo = NO_HALO, pixel: int | None = None) -> Layout:
    """Return the vector layout of a (C, H, W) or (C,) tensor."""
    return Layout(shape, halo, pixel or round_up(shape[0], CHANNEL_ALIGNMENT))


def plain(shape: Shape) -> Layout:
    """Return the row-major layout of any tensor."""
    return Layout(shape, NO_HALO, 0, plain=True)
