"""Arrays -> the bytes of TVM's parameter file, which ``tvm.relay.load_param_dict`` reads.

    list magic, 0 | count, names (length, bytes) | count, arrays
    array: magic, 0 | device type, device id | rank | element type | sizes | bytes | data

All numbers little endian. Source: TVM 0.19, src/runtime/file_utils.cc (SaveParams) and
include/tvm/runtime/ndarray.h (SaveDLTensor).
"""

import struct
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

_LIST_MAGIC, _ARRAY_MAGIC = 0xF7E58D4F05049CB7, 0xDD5E40F096B4A13F
_CPU = (1, 0)
# DLPack's codes of kinds of numbers.
_KINDS = {"i": 0, "u": 1, "f": 2}


def parameter_bytes(arrays: Mapping[str, NDArray[Any]]) -> bytes:
    """Return the content of a parameter file."""
    names = [name.encode() for name in arrays]
    parts = [struct.pack("<QQQ", _LIST_MAGIC, 0, len(names))]
    parts += [struct.pack("<Q", len(name)) + name for name in names]
    parts.append(struct.pack("<Q", len(names)))
    return b"".join([*parts, *map(_array_bytes, arrays.values())])


def _array_bytes(array: NDArray[Any]) -> bytes:
    data = np.ascontiguousarray(array).astype(array.dtype.newbyteorder("<")).tobytes()
    kind = struct.pack("<BBH", _KINDS[array.dtype.kind], 8 * array.itemsize, 1)
    return b"".join(
        (
            struct.pack("<QQiii", _ARRAY_MAGIC, 0, *_CPU, array.ndim),
            kind,
            struct.pack(f"<{array.ndim + 1}q", *array.shape, len(data)),
            data,
        )
    )
