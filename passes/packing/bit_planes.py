"""int8 codes <-> bit planes: b bits a weight for any b < 8, as nibbles and two small tables.

Bit p of the codes j, j+m, j+2m and j+3m (m = ceil(n / 4)) is the UINT4 ``P[j, p]``, so that

    codes[k * m + j] = sum over p of T[k, P[j, p]] * place[p]

with T (4, 16) the digits of every nibble. Digits are 0/1 and the last place is negative (two's
complement), or, where all codes are odd (+-1; ``2k - (2^b - 1)`` of original DoReFa), digits
are +-1 and all places positive: b bits where two's complement takes b + 1.
"""

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

Codes = NDArray[np.int8]
_NIBBLES = ((np.arange(16) >> np.arange(4)[:, None]) & 1).astype(np.int8)
# By whether all codes are odd: T.
TABLES: dict[bool, Codes] = {False: _NIBBLES, True: 2 * _NIBBLES - np.int8(1)}


def place_values(bits: int, odd: bool, shift: int = 0) -> Codes:
    """Return what each digit counts, (bits, 1), for codes times ``2 ** shift``."""
    values = 1 << np.arange(bits)
    if not odd:
        values[-1] *= -1
    return (values << shift).astype(np.int8)[:, None]


def plane_bytes(size: int, bits: int) -> int:
    """Return the bytes of P for `size` codes."""
    return (-(-size // 4) * bits + 1) // 2


def to_planes(codes: Codes, bits: int, odd: bool) -> NDArray[np.generic]:
    """Return P, (ceil(n / 4), bits) UINT4, of codes in any shape, bits 1 to 7."""
    columns = -(-codes.size // 4)
    digits = np.zeros(4 * columns, np.uint8)
    digits[: codes.size] = codes.reshape(-1).view(np.uint8)
    if odd:
        digits = (digits + np.uint8((1 << bits) - 1)) >> np.uint8(1)
    rows = digits.reshape(4, columns)
    planes = np.empty((columns, bits), np.uint8)
    for bit in range(bits):
        ones = (rows >> np.uint8(bit)) & np.uint8(1)
        planes[:, bit] = ones[0] | ones[1] << 1 | ones[2] << 2 | ones[3] << 3
    return planes.astype(ml_dtypes.uint4)


def from_planes(planes: NDArray[np.generic], size: int, odd: bool) -> Codes:
    """Return the first `size` codes of P, flat."""
    nibbles, place = planes.astype(np.uint8), place_values(planes.shape[1], odd)
    codes = np.zeros((4, planes.shape[0]), np.int8)
    for bit, value in enumerate(place[:, 0]):
        codes += TABLES[odd][:, nibbles[:, bit]] * value
    return codes.reshape(-1)[:size]
