"""Swap(M_b, M_t, p): which blocks of a pass are the student's, and which the teacher's.

Block l of L is the student's with probability p_l, independently in each batch and precision:

    p_1(s) = p_1 + (1 - p_1) s            at share s of training, p_1 = `swap_start`
    p_l(s) = p_1(s) + (1 - p_1(s)) (l - 1) / (L - 1)

Our reading of the supplement (section 3), which gives "the initial value p_1, which is the
probability of using the student block for the first layer", "linearly increased to 1 at the
end" of training: p grows over training as it says, and over the blocks, since only the first
has p_1; the last block is always the student's.

Draws are a function of (seed, epoch, batch, b), so that every process of a job, and a run that
is resumed, has the same ones.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Generic

import numpy as np
from numpy.typing import NDArray

from qtool.core.grids import ACTIVATION_BITS
from qtool.core.selection import LayerBits, Selection
from qtool.data.batch_source import BatchSource, BatchT
from qtool.data.draws import uniform_draws
from qtool.frontends.coquant.blocks import Blocks

# Swaps are drawn apart from images and tasks.
_SEED = 1 << 51


@dataclass(frozen=True)
class Swapped(Generic[BatchT]):
    """A batch, and of each block whether it is the student's, by bits of the student."""

    batch: BatchT
    own: dict[int, tuple[bool, ...]]


@dataclass(frozen=True)
class SwapBatches(Generic[BatchT]):
    """Batches of `source`, each with swaps of its own: a `BatchSource`.

    Args:
        source: of the batches.
        epochs: of the training, numbered from 1.
        start: p_1 in its beginning.
        blocks: L.
        students: precisions that blocks are swapped of.
    """

    source: BatchSource[BatchT]
    epochs: int
    start: float
    blocks: int
    students: Sequence[int]

    @property
    def seed(self) -> int:
        """Of `source`."""
        return self.source.seed

    def __len__(self) -> int:
        return len(self.source)

    def epoch(self, index: int, start: int = 0) -> Iterator[Swapped[BatchT]]:
        """Yield the batches of epoch `index`, without the first `start`."""
        for step, batch in enumerate(self.source.epoch(index, start), start):
            yield Swapped(batch, self.drawn(index, step))

    def drawn(self, epoch: int, step: int) -> dict[int, tuple[bool, ...]]:
        """Return whose the blocks of a batch are."""
        share = (epoch - 1 + step / len(self.source)) / self.epochs
        kept = probabilities(self.start, share, self.blocks)
        # A row a batch and precision.
        rows = np.array([step * ACTIVATION_BITS.stop + b for b in self.students], np.int64)
        draws = uniform_draws(self.seed + _SEED, epoch, rows, self.blocks)
        own: list[list[bool]] = (draws < kept).tolist()
        return dict(zip(self.students, map(tuple, own), strict=True))


def probabilities(start: float, share: float, blocks: int) -> NDArray[np.float64]:
    """Return p_l (blocks,) at `share` of training, p_1 being `start` in its beginning."""
    first = start + (1 - start) * share
    return first + (1 - first) * np.arange(blocks) / max(blocks - 1, 1)


def swap(
    student: LayerBits, teacher: LayerBits | None, blocks: Blocks, own: Sequence[bool]
) -> Selection:
    """Return the bits by layer of a pass of `student`, some blocks being `teacher`'s.

    Args:
        student: bits of all other layers.
        teacher: None: nothing is swapped.
        blocks: layers of each.
        own: of each block, whether it is the student's.
    """
    if teacher is None:
        return Selection(default=student)
    swapped = (block for block, is_own in zip(blocks, own, strict=True) if not is_own)
    return Selection({name: teacher for block in swapped for name in block}, student)
