"""Weights of 4 or 2 bits: several steps' weights in one byte, unpacked in registers.

A byte holds the weights of `8 / bits` consecutive steps, the first in its top bits. Shifted
left and masked, a field is the weight times ``2 ** (8 - bits)`` as a signed byte: nothing has
to extend its sign. The sums come out as many times as large; bias and factor make up for that,
exactly, because both are multiplied with a power of two. Codes that are held times a power of
two already (`qtool.core.weight_codes.container_shift`) are divided by it first.
"""

import numpy as np
from numpy.typing import NDArray
from tvm.script.ir_builder import tirx as T

from passes.emit.tvm.cpu.kernels.tir import Expr, let, reinterpret
from qtool.core.weight_codes import narrowed

Run = tuple[int, int, tuple[int, ...]]
WIDTHS = (2, 4)  # bits of packed weights
# Vector units for which `worth_packing` was measured.
_UNITS = ("avx512_vbmi", "avx512_vnni", "avx_vnni")
# Factors are divided by a power of two, which must stay exact.
SMALLEST_FACTOR = 2.0**-100


def scale(bits: int) -> int:
    """Return how many times as large an unpacked weight is as its code; 1 for 8 bits."""
    return 1 << (8 - bits)


def fields(bits: int) -> int:
    """Return the steps whose weights share a byte."""
    return 8 // bits


def runs(steps: int, bits: int, together: bool) -> list[Run]:
    """Return loops over `steps` steps: (first byte, bytes, fields that are used of each).

    Args:
        steps: of a sum.
        bits: of a field.
        together: all fields of a byte in one loop, not a loop for each.
    """
    whole, rest = divmod(steps, fields(bits))
    if together:
        every = tuple(range(fields(bits)))
        found = [(0, whole, every), (whole, 1, every[:rest])]
    else:
        found = [(0, whole + (field < rest), (field,)) for field in range(fields(bits))]
    return [(first, count, chosen) for first, count, chosen in found if count and chosen]


def unpack(packed: Expr, field: int, bits: int, lanes: int) -> Expr:
    """Return int8 weights, `scale` times as large, of one field of an int8 vector.

    Args:
        packed: vector.
        field: 0 is the one in the top bits.
        bits: of a field.
        lanes: bytes of the vector.
    """
    if bits == 8:
        return packed
    value = packed
    if field:
        # In 16-bit elements: there is no shift of bytes. The mask removes what crosses over.
        wide = reinterpret(packed, f"uint16x{lanes // 2}")
        by = T.broadcast(T.uint16(field * bits), lanes // 2)
        value = reinterpret(let(wide << by), f"int8x{lanes}")
    return value & T.broadcast(T.int8(-scale(bits)), lanes)


def worth_packing(isa: str, pixels: int, steps: int) -> bool:
    """Return True where unpacking costs no time.

    Measured on Zen 4. One unpacking serves all pixels of a tile: with two of them it costs up
    to 14 %. Short sums, which the compiler unrolls, lose 5 % (16 steps) to 60 % (4), and have
    few weights to save. A single pixel waits for weights from memory, of which there are
    fewer. Units without a product of bytes are slower in most layers.

    Args:
        isa: name of the vector unit.
        pixels: of a tile.
        steps: of a sum.
    """
    if isa not in _UNITS:
        return False
    return pixels == 1 or (pixels >= 4 and steps >= 24)


def width_of(
    w: NDArray[np.int8],
    bias: NDArray[np.int32],
    factor: NDArray[np.float32],
    x_offset: int = 0,
) -> int:
    """Return the fewest bits at which the sums are exact: 2, 4, or 8 for not packed.

    Args:
        w: (outputs, ...) codes.
        bias: (outputs or more,) what is added to the sums.
        factor: (outputs or more,) of the requantization.
        x_offset: what the kernel takes off every uint8 code.
    """
    used = factor[: len(w)]
    if not np.all((used == 0) | (used >= SMALLEST_FACTOR)):
        return 8
    codes = w.reshape(len(w), -1).astype(np.int64)
    ends = codes * -x_offset, codes * (255 - x_offset)
    low = bias[: len(w)] + np.minimum(*ends).sum(1)
    high = bias[: len(w)] + np.maximum(*ends).sum(1)
    for bits in WIDTHS:
        half, (narrow, _) = 1 << (bits - 1), narrowed(w, bits)
        fits = narrow.min() >= -half and narrow.max() < half
        # On the way sums may leave int32, modulo 2^32; in the end they may not.
        limit = 2**31 // growth(w, bits)
        if fits and low.min() >= -limit and high.max() < limit:
            return bits
    return 8


def growth(w: NDArray[np.int8], bits: int) -> int:
    """Return how many times as large the sums of unpacked weights are as those of codes.

    Args:
        w: codes that fit in `bits`, perhaps times a power of two.
        bits: 2, 4, or 8 for not packed.
    """
    return scale(bits) >> narrowed(w, bits)[1]


def pack(w: NDArray[np.int8], bits: int) -> NDArray[np.int8]:
    """Return codes packed along the third axis from the end.

    Args:
        w: (..., steps, vectors, bytes) codes that fit in `bits`.
        bits: 2, 4, or 8 for no change.

    Returns:
        (..., steps / fields rounded up, vectors, bytes).
    """
    count = fields(bits)
    *outer, steps, vectors, size = w.shape
    full = np.zeros((*outer, -(-steps // count) * count, vectors, size), np.uint8)
    full[..., :steps, :, :] = w.view(np.uint8)
    parts = full.reshape(*outer, -1, count, vectors, size) & np.uint8((1 << bits) - 1)
    shifts = 8 - bits - bits * np.arange(count)
    placed = parts << shifts[:, None, None].astype(np.uint8)
    packed: NDArray[np.uint8] = np.bitwise_or.reduce(placed, axis=-3)
    return packed.view(np.int8)


def scaled(
    bias: NDArray[np.int32], factor: NDArray[np.float32], times: int
) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """Return bias and factor for sums that are so many `times` as large, `growth`."""
    large = bias.astype(np.int64) * times
    return (
        (large % 2**32).astype(np.uint32).view(np.int32),
        factor * np.float32(1 / times),
    )
