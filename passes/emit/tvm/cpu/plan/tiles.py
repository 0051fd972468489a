"""Which kernel a convolution gets, its tile and its order of loops: by rule, or by choice.

All candidates for a layer compute the same codes. They come in the order in which the rule
prefers them; who measures them (`passes.emit.tvm.cpu.tuner`) may choose another than the
first.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

from passes.emit.tvm.cpu.kernels.direct import DirectConv, Tile
from passes.emit.tvm.cpu.kernels.winograd import Winograd
from passes.emit.tvm.cpu.kernels.winograd_weights import worthwhile
from passes.emit.tvm.cpu.vectors.base import Vectors

Convolution = DirectConv | Winograd
Choose = Callable[[Sequence[Convolution]], Convolution]

# Multiplications that must be in flight to hide the latency of one.
_IN_FLIGHT = 5
# Cost of a load relative to a multiplication: where loads are the bottleneck, and elsewhere.
_LOAD, _SHADOW = 0.55, 0.02
# Cost of a sum beyond so many in a tile: the CPU looks ahead a few hundred instructions, so
# that the next tile begins beneath the end of a small one only. Where an addition or a table
# is at the end, its numbers are loaded once a tile, so that tiles should not be too small.
_DRAIN, _HIDDEN, _HIDDEN_LONG = 1.0, 10, 16


def by_rule(kernels: Sequence[Convolution]) -> Convolution:
    """Return the first."""
    return kernels[0]


def variants(
    direct: DirectConv, fast: Winograd | None, x_bytes: int, unit: Vectors
) -> list[Convolution]:
    """Return all kernels of a layer: the best of either kind by rule, then all others.

    Args:
        direct: the direct kernel; its tile and order of loops do not matter.
        fast: Winograd's, where it is exact.
        x_bytes: of the input.
        unit: the vector unit.
    """
    found: list[Convolution] = list(_direct_variants(direct, x_bytes, unit))
    if fast is None:
        return found
    rows = fast.grid[0]
    strips = dict.fromkeys((fast.strip, -(-rows // 2), rows, 1))
    every = [replace(fast, strip=strip) for strip in strips]
    best = [every[0], found[0]] if worthwhile(fast) else [found[0], every[0]]
    return [*best, *every[1:], *found[1:]]


def _direct_variants(spec: DirectConv, x_bytes: int, unit: Vectors) -> list[DirectConv]:
    """Return the direct kernel with every tile in both orders of loops, by rule."""
    size = (spec.height, spec.width, spec.outputs)
    tiles = [
        t for t in candidates(*size, unit) if spec.groups == 1 or spec.outputs % t.vectors == 0
    ]
    found = []
    for tile in sorted(tiles, key=lambda t: _cost(t, spec)):
        one = replace(spec, tile=tile)
        outer = _weights_outer(one, x_bytes, unit)
        found.append(replace(one, weights_outer=outer))
        if one.blocks * one.groups > 1 and spec.height > tile.rows:
            found.append(replace(one, weights_outer=not outer))
    return found


def _weights_outer(spec: DirectConv, x_bytes: int, unit: Vectors) -> bool:
    """Return True when walking all pixels for a block of weights moves fewer bytes."""
    rows = -(-spec.height // spec.tile.rows)
    per_block = spec.steps * spec.tile.vectors * 4 * unit.lanes
    weight_bytes = spec.groups * spec.blocks * per_block
    return x_bytes * spec.blocks <= weight_bytes * rows


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


def _cost(tile: Tile, spec: DirectConv) -> tuple[float, int]:
    """Return the time of all tiles, in multiplications, and what decides between equals.

    Fitted on Zen 4 to the layers of ResNet-18 and 50 and MobileNet-v2 and v3-large at 224
    pixels. Against the fastest of the tiles measured there, it loses up to 1 % of the time of
    the first three and 2 to 3 % of the last.
    """
    products, loads = tile.pixels * tile.vectors, tile.pixels + tile.vectors
    step = max(products, _IN_FLIGHT, loads * _LOAD) + _SHADOW * loads
    down, right = -(-spec.height // tile.rows), -(-spec.width // tile.columns)
    tiles = down * right * -(-spec.outputs // tile.vectors)
    hidden = _HIDDEN_LONG if spec.form.residual or spec.form.table else _HIDDEN
    return tiles * (spec.steps * step + _DRAIN * max(0, products - hidden)), tile.vectors
