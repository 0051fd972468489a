"""Loops over the bytes of tensors that share pixels, in as few and long runs as they allow.

Two dense tensors are one run of all their bytes; a halo leaves a run a row; different pixel
strides, or an operand that is broadcast, a run a pixel.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass

from tvm.script.ir_builder import tirx as T

from passes.emit.tvm.cpu.kernels.direct import Place
from passes.emit.tvm.cpu.kernels.tir import Buffer, Expr, load, loop, store
from passes.emit.tvm.cpu.vectors.base import shuffle

# Called with the offset in each tensor and the number of bytes from there.
Step = Callable[[Sequence[Expr], int], None]


@dataclass(frozen=True)
class Region:
    """Pixels that a kernel visits.

    Args:
        height: rows.
        width: pixels of a row.
        bytes: of a pixel. May count the channels behind C, where a tensor has them.
    """

    height: int
    width: int
    bytes: int

    def __str__(self) -> str:
        return f"{self.height}x{self.width}x{self.bytes}"

    def merged(self, places: Sequence[Place], keep_rows: bool = False) -> "Region":
        """Return the same bytes in longer runs; strides of merged dimensions mean nothing.

        Args:
            places: of all the tensors.
            keep_rows: leave rows to be split over threads.
        """
        found = self
        if found.width == 1 or all(p.pixel == found.bytes for p in places):
            found = Region(found.height, 1, found.width * found.bytes)
            if found.height == 1 or all(p.row == found.bytes for p in places):
                found = Region(1, 1, found.height * found.bytes)
        return found if keep_rows else found._without_rows(places)

    def _without_rows(self, places: Sequence[Place]) -> "Region":
        """Return one row of all pixels, where a row's end is no gap in any tensor."""
        if self.width > 1 and all(p.row == self.width * p.pixel for p in places):
            return Region(1, self.height * self.width, self.bytes)
        return self


def walk(
    region: Region, places: Sequence[Place], size: int, step: Step, parallel: bool,
    overlap: bool = True,
) -> None:  # fmt: skip
    """Call `step` for every vector of every run; what does not depend on the pixel is outside.

    Args:
        region: what to visit.
        places: of each tensor; strides of 0 for an operand that is broadcast.
        size: bytes of a vector.
        step: writes the code for one vector.
        parallel: split over threads.
        overlap: the last vector of a run overlaps the one before it, so that only a run
            shorter than a vector has a step of fewer bytes; otherwise that is the last step.
    """
    region = region.merged(places, keep_rows=parallel)
    with loop(region.height, parallel) as row:
        threads = parallel and region.height == 1
        steps = _vectors(region.bytes, size, threads and region.width == 1, overlap)
        for count, offset in steps:
            with offset as k, loop(region.width, threads and region.width > 1) as column:
                step([row * p.row + column * p.pixel + k for p in places], count)


def _vectors(
    total: int, size: int, parallel: bool, overlap: bool
) -> Iterator[tuple[int, AbstractContextManager[Expr]]]:
    """Yield the bytes of each step and the loop over its offsets."""
    full, rest = divmod(total, size)
    if full:
        yield size, _offsets(full, size, 0, parallel)
    if rest:
        count = size if full and overlap else rest
        yield count, _offsets(1, 0, total - count)


@contextmanager
def _offsets(count: int, step: int, start: int, parallel: bool = False) -> Iterator[Expr]:
    """Yield start, start + step, ..., of a loop of `count` turns."""
    with loop(count, parallel) as index:
        yield index * step + start


def store_first(buffer: Buffer, offset: Expr, value: Expr, count: int, lanes: int) -> None:
    """Write the first `count` of `lanes` elements, and nothing behind them."""
    done = 0
    while done < count:
        size = 1 << (count - done).bit_length() - 1
        part = value if size == lanes else shuffle([value], range(done, done + size))
        put(buffer, offset + done, part, size)
        done += size


def put(buffer: Buffer, offset: Expr, value: Expr, lanes: int) -> None:
    """Write `lanes` elements, of which a single one is no vector."""
    if lanes == 1:
        T.buffer_store(buffer, value, [offset])
    else:
        store(buffer, offset, value, lanes)


def take(buffer: Buffer, offset: Expr, lanes: int) -> Expr:
    """Return `lanes` elements, of which a single one is no vector."""
    return buffer[offset] if lanes == 1 else load(buffer, offset, lanes)
