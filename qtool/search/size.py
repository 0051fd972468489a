"""Bytes that a layer takes in a deployed ONNX file, before there is one.

Weights are stored in as few bits as they have, in the form that `passes.packing.packing` finds
the smallest: INT8, INT4 or INT2, or bit planes for the widths between. Beside the codes a
layer has, for each output channel, an int32 bias and two float32 scales, of weights and bias.
What layers share (tables, zero points) and what a graph consists of (nodes, names) is not
counted: it hardly depends on bits.
"""

from collections.abc import Mapping
from functools import cache

import numpy as np

from passes.packing.packing import stored_bytes
from qtool.core.grids import FLOAT_WIDTHS
from qtool.core.selection import LayerBits
from qtool.core.weight_codes import container_shift
from qtool.search.space import SearchLayer, Space

# int32 bias, float32 scale of the weights, float32 scale of the bias.
_CHANNEL_BYTES = 12
_FLOAT_CHANNEL_BYTES = 4


def layer_bytes(layer: SearchLayer, bits: LayerBits) -> int:
    """Return the bytes of the weights and per-channel constants of `layer` at `bits`.

    Exact unless BatchNorm turns off or flips channels of a layer whose codes then need another
    width (`passes.packing.packing.stored_width`).
    """
    channels = layer.shape[0] if layer.shape else 0
    if bits.weight in FLOAT_WIDTHS:
        return layer.weights * bits.weight // 8 + _FLOAT_CHANNEL_BYTES * channels
    shape = layer.shape or (layer.weights, 1, 1, 1)
    return _code_bytes(shape, bits.weight) + _CHANNEL_BYTES * channels


def selection_bytes(space: Space, chosen: Mapping[str, LayerBits]) -> int:
    """Return the bytes of all layers, those that are not in `chosen` at their first bits."""
    return sum(
        layer_bytes(layer, chosen.get(layer.name, layer.choices[0])) for layer in space.layers
    )


@cache
def _code_bytes(shape: tuple[int, ...], bits: int) -> int:
    # Only their number, width and common power of two count.
    shift = container_shift("symmetric", bits)
    return stored_bytes(np.full(shape, 1 << shift if shift else 0, np.int8), bits)
