"""Weights -> integer codes, one function a quantizer: the arithmetic that training fakes.

Narrow codes do not fill their int8 container, and a bias is rounded to a multiple of input
scale times weight scale: at two bits each that is as coarse as the result itself. Layers
therefore hold their codes times a power of two, `container_shift`, and a scale as much finer.
Products and sums are the same numbers, and the bias has the resolution of wide codes.
"""

import numpy as np
from numpy.typing import NDArray

from qtool.core.grids import WEIGHT_BITS, weight_limit
from qtool.core.numerics import F32, Floats

# Two products of a uint8 and a code up to here fit the 16 bits in which CPUs without VNNI add
# them; a wider one may saturate there.
_WIDEST = 64
_ODD_SCHEMES = ("dorefa", "centered")


def quantize_weight(w: Floats, scale: Floats, limit: int) -> NDArray[np.int8]:
    """Symmetric weight codes ``clip(rint(w / scale), -limit, limit)``.

    Args:
        w: (C, ...) float32.
        scale: (C,) float32, one step per output channel.
        limit: largest code, `qtool.core.grids.weight_limit(bits)`.
    """
    steps = scale.reshape(-1, *[1] * (w.ndim - 1))
    codes: NDArray[np.int8] = np.clip(np.rint(w / steps), -limit, limit).astype(np.int8)
    return codes


def binary_weight(w: Floats) -> NDArray[np.int8]:
    """One-bit weight codes: 1 where ``w >= 0``, else -1 (BWN, Rastegari et al. 2016)."""
    return np.where(w >= 0, 1, -1).astype(np.int8)


def dorefa_weight(w: Floats, bits: int) -> NDArray[np.int16]:
    """DoReFa's weight codes, ``2 rint((w + 1) / 2 * n) - n`` with n = 2^b - 1: odd integers.

    Args:
        w: ``tanh(w) / max |tanh(w)|`` of the float weights, in [-1, 1].
        bits: b; the weight's value is ``code / n``.

    Source: Zhou et al. 2016 (arXiv 1606.06160), Eq. 9; Any-Precision uses the same.
    """
    n = F32((1 << bits) - 1)
    half = (np.asarray(w, F32) + F32(1)) / F32(2)
    codes: NDArray[np.int16] = (2 * np.rint(half * n) - n).astype(np.int16)
    return codes


def modified_weight(w: Floats, bits: int) -> NDArray[np.int16]:
    """Codes of "modified" DoReFa, ``min(floor(2^b (w + 1) / 2), 2^b - 1) - 2^(b-1)``.

    Args:
        w: ``tanh(w) / max |tanh(w)|`` of the float weights, in [-1, 1].
        bits: b; the weight's value is ``code * 2^(1-b)``.

    Source: SAT and AdaBits (Jin et al. 2020, arXiv 1912.09666).
    """
    levels = F32(1 << bits)
    half = (np.asarray(w, F32) + F32(1)) / F32(2)
    cells = np.clip(np.floor(levels * half), 0, levels - 1)
    codes: NDArray[np.int16] = (cells - (1 << (bits - 1))).astype(np.int16)
    return codes


def centered_weight(w: Floats, bits: int) -> NDArray[np.int16]:
    """Codes of "centered" DoReFa, ``2 modified_weight(w, b) + 1``: odd integers.

    Args:
        w: ``tanh(w) / max |tanh(w)|`` of the float weights, in [-1, 1].
        bits: b; the weight's value is ``code * 2^-b``.

    Source: the code of AdaBits (arXiv 1912.09666).
    """
    return 2 * modified_weight(w, bits) + np.int16(1)


def double_rounding_weight(stored: Floats, bits: int) -> NDArray[np.int8]:
    """Codes of Double Rounding, ``clip(rint(W_8 / 2^(8-b)), -Q, Q)``; at one bit W_8's signs.

    Args:
        stored: W_8, the 8-bit codes: integers from -127 to 127.
        bits: b; the weight's value is ``code * s * 2^(8-b)``, s the step of W_8.

    Source: Huang et al. 2025 (arXiv 2502.01199), Eq. 2, with narrow windows.
    """
    if bits == 1:
        return binary_weight(stored)
    limit = weight_limit(bits)
    exact = np.asarray(stored, F32) / F32(1 << (WEIGHT_BITS[-1] - bits))
    codes: NDArray[np.int8] = np.clip(np.rint(exact), -limit, limit).astype(np.int8)
    return codes


def largest_code(scheme: str, bits: int) -> int:
    """Return the largest magnitude of a code, also where BatchNorm turns its channel round.

    Args:
        scheme: "symmetric", "double_rounding", "modified", "dorefa" or "centered".
        bits: 1 to 8.
    """
    if scheme in _ODD_SCHEMES:
        return (1 << bits) - 1
    return 1 << (bits - 1) if scheme == "modified" else weight_limit(bits)


def container_shift(scheme: str, bits: int) -> int:
    """Return k: a layer holds its codes times 2^k, and 2^-k times their scale.

    The codes then reach at most 64; k is 0 from 7 bits on. It depends on nothing else, so that
    codes of several widths nest as they did.
    """
    return max((_WIDEST // largest_code(scheme, bits)).bit_length() - 1, 0)


def narrowed(codes: NDArray[np.int8], bits: int) -> tuple[NDArray[np.int8], int]:
    """Return codes divided by the largest common power of two, and its exponent.

    Args:
        codes: of any shape.
        bits: that the result is to have; no more is divided away than what int8 has over.
    """
    common = int(np.bitwise_or.reduce(codes, axis=None, initial=0))
    shift = min((common & -common).bit_length() - 1, 8 - bits) if common else 0
    narrow: NDArray[np.int8] = codes >> shift
    return narrow, shift
