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
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from qtool.core.errors import UserError
from qtool.data.decode import SUFFIXES

_BLOCK, _LARGE = 512, 1 << 15
_NAME, _SIZE, _KIND, _MAGIC = slice(0, 100), slice(124, 135), 156, slice(257, 262)
_PLAIN = (0x30, 0x00)  # "0", and its older spelling
_SKIPPED = (*b"xgLK5",)  # extended headers, of which only a name could matter, and folders
_DOT, _SLASH = 0x2E, 0x2F
# Of what follows the dot; one byte more than the longest suffix, so that none is cut to fit.
_SUFFIX_BYTES = 6
_MOST_CLASSES = 1 << 31
_IMAGES = np.array([suffix[1:].encode() for suffix in SUFFIXES], f"S{_SUFFIX_BYTES}")
Ints = NDArray[np.int64]


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
            with _mapped(file) as tar:
                return _index(path, tar)
    except OSError as error:
        raise UserError(f"shard {path} is not readable: {error.strerror}") from None


def _index(path: Path, tar: mmap.mmap) -> ShardIndex:
    members, sizes = _members(path, tar)
    names, kinds = _headers(tar, members)
    plain = np.isin(kinds, _PLAIN)
    odd = members[~plain & ~np.isin(kinds, _SKIPPED)]
    if odd.size:
        raise UserError(f"shard {path}: byte {odd[0]} is no plain file")
    names, starts, sizes = names[plain], members[plain] + _BLOCK, sizes[plain]
    if not len(names):
        raise UserError(f"shard {path} holds no samples")
    samples, suffixes = _samples(names)
    images, labels = np.full((2, samples[-1] + 1), -1)
    shown = np.flatnonzero(np.isin(suffixes, _IMAGES))
    images[samples[shown]] = shown
    for suffix in (b"json", b"cls"):  # where both are, the latter counts
        rows = np.flatnonzero(suffixes == suffix)
        found = _labels(tar, suffix, starts[rows].tolist(), sizes[rows].tolist())
        if len(found) < len(rows):
            name = _text(names[rows[len(found)]])
            raise UserError(f"shard {path}: {name} holds no class number")
        labels[samples[rows]] = found
    for lacking, what in ((images, "image"), (labels, "class number (.cls, .json)")):
        if lacking.min() < 0:
            row = np.flatnonzero(samples == np.argmin(lacking))[0]
            raise UserError(f"shard {path}: sample of {_text(names[row])} has no {what}")
    return ShardIndex(starts[images], sizes[images].astype(np.int32), labels)


def _headers(tar: mmap.mmap, members: Ints) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Return names (M, 100) and kinds (M,): copies, so that the file can be closed."""
    blocks = np.frombuffer(tar, np.uint8, len(tar) // _BLOCK * _BLOCK).reshape(-1, _BLOCK)
    return blocks[members // _BLOCK, _NAME], blocks[members // _BLOCK, _KIND]


def _mapped(file: BinaryIO) -> mmap.mmap:
    """Map the shard into memory.

    Small files: all at once, which costs a tenth of a page at a time. Large ones: nothing of
    what is between the headers, which the kernel would read ahead.
    """
    size = file.read(_BLOCK)[_SIZE].rstrip(b"\0 ")
    small = not size.isdigit() or int(size, 8) < _LARGE
    populate = getattr(mmap, "MAP_POPULATE", 0) if small else 0  # Linux only
    tar = mmap.mmap(file.fileno(), 0, flags=mmap.MAP_SHARED | populate, prot=mmap.PROT_READ)
    if not small:
        tar.madvise(mmap.MADV_RANDOM)
    return tar


def _members(path: Path, tar: mmap.mmap) -> tuple[Ints, Ints]:
    """Return where the headers of all files are, and the sizes of these files."""
    places, sizes = [], []
    position, end = 0, len(tar) - _BLOCK
    try:
        while position <= end and tar[position]:
            if tar[position + _MAGIC.start : position + _MAGIC.stop] != b"ustar":
                raise UserError(_no_header(path, position, tar[:6]))
            size = int(tar[position + _SIZE.start : position + _SIZE.stop].rstrip(b"\0"), 8)
            places.append(position)
            sizes.append(size)
            position += _BLOCK + (size + _BLOCK - 1) // _BLOCK * _BLOCK
    except ValueError:
        raise UserError(f"shard {path}: damaged header at byte {position}") from None
    if position > end or min(sizes, default=0) < 0:
        raise UserError(f"shard {path} is truncated: no end mark at byte {position}")
    return np.array(places, np.int64), np.array(sizes, np.int64)


def _no_header(path: Path, position: int, first: bytes) -> str:
    packed = first.startswith((b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd"))
    hint = "it is compressed" if packed else "damaged"
    return (
        f"shard {path}: no tar header at byte {position} ({hint}); expected an uncompressed "
        ".tar"
    )


def _samples(names: NDArray[np.uint8]) -> tuple[Ints, NDArray[np.bytes_]]:
    """Return the sample's number and the suffix of every name (M, 100).

    A name is cut at the first dot of its last part, as WebDataset does; neighbours that are
    equal up to there are a sample.
    """
    width = int(np.flatnonzero(names.any(0))[-1]) + 1
    names = names[:, :width]
    columns = np.arange(width, dtype=np.int8)
    last = np.where(names == _SLASH, columns, np.int8(-1)).max(1)
    dots = (names == _DOT) & (columns > last[:, None])
    stems = np.where(dots.any(1), dots.argmax(1), width)
    equal = (names[1:] == names[:-1]) | (columns >= stems[1:, None])
    same = (stems[1:] == stems[:-1]) & equal.all(1)
    padded = np.pad(names, ((0, 0), (0, 1 + _SUFFIX_BYTES)))
    behind = stems[:, None] + 1 + np.arange(_SUFFIX_BYTES)
    suffixes = np.take_along_axis(padded, behind, 1)
    suffixes |= ((suffixes >= ord("A")) & (suffixes <= ord("Z"))).astype(np.uint8) << 5
    text = suffixes.reshape(-1).view(f"S{_SUFFIX_BYTES}")
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(~same)]), text


def _labels(tar: mmap.mmap, suffix: bytes, starts: list[int], sizes: list[int]) -> list[int]:
    """Return the classes that files give, up to the first damaged; -1 for JSON without one."""
    found: list[int] = []
    read = int if suffix == b"cls" else _json_label
    try:
        for start, size in zip(starts, sizes, strict=True):
            value = read(tar[start : start + size])
            if value >= _MOST_CLASSES:
                raise ValueError
            found.append(value)
    except (ValueError, AttributeError, RecursionError):
        pass
    return found


def _json_label(content: bytes) -> int:
    value = json.loads(content)
    value = value.get("label", value.get("cls"))
    return value if type(value) is int else -1


def _text(name: NDArray[np.uint8]) -> str:
    return name.tobytes().rstrip(b"\0").decode(errors="replace")
