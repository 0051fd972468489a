"""WebDataset shards: tar files of samples, a sample's files next to each other.

A sample is an image (``key.jpg``, .jpeg, .png or .webp) and its class (``key.cls``, a
number, or ``key.json`` with "label" or "cls"). Only the headers are read, once; an image is
then one read at a known place, so nothing before it is, and memory holds three numbers a
sample.

Sources: https://github.com/webdataset/webdataset; POSIX.1-2017, pax, "ustar Interchange
Format".
"""

import json
import mmap
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from qtool.data.decode import SUFFIXES
from qtool.errors import UserError

_BLOCK = 512
_IMAGES = {suffix[1:].encode() for suffix in SUFFIXES}
_CLASS = (b"cls", b"json")
_REGULAR = (0x30, 0x00)  # "0", and its older spelling
_SKIPPED = b"xgLK5"  # extended headers, of which only a file's name could matter, and folders


@dataclass(frozen=True)
class ShardIndex:
    """Where the images of a shard are: offsets and sizes in bytes, and labels; (N,) each."""

    offsets: NDArray[np.int64]
    sizes: NDArray[np.int32]
    labels: NDArray[np.int64]


def index_shard(path: Path) -> ShardIndex:
    """Return the index of the tar file `path`.

    Raises:
        UserError: truncated, not an uncompressed tar file, or samples of other files.
    """
    try:
        with open(path, "rb") as file:
            if os.fstat(file.fileno()).st_size < 2 * _BLOCK:
                raise UserError(f"shard {path} is truncated or no tar file")
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as tar:
                found = _scan(path, tar)
    except OSError as error:
        raise UserError(f"shard {path} is not readable: {error.strerror}") from None
    offsets, sizes, labels = zip(*found, strict=True) if found else ((), (), ())
    if not found:
        raise UserError(f"shard {path} holds no samples")
    return ShardIndex(
        np.array(offsets, np.int64), np.array(sizes, np.int32), np.array(labels, np.int64)
    )


def _scan(path: Path, tar: mmap.mmap) -> list[tuple[int, int, int]]:
    """Return (offset, size, label) of every sample."""
    found: list[tuple[int, int, int]] = []
    key, image, label = b"", None, None
    position, end = 0, len(tar)
    while True:
        header = tar[position : position + _BLOCK]
        if len(header) < _BLOCK:
            raise UserError(f"shard {path} is truncated: it ends without an end mark")
        if header[0] == 0:
            break
        size = _size(path, position, header)
        start = position + _BLOCK
        position = start + (size + _BLOCK - 1) // _BLOCK * _BLOCK
        if position > end:
            raise UserError(f"shard {path} is truncated: a file ends at byte {start + size}")
        if header[156] not in _REGULAR:
            if header[156] not in _SKIPPED:
                raise UserError(f"shard {path}: byte {start - _BLOCK} is no plain file")
            continue
        name = header[: header.index(0, 0, 101)] if 0 in header[:100] else header[:100]
        stem, kind = _split(name)
        if stem != key:
            _finish(path, found, key, image, label)
            key, image, label = stem, None, None
        if kind in _IMAGES:
            image = start, size
        elif kind in _CLASS and (label is None or kind == b"cls"):
            label = _label(path, name, tar[start : start + size], kind)
    _finish(path, found, key, image, label)
    return found


def _split(name: bytes) -> tuple[bytes, bytes]:
    """Split ``a/b.seg.jpg`` at the first dot of its last part, as WebDataset does."""
    place = name.find(b".", name.rfind(b"/") + 1)
    return (name, b"") if place < 0 else (name[:place], name[place + 1 :].lower())


def _size(path: Path, position: int, header: bytes) -> int:
    if header[257:262] != b"ustar":
        hint = (
            "it is compressed" if header[:2] in (b"\x1f\x8b", b"BZ", b"\xfd7") else "damaged"
        )
        raise UserError(
            f"shard {path}: no tar header at byte {position} ({hint}); expected an "
            "uncompressed .tar"
        )
    try:
        return int(header[124:136].rstrip(b"\0 ") or b"0", 8)
    except ValueError:
        raise UserError(f"shard {path}: damaged header at byte {position}") from None


def _label(path: Path, name: bytes, content: bytes, kind: bytes) -> int | None:
    """Return the class that a sample's file gives; None: this one gives none."""
    try:
        if kind == b"cls":
            return int(content)
        value = json.loads(content)
        value = value.get("label", value.get("cls"))
    except (ValueError, AttributeError):
        raise UserError(
            f"shard {path}: {name.decode(errors='replace')} holds no class number"
        ) from None
    return value if type(value) is int else None


def _finish(
    path: Path,
    found: list[tuple[int, int, int]],
    key: bytes,
    image: tuple[int, int] | None,
    label: int | None,
) -> None:
    """Add the sample `key`, which must have an image and a class."""
    if not key:
        return
    if image is None or label is None or label < 0:
        lack = "image" if image is None else "class number (.cls, .json)"
        raise UserError(f"shard {path}: sample {key.decode(errors='replace')} has no {lack}")
    found.append((*image, label))
