"""The IDX format of MNIST and Fashion-MNIST: big-endian header, then uint8 values.

Published as ``*-ubyte.gz``; plain and ``.xz`` files are read too.
Source: http://yann.lecun.com/exdb/mnist (format), https://github.com/zalandoresearch/fashion-mnist.
"""

import gzip
import lzma
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qtool.core.errors import UserError
from qtool.data.checksums import require_published

_OPENERS: dict[str, Callable[..., Any]] = {".gz": gzip.open, ".xz": lzma.open}
SUFFIXES = ("", ".gz", ".xz")
_UINT8 = 8


def find_idx(folder: Path, stem: str) -> Path:
    """Return `folder`/`stem` with whichever known suffix exists."""
    for suffix in SUFFIXES:
        path = folder / (stem + suffix)
        if path.is_file():
            return path
    raise UserError(
        f"data file missing: {folder / stem} (looked for {', '.join(SUFFIXES[1:])} too)"
    )


def read_idx(path: Path) -> NDArray[np.uint8]:
    """Return the uint8 array in an IDX file, whole or not at all."""
    require_published(path)
    try:
        with _OPENERS.get(path.suffix, open)(path, "rb") as file:
            raw: bytes = file.read()
    except (OSError, EOFError, lzma.LZMAError, zlib.error) as error:
        raise UserError(f"data file {path} is truncated or not readable: {error}") from None
    if len(raw) < 4 or raw[:2] != b"\0\0" or raw[2] != _UINT8:
        raise UserError(f"data file {path}: not an IDX file of bytes (header {raw[:4].hex()})")
    start = 4 + 4 * raw[3]
    shape = tuple(int.from_bytes(raw[i : i + 4], "big") for i in range(4, start, 4))
    expected = start + int(np.prod(shape, dtype=np.int64))
    if len(raw) != expected:
        raise UserError(
            f"data file {path}: got {len(raw)} bytes, expected {expected} for shape {shape}"
        )
    return np.frombuffer(raw, np.uint8, offset=start).reshape(shape)


def encode_idx(array: NDArray[np.uint8]) -> bytes:
    """Return `array` in IDX format, uncompressed."""
    header = bytes([0, 0, _UINT8, array.ndim])
    return header + b"".join(n.to_bytes(4, "big") for n in array.shape) + array.tobytes()
