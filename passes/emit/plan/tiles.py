"""How many pixels and output vectors a direct convolution keeps in registers: by rule."""

from passes.emit.kernels.direct import Tile
from passes.emit.kernels.vectors import Vectors

# Multiplications that must be in flight to hide the latency of one.
_IN_FLIGHT = 6
# Cost of a load relative to a multiplication, where loads are the bottleneck.
_LOAD = 0.55


def choose_tile(
    height: int, width: int, vectors: int, unit: Vectors, whole: bool = False
) -> Tile:
    """Return the tile that needs the least time for a result of this size.

    Args:
        height: rows of the result.
        width: columns.
        vectors: vectors of output channels.
        unit: the vector unit.
        whole: no block may be partly empty, because another group follows.
    """
    found = candidates(height, width, vectors, unit)
    fitting = [tile for tile in found if not whole or vectors % tile.vectors == 0]
    return min(fitting, key=lambda t: _cost(t, height, width, vectors))


def candidates(height: int, width: int, vectors: int, unit: Vectors) -> list[Tile]:
    """Return every tile that fits in registers."""
    found = []
    for rows in range(1, min(height, 4) + 1):
        if rows > 1 and width > 14:
            continue
        for columns in range(1, min(width, 28) + 1):
            for count in range(1, min(vectors, 8) + 1):
                if rows * columns * count <= unit.accumulators(count):
                    found.append(Tile(rows, columns, count))
    return found


def _cost(tile: Tile, height: int, width: int, vectors: int) -> float:
    """Return the time of a step over all tiles, in multiplications."""
    products = tile.pixels * tile.vectors
    loads = tile.pixels + tile.vectors
    step = max(products, _IN_FLIGHT, loads * _LOAD) + 0.02 * loads
    down, right = -(-height // tile.rows), -(-width // tile.columns)
    return down * right * -(-vectors // tile.vectors) * step
