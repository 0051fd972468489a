"""How much one program of a kernel computes: a guess from the shape, not a measurement."""

from dataclasses import dataclass

# Pixels and outputs of a matrix product's tile, and its warps; the best reuse first. Where a
# layer does not make enough programs of one for all multiprocessors, a smaller one is taken.
_TILES = (
    (128, 128, 8), (128, 64, 4), (64, 64, 4), (128, 32, 4), (64, 32, 4), (32, 64, 4),
    (128, 16, 4), (32, 32, 4), (64, 16, 2), (16, 64, 2), (16, 32, 2), (16, 16, 2),
)  # fmt: skip
# Channels a step; tensor cores multiply 32 int8 at a time.
_DEPTHS = (128, 64, 32)
# Channels of a program without a product: at most, and where any others are left over.
_COLUMNS, _FEWEST = 128, 8
# Loads that are in flight while a tile is multiplied.
STAGES = 3


@dataclass(frozen=True)
class Tile:
    """A program's share of a matrix product: `pixels` x `columns`, `depth` channels a step."""

    pixels: int
    columns: int
    depth: int
    warps: int


def matrix_tile(
    pixels: int, outputs: int, groups: int, channels: int, length: int, processors: int
) -> Tile:
    """Return the tile of one layer.

    Args:
        pixels: rows, over all images.
        outputs: columns of one group.
        groups: of them.
        channels: that a group reads at one kernel position.
        length: channels at all positions.
        processors: that should have work.
    """
    depth = next((n for n in _DEPTHS if channels % n == 0), min(64, power(length, 32)))
    for rows, columns, warps in _TILES:
        wasted = rows > power(pixels, 16) or columns > power(outputs, 16)
        if not wasted and count(pixels, rows) * count(outputs, columns) * groups >= processors:
            return Tile(rows, columns, depth, warps)
    rows, columns, warps = _TILES[-1]
    return Tile(rows, columns, depth, warps)


def plane_tile(channels: int, block: int) -> tuple[int, int]:
    """Return the pixels and channels of a program of `block` results that are no product.

    Channels that divide all of them, or else too many.
    """
    shared = channels & -channels  # the largest power of two that divides them
    columns = min(_COLUMNS, shared if shared >= _FEWEST else power(channels, 1))
    return block // columns, columns


def power(size: int, least: int) -> int:
    """Return the smallest power of two that is neither below `size` nor below `least`."""
    return max(least, 1 << (size - 1).bit_length())


def count(size: int, part: int) -> int:
    """Return how many parts of length `part` hold `size`."""
    return -(-size // part)
